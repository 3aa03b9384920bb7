"""A judge that looks at a picture and says what it shows, and whether that is what a caption asked for."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .captions import COLORS, PLACES, Caption
from .render import LARGE, OUTLINES, SMALL, Scene, render

_TEMPLATE = 48
_MIN_OVERLAP = 0.70
_MAX_COLOR_ERROR = 60.0
_MIN_CLEAN = 0.90
_SIZE_TOLERANCE = 0.10
_PLACE_TOLERANCE = 0.30

Pixels = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Seen:
    """What the judge saw. Extent and centre are fractions of the canvas; overlap is the intersection over union with
    the nearest shape's outline; clean is the share of pixels that are near the line between the two colours."""

    shape: str
    color: str
    background: str
    extent: float
    x: float
    y: float
    overlap: float
    clean: float

    def matches(self, caption: Caption) -> bool:
        """Whether the picture shows what the caption says, in everything that the caption says."""
        named = (self.shape, self.color, self.background) == (caption.shape, caption.color, caption.background)
        drawn = self.overlap >= _MIN_OVERLAP and self.clean >= _MIN_CLEAN
        return named and drawn and self._size_matches(caption) and self._place_matches(caption)

    def _size_matches(self, caption: Caption) -> bool:
        if caption.size is None:
            return SMALL - _SIZE_TOLERANCE <= self.extent <= LARGE + _SIZE_TOLERANCE
        return abs(self.extent - {"small": SMALL, "large": LARGE}[caption.size]) <= _SIZE_TOLERANCE

    def _place_matches(self, caption: Caption) -> bool:
        if caption.place is None:
            return True
        room = max(1 - self.extent, 1e-6)
        seen = [(c - self.extent / 2) / room for c in (self.x, self.y)]
        return all(abs(s - w) <= _PLACE_TOLERANCE for s, w in zip(seen, PLACES[caption.place], strict=True))


def look(picture: Image.Image) -> Seen | None:
    """What a square picture shows, or None where no shape stands out from a background.

    The background is the palette colour nearest to most of the border; the shape's colour is the other palette colour
    that most pixels are nearest to; a pixel belongs to the shape where it is nearer to the shape's colour.
    """
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float64)
    palette = np.array(list(COLORS.values()), dtype=np.float64)
    nearest = np.linalg.norm(pixels[:, :, None] - palette, axis=-1).argmin(-1)
    border = np.concatenate([nearest[0], nearest[-1], nearest[:, 0], nearest[:, -1]])
    background = int(np.bincount(border, minlength=len(palette)).argmax())
    counts = np.bincount(nearest.ravel(), minlength=len(palette))
    counts[background] = 0
    color = int(counts.argmax())
    if counts[color] == 0:
        return None
    share, distance = _between(pixels, palette[background], palette[color])
    mask = _tidy(share > 0.5)
    if mask.sum() < 12:
        return None
    # The two flat parts must have their colours, and nothing else may be in the picture.
    for part, want in ((mask, palette[color]), (~mask, palette[background])):
        if np.linalg.norm(np.median(pixels[part], axis=0) - want) > _MAX_COLOR_ERROR:
            return None
    ys, xs = np.nonzero(mask)
    top, bottom, left, right = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    side = len(pixels)
    overlaps = {shape: _overlap(mask[top:bottom, left:right], shape) for shape in OUTLINES}
    shape = max(overlaps, key=lambda s: overlaps[s])
    names = list(COLORS)
    return Seen(
        shape,
        names[color],
        names[background],
        extent=max(bottom - top, right - left) / side,
        x=(left + right) / 2 / side,
        y=(top + bottom) / 2 / side,
        overlap=overlaps[shape],
        clean=float((distance < _MAX_COLOR_ERROR).mean()),
    )


def judge(picture: Image.Image, caption: Caption) -> bool:
    """Whether the picture shows what the caption asks for."""
    seen = look(picture)
    return seen is not None and seen.matches(caption)


def _between(pixels: Pixels, a: Pixels, b: Pixels) -> tuple[Pixels, Pixels]:
    """For each pixel its share of the way from colour a to colour b, and its distance from that line."""
    line = b - a
    share = np.clip((pixels - a) @ line / (line @ line), 0, 1)
    return share, np.linalg.norm(pixels - a - share[..., None] * line, axis=-1)


def _tidy(mask: Mask) -> Mask:
    """The mask without pixels that have fewer than two neighbours in it: stray ones, and soft tips."""
    neighbours = sum(np.roll(mask, (dy, dx), (0, 1)).astype(int) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) - mask
    return mask & (neighbours >= 2)


def _overlap(mask: Mask, shape: str) -> float:
    """Intersection over union of the mask, its box centred and scaled to the template's, with the shape's outline."""
    seen = _centred(mask)
    template = _template(shape)
    return float((seen & template).sum() / (seen | template).sum())


def _centred(mask: Mask) -> Mask:
    side = max(mask.shape)
    canvas = np.zeros((side, side), dtype=np.uint8)
    top, left = (side - mask.shape[0]) // 2, (side - mask.shape[1]) // 2
    canvas[top : top + mask.shape[0], left : left + mask.shape[1]] = mask * np.uint8(255)
    scaled = Image.fromarray(canvas).resize((_TEMPLATE, _TEMPLATE), Image.Resampling.BILINEAR)
    return np.asarray(scaled) > 127


@lru_cache
def _template(shape: str) -> Mask:
    drawn = render(Scene(Caption(shape, "white", "black"), 1.0, 0.5, 0.5), _TEMPLATE)
    return np.asarray(drawn.convert("L")) > 127
