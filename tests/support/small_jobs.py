"""Everything the command line writes, as small jobs: a set, trainings, and each other command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from small_runs import training, triplets

from instaflow_core.__main__ import main

Job = Callable[[Path, Path], int]
"""What is done with a folder of `small_runs.begin` in a place; its exit code. Done again, it goes on or begins anew."""


def trained(stage: str, init: str, out: str, *more: str) -> Job:
    few = ("--iterations", "4", "--batch-size", "2", "--sample-every", "2", "--resume")
    return lambda folder, place: main([*training(stage, folder, init, "x", *few, *more), "--out", str(place / out)])


def command(name: str, *words: str) -> Job:
    """A command whose words may name {folder} and {place}."""
    return lambda folder, place: main([name, *(word.format(folder=folder, place=place) for word in words)])


JOBS: dict[str, Job] = {
    "triplets": lambda folder, place: main([*triplets(folder, "teacher", "x"), "--out", str(place / "set")]),
    "reflow": trained("reflow", "teacher", "2rf.safetensors"),
    "lora": trained("distill", "flow", "lora.safetensors", "--method", "lora", "--rank", "2"),
    "folder": trained("distill", "flow", "one-step", "--on-policy", "0.5"),
    "convert": command("convert", "{folder}/flow.safetensors", "{place}/converted", "--force"),
    "extract": command(
        "extract-delta", "{folder}/flow.safetensors", "{folder}/teacher.safetensors", "{place}/d.safetensors", "--force"
    ),
    "merge": command(
        "merge-delta", "{folder}/flow.safetensors", "{place}/d.safetensors", "{place}/m.safetensors", "--force"
    ),
    "generate": command(
        "generate", "--checkpoint", "{folder}/flow.safetensors", "--prompt", "a", "--batch-size", "2",
        "--device", "cpu", "--out", "{place}/a.png",
    ),
}  # fmt: skip
