"""The stock ControlNet nodes on an InstaFlow, next to the paper's equations on diffusers' ControlNetModel and UNet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from samplers import instaflow, ksampler
from small_control import install_pair, new_pair
from torch import Tensor

PROMPT, NEGATIVE = "a red circle on a blue background", "blurry"
VAE_SCALE = 0.18215
TOLERANCE = 1e-5
STRENGTH = 0.8
WIDTH, HEIGHT = 128, 64


@dataclass(frozen=True)
class Pair:
    """diffusers' UNet and ControlNet, and the same two as the host has loaded them."""

    unet: Any
    controlnet: Any
    model: Any
    clip: Any
    control_net: Any


@pytest.fixture(scope="module")
def pair(host: Any) -> Pair:
    unet, controlnet = new_pair()
    install_pair(host.base / "models", unet, controlnet)
    model, clip, _ = host.run("InstaFlowLoadCheckpoint", checkpoint="sd15_narrow", weight_dtype="fp32")
    (control_net,) = host.run("ControlNetLoader", control_net_name="narrow.safetensors")
    return Pair(unet, controlnet, model, clip, control_net)


def hint() -> Tensor:
    """A control picture as an IMAGE (1, HEIGHT, WIDTH, 3)."""
    return torch.rand(1, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(5)).round()


def conditions(host: Any, pair: Pair, start: float = 0.0, end: float = 1.0, control_net: Any = None) -> tuple[Any, Any]:
    """The positive and the negative conditioning with the pair's ControlNet applied, or another one."""
    positive, negative = (host.run("CLIPTextEncode", clip=pair.clip, text=t)[0] for t in (PROMPT, NEGATIVE))
    return host.run(
        "ControlNetApplyAdvanced",
        positive=positive,
        negative=negative,
        control_net=pair.control_net if control_net is None else control_net,
        image=hint(),
        strength=STRENGTH,
        start_percent=start,
        end_percent=end,
    )


def empty(host: Any) -> dict[str, Tensor]:
    return host.run("EmptyLatentImage", width=WIDTH, height=HEIGHT, batch_size=1)[0]


@torch.no_grad()
def controlled_loop(pair: Pair, seed: int, steps: int, guidance: float, text: Tensor, away: Tensor) -> Tensor:
    """N equal Euler steps of the guided velocity, ControlNet and UNet both asked at 1000 (1 - i / N)."""
    x = torch.randn(1, 4, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(seed))
    for i in range(steps):
        velocity = controlled_velocity(pair, x, 1000 * (1 - i / steps), text)
        if guidance > 1:
            negative = controlled_velocity(pair, x, 1000 * (1 - i / steps), away)
            velocity = negative + guidance * (velocity - negative)
        x = x + velocity / steps
    return x


def controlled_velocity(pair: Pair, x: Tensor, timestep: float, text: Tensor) -> Tensor:
    down, middle = pair.controlnet(
        x,
        timestep,
        encoder_hidden_states=text,
        controlnet_cond=hint().movedim(-1, 1),
        conditioning_scale=STRENGTH,
        return_dict=False,
    )
    return pair.unet(
        x,
        timestep,
        encoder_hidden_states=text,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
        return_dict=False,
    )[0]


@pytest.mark.parametrize("sample", [instaflow, ksampler], ids=lambda way: way.__name__)
@pytest.mark.parametrize(("steps", "guidance"), [(1, 1.0), (4, 1.0), (4, 1.5)])
def test_as_the_equations_say(host: Any, pair: Pair, sample: Any, steps: int, guidance: float) -> None:
    positive, negative = conditions(host, pair)
    settings = {"negative": negative, "seed": 3, "steps": steps, "guidance": guidance}
    ours = sample(host, pair.model, positive, empty(host), **settings) * VAE_SCALE
    expected = controlled_loop(pair, 3, steps, guidance, positive[0][0], negative[0][0])
    print(f"error {(ours - expected).abs().max():.1e} (deviation {expected.std():.2f})")
    assert (ours - expected).abs().max() <= TOLERANCE
    (without,) = host.run("CLIPTextEncode", clip=pair.clip, text=PROMPT)
    plain = instaflow(host, pair.model, without, empty(host), seed=3, steps=steps) * VAE_SCALE
    assert (ours - plain).abs().max() > 0.1


@contextmanager
def times_asked(pair: Pair) -> Iterator[tuple[list[float], list[float]]]:
    """The timesteps the host's ControlNet and the host's UNet are called with, in order."""
    control: list[float] = []
    unet: list[float] = []
    hooks = [
        pair.control_net.control_model.register_forward_pre_hook(
            lambda _, args, kwargs: control.extend(kwargs["timesteps"].tolist()), with_kwargs=True
        ),
        pair.model.model.diffusion_model.register_forward_pre_hook(
            lambda _, args, kwargs: unet.extend(args[1].tolist()), with_kwargs=True
        ),
    ]
    try:
        yield control, unet
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_control_and_unet_see_the_same_time(host: Any, pair: Pair, steps: int) -> None:
    with times_asked(pair) as (control, unet):
        instaflow(host, pair.model, conditions(host, pair)[0], empty(host), steps=steps)
    assert control == unet
    assert control[0] == 1000.0
    assert control == pytest.approx([1000 * (1 - i / steps) for i in range(steps)])


def test_control_for_a_part_of_the_way(host: Any, pair: Pair) -> None:
    """start_percent and end_percent count the flow's time: from t = 0.25 to t = 0.5."""
    with times_asked(pair) as (control, unet):
        instaflow(host, pair.model, conditions(host, pair, 0.25, 0.5)[0], empty(host), steps=4)
    assert unet == [1000.0, 750.0, 500.0, 250.0]
    assert control == [750.0, 500.0]


def test_t2i_adapter(host: Any, pair: Pair) -> None:
    """An adapter looks at its picture alone, and what it says is added in the UNet's first half."""
    from diffusers import T2IAdapter

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        adapter = T2IAdapter(in_channels=3, channels=[64, 128, 256, 256], num_res_blocks=2, downscale_factor=8).eval()
    adapter.save_pretrained(host.base / "models" / "adapter")
    file = host.base / "models" / "controlnet" / "adapter.safetensors"
    file.hardlink_to(host.base / "models" / "adapter" / "diffusion_pytorch_model.safetensors")
    (loaded,) = host.run("ControlNetLoader", control_net_name=file.name)
    positive, _ = conditions(host, pair, control_net=loaded)
    ours = instaflow(host, pair.model, positive, empty(host), seed=3, steps=2) * VAE_SCALE

    x = torch.randn(1, 4, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        states = [STRENGTH * state for state in adapter(hint().movedim(-1, 1))]
        for timestep in (1000.0, 500.0):
            x = (
                x
                + 0.5
                * pair.unet(
                    x,
                    timestep,
                    encoder_hidden_states=positive[0][0],
                    down_intrablock_additional_residuals=[state.clone() for state in states],
                    return_dict=False,
                )[0]
            )
    print(f"error {(ours - x).abs().max():.1e} (deviation {x.std():.2f})")
    assert (ours - x).abs().max() <= TOLERANCE
    assert (ours - controlled_loop(pair, 3, 2, 1.0, positive[0][0], positive[0][0])).abs().max() > 1e-2
