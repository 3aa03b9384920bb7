"""How time and memory are measured, and how a benchmark runs in a process of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rows import Row

HIGH_WATER = Path("/proc/self/clear_refs")  # Linux alone; 5 written there forgets how high memory has been


def in_turn(
    ours: Callable[[int], object],
    theirs: Callable[[int], object],
    times: int,
    before: Callable[[], object] = lambda: None,
) -> tuple[float, float]:
    """Median seconds of both, each run once before it counts, and first in every second round.

    before: is called before each, and not counted.
    """
    first, second = all_in_turn([ours, theirs], times, before)
    return first, second


def all_in_turn(
    works: Sequence[Callable[[int], object]], times: int, before: Callable[[], object] = lambda: None
) -> list[float]:
    """Median seconds of each, run once before it counts; who begins changes from round to round. `before` as above."""
    taken: list[list[float]] = [[] for _ in works]
    for number in range(times + 1):
        for place in range(len(works)):
            which = (place + number) % len(works)
            before()
            started = time.perf_counter()
            works[which](number)
            if number:
                taken[which].append(time.perf_counter() - started)
    return [statistics.median(seconds) for seconds in taken]


def peak_of(work: Callable[[], object]) -> float:
    """GB by which this process grew at most while it worked."""
    import psutil

    before = psutil.Process().memory_info().rss
    HIGH_WATER.write_text("5")
    work()
    high = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return (1024 * int(high.split()[1]) - before) / 1e9


def printed(rows: Sequence[Row]) -> None:
    """Hand rows to the process that runs this one with `rows_of`."""
    print(json.dumps([asdict(row) for row in rows]))


def rows_of(script: str, *arguments: object) -> list[Row]:
    """The rows that a script prints, in a process of its own: the host can be opened once in each."""
    return [Row(**row) for row in answer_of(script, *arguments)]


def answer_of(script: str, *arguments: object, **environment: str) -> Any:
    """What a script prints last, as JSON, in a process of its own.

    environment: beside what is set here.
    """
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | environment)
    return json.loads(done.stdout.splitlines()[-1])
