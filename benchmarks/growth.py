"""How time and memory grow: with the batch, the size and the steps of pictures, and triplets with processes.

    python3 scripts/devhost.py benchmarks/growth.py

The built-in models draw, from text to picture, through the core: at Stable Diffusion 1.5's size the largest of these
would take hours on a CPU. Each value stands beside what it would be if it grew in proportion to the first; the memory
is what a process of its own grew by at most, one that gives back at once what it no longer needs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))

from devhost import ROOT

sys.path.append(str(ROOT))

from measuring import answer_of, peak_of
from rows import Row

FLOW, FEW_STEPS, TEACHER = "built-in: shapes", "built-in: shapes-2rf", "built-in: shapes-teacher"
BATCHES, SIZES, STEPS = (1, 2, 4, 8, 16, 32, 64), (256, 384, 512, 768, 1024), (1, 2, 4, 8, 16, 25)
NATIVE = 64
PROMPT = "a red circle on a blue background"

GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
"""By these Linux's allocator keeps nothing for later: else what is needed comes out of what an earlier picture left,
and the process does not grow. Each allocation then takes longer, so that times are of another process."""


def draw_here(what: str, batch: int, size: int, steps: int) -> float:
    """Draw so many pictures at once; the "seconds", the least of a few times, or GB of "memory"."""
    import torch

    from instaflow_core.evaluation.drawing import Drawing
    from instaflow_core.weights.checkpoint import load

    checkpoint = load(FLOW if steps == 1 else FEW_STEPS)
    drawing = Drawing(checkpoint)
    # The first use of a layer prepares what later ones share.
    drawing.pictures([PROMPT], torch.randn(1, *checkpoint.latent_shape(NATIVE, NATIVE)), 1, 1.0)
    noise = torch.randn(batch, *checkpoint.latent_shape(size, size), generator=torch.Generator().manual_seed(0))

    def work() -> None:
        drawing.pictures([PROMPT] * batch, noise, steps, 1.0)

    if what == "memory":
        return peak_of(work)
    seconds = list[float]()
    while not seconds or (len(seconds) < 6 and sum(seconds) < 2):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def drawn(batch: int = 1, size: int = NATIVE, steps: int = 1) -> dict[str, float]:
    """As `draw_here`, each figure in a process of its own."""
    return {
        "seconds": answer_of(__file__, "seconds", batch, size, steps),
        "memory": answer_of(__file__, "memory", batch, size, steps, **GIVING_BACK),
    }


def grown(name: str, numbers: tuple[int, ...], taken: list[dict[str, float]], power: int = 1) -> list[Row]:
    """Rows of time and memory for each number, beside the first's times the number's growth to this power."""
    rows = []
    for number, one in zip(numbers, taken, strict=True):
        factor = (number / numbers[0]) ** power
        words = f"{factor:g} times {name} {numbers[0]}"
        for what, unit, ending in (("seconds", "s", ""), ("memory", "GB", "/memory")):
            rows.append(Row(f"growth/{name}-{number}{ending}", one[what], unit, words, factor * taken[0][what]))
    return rows


def triplets(processes: int, count: int) -> float:
    """Seconds that so many processes, a core each, need for a set."""
    with tempfile.TemporaryDirectory() as folder:
        command: list[object] = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes,
            "-m", "instaflow_core", "triplets", "--teacher", TEACHER, "--prompts", ROOT / "docs" / "captions.txt",
            "--count", count, "--steps", 25, "--guidance", 2, "--batch-size", 32, "--out", Path(folder) / "set",
        ]  # fmt: skip
        started = time.perf_counter()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"triplets ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return time.perf_counter() - started


def of_processes() -> list[Row]:
    """Triplets per second of 1, 2, … processes, to as many as there are cores: the start of each is not counted."""
    cores = os.cpu_count() or 1
    numbers = [n for n in (1, 2, 4, 8, 16) if n <= cores]
    few, many = 256 * numbers[-1], 1024 * numbers[-1]
    rates = [(many - few) / (triplets(n, many) - triplets(n, few)) for n in numbers]
    return [
        Row(f"growth/processes-{n}", rate, "triplets/s", f"{n} times one process", n * rates[0])
        for n, rate in zip(numbers, rates, strict=True)
    ]


def measure() -> list[Row]:
    return [
        *grown("batch", BATCHES, [drawn(batch=batch) for batch in BATCHES]),
        *grown("size", SIZES, [drawn(size=size) for size in SIZES], power=2),
        *grown("steps", STEPS, [drawn(steps=steps) for steps in STEPS]),
        *of_processes(),
    ]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(draw_here(sys.argv[1], *map(int, sys.argv[2:]))))
    else:
        for row in measure():
            print(row.line(), flush=True)
