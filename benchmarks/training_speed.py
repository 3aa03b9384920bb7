"""Iterations per second of `reflow` beside those of diffusers' own text-to-image example.

    python3 scripts/devhost.py benchmarks/training_speed.py --example train_text_to_image.py

--example is examples/text_to_image/train_text_to_image.py of diffusers' source, of the version installed or an older
one; `make bench` takes it from INSTAFLOW_BENCH_EXAMPLE, since diffusers' wheel has no examples. Both programs train all
weights of the same UNet (the built-in teacher's) with AdamW, gradient clipping and a moving average, on as many
pictures a batch and in the same precision, in turn. Each is run for two numbers of iterations, and the difference is
what counts, so that starting and saving do not. In every iteration the example also encodes its pictures (here through
a very small autoencoder) and captions, which a set of triplets has done beforehand.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))

from devhost import ROOT

sys.path.append(str(ROOT))

from diffusers import AutoencoderKL
from rows import Row

from instaflow_core.shapes.captions import sample_captions
from instaflow_core.shapes.render import render, sample_scene
from instaflow_core.weights.checkpoint import load
from instaflow_core.weights.saving import save_folder

TEACHER = "built-in: shapes-teacher"
PICTURES = 256
PRECISIONS = {"fp32": "no", "bf16": "bf16"}


class Contest:
    """Both programs, made ready in a folder."""

    def __init__(self, example: Path, folder: Path, batch: int, precision: str) -> None:
        self.example, self.folder, self.batch, self.precision = example, folder, batch, precision
        teacher = load(TEACHER)
        save_folder(teacher, folder / "model")
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            norm_num_groups=4,
        )
        vae.save_pretrained(folder / "model" / "vae")
        rng, captions, rows = random.Random(0), sample_captions(PICTURES, 0), []
        (folder / "captions.txt").write_text("\n".join(map(str, captions)), encoding="utf-8")
        (folder / "pictures").mkdir()
        for i, caption in enumerate(captions):
            render(sample_scene(caption, rng)).save(folder / "pictures" / f"{i:04}.png")
            rows.append(json.dumps({"file_name": f"{i:04}.png", "text": str(caption)}))
        (folder / "pictures" / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
        self._instaflow(
            "triplets", "--teacher", TEACHER, "--prompts", folder / "captions.txt", "--count", PICTURES, "--steps", 2,
            "--guidance", 1, "--batch-size", 64, "--out", folder / "set",
        )  # fmt: skip

    def ours(self, iterations: int) -> float:
        """Seconds of a whole `reflow`."""
        return self._instaflow(
            "reflow", "--init", TEACHER, "--triplets", self.folder / "set", "--iterations", iterations, "--batch-size",
            self.batch, "--precision", self.precision, "--sample-every", 0, "--out",
            self.folder / f"ours-{time.monotonic_ns()}.safetensors",
        )  # fmt: skip

    def theirs(self, iterations: int) -> float:
        """Seconds of a whole run of the example."""
        return self._run(
            self.example, "--pretrained_model_name_or_path", self.folder / "model", "--train_data_dir",
            self.folder / "pictures", "--caption_column", "text", "--resolution", 64, "--train_batch_size", self.batch,
            "--max_train_steps", iterations, "--learning_rate", 1e-6, "--use_ema", "--foreach_ema", "--mixed_precision",
            PRECISIONS[self.precision], "--checkpointing_steps", 10**6, "--report_to", "all", "--output_dir",
            self.folder / f"theirs-{time.monotonic_ns()}",
        )  # fmt: skip

    def _instaflow(self, *arguments: object) -> float:
        return self._run("-m", "instaflow_core", *arguments)

    def _run(self, *arguments: object) -> float:
        environment = {**os.environ, "HF_DATASETS_CACHE": str(self.folder / "cache"), "HF_HUB_OFFLINE": "1"}
        started = time.perf_counter()
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return time.perf_counter() - started


EXAMPLE = "INSTAFLOW_BENCH_EXAMPLE"
"""The environment variable that names the example."""


def rates(
    example: Path, batch: int, precision: str, iterations: tuple[int, int], rounds: int
) -> dict[str, list[float]]:
    """Iterations per second of both, in turn. iterations: of the two runs whose difference counts."""
    few, many = iterations
    found: dict[str, list[float]] = {"reflow": [], "diffusers": []}
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(example.resolve(), Path(folder), batch, precision)
        for _ in range(rounds):
            for name, program in (("reflow", contest.ours), ("diffusers", contest.theirs)):
                found[name].append((many - few) / (program(many) - program(few)))
                print(f"{name:10} {found[name][-1]:.3f} iterations/s", file=sys.stderr, flush=True)
    return found


def measure() -> list[Row]:
    """The medians of the example that INSTAFLOW_BENCH_EXAMPLE names."""
    name, unit, baseline = "train/reflow", "iterations/s", "diffusers' train_text_to_image.py"
    if EXAMPLE not in os.environ:
        return [Row(name, None, unit, baseline, reason=f"{EXAMPLE} does not name diffusers' train_text_to_image.py")]
    found = rates(Path(os.environ[EXAMPLE]), batch=16, precision="fp32", iterations=(10, 60), rounds=3)
    ours, theirs = map(statistics.median, found.values())
    return [Row(name, ours, unit, baseline, theirs)]


def main() -> None:
    """Let them run in turn and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--example", type=Path, required=True, help="diffusers' train_text_to_image.py")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures an iteration (default 16)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of both (default fp32)")
    parser.add_argument("--iterations", type=int, nargs=2, default=(10, 60), help="of the two runs (default 10 60)")
    parser.add_argument("--rounds", type=int, default=3, help="how often (default 3)")
    options = parser.parse_args()
    found = rates(options.example, options.batch_size, options.precision, tuple(options.iterations), options.rounds)
    ratios = [ours / theirs for ours, theirs in zip(*found.values(), strict=True)]
    for name, values in found.items():
        print(f"median of {name:10} {statistics.median(values):.3f} iterations/s")
    print(f"reflow / diffusers   {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
