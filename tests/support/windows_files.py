"""What Windows refuses to do with a file that is mapped into memory, on Linux."""

from __future__ import annotations

import os
import pathlib
from pathlib import Path
from typing import Any

import pytest


def refuse_what_windows_refuses(monkeypatch: pytest.MonkeyPatch, renames: bool = False) -> None:
    """Make this process's calls that replace or delete a file, or a folder, fail where one of its mappings is alive.

    Args:
        renames: let a mapped file get another name, as NTFS does; other file systems may not.
    """
    replace, unlink = os.replace, os.unlink

    def replace_(source: Any, destination: Any) -> None:
        if Path(destination).is_dir() or mapped_in(destination) or (mapped_in(source) and not renames):
            raise PermissionError(13, "Access is denied", os.fspath(destination))
        replace(source, destination)

    def unlink_(path: Any, dir_fd: int | None = None) -> None:
        folder = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")  # shutil.rmtree gives one
        if mapped_in(os.path.join(folder, path)):
            raise PermissionError(13, "Access is denied", os.fspath(path))
        unlink(path, dir_fd=dir_fd)

    for owner in (os, getattr(pathlib, "_normal_accessor", os)):  # Python 3.10's paths keep functions of their own
        monkeypatch.setattr(owner, "replace", replace_)
        monkeypatch.setattr(owner, "unlink", unlink_)


def mapped_in(path: Any) -> list[Path]:
    """The files at or under a path that are mapped into this process."""
    there = Path(path).absolute()
    lines = Path("/proc/self/maps").read_text().splitlines()
    files = {Path(parts[5]) for line in lines if len(parts := line.split(maxsplit=5)) == 6}
    return sorted(file for file in files if file == there or there in file.parents)
