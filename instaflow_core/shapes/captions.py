"""The language of the built-in domain: what a caption can say, and which captions no training ever sees."""

import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond")
COLORS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 220, 50),
    "green": (40, 170, 70),
    "blue": (40, 80, 220),
    "purple": (140, 60, 190),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
"""sRGB, 0 to 255."""
SIZES = ("small", "large")
PLACES = {
    "at the top left": (0, 0),
    "at the top right": (1, 0),
    "at the bottom left": (0, 1),
    "at the bottom right": (1, 1),
    "in the center": (0.5, 0.5),
}
"""(x, y) as fractions of the room that the shape has, from the top left."""

_PATTERN = re.compile(
    rf"an? (?:(?P<size>{'|'.join(SIZES)}) )?(?P<color>{'|'.join(COLORS)}) (?P<shape>{'|'.join(SHAPES)})"
    rf"(?: (?P<place>{'|'.join(PLACES)}))? on an? (?P<background>{'|'.join(COLORS)}) background"
)


@dataclass(frozen=True)
class Caption:
    """What a picture shows. Size and place are None where the caption leaves them open; str() gives the words."""

    shape: str
    color: str
    background: str
    size: str | None = None
    place: str | None = None

    def __str__(self) -> str:
        subject = " ".join(filter(None, [self.size, self.color, self.shape, self.place]))
        return f"{_article(subject)} {subject} on {_article(self.background)} {self.background} background"

    @property
    def held_out(self) -> bool:
        """Whether this (shape, colour, background) is kept out of all training, to test new combinations."""
        return zlib.crc32(f"{self.shape}|{self.color}|{self.background}".encode()) % 10 == 0


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def parse(text: str) -> Caption:
    """The caption that these words say.

    Raises:
        ValueError: the words are not of this domain.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None or match["color"] == match["background"]:
        raise ValueError(
            f"{text!r} is not a caption of the shapes domain; expected words such as "
            "'a small yellow star at the top left on a purple background', with two different colours."
        )
    return Caption(match["shape"], match["color"], match["background"], match["size"], match["place"])


def all_captions(held_out: bool, shapes: Sequence[str] = SHAPES) -> list[Caption]:
    """Every caption of the held-out part, or every one of the training part, in a fixed order."""
    captions = (
        Caption(shape, color, background, size, place)
        for shape, color, background in product(shapes, COLORS, COLORS)
        if color != background
        for size in (None, *SIZES)
        for place in (None, *PLACES)
    )
    return [c for c in captions if c.held_out == held_out]


def sample_captions(
    count: int,
    seed: int,
    held_out: bool = False,
    often: dict[str, int] | None = None,
    shapes: Sequence[str] = SHAPES,
) -> list[Caption]:
    """`count` captions of one part drawn with repetition; the same for the same seed.

    often: shapes that come so many times as often as the others; without it all captions are equally likely.
    """
    captions = all_captions(held_out, shapes)
    weights = [often.get(c.shape, 1) for c in captions] if often else None
    return random.Random(seed).choices(captions, weights, k=count)
