"""Networks in place of those that metrics download: small, and known to the test alone."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def colours(pictures: Tensor) -> Tensor:
    """The mean and deviation of each channel, (N, 6)."""
    values = pictures.float().flatten(2) / 255
    return torch.cat([values.mean(2), values.std(2)], dim=1)


def colours_and_words(pictures: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Pictures' mean colours, and the numbers of some letters in their texts."""
    words = torch.tensor([[float(text.count(letter)) for letter in "rgb"] for text in texts])
    return colours(pictures)[:, :3], words + 1


@lru_cache(maxsize=1)
def _first_inception_layers() -> Any:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    weights = os.environ["INCEPTION_WEIGHTS"]
    return FeatureExtractorInceptionV3("inception-v3-compat", ["64"], feature_extractor_weights_path=weights)


def first_inception_layers(pictures: Tensor) -> Tensor:
    """What torch-fidelity calls layer 64 of its Inception, with the weights that INCEPTION_WEIGHTS names, (N, 64)."""
    return _first_inception_layers()(pictures)[0]


def write_random_inception(path: Path) -> None:
    """A file of Inception's weights that no training has seen."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: Any) -> Any:
            """Keep what the layers were made with."""

    torch.save({}, path)
    torch.manual_seed(0)
    network = Untrained("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(network.state_dict(), path)
