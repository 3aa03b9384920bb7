"""Seeded noise on the real host."""

from __future__ import annotations

from typing import Any

import pytest
import torch


def noise(host: Any, seed: int, draw: str) -> Any:
    return host.run("InstaFlowSeedNoise", seed=seed, draw=draw)[0]


@pytest.mark.parametrize("latent", [{}, {"batch_index": [3, 0]}])
@pytest.mark.parametrize("size", [8, 9])
def test_comfyuis_draw_is_random_noises(host: Any, latent: dict[str, Any], size: int) -> None:
    latent = latent | {"samples": torch.zeros(2, 4, size, size)}
    (stock,) = host.run("RandomNoise", noise_seed=7)
    ours = noise(host, 7, "comfyui")
    assert torch.equal(ours.generate_noise(latent), stock.generate_noise(latent))
    assert ours.seed == 7


@pytest.mark.parametrize(("draw", "dtype"), [("diffusers fp32", torch.float32), ("diffusers fp16", torch.float16)])
def test_diffusers_draw(host: Any, draw: str, dtype: torch.dtype) -> None:
    from diffusers.utils.torch_utils import randn_tensor

    latent = {"samples": torch.zeros(2, 4, 8, 8)}
    expected = randn_tensor((2, 4, 8, 8), generator=torch.Generator("cpu").manual_seed(7), dtype=dtype).float()
    assert torch.equal(noise(host, 7, draw).generate_noise(latent), expected)
    second = noise(host, 7, draw).generate_noise({"samples": torch.zeros(1, 4, 8, 8), "batch_index": [1]})
    assert torch.equal(second, expected[1:])


def test_unknown_draw(host: Any) -> None:
    with pytest.raises(ValueError, match=r"Unknown draw 'other'; expected one of comfyui"):
        noise(host, 0, "other")
