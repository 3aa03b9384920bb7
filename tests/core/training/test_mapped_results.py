"""Trainings where Windows would refuse to replace a mapped file: none of theirs is mapped, and no result is lost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from small_runs import training, triplets
from windows_files import mapped_in, refuse_what_windows_refuses

from instaflow_core.__main__ import main
from instaflow_core.weights.checkpoint import load

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="asks /proc what is mapped")]


def test_sets_and_trainings_that_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_what_windows_refuses(monkeypatch)
    for command in (
        triplets(folder, "flow", "set-of-flow"),
        triplets(folder, "flow", "set-of-flow"),
        training("reflow", folder, "teacher", "again.safetensors"),
        training("reflow", folder, "teacher", "again.safetensors", "--resume", "--iterations", "9"),
        training("reflow", folder, "teacher", "again.safetensors", "--resume", "--iterations", "9"),
        training("distill", folder, "flow", "again-folder", "--method", "lora", "--rank", "4"),
        training("distill", folder, "flow", "again-folder", "--method", "lora", "--rank", "4", "--resume"),
    ):
        assert main(command) == 0
        assert mapped_in(folder / command[command.index("--out") + 1]) == []


def test_a_result_that_somebody_holds(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(training("reflow", folder, "teacher", "held.safetensors")) == 0
    held = load(folder / "held.safetensors")
    refuse_what_windows_refuses(monkeypatch)
    longer = training("reflow", folder, "teacher", "held.safetensors", "--resume", "--iterations", "9")
    assert main(longer) == 2
    assert f"whole, at {folder / 'held.new.safetensors'}" in capsys.readouterr().err
    kept = load(folder / "held.new.safetensors")
    assert kept.stage == "2-rectified-flow" and not torch.equal(kept.unet["conv_in.bias"], held.unet["conv_in.bias"])
