"""The paper's two trainings as batches and losses for `training.fit`: reflow (section 2.1), distillation (3)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .flow import data_from_velocity, interpolate, unet_time
from .losses import reflow_loss
from .noise import indexed_generator
from .text import encode_prompts
from .triplets import Triplets

Pair = tuple[Tensor, Tensor, Tensor]


class TextStates:
    """Text states of many prompts, each encoded once: states[i] belongs to the i-th of `texts`."""

    def __init__(self, text_encoder: Any, texts: list[str], batch_size: int = 256):
        unique = sorted(set(texts))
        rows = {text: row for row, text in enumerate(unique)}
        parts = [encode_prompts(text_encoder, unique[i : i + batch_size]) for i in range(0, len(unique), batch_size)]
        self.unique = torch.cat(parts)
        self.row = torch.tensor([rows[text] for text in texts])

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.unique[self.row[index]]


class PairBatches:
    """Step -> (x_0, x_1, text states) of records drawn from a set of triplets, with a generator for that step."""

    def __init__(self, triplets: Triplets, states: TextStates, batch_size: int, seed: int):
        self.triplets, self.states, self.batch_size, self.seed = triplets, states, batch_size, seed

    def draw(self, step: int) -> tuple[Pair, torch.Generator]:
        generator = indexed_generator(self.seed, step)
        index = torch.randint(len(self.triplets), (self.batch_size,), generator=generator)
        return (*self.triplets.pairs(index), self.states[index]), generator


class ReflowBatches(PairBatches):
    """Step -> (x_0, x_1, text states, t), t uniform in [0, 1)."""

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pair, generator = self.draw(step)
        return *pair, torch.rand(self.batch_size, generator=generator)


class DistillBatches(PairBatches):
    """Step -> (x_0, x_1, text states); the time is always t = 0."""

    def __call__(self, step: int) -> Pair:
        return self.draw(step)[0]


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
        time = torch.full((len(x_0),), float(unet_time(0.0)))
        predicted = unet(x_0, time, encoder_hidden_states=states, return_dict=False)[0]
        return distance(data_from_velocity(x_0, predicted.float(), 0.0), x_1)

    return step
