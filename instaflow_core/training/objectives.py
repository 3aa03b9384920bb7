"""The paper's two trainings as batches and losses for `training.fit`: reflow (section 2.1), distillation (3)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..flow.convention import data_from_velocity, interpolate, unet_time
from ..flow.noise import indexed_generator
from ..text import encode_prompts
from ..triplets.reading import Block, Triplets
from .losses import TIMES, reflow_loss, sample_times
from .share import Share

Pair = tuple[Tensor, Tensor, Tensor]
Timed = tuple[Tensor, Tensor, Tensor, Tensor]
Distance = Callable[[Tensor, Tensor], Tensor]

_HALF_WAY = (0.35, 0.65)
"""Between which times the flow takes over a draft: earlier it forgets the draft, later it can no longer change it."""
_REST = 2  # Euler steps from there


class TextStates:
    """Text states of many prompts, each encoded once: states[i] belongs to the i-th of `texts`. Kept on the CPU."""

    def __init__(self, text_encoder: Any, texts: list[str], batch_size: int = 256):
        unique = sorted(set(texts))
        rows = {text: row for row, text in enumerate(unique)}
        parts = [encode_prompts(text_encoder, unique[i : i + batch_size]) for i in range(0, len(unique), batch_size)]
        self.unique = torch.cat([part.cpu() for part in parts])
        self.row = torch.tensor([rows[text] for text in texts])

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.unique[self.row[index]]


class PairBatches:
    """(Step, share) -> (x_0, x_1, text states): the next records of a set, each (B, ...) float32 on the CPU."""

    def __init__(self, triplets: Triplets, text_encoder: Any, batch_size: int):
        self.triplets, self.text_encoder, self.batch_size = triplets, text_encoder, batch_size
        self._encoded: tuple[Block, TextStates] | None = None

    def __call__(self, step: int, share: Share) -> Pair:
        rows = share.rows(self.batch_size)
        first = step * self.batch_size
        drawn = list(self.triplets.draw(range(first + rows.start, first + rows.stop)))
        x_0 = [self.triplets.info.noise([block.indices[i] for i in index.tolist()]) for block, index in drawn]
        x_1 = [block.latents[index].float() for block, index in drawn]
        states = [self._states(block)[index].float() for block, index in drawn]
        return torch.cat(x_0), torch.cat(x_1), torch.cat(states)

    def _states(self, block: Block) -> TextStates:
        if self._encoded is None or self._encoded[0] is not block:
            self._encoded = None
            self._encoded = block, TextStates(self.text_encoder, block.texts)
        return self._encoded[1]


class ReflowBatches(PairBatches):
    """(Step, share) -> (x_0, x_1, text states, t), t in [0, 1) drawn as `losses.sample_times` does."""

    def __init__(self, triplets: Triplets, text_encoder: Any, batch_size: int, seed: int, times: str = TIMES[0]):
        super().__init__(triplets, text_encoder, batch_size)
        self.seed, self.times = seed, times

    def __call__(self, step: int, share: Share) -> Timed:  # type: ignore[override]
        times = sample_times(self.batch_size, indexed_generator(self.seed, step), self.times)
        return *super().__call__(step, share), times[share.rows(self.batch_size)]


def reflow_step(unet: Any, batch: Timed) -> Tensor:
    """The reflow loss of one batch (eq. 2)."""
    x_0, x_1, states, t = batch
    return reflow_loss(_velocity(unet, interpolate(x_0, x_1, t), t, states), x_0, x_1)


def distill_step(distance: Distance) -> Callable[[Any, Pair], Tensor]:
    """The distillation loss D(x_0 + v(x_0, 0), x_1) of one batch (eq. 4) under this distance."""

    def step(unet: Any, batch: Pair) -> Tensor:
        x_0, x_1, states = batch
        return distance(_one_step(unet, x_0, states), x_1)

    return step


def on_policy_step(distance: Distance, flow: Any, share: float) -> Callable[[Any, Timed], Tensor]:
    """The distillation loss of a batch of `ReflowBatches`, of which a share has the flow's answer to the student's own
    draft as its target instead of the flow's end.

    The draft is x_0 + v(x_0, 0); about half way from x_0 to it the flow takes over, and where that leads is the target.
    Where a noise lies between two pictures, the flow ends at one of them and a student draws some of both: the answer
    is the one that its draft is nearer to, a whole picture and a shorter way off. Learning from answers to what the
    learner itself does is on-policy distillation (Agarwal et al., arXiv 2306.13649, for language models). The other
    targets keep the student from wandering off.

    Args:
        flow: the 2-rectified flow that made the set; frozen.
        share: of the batch, above 0, at most 1. Which records it is follows from their times, drawn uniformly.
    """
    flow.requires_grad_(False)

    def step(unet: Any, batch: Timed) -> Tensor:
        x_0, x_1, states, t = batch
        drawn = _one_step(unet, x_0, states)
        answered = t < share
        if answered.any():
            early, late = _HALF_WAY
            times = early + (late - early) * t[answered] / share
            answers = _led_on(flow.to(x_0.device), x_0[answered], drawn.detach()[answered], states[answered], times)
            x_1 = x_1.masked_scatter(answered.view(-1, 1, 1, 1), answers)
        return distance(drawn, x_1)

    return step


def _velocity(unet: Any, x_t: Tensor, t: Tensor, states: Tensor) -> Tensor:
    """v(x_t, t | text) in float32, t (B,)."""
    return unet(x_t, unet_time(t), encoder_hidden_states=states, return_dict=False)[0].float()


def _one_step(unet: Any, x_0: Tensor, states: Tensor) -> Tensor:
    """x_0 + v(x_0, 0)."""
    start = torch.zeros(len(x_0), device=x_0.device)
    return data_from_velocity(x_0, _velocity(unet, x_0, start, states), 0.0)


@torch.no_grad()
def _led_on(flow: Any, x_0: Tensor, drawn: Tensor, states: Tensor, t: Tensor) -> Tensor:
    """Where the flow leads from the points (1 - t) x_0 + t drawn, t (B,), in Euler steps of equal length."""
    x_t, length = interpolate(x_0, drawn, t), (1 - t) / _REST
    for part in range(_REST):
        x_t = x_t + length.view(-1, 1, 1, 1) * _velocity(flow, x_t, t + part * length, states)
    return x_t
