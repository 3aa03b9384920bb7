"""Files and folders that appear under their name only when they are whole."""

import glob
import itertools
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .disk import refusals_told
from .locks import abandoned, in_hand

_log = logging.getLogger(__name__)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on leaving, it is flushed to disk and renamed to `path`.

    Where the writing raises, `path` stays as it was and the temporary file is gone. Missing folders are made, and what
    killed writers of `path` left is removed.

    Raises CannotWrite where the disk is full or may not be written to, PermissionError where `path` is in use and
    cannot be replaced; the message says where the new file lies.
    """
    with _writing(path, lambda temporary: temporary.touch(exist_ok=False)) as temporary:
        yield temporary
        _flush(temporary)
        try:
            os.replace(temporary, path)
        except PermissionError:
            if not path.is_file():
                raise
            _replace_by_moving(temporary, path)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` to fill, renamed to `path` on leaving; all else as `replacing`.

    What was at `path` is moved aside first and deleted last.
    """
    with _writing(path, Path.mkdir) as temporary:
        yield temporary
        if path.exists():
            _replace_by_moving(temporary, path)
        else:
            os.replace(temporary, path)
    remove_leftovers_of(path)  # until now, what was moved aside by a writer that was killed then was all there was


def add(paths: Iterable[Path], write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file, and give it the first of these names, in one folder, that is free then: of two
    who write at the same time each gets one, and nothing is replaced. All else as `replacing`.

    Returns the name.
    """
    names = iter(paths)
    first = next(names)
    with _writing(first, lambda temporary: temporary.touch(exist_ok=False)) as temporary:
        write(temporary)
        _flush(temporary)
        for name in itertools.chain([first], names):
            try:
                name.touch(exist_ok=False)
            except FileExistsError:
                continue
            os.replace(temporary, name)
            return name
    raise FileExistsError(f"No name like {first.name} is free in {first.parent}. Make room there.")


def remove_leftovers_of(path: Path) -> None:
    """Remove what killed writers of `path`, a file or a folder, left beside it."""
    _remove_abandoned(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))
    if path.exists():  # else what was moved aside for it is all there is
        _remove_abandoned(path.parent.glob(f".{glob.escape(path.name)}.*.old"))


def remove_leftovers_in(folder: Path) -> None:
    """Remove what killed writers left anywhere in the folder."""
    _remove_abandoned(folder.rglob(".*.tmp"))


@contextmanager
def _writing(path: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """A new temporary file or folder beside `path`; in the end it is gone, unless it has got another name."""
    temporary = _beside(path, ".tmp")
    with refusals_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers_of(path)  # before the new one: they may be what the disk is full of
        try:
            with in_hand(temporary, make):
                yield temporary
        finally:
            _remove([temporary])


def _flush(temporary: Path) -> None:
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())


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


def _remove_abandoned(leftovers: Iterable[Path]) -> None:
    for leftover in list(leftovers):
        with abandoned(leftover) as nobody_has_it:
            if nobody_has_it:
                _remove([leftover])


def _remove(leftovers: Iterable[Path]) -> list[Path]:
    """Remove files and folders; those that are still in use stay, and are returned."""
    staying = []
    for leftover in list(leftovers):
        try:
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        except FileNotFoundError:
            pass  # it has gone with the folder it lay in, or another has removed it
        except PermissionError:
            staying.append(leftover)
    return staying
