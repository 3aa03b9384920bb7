"""The paper's two trainings as batches and losses for `training.fit`: reflow (section 2.1), distillation (3)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .flow import data_from_velocity, interpolate, unet_time
from .losses import TIMES, reflow_loss, sample_times
from .noise import indexed_generator
from .records import Block, Triplets
from .share import Share
from .text import encode_prompts

Pair = tuple[Tensor, Tensor, Tensor]


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

    def __call__(self, step: int, share: Share) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # type: ignore[override]
        times = sample_times(self.batch_size, indexed_generator(self.seed, step), self.times)
        return *super().__call__(step, share), times[share.rows(self.batch_size)]


def reflow_step(unet: Any, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """The reflow loss of one batch (eq. 2)."""
    x_0, x_1, states, t = batch
    x_t = interpolate(x_0, x_1, t)
    predicted = unet(x_t, unet_time(t), encoder_hidden_states=states, return_dict=False)[0]
    return reflow_loss(predicted.float(), x_0, x_1)


def distill_step(distance: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Pair], Tensor]:
    """The distillation loss D(x_0 + v(x_0, 0), x_1) of one batch (eq. 4) under this distance."""

    def step(unet: Any, batch: Pair) -> Tensor:
        x_0, x_1, states = batch
        time = torch.full((len(x_0),), float(unet_time(0.0)), device=x_0.device)
        predicted = unet(x_0, time, encoder_hidden_states=states, return_dict=False)[0]
        return distance(data_from_velocity(x_0, predicted.float(), 0.0), x_1)

    return step
