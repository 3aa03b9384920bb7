"""One training loop for every stage: seeded batches, accelerate, EMA, checkpoints that resume bit for bit.

A stage is a module, a function from a step to its batch, and a function from a batch to its loss. A batch depends on
(seed, step) alone, so a run that stops and goes on sees what an undisturbed run would have seen, and several processes
share out the very batch that one would have had.
"""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..atomic import remove_leftovers_in, replacing
from .share import Share

STATE_FILE = "state.pt"
LOSS_FILE = "loss.csv"
OPTIMIZERS = ("adamw", "adamw8bit")
LOGGERS = ("none", "tensorboard")
CONSTANT = "constant_with_warmup"


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        iterations: optimiser steps in all.
        learning_rate: the peak, reached after `warmup` steps and then held, or let down to 0 along a cosine.
        ema: decay of the exponential moving average of the weights that is the result (0.9999 in the paper).
        precision: "no" (float32), "bf16" or "fp16" autocast.
        accumulate: parts that each process goes through one after the other for one step, to save memory.
        optimizer: one of OPTIMIZERS; adamw8bit is bitsandbytes'.
        checkpoint_every: steps between checkpoints, which `resume` goes on from.
        snapshot_every: steps between snapshots; 0 for none.
        log: one of LOGGERS, beside the loss file.
    """

    iterations: int
    learning_rate: float = 1e-6
    warmup: int = 1000
    schedule: str = CONSTANT
    weight_decay: float = 0.01
    ema: float = 0.9999
    grad_clip: float = 1.0
    precision: str = "no"
    accumulate: int = 1
    optimizer: str = "adamw"
    checkpoint_every: int = 500
    snapshot_every: int = 0
    log: str = "none"


Batch = Callable[[int, Share], Any]
"""From a step (0, 1, ...) and a share of it to a batch; must depend on these and fixed seeds alone."""


@dataclass
class Result:
    """What `fit` returns: the step it ended at, and the loss of every step from the first on."""

    step: int
    losses: list[float] = field(default_factory=list)


class NonFiniteLoss(ValueError):
    """The loss was NaN or infinite; the last checkpoint is still there."""


def fit(
    module: nn.Module,
    batch: Batch,
    loss: Callable[[nn.Module, Any], Tensor],
    config: TrainConfig,
    folder: Path,
    resume: bool = False,
    progress: Callable[[int, float], None] | None = None,
    snapshot: Callable[[int], None] | None = None,
    about: dict[str, Any] | None = None,
    device: str | None = None,
) -> Result:
    """Train `module` in place and leave the averaged weights in it.

    Args:
        module: its parameters that require gradients are trained, in float32; moved to the device.
        loss: from (module, share of a batch) to a scalar, the mean over the share.
        folder: gets `state.pt`, the checkpoint, written under a temporary name and renamed, and `loss.csv`.
        resume: go on from the folder's checkpoint, or start where there is none.
        progress: called after each step with (steps done, its loss); may raise to cancel, which first writes a
            checkpoint of this step.
        snapshot: called with the steps done every `snapshot_every` steps, while the module holds the averaged weights.
        about: what else must be the same when the run is resumed, such as the data.
        device: "cpu" to stay off an accelerator; otherwise accelerate's choice.

    Raises:
        NonFiniteLoss: the loss is not finite.
        ValueError: the checkpoint was made with another configuration or other data, the batch cannot be shared out to
            the processes, or the optimiser's or logger's package is missing.
    """
    run = _Run(module, config, folder, device, about or {})
    done = run.restore() if resume else 0
    for step in range(done, config.iterations):
        value = run.step(step, batch, loss)
        finished = step + 1 == config.iterations
        if finished or run.done % config.checkpoint_every == 0:
            run.store()
        if snapshot and config.snapshot_every and (finished or run.done % config.snapshot_every == 0):
            run.show(snapshot)
        if progress:
            try:
                progress(run.done, value)
            except BaseException:
                run.store()
                raise
    return run.finish()


class _Run:
    """What a run keeps between its steps."""

    def __init__(
        self, module: nn.Module, config: TrainConfig, folder: Path, device: str | None, about: dict[str, Any]
    ) -> None:
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        self.module, self.config, self.path = module, config, folder / STATE_FILE
        self.identity = {**asdict(config), "about": about}
        self.accelerator = _accelerator(config, folder, device)
        module.train()
        module.to(self.accelerator.device)
        self.trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        optimizer = _optimizer(list(self.trained.values()), config)
        schedule = get_scheduler(
            config.schedule, optimizer, num_warmup_steps=config.warmup, num_training_steps=config.iterations
        )
        average = EMAModel(self.trained.values(), decay=config.ema, foreach=True)
        average.to(self.accelerator.device)
        self.model, self.optimizer = self.accelerator.prepare(module, optimizer)
        self.schedule, self.average = schedule, average
        self.kept: dict[str, Any] = {"optimizer": self.optimizer, "schedule": schedule, "average": average}
        if self.accelerator.scaler:
            self.kept["scaler"] = self.accelerator.scaler
        self.done, self.losses = 0, list[float]()
        if self.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers_in(folder)

    def step(self, step: int, batch: Batch, loss: Callable[[nn.Module, Any], Tensor]) -> float:
        """One optimiser step; its loss, the mean over the whole batch."""
        from accelerate.utils import send_to_device

        accelerator, parts = self.accelerator, self.config.accumulate
        total = torch.zeros((), device=accelerator.device)
        for part in range(parts):
            share = Share(accelerator.process_index * parts + part, accelerator.num_processes * parts)
            last = part + 1 == parts
            with nullcontext() if last else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    value = loss(self.model, send_to_device(batch(step, share), accelerator.device)) / parts
                if not torch.isfinite(value):
                    raise NonFiniteLoss(
                        f"The loss is {value.item()} at iteration {step}. The checkpoint in {self.path.parent} is from "
                        "before it; lower the learning rate or use float32, and start again or resume."
                    )
                accelerator.backward(value)
            total += value.detach()
        accelerator.clip_grad_norm_(self.trained.values(), self.config.grad_clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.average.step(self.trained.values())
        mean = float(accelerator.reduce(total, "mean"))
        self.done = step + 1
        self.losses.append(mean)
        if self.config.log != "none":
            accelerator.log({"loss": mean, "learning rate": self.schedule.get_last_lr()[0]}, step=self.done)
        return mean

    def show(self, snapshot: Callable[[int], None]) -> None:
        """Call `snapshot` on the main process while the module holds the averaged weights."""
        if not self.accelerator.is_main_process:
            return
        self.average.store(self.trained.values())
        self.average.copy_to(self.trained.values())
        self.module.eval()
        try:
            with torch.no_grad():
                snapshot(self.done)
        finally:
            self.average.restore(self.trained.values())
            self.module.train()

    def store(self) -> None:
        """Write the checkpoint and the losses."""
        if not self.accelerator.is_main_process:
            return
        content = {name: part.state_dict() for name, part in self.kept.items()}
        content |= {"trained": dict(self.trained), "config": self.identity, "step": self.done, "losses": self.losses}
        with replacing(self.path) as temporary:
            torch.save(content, temporary)
        with replacing(self.path.with_name(LOSS_FILE)) as temporary:
            lines = [f"{i + 1},{value!r}" for i, value in enumerate(self.losses)]
            temporary.write_text("\n".join(["iteration,loss", *lines, ""]), encoding="utf-8")

    def restore(self) -> int:
        """Take up the checkpoint, if there is one; the steps it has behind it."""
        if not self.path.exists():
            return 0
        content = torch.load(self.path, map_location="cpu", weights_only=True)
        self._check(content["config"], content["step"])
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(content["trained"][name])
        for name, part in self.kept.items():
            part.load_state_dict(content[name])
        self.average.to(self.accelerator.device)
        self.done, self.losses = content["step"], content["losses"]
        return self.done

    def _check(self, there: dict[str, Any], step: int) -> None:
        free = {"checkpoint_every", "snapshot_every", "log", "accumulate"}
        if self.config.schedule == CONSTANT and self.config.iterations >= step:
            free.add("iterations")  # a constant rate does not ask how long the run will be
        differing = [name for name, value in self.identity.items() if name not in free and there.get(name) != value]
        if differing:
            found = ", ".join(f"{name} {there.get(name)}" for name in differing)
            wanted = ", ".join(f"{name} {self.identity[name]}" for name in differing)
            raise ValueError(
                f"The checkpoint {self.path} was made with {found}, and this run has {wanted}. "
                "Resume with the same settings, or train into another folder."
            )

    def finish(self) -> Result:
        """Put the averaged weights into the module."""
        self.average.copy_to(self.trained.values())
        self.module.eval()
        if self.config.log != "none":
            self.accelerator.end_training()
        return Result(self.done, self.losses)


def _accelerator(config: TrainConfig, folder: Path, device: str | None) -> Any:
    """An Accelerator of this run's own: accelerate's shared state would hold the next run in a process to the first's
    precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    log_with = None
    if config.log != "none":
        if config.log not in LOGGERS:
            raise ValueError(f"Unknown log {config.log!r}; expected one of {', '.join(LOGGERS)}.")
        from accelerate.tracking import get_available_trackers

        if config.log not in [str(tracker) for tracker in get_available_trackers()]:
            raise ValueError(f"Logging to {config.log} needs its package: pip install {config.log}, or leave it out.")
        log_with = config.log
    accelerator = Accelerator(
        mixed_precision=config.precision, cpu=device == "cpu", log_with=log_with, project_dir=folder
    )
    if log_with:
        accelerator.init_trackers("log")
    return accelerator


def _optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer not in OPTIMIZERS:
        raise ValueError(f"Unknown optimizer {config.optimizer!r}; expected one of {', '.join(OPTIMIZERS)}.")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError("adamw8bit needs bitsandbytes: pip install bitsandbytes, or take adamw.") from error
    return AdamW8bit(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


class Every:
    """A progress callback that prints the mean loss and the speed now and then."""

    def __init__(self, name: str, steps: int, interval: int = 100):
        self.name, self.steps, self.interval = name, steps, interval
        self.start, self.losses = time.monotonic(), list[float]()

    def __call__(self, step: int, loss: float) -> None:
        self.losses.append(loss)
        if len(self.losses) == self.interval or step == self.steps:
            seconds = (time.monotonic() - self.start) / len(self.losses)
            mean = math.fsum(self.losses) / len(self.losses)
            print(f"{self.name} {step}/{self.steps}  loss {mean:.5f}  {seconds:.3f} s/step", flush=True)
            self.start, self.losses = time.monotonic(), []
