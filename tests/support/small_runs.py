"""Command lines of small trainings, and what they leave behind."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["a red star on a blue background", "a green ring on a white background", "a black heart on a red background"]

_EACH = """
import json, runpy, sys
for command in json.load(sys.stdin):
    sys.argv[1:] = command
    try:
        runpy.run_module("instaflow_core", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        assert not ended.code, f"{command} ended with {ended.code}"
"""


def begin(place: Path) -> Path:
    """The folder, with teacher.safetensors and flow.safetensors (random), prompts.txt, and teacher-set, 10 triplets of
    the teacher."""
    from small_models import small_checkpoint

    from instaflow_core.__main__ import main
    from instaflow_core.weights.saving import save

    save(small_checkpoint("teacher", "epsilon"), place / "teacher.safetensors")
    save(small_checkpoint("2-rectified-flow", seed=1), place / "flow.safetensors")
    (place / "prompts.txt").write_text("\n".join([*PROMPTS, "", ""]))
    assert main(triplets(place, "teacher", "teacher-set")) == 0
    return place


def triplets(place: Path, teacher: str, out: str, *more: str) -> list[str]:
    """The command that makes 10 triplets from `teacher`.safetensors in a folder."""
    sizes = ["--count", "10", "--steps", "2", "--batch-size", "3", "--seed", "7", "--device", "cpu"]
    names = ["--teacher", str(place / f"{teacher}.safetensors"), "--prompts", str(place / "prompts.txt")]
    return ["triplets", *names, *sizes, "--out", str(place / out), *more]


def training(stage: str, place: Path, init: str, out: str, *more: str, of: str | Path = "teacher-set") -> list[str]:
    """The command that trains `init`.safetensors in a folder on the set `of` there for 6 iterations."""
    names = ["--init", str(place / f"{init}.safetensors"), "--triplets", str(place / of)]
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


def wait_for(event: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 300) -> None:
    """Wait until something has happened, while the process that does it is running."""
    deadline = time.monotonic() + seconds
    while not event():
        assert process.poll() is None, "it ended before that happened"
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
"""What `accelerate launch --use_fsdp --fsdp_version 2` tells the processes it starts."""


def run_each(
    commands: Sequence[Sequence[str]],
    folder: Path,
    environment: dict[str, str] | None = None,
    before: str = "",
    after: str = "",
) -> str:
    """Run `python -m instaflow_core` with each of these arguments in a folder, and return what they printed: in one
    process of its own, since importing takes longer than all of them.

    Args:
        environment: of that process; None for this one's and the pack.
        before, after: Python that it runs first and last.
    """
    if environment is None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        [sys.executable, "-c", before + _EACH + after],
        input=json.dumps(commands),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
