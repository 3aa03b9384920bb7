"""What MODELs of all rows of `rules` have in common: a stage, steps of their own, and a sampler that takes them."""

from __future__ import annotations

from typing import Any, TypeAlias

from torch import Tensor

from . import sampling
from .few_step import FewStepSampling
from .model_sampling import InstaFlowSampling, instaflow_sampling
from .perflow import PeRFlowSampling

RowSampling: TypeAlias = InstaFlowSampling | FewStepSampling | PeRFlowSampling


def few_step_sampling(model: Any) -> FewStepSampling | PeRFlowSampling | None:
    """The sampling of a MODEL that was loaded by the rule of a few-step model; None for any other."""
    found = model.get_model_object("model_sampling")
    return found if isinstance(found, FewStepSampling | PeRFlowSampling) and found.rule else None


def row_sampling(model: Any) -> RowSampling:
    """The sampling of an InstaFlow MODEL, or of one that was loaded by another row; it has `steps` and `stage`.

    Raises:
        ValueError: it is neither.
    """
    return few_step_sampling(model) or instaflow_sampling(model)


def sample_by_row(
    model: Any,
    conditioning: dict[str, Any],
    guidance: float,
    latent: dict[str, Any],
    noise: Tensor | None,
    steps: int,
    denoise: float,
    seed: int,
) -> Tensor:
    """So many steps of the MODEL's row, by the host's sampler that takes them: as `sampling.sample`, whose arguments
    these are.

    Raises:
        ValueError: the MODEL is of no row, or its row has no such number of steps.
    """
    row = row_sampling(model)
    sampler = row.rule.sampler if isinstance(row, FewStepSampling) else "euler"
    return sampling.sample(model, conditioning, guidance, latent, noise, row.steps(steps, denoise), seed, sampler)
