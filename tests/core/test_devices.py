"""On a machine with an accelerator no tensor of the CPU meets a module that was moved; `second_device` stands in."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from second_device import DEVICE, second_device
from torch import Tensor, nn

from instaflow_core.__main__ import main
from instaflow_core.flow.control import control
from instaflow_core.flow.inversion import invert
from instaflow_core.flow.solvers import time_grid
from instaflow_core.flow.straightness import flow_trajectory, straightness
from instaflow_core.shapes.making.anatomy import new_vae
from instaflow_core.training.loop import LoopConfig, fit
from instaflow_core.training.objectives import perceptual_loss

TEACHER = "built-in: shapes-teacher"


def test_the_second_device_refuses_what_a_real_one_refuses() -> None:
    with second_device():
        module, here = nn.Linear(3, 2).to("mps"), torch.ones(1, 3)
        there = here.to("mps")
        assert module(there).device == module.weight.device == DEVICE
        for mixed in (lambda: module(here), lambda: there + here, lambda: here[there.long()], lambda: here.add_(there)):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            np.asarray(there)
        # A number and indices may come from the CPU.
        assert (there * torch.tensor(2.0))[torch.tensor([0])].tolist() == [[2, 2, 2]]


def trained(folder: Path) -> nn.Module:
    """A module on the CPU after two steps where accelerate chooses, and a third one in a run that resumes them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Linear(3, 1)
    start = copy.deepcopy(module.state_dict())
    for steps in (2, 3):
        module.load_state_dict(start)
        config = LoopConfig(steps, learning_rate=1e-2, warmup=1, ema=0.5)
        fit(module, lambda step, _: torch.ones(2, 3) * step, lambda m, x: m(x).square().mean(), config, folder, True)
    assert module.weight.device == (DEVICE if torch.backends.mps.is_available() else torch.device("cpu"))
    return module.cpu()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="compares with the CPU what has a device of its own here")
def test_the_loop_trains_on_the_device_as_on_the_cpu(tmp_path: Path) -> None:
    here = trained(tmp_path / "here")
    with second_device():
        there = trained(tmp_path / "there")
    assert torch.equal(there.weight, here.weight) and torch.equal(there.bias, here.bias)


def test_the_mathematics_stays_on_the_device() -> None:
    with second_device():
        weight = torch.full((4, 4, 1, 1), 0.1, device="mps")

        def velocity(x: Tensor, t: float) -> Tensor:
            return nn.functional.conv2d(x, weight) * (1 + t)

        x, target = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to("mps")
        inverted = invert(velocity, x, 2, iterations=2)
        steered = control(velocity, x, target, 2, iterations=2, learning_rate=0.1)
        assert inverted.noise.device == inverted.residual.device == steered.x_1.device == steered.after.device == DEVICE
        assert straightness(flow_trajectory(velocity, x, time_grid(3)), time_grid(3)).value > 0
        # Its modules come from the CPU, and go where the latents are.
        distance = perceptual_loss(new_vae(0), nn.PairwiseDistance())
        assert distance(x, target).device == DEVICE


@pytest.mark.slow
def test_every_command_keeps_a_model_on_one_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a red star on a blue background\na green ring on a white background\n")
    making = ["--prompts", "prompts.txt", "--count", "4", "--steps", "2", "--guidance", "2", "--empty-share", "0.25"]
    training = ["--triplets", "set", "--batch-size", "2", "--iterations", "1"]
    lora = ["--method", "lora", "--rank", "2", "--precision", "bf16"]
    distilling = ["--on-policy", "1", "--gradient-checkpointing", "--out", "one-step.safetensors"]
    with second_device():
        for command in (
            ["generate", "--prompt", "a red star", "--batch-size", "2", "--out", "flow.png"],
            ["generate", "--prompt", "a red star", "--checkpoint", TEACHER, "--steps", "2", "--out", "teacher.png"],
            ["triplets", "--teacher", TEACHER, *making, "--dtype", "bf16", "--out", "set"],
            ["reflow", "--init", TEACHER, *training, *lora, "--out", "flow"],
            ["distill", "--init", "flow", *training, *distilling],
        ):
            assert main(command) == 0, command
