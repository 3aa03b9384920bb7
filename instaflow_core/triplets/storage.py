"""Where a set lies: a local path, s3://bucket/set, memory://set, any place that fsspec knows."""

import secrets
from pathlib import Path

from ..atomic import replacing


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

    def check_file(self, name: str, most: int | None = None) -> None:
        """Raise ValueError, about what is called `name`, where it is no ordinary file, such as a pipe, which would be
        waited for, or has more than `most` bytes."""
        about = self.fs.info(f"{self.root}/{name}")
        if about["type"] != "file":
            raise ValueError(f"is no file but a {about['type']}")
        if most is not None and (about.get("size") or 0) > most:
            raise ValueError(f"has {about['size']:,} bytes, more than {most:,}")

    def read(self, name: str, most: int | None = None) -> bytes:
        """A file's bytes. Raises as `check_file`."""
        self.check_file(name, most)
        return self.fs.cat_file(f"{self.root}/{name}")

    def write(self, name: str, content: bytes) -> None:
        """Write a file. It appears under its name only when it is whole, also where two write it at once.

        Where a killed writer can leave a hidden file, on disks, the next writer of the same name removes it.
        """
        from fsspec.implementations.local import LocalFileSystem
        from fsspec.spec import AbstractFileSystem

        if isinstance(self.fs, LocalFileSystem):
            with replacing(Path(self.root) / name) as temporary:
                temporary.write_bytes(content)
        elif (
            type(self.fs).mv is AbstractFileSystem.mv
        ):  # an object store: its files appear whole, and moving is copying
            self.fs.pipe_file(f"{self.root}/{name}", content)
        else:
            self.fs.makedirs(self.root, exist_ok=True)
            hidden = f"{self.root}/.{name}.{secrets.token_hex(8)}.tmp"
            self.fs.pipe_file(hidden, content)
            self.fs.mv(hidden, f"{self.root}/{name}")
