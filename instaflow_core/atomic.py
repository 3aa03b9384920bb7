"""Files that appear under their name only when they are whole."""

import glob
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on leaving, it is flushed to disk and renamed to `path`.

    Where the writing raises, `path` stays as it was and the temporary file is gone. Missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~current_umask())  # mkstemp lets only the owner read
        os.replace(name, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)


def remove_leftovers_of(path: Path) -> None:
    """Remove what a killed writer of `path`, a file or a folder, left beside it. Only where nobody else writes it."""
    _remove(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))
    if path.exists():  # else what was moved aside for it is all there is
        _remove(path.parent.glob(f".{glob.escape(path.name)}.*.old"))


def remove_leftovers_in(folder: Path) -> None:
    """Remove what killed writers left anywhere in the folder. Only where nobody else writes there."""
    _remove(folder.rglob(".*.tmp"))


def _remove(leftovers: Iterable[Path]) -> None:
    for leftover in list(leftovers):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)  # it may have gone with the folder it lay in


def current_umask() -> int:
    """The rights this process takes away from new files; there is no way to ask but to set it."""
    umask = os.umask(0o022)
    os.umask(umask)
    return umask
