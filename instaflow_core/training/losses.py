"""What reflow and distillation minimise (sections 2.1 and 3 of the paper), and at which times reflow does."""

import math
from collections.abc import Callable
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor

from ..flow.convention import velocity

TIMES = ("uniform", "u-shaped")
_STEEPNESS = 4.0


def sample_times(count: int, generator: torch.Generator, how: str = TIMES[0]) -> Tensor:
    """Times in [0, 1), float32 (count,): uniform, as in the paper, or with a density of cosh(4 (t - 1/2)).

    The second draws both ends more often, where a flow that starts from a trained teacher still errs most, and where
    the only step of a one-step flow begins (Lee et al., arXiv 2405.20320, their U-shaped distribution).
    """
    uniform = torch.rand(count, generator=generator)
    if how == "uniform":
        return uniform
    return (torch.asinh((2 * uniform - 1) * math.sinh(_STEEPNESS / 2)) / _STEEPNESS + 0.5).clamp(0, 1)


def reflow_loss(predicted: Tensor, x_0: Tensor, x_1: Tensor) -> Tensor:
    """|| (x_1 - x_0) - v(x_t, t | text) ||^2 as a mean over all elements (eq. 2)."""
    return (velocity(x_0, x_1) - predicted).square().mean()


def l2_loss(predicted: Tensor, x_1: Tensor) -> Tensor:
    """Mean squared distance of the one-step result x_0 + v(x_0, 0) from the flow's end point (eq. 4)."""
    return (predicted - x_1).square().mean()


def pseudo_huber_loss(predicted: Tensor, x_1: Tensor, scale: float = 0.03) -> Tensor:
    """sqrt(||d||^2 + c^2) - c for each latent, averaged; c = scale * sqrt(number of elements).

    Grows linearly where the two are far apart, so that a sample which the model cannot yet fit pulls less than under
    L2 (Song and Dhariwal, arXiv 2310.14189, section 3.3).
    """
    distance = (predicted - x_1).flatten(1)
    c = scale * distance.shape[1] ** 0.5
    return ((distance.square().sum(1) + c**2).sqrt() - c).mean() / distance.shape[1] ** 0.5


DISTILLATION_LOSSES = {"l2": l2_loss, "huber": pseudo_huber_loss}


def decoded_lpips(vae: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS (Zhang et al., arXiv 1801.03924) between decoded pictures, the paper's second distillation loss.

    Args:
        vae: diffusers' autoencoder; frozen.

    Raises:
        ValueError: the lpips package, or the weights of its VGG, cannot be had.
    """
    return perceptual_loss(vae, _lpips())


def perceptual_loss(vae: Any, metric: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean of metric(picture, picture) over decoded latents, pictures (B, 3, H, W) in [-1, 1]."""
    vae.requires_grad_(False)
    metric.requires_grad_(False)

    def distance(predicted: Tensor, x_1: Tensor) -> Tensor:
        vae.to(predicted.device)
        metric.to(predicted.device)
        scale = vae.config.scaling_factor
        with torch.no_grad():
            wanted = vae.decode(x_1 / scale, return_dict=False)[0]
        return metric(vae.decode(predicted / scale, return_dict=False)[0], wanted).mean()

    return distance


def _lpips() -> Any:
    try:
        from lpips import LPIPS
    except ImportError as error:
        raise ValueError("The lpips loss needs its package: pip install lpips, or take l2 or huber.") from error
    try:
        return LPIPS(net="vgg", verbose=False)
    except (URLError, OSError) as error:
        raise ValueError(
            f"The lpips loss needs the weights of VGG16, and they could not be downloaded ({error}). Put "
            f"vgg16-397923af.pth into {torch.hub.get_dir()}/checkpoints, or take l2 or huber."
        ) from error
