"""What the paper's two trainings minimise: reflow (section 2.1) and distillation (3), here also on-policy."""

from collections.abc import Callable
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor

from ..flow.convention import data_from_velocity, interpolate, unet_time, velocity
from .batches import Pair, TimedPair

Distance = Callable[[Tensor, Tensor], Tensor]
"""From one-step results and their targets, latents (B, C, H, W), to a scalar."""

_HALF_WAY = (0.35, 0.65)
"""Between which times the flow takes over a draft: earlier it forgets the draft, later it can no longer change it."""
_REST = 2  # Euler steps from there


def time_of(batch: TimedPair) -> Tensor:
    """The times t (B,) of a batch."""
    return batch[3]


def reflow_step(unet: Any, batch: TimedPair) -> Tensor:
    """The reflow loss of each line of a batch (eq. 2), (B,)."""
    x_0, x_1, states, t = batch
    return reflow_loss(_velocity(unet, interpolate(x_0, x_1, t), t, states), x_0, x_1)


def reflow_loss(predicted: Tensor, x_0: Tensor, x_1: Tensor) -> Tensor:
    """|| (x_1 - x_0) - v(x_t, t | text) ||^2 of each line (eq. 2) as a mean over its elements, (B,)."""
    return (velocity(x_0, x_1) - predicted).square().flatten(1).mean(1)


def distill_step(distance: Distance) -> Callable[[Any, Pair], Tensor]:
    """The distillation loss D(x_0 + v(x_0, 0), x_1) of one batch (eq. 4) under this distance."""

    def step(unet: Any, batch: Pair) -> Tensor:
        x_0, x_1, states = batch
        return distance(_one_step(unet, x_0, states), x_1)

    return step


def on_policy_step(distance: Distance, flow: Any, share: float) -> Callable[[Any, TimedPair], Tensor]:
    """The distillation loss of a batch of `SetBatches.timed_pairs`, of which a share has the flow's answer to the
    student's own draft as its target instead of the flow's end.

    The draft is x_0 + v(x_0, 0); about half way from x_0 to it the flow takes over, and where that leads is the target.
    Where a noise lies between two pictures, the flow ends at one of them and a student draws some of both: the answer
    is the one that its draft is nearer to, a whole picture and a shorter way off. Learning from answers to what the
    learner itself does is on-policy distillation (Agarwal et al., arXiv 2306.13649, for language models). The other
    targets keep the student from wandering off.

    Args:
        flow: the 2-rectified flow that made the set; frozen.
        share: of the batch, above 0, at most 1. Which triplets these are follows from their times, drawn uniformly.
    """
    flow.requires_grad_(False)

    def step(unet: Any, batch: TimedPair) -> Tensor:
        x_0, x_1, states, t = batch
        drawn = _one_step(unet, x_0, states)
        answered = t < share
        if answered.any():
            early, late = _HALF_WAY
            times = early + (late - early) * t[answered] / share
            answers = _led_on(flow.to(x_0.device), x_0[answered], drawn.detach()[answered], states[answered], times)
            x_1 = x_1.masked_scatter(answered.view(-1, 1, 1, 1), answers)
        return distance(drawn, x_1)

    return step


def _velocity(unet: Any, x_t: Tensor, t: Tensor, states: Tensor) -> Tensor:
    """v(x_t, t | text) in float32, t (B,)."""
    return unet(x_t, unet_time(t), encoder_hidden_states=states, return_dict=False)[0].float()


def _one_step(unet: Any, x_0: Tensor, states: Tensor) -> Tensor:
    """x_0 + v(x_0, 0)."""
    start = torch.zeros(len(x_0), device=x_0.device)
    return data_from_velocity(x_0, _velocity(unet, x_0, start, states), 0.0)


@torch.no_grad()
def _led_on(flow: Any, x_0: Tensor, drawn: Tensor, states: Tensor, t: Tensor) -> Tensor:
    """Where the flow leads from the points (1 - t) x_0 + t drawn, t (B,), in Euler steps of equal length."""
    x_t, length = interpolate(x_0, drawn, t), (1 - t) / _REST
    for part in range(_REST):
        x_t = x_t + length.view(-1, 1, 1, 1) * _velocity(flow, x_t, t + part * length, states)
    return x_t


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
    return perceptual_loss(vae, lpips_metric())


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


def lpips_metric() -> Any:
    """LPIPS on the features of VGG16, between pictures (B, 3, H, W) in [-1, 1].

    Raises:
        ValueError: the lpips package, or the weights of its VGG, cannot be had.
    """
    try:
        from lpips import LPIPS
    except ImportError as error:
        raise ValueError("The lpips loss needs its package: pip install lpips, or take another one.") from error
    try:
        return LPIPS(net="vgg", verbose=False)
    except (URLError, OSError) as error:
        raise ValueError(
            f"The lpips loss needs the weights of VGG16, and they could not be downloaded ({error}). Put "
            f"vgg16-397923af.pth into {torch.hub.get_dir()}/checkpoints, or take another one."
        ) from error
