"""How the figures of a model move while it is trained: a small evaluation now and then, as a table and as curves."""

import csv
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from PIL import Image
from torch import Tensor

from ..atomic import replacing
from ..pictures.charts import draw_panels
from ..training.watching import InTraining
from ..weights.checkpoint import Checkpoint
from ..weights.files import fingerprint
from ..weights.modules import build_vae
from .drawing import Drawing, ModulesDrawing
from .extractors import Networks
from .figures import Figure
from .metrics import Judge
from .pictures import Given
from .runs import Evaluation, EvaluationConfig

TABLE, CHART = "evaluation.csv", "evaluation"
COUNT, SEED, BATCH = 16, 20_231_126, 4
"""Pictures of each evaluation, the seed of their noise, and how many are drawn at once: a training fills the memory."""
STEPS = {"reflow": 4, "distill": 1}
"""Of the model, by the stage it is in."""


class TrainingCurve:
    """Measures a model in training when it is called, and keeps a row for each call in the run's evaluation.csv.

    COUNT pictures of the run's prompts, always from the same noise, which no triplet has; compared one by one with
    those of what the training started from, and as distributions (fid, kid, cmmd) with pictures that it learns from. So
    few are far apart by chance alone, always the same: the curve tells, not its height. A run that goes on repeats the
    rows since its checkpoint, with the same figures.

    Args:
        asked: called after each batch of pictures; may raise to cancel.

    Raises:
        ValueError: the checkpoint has no VAE.
    """

    def __init__(
        self,
        of: InTraining,
        networks: Networks,
        judges: Mapping[str, Judge],
        asked: Callable[[int], None] | None = None,
    ) -> None:
        if of.init.vae is None:
            raise ValueError(
                "An evaluation looks at pictures, and the model to start from has no `vae`. Give it one, or set "
                "`evaluate_every` to 0."
            )
        self.of, self.networks, self.judges, self.asked = of, networks, judges, asked
        self.vae = build_vae(of.init)
        self.learned: Given | None = None
        if not of.goes_on:
            (of.work / TABLE).unlink(missing_ok=True)

    def __call__(self, step: int) -> None:
        of, device = self.of, next(self.of.unet.parameters()).device
        config = EvaluationConfig(COUNT, SEED, STEPS[of.stage], batch_size=BATCH, quick=True)
        drawing = ModulesDrawing(of.checkpoint, of.text_encoder, of.unet, self.vae.to(device), {"step": step})
        if self.learned is None and len(of.latents) > 1:
            parts = (drawing.decoded(part.to(device)) for part in of.latents.split(BATCH))
            self.learned = Given([picture for part in parts for picture in part], "learned from")
        now = of.work / CHART / "now"  # pictures of a model that is soon another
        shutil.rmtree(now, ignore_errors=True)
        try:
            evaluation = Evaluation(
                drawing,
                of.prompts,
                config,
                now,
                of.work / CHART,
                self.networks,
                images=self.learned,
                teacher=_Start(of.init, str(device)),
                judges=self.judges,
            )
            results = evaluation.run(self.asked)
        finally:
            self.vae.to("cpu")
            shutil.rmtree(now, ignore_errors=True)
        figures = {name: result.value for name, result in results.items() if isinstance(result, Figure)}
        self._write([*(row for row in self.rows() if row["iteration"] < step), {"iteration": step, **figures}])

    def rows(self) -> list[dict[str, float]]:
        """What evaluation.csv holds: the iteration and the figures of each evaluation."""
        with suppress(FileNotFoundError), (self.of.work / TABLE).open(encoding="utf-8", newline="") as file:
            return [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(file)]
        return []

    def charts(self) -> dict[str, Image.Image]:
        """The curve of each figure, by the name of the chart; nothing before the first evaluation."""
        rows = self.rows()
        if not rows:
            return {}
        iterations = [row["iteration"] for row in rows]
        series = {
            name: (iterations, [row.get(name, math.nan) for row in rows])
            for name in _names(rows)
            if name != "iteration"
        }
        return {CHART: draw_panels(series, f"{self.of.stage}: {COUNT} pictures", "iteration")}

    def _write(self, rows: Sequence[Mapping[str, float]]) -> None:
        with replacing(self.of.work / TABLE) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, _names(rows), lineterminator="\n")
            table.writeheader()
            table.writerows({**row, "iteration": int(row["iteration"])} for row in rows)


class _Start:
    """What a training started from, as something that draws: its modules are there only while they are at work."""

    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        self.checkpoint, self.device = checkpoint, device
        self.identity: dict[str, Any] = {"checkpoint": fingerprint(checkpoint.unet)}

    def pictures(self, texts: Sequence[str], noise: Tensor, steps: int, guidance: float) -> list[Image.Image]:
        return Drawing(self.checkpoint, self.device).pictures(texts, noise, steps, guidance)

    def straightness(self, texts: Sequence[str], noise: Tensor, guidance: float) -> Tensor:
        return Drawing(self.checkpoint, self.device).straightness(texts, noise, guidance)


def _names(rows: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))
