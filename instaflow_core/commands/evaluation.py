"""`evaluate`: how often a model of the built-in domain draws what the caption says, and the table's other figures."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from ..atomic import replacing
from .common import CHECKPOINT_HELP, Commands, add, add_prediction, load_said


def add_evaluate(commands: Commands) -> None:
    """Add the command."""
    parser = add(
        commands,
        "evaluate",
        _evaluate,
        "Measure a model of the built-in shapes: accuracy, Fréchet distance to the teacher, straightness, time.",
        "python -m instaflow_core evaluate --checkpoint my-instaflow.safetensors --steps 1 --count 200",
    )
    parser.add_argument("--checkpoint", default="built-in: shapes", metavar="NAME|PATH", help=CHECKPOINT_HELP)
    add_prediction(parser)
    parser.add_argument("--steps", type=int, nargs="+", default=[1], help="one row for each (default 1)")
    parser.add_argument("--guidance", type=float, help="(default: the checkpoint's)")
    parser.add_argument("--count", type=int, default=400, help="captions of each part (default 400)")
    parser.add_argument("--out", type=Path, help="write the rows to this JSON file too")


def _evaluate(options: argparse.Namespace) -> None:
    from ..shapes.table import Table, header, line

    checkpoint = load_said(options.checkpoint, options.prediction)
    if checkpoint.zero_snr:
        raise ValueError(
            f"{options.checkpoint} was trained on a noise schedule of zero terminal SNR, and the table measures on "
            "Stable Diffusion's own. Look at its pictures with `generate`."
        )
    rows = Table(options.count).rows(checkpoint.stage, checkpoint, options.steps, options.guidance)
    print(header())
    for row in rows:
        print(line(row))
    if options.out:
        with replacing(options.out) as temporary:
            temporary.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
        print(options.out)
