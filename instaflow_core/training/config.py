"""How a stage trains, how its loop does, and what it gives the loop: batches, losses and times."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .batches import TIMES, BatchPart

CONSTANT = "constant_with_warmup"
SCHEDULES = {"constant": CONSTANT, "cosine": "cosine"}
"""How the learning rate goes, by the words users have for it."""


def usual_warmup(iterations: int) -> int:
    """Iterations up to the learning rate where nobody says: the paper's 1000, or a tenth of a shorter run."""
    return min(1000, iterations // 10)


@dataclass(frozen=True)
class LoopConfig:
    """How the loop trains, whatever the stage.

    Attributes:
        iterations: optimiser steps in all.
        learning_rate: the peak, reached after `warmup` steps and then held, or let down to 0 along a cosine.
        ema: decay d of the moving average of the weights that is the result, a <- d a + (1 - d) w after every step
            (0.9999 in the paper). It starts at the first step's weights and looks back over about 1 / (1 - d) steps, so
            a run should be several times as long.
        precision: "no" (float32), "bf16" or "fp16" autocast; None for what `accelerate launch` was told, else float32.
        accumulate: parts that each process goes through one after the other for one step, to save memory.
        optimizer: one of optimizer.OPTIMIZERS; adamw8bit is bitsandbytes'.
        compile: let torch.compile make the module faster; its first steps take minutes.
        checkpoint_every: steps between checkpoints, which `resume` goes on from; 0 for those by time alone.
        checkpoint_minutes: minutes between checkpoints, beside those by steps.
        snapshot_every: steps between snapshots; 0 for none.
        evaluate_every: steps between evaluations; 0 for none.
        log: one of accelerator.LOGGERS, beside the loss file.
    """

    iterations: int
    learning_rate: float = 1e-6
    warmup: int = 1000
    schedule: str = CONSTANT
    weight_decay: float = 0.01
    ema: float = 0.9999
    grad_clip: float = 1.0
    precision: str | None = None
    accumulate: int = 1
    optimizer: str = "adamw"
    compile: bool = False
    checkpoint_every: int = 0
    checkpoint_minutes: float = 10.0
    snapshot_every: int = 0
    evaluate_every: int = 0
    log: str = "none"


@dataclass(frozen=True)
class StageConfig:
    """How a stage trains a UNet on a set.

    Attributes:
        stage: one of runs.STAGES.
        loop: how its loop trains.
        batch_size: triplets to a step, over all processes and accumulated parts.
        method: "full", or "lora" for a low-rank adapter of `rank` on the attention layers, merged in the end.
        times: one of batches.TIMES, for reflow.
        loss: one of runs.LOSSES, for distillation.
        on_policy: for distillation, the share of a batch whose targets are the flow's answers to the student's drafts
            (`objectives.on_policy_step`), 0 to 1; the flow is what the training starts from.
        checkpointing: compute activations again in the backward pass, to save memory.
        dtype: what the UNet's weights are saved in; None for float32.
        validation_prompts: what sheets of samples are drawn from; none for prompts of the set.
    """

    stage: str
    loop: LoopConfig
    batch_size: int = 64
    seed: int = 0
    method: str = "full"
    rank: int = 64
    times: str = TIMES[0]
    loss: str = "l2"
    on_policy: float = 0.0
    checkpointing: bool = False
    dtype: torch.dtype | None = None
    validation_prompts: tuple[str, ...] = ()


Batch = Callable[[int, BatchPart], Any]
"""From a step (0, 1, ...) and a part of its batch to that part; must depend on these and fixed seeds alone."""
Loss = Callable[[nn.Module, Any], Tensor]
"""From a module and a part of a batch to losses whose mean is minimised: one of each row (B,), or one of all."""
Times = Callable[[Any], Tensor]
"""From a part of a batch to the time t of each row (B,), in [0, 1]."""
