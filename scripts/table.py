"""make table: how often the built-in models draw what the caption says; prints a table, writes build/table.json.

The judge looks at each picture: background, colour, shape, and place and size where the caption names them. The host
takes no part.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass

from devhost import ROOT

# Last on the path: our nodes/ would shadow a host's module of that name.
sys.path.append(str(ROOT))

from instaflow_core.atomic import replacing
from instaflow_core.checkpoints import load
from instaflow_core.generate import Request
from instaflow_core.shapes.captions import sample_captions
from instaflow_core.shapes.evaluate import accuracy, draw_pictures

RESULTS = ROOT / "build" / "table.json"
SEED = 20_230_912  # of the captions and of the noise
MODELS = (
    ("built-in: shapes", 1),
    ("built-in: shapes-2rf", 1),
    ("built-in: shapes-2rf", 4),
    ("built-in: shapes-2rf", 25),
    ("built-in: shapes-teacher", 25),
)


@dataclass(frozen=True)
class Row:
    """One line of the table: shares of pictures judged right, and seconds a picture, judging included."""

    model: str
    steps: int
    guidance: float
    training_part: float
    held_out: float
    seconds: float


def evaluate(model: str, steps: int, count: int) -> Row:
    """Draw and judge `count` captions of each part, with the model's own guidance."""
    checkpoint = load(model)
    guidance = Request("", steps=steps).settled(checkpoint).guidance
    assert guidance is not None

    def share(held_out: bool) -> float:
        captions = sample_captions(count, SEED, held_out)
        return accuracy(draw_pictures(checkpoint, captions, SEED, steps, guidance), captions)

    started = time.perf_counter()
    training_part, held_out = share(held_out=False), share(held_out=True)
    seconds = (time.perf_counter() - started) / (2 * count)
    return Row(model, steps, guidance, training_part, held_out, seconds)


def main() -> None:
    """Evaluate every model, print the table, write the file."""
    parser = argparse.ArgumentParser(prog="make table", description=__doc__)
    parser.add_argument("--count", type=int, default=400, help="captions of each part")
    count = parser.parse_args().count
    print(f"{'model':26}{'steps':>6}{'guidance':>9}{'training part':>15}{'held out':>10}{'s / picture':>13}")
    rows = []
    for model, steps in MODELS:
        row = evaluate(model, steps, count)
        rows.append(asdict(row))
        shares = f"{row.training_part:>15.3f}{row.held_out:>10.3f}"
        print(f"{row.model:26}{row.steps:>6}{row.guidance:>9.1f}{shares}{row.seconds:>13.3f}", flush=True)
    with replacing(RESULTS) as temporary:
        temporary.write_text(json.dumps({"captions_a_part": count, "rows": rows}, indent=2) + "\n")
    print(RESULTS.relative_to(ROOT))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
