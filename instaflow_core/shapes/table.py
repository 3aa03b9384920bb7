"""The paper's finding on the built-in domain: how right, how like the teacher, how straight and how fast each is."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from ..atomic import replacing
from ..evaluation.drawing import Drawing
from ..evaluation.extractors import MAKERS, Extractor, Networks
from ..evaluation.figures import Figure, Result
from ..evaluation.pictures import Given, pixels
from ..evaluation.runs import Evaluation, EvaluationConfig
from ..generate import TEACHER_STEPS
from ..weights.checkpoint import MODELS, Checkpoint, load
from .captions import parse, sample_captions
from .evaluate import draw_pictures
from .features import FEATURES, picture_features
from .judge import judge

SEED = 20_230_912
"""Of the captions and of the noise."""
_REFERENCE_SEED = 1
_BATCH = 64
_PARTS = {"accuracy_seen": False, "accuracy_heldout": True}
"""Whose captions each of them is of: the training part's, or the held-out one's."""

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


class Table(ExitStack):
    """Measures checkpoints of the built-in domain, each by an `Evaluation` of both parts' captions.

    A context: its pictures lie in a temporary folder until its end.

    Args:
        count: captions of each part.
    """

    def __init__(self, count: int = 400) -> None:
        super().__init__()
        if count < 2:
            raise ValueError(f"count is {count}. Give 2 or more captions of each part; 400 for figures to quote.")
        self.folder = Path(self.enter_context(TemporaryDirectory(prefix="instaflow-table-")))
        captions = [c for held_out in _PARTS.values() for c in sample_captions(count, SEED, held_out)]
        self.texts = [str(caption) for caption in captions]
        teacher = load(METHODS["teacher"][0])
        drawn = draw_pictures(Drawing(teacher), captions, _REFERENCE_SEED, TEACHER_STEPS, teacher.guidance)
        self.reference = Given(drawn, "the teacher's, from other noise")
        # Without units of its own a feature counts by how much it varies, which says nothing of how much it tells.
        units = picture_features(pixels(drawn)).std(0)
        features = Extractor(FEATURES.words, lambda pictures: picture_features(pictures) / units)
        self.networks = Networks("cpu", {name: features for name in MAKERS if name != "clip"}, fetched=False)

    def rows(
        self, method: str, checkpoint: Checkpoint, steps: Sequence[int], guidance: float | None = None
    ) -> Iterator[Row]:
        """A row for each number of steps; guidance is the checkpoint's own where None."""
        guided = checkpoint.guidance if guidance is None else guidance
        drawing, s = Drawing(checkpoint), None
        for number, n in enumerate(steps):
            # The paths are the same at any number of steps.
            results = self._measured(drawing, n, guided, {"fid"} if number else {"fid", "straightness"})
            figures = {name: result.value for name, result in results.items() if isinstance(result, Figure)}
            s = figures.get("straightness", s)
            seen, heldout = (figures[name] for name in _PARTS)
            yield Row(method, n, seen, heldout, figures["fid"], s, figures["milliseconds"])

    def _measured(self, drawing: Drawing, steps: int, guidance: float, only: set[str]) -> dict[str, Result]:
        wanted = frozenset(only)
        config = EvaluationConfig(len(self.texts), SEED, steps, guidance, batch_size=_BATCH, only=wanted)
        with TemporaryDirectory(dir=self.folder) as folder:
            return Evaluation(
                drawing,
                self.texts,
                config,
                Path(folder),
                self.folder,
                self.networks,
                images=self.reference,
                judges={name: _judge_of(held_out) for name, held_out in _PARTS.items()},
            ).run()


def _judge_of(held_out: bool) -> Any:
    """Whether a picture shows its caption, for captions of one part."""

    def judged(picture: Image.Image, text: str) -> bool | None:
        caption = parse(text)
        return judge(picture, caption) if caption.held_out == held_out else None

    return judged


def header() -> str:
    """The names of the columns, over `line`."""
    names = ("seen", "held out", "Fréchet", "S", "ms")
    return f"{'method':12}{'steps':>6}" + "".join(f"{name:>10}" for name in names)


def line(row: Row) -> str:
    """A row as text."""
    s = "-" if row.straightness is None else f"{row.straightness:.3f}"
    figures = f"{row.accuracy_seen:>10.3f}{row.accuracy_heldout:>10.3f}{row.frechet:>10.4f}{s:>10}{row.ms:>10.1f}"
    return f"{row.method:12}{row.steps:>6}" + figures


def write_table(rows: Iterable[Row], path: Path | None = None) -> None:
    """Print rows as they come under their header, and write them to a file of JSON."""
    print(header())
    measured = []
    for row in rows:
        measured.append(asdict(row))
        print(line(row), flush=True)
    if path:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
