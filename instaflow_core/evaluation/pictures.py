"""Pictures to measure: those a model draws, kept in a folder, and those it is measured against."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..atomic import replacing
from ..pictures.sources import Folder, Pictures, opened

_COLUMNS = ("image", "img", "jpg", "png")


class Gallery:
    """Pictures that are drawn once and kept: folder/000003.png is picture 3."""

    def __init__(self, folder: Path, count: int, draw: Callable[[Sequence[int]], list[Image.Image]]) -> None:
        self.folder, self.count, self.draw, self.words = folder, count, draw, folder.name

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Sequence[int]) -> list[Image.Image]:
        """Those with these indices; what is not there is drawn with all the others of this call, so that a batch is
        always drawn whole and comes out the same."""
        paths = [self.folder / f"{index:06d}.png" for index in indices]
        if not all(path.exists() for path in paths):
            for picture, path in zip(self.draw(indices), paths, strict=True):
                if not path.exists():
                    with replacing(path) as temporary:
                        picture.save(temporary, format="PNG")
        return [opened(path) for path in paths]


class Given:
    """Pictures in memory. words: where they are from."""

    def __init__(self, pictures: Sequence[Image.Image], words: str) -> None:
        digest = hashlib.sha256(b"".join(picture.tobytes() for picture in pictures)).hexdigest()[:8]
        self.pictures, self.words = pictures, f"{words} ({len(pictures)} pictures, {digest})"

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, indices: Sequence[int]) -> list[Image.Image]:
        return [self.pictures[index] for index in indices]


class Dataset:
    """The pictures of a Hugging Face dataset.

    Args:
        name: of the dataset, or the folder it is in.
        split: of it; the first where None.

    Raises:
        ValueError: it cannot be read, or holds no pictures.
    """

    def __init__(self, name: str, split: str | None = None) -> None:
        from datasets import load_dataset

        try:
            loaded: Any = load_dataset(name, split=split)
        except Exception as error:  # the hub's library raises its own kinds for "not there", "no network", "gated", …
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(
                f"{name} is neither a folder nor a dataset that can be read ({reason}). Give a folder of pictures."
            ) from error
        self.rows = loaded if split else next(iter(loaded.values()))
        columns = [column for column in _COLUMNS if column in self.rows.column_names]
        if not columns:
            raise ValueError(f"{name} has the columns {', '.join(self.rows.column_names)}; none of them is an image.")
        of_split = f", {split}" if split else ""
        self.column, self.words = columns[0], f"{name}{of_split} ({len(self.rows)} pictures)"

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, indices: Sequence[int]) -> list[Image.Image]:
        return [picture.convert("RGB") for picture in self.rows[list(indices)][self.column]]


def reference_pictures(source: str) -> Pictures:
    """The pictures a model is measured against: of a folder, or of a dataset, of the Hub or downloaded to a folder."""
    path = Path(source).expanduser()
    if path.is_dir():
        return Folder(path) if next(path.rglob("*.parquet"), None) is None else Dataset(str(path))
    name, _, split = source.partition(":")
    return Dataset(name, split or None)


def pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as (N, 3, H, W) uint8."""
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)


def cropped(picture: Image.Image, side: int | None) -> Image.Image:
    """The middle square of a picture at `side` x `side` pixels, reduced with antialiasing (Pillow's Lanczos); as it is
    where None."""
    if side is None or picture.size == (side, side):
        return picture
    scale = side / min(picture.size)
    width, height = (max(side, round(scale * length)) for length in picture.size)
    left, top = (width - side) // 2, (height - side) // 2
    sized = picture.resize((width, height), Image.Resampling.LANCZOS)
    return sized.crop((left, top, left + side, top + side))
