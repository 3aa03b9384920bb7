"""Graphs that have to make the same picture as a simpler one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_parts import Parts
from graph_prompts import as_flow, both
from samplers import custom_advanced, instaflow
from torch import Tensor


def plain(p: Parts, model: Any = None, **changes: Any) -> Tensor:
    graph = {"positive": p.text, "negative": p.blurry, "latent": p.latent(), "steps": 4, "guidance": 1.5, "seed": 7}
    return instaflow(p.host, p.model if model is None else model, **graph | changes)


def in_two(p: Parts, leftover: str, end: int = 4) -> Tensor:
    """Four steps, two in each of two KSamplerAdvanced."""
    same = {
        "model": p.model, "noise_seed": 7, "steps": 4, "cfg": 1.5, "sampler_name": "euler", "scheduler": "simple",
        "positive": p.text, "negative": p.blurry,
    }  # fmt: skip
    first = p.run(
        "KSamplerAdvanced", **same, add_noise="enable", latent_image=p.latent(), start_at_step=0, end_at_step=2,
        return_with_leftover_noise=leftover,
    )  # fmt: skip
    return p.run(
        "KSamplerAdvanced", **same, add_noise="disable", latent_image=first, start_at_step=2, end_at_step=end,
        return_with_leftover_noise="disable",
    )["samples"]  # fmt: skip


def split(p: Parts, by_denoise: bool = False) -> Tensor:
    """Four steps, two in each of two SamplerCustomAdvanced."""
    sigmas = p.run("InstaFlowScheduler", model=p.model, steps=4, denoise=1.0)
    node, how = ("SplitSigmasDenoise", {"denoise": 0.5}) if by_denoise else ("SplitSigmas", {"step": 2})
    halves = p.host.run(node, sigmas=sigmas, **how)
    guider = p.run("CFGGuider", model=p.model, positive=p.text, negative=p.blurry, cfg=1.5)
    latent, noise = p.latent(), p.noise(7)
    for half in halves:
        latent = p.run(
            "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=p.run("KSamplerSelect", sampler_name="euler"),
            sigmas=half, latent_image=latent,
        )  # fmt: skip
        noise = p.run("DisableNoise")
    return latent["samples"]


def guided(p: Parts, node: str, **inputs: Any) -> Tensor:
    guider = p.run(node, model=p.model, **inputs)
    return custom_advanced(p.host, p.model, p.text, p.latent(), guider=guider, steps=4, seed=7)


def alien_lora(p: Parts) -> Any:
    from safetensors.torch import save_file

    tensors = {f"lora_unet_double_blocks_{i}_img_attn_proj.lora_{side}.weight": torch.ones(4, 4)
               for i in range(2) for side in ("up", "down")}  # fmt: skip
    save_file(tensors, p.host.base / "models" / "loras" / "flux.safetensors")
    return p.run("LoraLoaderModelOnly", model=p.model, lora_name="flux.safetensors", strength_model=1.0)


def under(node: str, **inputs: Any) -> Callable[[Parts], Tensor]:
    return lambda p: plain(p, as_flow(p, p.run(node, model=p.model, **inputs)))


def merged(p: Parts, finetuned: Any, base: Any, strength: float) -> Any:
    return p.run("InstaFlowMergeDelta", model=p.model, finetuned=finetuned, base=base, strength=strength)


Pictures = Callable[[Parts], tuple[Tensor, Tensor]]
EQUAL: dict[str, Pictures] = {
    "KSamplerAdvanced twice, with leftover noise": lambda p: (in_two(p, "enable"), plain(p)),
    "KSamplerAdvanced twice, the second ending beyond the last step": lambda p: (in_two(p, "enable", 10000), plain(p)),
    "SamplerCustomAdvanced twice, by SplitSigmas": lambda p: (split(p), plain(p)),
    "SamplerCustomAdvanced twice, by SplitSigmasDenoise": lambda p: (split(p, by_denoise=True), plain(p)),
    "BasicGuider": lambda p: (guided(p, "BasicGuider", conditioning=p.text), plain(p, guidance=1.0)),
    "DualCFGGuider with the negative twice": lambda p: (
        guided(p, "DualCFGGuider", cond1=p.text, cond2=p.blurry, negative=p.blurry, cfg_conds=1.5,
               cfg_cond2_negative=1.0, style="regular"),
        plain(p),
    ),
    "PerpNegGuider without a negative to speak of": lambda p: (
        guided(p, "PerpNegGuider", positive=p.text, negative=p.blurry, empty_conditioning=p.blurry, cfg=1.5,
               neg_scale=0.0),
        plain(p),
    ),
    "a LoRA of Flux": lambda p: (plain(p, alien_lora(p)), plain(p)),
    "none of a Stable Diffusion merged in": lambda p: (
        plain(p, p.run("ModelMergeSimple", model1=p.model, model2=p.teacher, ratio=1.0)), plain(p)
    ),
    "all of a Stable Diffusion merged in": lambda p: (
        plain(p, p.run("ModelMergeSimple", model1=p.model, model2=p.teacher, ratio=0.0)),
        plain(p, as_flow(p, p.teacher)),
    ),
    "a difference of nothing merged in": lambda p: (plain(p, merged(p, p.teacher, p.teacher, 1.0)), plain(p)),
    "a difference merged in at strength 0": lambda p: (plain(p, merged(p, p.teacher, p.model, 0.0)), plain(p)),
    "a flow again under ModelSamplingDiscrete": lambda p: (
        under("ModelSamplingDiscrete", sampling="eps", zsnr=False)(p), plain(p)
    ),
    "a flow again under ModelSamplingSD3": lambda p: (under("ModelSamplingSD3", shift=3.0)(p), plain(p)),
    "a flow again under ModelSamplingFlux": lambda p: (
        under("ModelSamplingFlux", max_shift=1.15, base_shift=0.5, width=64, height=64)(p), plain(p)
    ),
    "a flow again under ModelSamplingContinuousV": lambda p: (
        under("ModelSamplingContinuousV", sampling="v_prediction", sigma_max=500.0, sigma_min=0.03)(p), plain(p)
    ),
    "a flow again under PeRFlow": lambda p: (
        under("InstaFlowPeRFlow", steps=4, windows=4, prediction="diff_eps")(p), plain(p)
    ),
    "a noise_mask of true and false": lambda p: (
        plain(p, latent=p.latent(noise_mask=p.mask(1, 64, 64).bool())),
        plain(p, latent=p.latent(noise_mask=p.mask(1, 64, 64))),
    ),
    "no denoising": lambda p: (plain(p, denoise=0.0), p.latent()["samples"]),
    "hardly any denoising": lambda p: (plain(p, denoise=1e-9, steps=1), p.latent()["samples"]),
    "the noise of a seed in place of the seed": lambda p: (
        plain(p, noise=p.run("InstaFlowSeedNoise", seed=7, draw="comfyui"), seed=0), plain(p)
    ),
    "a frame alone of the way between two noises": lambda p: (
        plain(p, noise=p.run("InstaFlowInterpolateNoise", seed_from=7, seed_to=8, frames=1, latent_image=p.latent())),
        plain(p),
    ),
    "a negative at guidance 1": lambda p: (plain(p, guidance=1.0), plain(p, guidance=1.0, negative=None)),
    "guidance 0": lambda p: (plain(p, guidance=0.0), plain(p, guidance=1.0)),
    "an area that is the whole picture": lambda p: (
        plain(p, positive=p.run("ConditioningSetArea", conditioning=p.text, width=64, height=64, x=0, y=0,
                                strength=1.0)),
        plain(p),
    ),
    "the same prompt twice": lambda p: (plain(p, positive=both(p, p.text, p.text)), plain(p)),
}  # fmt: skip


@pytest.mark.parametrize("pictures", EQUAL.values(), ids=EQUAL)
def test_the_same_picture_as_another_graph(parts: Parts, pictures: Pictures) -> None:
    made, expected = pictures(parts)
    assert made.isfinite().all()
    assert torch.allclose(made, expected, rtol=0, atol=2e-4)
