"""Each metric by its name: the column of numbers it is made from, and its figure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image
from torch import Tensor

from ..pictures.sources import Pictures, short_digest
from .columns import Columns
from .extractors import Distance, Extractor, TextExtractor
from .figures import Figure, NotComputed, frechet_figure, kernel_figure, mean_figure
from .pictures import cropped, pixels

Judge = Callable[[Image.Image, str], bool | None]
"""Whether a picture shows what a text says; None where the text is none of its own, and does not count."""
CMMD_SCALE, CMMD_SIGMA = 1000.0, 10.0
"""As the paper of CMMD has them (arXiv 2401.09603)."""


@dataclass(frozen=True)
class Batch:
    """Some of the pictures under measurement, with what they were drawn from."""

    indices: range
    texts: list[str]
    pictures: list[Image.Image]


@dataclass(frozen=True)
class Column:
    """Numbers of every picture, or of the first `first` of them.

    name: of the column; it holds a digest of all that its numbers depend on beside the pictures.
    words: what it is, for a recipe.
    """

    name: str
    make: Callable[[Batch], Tensor]
    first: int | None = None
    words: str = ""

    def keep(self, columns: Columns, number: int, batch: Batch) -> None:
        """Compute one batch and keep it, unless it is kept."""
        if self.first is None or batch.indices.start < self.first:
            columns.keep(self.name, number, lambda: self.make(batch))


def feature_column(extractor: Extractor, side: int | None, device: str) -> Column:
    """What a network sees in each picture, cut to `side` where that is given, (N, D)."""

    def make(batch: Batch) -> Tensor:
        ready = [cropped(picture, side) for picture in batch.pictures]
        groups = [ready] if len({picture.size for picture in ready}) == 1 else [[picture] for picture in ready]
        return torch.cat([extractor.features(pixels(group).to(device)) for group in groups])

    return Column(f"features-{short_digest(f'{extractor.words} {side}')}", make, words=extractor.words)


def text_column(extractor: TextExtractor, device: str) -> Column:
    """How near each picture is to its text: the cosine of their features, -1 to 1."""

    def make(batch: Batch) -> Tensor:
        of_pictures, of_texts = extractor.features(pixels(batch.pictures).to(device), batch.texts)
        return torch.nn.functional.cosine_similarity(of_pictures.float(), of_texts.float(), dim=1)

    return Column(f"clip-{short_digest(extractor.words)}", make)


def distance_column(name: str, distance: Distance, others: Pictures, device: str, first: int | None = None) -> Column:
    """How far each picture is from another one of the same index."""

    def make(batch: Batch) -> Tensor:
        return distance.distance(*(pixels(p).to(device) for p in (batch.pictures, others.read(batch.indices))))

    return Column(f"{name}-{short_digest(f'{distance.words} {others.words}')}", make, first)


def psnr_distance() -> Distance:
    """Peak signal to noise between two pictures in dB, at most 100."""

    def psnr(a: Tensor, b: Tensor) -> Tensor:
        error = (a.float() / 255 - b.float() / 255).square().flatten(1).mean(1)
        return -10 * error.clamp(min=1e-10).log10()

    return Distance("PSNR", psnr)


def judged_column(name: str, judge: Judge) -> Column:
    """Whether each picture shows what its text says: 1 or 0; NaN where it does not count."""

    def make(batch: Batch) -> Tensor:
        said = [judge(picture, text) for picture, text in zip(batch.pictures, batch.texts, strict=True)]
        return torch.tensor([math.nan if right is None else float(right) for right in said])

    return Column(name, make)


def average(columns: Columns, column: Column, recipe: str) -> Figure:
    """The mean of a column of one number a picture."""
    values = columns.read(column.name)
    return mean_figure(values[: column.first], recipe)


def share(columns: Columns, column: Column, recipe: str) -> Figure:
    """The share of pictures that a judge accepts, of those that it judges."""
    values = columns.read(column.name)
    return mean_figure(values[~values.isnan()], recipe)


def frechet(columns: Columns, reference: Columns, column: Column, recipe: str, interval: bool = True) -> Figure:
    """The Fréchet distance between the pictures' features and the reference's."""
    ours, theirs = (partial(place.blocks, column.name) for place in (columns, reference))
    return frechet_figure(ours, theirs, recipe, interval)


def kid(columns: Columns, reference: Columns, column: Column, recipe: str) -> Figure:
    """The kernel distance of KID (arXiv 1801.01401): a polynomial kernel of degree 3."""
    return kernel_figure(columns.read(column.name), reference.read(column.name), recipe)


def cmmd(columns: Columns, reference: Columns, column: Column, recipe: str) -> Figure:
    """The kernel distance of CMMD (arXiv 2401.09603): a Gaussian kernel over CLIP's features, times 1,000."""
    options = {"kid_kernel": "rbf", "kid_kernel_rbf_sigma": CMMD_SIGMA}
    return kernel_figure(columns.read(column.name), reference.read(column.name), recipe, CMMD_SCALE, **options)


def computed(metric: Callable[[], Figure]) -> Figure | NotComputed:
    """A metric's figure, or what is to be installed for it."""
    try:
        return metric()
    except ImportError as error:
        return NotComputed(f"torch-fidelity is not installed ({error}): pip install torch-fidelity.")


def enough(pictures: Sequence[object] | Pictures, name: str) -> None:
    """Raise ValueError where there are fewer than two pictures."""
    if len(pictures) < 2:
        raise ValueError(f"There is one picture {name}. Give two or more; thousands for figures to quote.")
