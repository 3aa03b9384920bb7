"""Few-step models on the real host: loaded by their rows, one step of every sampler node is their authors'."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from authors import ONE, Ask, relative_distance, scheduled
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from samplers import custom_advanced, instaflow, ksampler
from small_models import save_unet, small_checkpoint
from torch import Tensor

from instaflow_core.rules import RULES
from instaflow_core.text import encode_prompts
from instaflow_core.weights.checkpoint import load
from instaflow_core.weights.modules import build_text_encoder, build_unet
from instaflow_core.weights.saving import save, save_folder, single_file

PROMPT, SEED, SCALE = "a red star", 3, 0.18215
SILENT = "silent-row.safetensors"
pytestmark = pytest.mark.usefixtures("silent")
DIFFUSIONS = [name for name, rule in RULES.items() if rule.diffusion]


@pytest.fixture(scope="module")
def silent(host: Any, models: Path) -> Path:
    """A random checkpoint that says nothing of what its UNet predicts, as a file and as a UNet alone."""
    checkpoint = small_checkpoint("teacher", "epsilon", seed=5)
    path = models / "checkpoints" / SILENT
    save(checkpoint, path)
    with safe_open(path, "pt") as file:
        configs = {key: value for key, value in file.metadata().items() if key.endswith("_config")}
    save_file(single_file(checkpoint), path, configs)
    config = {"instaflow.unet_config": configs["instaflow.unet_config"]}
    save_file(checkpoint.unet, models / "diffusion_models" / SILENT, config)
    return path


@pytest.fixture(scope="module")
def ask(silent: Path) -> Ask:
    checkpoint = small_checkpoint("teacher", "epsilon", seed=5)
    unet, states = build_unet(checkpoint), encode_prompts(build_text_encoder(checkpoint), [PROMPT])

    @torch.no_grad()
    def asked(x: Tensor, t: float) -> Tensor:
        return unet(x, float(t), encoder_hidden_states=states.expand(len(x), -1, -1), return_dict=False)[0]

    return asked


def loaded(host: Any, rule: str, **more: Any) -> tuple[Any, Any]:
    """MODEL and prompt by the row."""
    model, clip, _ = host.run("InstaFlowLoadCheckpoint", checkpoint=SILENT, weight_dtype="fp32", rule=rule, **more)
    return model, host.run("CLIPTextEncode", clip=clip, text=PROMPT)[0]


def empty(host: Any, batch: int = 2) -> Any:
    return host.run("EmptyLatentImage", width=64, height=64, batch_size=batch)[0]


def noise(batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(SEED))


def samplers_seed() -> int:
    """The seed the host's samplers draw from on the CPU: KSampler's own, and on newer hosts the next."""
    import comfy.k_diffusion.sampling

    theirs = comfy.k_diffusion.sampling.default_noise_sampler(noise(), seed=SEED)(1.0, 0.5)
    return SEED if torch.equal(theirs, noise()) else SEED + 1


def stock_advanced(host: Any, model: Any, positive: Any, latent: Any, *, seed: int, steps: int) -> Tensor:
    """SamplerCustomAdvanced with the stock BasicScheduler."""
    (guider,) = host.run("BasicGuider", model=model, conditioning=positive)
    (drawn,) = host.run("RandomNoise", noise_seed=seed)
    (sampler,) = host.run("KSamplerSelect", sampler_name="euler")
    (sigmas,) = host.run("BasicScheduler", model=model, scheduler="simple", steps=steps, denoise=1.0)
    parts = {"noise": drawn, "guider": guider, "sampler": sampler, "sigmas": sigmas}
    return host.run("SamplerCustomAdvanced", latent_image=latent, **parts)[0]["samples"]


WAYS: dict[str, Callable[..., Tensor]] = {
    "KSampler": ksampler,
    "KSampler, normal": partial(ksampler, scheduler="normal"),
    "KSampler, lcm, karras": partial(ksampler, scheduler="karras", sampler_name="lcm"),
    "SamplerCustomAdvanced": stock_advanced,
    "SamplerCustomAdvanced, InstaFlowScheduler": custom_advanced,
    "InstaFlowSampler": instaflow,
}


# The windows of a PeRFlow begin at the levels of `simple`, and are gone through by Euler steps.
STARTS_ELSEWHERE = ("KSampler, normal", "KSampler, lcm, karras")


@pytest.mark.parametrize(
    ("name", "way"),
    [(name, way) for name in RULES for way in WAYS if not (RULES[name].windows and way in STARTS_ELSEWHERE)],
)
def test_one_step_is_the_authors(host: Any, ask: Ask, name: str, way: str) -> None:
    model, positive = loaded(host, name)
    samples = WAYS[way](host, model, positive, empty(host), seed=SEED, steps=max(1, RULES[name].windows))
    assert relative_distance(SCALE * samples, ONE[name](ask, noise())) < 1e-5


def test_a_unet_alone_is_loaded_by_its_row(host: Any, ask: Ask) -> None:
    positive = loaded(host, "dmd2")[1]
    (model,) = host.run("InstaFlowLoadUNet", unet_name=SILENT, weight_dtype="fp32", rule="dmd2")
    samples = ksampler(host, model, positive, empty(host), seed=SEED)
    assert relative_distance(SCALE * samples, ONE["dmd2"](ask, noise())) < 1e-5


@pytest.mark.parametrize("steps", [2, 4, 5])
@pytest.mark.parametrize("way", ["KSampler", "InstaFlowSampler"])
@pytest.mark.parametrize("name", ["rectified-diffusion", "rectified-diffusion-phased", "hyper-sd", "tcd"])
def test_euler_and_simple_are_the_authors_steps(host: Any, ask: Ask, name: str, way: str, steps: int) -> None:
    model, positive = loaded(host, name)
    samples = WAYS[way](host, model, positive, empty(host), seed=SEED, steps=steps)
    assert relative_distance(SCALE * samples, scheduled(name, ask, noise(), steps)) < 1e-5


@pytest.mark.parametrize("steps", [2, 4])
@pytest.mark.parametrize("scheduler", ["lcm", "tcd of gamma 1"])
def test_lcm_and_simple_are_the_authors_steps(host: Any, ask: Ask, scheduler: str, steps: int) -> None:
    """The scheduler is given the noise the host's sampler draws."""
    model, positive = loaded(host, scheduler.split()[0])
    samples = ksampler(host, model, positive, empty(host), seed=SEED, steps=steps, sampler_name="lcm")
    drawn = torch.Generator().manual_seed(samplers_seed())
    assert relative_distance(SCALE * samples, scheduled(scheduler, ask, noise(), steps, drawn)) < 1e-5
    if scheduler == "lcm":
        assert torch.equal(instaflow(host, model, positive, empty(host), seed=SEED, steps=steps), samples)


@pytest.mark.parametrize("name", DIFFUSIONS)
@pytest.mark.parametrize("denoise", [0.5, 0.8])
def test_part_of_the_way_is_ksamplers(host: Any, name: str, denoise: float) -> None:
    model, positive = loaded(host, name)
    picture = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(9)) / SCALE}
    ours = instaflow(host, model, positive, picture, steps=2, denoise=denoise)
    sampler = RULES[name].sampler
    assert torch.equal(ours, ksampler(host, model, positive, picture, steps=2, denoise=denoise, sampler_name=sampler))
    assert torch.equal(instaflow(host, model, positive, picture, denoise=0.0), picture["samples"])


@pytest.mark.parametrize("name", DIFFUSIONS)
@pytest.mark.parametrize(
    "scheduler", ["simple", "normal", "karras", "exponential", "sgm_uniform", "ddim_uniform", "beta"]
)
def test_stock_schedulers_begin_at_the_rows_start(host: Any, name: str, scheduler: str) -> None:
    model, _ = loaded(host, name)
    sampling = model.get_model_object("model_sampling")
    (sigmas,) = host.run("BasicScheduler", model=model, scheduler=scheduler, steps=4, denoise=1.0)
    assert sigmas.isfinite().all() and (sigmas.diff() <= 0).all()
    if scheduler != "ddim_uniform":  # ends at the first timestep and does not say where it begins
        assert sampling.timestep(sigmas[0]).item() == RULES[name].diffusion.start


def test_guidance_is_the_hosts(host: Any, ask: Ask) -> None:
    model, positive = loaded(host, "rectified-diffusion")
    checkpoint = load(host.base / "models" / "checkpoints" / SILENT, rule="rectified-diffusion")
    assert checkpoint.guidance == 1.5
    clip = host.run("InstaFlowLoadCheckpoint", checkpoint=SILENT, weight_dtype="fp32")[1]
    (negative,) = host.run("CLIPTextEncode", clip=clip, text="blurry")
    settings = {"negative": negative, "seed": SEED, "steps": 2, "guidance": 1.5}
    guided = instaflow(host, model, positive, empty(host), **settings)
    assert torch.equal(guided, ksampler(host, model, positive, empty(host), **settings))
    with pytest.raises(ValueError, match="nothing is connected to `negative`"):
        instaflow(host, model, positive, empty(host), guidance=1.5)


# --- said, found, refused ---


def test_a_saved_model_keeps_its_row(host: Any) -> None:
    for name in ("sid-lsg", "perflow"):
        model, _ = loaded(host, name)
        saved = host.run("InstaFlowSaveCheckpoint", model=model, filename_prefix=f"checkpoints/{name}")
        path = next(Path(host.base / "output" / "checkpoints").glob(f"{name}*.safetensors"))
        assert load(path).rule is RULES[name], saved


def test_a_row_that_another_node_took_away_is_not_saved(host: Any) -> None:
    model, _ = loaded(host, "lcm")
    (plain,) = host.run("ModelSamplingDiscrete", model=model, sampling="eps", zsnr=False)
    host.run("InstaFlowSaveCheckpoint", model=plain, filename_prefix="checkpoints/plain-again")
    found = load(next(Path(host.base / "output" / "checkpoints").glob("plain-again*.safetensors")))
    assert (found.rule, found.prediction) == (None, "epsilon")


def test_a_row_and_another_prediction(host: Any) -> None:
    with pytest.raises(ValueError, match=r"The rule dmd2 is for a UNet that predicts epsilon.*said to be v"):
        loaded(host, "dmd2", prediction="v")


def test_a_row_for_another_file(host: Any) -> None:
    with pytest.raises(ValueError, match=r"one-step.safetensors predicts velocity .* the rule lcm is for"):
        host.run("InstaFlowLoadCheckpoint", checkpoint="one-step.safetensors", weight_dtype="fp32", rule="lcm")


def test_a_scheduler_says_the_row(host: Any, models: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = load(models / "checkpoints" / SILENT, rule="lcm")
    save_folder(checkpoint, models / "diffusers" / "a-consistent-one")
    unet = models / "diffusers" / "a-consistent-one" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(unet), unet, {"format": "pt"})
    model = host.run("InstaFlowLoadCheckpoint", checkpoint="a-consistent-one", weight_dtype="fp32")[0]
    assert model.get_model_object("model_sampling").rule.name == "lcm"
    assert "taken for" not in caplog.text


def test_a_name_that_says_the_row_is_told(host: Any, models: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = small_checkpoint("teacher", "epsilon")
    save_unet(checkpoint, models / "diffusion_models" / "my_DMD2.v1.safetensors")
    with caplog.at_level(logging.WARNING):
        (model,) = host.run("InstaFlowLoadUNet", unet_name="my_DMD2.v1.safetensors", weight_dtype="fp32")
    assert model.get_model_object("model_sampling").rule.name == "dmd2"
    assert "my_DMD2.v1.safetensors is taken for a model of the rule dmd2, by what it is called" in caplog.text


def test_flow_nodes_refuse_another_row(host: Any) -> None:
    model, positive = loaded(host, "dmd2")
    with pytest.raises(ValueError, match="`model` is not an InstaFlow"):
        host.run("InstaFlowInvert", model=model, positive=positive, latent_image=empty(host), steps=2)
