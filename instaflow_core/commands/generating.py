"""`generate`: pictures from a prompt, without any host."""

import argparse
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from ..flow.noise import DRAWS
from ..generate import GenerationRequest, generate, save_pictures
from .common import (
    CHECKPOINT_HELP,
    DTYPES,
    Commands,
    add,
    add_drawing,
    add_rule,
    load_said,
    seed,
)


def add_generate(commands: Commands) -> None:
    """Add the command."""
    parser = add(
        commands,
        "generate",
        _generate,
        "Make pictures from a prompt.",
        'python -m instaflow_core generate --prompt "a yellow star on a purple background" --seed 3 --out star.png',
    )
    parser.add_argument("--checkpoint", default="built-in: shapes", metavar="NAME|PATH", help=CHECKPOINT_HELP)
    add_rule(parser)
    parser.add_argument("--prompt", required=True, help="what to show")
    parser.add_argument("--negative", default="", help="what to avoid; acts only with guidance above 1")
    parser.add_argument("--seed", type=seed, default=0, help="0 to 2^64 - 1 (default 0)")
    parser.add_argument(
        "--steps",
        type=int,
        help="UNet evaluations (default 1, or as many as the rule wants; 25 for an ordinary diffusion model)",
    )
    parser.add_argument("--guidance", type=float, help="above 1 follows the prompt more (default: the checkpoint's)")
    add_drawing(parser, 1)
    parser.add_argument(
        "--draw", choices=DRAWS, default=DRAWS[0], help="whose noise a seed stands for (default comfyui)"
    )
    parser.add_argument("--out", type=Path, default=Path("output.png"), help="PNG to write (default output.png)")


def _generate(options: argparse.Namespace) -> None:
    if options.out.suffix.lower() != ".png":
        raise ValueError(f"--out {options.out} is not a PNG. Give a name that ends in .png.")
    checkpoint = load_said(options.checkpoint, options.prediction, options.rule)
    names = ("prompt", "negative", "seed", "steps", "guidance", "width", "height", "batch_size", "draw")
    request = GenerationRequest(**{name: getattr(options, name) for name in names}).settled(checkpoint)
    with tqdm(total=request.steps, unit="step", disable=None, leave=False) as bar:
        pictures = generate(checkpoint, request, options.device, DTYPES[options.dtype], lambda *_: bar.update())
    parameters = asdict(request) | {"checkpoint": options.checkpoint, "dtype": options.dtype}
    for path in save_pictures(pictures, options.out, parameters):
        print(path)
