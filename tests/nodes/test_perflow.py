"""PeRFlow on the real host: stock samplers on its MODEL and SIGMAS, next to the published loop."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from small_models import small_checkpoint

from instaflow_core.flow.diffusion import noise_schedule
from instaflow_core.flow.perflow import PREDICTIONS, window_velocity
from instaflow_core.text import encode_prompts
from instaflow_core.weights.modules import build_text_encoder, build_unet


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [4, 6])
def test_stock_euler_is_the_published_loop(host: Any, teacher: Any, prediction: str, steps: int) -> None:
    model, clip, _ = teacher
    patched, sigmas = host.run("InstaFlowPeRFlow", model=model, steps=steps, windows=4, prediction=prediction)
    (positive,) = host.run("CLIPTextEncode", clip=clip, text="a red star")
    (sampler,) = host.run("KSamplerSelect", sampler_name="euler")
    (latent,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=2)
    inputs = {"positive": positive, "negative": positive, "sampler": sampler, "sigmas": sigmas, "latent_image": latent}
    out, _ = host.run("SamplerCustom", model=patched, add_noise=True, noise_seed=3, cfg=1.0, **inputs)

    checkpoint = small_checkpoint("teacher", "epsilon", seed=2)
    unet, states = build_unet(checkpoint), encode_prompts(build_text_encoder(checkpoint), ["a red star"])
    alphas = noise_schedule().alphas_cumprod
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    levels = sigmas.tolist()
    with torch.no_grad():
        for level, after in pairwise(levels):
            text = states.expand(2, -1, -1)
            noise = unet(x, 1000 * level, encoder_hidden_states=text, return_dict=False)[0]
            at = torch.full((2, 1, 1, 1), level)
            x = x + (after - level) * window_velocity(x, noise, at, 4, alphas, prediction)
    assert (out["samples"] * 0.18215 - x).abs().max() < 2e-4 * x.abs().max()


def test_the_model_that_comes_in_stays_as_it_is(host: Any, teacher: Any) -> None:
    model, _, _ = teacher
    before = model.get_model_object("model_sampling")
    host.run("InstaFlowPeRFlow", model=model, steps=4, windows=4, prediction="diff_eps")
    assert model.get_model_object("model_sampling") is before


def test_too_few_steps_are_an_error(host: Any, teacher: Any) -> None:
    with pytest.raises(ValueError, match="fewer than the 4 windows"):
        host.run("InstaFlowPeRFlow", model=teacher[0], steps=3, windows=4, prediction="diff_eps")
