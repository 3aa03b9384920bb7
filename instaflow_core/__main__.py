"""The command line: `python -m instaflow_core COMMAND`. Thin: each command reads its arguments and calls the core."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .checkpoints import BUILT_IN, PARTS, Checkpoint, convert, load
from .generate import Request, generate, save_pictures
from .noise import DRAWS

DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
_COMPUTE_DTYPES = ("fp32", "fp16", "bf16")
_CHECKPOINT_HELP = f"a built-in name ({', '.join(BUILT_IN)}), a safetensors file, or a diffusers folder"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 2 for bad input, 130 when interrupted."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        # Bad input by the core's rule: what was found, what was expected, what to do next.
        print(f"{parser.prog} {options.command}: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m instaflow_core", description="InstaFlow without a host: pictures, and the files models are in."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_info(commands)
    _add_convert(commands)
    return parser


def _add(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], purpose: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        description=purpose,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


# --- generate ---------------------------------------------------------------------------------------------------------


def _add_generate(commands: Any) -> None:
    parser = _add(
        commands,
        "generate",
        _generate,
        "Make pictures from a prompt.",
        'python -m instaflow_core generate --prompt "a yellow star on a purple background" --seed 3 --out star.png',
    )
    parser.add_argument("--checkpoint", default="built-in: shapes", metavar="NAME|PATH", help=_CHECKPOINT_HELP)
    parser.add_argument("--prompt", required=True, help="what to show")
    parser.add_argument("--negative", default="", help="what to avoid; acts only with guidance above 1")
    parser.add_argument("--seed", type=_seed, default=0, help="0 to 2^64 - 1 (default 0)")
    parser.add_argument("--steps", type=int, help="UNet evaluations (default 1; 25 for a diffusion teacher)")
    parser.add_argument("--guidance", type=float, help="above 1 follows the prompt more (default: the checkpoint's)")
    parser.add_argument("--width", type=int, help="in pixels (default: the model's native size)")
    parser.add_argument("--height", type=int, help="in pixels (default: the model's native size)")
    parser.add_argument("--batch-size", type=int, default=1, help="pictures at once (default 1)")
    parser.add_argument(
        "--draw", choices=DRAWS, default=DRAWS[0], help="whose noise a seed stands for (default comfyui)"
    )
    parser.add_argument("--dtype", choices=_COMPUTE_DTYPES, default="fp32", help="what to compute in (default fp32)")
    parser.add_argument("--device", type=_device, default="auto", help="cpu, cuda, mps or auto (default)")
    parser.add_argument("--out", type=Path, default=Path("output.png"), help="PNG to write (default output.png)")


def _seed(text: str) -> int:
    seed = int(text)
    if not 0 <= seed < 2**64:
        raise argparse.ArgumentTypeError(f"the seed is {seed}; give 0 to 2^64 - 1")
    return seed


def _device(text: str) -> str:
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if text == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available.get(text.split(":")[0], False):
        here = ", ".join(name for name, there in available.items() if there)
        raise argparse.ArgumentTypeError(f"this machine has no device {text!r}; it has {here}")
    return text


def _generate(options: argparse.Namespace) -> None:
    if options.out.suffix.lower() != ".png":
        raise ValueError(f"--out {options.out} is not a PNG. Give a name that ends in .png.")
    checkpoint = load(options.checkpoint)
    names = ("prompt", "negative", "seed", "steps", "guidance", "width", "height", "batch_size", "draw")
    request = Request(**{name: getattr(options, name) for name in names}).settled(checkpoint)
    with tqdm(total=request.steps, unit="step", disable=None, leave=False) as bar:
        pictures = generate(checkpoint, request, options.device, DTYPES[options.dtype], lambda *_: bar.update())
    parameters = asdict(request) | {"checkpoint": options.checkpoint, "dtype": options.dtype}
    for path in save_pictures(pictures, options.out, parameters):
        print(path)


# --- info -------------------------------------------------------------------------------------------------------------


def _add_info(commands: Any) -> None:
    parser = _add(
        commands,
        "info",
        _info,
        "Say what a checkpoint is: layout, stage, types, sizes, training record, licence.",
        'python -m instaflow_core info "built-in: shapes" --json',
    )
    parser.add_argument("checkpoint", metavar="NAME|PATH", help=_CHECKPOINT_HELP)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _info(options: argparse.Namespace) -> None:
    facts = _facts(options.checkpoint, load(options.checkpoint))
    if options.json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        print(f"{name + ':':20}{json.dumps(value) if isinstance(value, dict) else value}")


def _facts(source: str, checkpoint: Checkpoint) -> dict[str, Any]:
    training = checkpoint.metadata.get("instaflow.training")
    facts: dict[str, Any] = {
        "checkpoint": source,
        "layout": checkpoint.layout,
        "stage": checkpoint.stage,
        "prediction": checkpoint.prediction,
        "guidance": checkpoint.guidance,
        "native size": checkpoint.native_size,
        "licence": checkpoint.metadata.get("instaflow.license", "unknown"),
        "training": json.loads(training) if training else "no record",
    }
    for part in PARTS:
        held = checkpoint.part(part)
        if held:
            types = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in held[0].values()})
            count = sum(tensor.numel() for tensor in held[0].values())
            name = held[1].get("_class_name") or (held[1].get("architectures") or ["CLIPTextModel"])[0]
            facts[part.replace("_", " ")] = {"class": name, "parameters": count, "dtype": ", ".join(types)}
        else:
            facts[part.replace("_", " ")] = "none"
    return facts


# --- convert ----------------------------------------------------------------------------------------------------------


def _add_convert(commands: Any) -> None:
    parser = _add(
        commands,
        "convert",
        _convert,
        "Turn a diffusers folder into one safetensors file for ComfyUI, or a file into a folder. "
        "Without --dtype every tensor keeps its bytes.",
        "python -m instaflow_core convert models/diffusers/instaflow_0_9B_from_sd_1_5 instaflow_0_9B.safetensors",
    )
    parser.add_argument("source", help=_CHECKPOINT_HELP)
    parser.add_argument("destination", help="a name that ends in .safetensors for one file, any other for a folder")
    parser.add_argument("--dtype", choices=DTYPES, help="store the weights in this type")
    parser.add_argument("--force", action="store_true", help="replace what is at the destination")


def _convert(options: argparse.Namespace) -> None:
    dtype = None if options.dtype is None else DTYPES[options.dtype]
    checkpoint = convert(options.source, options.destination, dtype, options.force)
    licence = checkpoint.metadata.get("instaflow.license")
    if licence:
        print(f"These weights are {licence}; the licence holds for the converted ones too.", file=sys.stderr)
    print(options.destination)


if __name__ == "__main__":
    sys.exit(main())
