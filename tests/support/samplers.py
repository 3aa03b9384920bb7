"""The three ways to sample an InstaFlow on a host, with the same inputs: our sampler and the host's two."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def instaflow(
    host: Any,
    model: Any,
    positive: Any,
    latent: Any,
    *,
    seed: int = 0,
    steps: int = 1,
    guidance: float = 1.0,
    denoise: float = 1.0,
    **inputs: Any,
) -> Tensor:
    """The samples of InstaFlowSampler; `inputs` may have `negative` and `noise`."""
    settings = {"seed": seed, "steps": steps, "guidance": guidance, "denoise": denoise}
    sampled = host.run("InstaFlowSampler", model=model, positive=positive, latent_image=latent, **settings, **inputs)
    return sampled[0]["samples"]


def ksampler(
    host: Any,
    model: Any,
    positive: Any,
    latent: Any,
    *,
    negative: Any = None,
    seed: int = 0,
    steps: int = 1,
    guidance: float = 1.0,
    denoise: float = 1.0,
    sampler_name: str = "euler",
    scheduler: str = "simple",
) -> Tensor:
    """The samples of the stock KSampler."""
    sampled = host.run(
        "KSampler",
        model=model,
        positive=positive,
        negative=positive if negative is None else negative,
        latent_image=latent,
        seed=seed,
        steps=steps,
        cfg=guidance,
        denoise=denoise,
        sampler_name=sampler_name,
        scheduler=scheduler,
    )
    return sampled[0]["samples"]


def custom_advanced(
    host: Any,
    model: Any,
    positive: Any,
    latent: Any,
    *,
    negative: Any = None,
    seed: int = 0,
    steps: int = 1,
    guidance: float = 1.0,
    denoise: float = 1.0,
    sampler: Any = None,
    guider: Any = None,
) -> Tensor:
    """The samples of the stock SamplerCustomAdvanced: Euler, or `sampler`, on InstaFlowScheduler's noise levels."""
    if guider is None and guidance > 1:
        (guider,) = host.run("CFGGuider", model=model, positive=positive, negative=negative, cfg=guidance)
    elif guider is None:
        (guider,) = host.run("BasicGuider", model=model, conditioning=positive)
    (noise,) = host.run("RandomNoise", noise_seed=seed)
    if sampler is None:
        (sampler,) = host.run("KSamplerSelect", sampler_name="euler")
    (sigmas,) = host.run("InstaFlowScheduler", model=model, steps=steps, denoise=denoise)
    parts = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas}
    return host.run("SamplerCustomAdvanced", latent_image=latent, **parts)[0]["samples"]


WAYS = (instaflow, ksampler, custom_advanced)
