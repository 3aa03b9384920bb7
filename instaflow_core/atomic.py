"""Files and folders that appear under their name only when they are whole."""

import glob
import itertools
import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on leaving, it is flushed to disk and renamed to `path`.

    Where the writing raises, `path` stays as it was and the temporary file is gone. Missing folders are made.

    Raises PermissionError where `path` is in use and cannot be replaced; the message says where the new file lies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, ".tmp")
    temporary.touch(exist_ok=False)  # with the rights every new file gets, which mkstemp does not give
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        try:
            os.replace(temporary, path)
        except PermissionError:
            if not path.is_file():
                raise
            _replace_by_moving(temporary, path)
    finally:
        _remove([temporary])


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` to fill, renamed to `path` on leaving; all else as `replacing`.

    What was at `path` is moved aside first and deleted last.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, ".tmp")
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            _replace_by_moving(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        _remove([temporary])


def remove_leftovers_of(path: Path) -> None:
    """Remove what a killed writer of `path`, a file or a folder, left beside it. Only where nobody else writes it."""
    _remove(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))
    if path.exists():  # else what was moved aside for it is all there is
        _remove(path.parent.glob(f".{glob.escape(path.name)}.*.old"))


def remove_leftovers_in(folder: Path) -> None:
    """Remove what killed writers left anywhere in the folder. Only where nobody else writes there."""
    _remove(folder.rglob(".*.tmp"))


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{ending}")


def _replace_by_moving(finished: Path, path: Path) -> None:
    """Move what is at `path` aside, put the finished file or folder there, and remove the old one.

    Folders cannot be replaced otherwise. On Windows neither can a file that is memory-mapped, as by a model that was
    loaded from it; but it can be renamed.
    """
    aside = _beside(path, ".old")
    try:
        os.replace(path, aside)
        try:
            os.replace(finished, path)
        except OSError:
            os.replace(aside, path)
            raise
    except OSError as error:
        kept = _free_name(finished, path)
        os.replace(finished, kept)
        raise PermissionError(
            f"{path} is in use and cannot be replaced ({error.strerror or error}). The new one is whole, at {kept}. "
            "On Windows a file is held by a model that was loaded from it, in ComfyUI until that is unloaded, and by "
            f"other programs that have it open: let go of it there, then give {kept.name} the name {path.name}."
        ) from error
    if _remove([aside]):
        _log.warning("%s is new, but the old one is still in use and lies at %s: delete that later.", path, aside)


def _free_name(finished: Path, path: Path) -> Path:
    """A name beside `path` that anybody sees: model.new.safetensors, model.new-2.safetensors, …"""
    stem, suffix = (path.name, "") if finished.is_dir() else (path.stem, path.suffix)
    names = (f"{stem}.new{f'-{n}' if n > 1 else ''}{suffix}" for n in itertools.count(1))
    return next(free for name in names if not (free := path.with_name(name)).exists())


def _remove(leftovers: Iterable[Path]) -> list[Path]:
    """Remove files and folders; those that are still in use stay, and are returned."""
    staying = []
    for leftover in list(leftovers):
        try:
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)  # it may have gone with the folder it lay in
        except PermissionError:
            staying.append(leftover)
    return staying
