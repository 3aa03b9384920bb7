"""Files that appear under their name whole, with the rights any new file gets."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from instaflow_core.atomic import replacing, replacing_folder


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
def test_new_files_have_the_rights_of_any_and_the_umask_is_let_alone(
    umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Setting it to ask for it would be seen by every other thread of the process."""
    monkeypatch.delattr(os, "umask")
    with replacing(tmp_path / "new" / "file") as temporary:
        temporary.write_text("x")
    with replacing_folder(tmp_path / "folder") as temporary:
        (temporary / "inside").mkdir()
    assert (tmp_path / "new" / "file").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize("kind", [replacing, replacing_folder])
def test_what_fails_leaves_what_was_there(kind: type, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir() if kind is replacing_folder else (tmp_path / "there").write_text("old")
    with pytest.raises(RuntimeError, match="stop"), kind(tmp_path / "there"):
        raise RuntimeError("stop")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_what_was_moved_aside_stays_until_the_new_folder_is_there(tmp_path: Path) -> None:
    """It may be the only one: its mover was killed before the new one had its name."""
    aside = tmp_path / ".there.abc.old"
    aside.mkdir()
    with replacing_folder(tmp_path / "there"):
        assert aside.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_file_takes_no_folders_place(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("old")
    with pytest.raises(OSError), replacing(tmp_path / "there") as temporary:
        temporary.write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "mine"]
