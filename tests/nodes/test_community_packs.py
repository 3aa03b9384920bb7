"""Widely used node packs, their own code, on our MODEL.

`make test` does not run these, and says so: the packs are on GitHub alone, which CI does not reach (what an index has
is run by tests/server/test_pack_from_an_index.py). They carry the marker `community` and are deselected unless the
environment variable COMMUNITY_PACKS names a folder that holds clones of the repositories of PACKS. A person runs them,
before a release:

    COMMUNITY_PACKS=~/packs make test     or, this file alone, in the environment that make made:
    COMMUNITY_PACKS=~/packs python3 scripts/devhost.py -m pytest tests/nodes/test_community_packs.py

A pack that is not there is skipped. RES4LYF needs what its requirements.txt lists. Some packs replace functions of the
host when they are imported, so what no pack may change is measured before the first of them is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from host_process import load_pack
from samplers import WAYS, custom_advanced, instaflow, ksampler
from torch import Tensor

from instaflow_core.pictures.images import image_pictures
from instaflow_core.shapes.captions import Caption
from instaflow_core.shapes.evaluate import accuracy

PACKS = {
    "sd-dynamic-thresholding": "mcmonkeyprojects/sd-dynamic-thresholding@73e4e04",
    "sd-perturbed-attention": "pamparamm/sd-perturbed-attention@904319b (on ComfyUI 0.3.75: @2be8d83)",
    "ComfyUI_IPAdapter_plus": "cubiq/ComfyUI_IPAdapter_plus@9d076a3",
    "ComfyUI-TiledDiffusion": "shiimizu/ComfyUI-TiledDiffusion@a155b1b",
    "ComfyUI-AnimateDiff-Evolved": "Kosinkadink/ComfyUI-AnimateDiff-Evolved@d8d163c",
    "ComfyUI_Noise": "BlenderNeko/ComfyUI_Noise@0c9ec19",
    "RES4LYF": "ClownsharkBatwing/RES4LYF@022c873",
}
"""Each pack's folder, its repository on GitHub and the commit this was tried with."""

FOLDER = os.environ.get("COMMUNITY_PACKS")
pytestmark = pytest.mark.community

CAPTIONS = (
    Caption("circle", "red", "blue"),
    Caption("square", "green", "white"),
    Caption("heart", "red", "white"),
    Caption("star", "yellow", "purple"),
)


@dataclass(frozen=True)
class Flow:
    """A built-in InstaFlow and the steps and guidance it is sampled with here."""

    model: Any
    clip: Any
    vae: Any
    steps: int
    guidance: float


@pytest.fixture(scope="module")
def flows(host: Any) -> dict[str, Flow]:
    made = {}
    for name, steps, guidance in (("built-in: shapes", 1, 1.0), ("built-in: shapes-2rf", 4, 1.5)):
        model, clip, vae = host.run("InstaFlowLoadCheckpoint", checkpoint=name, weight_dtype="fp32")
        made[name] = Flow(model, clip, vae, steps, guidance)
    return made


@pytest.fixture(scope="module")
def plain(host: Any, flows: dict[str, Flow]) -> dict[str, Tensor]:
    """What the flows make while no pack is loaded."""
    return {name: sampled(host, flow, instaflow, flow.model) for name, flow in flows.items()}


@pytest.fixture(scope="module")
def loaded(host: Any, plain: dict[str, Tensor]) -> set[str]:
    """The packs that are there, loaded."""
    there = {name for name in PACKS if (Path(str(FOLDER)) / name).is_dir()}
    for name in sorted(there):
        load_pack(host.nodes, Path(str(FOLDER)).resolve() / name)
    return there


def need(host: Any, loaded: set[str], pack: str, node: str) -> None:
    if pack not in loaded:
        pytest.skip(f"{FOLDER} has no {pack}: {PACKS[pack]}")
    if node not in host.nodes.NODE_CLASS_MAPPINGS:
        pytest.skip(f"this version of {pack} has no {node}")


def encode(host: Any, flow: Flow, text: str) -> Any:
    return host.run("CLIPTextEncode", clip=flow.clip, text=text)[0]


def empty(host: Any, width: int = 64, batch: int = 2) -> Any:
    return host.run("EmptyLatentImage", width=width, height=64, batch_size=batch)[0]


def sampled(host: Any, flow: Flow, sample: Any, model: Any, **settings: Any) -> Tensor:
    """Two pictures of each caption, as latents."""
    settings = {"steps": flow.steps, "guidance": flow.guidance, "negative": encode(host, flow, "")} | settings
    latents = [
        sample(host, model, encode(host, flow, str(caption)), empty(host), seed=3, **settings) for caption in CAPTIONS
    ]
    return torch.cat(latents)


def right(host: Any, flow: Flow, latents: Tensor) -> float:
    """The share of them that show what their caption says."""
    (images,) = host.run("VAEDecode", samples={"samples": latents}, vae=flow.vae)
    return accuracy(image_pictures(images), [caption for caption in CAPTIONS for _ in range(2)])


# --- packs whose node patches a MODEL ---


@dataclass(frozen=True)
class Patch:
    """A node that patches a MODEL, settings with which it does nothing, and others with which it does."""

    pack: str
    node: str
    neutral: dict[str, Any]
    changed: dict[str, Any]
    more: Callable[[Any, Flow], dict[str, Any]] = field(default=lambda host, flow: {})
    flow: str = "built-in: shapes-2rf"
    pictures: bool = True  # what comes out still shows what the caption says


def a_negative(host: Any, flow: Flow) -> dict[str, Any]:
    return {"negative": encode(host, flow, "")}


def an_ip_adapter(host: Any, flow: Flow) -> dict[str, Any]:
    """Random weights for the two blocks of the built-in UNet that IP-Adapter patches, and random picture features."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():  # where the pack's own loader makes them
        layers = {
            f"{number}.to_{part}_ip.weight": torch.randn(64, 64, generator=generator) / 8
            for number in (1, 13)
            for part in "kv"
        }
        projection = {
            "proj.weight": torch.randn(4 * 64, 16, generator=generator) / 4,
            "proj.bias": torch.zeros(4 * 64),
            "norm.weight": torch.ones(64),
            "norm.bias": torch.zeros(64),
        }
        features = torch.randn(1, 16, generator=generator)
    weights = {"ip_adapter": layers, "image_proj": projection}
    settings = {"weight_type": "linear", "start_at": 0.0, "end_at": 1.0, "embeds_scaling": "V only"}
    return {"ipadapter": weights, "pos_embed": features, "neg_embed": torch.zeros_like(features), **settings}


def tiles(method: str) -> Patch:
    """One tile over everything; and tiles smaller than what the model was trained at, each a drawing of its own."""
    one = {"method": method, "tile_width": 64, "tile_height": 64, "tile_overlap": 0, "tile_batch_size": 2}
    several = one | {"tile_height": 48, "tile_overlap": 32}
    return Patch("ComfyUI-TiledDiffusion", "TiledDiffusion", one, several, pictures=False)


THRESHOLDS, GUIDANCE = "sd-dynamic-thresholding", "sd-perturbed-attention"
PATCHES = (
    Patch(
        THRESHOLDS,
        "DynamicThresholdingSimple",
        {"mimic_scale": 1.5, "threshold_percentile": 1.0},
        {"mimic_scale": 1.2, "threshold_percentile": 0.99},
    ),
    Patch(GUIDANCE, "PerturbedAttention", {"scale": 0.0}, {"scale": 1.0}),
    Patch(GUIDANCE, "PerturbedAttention", {"scale": 0.0}, {"scale": 0.5}, flow="built-in: shapes"),
    Patch(GUIDANCE, "SmoothedEnergyGuidanceAdvanced", {"scale": 0.0}, {"scale": 1.0}),
    Patch(GUIDANCE, "NormalizedAttentionGuidance", {"scale": 0.0}, {"scale": 0.2}, a_negative),
    Patch(
        GUIDANCE,
        "TokenPerturbationGuidance",
        {"scale": 0.0, "unet_block_list": "m0"},
        {"scale": 0.2, "unet_block_list": "m0"},
    ),
    Patch(GUIDANCE, "PLADIS", {"scale": 0.0}, {"scale": 0.1}),
    Patch(GUIDANCE, "MomentumGuidance", {"momentum": 0.0, "ema": 0.6}, {"momentum": 0.2, "ema": 0.6}),
    Patch(GUIDANCE, "FrequencyDecoupledGuidance", {"strength_high": 1.5}, {"strength_high": 2.0}),
    Patch(GUIDANCE, "SlidingModeControlCFG", {"lambda": 6.0, "k": 0.0}, {"lambda": 6.0, "k": 0.5}),
    Patch("ComfyUI_IPAdapter_plus", "IPAdapterEmbeds", {"weight": 0.0}, {"weight": 0.1}, an_ip_adapter),
    Patch(
        "ComfyUI_IPAdapter_plus",
        "IPAdapterEmbeds",
        {"weight": 0.0},
        {"weight": 0.1},
        an_ip_adapter,
        flow="built-in: shapes",
    ),
    tiles("MultiDiffusion"),
    tiles("Mixture of Diffusers"),
    tiles("SpotDiffusion"),
)


def patched(host: Any, flow: Flow, patch: Patch, settings: dict[str, Any]) -> Any:
    import comfy.model_management

    # Some of these nodes read the layers of the model as it is loaded, with what an earlier patch put into them.
    comfy.model_management.unload_all_models()
    return host.run(patch.node, model=flow.model, **settings, **patch.more(host, flow))[0]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: f"{patch.node}-{patch.flow}")
def test_a_patch(host: Any, flows: dict[str, Flow], plain: dict[str, Tensor], loaded: set[str], patch: Patch) -> None:
    """Neutral, it changes nothing; else the same with our sampler and the stock ones, and pictures stay pictures."""
    need(host, loaded, patch.pack, patch.node)
    flow, before = flows[patch.flow], plain[patch.flow]
    for sample in WAYS:
        neutral = sampled(host, flow, sample, patched(host, flow, patch, patch.neutral))
        assert torch.allclose(neutral, before, rtol=0, atol=1e-3)
    changed = [sampled(host, flow, sample, patched(host, flow, patch, patch.changed)) for sample in WAYS]
    assert all(torch.equal(changed[0], other) for other in changed[1:])
    assert changed[0].isfinite().all()
    assert (changed[0] - before).abs().max() > 1e-2
    if patch.pictures:
        assert right(host, flow, changed[0]) >= right(host, flow, before) / 2


def test_packs_leave_other_models_alone(
    host: Any, flows: dict[str, Flow], plain: dict[str, Tensor], loaded: set[str]
) -> None:
    """Several packs replace functions of the host; a MODEL that they have not patched is sampled as before."""
    for name, flow in flows.items():
        assert all(torch.equal(sampled(host, flow, sample, flow.model), plain[name]) for sample in WAYS)


def test_guidance_that_asks_for_the_negative(host: Any, flows: dict[str, Flow], loaded: set[str]) -> None:
    need(host, loaded, GUIDANCE, "PerturbedAttention")
    flow = flows["built-in: shapes-2rf"]
    (model,) = host.run("PerturbedAttention", model=flow.model, scale=0.5, rescale_mode="snf")
    ours, stock = (sampled(host, flow, sample, model, guidance=1.0) for sample in (instaflow, ksampler))
    assert torch.equal(ours, stock)


# --- packs that wrap or replace noise and samplers ---


@dataclass(frozen=True)
class Given:
    """A tensor as NOISE."""

    noise: Tensor
    seed: int = 0

    def generate_noise(self, latent: Any) -> Tensor:
        return self.noise


def test_tiles_side_by_side_are_pictures_of_their_own(host: Any, flows: dict[str, Flow], loaded: set[str]) -> None:
    need(host, loaded, "ComfyUI-TiledDiffusion", "TiledDiffusion")
    flow, noise = flows["built-in: shapes-2rf"], torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(3))
    size = {"tile_width": 64, "tile_height": 64, "tile_overlap": 0, "tile_batch_size": 2}
    (model,) = host.run("TiledDiffusion", model=flow.model, method="MultiDiffusion", **size)

    def picture(model: Any, noise: Tensor) -> Tensor:
        latent = empty(host, width=8 * noise.shape[-1], batch=1)
        settings = {"steps": flow.steps, "guidance": flow.guidance, "negative": encode(host, flow, "")}
        return instaflow(host, model, encode(host, flow, str(CAPTIONS[0])), latent, noise=Given(noise), **settings)

    halves = [picture(flow.model, half) for half in noise.split(8, dim=-1)]
    assert torch.allclose(picture(model, noise), torch.cat(halves, dim=-1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("sample", WAYS, ids=lambda way: way.__name__)
def test_evolved_sampling(
    host: Any, flows: dict[str, Flow], plain: dict[str, Tensor], loaded: set[str], sample: Any
) -> None:
    """AnimateDiff's wrapper around the sampler, without a motion model: its context windows, and its noise."""
    need(host, loaded, "ComfyUI-AnimateDiff-Evolved", "ADE_UseEvolvedSampling")
    flow, before = flows["built-in: shapes-2rf"], plain["built-in: shapes-2rf"]

    def evolved(**options: Any) -> Any:
        return host.run("ADE_UseEvolvedSampling", model=flow.model, beta_schedule="autoselect", **options)[0]

    assert torch.equal(sampled(host, flow, sample, evolved()), before)
    window = {"context_length": 1, "context_stride": 1, "context_overlap": 0}
    (one_by_one,) = host.run("ADE_StandardUniformContextOptions", **window)
    in_windows = sampled(host, flow, sample, evolved(context_options=one_by_one))
    assert torch.allclose(in_windows, before, rtol=0, atol=1e-3)
    noise = {"batch_offset": 0, "noise_type": "constant", "seed_gen": "comfy", "seed_offset": 2}
    (settings,) = host.run("ADE_AnimateDiffSamplingSettings", **noise)
    positive, options = encode(host, flow, str(CAPTIONS[0])), {"steps": flow.steps, "negative": None}
    first, second = sample(host, evolved(sample_settings=settings), positive, empty(host), seed=3, **options)
    assert torch.equal(first, second)
    assert torch.equal(first, sample(host, flow.model, positive, empty(host), seed=5, **options)[0])


def test_noise_as_a_latent(host: Any, flows: dict[str, Flow], plain: dict[str, Tensor], loaded: set[str]) -> None:
    """ComfyUI_Noise puts noise into a latent; half-way along the flow it is the noise KSamplerAdvanced adds itself."""
    need(host, loaded, "ComfyUI_Noise", "BNK_InjectNoise")
    flow, latent = flows["built-in: shapes-2rf"], {"samples": plain["built-in: shapes-2rf"][:2]}
    steps = {"sampler_name": "euler", "scheduler": "simple", "steps": 4, "start_at_step": 2, "end_at_step": 4}
    (span,) = host.run("BNK_GetSigma", model=flow.model, **steps)
    assert float(span) == pytest.approx(0.5 / 0.18215, rel=1e-5)
    (noise,) = host.run("BNK_NoisyLatentImage", source="CPU", seed=3, width=64, height=64, batch_size=2)
    # The flow at t = 1/2 is (picture + noise) / 2: as much noise as the whole way has, GetSigma's being half of it.
    (noised,) = host.run("BNK_InjectNoise", latents=latent, strength=2 * float(span), noise=noise)
    rest = {"model": flow.model, "positive": encode(host, flow, str(CAPTIONS[0])), "negative": encode(host, flow, "")}
    rest |= {"cfg": 1.5, "noise_seed": 3, "return_with_leftover_noise": "disable", **steps}
    (injected,) = host.run("KSamplerAdvanced", add_noise="disable", latent_image=noised, **rest)
    (stock,) = host.run("KSamplerAdvanced", add_noise="enable", latent_image=latent, **rest)
    assert torch.allclose(injected["samples"], stock["samples"], rtol=0, atol=1e-3)


def test_another_packs_euler_is_the_hosts(
    host: Any, flows: dict[str, Flow], plain: dict[str, Tensor], loaded: set[str]
) -> None:
    """Up to its last thousandth: from there it takes a flow's output to be noise minus data, as the host's own are."""
    need(host, loaded, "RES4LYF", "ClownSampler_Beta")
    flow, before = flows["built-in: shapes-2rf"], plain["built-in: shapes-2rf"]
    (sampler,) = host.run("ClownSampler_Beta", eta=0.0, sampler_name="linear/euler", seed=3, bongmath=False)
    ours = sampled(host, flow, custom_advanced, flow.model, sampler=sampler)
    assert (ours - before).abs().mean() < 0.01 * before.std()


@pytest.mark.parametrize("sampler_name", ["multistep/res_2m", "exponential/res_2s"])
@pytest.mark.parametrize("scheduler", ["beta57", "bong_tangent"])
def test_another_packs_ksampler(
    host: Any,
    flows: dict[str, Flow],
    plain: dict[str, Tensor],
    loaded: set[str],
    sampler_name: str,
    scheduler: str,
) -> None:
    """Its own noise, schedules and solvers, with noise added back at each step as it does for the host's own flows."""
    need(host, loaded, "RES4LYF", "ClownsharKSampler_Beta")
    flow, before = flows["built-in: shapes-2rf"], plain["built-in: shapes-2rf"]

    def sample(host: Any, model: Any, positive: Any, latent: Any, *, guidance: float, **settings: Any) -> Tensor:
        settings |= {"sampler_name": sampler_name, "scheduler": scheduler, "cfg": guidance, "eta": 0.5, "denoise": 1.0}
        settings |= {"steps_to_run": -1, "sampler_mode": "standard", "bongmath": True}
        inputs = {"model": model, "positive": positive, "latent_image": latent}
        return host.run("ClownsharKSampler_Beta", **inputs, **settings)[0]["samples"].float()

    ours = sampled(host, flow, sample, flow.model, steps=8)
    assert ours.isfinite().all()
    assert right(host, flow, ours) >= right(host, flow, before) / 2
