"""The picture that a model meant: of all scenes of its caption the one nearest to what it drew."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...pictures.images import to_images
from ..captions import Caption, parse
from ..judge import look
from ..render import Scene, render
from .anatomy import NATIVE_SIZE

_STEPS = (0.04, 0.02, 0.01, 0.005)
"""Of the search, as fractions of the canvas; the last is a third of a pixel."""
_EXTENTS = (0.2, 0.8)
_MEANT = 0.12
"""The greatest difference from a scene: beyond it there is no telling what was meant."""


@torch.no_grad()
def meant_pictures(decoder: Any, latents: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What latents (N, 4, 8, 8) drawn to captions of the domain were meant to show.

    Returns:
        The rows for which that can be told, and a picture for each of them, (n, 3, 64, 64) uint8.
    """
    rows, pictures, device = [], [], next(decoder.parameters()).device
    for first in range(0, len(latents), 64):
        with torch.autocast(device.type, torch.bfloat16):
            decoded = decoder(latents[first : first + 64].to(device))
        for row, picture in enumerate(to_images(decoded), first):
            nearest = nearest_scene(picture, parse(texts[row]))
            if nearest and nearest[1] < _MEANT:
                rows.append(row)
                pictures.append(np.asarray(render(nearest[0])))
    shape = (-1, NATIVE_SIZE, NATIVE_SIZE, 3)
    shown = torch.from_numpy(np.array(pictures, dtype=np.uint8).reshape(shape))
    return torch.tensor(rows, dtype=torch.long), shown.permute(0, 3, 1, 2).contiguous()


def nearest_scene(picture: Image.Image, caption: Caption) -> tuple[Scene, float] | None:
    """The scene of the caption that is nearest to a square picture, and how far off it is.

    That is the root of the mean squared difference, 0 to 1. None where the judge sees another background than the
    caption's, or nothing at all. The shape and the colour it sees do not count: a star with soft tips looks like a
    diamond, a ring of purple and blue like a blue one, and the caption tells which was meant.
    """
    seen = look(picture)
    if seen is None or seen.background != caption.background:
        return None
    pixels = np.asarray(picture, dtype=np.float32)
    extent = min(max(seen.extent, _EXTENTS[0]), _EXTENTS[1])
    best = Scene(caption, extent, seen.x, seen.y)
    error = _difference(best, pixels)
    for step in _STEPS:
        moved = True
        while moved:
            moved = False
            for near in _neighbours(best, step):
                found = _difference(near, pixels)
                if found < error:
                    best, error, moved = near, found, True
                    break
    return best, error


def _neighbours(scene: Scene, step: float) -> list[Scene]:
    """The scene a step larger, smaller, and to each side."""
    caption, extent, x, y = scene.caption, scene.extent, scene.x, scene.y
    sizes = [e for e in (extent + step, extent - step) if _EXTENTS[0] <= e <= _EXTENTS[1]]
    places = [(x + step, y), (x - step, y), (x, y + step), (x, y - step)]
    return [Scene(caption, e, x, y) for e in sizes] + [Scene(caption, extent, *place) for place in places]


def _difference(scene: Scene, pixels: NDArray[np.float32]) -> float:
    drawn = np.asarray(render(scene, len(pixels)), dtype=np.float32)
    return float(np.sqrt(np.square(drawn - pixels).mean()) / 255)
