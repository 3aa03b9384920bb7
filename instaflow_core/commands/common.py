"""What the commands share: how one is added, how seeds, devices, number formats and predictions are named; a bar."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from tqdm import tqdm

from ..evaluation.extractors import MAKERS
from ..rules import RULES
from ..weights.checkpoint import BUILT_IN, Checkpoint, load
from ..weights.files import Progress
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


def add_rule(parser: argparse.ArgumentParser) -> None:
    """Add --prediction and --rule, which `load` takes."""
    add_prediction(parser)
    parser.add_argument(
        "--rule",
        choices=RULES,
        metavar="RULE",
        help=f"how a few-step model is sampled: {', '.join(RULES)} (default: what the checkpoint says, else its "
        "prediction alone decides); docs/rules.md shows them",
    )


def add_drawing(parser: argparse.ArgumentParser, at_once: int, whose: str = "model", more: str = "") -> None:
    """Add the arguments of what draws: pictures of which size, how many at once, computed in what and where.

    Args:
        at_once: the default of --batch-size; more: what else its help says.
        whose: native size the pictures have by default.
    """
    for side in ("--width", "--height"):
        parser.add_argument(side, type=int, help=f"in pixels (default: the {whose}'s native size)")
    said = f"pictures at once{more} (default {at_once})"
    parser.add_argument("--batch-size", type=int, default=at_once, help=said)
    parser.add_argument("--dtype", choices=COMPUTE_DTYPES, default="fp32", help="what to compute in (default fp32)")
    parser.add_argument("--device", type=device, default="auto", help="cpu, cuda, mps or auto (default)")


def add_extractor(parser: argparse.ArgumentParser) -> None:
    """Add --extractor, which `said_networks` reads."""
    parser.add_argument(
        "--extractor",
        action="append",
        default=[],
        metavar="[METRIC=]NETWORK",
        help=f"in a metric's place ({', '.join(MAKERS)}; all but clip without a name): a TorchScript file or "
        "module:function, from (N, 3, H, W) uint8 to (N, D); inception:FILE, clip:NAME: the usual ones from there",
    )


def said_networks(said: Sequence[str]) -> dict[str, str]:
    """What takes networks' places, by metric, of what was given as --extractor."""
    networks = dict[str, str]()
    for text in said:
        metric, equals, network = text.partition("=")
        if equals and metric.isidentifier():
            networks[metric] = network
        else:
            networks |= {name: text for name in MAKERS if name != "clip"}
    return networks


def load_said(name: str, prediction: str | None, rule: str | None = None) -> Checkpoint:
    """The checkpoint of this name, where the user may have said what it is; an assumption is told on stderr."""
    checkpoint = load(name, prediction, rule)
    warn_if_assumed(checkpoint, name)
    return checkpoint


def warn_if_assumed(checkpoint: Checkpoint, name: str) -> None:
    """Say on stderr what was assumed of the checkpoint called `name`, if anything."""
    if checkpoint.prediction_is_assumed:
        print(
            f"Nothing in {name} says what its UNet predicts; {checkpoint.prediction} is assumed. "
            "If it is an ordinary Stable Diffusion, say --prediction epsilon.",
            file=sys.stderr,
        )
    if checkpoint.rule_is_assumed and checkpoint.rule:
        print(
            f"{name} is taken for a model of the rule {checkpoint.rule.name}, by what it is called. Say --rule, or "
            "--prediction where it is of none.",
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


@contextmanager
def bytes_bar() -> Iterator[Progress]:
    """A progress bar in bytes; its length is known with the first of them."""
    with tqdm(unit="B", unit_scale=True, disable=None, leave=False) as bar:

        def advance(size: int, total: int) -> None:
            bar.total = total
            bar.update(size)

        yield advance
