"""Sets of triplets, prompts and checkpoints of trainings from strangers: refused in words that name the file."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hostile_readings import harmless, refused
from hostile_sets import PROMPTS, SETS, STATES, new_set
from small_models import small_checkpoint
from watched import watched

from instaflow_core.training.config import LoopConfig
from instaflow_core.training.loop import fit
from instaflow_core.training.state import read_state, write_state
from instaflow_core.triplets.prompts import read_prompts
from instaflow_core.triplets.reading import SetReader
from instaflow_core.triplets.storage import Storage
from instaflow_core.triplets.writing import SetConfig, describe_set

SYSTEM = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes among its files")


@pytest.fixture(autouse=True)
def good(tmp_path: Path) -> Path:
    """A sound set and sound prompts, read before and after."""
    folder = tmp_path / "good"
    new_set(folder)
    (folder / "prompts.csv").write_text("text\na star\n")
    sound(folder)
    return folder


def sound(folder: Path) -> None:
    assert len(SetReader(Storage(folder)).read(range(8))) == 8
    assert read_prompts(str(folder / "prompts.csv"), 1) == ["a star"]


@SYSTEM
@pytest.mark.parametrize("name", SETS)
def test_a_set_that_lies_is_refused(name: str, good: Path, tmp_path: Path) -> None:
    change, says = SETS[name]
    folder = tmp_path / "hostile"
    new_set(folder)
    change(folder)
    size = sum(file.lstat().st_size for file in folder.iterdir())
    with watched() as seen, pytest.raises(ValueError, match=says) as caught:
        SetReader(Storage(folder)).read(range(8))
    refused(caught.value, str(folder))
    harmless(seen, folder, size)
    sound(good)


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_that_are_none_are_refused(name: str, good: Path, tmp_path: Path) -> None:
    make, says = PROMPTS[name]
    folder = tmp_path / "hostile"
    folder.mkdir()
    path = make(folder)
    with watched() as seen, pytest.raises(ValueError, match=says) as caught:
        read_prompts(str(path), 10)
    refused(caught.value, path.name)
    harmless(seen, folder, path.stat().st_size)
    sound(good)


@SYSTEM
@pytest.mark.parametrize("name", STATES)
def test_a_state_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    make, says = STATES[name]
    write_state({}, tmp_path / "warm.pt")
    with pytest.raises(ValueError):
        read_state(tmp_path / "warm.pt")
    folder = tmp_path / "run.training"
    folder.mkdir()
    path = folder / "state.pt"
    make(path)
    with watched() as seen, pytest.raises(ValueError, match=says) as caught:
        read_state(path)
    refused(caught.value, "state.pt")
    harmless(seen, folder, path.lstat().st_size)


@pytest.mark.parametrize("part", ["trained", "average", "optimizer", "schedule", "by_time"])
def test_a_state_of_another_model_is_refused(part: str, tmp_path: Path) -> None:
    """A checkpoint in which one part was exchanged."""

    def run(resume: bool) -> None:
        module, config = torch.nn.Linear(2, 2), LoopConfig(2, checkpoint_every=1)
        fit(module, lambda *_: torch.ones(1, 2), lambda model, x: model(x), config, tmp_path, resume, device="cpu")

    run(False)
    content = read_state(tmp_path / "state.pt")
    write_state({**content, part: {"weight": torch.zeros(3)}}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"state\.pt is not the checkpoint of such a training") as caught:
        run(True)
    refused(caught.value, "state.pt")


def test_a_set_that_cannot_be_made_takes_no_place(tmp_path: Path) -> None:
    teacher = replace(small_checkpoint(prediction="epsilon"), text_encoder=None, text_config=None)
    with pytest.raises(ValueError, match="the text encoder is needed"):
        describe_set(teacher, SetConfig(1), ["a star"])
