"""Command lines of small trainings, and what they leave behind."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["a red star on a blue background", "a green ring on a white background", "a black heart on a red background"]


def triplets(place: Path, teacher: str, out: str, *more: str) -> list[str]:
    """The command that makes 10 triplets from `teacher`.safetensors in a folder."""
    sizes = ["--count", "10", "--steps", "2", "--batch-size", "3", "--seed", "7", "--device", "cpu"]
    names = ["--teacher", str(place / f"{teacher}.safetensors"), "--prompts", str(place / "prompts.txt")]
    return ["triplets", *names, *sizes, "--out", str(place / out), *more]


def training(stage: str, place: Path, init: str, out: str, *more: str) -> list[str]:
    """The command that trains `init`.safetensors in a folder on its teacher-set for 6 iterations."""
    names = ["--init", str(place / f"{init}.safetensors"), "--triplets", str(place / "teacher-set")]
    numbers = ["--iterations", "6", "--batch-size", "4", "--lr", "1e-3", "--warmup", "2", "--ema", "0.9"]
    rest = ["--checkpoint-every", "2", "--sample-every", "3", "--device", "cpu", "--out", str(place / out)]
    return [stage, *names, *numbers, *rest, *more]


def content(place: Path) -> dict[str, str]:
    """A digest of every result under a folder, by its name relative to it: of all files but the checkpoint."""
    files = (path for path in place.rglob("*") if path.is_file() and path.name != "state.pt")
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def start(*arguments: str, errors: int | None = None, **variables: str) -> subprocess.Popen[bytes]:
    """A Python process of its own, one thread wide, which can import the pack, with more variables around it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    return subprocess.Popen([sys.executable, *arguments], env=environment, cwd=ROOT, stderr=errors)


def start_two(*arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    """Two such processes that know of each other, by torch's launcher: `accelerate launch --cpu` starts only one."""
    return start("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments, **variables)


FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
"""What `accelerate launch --use_fsdp --fsdp_version 2` tells the processes it starts."""
