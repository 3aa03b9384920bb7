"""Pictures of many captions from one model, and the share of them that the judge accepts."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import torch
from PIL import Image

from ..evaluation.drawing import Drawing
from ..evaluation.extractors import MAKERS, Networks, NotAvailable, Said
from ..evaluation.metrics import Judge
from ..evaluation.trainings import TrainingCurve
from ..flow.noise import indexed_noise
from ..training.watching import InTraining
from .captions import Caption, parse
from .features import FEATURES
from .judge import judge


def draw_pictures(
    drawing: Drawing, captions: Sequence[Caption], seed: int, steps: int, guidance: float, batch_size: int = 64
) -> list[Image.Image]:
    """One picture of each caption; the i-th starts from noise (seed, i). The model's native size."""
    shape = drawing.checkpoint.latent_shape()
    pictures = []
    for first in range(0, len(captions), batch_size):
        texts = [str(c) for c in captions[first : first + batch_size]]
        noise = torch.stack([indexed_noise(seed, first + i, shape) for i in range(len(texts))])
        pictures += drawing.pictures(texts, noise, steps, guidance)
    return pictures


def judges_of(prompts: Sequence[str]) -> dict[str, Judge]:
    """The metric `accuracy`, for `evaluation.runs.Evaluation`, where every prompt is a caption of the built-in domain.

    Other prompts have no judge.
    """
    try:
        captions = {prompt: parse(prompt) for prompt in prompts}
    except ValueError:
        return {}
    return {"accuracy": lambda picture, prompt: judge(picture, captions[prompt])}


def training_curve(
    device: str, asked: Callable[[int], None] | None = None, said: Mapping[str, str] | None = None
) -> Callable[[InTraining], TrainingCurve]:
    """What `training.runs.train` takes as its watcher: on captions of the built-in domain accuracy is measured, and
    distances through `features`; elsewhere through the networks of papers that are on this machine.

    Args:
        asked: as in `TrainingCurve`.
        said: what takes a network's place, by metric.

    Raises:
        ValueError: when the watcher is made, what takes a network's place is not there.
    """

    def made(of: InTraining) -> TrainingCurve:
        judges = judges_of(of.prompts)
        built_in: dict[str, Said] = {name: FEATURES for name in MAKERS if name != "clip"} if judges else {}
        networks = Networks(device, built_in | dict(said or {}), fetched=False)
        for metric in said or {}:
            with suppress(NotAvailable):  # as elsewhere: what cannot be had is left out
                networks.of(metric)
        return TrainingCurve(of, networks, judges, asked)

    return made


def accuracy(pictures: Sequence[Image.Image], captions: Sequence[Caption]) -> float:
    """The share of pictures that show what their caption says, 0 to 1."""
    return sum(map(judge, pictures, captions)) / len(captions)
