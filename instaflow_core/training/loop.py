"""One training loop for every stage: seeded batches, accelerate, a moving average, checkpoints that resume bit for bit.

A stage is a module, a function from a step to its batch, and a function from a batch to its loss. A batch depends on
(seed, step) alone, so a run that stops and goes on sees what an undisturbed run would have seen, and several processes
divide the very batch that one would have had.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..atomic import remove_leftovers_in
from ..weights.errors import FormatError
from .accelerator import own_state
from .config import CONSTANT, Batch, LoopConfig, Loss, Times
from .state import LOSS_FILE, STATE_FILE, check_same, read_state, write_losses, write_state
from .time_bins import BY_TIME_FILE, NAMES, LossByTime, Row, write_by_time
from .trainee import Trainee

_ROWS = 50
"""Of the losses by time, over the run."""


@dataclass
class LoopResult:
    """What `fit` returns: the loss of every step from the first on, what it was at which times (no rows where nothing
    tells the times), the precision it computed in, and whether this process is the one that writes."""

    losses: list[float]
    by_time: list[Row]
    precision: str
    is_main: bool


def fit(
    module: nn.Module,
    batch: Batch,
    loss: Loss,
    config: LoopConfig,
    folder: Path,
    resume: bool = False,
    progress: Callable[[int, float], None] | None = None,
    snapshot: Callable[[int], None] | None = None,
    evaluate: Callable[[int], None] | None = None,
    origin: dict[str, Any] | None = None,
    device: str | None = None,
    stop: Callable[[], bool] | None = None,
    times: Times | None = None,
) -> LoopResult:
    """Train `module` in place and leave the averaged weights in it, and nothing else of the run.

    Where the processes are launched with FSDP2, each holds and trains a part of a copy of the module; the module itself
    stays whole, on the CPU.

    Args:
        module: its parameters that require gradients are trained, in float32; moved to the device.
        folder: gets `state.pt`, the checkpoint, written under a temporary name and renamed, and `loss.csv`.
        resume: go on from the folder's checkpoint, or start where there is none.
        progress: called after each step with (steps done, its loss); may raise to cancel, which first writes a
            checkpoint of this step.
        snapshot: called with the steps done every `snapshot_every` steps, while the module holds the averaged weights.
        evaluate: the same every `evaluate_every` steps.
        origin: what the run starts from and learns from, by name: what else must be the same when it is resumed.
        device: "cpu" to stay off an accelerator; otherwise accelerate's choice.
        stop: asked after each step whether to stop; where it is so on one process, all of them stop at that step, after
            a checkpoint.
        times: what tells the times of a batch, where the loss has one value for each of its rows: the folder then also
            gets `loss_by_time.csv`, in fifty lines.

    Raises:
        KeyboardInterrupt: the run was stopped.
        NonFiniteLoss: the loss is not finite.
        ValueError: the checkpoint was made with another configuration or of another origin, or not all processes have
            it; the batch cannot be divided among the processes, they are launched in a way that shards the weights
            otherwise than FSDP2, or the optimiser's or logger's package is missing.
    """
    with own_state():
        trainee = Trainee(module, config, folder, device)
        try:
            run = _Run(trainee, config, folder, origin or {})
            begun = run.restore() if resume else 0
            watches = [(config.snapshot_every, snapshot), (config.evaluate_every, evaluate)]
            if run.shown < begun:
                run.show(watches)  # it failed when this checkpoint was written
            for step in range(begun, config.iterations):
                stopped, late = run.step(step, batch, loss, times, stop is not None and stop())
                try:
                    # A sheet comes before its checkpoint: a run killed in between shows it again, none is missing.
                    run.show(watches)
                    if progress:
                        progress(run.done, run.losses[-1])
                    if stopped:
                        raise KeyboardInterrupt
                except BaseException:
                    # Gathering shards takes all processes, and only a stop is something that all of them know of.
                    if stopped or not trainee.is_sharded:
                        run.store()
                    raise
                if late or run.is_due(config.checkpoint_every):
                    run.store()
            return run.finish()
        finally:
            trainee.close()


class _Run:
    """A trainee's way through the steps: its losses, its checkpoint, and what is due when."""

    def __init__(self, trainee: Trainee, config: LoopConfig, folder: Path, origin: dict[str, Any]) -> None:
        self.trainee, self.config, self.origin, self.path = trainee, config, origin, folder / STATE_FILE
        self.settings = {**asdict(config), "precision": trainee.precision}
        self.done, self.shown, self.losses, self.stored_at = 0, 0, list[float](), time.monotonic()
        self.by_time = LossByTime(max(1, config.iterations // _ROWS))
        if trainee.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers_in(folder)

    def step(self, step: int, batch: Batch, loss: Loss, times: Times | None, stop: bool) -> tuple[bool, bool]:
        """One optimiser step; whether any process was told to stop, and whether it is time for a checkpoint."""
        # Processes in shards write it together, and their clocks differ: the first one's counts.
        late = self.trainee.is_main and time.monotonic() - self.stored_at > 60 * self.config.checkpoint_minutes
        value, by_time, (stopped, late) = self.trainee.step(step, batch, loss, times, [stop, late])
        self.done = step + 1
        self.losses.append(value)
        row = self.by_time.add(self.done, *by_time) if times else None
        if self.config.log != "none":
            values = {"loss": value, "learning rate": self.trainee.rate}
            if row:
                values |= {f"loss at {name}": mean for name, mean in zip(NAMES, row[1], strict=True)}
            self.trainee.accelerator.log(values, step=self.done)
        return stopped, late

    def is_due(self, every: int) -> bool:
        """Whether what is done every so many steps, and at the end, is due; where that is 0, at the end alone."""
        return self.done == self.config.iterations or (every > 0 and self.done % every == 0)

    def show(self, watches: Sequence[tuple[int, Callable[[int], None] | None]]) -> None:
        """Call those that are due, of (every so many steps, what is called), on the main process while the module holds
        the averaged weights."""
        due = [call for every, call in watches if call and every and self.is_due(every)]
        if due:
            with self.trainee.averaged() as usable:
                for call in due if usable else ():
                    call(self.done)
            self.shown = self.done

    def store(self) -> None:
        """Write the checkpoint and the losses."""
        self.stored_at = time.monotonic()
        if not (self.trainee.is_sharded or self.trainee.is_main):
            return
        content = self.trainee.state_dict() | {"by_time": self.by_time.state_dict()}
        if not self.trainee.is_main:
            return
        content |= {"settings": self.settings, "origin": self.origin, "losses": self.losses}
        content |= {"step": self.done, "shown": self.shown}
        # The tables come first: a run killed in between writes them again, as it does these steps.
        write_losses(self.losses, self.path.with_name(LOSS_FILE))
        if self.by_time.rows:
            write_by_time(self.by_time.rows, self.path.with_name(BY_TIME_FILE))
        write_state(content, self.path)

    def restore(self) -> int:
        """Take up the checkpoint, if there is one; the steps it has behind it."""
        content = read_state(self.path)
        steps = self.trainee.of_all(content.get("step", 0))
        if len(set(steps)) > 1:
            raise ValueError(
                f"The processes found checkpoints of different steps in {self.path.parent}: {steps}. "
                "Give a folder that all machines share, or copy it to each of them."
            )
        if not content:
            return 0
        free = {
            "checkpoint_every",
            "checkpoint_minutes",
            "snapshot_every",
            "evaluate_every",
            "log",
            "accumulate",
            "compile",
        }
        if self.config.schedule == CONSTANT and self.config.iterations >= content["step"]:
            free.add("iterations")  # a constant rate does not ask how long the run will be
        # What an older version did not know yet was at its default.
        there = asdict(LoopConfig(0)) | content["settings"] | content["origin"]
        check_same(there, self.settings | self.origin, free, self.path)
        try:
            self.trainee.load_state_dict(content)
            self.by_time.load_state_dict(content["by_time"])
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if "out of memory" in str(error):
                raise
            raise FormatError(
                f"{self.path} is not the checkpoint of such a training ({type(error).__name__}: {str(error)[:200]})",
                "the weights and moments of this model",
                f"Remove {self.path.parent} and start the training again.",
            ) from error
        self.done, self.losses = content["step"], content["losses"]
        self.shown = content.get("shown", self.done)  # an older version did not know it
        return self.done

    def finish(self) -> LoopResult:
        """Put the averaged weights into the module."""
        self.trainee.take_average()
        return LoopResult(self.losses, self.by_time.rows, self.trainee.precision, self.trainee.is_main)
