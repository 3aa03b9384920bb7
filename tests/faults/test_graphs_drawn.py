"""Odd graphs that make a picture all the same: the one that the stock samplers make of them, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_parts import Parts
from graph_prompts import (
    as_flow,
    both,
    hooked,
    in_area,
    in_time,
    masked,
    one_after_the_other,
    painting,
    with_option,
    without,
)
from samplers import custom_advanced, instaflow, ksampler

Changes = Callable[[Parts], dict[str, Any]]

LATENTS: dict[str, Changes] = {
    "odd sides": lambda p: {"latent": p.latent(1, 4, 7, 9)},
    "one latent pixel": lambda p: {"latent": p.latent(1, 4, 1, 1)},
    "one row of latent pixels": lambda p: {"latent": p.latent(1, 4, 1, 40)},
    "a batch of nine": lambda p: {"latent": p.latent(9, 4, 8, 8)},
    "float16": lambda p: {"latent": {"samples": p.latent()["samples"].half()}},
    "bfloat16": lambda p: {"latent": {"samples": p.latent()["samples"].bfloat16()}},
    "float64": lambda p: {"latent": {"samples": p.latent()["samples"].double()}},
    "a view that is not contiguous": lambda p: {"latent": {"samples": p.latent(1, 4, 9, 8)["samples"].mT}},
    "very small numbers": lambda p: {"latent": {"samples": p.latent()["samples"] * 1e-30}, "denoise": 0.5},
    "large numbers": lambda p: {"latent": {"samples": p.latent()["samples"] * 1e4}, "denoise": 0.5},
    "another picture to begin with": lambda p: {"latent": p.latent(), "denoise": 0.5},
    "a grey picture to begin with": lambda p: {
        "latent": {"samples": p.run("VAEEncode", vae=p.vae, pixels=torch.full((1, 64, 64, 3), 0.5))["samples"]},
        "denoise": 0.5,
    },
    "a picture with transparency": lambda p: {
        "latent": p.run("VAEEncode", vae=p.vae, pixels=torch.rand(1, 64, 64, 3)), "denoise": 0.5
    },
    "pixels that are no multiple of 8": lambda p: {
        "latent": p.run("VAEEncode", vae=p.vae, pixels=torch.rand(1, 67, 75, 3)), "denoise": 0.5
    },
    "notes of other packs": lambda p: {"latent": p.latent(type="audio", anything=[1], downscale_ratio_spacial=8)},
    "a mask of the latents' size": lambda p: {"latent": p.latent(noise_mask=p.mask(1, 8, 8))},
    "a mask of the pictures' size": lambda p: {"latent": p.latent(noise_mask=p.mask(1, 64, 64))},
    "a mask of another size": lambda p: {"latent": p.latent(noise_mask=p.mask(1, 13, 7))},
    "a mask of two dimensions": lambda p: {"latent": p.latent(noise_mask=p.mask(64, 64))},
    "a mask of four dimensions": lambda p: {"latent": p.latent(noise_mask=p.mask(1, 1, 64, 64))},
    "one mask for two pictures": lambda p: {"latent": p.latent(2, 4, 8, 8, noise_mask=p.mask(1, 64, 64))},
    "two masks for one picture": lambda p: {"latent": p.latent(noise_mask=p.mask(2, 64, 64))},
    "three masks for two pictures": lambda p: {"latent": p.latent(2, 4, 8, 8, noise_mask=p.mask(3, 64, 64))},
    "two masks for three pictures": lambda p: {"latent": p.latent(3, 4, 8, 8, noise_mask=p.mask(2, 64, 64))},
    "a mask that is all black": lambda p: {"latent": p.latent(noise_mask=torch.zeros(1, 64, 64))},
    "a mask in greys": lambda p: {"latent": p.latent(noise_mask=torch.full((1, 64, 64), 0.3))},
    "places in a longer batch": lambda p: {"latent": p.latent(2, 4, 8, 8, batch_index=[5, 2])},
    "the same place twice": lambda p: {"latent": p.latent(2, 4, 8, 8, batch_index=[1, 1])},
    "the second of a batch": lambda p: {
        "latent": p.run("LatentFromBatch", samples=p.latent(3, 4, 8, 8), batch_index=1, length=1)
    },
    "a batch that was repeated": lambda p: {"latent": p.run("RepeatLatentBatch", samples=p.latent(), amount=3)},
    "batches of two sizes, put together": lambda p: {
        "latent": p.run("LatentBatch", samples1=p.latent(1, 4, 8, 8), samples2=p.latent(2, 4, 6, 10))
    },
    "latents that were cropped": lambda p: {
        "latent": p.run("LatentCrop", samples=p.latent(1, 4, 12, 12), width=56, height=40, x=16, y=8), "denoise": 0.5
    },
    "a picture to be painted into": lambda p: {
        "latent": p.run(
            "VAEEncodeForInpaint", vae=p.vae, pixels=torch.rand(1, 64, 64, 3), mask=p.mask(1, 64, 64), grow_mask_by=6
        )
    },
}  # fmt: skip


PROMPTS: dict[str, Changes] = {
    "two prompts at once": lambda p: {"positive": both(p, p.text, p.other)},
    "two prompts, and two negative ones": lambda p: {
        "positive": both(p, p.text, p.other), "negative": both(p, p.blurry, p.other)
    },
    "two prompts averaged": lambda p: {
        "positive": p.run("ConditioningAverage", conditioning_to=p.text, conditioning_from=p.other,
                          conditioning_to_strength=0.4)
    },
    "two prompts one behind the other": lambda p: {
        "positive": p.run("ConditioningConcat", conditioning_to=p.text, conditioning_from=p.other)
    },
    "three prompts one behind the other, one negative": lambda p: {
        "positive": p.run("ConditioningConcat", conditioning_to=p.other, conditioning_from=p.run(
            "ConditioningConcat", conditioning_to=p.text, conditioning_from=p.other))
    },
    "a prompt of three times 77 tokens, a short negative": lambda p: {"positive": p.encode("a red circle, " * 55)},
    "a short prompt, a negative of three times 77 tokens": lambda p: {"negative": p.encode("blurry, ugly, " * 50)},
    "an empty prompt": lambda p: {"positive": p.encode("")},
    "a prompt of zeros": lambda p: {"positive": p.run("ConditioningZeroOut", conditioning=p.text)},
    "a negative of zeros": lambda p: {"negative": p.run("ConditioningZeroOut", conditioning=p.text)},
    "a prompt with weights": lambda p: {"positive": p.encode("a (red:1.5) [circle] on (blue:-1)")},
    "no pooled output": lambda p: {"positive": without(p.text, "pooled_output")},
    "a pooled output of SDXL's width": lambda p: {"positive": with_option(p.text, pooled_output=torch.ones(1, 1280))},
    "a size for SDXL": lambda p: {"positive": with_option(p.text, width=1024, height=1024, crop_w=0, target_width=64)},
    "a guidance for Flux": lambda p: {"positive": p.run("FluxGuidance", conditioning=p.text, guidance=3.5)},
    "a reference picture for Kontext": lambda p: {
        "positive": p.run("ReferenceLatent", conditioning=p.text, latent=p.latent(1, 16, 8, 8))
    },
    "a picture for unCLIP": lambda p: {
        "positive": with_option(p.text, unclip_conditioning=[
            {"clip_vision_output": None, "strength": 1.0, "noise_augmentation": 0.0}
        ])
    },
    "an area in pixels": lambda p: {
        "positive": both(p, p.other, p.run(
            "ConditioningSetArea", conditioning=p.text, width=32, height=64, x=32, y=0, strength=1.0))
    },
    "an area in percent": lambda p: {"positive": in_area(p)},
    "an area larger than the picture": lambda p: {
        "positive": both(p, p.other, p.run(
            "ConditioningSetArea", conditioning=p.text, width=512, height=512, x=0, y=0, strength=1.0))
    },
    "a strength of 0 beside another prompt": lambda p: {
        "positive": both(p, p.other, p.run("ConditioningSetAreaStrength", conditioning=p.text, strength=0.0))
    },
    "a prompt under a mask": lambda p: {"positive": both(p, p.other, masked(p, p.mask(1, 64, 64)))},
    "a prompt in its mask's bounds": lambda p: {
        "positive": both(p, p.other, masked(p, p.mask(1, 64, 64), "mask bounds"))
    },
    "a prompt under a mask of another size": lambda p: {"positive": both(p, p.other, masked(p, p.mask(1, 30, 50)))},
    "a prompt under two masks": lambda p: {"positive": both(p, p.other, masked(p, p.mask(2, 64, 64)))},
    "a prompt under a mask of two dimensions": lambda p: {"positive": both(p, p.other, masked(p, p.mask(64, 64)))},
    "a prompt first, another then": lambda p: {"positive": one_after_the_other(p), "steps": 4},
    "a negative for the first half only": lambda p: {
        "negative": both(p, in_time(p, p.blurry, 0.0, 0.5), in_time(p, p.other, 0.5, 1.0)), "steps": 4
    },
    "a default prompt outside a mask": lambda p: {
        "positive": p.run("ConditioningSetDefaultCombine", cond=masked(p, p.mask(1, 64, 64)), cond_DEFAULT=p.other)
    },
    "a LoRA of its own": lambda p: {"positive": hooked(p)},
    "a LoRA of its own, and a prompt without": lambda p: {"positive": both(p, hooked(p), p.other)},
    "states for two of three pictures": lambda p: {
        "positive": p.states(2, 77, 64), "latent": p.latent(3, 4, 8, 8)
    },
    "states for five of one picture": lambda p: {"positive": p.states(5, 77, 64)},
    "states in float16": lambda p: {"positive": [[s.half(), o] for s, o in p.text]},
    "states of one token": lambda p: {"positive": p.states(1, 1, 64)},
    "states of 13 tokens, a negative of 77": lambda p: {"positive": p.states(1, 13, 64)},
    "a picture and a mask, as for models that paint into one": lambda p: dict(zip(
        ("positive", "negative", "latent"),
        p.host.run("InpaintModelConditioning", positive=p.text, negative=p.blurry, vae=p.vae,
                   pixels=torch.full((1, 64, 64, 3), 0.3), mask=p.mask(1, 64, 64), noise_mask=True),
        strict=True,
    )),
    "a CLIP that stops a layer earlier": lambda p: {
        "positive": p.encode("a red circle", p.run("CLIPSetLastLayer", clip=p.clip, stop_at_clip_layer=-2))
    },
    "a CLIP that stops more layers earlier than it has": lambda p: {
        "positive": p.encode("a red circle", p.run("CLIPSetLastLayer", clip=p.clip, stop_at_clip_layer=-24))
    },
}  # fmt: skip


def patched(node: str, **inputs: Any) -> Changes:
    return lambda p: {"model": p.run(node, model=p.model, **inputs)}


MODELS: dict[str, Changes] = {
    "FreeU": patched("FreeU", b1=1.1, b2=1.2, s1=0.9, s2=0.2),
    "FreeU V2": patched("FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "HyperTile": patched("HyperTile", tile_size=32, swap_size=2, max_depth=2, scale_depth=False),
    "Token merging": patched("TomePatchModel", ratio=0.3),
    "RescaleCFG": patched("RescaleCFG", multiplier=0.7),
    "Deep Shrink": patched(
        "PatchModelAddDownscale", block_number=3, downscale_factor=2.0, start_percent=0.0, end_percent=0.35,
        downscale_after_skip=True, downscale_method="bicubic", upscale_method="bicubic",
    ),
    "Perturbed-attention guidance": patched("PerturbedAttentionGuidance", scale=3.0),
    "Self-attention guidance": patched("SelfAttentionGuidance", scale=0.5, blur_sigma=2.0),
    "Self-attention multiplied": patched("UNetSelfAttentionMultiply", q=1.1, k=0.9, v=1.0, out=1.0),
    "Mahiro": patched("Mahiro"),
    "TCFG": patched("TCFG"),
    "Differential Diffusion": lambda p: {
        "model": p.run("DifferentialDiffusion", model=p.model),
        "latent": p.latent(noise_mask=torch.linspace(0, 1, 64).expand(1, 64, 64)),
    },
    "half of a Stable Diffusion merged in": lambda p: {
        "model": p.run("ModelMergeSimple", model1=p.model, model2=p.teacher, ratio=0.5)
    },
    "a Stable Diffusion's input blocks": lambda p: {
        "model": p.run("ModelMergeBlocks", model1=p.model, model2=p.teacher, input=0.0, middle=1.0, out=1.0)
    },
    "a Stable Diffusion taken as a flow": lambda p: {"model": as_flow(p, p.teacher)},
    "a MODEL that paints into pictures, taken as a flow": lambda p: PROMPTS[
        "a picture and a mask, as for models that paint into one"
    ](p) | {"model": as_flow(p, painting(p))},
    "a MODEL that paints into pictures, given none": lambda p: {"model": as_flow(p, painting(p))},
    "a LoRA at a hundred times its strength": lambda p: {
        "model": p.run("LoraLoaderModelOnly", model=p.model, lora_name="small.safetensors", strength_model=100.0)
    },
}  # fmt: skip


NUMBERS: dict[str, Changes] = {
    "seed 0": lambda p: {"seed": 0},
    "the largest seed": lambda p: {"seed": 2**64 - 1},
    "forty steps": lambda p: {"steps": 40},
    "guidance 30": lambda p: {"guidance": 30.0},
    "guidance just above 1": lambda p: {"guidance": 1.01},
}

DRAWN_ALIKE = {
    f"{what}: {sentence}": changes
    for what, table in (("latents", LATENTS), ("prompts", PROMPTS), ("a MODEL", MODELS), ("numbers", NUMBERS))
    for sentence, changes in table.items()
}


@pytest.mark.parametrize("changes", DRAWN_ALIKE.values(), ids=DRAWN_ALIKE)
def test_the_same_picture_as_the_stock_samplers(parts: Parts, changes: Changes) -> None:
    same = {"model": parts.model, "positive": parts.text, "negative": parts.blurry, "latent": parts.latent()}
    graph = same | {"steps": 2, "guidance": 1.5, "seed": 7} | changes(parts)
    ours = instaflow(parts.host, **graph)
    assert ours.shape == graph["latent"]["samples"].shape
    assert ours.isfinite().all()
    assert torch.equal(ours, ksampler(parts.host, **graph))
    assert torch.equal(ours, custom_advanced(parts.host, **graph))
