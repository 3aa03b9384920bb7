"""make test: ruff, the type checker, then every test; stops at the first that fails."""

from __future__ import annotations

import os
import subprocess
import sys

import browser
from devhost import ROOT

# The pack's folder may have any name, also one that is no module name; the type checker sees it under this one.
PACK_ALIAS = ROOT / "build" / "typecheck" / "instaflow_pack"


def main() -> int:
    """Run every check in the interpreter of this process; return the first exit code that is not 0."""
    browser.executable()  # the browser tests need one; said (or installed) before the long part
    PACK_ALIAS.parent.mkdir(parents=True, exist_ok=True)
    if not PACK_ALIAS.is_symlink():
        PACK_ALIAS.symlink_to(ROOT, target_is_directory=True)
    steps = [
        ["ruff", "check", "."],
        ["mypy", "-p", "instaflow_pack.nodes", "-p", "instaflow_pack.instaflow_core"],
        ["mypy", "scripts", "benchmarks"],
        # Two halves of the suite side by side, each with a server of its own: one mostly waits for the other program
        # it runs. More would not fit in memory, since some tests hold models of Stable Diffusion's size.
        ["pytest", "--numprocesses=2", "--dist=loadfile", *sys.argv[1:]],
    ]
    # One thread an operation: tests and servers share the cores, and results do not vary.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    for step in steps:
        print("$ " + " ".join(step), flush=True)
        if code := subprocess.run([sys.executable, "-m", *step], cwd=ROOT, env=environment).returncode:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
