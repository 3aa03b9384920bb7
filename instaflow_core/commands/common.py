"""What the commands share: how one is added, and how seeds, devices, number formats and predictions are named."""

import argparse
import sys
from collections.abc import Callable
from typing import TypeAlias

import torch

from ..weights.checkpoint import BUILT_IN, Checkpoint, load
from ..weights.metadata import SAYABLE

DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
COMPUTE_DTYPES = ("fp32", "fp16", "bf16")
CHECKPOINT_HELP = f"a built-in name ({', '.join(BUILT_IN)}), a safetensors file, or a diffusers folder"

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None], purpose: str, example: str
) -> argparse.ArgumentParser:
    """Add a command that shows an example with its --help."""
    parser = commands.add_parser(
        name,
        help=purpose,
        description=purpose,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_prediction(parser: argparse.ArgumentParser) -> None:
    """Add --prediction, which `load` takes."""
    parser.add_argument(
        "--prediction",
        choices=SAYABLE,
        help="what the UNet predicts (default: what the checkpoint says, else velocity); noise-minus-data is a "
        "velocity with the other sign, as other flow-matching trainers define it",
    )


def load_said(name: str, prediction: str | None) -> Checkpoint:
    """The checkpoint of this name, where the user may have said what it predicts; an assumption is told on stderr."""
    checkpoint = load(name, prediction)
    warn_if_assumed(checkpoint, name)
    return checkpoint


def warn_if_assumed(checkpoint: Checkpoint, name: str) -> None:
    """Say on stderr that what the checkpoint called `name` predicts was assumed, where it was."""
    if checkpoint.prediction_is_assumed:
        print(
            f"Nothing in {name} says what its UNet predicts; {checkpoint.prediction} is assumed. "
            "If it is an ordinary Stable Diffusion, say --prediction epsilon.",
            file=sys.stderr,
        )


def seed(text: str) -> int:
    """An argument of 0 to 2^64 - 1."""
    number = int(text)
    if not 0 <= number < 2**64:
        raise argparse.ArgumentTypeError(f"the seed is {number}; give 0 to 2^64 - 1")
    return number


def device(text: str) -> str:
    """A device this machine has: cpu, cuda (its first card), cuda:1 and so on, or mps; "auto" is the first of cuda, mps
    and cpu."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    apple = ["mps"] if torch.backends.mps.is_available() else []
    if text == "auto":
        return "cuda" if cards else next(iter(apple), "cpu")
    here = ["cpu", *(f"cuda:{i}" for i in range(cards)), *apple]
    if text not in here and not (text == "cuda" and cards):
        raise argparse.ArgumentTypeError(f"this machine has no device {text!r}; it has {', '.join(here)}")
    return text
