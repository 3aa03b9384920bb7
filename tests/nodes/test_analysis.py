"""Straightness and the comparison on the real host."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def texts(host: Any, one_step: Any) -> tuple[Any, Any]:
    """The prompt and an empty negative."""
    return tuple(host.run("CLIPTextEncode", clip=one_step[1], text=text)[0] for text in (PROMPT, ""))


@pytest.fixture(scope="module")
def empty(host: Any) -> dict[str, Any]:
    return host.run("EmptyLatentImage", width=64, height=72, batch_size=1)[0]


def measured(host: Any, one_step: Any, texts: Any, empty: Any, **inputs: Any) -> tuple[float, torch.Tensor, str]:
    inputs = {"seed": 4, "samples": 2, "steps": 3} | inputs
    return host.run("InstaFlowStraightness", model=one_step[0], positive=texts[0], latent_image=empty, **inputs)


# --- InstaFlowStraightness ---


def test_straightness_is_that_of_the_hosts_own_steps(
    host: Any, pack: Any, one_step: Any, texts: Any, empty: Any
) -> None:
    """The same S from the states of the stock Euler sampler, caught on their way."""
    noise = pack.nodes.host.sampling.host_noise({"samples": torch.zeros(2, 4, 9, 8)}, 4)
    (sigmas,) = host.run("InstaFlowScheduler", model=one_step[0], steps=3, denoise=1.0)
    deviations = []
    for x_0 in noise.split(1):
        states = [x_0]
        for i in range(3):
            (here,) = host.run("BasicGuider", model=one_step[0], conditioning=texts[0])
            (sampler,) = host.run("KSamplerSelect", sampler_name="euler")
            fixed = pack.nodes.noise.FixedNoise(x_0, 0)
            out, _ = host.run(
                "SamplerCustomAdvanced",
                noise=fixed,
                guider=here,
                sampler=sampler,
                sigmas=sigmas[: i + 2],
                latent_image={"samples": torch.zeros_like(x_0)},
            )
            # Between steps the host divides a latent by 1 - sigma; at the end by nothing.
            scale = 1 - float(sigmas[i + 1]) if sigmas[i + 1] < 1 else 1.0
            states.append(out["samples"] * 0.18215 * scale)
        whole = states[-1] - states[0]
        deviations += [(whole - 3 * (b - a)).square().mean() for a, b in pairwise(states)]
    value, curve, report = measured(host, one_step, texts, empty)
    assert value == pytest.approx(float(torch.stack(deviations).mean()), rel=1e-3)
    assert curve.shape == (1, 512, 768, 3)
    assert 0 <= curve.min() < curve.max() <= 1
    in_time = torch.stack(deviations).view(2, 3).mean(0)
    assert f"S = {value:.4g} (0 is straight), over 2 paths of 3 steps" in report
    assert f"least straight at t = {(int(in_time.argmax()) + 0.5) / 3:.2g}" in report


def test_straightness_of_guided_paths(host: Any, two_rf: Any) -> None:
    """Guided towards the same text, paths are as they are; away from another, they are others."""
    positive, negative = (host.run("CLIPTextEncode", clip=two_rf[1], text=text)[0] for text in (PROMPT, "blurry"))
    (empty,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=1)
    plain, same, guided = (
        measured(host, two_rf, (positive,), empty, **inputs)[0]
        for inputs in (
            {},
            {"guidance": 1.5, "negative": positive},
            {"guidance": 1.5, "negative": negative},
        )
    )
    assert same == pytest.approx(plain, rel=1e-3)
    assert guided != pytest.approx(plain, rel=1e-3)


def test_straightness_depends_on_the_seed_alone(host: Any, one_step: Any, texts: Any, empty: Any) -> None:
    value, _, _ = measured(host, one_step, texts, empty)
    assert isinstance(value, float)
    assert measured(host, one_step, texts, empty)[0] == value
    assert measured(host, one_step, texts, empty, seed=5)[0] != value


def test_a_diffusion_model_has_no_straightness(host: Any, teacher: Any, texts: Any, empty: Any) -> None:
    with pytest.raises(ValueError, match="not an InstaFlow"):
        measured(host, teacher, texts, empty)


def test_straightness_can_be_interrupted(host: Any, one_step: Any, texts: Any, empty: Any) -> None:
    import comfy.model_management as management

    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        measured(host, one_step, texts, empty)
    assert measured(host, one_step, texts, empty)[0] > 0


# --- InstaFlowCompare ---


def compare(host: Any, one_step: Any, teacher: Any, texts: Any, latent: Any, **inputs: Any) -> tuple[Any, ...]:
    inputs = {"seed": 4, "teacher_steps": 6, "teacher_guidance": 5.0, "teacher_sampler": "dpmpp_2m"} | inputs
    return host.run(
        "InstaFlowCompare",
        model=one_step[0],
        teacher=teacher[0],
        positive=texts[0],
        negative=texts[1],
        latent_image=latent,
        vae=one_step[2],
        **inputs,
    )


def test_comparison_shows_both_pictures(host: Any, one_step: Any, teacher: Any, texts: Any, empty: Any) -> None:
    """Left what InstaFlow Sampler makes of the seed, right what KSampler makes of it, six times enlarged."""
    images, speed_up, *alone = compare(host, one_step, teacher, texts, empty)
    assert images.shape[0] == 1
    assert speed_up > 1
    (ours,) = host.run(
        "InstaFlowSampler",
        model=one_step[0],
        positive=texts[0],
        latent_image=empty,
        seed=4,
        steps=1,
        guidance=1.0,
        denoise=1.0,
    )
    (theirs,) = host.run(
        "KSampler",
        model=teacher[0],
        positive=texts[0],
        negative=texts[1],
        latent_image=empty,
        seed=4,
        steps=6,
        cfg=5.0,
        sampler_name="dpmpp_2m",
        scheduler="normal",
        denoise=1.0,
    )
    for number, latent in enumerate((ours, theirs)):
        (picture,) = host.run("VAEDecode", samples=latent, vae=one_step[2])
        left = 12 + number * (384 + 12)
        shown = images[0, 12 + 3 : 12 + 432 : 6, left + 3 : left + 384 : 6]
        assert torch.allclose(shown, picture[0], atol=1 / 255)
        assert torch.allclose(alone[number], picture, atol=1e-5)


def test_more_models_stand_beside_the_two(
    host: Any,
    pack: Any,
    one_step: Any,
    two_rf: Any,
    teacher: Any,
    texts: Any,
    empty: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is what its own sampler makes of the same noise, in the order of the sockets, whichever are connected."""
    shown, draw = list[str](), pack.nodes.comparison.labelled_row
    monkeypatch.setattr(
        pack.nodes.comparison, "labelled_row", lambda pictures, labels: shown.extend(labels) or draw(pictures, labels)
    )
    more = {"model_3": two_rf[0], "model_5": teacher[0], "model_6": one_step[0], "more_steps": 3, "more_guidance": 1.2}
    images, *_ = compare(host, one_step, teacher, texts, empty, teacher_steps=2, **more)
    assert [label.splitlines()[0] for label in shown] == [
        "InstaFlow, 1 step",
        "2 steps of dpmpp_2m",
        "model_3, 3 steps",
        "model_5, 2 steps of dpmpp_2m",
        "model_6, 1 step",
    ]
    assert all(float(label.splitlines()[1].removesuffix(" s")) > 0 for label in shown)
    flow = {"model": two_rf[0], "positive": texts[0], "negative": texts[1], "latent_image": empty, "seed": 4}
    (latent,) = host.run("InstaFlowSampler", steps=3, guidance=1.2, denoise=1.0, **flow)
    (picture,) = host.run("VAEDecode", samples=latent, vae=one_step[2])
    columns = [images[0, 15 : 12 + 432 : 6, 15 + left : 12 + left + 384 : 6] for left in range(0, 5 * 396, 396)]
    assert torch.allclose(columns[2], picture[0], atol=1 / 255)
    assert torch.equal(columns[1], columns[3]) and torch.equal(columns[0], columns[4])


def test_a_2_rectified_flow_in_few_guided_steps(host: Any, two_rf: Any, teacher: Any, texts: Any, empty: Any) -> None:
    """Left what InstaFlow Sampler makes of the same steps and guidance, enlarged six times."""
    inputs = {"steps": 4, "guidance": 1.5}
    images, *_ = compare(host, two_rf, teacher, texts, empty, teacher_steps=2, **inputs)
    (latent,) = host.run(
        "InstaFlowSampler",
        model=two_rf[0],
        positive=texts[0],
        negative=texts[1],
        latent_image=empty,
        seed=4,
        denoise=1.0,
        **inputs,
    )
    (picture,) = host.run("VAEDecode", samples=latent, vae=two_rf[2])
    assert torch.allclose(images[0, 15 : 12 + 432 : 6, 15 : 12 + 384 : 6], picture[0], atol=1 / 255)


def test_a_one_step_model_is_compared_without_guidance(
    host: Any, one_step: Any, teacher: Any, texts: Any, empty: Any
) -> None:
    with pytest.raises(ValueError, match=r"`guidance` is 1.5, but `model` is a one-step InstaFlow"):
        compare(host, one_step, teacher, texts, empty, guidance=1.5)


@pytest.mark.parametrize(("inputs", "label"), [({}, "InstaFlow, 1 step\n"), ({"steps": 4}, "InstaFlow, 4 steps\n")])
def test_the_label_says_the_steps_that_were_timed(
    host: Any,
    pack: Any,
    two_rf: Any,
    teacher: Any,
    texts: Any,
    empty: Any,
    monkeypatch: pytest.MonkeyPatch,
    inputs: dict[str, Any],
    label: str,
) -> None:
    shown = list[str]()
    draw = pack.nodes.comparison.labelled_row
    monkeypatch.setattr(
        pack.nodes.comparison, "labelled_row", lambda pictures, labels: shown.extend(labels) or draw(pictures, labels)
    )
    compare(host, two_rf, teacher, texts, empty, teacher_steps=2, **inputs)
    assert shown[0].startswith(label)


def test_one_row_for_each_latent(host: Any, one_step: Any, teacher: Any, texts: Any) -> None:
    (latent,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=2)
    images, *_ = compare(host, one_step, teacher, texts, latent, teacher_steps=2)
    assert images.shape[0] == 2
    assert not torch.equal(images[0], images[1])


def test_comparison_refuses_what_it_cannot_do(host: Any, one_step: Any, teacher: Any, texts: Any, empty: Any) -> None:
    with pytest.raises(ValueError, match="not an InstaFlow"):
        compare(host, teacher, one_step, texts, empty)
    with pytest.raises(ValueError, match=r"Unknown teacher_sampler 'magic'; expected one of euler"):
        compare(host, one_step, teacher, texts, empty, teacher_sampler="magic")


def test_a_teacher_of_another_architecture(host: Any, one_step: Any, texts: Any, empty: Any) -> None:
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD20({**one_step[0].model.model_config.unet_config, "num_head_channels": 32})
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    other = comfy.model_patcher.ModelPatcher(config.get_model({}, ""), load_device=cpu, offload_device=cpu)
    with pytest.raises(ValueError, match=r"`teacher` is a SD20.*Connect a Stable Diffusion 1.5 as `teacher`"):
        compare(host, one_step, (other,), texts, empty)


def test_loading_is_not_counted(pack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that holds either the UNet or the VAE: what a part costs is what it costs when its model is loaded."""
    clock, loaded = 0.0, ""

    def use(part: str, seconds: float) -> torch.Tensor:
        nonlocal clock, loaded
        clock += seconds + (100 if loaded != part else 0)
        loaded = part
        return torch.zeros(1)

    class Vae:
        def decode(self, samples: torch.Tensor) -> torch.Tensor:
            return use("VAE", 0.25)

    monkeypatch.setattr(pack.nodes.comparison.time, "perf_counter", lambda: clock)
    _, seconds = pack.nodes.comparison.stopwatch(Vae(), lambda steps: use("UNet", 0.5 * steps), 3)
    assert seconds == 1.75
