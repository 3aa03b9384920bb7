"""What importing the core costs: the contracts hold which file may use a heavy library, this that none does early."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # Python 3.11 and newer

ROOT = Path(__file__).resolve().parents[2]
IMPORT_ALL = """
import importlib, pkgutil, sys
import instaflow_core
for module in pkgutil.walk_packages(instaflow_core.__path__, "instaflow_core."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def heavy() -> set[str]:
    """The libraries that ruff bans at the top of a module; it does not see those under try, if or a class."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return set(settings["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-module-level-imports"])


@pytest.mark.slow
def test_importing_every_module_of_the_core_imports_no_heavy_library() -> None:
    ran = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(ran.stdout.split())
    assert {"instaflow_core", "torch"} <= imported
    assert not imported & heavy()


def test_the_contracts_name_the_same_libraries_as_the_linter() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (c for c in settings["tool"]["importlinter"]["contracts"] if c["id"] == "heavy")
    assert set(contract["forbidden_modules"]) == heavy()
