"""Pictures that lie somewhere, read when they are asked for."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Pictures(Protocol):
    """So many pictures in an order, read when they are asked for."""

    words: str

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> list[Image.Image]:
        """Those with these indices, in RGB."""
        ...


class Folder:
    """The pictures in a folder and those below it, by name.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS)
        if not self.paths:
            raise ValueError(f"There are no pictures in {folder}. Give a folder of {', '.join(_ENDINGS)} files.")
        named = "\n".join(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in self.paths)
        self.words = f"{folder.name} ({len(self.paths)} pictures, {short_digest(named)})"

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: Sequence[int]) -> list[Image.Image]:
        return [opened(self.paths[index]) for index in indices]


def short_digest(text: str) -> str:
    """Eight characters that another text does not have."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def opened(path: Path) -> Image.Image:
    """The picture in a file, in RGB; ValueError, which names the file, where it is none."""
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a picture that can be read ({error}). Take it out of the folder.") from error
