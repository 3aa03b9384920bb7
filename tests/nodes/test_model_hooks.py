"""Every place where a node pack hooks into a MODEL's sampling, on our MODEL, through the host's own calls.

A hook here multiplies what it is handed by a factor. A factor of 1 leaves every bit as it was without the hook; another
changes the picture, by the same for our sampler and for the stock ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from samplers import WAYS, custom_advanced, instaflow, ksampler
from torch import Tensor

every_way = pytest.mark.parametrize("sample", WAYS, ids=lambda way: way.__name__)
Flow = tuple[Any, Any, Any]
Hook = Callable[[Any, float], None]


# --- the hooks: (MODEL, factor) ---


def cfg_function(model: Any, factor: float) -> None:
    def guide(args: dict[str, Any]) -> Tensor:
        text, away = args["cond_denoised"], args["uncond_denoised"]
        return args["input"] - (away + (text - away) * args["cond_scale"]) * factor

    model.set_model_sampler_cfg_function(guide)


def pre_cfg_function(model: Any, factor: float) -> None:
    model.set_model_sampler_pre_cfg_function(lambda args: [out * factor for out in args["conds_out"]])


def post_cfg_function(model: Any, factor: float) -> None:
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * factor)


def calc_cond_batch_function(model: Any, factor: float) -> None:
    from comfy.samplers import calc_cond_batch

    names = ("model", "conds", "input", "sigma", "model_options")
    model.set_model_sampler_calc_cond_batch_function(
        lambda args: [out * factor for out in calc_cond_batch(*(args[name] for name in names))]
    )


def unet_function_wrapper(model: Any, factor: float) -> None:
    model.set_model_unet_function_wrapper(
        lambda apply, args: apply(args["input"], args["timestep"], **args["c"]) * factor
    )


def denoise_mask_function(model: Any, factor: float) -> None:
    model.set_model_denoise_mask_function(lambda sigma, mask, extra_options: mask * factor)


def emb_patch(model: Any, factor: float) -> None:
    model.set_model_emb_patch(lambda emb, channels, options: emb * factor)


def features_patch(name: str, model: Any, factor: float) -> None:
    model.set_model_patch(lambda features, options: features * factor, name)


def output_block_patch(model: Any, factor: float) -> None:
    model.set_model_output_block_patch(lambda features, skipped, options: (features * factor, skipped * factor))


def attn_replace(name: str, model: Any, factor: float) -> None:
    from comfy.ldm.modules.attention import optimized_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
        return optimized_attention(query, key, value, options["n_heads"]) * factor

    model.set_model_patch_replace(attend, name, "middle", 0)


def object_patch(model: Any, factor: float) -> None:
    layer = model.get_model_object("diffusion_model.time_embed")
    plain = partial(type(layer).forward, layer)  # the class's own: a clone with another patch may be loaded
    model.add_object_patch("diffusion_model.time_embed.forward", lambda emb: plain(emb) * factor)


def wrapper(kind: str, model: Any, factor: float) -> None:
    def scaled(executor: Any, *args: Any, **kwargs: Any) -> Any:
        out = executor(*args, **kwargs)
        return [one * factor for one in out] if isinstance(out, list) else out * factor

    model.add_wrapper_with_key(kind, "a pack", scaled)


HOOKS: dict[str, Hook] = {
    hook.__name__: hook
    for hook in (
        cfg_function,
        pre_cfg_function,
        post_cfg_function,
        calc_cond_batch_function,
        unet_function_wrapper,
        denoise_mask_function,
        emb_patch,
        output_block_patch,
        object_patch,
    )
}
HOOKS |= {
    name: partial(features_patch, name)
    for name in ("input_block_patch", "input_block_patch_after_skip", "attn1_output_patch", "attn2_output_patch")
}
HOOKS |= {f"{name}_replace": partial(attn_replace, name) for name in ("attn1", "attn2")}
HOOKS |= {
    f"{kind}_wrapper": partial(wrapper, kind)
    for kind in (
        "outer_sample",
        "sampler_sample",
        "predict_noise",
        "calc_cond_batch",
        "apply_model",
        "diffusion_model",
    )
}


# --- the tests ---


def encode(host: Any, two_rf: Flow, text: str) -> Any:
    return host.run("CLIPTextEncode", clip=two_rf[1], text=text)[0]


def run(host: Any, two_rf: Flow, sample: Any, model: Any, guidance: float = 1.5) -> Tensor:
    """Two guided steps of two pictures, all but a corner masked in."""
    mask = torch.ones(1, 64, 64)
    mask[:, :16, :16] = 0
    (empty,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=2)
    (latent,) = host.run("SetLatentNoiseMask", samples=empty, mask=mask)
    conditioning = {"positive": encode(host, two_rf, "a red circle"), "negative": encode(host, two_rf, "blurry")}
    return sample(host, model, latent=latent, seed=3, steps=2, guidance=guidance, **conditioning)


def hooked(model: Any, hook: Hook, factor: float) -> Any:
    clone = model.clone()
    hook(clone, factor)
    return clone


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_hooks(host: Any, two_rf: Flow, hook: Hook) -> None:
    plain = run(host, two_rf, instaflow, two_rf[0])
    changed = [run(host, two_rf, sample, hooked(two_rf[0], hook, 0.7)) for sample in WAYS]
    assert (changed[0] - plain).abs().max() > 1e-2
    assert changed[0].isfinite().all()
    assert all(torch.equal(changed[0], other) for other in changed[1:])
    # The host subtracts from its input what a cfg function gives, so even a neutral one costs a rounding.
    rounding = 1e-4 if hook is cfg_function else 0.0
    for sample in WAYS:
        neutral = run(host, two_rf, sample, hooked(two_rf[0], hook, 1.0))
        assert torch.allclose(neutral, plain, rtol=0, atol=rounding)


@pytest.mark.parametrize("sample", [instaflow, ksampler], ids=lambda way: way.__name__)
def test_a_hook_may_ask_for_the_negative_without_guidance(host: Any, two_rf: Flow, sample: Any) -> None:
    """As guidance in a patch of its own does: at guidance 1 it gets what the host would have guided with."""
    model = two_rf[0].clone()

    def guide(args: dict[str, Any]) -> Tensor:
        return args["uncond_denoised"] + (args["cond_denoised"] - args["uncond_denoised"]) * 1.5

    model.set_model_sampler_post_cfg_function(guide, disable_cfg1_optimization=True)
    guided = run(host, two_rf, sample, model, guidance=1.0)
    assert torch.equal(guided, run(host, two_rf, sample, two_rf[0], guidance=1.5))
    assert (guided - run(host, two_rf, sample, two_rf[0], guidance=1.0)).abs().max() > 1e-2


def test_a_hook_may_draw_from_torchs_random_state(host: Any, two_rf: Flow) -> None:
    """The host seeds it before it samples: the same seed is the same picture, also with our sampler."""
    model = two_rf[0].clone()
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] + 0.1 * torch.randn(args["denoised"].shape))
    before = torch.random.get_rng_state()
    ours = run(host, two_rf, instaflow, model)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(ours, run(host, two_rf, ksampler, model))
    assert torch.equal(ours, run(host, two_rf, custom_advanced, model))


@every_way
def test_hooks_stay_through_our_nodes(host: Any, two_rf: Flow, sample: Any) -> None:
    """A node of ours after the patch, or before it: the same MODEL."""
    after = host.run("InstaFlowModelSampling", model=hooked(two_rf[0], post_cfg_function, 0.7))[0]
    before = hooked(host.run("InstaFlowModelSampling", model=two_rf[0])[0], post_cfg_function, 0.7)
    assert torch.equal(run(host, two_rf, sample, after), run(host, two_rf, sample, before))


def test_a_sampler_of_another_pack(host: Any, two_rf: Flow) -> None:
    """A function in the place of the host's samplers: it finds the flow's levels and steps as Euler does."""
    from comfy.samplers import KSAMPLER

    def euler(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, disable: Any) -> Tensor:
        assert float(model.inner_model.inner_model.model_sampling.sigma_max) == float(sigmas[0])
        for now, then in pairwise(sigmas):
            denoised = model(x, now * x.new_ones(len(x)), **extra_args)
            x = x + (x - denoised) / now * (then - now)
        return x

    def with_sampler(host: Any, model: Any, **inputs: Any) -> Tensor:
        return custom_advanced(host, model, sampler=KSAMPLER(euler), **inputs)

    ours = run(host, two_rf, with_sampler, two_rf[0])
    assert torch.allclose(ours, run(host, two_rf, ksampler, two_rf[0]), rtol=0, atol=1e-5)


def test_a_guider_of_another_pack(host: Any, two_rf: Flow) -> None:
    """A guider that guides by 1.0 at first and by 1.5 then, as schedules of guidance do."""
    from comfy.samplers import CFGGuider

    asked: list[float] = []

    class Scheduled(CFGGuider):
        def predict_noise(self, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            asked.append(float(timestep[0]))
            self.set_cfg(1.0 if asked[-1] == 1 else 1.5)
            return super().predict_noise(x, timestep, *args, **kwargs)

    def with_guider(host: Any, model: Any, *, positive: Any, negative: Any, **inputs: Any) -> Tensor:
        guider = Scheduled(model)
        guider.set_conds(positive, negative)
        return custom_advanced(host, model, positive=positive, negative=negative, guider=guider, **inputs)

    ours = run(host, two_rf, with_guider, two_rf[0])
    assert asked == [1.0, 0.5]
    for constant in (1.0, 1.5):
        assert (ours - run(host, two_rf, ksampler, two_rf[0], guidance=constant)).abs().max() > 1e-3
