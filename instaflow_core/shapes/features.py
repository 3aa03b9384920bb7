"""A feature space for pictures of the built-in domain, and the Fréchet distance in it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@torch.no_grad()
def picture_features(vae: Any, pictures: Sequence[Image.Image], batch_size: int = 64) -> Tensor:
    """What the built-in autoencoder's encoder sees in each picture, as Inception's features are to FID.

    The mean and the standard deviation over all pixels of the 64 channels after its first residual block: 128 numbers
    that tell colours, edges and blur, which is what few steps spoil. (Later layers tell shapes; there some hundreds of
    pictures of one model differ by chance as much as those of two.)

    Args:
        vae: the built-in models' AutoencoderTiny.

    Returns:
        (N, 128) float64.
    """
    layers = vae.encoder.layers[:2]
    features = []
    for first in range(0, len(pictures), batch_size):
        batch = np.stack([np.asarray(picture) for picture in pictures[first : first + batch_size]])
        channels = layers(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1)
        features.append(torch.cat([channels.mean((2, 3)), channels.std((2, 3))], dim=1))
    return torch.cat(features).double()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The Fréchet distance between Gaussians with the means and covariances of two sets of features (N, D), (M, D).

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Heusel et al., arXiv 1706.08500, eq. 6).
    """
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(0), x.T.cov()) for x in (a, b))
    # The product of two positive semi-definite matrices has real eigenvalues, none below 0 but for rounding.
    mixed = torch.linalg.eigvals(cov_a @ cov_b).real.clamp(min=0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * mixed)
