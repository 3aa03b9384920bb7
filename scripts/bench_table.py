"""Write docs/performance.md's table again, and draw how time and memory grow, from build/bench.json:
`python scripts/bench_table.py` after `make bench`."""

from __future__ import annotations

import json
import re
import sys
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from instaflow_core.pictures.charts import draw_curve  # noqa: E402

RESULTS = ROOT / "build" / "bench.json"
DOCUMENT = ROOT / "docs" / "performance.md"
START, END = "<!-- bench -->\n", "<!-- end of bench -->"
CHARTS = {"batch": "pictures at once", "size": "pixels a side", "steps": "steps", "processes": "processes"}
"""The charts of `growth/*`: what is along the axis."""

Records = list[dict[str, Any]]


def table(records: Records) -> str:
    """The rows as Markdown, under the machines that they were measured on."""
    lines = ["| what | measured | beside | ratio |", "|---|---:|---|---:|", *map(_line, records)]
    devices = "; ".join(dict.fromkeys(record["device"] for record in records))
    return f"Measured on {devices}:\n\n" + "\n".join(lines)


def _line(record: dict[str, Any]) -> str:
    if record["value"] is None:
        return f"| `{record['name']}` | not run: {record['reason']} | | |"
    beside, ratio = "", ""
    if record["baseline_value"] is not None:
        beside = f"{record['baseline']}: {_number(record['baseline_value'])}"
    if record["ratio"] is not None:
        ratio = f"{record['ratio']:.2f}"
    return f"| `{record['name']}` | {_number(record['value'])} {record['unit']} | {beside} | {ratio} |"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def with_table(document: str, records: Records) -> str:
    """The document with the table between its two marks."""
    return re.sub(f"{START}.*{END}", lambda _: f"{START}{table(records)}\n{END}", document, flags=re.DOTALL)


def draw(records: Records, folder: Path) -> list[Path]:
    """A chart of each kind of growth there are rows of: what was measured, and the first in proportion."""
    drawn = []
    for name, ending in product(CHARTS, ("", "/memory")):
        found = [
            (int(match[1]), record)
            for record in records
            if record["value"] is not None and (match := re.fullmatch(rf"growth/{name}-(\d+){ending}", record["name"]))
        ]
        if not found:
            continue
        numbers = [number for number, _ in found]
        series = {
            "measured": (numbers, [record["value"] for _, record in found]),
            "in proportion to the first": (numbers, [record["baseline_value"] for _, record in found]),
        }
        path = folder / f"growth-{name}{ending.replace('/', '-')}.webp"
        draw_curve(series, x_label=CHARTS[name], y_label=found[0][1]["unit"], y_from=0).save(path, lossless=True)
        drawn.append(path)
    return drawn


def main() -> None:
    """Write the document and the charts."""
    records = json.loads(RESULTS.read_text(encoding="utf-8"))
    document = with_table(DOCUMENT.read_text(encoding="utf-8"), records)
    DOCUMENT.write_text(document, encoding="utf-8", newline="\n")
    for path in (DOCUMENT, *draw(records, DOCUMENT.parent)):
        print(path)


if __name__ == "__main__":
    main()
