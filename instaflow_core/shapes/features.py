"""A feature space for pictures of the built-in domain, as Inception's is to FID."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..evaluation.extractors import Extractor
from ..weights.checkpoint import load
from ..weights.modules import build_vae


@torch.no_grad()
def picture_features(pictures: Tensor, batch_size: int = 64) -> Tensor:
    """What the built-in autoencoder's encoder sees in each picture; `evaluate --extractor` takes it by its name.

    The mean and the standard deviation over all pixels of the 64 channels after its first residual block: 128 numbers
    that tell colours, edges and blur, which is what few steps spoil. (Later layers tell shapes; there some hundreds of
    pictures of one model differ by chance as much as those of two.)

    Args:
        pictures: (N, 3, H, W) uint8.

    Returns:
        (N, 128) float64, on the CPU.
    """
    layers, features = _first_layers(), []
    for batch in pictures.cpu().split(batch_size):
        channels = layers(batch.float() / 127.5 - 1)
        features.append(torch.cat([channels.mean((2, 3)), channels.std((2, 3))], dim=1))
    return torch.cat(features).double()


FEATURES = Extractor("instaflow_core.shapes.features:picture_features", picture_features)
"""For `evaluation.extractors.Networks`, under the name by which the command takes it."""


@lru_cache(maxsize=1)
def _first_layers() -> Any:
    return build_vae(load("built-in: shapes")).encoder.layers[:2]
