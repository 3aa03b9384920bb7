"""The zip that a registry gets: it is scanned as there, and what is found is explained."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from devhost import ROOT
from packed import pack, unpack
from registry_rules import Finding, findings

HOW = (sys.executable, "-m")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("zip") / "node.zip")


@pytest.fixture(scope="module")
def packed(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zip's files in a folder."""
    return unpack(archive, tmp_path_factory.mktemp("packed"))


def scan(folder: Path, *command: str) -> list[dict[str, object]]:
    """What a scanner reports as JSON; it may find something, but not fail."""
    ran = subprocess.run([*HOW, *command], cwd=folder, capture_output=True, text=True)
    assert ran.returncode in (0, 1) and ran.stdout, ran.stderr
    said = json.loads(ran.stdout)
    return list(said["results"] if isinstance(said, dict) else said)


def by_ruff(folder: Path, rules: str) -> set[Finding]:
    found = scan(folder, "ruff", "check", "--isolated", "--no-cache", "--select", rules, "--output-format", "json", ".")
    return {(str(one["code"]), Path(str(one["filename"])).relative_to(folder.resolve()).as_posix()) for one in found}


def by_bandit(folder: Path) -> set[Finding]:
    found = scan(folder, "bandit", "--quiet", "--recursive", "--ignore-nosec", "--format", "json", ".")
    return {(str(one["test_id"]), Path(str(one["filename"])).as_posix()) for one in found}


def explained() -> set[Finding]:
    """The lines of the table in SECURITY.md."""
    rows = re.findall(r"^\| ([\w, ]+) \| (\S+\.\w+) \| .+ \|$", (ROOT / "SECURITY.md").read_text("utf-8"), re.MULTILINE)
    return {(rule, file) for rules, file in rows for rule in rules.split(", ")}


def test_every_finding_has_its_line_and_every_line_its_finding(packed: Path) -> None:
    assert by_ruff(packed, "S") | by_bandit(packed) | findings(packed) == explained()


def test_the_zip_holds_what_runs_and_nothing_else(packed: Path) -> None:
    assert {path.name for path in packed.iterdir()} == {
        *("__init__.py", "nodes", "instaflow_core", "web", "locales", "models", "workflows", "subgraphs", "docs"),
        *("pyproject.toml", "requirements.txt", "README.md", "CHANGELOG.md", "LICENSE", "SECURITY.md", "sbom.cdx.json"),
    }


BAD = {
    "code execution": "eval(input())",
    "shell": "import os\nos.system('ls')",
    "import by name": "import importlib\nimportlib.import_module(name)",
    "subprocess": "from subprocess import run",
    "network": "import urllib.request",
    "pickle": "import torch\ntorch.load(path)",
    "hidden text": "import base64",
    "native code": "import ctypes",
    "installer": "import pip",
}


@pytest.mark.parametrize("rule", BAD)
def test_the_rules_find_what_they_are_for(tmp_path: Path, rule: str) -> None:
    (tmp_path / "node.py").write_text(BAD[rule])
    assert findings(tmp_path) == {(rule, "node.py")}
