"""The making of the built-in models, from nothing to the last, by a recipe of a few iterations."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from instaflow_core.shapes.making import stages
from instaflow_core.shapes.making.decoder import DenoisedBatches
from instaflow_core.shapes.making.intended import meant_pictures
from instaflow_core.shapes.making.recipe import Recipe
from instaflow_core.training.batches import BatchPart
from instaflow_core.training.config import LoopConfig

STAGES = ("autoencoder", "decoder", "outlines", "text-encoder", "teacher", "2rf", "distilled", "instaflow", "direct")


def tiny_recipe() -> Recipe:
    few = LoopConfig(iterations=2, learning_rate=1e-4)
    trainings = ("autoencoder", "decoder", "outlines", "text", "teacher", "reflow", "distill", "on_policy")
    sizes = {"pictures": 4, "busy_pictures": 4, "autoencoder_batch": 2, "text_batch": 2, "latents": 8, "batch": 4}
    triplets = {"reflow_triplets": 10, "distill_triplets": 10, "outlines_drawn": 8, "outlines_one_step": 8}
    return Recipe(teacher_steps=2, flow_steps=2, **sizes, **triplets, **dict.fromkeys(trainings, few))


def all_told(decoder: Any, latents: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
    """As `meant_pictures`, which can tell nothing from an untrained decoder."""
    return torch.arange(len(latents)), torch.zeros(len(latents), 3, 64, 64, dtype=torch.uint8)


@pytest.mark.slow
def test_every_stage_is_made_once_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "meant_pictures", all_told)
    making = stages.Making(tmp_path, tiny_recipe(), "cpu")
    made = {name: getattr(making, name)() for name in ("vae", "teacher", "two_rectified_flow", "instaflow", "direct")}
    assert {path.stem for path in tmp_path.glob("*.safetensors")} == {*STAGES, "latents"}
    weights = {name: module.state_dict() for name, module in made.items()}
    assert all(torch.isfinite(tensor).all() for part in weights.values() for tensor in part.values())
    for later, earlier in (("two_rectified_flow", "teacher"), ("instaflow", "two_rectified_flow")):
        assert any(not torch.equal(t, weights[earlier][n]) for n, t in weights[later].items()), f"{later} was trained"

    def no_training(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(stages, "fit", no_training)
    again = stages.Making(tmp_path, tiny_recipe(), "cpu")
    for name, part in weights.items():
        for key, tensor in getattr(again, name)().state_dict().items():
            assert torch.equal(tensor, part[key]), (name, key)


class Elsewhere(nn.Module):
    """A module on another device that refuses what is not there; its answers, already brought back, are zeros."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight, self.shape = nn.Parameter(torch.empty(1, device="meta")), shape

    def forward(self, *inputs: Tensor, encoder_hidden_states: Tensor | None = None, return_dict: bool = True) -> Any:
        given = [*inputs, *([] if encoder_hidden_states is None else [encoder_hidden_states])]
        assert {tensor.device.type for tensor in given} == {"meta"}, "a tensor of the CPU met a module elsewhere"
        made = torch.zeros(len(inputs[0]), *self.shape)
        return made if return_dict else (made,)


@pytest.fixture
def any_autocast(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The device types autocast was asked for; the stand-in's is one that torch has none for."""
    asked: list[str] = []
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype: asked.append(kind) or torch.no_grad())
    return asked


def test_modules_on_another_device_are_given_tensors_of_theirs(any_autocast: list[str]) -> None:
    rows, pictures = meant_pictures(
        Elsewhere(3, 64, 64), torch.zeros(2, 4, 8, 8), ["a red star on a blue background"] * 2
    )
    assert len(rows) == len(pictures) == 0
    batches: Any = DenoisedBatches.__new__(DenoisedBatches)
    batches.teacher = Elsewhere(4, 8, 8)
    batches.schedule = stages.noise_schedule()
    batches.texts, batches.states = [""] * 6, lambda prompts: torch.zeros(len(prompts), 77, 64)
    batches.pictures, batches.latents = torch.zeros(6, 3, 64, 64, dtype=torch.uint8), torch.zeros(6, 4, 8, 8)
    batches.size, batches.seed = 4, 0
    shown, latents = batches(0, BatchPart(0, 1))
    assert shown.device.type == latents.device.type == "cpu"
    assert any_autocast == ["meta", "meta"]
