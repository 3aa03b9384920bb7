"""Parity: an SD1.5-sized InstaFlow in the released layout, through the nodes and by the paper's equations.

Weights are random, for no trained ones can be had here; what is compared does not depend on training.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sd15 import TEXT, UNET, VAE
from small_models import scale_output
from torch import Tensor

from instaflow_core.text import load_tokenizer

PROMPT = "a watercolour of a lighthouse, (not a weight), on a cliff"
NEGATIVE = "blurry, dark"
# Rounding in fp32, of latents that deviate by 1.5. Two programs sum in another order, and which depends on the
# processor: 1.6e-5 without AVX-512, a third of that with it.
LATENT_TOLERANCE = 5e-5
IMAGE_TOLERANCE = 5e-5
VAE_SCALE = VAE["scaling_factor"]


@dataclass(frozen=True)
class Case:
    """One sampling run; `image` says whether its latent is decoded as well."""

    steps: int
    guidance: float
    width: int
    height: int
    seed: int
    image: bool


CASES = (
    Case(1, 1.0, 128, 128, 0, image=True),
    Case(1, 1.0, 192, 128, 1, image=True),
    Case(4, 1.5, 192, 128, 2, image=False),
    Case(7, 2.0, 128, 128, 3, image=True),
)


@dataclass(frozen=True)
class Reference:
    """What the equations give: text states (1, 77, 768), and of each case the latent (1, 4, h, w) and its picture."""

    text: Tensor
    latents: dict[Case, Tensor]
    images: dict[Case, Tensor]


@pytest.fixture(scope="module")
def reference(host: Any) -> Iterator[Reference]:
    """Build the model, run the reference on it, write it where the host looks for it, and let go of it."""
    folder = host.base / "models" / "diffusers" / "rf_sd15_size"
    with torch.no_grad():
        modules = _random_modules()
        result = _run_reference(*modules)
        _write_released_layout(folder, *modules)
    del modules
    gc.collect()
    yield result
    for file in folder.rglob("*.safetensors"):
        file.unlink()


def _random_modules() -> tuple[Any, Any, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config(UNET).eval()
        vae = AutoencoderKL.from_config(VAE).eval()
        text_encoder = CLIPTextModel(CLIPTextConfig.from_dict(dict(TEXT))).eval()
    scale_output(unet)
    return unet, text_encoder, vae


def _encode(text_encoder: Any, prompt: str) -> Tensor:
    """The whole prompt as plain text: ComfyUI's weights in brackets are escaped where the node gets it."""
    tokens = load_tokenizer()(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    return text_encoder(tokens.input_ids)[0]


def _euler_loop(unet: Any, x: Tensor, steps: int, guidance: float, text: Tensor, negative: Tensor) -> Tensor:
    """x_{t + 1/N} = x_t + v(x_t, t) / N from t = 0, the UNet asked at 1000 (1 - t); v guided as in section 4.1."""
    for i in range(steps):
        timestep = 1000 * (1 - i / steps)
        velocity = unet(x, timestep, encoder_hidden_states=text, return_dict=False)[0]
        if guidance > 1:
            away = unet(x, timestep, encoder_hidden_states=negative, return_dict=False)[0]
            velocity = away + guidance * (velocity - away)
        x = x + velocity / steps
    return x


def _run_reference(unet: Any, text_encoder: Any, vae: Any) -> Reference:
    text, negative = _encode(text_encoder, PROMPT), _encode(text_encoder, NEGATIVE)
    latents, images = {}, {}
    for case in CASES:
        shape = (1, 4, case.height // 8, case.width // 8)
        noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(case.seed))
        latents[case] = _euler_loop(unet, noise, case.steps, case.guidance, text, negative)
        if case.image:
            picture = vae.decode(latents[case] / VAE_SCALE, return_dict=False)[0]
            images[case] = (picture / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    return Reference(text, latents, images)


def _write_released_layout(folder: Path, unet: Any, text_encoder: Any, vae: Any) -> None:
    """unet/, vae/, text_encoder/ in fp32 safetensors, and the model_index.json of the released folder."""
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    text_encoder.save_pretrained(folder / "text_encoder")
    index = {
        "_class_name": "RectifiedFlowPipeline",
        "_diffusers_version": "0.19.3",
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        "requires_safety_checker": True,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.fixture(scope="module")
def loaded(host: Any, reference: Reference) -> Iterator[tuple[Any, Any, Any]]:
    """MODEL, CLIP and VAE of that folder, everything in fp32."""
    import comfy.model_management

    yield host.run("InstaFlowLoadCheckpoint", checkpoint="rf_sd15_size", weight_dtype="fp32")
    comfy.model_management.unload_all_models()
    gc.collect()


def _escape(prompt: str) -> str:
    return prompt.replace("(", "\\(").replace(")", "\\)")


def test_text_states(host: Any, reference: Reference, loaded: tuple[Any, Any, Any]) -> None:
    (conditioning,) = host.run("CLIPTextEncode", clip=loaded[1], text=_escape(PROMPT))
    assert torch.allclose(conditioning[0][0], reference.text, rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.steps}steps_g{c.guidance}_{c.width}x{c.height}")
def test_latents_and_images(
    host: Any, reference: Reference, loaded: tuple[Any, Any, Any], case: Case, record_property: Any
) -> None:
    model, clip, vae = loaded
    (positive,) = host.run("CLIPTextEncode", clip=clip, text=_escape(PROMPT))
    (negative,) = host.run("CLIPTextEncode", clip=clip, text=NEGATIVE)
    (empty,) = host.run("EmptyLatentImage", width=case.width, height=case.height, batch_size=1)
    (noise,) = host.run("InstaFlowSeedNoise", seed=case.seed, draw="diffusers fp32")
    (sampled,) = host.run(
        "InstaFlowSampler",
        model=model,
        positive=positive,
        negative=negative if case.guidance > 1 else None,
        latent_image=empty,
        noise=noise,
        seed=0,
        steps=case.steps,
        guidance=case.guidance,
        denoise=1.0,
    )
    expected = reference.latents[case]
    error = (sampled["samples"] * VAE_SCALE - expected).abs().max().item()
    record_property("latent_error", error)
    print(f"latent error {error:.2e} (deviation {expected.std():.2f})")
    assert error <= LATENT_TOLERANCE
    if case.image:
        (image,) = host.run("VAEDecode", samples=sampled, vae=vae)
        error = (image - reference.images[case]).abs().max().item()
        record_property("image_error", error)
        print(f"image error {error:.2e} (deviation {reference.images[case].std():.2f})")
        assert error <= IMAGE_TOLERANCE


def test_the_stock_loader_with_model_sampling(host: Any, reference: Reference, loaded: tuple[Any, Any, Any]) -> None:
    """The same UNet through ComfyUI's own loader, made an InstaFlow by InstaFlowModelSampling."""
    file = host.base / "models" / "diffusers" / "rf_sd15_size" / "unet" / "diffusion_pytorch_model.safetensors"
    link = host.base / "models" / "diffusion_models" / "sd15_size.safetensors"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.hardlink_to(file)
    case = CASES[0]
    try:
        (stock,) = host.run("UNETLoader", unet_name=link.name, weight_dtype="default")
    finally:
        link.unlink()
    (flow,) = host.run("InstaFlowModelSampling", model=stock)
    (positive,) = host.run("CLIPTextEncode", clip=loaded[1], text=_escape(PROMPT))
    (empty,) = host.run("EmptyLatentImage", width=case.width, height=case.height, batch_size=1)
    (sampled,) = host.run(
        "KSampler",
        model=flow,
        seed=case.seed,
        steps=1,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        positive=positive,
        negative=positive,
        latent_image=empty,
        denoise=1.0,
    )
    assert (sampled["samples"] * VAE_SCALE - reference.latents[case]).abs().max() <= LATENT_TOLERANCE
