"""Pictures of the built-in domain, drawn at eight times their size and averaged down."""

import math
import random
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw

from .captions import COLORS, PLACES, Caption

SMALL, LARGE = 0.35, 0.70
"""The extent of a small and of a large shape, as a fraction of the canvas."""
_SUPERSAMPLE = 8
_SIZE_JITTER = 0.02
_PLACE_JITTER = 0.12
_MARGIN = 0.03


@dataclass(frozen=True)
class Scene:
    """A caption with everything it leaves open decided: the longer side and the centre of the shape's bounding box,
    as fractions of the canvas."""

    caption: Caption
    extent: float
    x: float
    y: float


def sample_scene(caption: Caption, rng: random.Random) -> Scene:
    """Decide what the caption leaves open: any extent between small and large, any place where the shape fits."""
    middle = {None: None, "small": SMALL, "large": LARGE}[caption.size]
    extent = rng.uniform(SMALL, LARGE) if middle is None else middle + rng.uniform(-_SIZE_JITTER, _SIZE_JITTER)
    if caption.place is None:
        fractions = [rng.random(), rng.random()]
    else:
        anchors = PLACES[caption.place]
        fractions = [min(1.0, max(0.0, a + rng.uniform(-_PLACE_JITTER, _PLACE_JITTER))) for a in anchors]
    x, y = (_MARGIN + extent / 2 + f * (1 - extent - 2 * _MARGIN) for f in fractions)
    return Scene(caption, extent, x, y)


def render(scene: Scene, size: int = 64) -> Image.Image:
    """The scene as an RGB picture of size × size pixels."""
    return render_all([scene], size)


def render_all(scenes: list[Scene], size: int = 64) -> Image.Image:
    """Several scenes of one background in one picture, the later over the earlier."""
    large = size * _SUPERSAMPLE
    picture = Image.new("RGB", (large, large), COLORS[scenes[0].caption.background])
    draw = ImageDraw.Draw(picture)
    for scene in scenes:
        for polygon, ink in _polygons(scene.caption.shape):
            points = [((scene.x + scene.extent * x) * large, (scene.y + scene.extent * y) * large) for x, y in polygon]
            draw.polygon(points, fill=COLORS[scene.caption.color if ink else scene.caption.background])
    return picture.reduce(_SUPERSAMPLE)


Polygon = list[tuple[float, float]]


@lru_cache
def _polygons(shape: str) -> list[tuple[Polygon, bool]]:
    """The shape's outlines with y downwards, the longer side of the bounding box 1 and its centre at 0; True where an
    outline is filled with the shape's colour, False where it cuts the background out again."""
    outline = _to_unit_box(OUTLINES[shape]())
    hole = [(0.55 * x, 0.55 * y) for x, y in outline]
    return [(outline, True), (hole, False)] if shape == "ring" else [(outline, True)]


def _to_unit_box(points: Polygon) -> Polygon:
    xs, ys = zip(*points, strict=True)
    scale = max(max(xs) - min(xs), max(ys) - min(ys))
    x, y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    return [((px - x) / scale, (py - y) / scale) for px, py in points]


def _turn(degrees: float, radius: float = 1.0) -> tuple[float, float]:
    """The point at that angle, clockwise from straight up."""
    return radius * math.sin(math.radians(degrees)), -radius * math.cos(math.radians(degrees))


def _circle() -> Polygon:
    return [_turn(i * 360 / 96) for i in range(96)]


def _heart() -> Polygon:
    angles = [math.radians(i * 360 / 96) for i in range(96)]
    return [
        (16 * math.sin(a) ** 3, -13 * math.cos(a) + 5 * math.cos(2 * a) + 2 * math.cos(3 * a) + math.cos(4 * a))
        for a in angles
    ]


def _star() -> Polygon:
    return [_turn(i * 36, 0.45 if i % 2 else 1.0) for i in range(10)]


def _cross() -> Polygon:
    arm, side = 1 / 6, 1 / 2
    corner = [(arm, -side), (arm, -arm), (side, -arm)]
    turned = [corner]
    for _ in range(3):
        turned.append([(-y, x) for x, y in turned[-1]])
    return [point for part in turned for point in part]


OUTLINES = {
    "circle": _circle,
    "square": lambda: [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)],
    "triangle": lambda: [_turn(0), _turn(120), _turn(240)],
    "star": _star,
    "heart": _heart,
    "ring": _circle,
    "cross": _cross,
    "diamond": lambda: [(0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)],
}
"""The corners of each shape, y downwards, of any size and anywhere: what can be drawn, and what the judge knows."""
