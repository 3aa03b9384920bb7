"""Inversion and control on the real host."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import ImageChops
from torch import Tensor

PROMPT = "a large red circle in the center on a white background"


@pytest.fixture(scope="module")
def positive(host: Any, shapes: Any) -> Any:
    return host.run("CLIPTextEncode", clip=shapes[1], text=PROMPT)[0]


def sample(host: Any, shapes: Any, positive: Any, latent: Any, **inputs: Any) -> dict[str, Tensor]:
    inputs = {"seed": 7, "steps": 1, "guidance": 1.0, "denoise": 1.0} | inputs
    return host.run("InstaFlowSampler", model=shapes[0], positive=positive, latent_image=latent, **inputs)[0]


@pytest.fixture(scope="module")
def made(host: Any, shapes: Any, positive: Any) -> dict[str, Tensor]:
    """A picture of the model's own, as a LATENT."""
    (empty,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=1)
    return sample(host, shapes, positive, empty)


def decoded(host: Any, shapes: Any, latent: Any) -> Tensor:
    return host.run("VAEDecode", samples=latent, vae=shapes[2])[0]


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * (a - b).square().mean().log10())


# --- InstaFlowInvert ---


@pytest.fixture(scope="module")
def inverted(host: Any, shapes: Any, positive: Any, made: Any) -> tuple[Any, ...]:
    return host.run("InstaFlowInvert", model=shapes[0], positive=positive, latent_image=made, steps=1)


def test_the_noise_gives_the_picture_back(host: Any, shapes: Any, positive: Any, made: Any, inverted: Any) -> None:
    noise, latent, _ = inverted
    again = sample(host, shapes, positive, latent, noise=noise)
    assert psnr(decoded(host, shapes, again), decoded(host, shapes, made)) > 30
    assert torch.equal(noise.generate_noise(made), latent["samples"])
    assert abs(float(latent["samples"].square().mean()) - 1) < 0.4
    custom = host.run(
        "SamplerCustomAdvanced",
        noise=noise,
        guider=host.run("BasicGuider", model=shapes[0], conditioning=positive)[0],
        sampler=host.run("KSamplerSelect", sampler_name="euler")[0],
        sigmas=host.run("InstaFlowScheduler", model=shapes[0], steps=1, denoise=1.0)[0],
        latent_image=made,
    )[0]
    assert torch.equal(custom["samples"], again["samples"])


def test_a_picture_out_of_a_batch(host: Any, shapes: Any, positive: Any, made: Any) -> None:
    """The noise goes with the very latent that was inverted, which says that it stood third."""
    third = made | {"batch_index": [2]}
    noise, latent, _ = host.run("InstaFlowInvert", model=shapes[0], positive=positive, latent_image=third, steps=1)
    assert latent["batch_index"] == [2]
    for start in (third, latent):
        again = sample(host, shapes, positive, start, noise=noise)
        assert psnr(decoded(host, shapes, again), decoded(host, shapes, made)) > 30
    latent, moved, _ = controlled(host, shapes, positive, third, made, iterations=1)
    assert moved.generate_noise(third).shape == (1, 4, 8, 8)


def test_the_error_is_reported(host: Any, shapes: Any, positive: Any, made: Any) -> None:
    kind = host.node("InstaFlowInvert")
    with torch.inference_mode():
        output = kind.EXECUTE_NORMALIZED(model=shapes[0], positive=positive, latent_image=made, steps=2)
    (text,) = output.ui.as_dict()["text"]
    assert text.startswith("Picture 1: error 0.0")
    assert "naively: " in text
    assert output.result[2] == text


def test_the_model_is_as_it_was(host: Any, shapes: Any, positive: Any, made: Any, inverted: Any) -> None:
    (empty,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=1)
    assert torch.equal(sample(host, shapes, positive, empty)["samples"], made["samples"])


def test_inversion_goes_through_the_models_patches(host: Any, pack: Any, shapes: Any, positive: Any, made: Any) -> None:
    """A patch on the output is in the velocity, and its gradient too."""
    patched = shapes[0].clone()
    patched.set_model_sampler_post_cfg_function(lambda args: 0.5 * args["denoised"])
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    linearize = pack.instaflow_core.flow.gradients.linearize

    def work(velocity: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        value, pull_back = linearize(velocity, x, 0.5)
        return value, pull_back(torch.ones_like(value))

    with torch.inference_mode():
        plain, changed = (
            pack.nodes.host.velocity.with_velocity(m, {"positive": positive}, 1.0, x, work, gradients=True)
            for m in (shapes[0], patched)
        )
    # v = (d - x) / (1 - t), so halving d makes v' = (v - x / (1 - t)) / 2, and the same with the gradient.
    assert torch.allclose(changed[0], (plain[0] - 2 * x) / 2, atol=1e-4)
    assert torch.allclose(changed[1], (plain[1] - 2) / 2, atol=1e-4)
    assert plain[1].abs().max() > 1e-3


def test_interrupting_leaves_the_host_usable(host: Any, shapes: Any, positive: Any, made: Any) -> None:
    import comfy.model_management as management

    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        host.run("InstaFlowInvert", model=shapes[0], positive=positive, latent_image=made, steps=1)
    assert sample(host, shapes, positive, made)["samples"].isfinite().all()


def test_a_latent_of_another_model(host: Any, shapes: Any, positive: Any) -> None:
    wrong = {"samples": torch.zeros(1, 16, 8, 8)}
    with pytest.raises(ValueError, match=r"takes \(batch, 4"):
        host.run("InstaFlowInvert", model=shapes[0], positive=positive, latent_image=wrong, steps=1)


# --- InstaFlowControl ---


def controlled(host: Any, shapes: Any, positive: Any, latent: Any, target: Any, **inputs: Any) -> tuple[Any, ...]:
    inputs = {"iterations": 8, "learning_rate": 0.1, "steps": 1} | inputs
    return host.run(
        "InstaFlowControl", model=shapes[0], positive=positive, latent_image=latent, target=target, **inputs
    )


def test_control_comes_nearer_and_its_noise_repeats_it(host: Any, shapes: Any, positive: Any, made: Any) -> None:
    (empty,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=1)
    latent, noise, _ = controlled(host, shapes, positive, empty, made)
    plain = sample(host, shapes, positive, empty, seed=0)

    def distance(other: Any) -> float:
        return float((other["samples"] - made["samples"]).square().mean())

    assert distance(latent) < distance(plain) / 2
    assert torch.allclose(sample(host, shapes, positive, empty, noise=noise)["samples"], latent["samples"], atol=1e-3)


def test_control_reports_the_distances(host: Any, shapes: Any, positive: Any, made: Any) -> None:
    """The last output, which any node that takes text can show, says what the console says."""
    (empty,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=2)
    with torch.inference_mode():
        output = host.node("InstaFlowControl").EXECUTE_NORMALIZED(
            model=shapes[0], positive=positive, latent_image=empty, target=made, iterations=3
        )
    latent, _, report = output.result
    assert output.ui.as_dict()["text"] == (report,)
    last = [float(line.rpartition(" ")[2]) for line in report.splitlines()]
    off = (latent["samples"] - made["samples"]) * 0.18215
    assert last == pytest.approx(off.square().mean((1, 2, 3)).tolist(), abs=1e-4)


def test_control_inside_a_mask(host: Any, shapes: Any, positive: Any, made: Any) -> None:
    """Two pictures, one target, the left half of them."""
    (empty,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=2)
    (start,) = host.run("InstaFlowSeedNoise", seed=3, draw="comfyui")
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    latent, noise, _ = controlled(host, shapes, positive, empty, made, mask=mask, noise=start)
    plain = sample(host, shapes, positive, empty, noise=start)
    left = [(x["samples"] - made["samples"])[..., :4].square().mean((1, 2, 3)) for x in (latent, plain)]
    assert (left[0] < left[1]).all()
    assert latent["samples"].shape == (2, 4, 8, 8)
    assert noise.seed == 3


@pytest.mark.parametrize("masks", [2, 3, 5])
def test_masks_of_another_number_are_used_again_or_left_out(pack: Any, masks: int) -> None:
    """As the host's samplers take a noise mask: a video's masks, or fewer."""
    painted = torch.arange(1.0, masks + 1).view(-1, 1, 1).expand(-1, 16, 16) / masks
    shares = pack.nodes.editing.latent_mask(painted, torch.Size([4, 4, 2, 2]))
    assert shares.shape == (4, 1, 2, 2)
    assert shares[:, 0, 0, 0].tolist() == pytest.approx([(i % masks + 1) / masks for i in range(4)])


def test_control_takes_fewer_masks_than_latents(host: Any, shapes: Any, positive: Any, made: Any) -> None:
    (empty,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=3)
    latent, _, _ = controlled(host, shapes, positive, empty, made, mask=torch.ones(2, 64, 64), iterations=1)
    assert latent["samples"].shape == (3, 4, 8, 8)


def test_control_can_be_interrupted(host: Any, shapes: Any, positive: Any, made: Any) -> None:
    import comfy.model_management as management

    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        controlled(host, shapes, positive, made, made)


def test_a_target_of_another_size(host: Any, shapes: Any, positive: Any, made: Any) -> None:
    with pytest.raises(ValueError, match=r"`target` has the shape \(1, 4, 8, 8\); `latent_image` has \(1, 4, 8, 9\)"):
        controlled(host, shapes, positive, {"samples": torch.zeros(1, 4, 8, 9)}, made)


# --- previews ---

# With each method of previews: whether the host has a picture to show.
METHODS = {"NoPreviews": False, "Auto": True, "Latent2RGB": True, "TAESD": True}


@pytest.fixture
def previews(
    host: Any, shapes: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[Any]]:
    """What the browser gets of a node, as (done, total, preview), with the host set to a method of previews."""
    import comfy.cli_args
    import comfy.utils
    import folder_paths
    import safetensors.torch

    path = host.base / "models" / "vae_approx" / "taesd_decoder.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(shapes[2].first_stage_model.taesd_decoder.state_dict(), path)
    folder_paths.filename_list_cache.clear()
    method = getattr(comfy.cli_args.LatentPreviewMethod, request.param)
    monkeypatch.setattr(comfy.cli_args.args, "preview_method", method)
    sent: list[Any] = []
    monkeypatch.setattr(
        comfy.utils,
        "PROGRESS_BAR_HOOK",
        lambda done, total, preview, node_id=None: sent.append((done, total, preview)),
    )
    yield sent
    path.unlink()  # other tests look for, or put, a decoder there


@pytest.mark.parametrize(("previews", "shown"), METHODS.items(), ids=METHODS, indirect=["previews"])
def test_control_shows_every_fifth_move_as_samplers_do(
    host: Any, shapes: Any, positive: Any, made: Any, previews: list[Any], shown: bool
) -> None:
    """At a move that is the best so far, it shows what the node gives out.

    A new host passes on fewer steps that have no picture; the first, the last and every picture come on all.
    """
    (empty,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=2)
    latent, _, _ = controlled(host, shapes, positive, empty, made, iterations=10)
    steps = [done for done, _, _ in previews]
    assert steps == sorted(set(steps)) and (steps[0], steps[-1]) == (1, 10)
    pictures = {done: preview for done, _, preview in previews if preview}
    assert list(pictures) == [5, 10] * shown
    if shown:
        import latent_preview

        kind, picture, _ = pictures[10]
        latents = shapes[0].get_model_object("latent_format").process_in(latent["samples"])
        with torch.inference_mode():
            expected = latent_preview.get_previewer(
                shapes[0].load_device, shapes[0].model.latent_format
            ).decode_latent_to_preview(latents)
        assert kind == "JPEG"
        assert max(high for _, high in ImageChops.difference(picture, expected).getextrema()) <= 1
        assert picture != pictures[5][1]


@pytest.mark.parametrize(("previews", "shown"), METHODS.items(), ids=METHODS, indirect=["previews"])
def test_invert_shows_the_picture_while_it_moves_the_noise(
    host: Any, shapes: Any, positive: Any, made: Any, previews: list[Any], shown: bool
) -> None:
    other = {"samples": made["samples"].flip(-1)}  # a picture that the prompt does not tell
    host.run("InstaFlowInvert", model=shapes[0], positive=positive, latent_image=other, steps=1)
    assert previews[-1][0] > 5
    assert bool([preview for _, _, preview in previews if preview]) == shown
    assert all(preview is None for done, _, preview in previews if done % 5)


# --- guidance, and the host's memory management ---


@pytest.fixture(scope="module")
def shapes_2rf(host: Any) -> Any:
    """The built-in 2-rectified flow, which is sampled with guidance."""
    return host.run("InstaFlowLoadCheckpoint", checkpoint="built-in: shapes-2rf", weight_dtype="fp32")


def test_guidance_is_part_of_the_path(host: Any, shapes_2rf: Any) -> None:
    """The noise gives back what the sampler draws at the same guidance; without it, another picture comes."""
    positive, negative = (host.run("CLIPTextEncode", clip=shapes_2rf[1], text=text)[0] for text in (PROMPT, ""))
    guided = {"steps": 2, "guidance": 1.5, "negative": negative}
    (empty,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=1)
    made = sample(host, shapes_2rf, positive, empty, **guided)
    errors = []
    for inputs in (guided, {"steps": 2}):
        found = host.run("InstaFlowInvert", model=shapes_2rf[0], positive=positive, latent_image=made, **inputs)
        again = sample(host, shapes_2rf, positive, found[1], noise=found[0], **guided)
        errors.append(float((again["samples"] - made["samples"]).square().mean().sqrt() * 0.18215))
    assert errors[0] < 0.05 < errors[1] / 2
    latent, noise, _ = controlled(host, shapes_2rf, positive, empty, made, **(guided | {"iterations": 2}))
    again = sample(host, shapes_2rf, positive, empty, noise=noise, **guided)
    assert torch.allclose(again["samples"], latent["samples"], atol=1e-3)


def test_guidance_acts_on_velocities_and_their_gradients(host: Any, pack: Any, two_rf: Any) -> None:
    positive, negative = (host.run("CLIPTextEncode", clip=two_rf[1], text=text)[0] for text in (PROMPT, "blurry"))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    linearize = pack.instaflow_core.flow.gradients.linearize

    def asked(guidance: float, **conditioning: Any) -> tuple[Tensor, Tensor]:
        def work(velocity: Any, x: Tensor) -> tuple[Tensor, Tensor]:
            value, pull_back = linearize(velocity, x, 0.5)
            return value, pull_back(torch.ones_like(value))

        with torch.inference_mode():
            return pack.nodes.host.velocity.with_velocity(two_rf[0], conditioning, guidance, x, work, gradients=True)

    text, away = asked(1.0, positive=positive), asked(1.0, positive=negative)
    guided = asked(1.7, positive=positive, negative=negative)
    for mixed, plain, other in zip(guided, text, away, strict=True):
        assert torch.allclose(mixed, other + 1.7 * (plain - other), rtol=0, atol=1e-3)
    assert (guided[0] - text[0]).abs().max() > 1e-2


@pytest.mark.parametrize("node", ["InstaFlowInvert", "InstaFlowControl", "InstaFlowStraightness"])
def test_guidance_that_cannot_be(host: Any, shapes: Any, two_rf: Any, positive: Any, made: Any, node: str) -> None:
    more = {"target": made} if node == "InstaFlowControl" else {}
    for model, message in ((shapes[0], "one-step InstaFlow"), (two_rf[0], "nothing is connected to `negative`")):
        with pytest.raises(ValueError, match=message):
            host.run(node, model=model, positive=positive, latent_image=made, guidance=1.5, **more)


@pytest.mark.parametrize("node", ["InstaFlowInvert", "InstaFlowControl"])
def test_weights_stay_where_they_are_between_a_velocity_and_its_gradient(
    host: Any, shapes: Any, positive: Any, made: Any, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    """A newer host's dynamic VRAM, stood in for, is asked to stay out."""
    model, asked = shapes[0].clone(), []
    monkeypatch.setattr(model, "is_dynamic", lambda: True, raising=False)
    monkeypatch.setattr(model, "cached_patcher_init", ("loader", ()), raising=False)

    def clone(disable_dynamic: bool = False) -> Any:
        asked.append(disable_dynamic)
        return shapes[0].clone()

    monkeypatch.setattr(model, "clone", clone)
    more = {"target": made, "iterations": 1} if node == "InstaFlowControl" else {}
    host.run(node, model=model, positive=positive, latent_image=made, **more)
    assert True in asked


# --- attention without a backward pass ---


def without_backward(function: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Attention as a kernel made for inference computes it: right, and unknown to autograd."""
    with torch.no_grad():
        return function(q, k, v, *args, **kwargs)


def moved(host: Any, model: Any, positive: Any, made: Any) -> Tensor:
    (target,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=1)
    return host.run(
        "InstaFlowControl",
        model=model,
        positive=positive,
        latent_image=made,
        target=target,
        iterations=3,
        learning_rate=0.1,
        steps=1,
    )[0]["samples"]


@pytest.mark.parametrize("name", ["attention_pytorch", "attention_split", "attention_sub_quad", "attention_basic"])
def test_every_attention_of_the_host_has_the_same_gradient(
    host: Any, shapes: Any, positive: Any, made: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As `--use-split-cross-attention` and its like choose it when the host starts."""
    from comfy.ldm.modules import attention

    expected = moved(host, shapes[0], positive, made)
    monkeypatch.setattr(attention, "optimized_attention", getattr(attention, name))
    torch.testing.assert_close(moved(host, shapes[0], positive, made), expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("chosen", ["when the host starts", "by a node"])
def test_attention_without_a_backward_pass_gives_way_to_one_that_has_it(
    host: Any, pack: Any, shapes: Any, positive: Any, made: Any, monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    from comfy.ldm.modules import attention

    expected, model = moved(host, shapes[0], positive, made), shapes[0].clone()
    if chosen == "by a node":
        model.model_options["transformer_options"]["optimized_attention_override"] = without_backward
    else:
        kernel = attention.wrap_attn(functools.partial(without_backward, attention.attention_pytorch))
        monkeypatch.setattr(attention, "optimized_attention", kernel)
    torch.testing.assert_close(moved(host, model, positive, made), expected)
    monkeypatch.setattr(pack.nodes.host.velocity, "with_gradients", lambda model: model)
    with pytest.raises(ValueError, match="computed in a way that has no gradient"):
        moved(host, model, positive, made)


def test_attention_that_a_patch_replaces_without_a_gradient_is_refused(
    host: Any, shapes: Any, positive: Any, made: Any
) -> None:
    from comfy.ldm.modules.attention import attention_pytorch

    def replaced(q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            return attention_pytorch(q, k, v, extra_options["n_heads"])

    model = shapes[0].clone()
    model.set_model_attn1_replace(replaced, "middle", 0)
    with pytest.raises(ValueError, match="Take that node out, or start ComfyUI with --use-pytorch-cross-attention"):
        moved(host, model, positive, made)
    modules = model.model.diffusion_model.modules()
    assert not any(module._forward_pre_hooks for module in modules)


def test_a_model_on_several_devices_is_asked_on_one(host: Any, pack: Any, shapes: Any) -> None:
    """Newer hosts split a batch over devices, in threads that keep nothing for a gradient."""
    model = shapes[0].clone()
    model.set_additional_models("multigpu", [shapes[0].clone()])
    model.set_additional_models("other", [shapes[0].clone()])
    model.remove_additional_models = lambda key: None  # hosts of before have no such models to remove
    plain = model.clone()
    plain.remove_additional_models = lambda key: plain.additional_models.pop(key, None)
    model.clone = lambda: plain
    assert set(pack.nodes.host.gradients.with_gradients(model).additional_models) == {"other"}


@pytest.mark.parametrize("weight_dtype", ["fp16", "bf16", "fp8_e4m3fn"])
def test_weights_that_each_layer_casts_give_the_same_moves(
    host: Any, shapes: Any, positive: Any, made: Any, weight_dtype: str
) -> None:
    """As `--fp16-unet` and its like keep them. What differs is what rounding the weights makes of a picture."""
    loaded = host.run("InstaFlowLoadCheckpoint", checkpoint="built-in: shapes", weight_dtype=weight_dtype)[0]
    rounded = host.run("InstaFlowLoadCheckpoint", checkpoint="built-in: shapes", weight_dtype="fp32")[0]
    with torch.no_grad():
        for name, weight in rounded.model.diffusion_model.state_dict().items():
            weight.copy_(loaded.model.diffusion_model.state_dict()[name].float())
    assert loaded.model.manual_cast_dtype is not None
    expected = moved(host, rounded, positive, made)
    torch.testing.assert_close(moved(host, loaded, positive, made), expected, atol=1e-3, rtol=1e-2)
