"""Run by each of two processes: trainings that must agree on when to stop and on the step they go on from.

    agreeing_runs.py FOLDER

Each process writes what it met to FOLDER/RANK.json; FOLDER is shared but for FOLDER/own-RANK.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor, nn

from instaflow_core.flow.noise import indexed_generator
from instaflow_core.training.batches import BatchPart
from instaflow_core.training.config import LoopConfig
from instaflow_core.training.loop import fit


def batch(step: int, part: BatchPart) -> Tensor:
    return torch.randn(8, 3, generator=indexed_generator(1, step))[part.rows(8)]


def loss(module: nn.Module, x: Tensor) -> Tensor:
    return (module(x) - x[:, :2]).square().mean()


def train(folder: Path, iterations: int = 12, stop_at: int | None = None) -> tuple[nn.Module, int]:
    """A linear model, and the steps this process has done. Only the second process is told to stop."""
    torch.manual_seed(0)
    module, done = nn.Linear(3, 2), list[int]()
    config = LoopConfig(iterations, learning_rate=1e-3, warmup=2, ema=0.9)

    def stop() -> bool:
        return rank == 1 and len(done) == stop_at

    try:
        fit(module, batch, loss, config, folder, True, lambda step, _: done.append(step), device="cpu", stop=stop)
    except KeyboardInterrupt:
        print(f"process {rank} stopped at {done[-1]}")
    return module, done[-1] if done else 0


folder = Path(sys.argv[1])
rank = PartialState(cpu=True).process_index
whole, _ = train(folder / "whole")
_, stopped = train(folder / "parts", stop_at=5)
resumed, last = train(folder / "parts")
same = all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
try:
    train(folder / ("whole" if rank == 0 else "own-1"))
    refused = ""
except ValueError as error:
    refused = str(error)
met = {"stopped": stopped, "last": last, "same": same, "refused": refused}
(folder / f"{rank}.json").write_text(json.dumps(met))
