"""`extract-delta` and `merge-delta`: a finetune's difference from its base, added to an InstaFlow."""

import argparse
import sys

from ..weights.checkpoint import load
from ..weights.deltas import extract, merge
from .common import CHECKPOINT_HELP, COMPUTE_DTYPES, DTYPES, Commands, add, bytes_bar


def add_extract_delta(commands: Commands) -> None:
    """Add the command."""
    parser = add(
        commands,
        "extract-delta",
        _extract,
        "Write what a finetune's UNet has learned, FINETUNED - BASE, to a file that merge-delta and ComfyUI's "
        "LoraLoaderModelOnly add to an InstaFlow.",
        "python -m instaflow_core extract-delta dreamshaper.safetensors v1-5-pruned.safetensors dreamshaper-delta."
        "safetensors",
    )
    parser.add_argument("finetuned", metavar="FINETUNED", help=CHECKPOINT_HELP)
    parser.add_argument("base", metavar="BASE", help="the model it was finetuned from, in any type")
    parser.add_argument("out", metavar="OUT", help="the file to write, a name that ends in .safetensors")
    parser.add_argument(
        "--dtype", choices=COMPUTE_DTYPES, default="fp32", help="store the difference in this type (default fp32)"
    )
    parser.add_argument("--force", action="store_true", help="replace what is at OUT")


def _extract(options: argparse.Namespace) -> None:
    with bytes_bar() as progress:
        dtype = DTYPES[options.dtype]
        finetuned, base = extract(options.finetuned, options.base, options.out, dtype, options.force, progress)
    if finetuned != base:
        kept = str(dtype).removeprefix("torch.")
        print(f"The finetune is in {finetuned}, its base in {base}; the difference is in {kept}.", file=sys.stderr)
    print(options.out)


def add_merge_delta(commands: Commands) -> None:
    """Add the command."""
    parser = add(
        commands,
        "merge-delta",
        _merge,
        "Write MODEL with the difference added to its UNet: W + strength * DELTA, in MODEL's own types.",
        "python -m instaflow_core merge-delta instaflow_0_9B_from_sd_1_5 dreamshaper-delta.safetensors "
        "instaflow-dreamshaper.safetensors --clip-vae dreamshaper.safetensors",
    )
    parser.add_argument("model", metavar="MODEL", help=CHECKPOINT_HELP)
    parser.add_argument("delta", metavar="DELTA", help="a file extract-delta wrote")
    parser.add_argument("out", metavar="OUT", help="the file to write, a name that ends in .safetensors")
    parser.add_argument(
        "--strength", type=float, default=1.0, help="how much of it to add; may be negative (default 1)"
    )
    parser.add_argument(
        "--clip-vae",
        metavar="FINETUNED",
        help="take text encoder and VAE from this checkpoint, as the InstaFlow authors do (default: MODEL's own)",
    )
    parser.add_argument("--force", action="store_true", help="replace what is at OUT")


def _merge(options: argparse.Namespace) -> None:
    with bytes_bar() as progress:
        arguments = (options.model, options.delta, options.out, options.strength, options.clip_vae, options.force)
        merge(*arguments, progress)
    licence = load(options.out).metadata.get("instaflow.license")
    if licence:
        print(f"What was merged is {licence}; the licence holds for the result too.", file=sys.stderr)
    print(options.out)
