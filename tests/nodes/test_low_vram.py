"""A host that has no room for a model, as under --novram: each layer fetches, casts and patches its weights itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import save_lora
from torch import Tensor

LORA = "low_vram.safetensors"


@pytest.fixture(scope="module")
def with_lora(host: Any) -> Any:
    """The built-in one-step model with a LoRA on it, and its condition."""
    save_lora(host.base / "models" / "loras" / LORA)
    model, clip, _ = host.run("InstaFlowLoadCheckpoint", checkpoint="built-in: shapes", weight_dtype="fp32")
    model, clip = host.run("LoraLoader", model=model, clip=clip, lora_name=LORA, strength_model=0.3, strength_clip=0)
    return model, host.run("CLIPTextEncode", clip=clip, text="a red circle on a blue background")[0]


def results(host: Any, with_lora: Any) -> dict[str, Tensor]:
    """What each node that asks the UNet for velocities gives."""
    model, positive = with_lora
    (latent,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=1)
    common = {"model": model, "positive": positive}
    sampled = host.run("InstaFlowSampler", latent_image=latent, seed=3, steps=1, guidance=1.0, denoise=1.0, **common)[0]
    inverted = host.run("InstaFlowInvert", latent_image=sampled, steps=1, **common)[1]
    controlled = host.run(
        "InstaFlowControl", latent_image=inverted, target=latent, iterations=3, learning_rate=0.1, steps=1, **common
    )[0]
    straight = host.run("InstaFlowStraightness", latent_image=latent, seed=3, samples=2, steps=3, **common)[0]
    return {
        "sampled": sampled["samples"],
        "inverted": inverted["samples"],
        "controlled": controlled["samples"],
        "straightness": torch.tensor(straight),
    }


def test_every_node_gives_what_it_gives_with_room(host: Any, with_lora: Any, request: pytest.FixtureRequest) -> None:
    inner = with_lora[0].model
    expected = results(host, with_lora)
    assert not inner.model_lowvram
    request.getfixturevalue("no_room")
    found = results(host, with_lora)
    assert inner.model_lowvram and inner.lowvram_patch_counter == 1  # the LoRA is added in its layer, at each call
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
