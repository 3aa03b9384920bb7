"""Each tracker that a training may log to, installed beside this environment, is given every line."""

from __future__ import annotations

import csv
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from other_packages import what_pip_takes, with_packages

from instaflow_core.training.accelerator import LOGGERS

pytestmark = pytest.mark.slow

# What belongs to the host stays as it is.
KEPT = ("torch", "numpy", "transformers")

TRAIN = """
import sys
from pathlib import Path
import torch
from instaflow_core.training.config import LoopConfig
from instaflow_core.training.loop import fit

def loss(module, x):
    return (module(x) - x[:, :2]).square().mean(1)

folder = Path(sys.argv[1])
for log in sys.argv[2:]:
    module, config = torch.nn.Linear(4, 2), LoopConfig(iterations=12, log=log)
    fit(module, lambda step, part: torch.rand(8, 4)[part.rows(8)], loss, config, folder / log, device="cpu")
"""
READ_EVENTS = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

events = EventAccumulator(sys.argv[1] + "/tensorboard/log").Reload()
print(json.dumps({event.step: event.value for event in events.Scalars("loss")}))
"""
Logged = tuple[Path, dict[str, float]]
"""A folder with the run of each tracker under its name, and the losses that TensorBoard reads in its own."""


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Logged:
    """Runs of 12 steps logged by each, without a network or an account."""
    place = tmp_path_factory.mktemp("trackers")
    trackers = [name for name in LOGGERS if name != "none"]
    environment = with_packages(place / "packages", what_pip_takes(place, trackers, KEPT))
    offline = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(place / "trackio-home"), "HF_HUB_OFFLINE": "1"}
    read_events = [sys.executable, "-c", READ_EVENTS, str(place)]
    for command in ([sys.executable, "-c", TRAIN, str(place), *trackers], read_events):
        ran = subprocess.run(command, env=environment | offline, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
    return place, json.loads(ran.stdout)


def losses(folder: Path) -> dict[int, float]:
    """The losses of the run by step, as it keeps them itself."""
    with (folder / "loss.csv").open(newline="") as file:
        return {int(step): float(loss) for step, loss in list(csv.reader(file))[1:]}


def test_tensorboard_has_every_loss(logged: Logged) -> None:
    place, events = logged
    assert {int(step): value for step, value in events.items()} == pytest.approx(losses(place / "tensorboard"))


def test_wandb_has_every_loss(logged: Logged) -> None:
    """Its file is its own; what a run that is synced later sends stands in it as JSON."""
    (file,) = logged[0].glob("wandb/wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    for loss in losses(logged[0] / "wandb").values():
        assert json.dumps(loss).encode() in content


def test_trackio_has_every_loss(logged: Logged) -> None:
    with sqlite3.connect(logged[0] / "trackio-home" / "instaflow.db") as database:
        rows = database.execute("SELECT step, metrics FROM metrics").fetchall()
    assert {step: json.loads(metrics)["loss"] for step, metrics in rows} == losses(logged[0] / "trackio")
