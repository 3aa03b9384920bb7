"""One training loop for every stage: seeded batches, accelerate, EMA, checkpoints that resume bit for bit.

A stage is a module, a function from a step to its batch, and a function from a batch to its loss. A batch depends on
(seed, step) alone, so a run that stops and goes on sees what an undisturbed run would have seen.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .atomic import replacing

STATE_FILE = "state.pt"


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        iterations: optimiser steps in all.
        learning_rate: the peak, reached after `warmup` steps and then held, or let down to 0 along a cosine.
        ema: decay of the exponential moving average of the weights that is the result (0.9999 in the paper).
        precision: "no" (float32), "bf16" or "fp16" autocast.
        seed: of everything random.
        checkpoint_every: steps between checkpoints, which `resume` goes on from.
    """

    iterations: int
    learning_rate: float = 1e-6
    warmup: int = 1000
    schedule: str = "constant_with_warmup"
    weight_decay: float = 0.01
    ema: float = 0.9999
    grad_clip: float = 1.0
    precision: str = "no"
    seed: int = 0
    checkpoint_every: int = 500


@dataclass
class Result:
    """What `fit` returns: the losses of the steps that this call ran, and the step it ended at."""

    step: int
    losses: list[float] = field(default_factory=list)


class NonFiniteLoss(RuntimeError):
    """The loss was NaN or infinite; the last checkpoint is still there."""


def fit(
    module: nn.Module,
    batch: Callable[[int], Any],
    loss: Callable[[nn.Module, Any], Tensor],
    config: TrainConfig,
    folder: Path,
    resume: bool = False,
    progress: Callable[[int, float], None] | None = None,
) -> Result:
    """Train `module` in place and leave the averaged weights in it.

    Args:
        module: trained in float32; moved to accelerate's device.
        batch: from a step (0, 1, ...) to that step's batch; must depend on the step and fixed seeds alone.
        loss: from (module, batch) to a scalar.
        folder: where checkpoints go, as one file written under a temporary name and renamed.
        resume: go on from the folder's checkpoint, or start where there is none.
        progress: called after each step with (steps done, its loss); may raise to cancel, which keeps the checkpoint.

    Raises:
        NonFiniteLoss: the loss is not finite.
        ValueError: the checkpoint was made with another configuration.
    """
    from accelerate import Accelerator
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    accelerator = Accelerator(mixed_precision=config.precision)
    folder.mkdir(parents=True, exist_ok=True)
    module.train()
    module.to(accelerator.device)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = get_scheduler(
        config.schedule, optimizer, num_warmup_steps=config.warmup, num_training_steps=config.iterations
    )
    average = EMAModel(trained, decay=config.ema, foreach=True)
    average.to(accelerator.device)
    model, optimizer = accelerator.prepare(module, optimizer)
    state = {"optimizer": optimizer, "schedule": schedule, "average": average}
    done = _restore(folder / STATE_FILE, module, state, config) if resume else 0

    result = Result(done)
    for step in range(done, config.iterations):
        with accelerator.autocast():
            value = loss(model, batch(step))
        if not torch.isfinite(value):
            raise NonFiniteLoss(
                f"The loss is {value.item()} at iteration {step}. The checkpoint in {folder} is from before it; "
                "lower the learning rate or use float32, and resume."
            )
        accelerator.backward(value)
        accelerator.clip_grad_norm_(trained, config.grad_clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        average.step(trained)
        result.step = step + 1
        result.losses.append(value.item())
        if result.step % config.checkpoint_every == 0 and accelerator.is_main_process:
            _store(folder / STATE_FILE, module, state, config, result.step)
        if progress:
            progress(result.step, result.losses[-1])
    average.copy_to(trained)
    module.eval()
    return result


def _store(path: Path, module: nn.Module, state: dict[str, Any], config: TrainConfig, step: int) -> None:
    content = {name: part.state_dict() for name, part in state.items()}
    with replacing(path) as temporary:
        torch.save(content | {"module": module.state_dict(), "config": asdict(config), "step": step}, temporary)


def _restore(path: Path, module: nn.Module, state: dict[str, Any], config: TrainConfig) -> int:
    if not path.exists():
        return 0
    content = torch.load(path, map_location="cpu", weights_only=True)
    if content["config"] != asdict(config):
        raise ValueError(
            f"The checkpoint {path} was made with {content['config']}, and this run has {asdict(config)}. "
            "Resume with the same settings, or train into another folder."
        )
    module.load_state_dict(content["module"])
    for name, part in state.items():
        part.load_state_dict(content[name])
    return content["step"]


class Every:
    """A progress callback that prints the mean loss and the speed now and then."""

    def __init__(self, name: str, steps: int, interval: int = 100):
        self.name, self.steps, self.interval = name, steps, interval
        self.start, self.losses = time.monotonic(), list[float]()

    def __call__(self, step: int, loss: float) -> None:
        self.losses.append(loss)
        if len(self.losses) == self.interval or step == self.steps:
            seconds = (time.monotonic() - self.start) / len(self.losses)
            mean = sum(self.losses) / len(self.losses)
            print(f"{self.name} {step}/{self.steps}  loss {mean:.5f}  {seconds:.3f} s/step", flush=True)
            self.start, self.losses = time.monotonic(), []
