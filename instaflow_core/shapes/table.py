"""The paper's finding on the built-in domain: how right, how like the teacher, how straight and how fast each is."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from ..flow.diffusion import noise_prediction
from ..flow.guidance import GuidedUNet
from ..flow.noise import indexed_noise
from ..flow.solvers import time_grid
from ..flow.straightness import diffusion_trajectory, flow_trajectory, straightness
from ..text import encode_prompts
from ..weights.checkpoint import MODELS, Checkpoint, load
from .captions import Caption, sample_captions
from .evaluate import Modules, accuracy, build, draw_pictures
from .features import frechet_distance, picture_features

SEED = 20_230_912
"""Of the captions and of the noise."""
_REFERENCE_SEED = 1
_TRAJECTORY_STEPS, _TRAJECTORIES = 100, 64

METHODS: dict[str, tuple[str, tuple[int, ...]]] = {
    "teacher": ("built-in: shapes-teacher", (25, 8, 1)),
    "direct": (str(MODELS / "shapes-direct.safetensors"), (1,)),
    "2rf": ("built-in: shapes-2rf", (25, 4, 2, 1)),
    "instaflow": ("built-in: shapes", (1,)),
}
"""The rows: a method, its checkpoint, and its numbers of steps."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    accuracy_seen, accuracy_heldout: the share of pictures that show what a caption of the training part, of the
        held-out part, says.
    frechet: Fréchet distance of both parts' pictures to the teacher's at 25 steps from other noise, in `features`
        that are each divided by their standard deviation over the latter.
    straightness: S of its trajectories at its guidance, the teacher's in rectified-flow coordinates; None for a model
        that has one step only.
    ms: from prompt to picture in milliseconds, one at a time on this machine's CPU; the median of several.
    """

    method: str
    steps: int
    accuracy_seen: float
    accuracy_heldout: float
    frechet: float
    straightness: float | None
    ms: float


class Table:
    """Measures checkpoints of the built-in domain.

    Args:
        count: captions of each part.
    """

    def __init__(self, count: int = 400) -> None:
        if count < 2:
            raise ValueError(f"count is {count}. Give 2 or more captions of each part; 400 for figures to quote.")
        self.parts = [sample_captions(count, SEED, held_out) for held_out in (False, True)]
        self.captions = [caption for part in self.parts for caption in part]
        teacher = load(METHODS["teacher"][0])
        modules = build(teacher)
        self.vae = modules[2]
        pictures = draw_pictures(
            teacher, self.captions, _REFERENCE_SEED, 25, teacher.guidance, modules=modules
        )  # fmt: skip
        reference = picture_features(self.vae, pictures)
        # Without units of its own a feature counts by how much it varies, which says nothing of how much it tells.
        self.units = reference.std(0)
        self.reference = reference / self.units

    def rows(
        self, method: str, checkpoint: Checkpoint, steps: Sequence[int], guidance: float | None = None
    ) -> list[Row]:
        """A row for each number of steps; guidance is the checkpoint's own where None."""
        guided = checkpoint.guidance if guidance is None else guidance
        modules, s = build(checkpoint), None
        if checkpoint.stage != "one-step":
            s = trajectory_straightness(checkpoint, modules, self.captions, guided)
        return [self._row(method, checkpoint, modules, n, guided, s) for n in steps]

    def _row(
        self, method: str, checkpoint: Checkpoint, modules: Modules, steps: int, guidance: float, s: float | None
    ) -> Row:
        pictures = draw_pictures(checkpoint, self.captions, SEED, steps, guidance, modules=modules)
        half = len(self.parts[0])
        seen, heldout = accuracy(pictures[:half], self.parts[0]), accuracy(pictures[half:], self.parts[1])
        frechet = frechet_distance(picture_features(self.vae, pictures) / self.units, self.reference)
        return Row(method, steps, seen, heldout, frechet, s, self._milliseconds(checkpoint, modules, steps, guidance))

    def _milliseconds(self, checkpoint: Checkpoint, modules: Modules, steps: int, guidance: float) -> float:
        seconds = []
        for caption in self.captions[:7]:
            start = time.perf_counter()
            draw_pictures(checkpoint, [caption], SEED, steps, guidance, modules=modules)
            seconds.append(time.perf_counter() - start)
        return 1000 * median(seconds)


@torch.no_grad()
def trajectory_straightness(
    checkpoint: Checkpoint, modules: Modules, captions: Sequence[Caption], guidance: float
) -> float:
    """S(Z) of the trajectories of the first captions' pictures, in many small steps (section 2 of the paper)."""
    encoder, unet, _ = modules
    texts = [str(caption) for caption in captions[:: max(1, len(captions) // _TRAJECTORIES)]][:_TRAJECTORIES]
    states, empty = encode_prompts(encoder, texts), encode_prompts(encoder, [""])
    noise = torch.stack([indexed_noise(SEED, i, checkpoint.latent_shape()) for i in range(len(texts))])
    guided = GuidedUNet(unet, states, empty, guidance)
    if not checkpoint.is_flow:
        predict_noise = noise_prediction(guided, checkpoint.prediction)
        return straightness(*diffusion_trajectory(predict_noise, noise, _TRAJECTORY_STEPS)).value
    times = time_grid(_TRAJECTORY_STEPS)
    return straightness(flow_trajectory(guided.velocity, noise, times), times).value


def header() -> str:
    """The names of the columns, over `line`."""
    names = ("seen", "held out", "Fréchet", "S", "ms")
    return f"{'method':12}{'steps':>6}" + "".join(f"{name:>10}" for name in names)


def line(row: Row) -> str:
    """A row as text."""
    s = "-" if row.straightness is None else f"{row.straightness:.3f}"
    figures = f"{row.accuracy_seen:>10.3f}{row.accuracy_heldout:>10.3f}{row.frechet:>10.4f}{s:>10}{row.ms:>10.1f}"
    return f"{row.method:12}{row.steps:>6}" + figures
