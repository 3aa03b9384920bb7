"""A metric's figure with its interval, or why there is none; and how figures come of the numbers of many pictures."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor

Blocks = Callable[[], Iterable[Tensor]]
"""A matrix (N, D) in blocks of rows, as often as it is gone through: it need not fit into memory."""

_RESAMPLES, _FRECHET_RESAMPLES = 1000, 20
_SUBSETS, _SUBSET = 100, 1000
_SEED = 2020  # torch-fidelity's, so that its command gives the same subsets
_TWO_SIDES = 1.96
"""Standard deviations on each side of a figure that hold 95 %."""


@dataclass(frozen=True)
class Figure:
    """A metric's value and its interval of 95 %, as far as chance in the choice of prompts and noise goes.

    recipe: how it was measured. Figures of different recipes cannot be compared.
    """

    value: float
    low: float
    high: float
    recipe: str


@dataclass(frozen=True)
class NotComputed:
    """Why a metric has no figure, and what to do to have it."""

    reason: str


Result = Figure | NotComputed


def mean_figure(values: Tensor, recipe: str) -> Figure:
    """The mean over pictures (N,), with the interval of 1,000 bootstrap resamples of them."""
    values = values.double()
    generator = torch.Generator().manual_seed(_SEED)
    means = torch.stack(
        [values[torch.randint(len(values), (len(values),), generator=generator)].mean() for _ in range(_RESAMPLES)]
    )
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Figure(float(values.mean()), low, high, recipe)


def median_figure(values: list[float], recipe: str) -> Figure:
    """The median of a few measurements, and the least and the most of them."""
    return Figure(median(values), min(values), max(values), recipe)


def frechet_figure(features: Blocks, reference: Blocks, recipe: str, interval: bool = True) -> Figure:
    """The Fréchet distance of two sets of features; the interval is that of 20 bootstrap resamples of both, whose own
    distances are all too large (a resample has fewer different pictures) but vary as the figure does.

    interval: False for none, which is the value alone: of Inception's features resamples take a minute.
    """
    measured = [moments(blocks()) for blocks in (features, reference)]
    value = frechet_distance(*measured)
    if not interval:
        return Figure(value, value, value, recipe)
    resampled = []
    for seed in range(0, 2 * _FRECHET_RESAMPLES, 2):
        ours = moments(_resampled(features(), measured[0].count, seed))
        theirs = moments(_resampled(reference(), measured[1].count, seed + 1))
        resampled.append(frechet_distance(ours, theirs))
    half = _TWO_SIDES * float(np.std(resampled, ddof=1))
    return Figure(value, value - half, value + half, recipe)


def kernel_figure(features: Tensor, reference: Tensor, recipe: str, scale: float = 1.0, **kernel: object) -> Figure:
    """The squared maximum mean discrepancy of two sets of features (N, D), (M, D) under a kernel, by torch-fidelity.

    The mean over 100 subsets of 1,000 pictures (all, where there are fewer), times `scale`.

    The interval is that of the delete-d jackknife (Shao and Wu 1989), from the same or smaller subsets.

    Args:
        kernel: torch-fidelity's options of the kernel; by default KID's polynomial.

    Raises:
        ImportError: torch-fidelity is not installed.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    def measured(size: int) -> tuple[float, float]:
        options = {"kid_subsets": _SUBSETS, "kid_subset_size": size, "rng_seed": _SEED, "verbose": False} | kernel
        found = kid_features_to_metric(features, reference, **options)
        return scale * found[KEY_METRIC_KID_MEAN], scale * found[KEY_METRIC_KID_STD]

    count = min(len(features), len(reference))
    value, _ = measured(min(_SUBSET, count))
    size = max(2, min(_SUBSET, count // 2))
    half = _TWO_SIDES * measured(size)[1] * (size / max(1, count - size)) ** 0.5
    return Figure(value, value - half, value + half, recipe)


@dataclass(frozen=True)
class Moments:
    """How many features there are, their mean (D,) and their covariance (D, D), float64."""

    count: int
    mean: Tensor
    covariance: Tensor


def moments(rows: Iterable[Tensor | tuple[Tensor, Tensor]]) -> Moments:
    """The moments of features that come in blocks (n, D), each alone or with how often every row counts (n,).

    Raises:
        ValueError: there are fewer than two rows.
    """
    total, first, second = 0, torch.zeros(()), torch.zeros(())
    shift: Tensor | None = None
    for block in rows:
        values, weights = block if isinstance(block, tuple) else (block, torch.ones(len(block)))
        values, weights = values.double(), weights.double()
        if shift is None:
            shift = values.mean(0)  # near the mean, so that nothing is lost where all are far from 0
        centred = values - shift
        total += int(weights.sum())
        first = first + weights @ centred
        second = second + (weights[:, None] * centred).T @ centred
    if shift is None or total < 2:
        raise ValueError(f"There are {total} pictures. Give two or more; thousands for figures to quote.")
    mean = first / total
    return Moments(total, shift + mean, (second - total * torch.outer(mean, mean)) / (total - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """The Fréchet distance between Gaussians with these moments.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Heusel et al., arXiv 1706.08500, eq. 6).
    """
    # C_a C_b has the eigenvalues of the symmetric C_a^(1/2) C_b C_a^(1/2), none below 0 but for rounding.
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    traces = a.covariance.trace() + b.covariance.trace()
    return float((a.mean - b.mean).square().sum() + traces - 2 * mixed)


def _resampled(blocks: Iterable[Tensor], count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A bootstrap resample of `count` rows: each block with how often every row of it was drawn."""
    drawn = torch.randint(count, (count,), generator=torch.Generator().manual_seed(seed))
    times, first = drawn.bincount(minlength=count), 0
    for block in blocks:
        yield block, times[first : first + len(block)]
        first += len(block)
