"""Files that appear under their name only when they are whole."""

import glob
import os
import tempfile
from collections.abc import Iterator
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


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that a killed writer left: those of a file, or all of them under a folder. Only where
    nobody else writes there."""
    leftovers = path.rglob(".*.tmp") if path.is_dir() else path.parent.glob(f".{glob.escape(path.name)}.*.tmp")
    for leftover in list(leftovers):
        leftover.unlink()


def current_umask() -> int:
    """The rights this process takes away from new files; there is no way to ask but to set it."""
    umask = os.umask(0o022)
    os.umask(umask)
    return umask
