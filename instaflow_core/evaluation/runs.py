"""One evaluation: a model's pictures of many prompts, drawn and looked at batch by batch, and the figures of all."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..atomic import remove_leftovers_in, replacing
from ..flow.noise import indexed_noise
from ..generate import TEACHER_STEPS, settled_size
from ..pictures.sources import Pictures, short_digest
from ..triplets.writing import digest, native_guidance
from ..weights.checkpoint import Checkpoint
from . import metrics
from .columns import Columns
from .drawing import Drawer
from .extractors import Networks
from .figures import Figure, Result, median_figure
from .metrics import Batch, Judge
from .pictures import Gallery
from .plan import Plan, Subject

_PAIRS, _TIMED = 256, 7
"""Of how many pictures the difference between two seeds and the time are measured."""


@dataclass(frozen=True)
class EvaluationConfig:
    """What is drawn, and how it is looked at.

    count: pictures; the i-th is of prompt i, counted round, from noise (seed, i).
    guidance, width, height: None for the checkpoint's own.
    side: pictures and references are reduced and cut to this many pixels before fid, kid and cmmd; None as they are.
    only: the metrics that are wanted beside those of judges; None for all.
    quick: values alone: no time and memory of a picture, no interval of fid.
    """

    count: int
    seed: int = 0
    steps: int = 1
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    batch_size: int = 8
    side: int | None = None
    teacher_steps: int = TEACHER_STEPS
    teacher_guidance: float | None = None
    only: frozenset[str] | None = None
    quick: bool = False


@dataclass(frozen=True)
class Share:
    """Which of several processes this is, and how it waits for the others."""

    part: int = 0
    parts: int = 1
    wait: Callable[[], None] = lambda: None


class Evaluation:
    """The pictures of one model at one number of steps, kept in a folder, and what is measured of them.

    Args:
        drawing: the model.
        prompts: texts; there may be fewer than pictures.
        images: what fid, kid and cmmd compare with; None leaves them out.
        teacher: whose pictures from the same noise lpips and psnr compare with; None leaves them out.
        judges: more metrics, by name: the share of pictures that each says is right.
        shared: a folder for what several evaluations of one command have in common.
        networks: what metrics look through; all work is done on their device.

    Raises:
        ValueError: a number is too small or does not fit the model, or the folder holds another evaluation.
    """

    def __init__(
        self,
        drawing: Drawer,
        prompts: Sequence[str],
        config: EvaluationConfig,
        folder: Path,
        shared: Path,
        networks: Networks,
        *,
        images: Pictures | None = None,
        teacher: Drawer | None = None,
        judges: Mapping[str, Judge] | None = None,
        share: Share | None = None,
    ) -> None:
        for name, least in (("count", 2), ("steps", 1), ("batch_size", 1)):
            if getattr(config, name) < least:
                raise ValueError(f"{name} is {getattr(config, name)}. Give {least} or more.")
        if not prompts:
            raise ValueError("There are no `prompts` to draw. Give one or more.")
        self.config, self.folder, self.networks, self.device = config, folder, networks, networks.device
        self.share, self.shared = share or Share(), shared
        self.texts = [prompts[i % len(prompts)] for i in range(config.count)]
        self.drawing, self.checkpoint = drawing, drawing.checkpoint
        self.size = settled_size(self.checkpoint, config.width, config.height)
        self.guidance = native_or(self.checkpoint, config.guidance)
        self.columns = Columns(folder / "columns", config.count, config.batch_size)
        self._claim()
        self.gallery = Gallery(
            folder / "pictures", config.count, self._drawn(self.drawing, config.steps, self.guidance)
        )
        self.images, self.teacher, self.judges = images, teacher, judges or {}
        self.references: Columns | None = None
        if images is not None:
            metrics.enough(images, "to compare with")
            place = shared / f"reference-{short_digest(images.words)}"
            self.references = Columns(place, len(images), config.batch_size)

    def run(self, progress: Callable[[int], None] | None = None) -> dict[str, Result]:
        """Draw and measure this process's batches, wait for the others', and return every metric by name; on any
        process but the first, nothing."""
        plan = self._plan()
        for number, indices in self.columns.batches(self.share.part, self.share.parts):
            batch = Batch(indices, [self.texts[i] for i in indices], self.gallery.read(indices))
            for column in plan.columns:
                column.keep(self.columns, number, batch)
            if progress:
                progress(len(indices))
        if self.references is not None and self.images is not None:
            for number, indices in self.references.batches(self.share.part, self.share.parts):
                batch = Batch(indices, [], self.images.read(indices))
                for column in plan.reference_columns:
                    column.keep(self.references, number, batch)
        self.share.wait()
        if self.share.part:
            return {}
        speed = {} if self.config.quick else self._speed()
        return {name: metrics.computed(figure) for name, figure in plan.figures.items()} | plan.missing | speed

    def _plan(self) -> Plan:
        config, teachers = self.config, None
        if self.teacher is not None:
            teachers = self._teachers(self.teacher)
        subject = Subject(self.drawing, self.columns, config.count, config.seed, self.guidance, self.size, config.side)
        plan = Plan(subject, self.networks, self.device, config.only)
        for name, judge in self.judges.items():
            plan.judged(name, judge)
        plan.distributions(self.images, self.references, config.quick)
        plan.texts()
        plan.to_teacher(teachers, config.teacher_steps)
        plan.diversity(self._other_seed())
        plan.paths()
        return plan

    # --- what is drawn ---

    def _drawn(self, drawing: Drawer, steps: int, guidance: float, seed_offset: int = 0) -> Callable[..., Any]:
        seed, shape = self.config.seed + seed_offset, self.checkpoint.latent_shape(*self.size)

        def draw(indices: Sequence[int]) -> list[Image.Image]:
            noise = torch.stack([indexed_noise(seed, i, shape) for i in indices])
            return drawing.pictures([self.texts[i] for i in indices], noise, steps, guidance)

        return draw

    def _other_seed(self) -> Gallery:
        """A second picture of the first prompts, from the next seed."""
        draw = self._drawn(self.drawing, self.config.steps, self.guidance, 1)
        return Gallery(self.folder / "pictures-of-the-next-seed", min(_PAIRS, self.config.count), draw)

    def _teachers(self, teacher: Drawer) -> Gallery:
        """The teacher's pictures from the same noise, which every evaluation of the command compares with."""
        config, guidance = self.config, native_or(teacher.checkpoint, self.config.teacher_guidance)
        said = json.dumps([*self._pictures_of(teacher, config.teacher_steps, guidance).values()], default=str)
        draw = self._drawn(teacher, config.teacher_steps, guidance)
        return Gallery(self.shared / f"teacher-{short_digest(said)}", config.count, draw)

    def _pictures_of(self, drawing: Drawer, steps: int, guidance: float) -> dict[str, Any]:
        """All that a set of pictures depends on."""
        config = self.config
        return {
            **drawing.identity,
            "prompts": digest(self.texts),
            "count": config.count,
            "seed": config.seed,
            "steps": steps,
            "guidance": guidance,
            "size": list(self.size),
            "batch_size": config.batch_size,
        }

    def _claim(self) -> None:
        """Write into the folder what its pictures are of, or check that it says the same."""
        path, settings = self.folder / "settings.json", self._pictures_of(
            self.drawing, self.config.steps, self.guidance
        )  # fmt: skip
        if self.share.part == 0 and not path.exists():
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        self.share.wait()
        there = json.loads(path.read_text(encoding="utf-8"))
        if there != settings:
            differing = ", ".join(f"{key} {there.get(key)!r}" for key in settings if there.get(key) != settings[key])
            raise ValueError(f"{self.folder} holds an evaluation with {differing}. Choose another folder.")
        if self.share.part == 0:
            remove_leftovers_in(self.folder)

    # --- how long it takes ---

    def _speed(self) -> dict[str, Result]:
        """Milliseconds from prompt to picture, one at a time, and the memory that takes."""
        draw, seconds, on_cuda = self.gallery.draw, list[float](), self.device.startswith("cuda")
        if on_cuda:
            torch.cuda.reset_peak_memory_stats()
        for index in range(min(_TIMED, self.config.count)):
            start = time.perf_counter()
            draw([index])  # pictures end on the CPU, so nothing is still at work
            seconds.append(time.perf_counter() - start)
        if on_cuda:
            name, held = torch.cuda.get_device_name(), torch.cuda.max_memory_allocated()
            measured = "the most that PyTorch had allocated"
        else:
            import psutil

            name, held = f"the CPU, {torch.get_num_threads()} threads", psutil.Process().memory_info().rss
            measured = "resident in the whole process"
        times = median_figure([1000 * s for s in seconds], f"one picture at a time on {name}, median of {len(seconds)}")
        return {"milliseconds": times, "memory": median_figure([held / 2**20], f"MiB, {measured}, one at a time")}


def native_or(checkpoint: Checkpoint, guidance: float | None) -> float:
    """The guidance given, else the one a checkpoint is followed at."""
    return native_guidance(checkpoint) if guidance is None else guidance


def as_json(results: Mapping[str, Result]) -> dict[str, Any]:
    """Results for a JSON file: a metric that was not computed stands there with the reason."""
    return {
        name: asdict(result) if isinstance(result, Figure) else {"not_computed": result.reason}
        for name, result in results.items()
    }
