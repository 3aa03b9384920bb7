"""`info` and `convert`: what a checkpoint is, and its other form."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..weights.checkpoint import Checkpoint, load
from ..weights.conversion import convert
from ..weights.files import types_in_words
from ..weights.layouts import PARTS
from ..weights.loras import convert_lora, is_diffusers_lora
from ..weights.metadata import json_entry
from .common import CHECKPOINT_HELP, DTYPES, Commands, add, add_rule, bytes_bar, warn_if_assumed


def add_info(commands: Commands) -> None:
    """Add the command."""
    parser = add(
        commands,
        "info",
        _info,
        "Say what a checkpoint is: layout, stage, types, sizes, training record, licence.",
        'python -m instaflow_core info "built-in: shapes" --json',
    )
    parser.add_argument("checkpoint", metavar="NAME|PATH", help=CHECKPOINT_HELP)
    add_rule(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _info(options: argparse.Namespace) -> None:
    facts = _facts(options.checkpoint, load(options.checkpoint, options.prediction, options.rule))
    if options.json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        print(f"{name + ':':20}{json.dumps(value) if isinstance(value, dict | list) else value}")


def _facts(source: str, checkpoint: Checkpoint) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "checkpoint": source,
        "layout": checkpoint.layout,
        "stage": checkpoint.stage,
        "prediction": checkpoint.prediction,
        "prediction said by": checkpoint.said_by,
        "rule": checkpoint.rule.name if checkpoint.rule else "none",
        "guidance": checkpoint.guidance,
        "native size": checkpoint.native_size,
        "licence": checkpoint.metadata.get("instaflow.license", _usual_licence(checkpoint)),
        "training": json_entry(checkpoint.metadata, "instaflow.training", dict, source) or "no record",
    }
    if checkpoint.rule_is_assumed:
        facts["rule said by"] = "its name alone"
    if checkpoint.zero_snr:
        facts["noise schedule"] = "zero terminal SNR"
    if "instaflow.merged" in checkpoint.metadata:
        facts["merged"] = json_entry(checkpoint.metadata, "instaflow.merged", list, source)
    for part in PARTS:
        held = checkpoint.part(part)
        if held:
            count = sum(tensor.numel() for tensor in held[0].values())
            name = held[1].get("_class_name") or (held[1].get("architectures") or ["CLIPTextModel"])[0]
            facts[part.replace("_", " ")] = {"class": name, "parameters": count, "dtype": types_in_words(held[0])}
        else:
            facts[part.replace("_", " ")] = "none"
    return facts


def _usual_licence(checkpoint: Checkpoint) -> str:
    return f"unknown; the released weights are {checkpoint.rule.licence}" if checkpoint.rule else "unknown"


def add_convert(commands: Commands) -> None:
    """Add the command."""
    parser = add(
        commands,
        "convert",
        _convert,
        "Turn a diffusers folder into one safetensors file for ComfyUI, or a file into a folder. "
        "Without --dtype every tensor keeps its bytes. A LoRA of diffusers or PEFT gets names ComfyUI's loader reads.",
        "python -m instaflow_core convert models/diffusers/instaflow_0_9B_from_sd_1_5 instaflow_0_9B.safetensors",
    )
    parser.add_argument("source", help=CHECKPOINT_HELP)
    parser.add_argument("destination", help="a name that ends in .safetensors for one file, any other for a folder")
    add_rule(parser)
    parser.add_argument("--dtype", choices=DTYPES, help="store the weights in this type")
    parser.add_argument("--force", action="store_true", help="replace what is at the destination")


def _convert(options: argparse.Namespace) -> None:
    source = Path(options.source).expanduser()
    if is_diffusers_lora(source):
        convert_lora(source, options.destination, options.force)
        print(options.destination)
        return
    dtype = None if options.dtype is None else DTYPES[options.dtype]
    with bytes_bar() as progress:
        arguments = (options.source, options.destination, dtype, options.force, options.prediction, options.rule)
        checkpoint = convert(*arguments, progress)
    warn_if_assumed(checkpoint, options.source)
    licence = checkpoint.metadata.get("instaflow.license")
    if licence:
        print(f"These weights are {licence}; the licence holds for the converted ones too.", file=sys.stderr)
    print(options.destination)
