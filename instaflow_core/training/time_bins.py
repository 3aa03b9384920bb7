"""The loss of a flow by time: where between noise (t = 0) and data (t = 1) it still errs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..atomic import replacing
from ..pictures.charts import draw_curve

BY_TIME_FILE = "loss_by_time.csv"
BINS = 10
CENTRES = [(i + 0.5) / BINS for i in range(BINS)]
NAMES = [f"t {i / BINS:.1f}-{(i + 1) / BINS:.1f}" for i in range(BINS)]

Row = tuple[int, list[float]]
"""How many steps were done, and the mean loss of each bin since the row before; NaN where no time fell into one."""


def binned(t: Tensor, losses: Tensor) -> Tensor:
    """Sums and numbers of the losses (B,) whose times t (B,) lie in each tenth of [0, 1]: (2, BINS), float32."""
    bins = (t * BINS).long().clamp(0, BINS - 1)
    values = torch.stack([losses.float(), torch.ones_like(losses, dtype=torch.float32)])
    return torch.zeros(2, BINS, device=losses.device).index_add_(1, bins, values)


class LossByTime:
    """Rows of mean losses, one for every `interval` steps."""

    def __init__(self, interval: int) -> None:
        self.interval, self.rows = interval, list[Row]()
        self._sums, self._counts = [0.0] * BINS, [0.0] * BINS

    def add(self, done: int, sums: Sequence[float], counts: Sequence[float]) -> Row | None:
        """Take in one step, after which `done` are done; the row, where that ends one."""
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)]
        self._counts = [a + b for a, b in zip(self._counts, counts, strict=True)]
        if done % self.interval:
            return None
        means = [total / count if count else math.nan for total, count in zip(self._sums, self._counts, strict=True)]
        self.rows.append((done, means))
        self._sums, self._counts = [0.0] * BINS, [0.0] * BINS
        return self.rows[-1]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"rows": self.rows, "sums": self._sums, "counts": self._counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.rows = [(done, list(means)) for done, means in state["rows"]]
        self._sums, self._counts = state["sums"], state["counts"]


def write_by_time(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as a table of ten numbers a line."""
    lines = [",".join([str(done), *map(repr, means)]) for done, means in rows]
    with replacing(path) as temporary:
        temporary.write_text("\n".join([",".join(["iteration", *NAMES]), *lines, ""]), encoding="utf-8")


def draw_by_time(rows: Sequence[Row], title: str) -> Image.Image:
    """The loss over t at the beginning, in the middle and at the end of a run.

    Raises:
        ValueError: there are no rows.
    """
    shown = dict.fromkeys((0, len(rows) // 2, len(rows) - 1)) if rows else {}
    series = {f"until iteration {rows[i][0]}": (CENTRES, rows[i][1]) for i in shown}
    return draw_curve(series, title, "t (0: noise, 1: data)", "loss", y_from=0)
