"""Seeded Gaussian noise, drawn as ComfyUI and diffusers draw it, and the great circle between two noises."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

DRAWS = ("comfyui", "diffusers fp32", "diffusers fp16")
"""Ways to turn a seed into noise. ComfyUI and a float32 diffusers pipeline draw a float32 batch at once and agree;
a float16 pipeline draws other numbers, in half precision."""


def draw_noise(seed: int, shape: Sequence[int], draw: str = "comfyui") -> Tensor:
    """N(0, 1) noise of that shape as a float32 CPU tensor, drawn on the CPU from a generator of its own.

    Args:
        seed: 0 to 2^64 - 1. PyTorch's CPU generator starts from the low 32 bits alone, so seeds that are equal mod 2^32
            draw the same noise; ComfyUI's and diffusers' do too.
        draw: one of DRAWS.

    Raises:
        ValueError: draw is not one of DRAWS.
    """
    if draw not in DRAWS:
        raise ValueError(f"Unknown noise draw {draw!r}; expected one of {', '.join(map(repr, DRAWS))}.")
    dtype = torch.float16 if draw == "diffusers fp16" else torch.float32
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=dtype).float()


def indexed_noise(seed: int, index: int, shape: Sequence[int]) -> Tensor:
    """N(0, 1) noise of that shape that depends on (seed, index) alone, so that it need never be stored.

    There are 2^32 noises (see `draw_noise`), and two indices may fall on one: of 1.6 million about 300 pairs do.
    """
    return draw_noise(_mix(seed, index), shape)


def indexed_generator(seed: int, index: int) -> torch.Generator:
    """A CPU generator whose draws depend on (seed, index) alone: one for each training step, say."""
    return torch.Generator().manual_seed(_mix(seed, index))


def _mix(seed: int, index: int) -> int:
    """One 63-bit seed out of two numbers (the SplitMix64 finaliser, so that neighbours do not resemble each other), of
    which a CPU generator uses the low 32 bits."""
    mask = (1 << 64) - 1
    z = (seed * 0x9E3779B97F4A7C15 + index + 1) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    return (z ^ z >> 31) >> 1


def slerp(a: Tensor, b: Tensor, fraction: float) -> Tensor:
    """The point at `fraction` (0 gives a, 1 gives b) of the great circle from a to b.

    Both ends are given back exactly, and points between have a norm between theirs, as Gaussian noise does. Parallel
    ends have no circle and are joined by a line.
    """
    if fraction in (0, 1):
        return b if fraction else a
    cosine = (torch.dot(a.flatten(), b.flatten()) / (a.norm() * b.norm())).clamp(-1, 1)
    angle = math.acos(float(cosine))
    if math.sin(angle) < 1e-6:
        return (1 - fraction) * a + fraction * b
    return (math.sin((1 - fraction) * angle) * a + math.sin(fraction * angle) * b) / math.sin(angle)


def great_circle(a: Tensor, b: Tensor, frames: int) -> Tensor:
    """`frames` points of the great circle from a to b, both included, at equal angles; one frame is a alone.

    Returns:
        (frames, ...) where a and b are (...).

    Raises:
        ValueError: frames is below 1.
    """
    if frames < 1:
        raise ValueError(f"The number of frames is {frames}; a circle needs at least 1. Set frames to 1 or more.")
    return torch.stack([slerp(a, b, i / max(frames - 1, 1)) for i in range(frames)])
