"""make test: ruff, the type checker, then every test; stops at the first that fails."""

from __future__ import annotations

import os
import subprocess
import sys

import browser
from devhost import ROOT


def main() -> int:
    """Run every check in the interpreter of this process; return the first exit code that is not 0."""
    browser.executable()  # the browser tests need one; said (or installed) before the long part
    steps = [
        ["ruff", "check", "."],
        ["mypy", "instaflow_core", "scripts", "benchmarks"],
        ["pytest", *sys.argv[1:]],
    ]
    # One thread an operation: two processes (tests and server) share the cores, and results do not vary.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    for step in steps:
        print("$ " + " ".join(step), flush=True)
        if code := subprocess.run([sys.executable, "-m", *step], cwd=ROOT, env=environment).returncode:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
