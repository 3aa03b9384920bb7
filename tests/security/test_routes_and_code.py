"""What the pack does not have, and so cannot be attacked by: routes of its own, and code that comes as text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from devhost import ROOT

SHIPPED = sorted(
    path for path in (ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py"), *(ROOT / "instaflow_core").rglob("*.py"))
)
RUNS_CODE = {"eval", "exec", "compile", "__import__"}  # as functions; a network's eval() is another thing
OF_THE_SYSTEM = {
    "system",
    "popen",
    "fork",
    "startfile",
    "posix_spawn",
    *(f"{k}{e}" for k in ("exec", "spawn") for e in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
}
STARTS_PROGRAMS = {"subprocess", "pty", "ctypes", "marshal", "shelve", "dill", "cloudpickle", "code", "runpy"}


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(call: ast.Call) -> tuple[str, str]:
    """What is called: the name before the last dot, the last name."""
    owner = getattr(getattr(call.func, "value", None), "id", "")
    return owner, getattr(call.func, "attr", None) or getattr(call.func, "id", "")


def imported(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it, without their parts."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_f_no_code_comes_as_text(path: Path) -> None:
    """Pickles are read by torch.load(weights_only=True) alone; `pickle` is imported for the name of its error."""
    assert not imported(path) & STARTS_PROGRAMS
    for call in calls(path):
        owner, name = name_of(call)
        assert not (isinstance(call.func, ast.Name) and name in RUNS_CODE), name
        assert not (owner == "os" and name in OF_THE_SYSTEM), name
        assert owner != "pickle", "nothing of it is called"
        if (owner, name) == ("torch", "load"):
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            assert isinstance(given.get("weights_only"), ast.Constant) and given["weights_only"].value is True
