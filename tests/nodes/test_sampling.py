"""The sampling nodes on the real host, next to the host's own samplers."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from samplers import custom_advanced, instaflow, ksampler
from small_models import small_checkpoint
from torch import Tensor

from instaflow_core.weights.saving import save

PROMPT = "a red circle on a blue background"


def encode(host: Any, clip: Any, text: str = PROMPT) -> Any:
    return host.run("CLIPTextEncode", clip=clip, text=text)[0]


def picture(batch: int = 1) -> dict[str, Tensor]:
    """A LATENT that is not empty, 64x64 pixels."""
    return {"samples": torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(9)) / 0.18215}


# --- the same as the host's own nodes ---


@pytest.mark.parametrize("seed", [0, 3, 2**64 - 1])
@pytest.mark.parametrize("batch", [1, 2])
def test_one_step_is_ksamplers(host: Any, one_step: Any, seed: int, batch: int) -> None:
    positive = encode(host, one_step[1])
    (empty,) = host.run("EmptyLatentImage", width=64, height=96, batch_size=batch)
    ours = instaflow(host, one_step[0], positive, empty, seed=seed)
    assert torch.equal(ours, ksampler(host, one_step[0], positive, empty, seed=seed))
    assert ours.shape == (batch, 4, 12, 8)


@pytest.mark.parametrize(("steps", "denoise"), [(1, 0.5), (1, 0.2), (2, 0.5), (3, 0.75)])
def test_partial_denoise_is_ksamplers(host: Any, one_step: Any, steps: int, denoise: float) -> None:
    positive = encode(host, one_step[1])
    ours = instaflow(host, one_step[0], positive, picture(), steps=steps, denoise=denoise)
    assert torch.equal(ours, ksampler(host, one_step[0], positive, picture(), steps=steps, denoise=denoise))


def test_guided_steps_are_ksamplers(host: Any, two_rf: Any) -> None:
    positive, negative = encode(host, two_rf[1]), encode(host, two_rf[1], "blurry")
    ours = instaflow(host, two_rf[0], positive, picture(), negative=negative, steps=4, guidance=1.5)
    assert torch.equal(ours, ksampler(host, two_rf[0], positive, picture(), negative=negative, steps=4, guidance=1.5))


def test_batch_index_picks_the_noise_ksampler_picks(host: Any, one_step: Any) -> None:
    positive = encode(host, one_step[1])
    latent = picture(1) | {"batch_index": [2]}
    assert torch.equal(instaflow(host, one_step[0], positive, latent), ksampler(host, one_step[0], positive, latent))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_sampler_custom_advanced_with_our_scheduler(host: Any, two_rf: Any, guidance: float) -> None:
    model, clip, _ = two_rf
    positive, negative = encode(host, clip), encode(host, clip, "")
    settings = {"negative": negative, "seed": 5, "steps": 7, "guidance": guidance}
    ours = instaflow(host, model, positive, picture(), **settings)
    assert torch.equal(ours, custom_advanced(host, model, positive, picture(), **settings))


def test_connected_noise_replaces_the_seed(host: Any, one_step: Any) -> None:
    positive = encode(host, one_step[1])
    (noise,) = host.run("RandomNoise", noise_seed=5)
    ours = instaflow(host, one_step[0], positive, picture(), noise=noise, seed=1)
    assert torch.equal(ours, instaflow(host, one_step[0], positive, picture(), seed=5))


@pytest.fixture(scope="module")
def hosts_flow(host: Any, models: Path) -> Any:
    """two-rf's MODEL with the other sign, noise minus data, sampled as the host samples flows of its own."""
    checkpoint = small_checkpoint("2-rectified-flow", "epsilon", vae="kl", seed=1)
    negated = {name: -weight if name.startswith("conv_out.") else weight for name, weight in checkpoint.unet.items()}
    save(dataclasses.replace(checkpoint, unet=negated), models / "checkpoints" / "negated.safetensors")
    model, _, _ = host.run("InstaFlowLoadCheckpoint", checkpoint="negated.safetensors", weight_dtype="fp32")
    return host.run("ModelSamplingSD3", model=model, shift=1.0)[0]


@pytest.mark.parametrize("sampler", ["euler_ancestral", "heun", "dpmpp_2m", "uni_pc", "ddim", "res_multistep", "lcm"])
@pytest.mark.parametrize("scheduler", ["simple", "normal", "karras", "beta", "sgm_uniform", "ddim_uniform"])
def test_stock_samplers_and_schedulers_treat_it_as_a_flow_of_the_hosts(
    host: Any, two_rf: Any, hosts_flow: Any, sampler: str, scheduler: str
) -> None:
    positive = encode(host, two_rf[1])
    settings: dict[str, Any] = {"steps": 3, "denoise": 0.8, "sampler_name": sampler, "scheduler": scheduler}
    ours, theirs = (ksampler(host, model, positive, picture(), **settings) for model in (two_rf[0], hosts_flow))
    assert (ours - picture()["samples"]).abs().max() > 1e-2
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-4 * float(theirs.std()))


class Generators:
    """The states of an accelerator's random generators, in the place of `torch.cuda` or `torch.mps`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state: Any = "as the user left it"
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [self.state])
        monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: self.seed(states[0]))
        monkeypatch.setattr(torch.cuda, "manual_seed_all", self.seed)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        monkeypatch.setattr(torch.mps, "get_rng_state", lambda: self.state)
        monkeypatch.setattr(torch.mps, "set_rng_state", self.seed)
        monkeypatch.setattr(torch.mps, "manual_seed", self.seed)
        self.seeds: list[Any] = []

    def seed(self, state: Any) -> None:
        self.state = state
        self.seeds.append(state)


def test_sampling_leaves_torchs_random_state(host: Any, one_step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    positive, generators = encode(host, one_step[1]), Generators(monkeypatch)
    before = torch.random.get_rng_state()
    instaflow(host, one_step[0], positive, picture(), seed=4)
    assert torch.equal(before, torch.random.get_rng_state())
    assert 4 in generators.seeds, "the stand-in is not asked"
    assert generators.state == "as the user left it"


def test_sampling_leaves_nothing_to_an_accelerator_that_is_not_in_use(host: Any, one_step: Any) -> None:
    """`torch.manual_seed` keeps every seed, and the call stack it came from, for a device that may come later."""
    if torch.cuda.is_initialized():
        pytest.skip("CUDA is in use here")
    positive, waiting = encode(host, one_step[1]), list(torch.cuda._queued_calls)
    instaflow(host, one_step[0], positive, picture(), seed=4)
    assert torch.cuda._queued_calls == waiting


def test_drawing_noise_touches_no_generator_of_torchs(host: Any, pack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    generators, before = Generators(monkeypatch), torch.random.get_rng_state()
    pack.nodes.host.sampling.host_noise(picture(), 4)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not generators.seeds


# --- the convention ---


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 25, 30])
def test_the_grid_is_exact(host: Any, one_step: Any, steps: int) -> None:
    (sigmas,) = host.run("InstaFlowScheduler", model=one_step[0], steps=steps, denoise=1.0)
    exact = [float(Fraction(steps - i, steps)) for i in range(steps + 1)]
    assert sigmas.dtype == torch.float32
    assert torch.equal(sigmas, torch.tensor(exact, dtype=torch.float64).float())


@pytest.mark.parametrize(("steps", "denoise"), [(1, 0.5), (2, 0.4), (1, 1.0), (1, 0.0)])
def test_where_a_longer_grid_has_that_level_denoise_cuts_as_basic_scheduler(
    host: Any, one_step: Any, steps: int, denoise: float
) -> None:
    (ours,) = host.run("InstaFlowScheduler", model=one_step[0], steps=steps, denoise=denoise)
    (hosts,) = host.run("BasicScheduler", model=one_step[0], scheduler="simple", steps=steps, denoise=denoise)
    assert torch.equal(ours, hosts)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("denoise", [0.999, 0.9, 0.7, 0.51, 0.3, 0.01])
def test_denoise_is_where_the_path_starts(host: Any, one_step: Any, steps: int, denoise: float) -> None:
    (sigmas,) = host.run("InstaFlowScheduler", model=one_step[0], steps=steps, denoise=denoise)
    exact = [denoise * (steps - i) / steps for i in range(steps + 1)]
    assert torch.allclose(sigmas.double(), torch.tensor(exact, dtype=torch.float64), rtol=1e-6, atol=0)


def test_one_step_keeps_what_denoise_says(host: Any, one_step: Any) -> None:
    """From x_t = t x_1 + (1 - t) x_0, t = 1 - denoise: the more of the picture, the less noise."""
    positive, start = encode(host, one_step[1]), picture()["samples"]
    away = [
        (instaflow(host, one_step[0], positive, picture(), denoise=denoise) - start).square().mean().item()
        for denoise in (1.0, 0.9, 0.7, 0.51, 0.3)
    ]
    assert away == sorted(away, reverse=True)
    assert len(set(away)) == len(away)


@pytest.mark.parametrize("steps", [1, 7])
def test_the_unet_is_asked_at_1000_times_1_minus_t(host: Any, one_step: Any, steps: int) -> None:
    asked: list[Tensor] = []
    unet = one_step[0].model.diffusion_model
    hook = unet.register_forward_pre_hook(lambda _, args, kwargs: asked.append(args[1].clone()), with_kwargs=True)
    try:
        instaflow(host, one_step[0], encode(host, one_step[1]), picture(), steps=steps)
    finally:
        hook.remove()
    exact = torch.tensor([1000 * (steps - i) / steps for i in range(steps)], dtype=torch.float64)
    assert torch.cat(asked)[0] == 1000.0
    assert torch.allclose(torch.cat(asked).double(), exact, rtol=1e-7, atol=0)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0])
def test_guidance_up_to_1_does_nothing(host: Any, one_step: Any, guidance: float) -> None:
    positive = encode(host, one_step[1])
    ours = instaflow(host, one_step[0], positive, picture(), guidance=guidance)
    assert torch.equal(ours, instaflow(host, one_step[0], positive, picture()))


def test_no_denoise_returns_the_latent(host: Any, one_step: Any) -> None:
    ours = instaflow(host, one_step[0], encode(host, one_step[1]), picture(), denoise=0.0)
    assert torch.equal(ours, picture()["samples"])


def test_host_side_of_the_flow(host: Any, one_step: Any) -> None:
    sampling = one_step[0].get_model_object("model_sampling")
    x, noise, data = (torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(i)) for i in range(3))
    sigma = torch.tensor([0.25, 1.0])
    wide = sigma.view(2, 1, 1, 1)
    assert torch.allclose(sampling.calculate_denoised(sigma, noise, x), x + wide * noise)
    scaled = sampling.noise_scaling(sigma, noise, data)
    assert torch.allclose(scaled, wide * noise + (1 - wide) * data)
    assert torch.equal(sampling.noise_scaling(torch.tensor(1.0), noise, data), noise)
    assert torch.allclose(sampling.sigma(torch.tensor([250.0, 1000.0])), sigma)
    assert torch.equal(sampling.timestep(sigma), torch.tensor([250.0, 1000.0]))
    assert torch.equal(sampling.calculate_input(sigma, x), x)
    assert torch.allclose(sampling.inverse_noise_scaling(torch.tensor(0.5), x), 2 * x)
    assert [sampling.percent_to_sigma(p) for p in (0.0, 0.25, 1.0)] == [1.0, 0.75, 0.0]
    assert len(sampling.sigmas) == 1000
    assert (float(sampling.sigma_min), float(sampling.sigma_max)) == (pytest.approx(0.001), 1.0)
    assert not dict(sampling.named_buffers())


# --- what the host does around sampling ---


def test_noise_mask_keeps_the_rest(host: Any, one_step: Any) -> None:
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    (masked,) = host.run("SetLatentNoiseMask", samples=picture(), mask=mask)
    positive = encode(host, one_step[1])
    samples = instaflow(host, one_step[0], positive, masked, steps=2)
    assert torch.allclose(samples[:, :, 4:], picture()["samples"][:, :, 4:], atol=1e-4)
    assert (samples[:, :, :4] - picture()["samples"][:, :, :4]).abs().max() > 1
    assert torch.equal(samples, ksampler(host, one_step[0], positive, masked, steps=2))


def test_previews_and_progress(host: Any, two_rf: Any) -> None:
    import comfy.utils
    from comfy.cli_args import LatentPreviewMethod, args

    seen: list[tuple[int, int, Any]] = []
    before = args.preview_method, comfy.utils.PROGRESS_BAR_HOOK
    args.preview_method = LatentPreviewMethod.Latent2RGB
    comfy.utils.set_progress_bar_global_hook(
        lambda value, total, preview, node_id=None: seen.append((value, total, preview))
    )
    try:
        instaflow(host, two_rf[0], encode(host, two_rf[1]), picture(), steps=3)
    finally:
        args.preview_method = before[0]
        comfy.utils.set_progress_bar_global_hook(before[1])
    assert [(value, total) for value, total, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(preview[1].size == (8, 8) for _, _, preview in seen)


def test_interrupt_stops_and_leaves_the_host_usable(host: Any, two_rf: Any) -> None:
    import comfy.model_management as management

    positive = encode(host, two_rf[1])
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        instaflow(host, two_rf[0], positive, picture(), steps=3)
    assert instaflow(host, two_rf[0], positive, picture(), steps=3).isfinite().all()


def test_models_can_be_unloaded_in_between(host: Any, one_step: Any) -> None:
    import comfy.model_management as management

    model, clip, vae = one_step
    before = instaflow(host, model, encode(host, clip), picture())
    management.unload_all_models()
    assert not management.loaded_models()
    assert torch.equal(instaflow(host, model, encode(host, clip), picture()), before)
    assert host.run("VAEDecode", samples={"samples": before}, vae=vae)[0].isfinite().all()


def test_stock_sampling_patch_on_a_clone_does_not_leak(host: Any, one_step: Any) -> None:
    model, positive = one_step[0], encode(host, one_step[1])
    before = ksampler(host, model, positive, picture(), steps=2)
    (other,) = host.run("ModelSamplingDiscrete", model=model, sampling="eps", zsnr=False)
    assert not torch.equal(ksampler(host, other, positive, picture(), steps=2), before)
    assert torch.equal(ksampler(host, model, positive, picture(), steps=2), before)


def test_our_sampling_patch_on_a_clone_does_not_leak(host: Any, teacher: Any) -> None:
    model, positive = teacher[0], encode(host, teacher[1])
    before = ksampler(host, model, positive, picture(), steps=2)
    (flow,) = host.run("InstaFlowModelSampling", model=model)
    assert not torch.equal(instaflow(host, flow, positive, picture(), steps=2), before)
    assert torch.equal(ksampler(host, model, positive, picture(), steps=2), before)


def test_model_sampling_leaves_an_instaflow_what_it_is(host: Any, one_step: Any) -> None:
    (again,) = host.run("InstaFlowModelSampling", model=one_step[0])
    assert again.get_model_object("model_sampling").stage == "one-step"


@pytest.mark.parametrize(("start", "end", "acts"), [(0.0, 0.5, True), (0.2, 1.0, False)])
def test_at_one_step_ranges_that_begin_at_0_act(host: Any, one_step: Any, start: float, end: float, acts: bool) -> None:
    """As the help page says, and as in KSampler."""
    whole = encode(host, one_step[1])
    (ranged,) = host.run("ConditioningSetTimestepRange", conditioning=whole, start=start, end=end)
    ours = instaflow(host, one_step[0], ranged, picture())
    assert torch.equal(ours, ksampler(host, one_step[0], ranged, picture()))
    expected = instaflow(host, one_step[0], whole, picture())
    assert torch.equal(ours, expected if acts else torch.zeros_like(expected))


# --- errors: found, expected, what to do ---


def test_guidance_for_a_one_step_model(host: Any, one_step: Any) -> None:
    positive = encode(host, one_step[1])
    with pytest.raises(ValueError, match=r"`guidance` is 1.5, but `model` is a one-step.*Set guidance to 1.0"):
        instaflow(host, one_step[0], positive, picture(), guidance=1.5, negative=positive)


def test_guidance_without_negative(host: Any, two_rf: Any) -> None:
    with pytest.raises(ValueError, match=r"nothing is connected to `negative`.*or set guidance to 1.0"):
        instaflow(host, two_rf[0], encode(host, two_rf[1]), picture(), guidance=1.5)


@pytest.mark.parametrize("shape", [(1, 16, 8, 8), (1, 4, 1, 8, 8)])
def test_latent_of_another_model(host: Any, one_step: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"has the shape .* takes \(batch, 4, .*Empty Latent Image"):
        instaflow(host, one_step[0], encode(host, one_step[1]), {"samples": torch.zeros(shape)})


def test_zero_steps(host: Any, one_step: Any) -> None:
    with pytest.raises(ValueError, match="`steps` is 0; expected a whole number from 1 to"):
        instaflow(host, one_step[0], encode(host, one_step[1]), picture(), steps=0)


def test_a_diffusion_model_is_not_an_instaflow(host: Any, teacher: Any) -> None:
    with pytest.raises(ValueError, match=r"not an InstaFlow.*InstaFlow Model Sampling.*KSampler"):
        instaflow(host, teacher[0], encode(host, teacher[1]), picture())
    with pytest.raises(ValueError, match="not an InstaFlow"):
        host.run("InstaFlowScheduler", model=teacher[0], steps=1, denoise=1.0)
