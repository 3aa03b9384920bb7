"""Batches of a set: triplets with their text states and times, and how one batch is divided among processes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..flow.noise import indexed_generator
from ..text import encode_prompts
from ..triplets.reading import Reader

TIMES = ("uniform", "u-shaped")
_STEEPNESS = 4.0
_REMEMBERED = 256 * 2**20
"""Bytes of text states that are kept: 1,100 prompts of Stable Diffusion 1.5, every caption of the built-in domain."""

Pair = tuple[Tensor, Tensor, Tensor]
"""x_0, x_1 and text states, each (B, ...) float32 on the CPU."""
TimedPair = tuple[Tensor, Tensor, Tensor, Tensor]
"""The same and t (B,)."""


@dataclass(frozen=True)
class BatchPart:
    """One of `count` equal parts of a batch: what one process goes through at a time."""

    index: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> slice:
        """The rows of a batch that are this part.

        Raises:
            ValueError: the batch cannot be divided evenly.
        """
        size, rest = divmod(batch_size, self.count)
        if rest:
            raise ValueError(
                f"A batch of {batch_size} cannot be shared out to {self.count} parts (processes times accumulation). "
                f"Give a batch size that is a multiple of {self.count}."
            )
        return slice(self.index * size, (self.index + 1) * size)


class PromptStates:
    """Prompts -> text states (B, 77, width) float32 on the CPU; those of the last prompts are remembered.

    In a narrow domain the same few thousand prompts come again and again; elsewhere nearly none does.
    """

    def __init__(self, text_encoder: Any) -> None:
        self.text_encoder = text_encoder
        self._known = dict[str, Tensor]()

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        new = list(dict.fromkeys(prompt for prompt in prompts if prompt not in self._known))
        # On the CPU a state may differ in its last bits with what is encoded beside it, and a run that was resumed
        # remembers other prompts than an undisturbed one: each is encoded alone. It costs nothing there.
        size = 1 if self.text_encoder.device.type == "cpu" else max(1, len(new))
        for first in range(0, len(new), size):
            some = new[first : first + size]
            states = encode_prompts(self.text_encoder, some).to("cpu", torch.float32)
            self._known.update(zip(some, states, strict=True))
        found = torch.stack([self._known[prompt] for prompt in prompts])
        most = max(1, _REMEMBERED // found[0].nbytes)
        while len(self._known) > most:
            del self._known[next(iter(self._known))]
        return found


class SetBatches:
    """The batches of a set, one for each step: the next `batch_size` triplets of the reader, with their text states.

    Args:
        time_seed: of the times.
        times: one of TIMES.
    """

    def __init__(
        self, reader: Reader, text_encoder: Any, batch_size: int, time_seed: int = 0, times: str = TIMES[0]
    ) -> None:
        self.reader, self.states, self.batch_size = reader, PromptStates(text_encoder), batch_size
        self.time_seed, self.times = time_seed, times

    def pairs(self, step: int, part: BatchPart) -> Pair:
        """The ends of the lines, for distillation."""
        rows, first = part.rows(self.batch_size), step * self.batch_size
        triplets = self.reader.read(range(first + rows.start, first + rows.stop))
        return triplets.noise(), triplets.latents.float(), self.states(triplets.texts)

    def timed_pairs(self, step: int, part: BatchPart) -> TimedPair:
        """The same, and a time in [0, 1) for each line, for reflow."""
        times = sample_times(self.batch_size, indexed_generator(self.time_seed, step), self.times)
        return *self.pairs(step, part), times[part.rows(self.batch_size)]


def sample_times(count: int, generator: torch.Generator, how: str = TIMES[0]) -> Tensor:
    """Times in [0, 1), float32 (count,): uniform, as in the paper, or with a density of cosh(4 (t - 1/2)).

    The second draws both ends more often, where a flow that starts from a trained teacher still errs most, and where
    the only step of a one-step flow begins (Lee et al., arXiv 2405.20320, their U-shaped distribution).
    """
    uniform = torch.rand(count, generator=generator)
    if how == "uniform":
        return uniform
    return (torch.asinh((2 * uniform - 1) * math.sinh(_STEEPNESS / 2)) / _STEEPNESS + 0.5).clamp(0, 1)
