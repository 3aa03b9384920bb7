"""Where a set lies: a local path, s3://bucket/set, memory://set, any place that fsspec knows."""

import glob
import secrets
import time
from contextlib import suppress
from pathlib import Path

from ..atomic import replacing

_MINUTE = 60.0  # seconds


class Storage:
    """A place to read files from and to write whole files to.

    Args:
        location: a local path, or a URL of a filesystem whose fsspec package is installed.

    Raises:
        ValueError: no such kind of filesystem, or its package is missing.
    """

    def __init__(self, location: str | Path) -> None:
        from fsspec.core import url_to_fs

        local = isinstance(location, Path) or "://" not in location
        try:
            self.fs, self.root = url_to_fs(str(Path(location).expanduser() if local else location))
        except (ValueError, ImportError) as error:
            raise ValueError(
                f"{location} cannot be opened: {error}. Give a local folder, or a URL such as s3://bucket/folder "
                "with that filesystem's package installed."
            ) from error
        self.location = str(location)

    def __str__(self) -> str:
        return self.location

    def names(self) -> set[str]:
        """The names of the files there; none where the place is not there."""
        self.fs.invalidate_cache(self.root)
        if not self.fs.isdir(self.root):
            return set()
        return {path.rstrip("/").rsplit("/", 1)[-1] for path in self.fs.ls(self.root, detail=False)}

    def read(self, name: str) -> bytes:
        """A file's bytes."""
        return self.fs.cat_file(f"{self.root}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Write a file. It appears under its name only when it is whole, also where two write it at once.

        Where a killed writer can leave a hidden file, on disks, the next writer of the same name removes it.
        """
        from fsspec.implementations.local import LocalFileSystem
        from fsspec.spec import AbstractFileSystem

        if isinstance(self.fs, LocalFileSystem):
            path = Path(self.root) / name
            with replacing(path) as temporary:
                temporary.write_bytes(content)
            _remove_leftovers_of(path)
        elif (
            type(self.fs).mv is AbstractFileSystem.mv
        ):  # an object store: its files appear whole, and moving is copying
            self.fs.pipe_file(f"{self.root}/{name}", content)
        else:
            self.fs.makedirs(self.root, exist_ok=True)
            hidden = f"{self.root}/.{name}.{secrets.token_hex(8)}.tmp"
            self.fs.pipe_file(hidden, content)
            self.fs.mv(hidden, f"{self.root}/{name}")


def _remove_leftovers_of(path: Path) -> None:
    """Remove the hidden files of killed writers of `path`: those that nobody has written to for a minute."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}*.tmp"):
        with suppress(FileNotFoundError):  # another writer may be done with it, or remove it too
            if time.time() - leftover.stat().st_mtime > _MINUTE:
                leftover.unlink()
