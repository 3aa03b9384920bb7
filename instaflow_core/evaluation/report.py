"""Evaluations as files: every figure with its recipe in JSON, a table in Markdown, a grid of pictures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..atomic import replacing
from ..pictures.charts import draw_intervals
from ..pictures.images import contact_sheet
from ..pictures.sources import Pictures
from .figures import Figure, NotComputed, Result
from .runs import as_json

RESULTS, TABLE, GRID = "results.json", "results.md", "grid.png"
_GRID = 16
_DIGITS = {"milliseconds": 1, "memory": 0, "fid": 2, "psnr": 2}


@dataclass(frozen=True)
class Row:
    """One model at one number of steps, and its results by metric."""

    model: str
    stage: str
    steps: int
    guidance: float
    count: int
    seed: int
    results: Mapping[str, Result]


def write_rows(rows: Sequence[Row], folder: Path) -> Path:
    """Write all rows as JSON and as a Markdown table; the path of the JSON file."""
    content = [
        {**{name: value for name, value in vars(row).items() if name != "results"}, "metrics": as_json(row.results)}
        for row in rows
    ]
    for name, text in ((RESULTS, json.dumps(content, indent=2, ensure_ascii=False)), (TABLE, markdown(rows))):
        with replacing(folder / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return folder / RESULTS


def markdown(rows: Sequence[Row]) -> str:
    """A table of the figures that any row has, each with half its interval; the recipes below it."""
    names = [name for name in rows[0].results if any(isinstance(row.results[name], Figure) for row in rows)]
    lines = ["| model | steps | guidance | " + " | ".join(names) + " |", "|---" * (3 + len(names)) + "|"]
    for row in rows:
        cells = [cell(row.results[name], _DIGITS.get(name, 4)) for name in names]
        lines.append(f"| {row.model} | {row.steps} | {row.guidance:g} | " + " | ".join(cells) + " |")
    recipes = [f"* {name}: {said.recipe}" for name in names if isinstance(said := rows[0].results[name], Figure)]
    return "\n".join([*lines, "", *recipes])


def in_words(results: Mapping[str, Result]) -> str:
    """Each metric in a line: its figure, its interval and how it was measured, or why it was not computed."""
    lines = []
    for name, result in results.items():
        if isinstance(result, NotComputed):
            lines.append(f"{name}: not computed. {result.reason}")
        else:
            value, low, high = (f"{x:.{_DIGITS.get(name, 4)}f}" for x in (result.value, result.low, result.high))
            lines.append(f"{name}: {value} ({low} to {high}); {result.recipe}")
    return "\n".join(lines)


def chart_of(results: Mapping[str, Result]) -> Image.Image:
    """Each figure with its interval, on a line of its own."""
    figures = {name: (r.value, r.low, r.high) for name, r in results.items() if isinstance(r, Figure)}
    return draw_intervals(figures, "Figures and their intervals of 95 %")


def grid_of(pictures: Pictures) -> Image.Image:
    """The first pictures as one."""
    return contact_sheet(pictures.read(range(min(_GRID, len(pictures)))), 4)


def cell(result: Result, digits: int) -> str:
    """A figure and half the width of its interval; a dash where there is none."""
    if not isinstance(result, Figure):
        return "-"
    return f"{result.value:.{digits}f} ± {(result.high - result.low) / 2:.{digits}f}"


def write_grid(pictures: Pictures, folder: Path) -> Path:
    """Write the first pictures as one; the path of the file."""
    path = folder / GRID
    with replacing(path) as temporary:
        grid_of(pictures).save(temporary, format="PNG")
    return path
