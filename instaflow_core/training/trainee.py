"""What a run trains: a module with its optimiser, its rate and the moving average of its weights, on this process and
others, whole or in shards."""

import copy
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .accelerator import new_accelerator
from .batches import BatchPart
from .config import Batch, LoopConfig, Loss, Times
from .optimizer import new_optimizer
from .sharding import optimizer_state, shared_out, whole
from .time_bins import BINS, binned

_WRAPPERS = re.compile(r"_checkpoint_wrapped_module\.|_orig_mod\.")
"""What accelerate puts around parts of a module, as it stands in the names of their parameters."""


class NonFiniteLoss(ValueError):
    """The loss was NaN or infinite; the last checkpoint is still there."""


class Step(NamedTuple):
    """What all processes know after a step: the mean loss of the batch, sums and numbers of the losses by time, (2,
    BINS), and which of the questions at least one of them has answered with yes."""

    loss: float
    by_time: list[list[float]]
    answers: list[bool]


class Trainee:
    """A module in training.

    Where the processes are launched with FSDP2, each holds and trains a part of a copy of the module; the module itself
    stays whole, on the CPU.
    """

    def __init__(self, module: nn.Module, config: LoopConfig, folder: Path, device: str | None) -> None:
        from diffusers.optimization import get_scheduler

        self.module, self.config = module, config
        self.accelerator = new_accelerator(config.precision, config.log, folder, device, config.compile)
        self.is_main, self.is_sharded = self.accelerator.is_main_process, self.accelerator.is_fsdp2
        trained = copy.deepcopy(module) if self.is_sharded else module.to(self.accelerator.device)
        trained.train()
        optimizer = new_optimizer(
            [p for p in trained.parameters() if p.requires_grad],
            config.optimizer,
            config.learning_rate,
            config.weight_decay,
        )
        self.schedule = get_scheduler(
            config.schedule, optimizer, num_warmup_steps=config.warmup, num_training_steps=config.iterations
        )
        # The module is on its device. Asked to send it there, accelerate looks for tensors that only a PyTorch with
        # torch.distributed knows.
        self.model, self.optimizer = self.accelerator.prepare(trained, optimizer, device_placement=[False, True])
        self.trained = {_WRAPPERS.sub("", name): p for name, p in trained.named_parameters() if p.requires_grad}
        # A list of the trained weights alone: the average of a LoRA must not copy the UNet.
        self.weights = nn.ParameterList(self.trained.values())
        self.average = AveragedModel(self.weights, multi_avg_fn=get_ema_multi_avg_fn(config.ema))

    @property
    def precision(self) -> str:
        """What it computes in: "no", "bf16" or "fp16"."""
        return str(self.accelerator.mixed_precision)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self.schedule.get_last_lr()[0])

    def step(self, step: int, batch: Batch, loss: Loss, times: Times | None, questions: Sequence[bool]) -> Step:
        """One optimiser step.

        Raises:
            NonFiniteLoss: the loss is not finite, on all processes.
        """
        from accelerate.utils import send_to_device

        accelerator, parts = self.accelerator, self.config.accumulate
        total = torch.zeros((), device=accelerator.device)
        by_time = torch.zeros(2, BINS, device=accelerator.device)
        for i in range(parts):
            part = BatchPart(accelerator.process_index * parts + i, accelerator.num_processes * parts)
            inputs = send_to_device(batch(step, part), accelerator.device)
            with nullcontext() if i + 1 == parts else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    losses = loss(self.model, inputs)
                    value = losses.mean() / parts
                accelerator.backward(value)
            total += value.detach()
            if times:
                by_time += binned(times(inputs), losses.detach())
        asked = torch.tensor(questions, dtype=torch.float32, device=accelerator.device)
        told = accelerator.reduce(torch.cat([total.view(1), by_time.flatten(), asked]), "mean").tolist()
        mean, sums, counts, answers = told[0], told[1 : 1 + BINS], told[1 + BINS : 1 + 2 * BINS], told[1 + 2 * BINS :]
        if not math.isfinite(mean):
            raise NonFiniteLoss(
                f"The loss is {mean} at iteration {step}. The last checkpoint is from before it; "
                "lower the learning rate or use float32, and start again or resume."
            )
        accelerator.clip_grad_norm_(self.trained.values(), self.config.grad_clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.average.update_parameters(self.weights)
        return Step(mean, [sums, counts], [answer > 0 for answer in answers])

    @contextmanager
    def averaged(self) -> Iterator[bool]:
        """The module in eval mode, on the device, with the averaged weights; whether this is the process to use it.

        Where it is trained itself, they change places with its own; where it is in shards, all processes must ask.
        """
        if self.is_sharded:
            self.take_average()
        if not self.is_main:
            yield False
            return
        if self.is_sharded:
            self.module.to(self.accelerator.device)
        else:
            self._swap()
        self.module.eval()
        try:
            with torch.no_grad():
                yield True
        finally:
            self.module.train()
            if self.is_sharded:
                self.module.to("cpu")
            else:
                self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, averaged in zip(self.weights, self.average.parameters(), strict=True):
            held = weight.clone()
            weight.copy_(averaged)
            averaged.copy_(held)

    @torch.no_grad()
    def take_average(self) -> None:
        """Put the averaged weights into the module; where they are in shards, all processes must ask."""
        there = dict(self.module.named_parameters())
        for name, averaged in zip(self.trained, self.average.parameters(), strict=True):
            there[name].copy_(whole(averaged))

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint needs to hold of it, whole; where it is in shards, all processes must ask."""
        state = {name: whole(part.state_dict()) for name, part in self._parts().items()}
        return state | {"trained": whole(self.trained)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of any number of processes, in shards or not. Nothing of it is held."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(shared_out(state["trained"][name], parameter))
        placed = self.average.state_dict()
        average = {name: shared_out(value, placed[name]) for name, value in state["average"].items()}
        placed_here = state | {"average": average, "optimizer": optimizer_state(state["optimizer"], self.weights)}
        for name, part in self._parts().items():
            part.load_state_dict(placed_here[name])
        for values in self.optimizer.state.values():  # what it took as it was is a view of the file, which is replaced
            values.update({name: value.clone() for name, value in values.items() if isinstance(value, Tensor)})

    def _parts(self) -> dict[str, Any]:
        parts = {"optimizer": self.optimizer, "schedule": self.schedule, "average": self.average}
        return parts | ({"scaler": self.accelerator.scaler} if self.accelerator.scaler else {})

    def of_all(self, number: int) -> list[int]:
        """This number on each process."""
        numbers: list[int] = self.accelerator.gather(torch.tensor([number], device=self.accelerator.device)).tolist()
        return numbers

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
        for name in ("model", "optimizer", "schedule", "average", "weights", "trained", "module"):
            delattr(self, name)
        clear_device_cache(garbage_collection=True)
