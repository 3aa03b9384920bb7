"""make test: linter, contracts of imports, type checker, then every test. make quick: what is seconds of that.

    check.py [PYTEST ARGUMENTS...]           everything
    check.py --quick [PYTEST ARGUMENTS...]   between two edits: the core's tests that take no model

Stops at the first that fails.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence

import browser
from devhost import ROOT

# The pack's folder may have any name, also one that is no module name; the checkers see it under this one.
PACK_ALIAS = ROOT / "build" / "typecheck" / "instaflow_pack"

# import-linter has no -m, and finds a package only on the path.
_LINT_IMPORTS = (
    f"import sys; sys.path.insert(0, {str(PACK_ALIAS.parent)!r}); from importlinter.cli import lint_imports_command; "
    "lint_imports_command()"
)
# Each is what follows the interpreter.
CHECKS = (
    ("-m", "ruff", "check", "."),
    ("-m", "ruff", "format", "--check", "."),
    ("-c", _LINT_IMPORTS, "--no-logo", "--cache-dir", "build/import-linter"),
    ("-m", "mypy", "-p", "instaflow_pack.nodes", "-p", "instaflow_pack.instaflow_core"),
    ("-m", "mypy", "scripts", "benchmarks"),
)
# Two halves of the suite side by side, each with a server of its own: one mostly waits for the other program it runs.
# More would not fit in memory, since some tests hold models of Stable Diffusion's size.
EVERY_TEST = ("-m", "pytest", "--numprocesses=2", "--dist=loadfile")
QUICK_TESTS = ("-m", "pytest", "--numprocesses=2", "--dist=worksteal", "-m", "not slow", "tests/core")


def run(steps: Sequence[Sequence[str]]) -> int:
    """Run every step in the interpreter of this process; return the first exit code that is not 0."""
    PACK_ALIAS.parent.mkdir(parents=True, exist_ok=True)
    if not PACK_ALIAS.is_symlink():
        PACK_ALIAS.symlink_to(ROOT, target_is_directory=True)
    # One thread an operation: tests and servers share the cores, and results do not vary.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    for step in steps:
        print("$ " + shlex.join(("python", *step)), flush=True)
        if code := subprocess.run([sys.executable, *step], cwd=ROOT, env=environment).returncode:
            print(f"failed: {' '.join(step[:3])}; what it says is above.", file=sys.stderr)
            return code
    return 0


def main(arguments: Sequence[str]) -> int:
    """The checks and the tests that the arguments name."""
    if "--quick" in arguments:
        return run([*CHECKS, (*QUICK_TESTS, *(argument for argument in arguments if argument != "--quick"))])
    browser.executable()  # the browser tests need one; said (or installed) before the long part
    return run([*CHECKS, (*EVERY_TEST, *arguments)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
