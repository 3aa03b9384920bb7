"""Every sampler of the host with every scheduler of it, on our MODEL: whatever this host has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from samplers import ksampler

from instaflow_core.pictures.images import image_pictures
from instaflow_core.shapes.captions import parse
from instaflow_core.shapes.judge import look

CAPTION = "a large red circle on a white background"

STEPS = 4
MORE_STEPS = dict.fromkeys(("dpm_fast", "dpm_adaptive", "dpmpp_2m_cfg_pp", "res_multistep_ancestral_cfg_pp"), 16)
"""The first two end at the last level above 0, which of four steps is a quarter of the noise; the others look back over
more steps than four."""


@pytest.fixture(scope="module")
def flow(host: Any) -> dict[str, Any]:
    """The built-in 2-rectified flow and its prompts, as `samplers` take them; and its VAE."""
    model, clip, vae = host.run("InstaFlowLoadCheckpoint", checkpoint="built-in: shapes-2rf", weight_dtype="fp32")
    positive, negative = (host.run("CLIPTextEncode", clip=clip, text=text)[0] for text in (CAPTION, ""))
    return {"model": model, "positive": positive, "negative": negative, "vae": vae}


def sampled(host: Any, flow: dict[str, Any], pictures: int, **how: Any) -> torch.Tensor:
    latent = {"samples": torch.zeros(pictures, 4, 8, 8)}
    prompted = {name: flow[name] for name in ("model", "positive", "negative")}
    return ksampler(host, latent=latent, seed=3, guidance=1.5, **prompted, **how)


def every(kind: str) -> list[str]:
    """SAMPLERS or SCHEDULERS of the host that runs."""
    import comfy.samplers

    return list(getattr(comfy.samplers.KSampler, kind))


def test_every_pair_ends_in_a_picture(host: Any, flow: dict[str, Any]) -> None:
    """Of no pair comes an error, NaN or infinity, or something far from any latents."""
    pairs = [(sampler, scheduler) for sampler in every("SAMPLERS") for scheduler in every("SCHEDULERS")]
    wrong = []
    for sampler, scheduler in pairs:
        samples = sampled(host, flow, 1, steps=2, sampler_name=sampler, scheduler=scheduler)
        if not (samples.isfinite().all() and samples.abs().max() < 100):
            wrong.append((sampler, scheduler, float(samples.abs().max())))
    assert not wrong
    assert len(pairs) >= 42 * 9  # what the oldest host has


def test_every_sampler_draws_what_is_asked(host: Any, flow: dict[str, Any]) -> None:
    """On InstaFlow's own levels, those of `simple`, in few steps."""
    wrong = {}
    for sampler in every("SAMPLERS"):
        steps = MORE_STEPS.get(sampler, STEPS)
        samples = sampled(host, flow, 2, steps=steps, sampler_name=sampler, scheduler="simple")
        (images,) = host.run("VAEDecode", samples={"samples": samples}, vae=flow["vae"])
        seen = [look(picture) for picture in image_pictures(images)]
        if not all(one and one.matches(parse(CAPTION)) for one in seen):
            wrong[sampler] = seen
    assert not wrong


@pytest.mark.parametrize("add_noise", ["enable", "disable"])
@pytest.mark.parametrize(
    ("start", "end"), [(0, 10000), (0, 2), (2, 4), (3, 3), (4, 4), (4, 2), (10000, 10000)], ids=lambda step: str(step)
)
@pytest.mark.parametrize("leftover", ["enable", "disable"])
def test_ksampler_advanced_with_any_stretch(
    host: Any, flow: dict[str, Any], add_noise: str, start: int, end: int, leftover: str
) -> None:
    """A stretch of the steps with or without noise at either end, or none of them at all."""
    generator = torch.Generator().manual_seed(0)
    latent = {"samples": torch.randn(1, 4, 8, 8, generator=generator)}
    (out,) = host.run(
        "KSamplerAdvanced", model=flow["model"], positive=flow["positive"], negative=flow["negative"],
        add_noise=add_noise, noise_seed=3, steps=4, cfg=1.5, sampler_name="euler", scheduler="simple",
        latent_image=latent, start_at_step=start, end_at_step=end, return_with_leftover_noise=leftover,
    )  # fmt: skip
    assert out["samples"].shape == (1, 4, 8, 8)
    assert out["samples"].isfinite().all()
    if start >= min(end, 4):
        assert torch.equal(out["samples"], latent["samples"])
