"""The making of the built-in models, from nothing to the last, by a recipe of a few iterations."""

from pathlib import Path
from typing import Any

import pytest
import torch
from second_device import DEVICE, second_device
from torch import Tensor

from instaflow_core.shapes.making import stages
from instaflow_core.shapes.making.intended import meant_pictures
from instaflow_core.shapes.making.recipe import Recipe
from instaflow_core.training.config import LoopConfig

STAGES = ("autoencoder", "decoder", "outlines", "text-encoder", "teacher", "2rf", "distilled", "instaflow", "direct")


def tiny_recipe() -> Recipe:
    few = LoopConfig(iterations=1, learning_rate=1e-4, warmup=0)
    trainings = ("autoencoder", "decoder", "outlines", "text", "teacher", "reflow", "distill", "on_policy")
    sizes = {"pictures": 4, "busy_pictures": 4, "autoencoder_batch": 2, "text_batch": 2, "latents": 8, "batch": 4}
    triplets = {"reflow_triplets": 10, "distill_triplets": 10, "outlines_drawn": 8, "outlines_one_step": 8}
    return Recipe(teacher_steps=2, flow_steps=2, **sizes, **triplets, **dict.fromkeys(trainings, few))


def all_told(decoder: Any, latents: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
    """As `meant_pictures`, which can tell nothing from an untrained decoder."""
    meant_pictures(decoder, latents, texts)
    return torch.arange(len(latents)), torch.zeros(len(latents), 3, 64, 64, dtype=torch.uint8)


@pytest.mark.slow
def test_every_stage_is_made_once_on_one_device_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "meant_pictures", all_told)
    names = ("vae", "teacher", "two_rectified_flow", "instaflow", "direct")
    with second_device():
        making = stages.Making(tmp_path, tiny_recipe())
        made = {name: getattr(making, name)() for name in names}
        assert {p.device for module in made.values() for p in module.parameters()} == {making.device} == {DEVICE}
        weights = {name: module.cpu().state_dict() for name, module in made.items()}
    assert {path.stem for path in tmp_path.glob("*.safetensors")} == {*STAGES, "latents"}
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
