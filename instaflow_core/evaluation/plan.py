"""Which columns and figures an evaluation has, and why it lacks others."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..flow.noise import indexed_noise
from ..pictures.sources import Pictures
from . import metrics
from .columns import Columns
from .drawing import PATH_STEPS, Drawer
from .extractors import Distance, Networks, NotAvailable
from .figures import Figure, NotComputed, Result
from .metrics import Batch, Column, Judge

DISTRIBUTIONS: dict[str, Callable[..., Figure]] = {"fid": metrics.frechet, "kid": metrics.kid, "cmmd": metrics.cmmd}
"""Metrics of all pictures against those of a reference."""
_PATHS = 64
"""Of how many pictures the path's straightness is measured."""


@dataclass(frozen=True)
class Subject:
    """What is measured: a model's pictures, `count` of them of `size` (width, height) in pixels, from noise (seed, i)
    at a guidance; their columns; and what they are reduced and cut to before fid, kid and cmmd."""

    drawing: Drawer
    columns: Columns
    count: int
    seed: int
    guidance: float
    size: tuple[int, int]
    side: int | None


class Plan:
    """The columns to fill, and the figures to make of them; each method adds what it is called.

    Args:
        only: metrics that are wanted; None for all.

    Attributes:
        columns, reference_columns: of the pictures, and of those that they are compared with.
        figures: what makes each figure once the columns are there, by metric.
        missing: metrics that cannot be had.
    """

    def __init__(self, subject: Subject, networks: Networks, device: str, only: Collection[str] | None = None) -> None:
        self.subject, self.networks, self.device, self.only = subject, networks, device, only
        self.columns, self.reference_columns = list[Column](), list[Column]()
        self.figures: dict[str, Callable[[], Figure]] = {}
        self.missing: dict[str, Result] = {}

    def judged(self, name: str, judge: Judge) -> None:
        """The share of pictures that a judge accepts."""
        column, recipe = metrics.judged_column(name, judge), "share of pictures that show their caption"
        self.columns.append(column)
        self.figures[name] = lambda: metrics.share(self.subject.columns, column, recipe)

    def distributions(self, images: Pictures | None, references: Columns | None, quick: bool) -> None:
        """fid, kid and cmmd; without fid's interval, which takes the most time, where they are to be quick."""
        subject, side = self.subject, self.subject.side
        if images is None or references is None:
            self._lacks("There are no pictures to compare with. Give some as `images`.", *DISTRIBUTIONS)
            return
        for name, figure in DISTRIBUTIONS.items():
            if network := self._network(name):
                column = metrics.feature_column(network, side, self.device)
                if column.name not in {there.name for there in self.columns}:
                    self.columns.append(column)
                    self.reference_columns.append(column)
                seen = f"cut to {side} pixels" if side else "uncut"
                recipe = f"{subject.count} pictures, {images.words}; {seen}; {network.words}"
                options = {"interval": False} if quick and name == "fid" else {}
                self.figures[name] = partial(figure, subject.columns, references, column, recipe, **options)

    def texts(self) -> None:
        """The CLIP score."""
        if network := self._network("clip"):
            self._average("clip", metrics.text_column(network, self.device), f"cosine, {network.words}")

    def to_teacher(self, teachers: Pictures | None, steps: int) -> None:
        """lpips and psnr to the teacher's pictures."""
        if teachers is None:
            self._lacks("There is no teacher to compare with. Give one as `teacher`.", "lpips", "psnr")
            return
        recipe = f"to the teacher at {steps} steps from the same noise"
        self._distance("lpips", self._network("lpips"), teachers, recipe)
        self._distance("psnr", metrics.psnr_distance(), teachers, recipe)

    def diversity(self, second: Pictures) -> None:
        """The distance between two pictures of a prompt."""
        self._distance("diversity", self._network("diversity"), second, "between two seeds of a prompt", len(second))

    def paths(self) -> None:
        """The straightness of the first pictures' paths."""
        subject = self.subject
        checkpoint = subject.drawing.checkpoint
        jumps = checkpoint.rule is not None and checkpoint.rule.few_step
        if jumps or checkpoint.stage == "one-step":
            kind = "few-step model" if jumps else "one-step model"
            self._lacks(f"A {kind} has learned no path between noise and data.", "straightness")
            return
        shape = checkpoint.latent_shape(*subject.size)

        def make(batch: Batch) -> torch.Tensor:
            noise = torch.stack([indexed_noise(subject.seed, i, shape) for i in batch.indices])
            return subject.drawing.straightness(batch.texts, noise, subject.guidance)

        first = min(_PATHS, subject.count)
        self._average("straightness", Column("straightness", make, first), f"S over {PATH_STEPS} steps, {first} paths")

    def _wants(self, name: str) -> bool:
        return self.only is None or name in self.only

    def _lacks(self, reason: str, *names: str) -> None:
        self.missing |= {name: NotComputed(reason) for name in names if self._wants(name)}

    def _average(self, name: str, column: Column, recipe: str) -> None:
        if self._wants(name):
            self.columns.append(column)
            self.figures[name] = lambda: metrics.average(self.subject.columns, column, recipe)

    def _network(self, name: str) -> Any:
        """A metric's network; None where it is not wanted or cannot be had, which `missing` says."""
        if not self._wants(name):
            return None
        try:
            return self.networks.of(name)
        except NotAvailable as error:
            self.missing[name] = NotComputed(str(error))
            return None

    def _distance(
        self, name: str, distance: Distance | None, others: Pictures, recipe: str, first: int | None = None
    ) -> None:
        if distance:
            column = metrics.distance_column(name, distance, others, self.device, first)
            self._average(name, column, f"{distance.words} {recipe}")
