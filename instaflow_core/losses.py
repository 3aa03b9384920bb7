"""What reflow and distillation minimise (sections 2.1 and 3 of the paper)."""

from torch import Tensor

from .flow import velocity


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
