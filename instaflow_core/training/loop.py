"""One training loop for every stage: seeded batches, accelerate, a moving average, checkpoints that resume bit for bit.

A stage is a module, a function from a step to its batch, and a function from a batch to its loss. A batch depends on
(seed, step) alone, so a run that stops and goes on sees what an undisturbed run would have seen, and several processes
divide the very batch that one would have had.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..atomic import remove_leftovers_in
from .accelerator import new_accelerator, own_state
from .batches import BatchPart
from .optimizer import new_optimizer
from .state import LOSS_FILE, STATE_FILE, check_same, read_state, write_losses, write_state

CONSTANT = "constant_with_warmup"


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
        checkpoint_every: steps between checkpoints, which `resume` goes on from; 0 for those by time alone.
        checkpoint_minutes: minutes between checkpoints, beside those by steps.
        snapshot_every: steps between snapshots; 0 for none.
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
    checkpoint_every: int = 0
    checkpoint_minutes: float = 10.0
    snapshot_every: int = 0
    log: str = "none"


Batch = Callable[[int, BatchPart], Any]
"""From a step (0, 1, ...) and a part of its batch to that part; must depend on these and fixed seeds alone."""
Loss = Callable[[nn.Module, Any], Tensor]
"""From a module and a part of a batch to a scalar, the mean over the part."""


@dataclass
class LoopResult:
    """What `fit` returns: the loss of every step from the first on, the precision it computed in, and whether this
    process is the one that writes."""

    losses: list[float]
    precision: str
    is_main: bool


class NonFiniteLoss(ValueError):
    """The loss was NaN or infinite; the last checkpoint is still there."""


def fit(
    module: nn.Module,
    batch: Batch,
    loss: Loss,
    config: LoopConfig,
    folder: Path,
    resume: bool = False,
    progress: Callable[[int, float], None] | None = None,
    snapshot: Callable[[int], None] | None = None,
    origin: dict[str, Any] | None = None,
    device: str | None = None,
    stop: Callable[[], bool] | None = None,
) -> LoopResult:
    """Train `module` in place and leave the averaged weights in it, and nothing else of the run.

    Args:
        module: its parameters that require gradients are trained, in float32; moved to the device.
        folder: gets `state.pt`, the checkpoint, written under a temporary name and renamed, and `loss.csv`.
        resume: go on from the folder's checkpoint, or start where there is none.
        progress: called after each step with (steps done, its loss); may raise to cancel, which first writes a
            checkpoint of this step.
        snapshot: called with the steps done every `snapshot_every` steps, while the module holds the averaged weights.
        origin: what the run starts from and learns from, by name: what else must be the same when it is resumed.
        device: "cpu" to stay off an accelerator; otherwise accelerate's choice.
        stop: asked after each step whether to stop; where it is so on one process, all of them stop at that step, after
            a checkpoint.

    Raises:
        KeyboardInterrupt: the run was stopped.
        NonFiniteLoss: the loss is not finite.
        ValueError: the checkpoint was made with another configuration or of another origin, or not all processes have
            it; the batch cannot be divided among the processes, they are launched in a way that shards the weights, or
            the optimiser's or logger's package is missing.
    """
    with own_state():
        run = _Run(module, config, folder, device, origin or {})
        try:
            done = run.restore() if resume else 0
            for step in range(done, config.iterations):
                value, stopped = run.step(step, batch, loss, stop)
                try:
                    # A sheet comes before its checkpoint: a run killed in between shows it again, none is missing.
                    if snapshot and config.snapshot_every and run.is_due(config.snapshot_every):
                        run.show(snapshot)
                    if progress:
                        progress(run.done, value)
                    if stopped:
                        raise KeyboardInterrupt
                except BaseException:
                    run.store()
                    raise
                if run.is_due(config.checkpoint_every) or run.minutes_since_checkpoint() > config.checkpoint_minutes:
                    run.store()
            return run.finish()
        finally:
            run.close()


class _Run:
    """What a run keeps between its steps."""

    def __init__(
        self, module: nn.Module, config: LoopConfig, folder: Path, device: str | None, origin: dict[str, Any]
    ) -> None:
        from diffusers.optimization import get_scheduler

        self.module, self.config, self.path = module, config, folder / STATE_FILE
        self.accelerator = new_accelerator(config.precision, config.log, folder, device)
        self.settings = {**asdict(config), "precision": self.accelerator.mixed_precision}
        self.origin = origin
        module.train()
        module.to(self.accelerator.device)
        self.trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        # A list of the trained weights alone: the average of a LoRA must not copy the UNet.
        self.weights = nn.ParameterList(self.trained.values())
        self.average = AveragedModel(self.weights, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
        optimizer = new_optimizer(
            list(self.trained.values()), config.optimizer, config.learning_rate, config.weight_decay
        )
        self.schedule = get_scheduler(
            config.schedule, optimizer, num_warmup_steps=config.warmup, num_training_steps=config.iterations
        )
        # The module is on its device. Asked to send it there, accelerate looks for tensors that only a PyTorch with
        # torch.distributed knows.
        self.model, self.optimizer = self.accelerator.prepare(module, optimizer, device_placement=[False, True])
        self.stateful: dict[str, Any] = {
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "average": self.average,
        }
        if self.accelerator.scaler:
            self.stateful["scaler"] = self.accelerator.scaler
        self.done, self.losses, self.stored_at = 0, list[float](), time.monotonic()
        if self.accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers_in(folder)

    def step(self, step: int, batch: Batch, loss: Loss, stop: Callable[[], bool] | None) -> tuple[float, bool]:
        """One optimiser step; its loss, the mean over the whole batch, and whether any process was asked to stop."""
        from accelerate.utils import send_to_device

        accelerator, parts = self.accelerator, self.config.accumulate
        total = torch.zeros((), device=accelerator.device)
        for i in range(parts):
            part = BatchPart(accelerator.process_index * parts + i, accelerator.num_processes * parts)
            inputs = send_to_device(batch(step, part), accelerator.device)
            with nullcontext() if i + 1 == parts else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    value = loss(self.model, inputs) / parts
                accelerator.backward(value)
            total += value.detach()
        asked = torch.full_like(total, float(stop is not None and stop()))
        mean, stopped = accelerator.reduce(torch.stack([total, asked]), "mean").tolist()
        if not math.isfinite(mean):
            raise NonFiniteLoss(
                f"The loss is {mean} at iteration {step}. The checkpoint in {self.path.parent} is from before it; "
                "lower the learning rate or use float32, and start again or resume."
            )
        accelerator.clip_grad_norm_(self.trained.values(), self.config.grad_clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.weights)
        self.done = step + 1
        self.losses.append(mean)
        if self.config.log != "none":
            accelerator.log({"loss": mean, "learning rate": self.schedule.get_last_lr()[0]}, step=self.done)
        return mean, stopped > 0

    def is_due(self, every: int) -> bool:
        """Whether what is done every so many steps, and at the end, is due; where that is 0, at the end alone."""
        return self.done == self.config.iterations or (every > 0 and self.done % every == 0)

    def minutes_since_checkpoint(self) -> float:
        """How long ago the last checkpoint was written, or the run was begun."""
        return (time.monotonic() - self.stored_at) / 60

    def show(self, snapshot: Callable[[int], None]) -> None:
        """Call `snapshot` on the main process while the module holds the averaged weights."""
        if not self.accelerator.is_main_process:
            return
        with self._averaged(), torch.no_grad():
            snapshot(self.done)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The module in eval mode with the averaged weights, which change places with its own."""
        self._swap()
        self.module.eval()
        try:
            yield
        finally:
            self._swap()
            self.module.train()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, averaged in zip(self.weights, self.average.parameters(), strict=True):
            held = weight.clone()
            weight.copy_(averaged)
            averaged.copy_(held)

    def store(self) -> None:
        """Write the checkpoint and the losses."""
        if not self.accelerator.is_main_process:
            return
        content = {name: part.state_dict() for name, part in self.stateful.items()}
        content |= {"settings": self.settings, "origin": self.origin, "trained": dict(self.trained), "step": self.done}
        write_state(content | {"losses": self.losses}, self.path)
        write_losses(self.losses, self.path.with_name(LOSS_FILE))
        self.stored_at = time.monotonic()

    def restore(self) -> int:
        """Take up the checkpoint, if there is one; the steps it has behind it."""
        content = read_state(self.path)
        self._check_processes(content.get("step", 0))
        if not content:
            return 0
        free = {"checkpoint_every", "checkpoint_minutes", "snapshot_every", "log", "accumulate"}
        if self.config.schedule == CONSTANT and self.config.iterations >= content["step"]:
            free.add("iterations")  # a constant rate does not ask how long the run will be
        # What an older version did not know yet was at its default.
        there = asdict(LoopConfig(0)) | content["settings"] | content["origin"]
        check_same(there, self.settings | self.origin, free, self.path)
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(content["trained"][name])
        for name, part in self.stateful.items():
            part.load_state_dict(content[name])
        for state in self.optimizer.state.values():  # what it took as it was is a view of the file, which is replaced
            state.update({name: value.clone() for name, value in state.items() if isinstance(value, Tensor)})
        self.done, self.losses = content["step"], content["losses"]
        return self.done

    def _check_processes(self, step: int) -> None:
        here = torch.tensor([step], device=self.accelerator.device)
        steps = self.accelerator.gather(here).tolist()
        if len(set(steps)) > 1:
            raise ValueError(
                f"The processes found checkpoints of different steps in {self.path.parent}: {steps}. "
                "Give a folder that all machines share, or copy it to each of them."
            )

    @torch.no_grad()
    def finish(self) -> LoopResult:
        """Put the averaged weights into the module."""
        for weight, averaged in zip(self.weights, self.average.parameters(), strict=True):
            weight.copy_(averaged)
        return LoopResult(self.losses, self.settings["precision"], self.accelerator.is_main_process)

    def close(self) -> None:
        """Take accelerate's wrappers off the module, which computes in its own type from then on, and let go of
        everything else, also where an exception still holds the frames of the run."""
        from accelerate.utils.memory import clear_device_cache

        self.module.eval()
        if self.config.log != "none":
            self.accelerator.end_training()
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.module.__dict__.pop("forward", None)  # unwrapping leaves the class's own there, bound: a cycle
        self.accelerator.free_memory()
        for name in ("model", "optimizer", "schedule", "average", "stateful", "weights", "trained", "module"):
            delattr(self, name)
        clear_device_cache(garbage_collection=True)
