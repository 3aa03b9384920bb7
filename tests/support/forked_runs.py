"""Run by a process of its own: runs that signals end at events, each in a fork of this process, which is warm.

    forked_runs.py FOLDER

FOLDER holds what `small_runs.begin` makes. Each job is done undisturbed in FOLDER/whole, and some of them by two at
once in FOLDER/together. Then, in FOLDER/0, FOLDER/1 and so on, it is ended by signals a few times and done again to the
end, until all SIGNALS were sent. Prints what happened, as JSON: for each signal the place, the job, the kind of event,
which one of it, and how the process ended.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from small_jobs import JOBS
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from instaflow_core.triplets import writing

SIGNALS = {signal.SIGKILL: 50, signal.SIGINT: 10, signal.SIGTERM: 10}
MOST_OF_A_JOB = 5
"""Signals, one after another."""
TWICE = ("triplets", "generate")
"""Jobs that two may do in one place at once."""
BYTE = "byte"
"""The kind of event that ends a process inside a write: a file has got so many bytes, and the signal is SIGXFSZ."""

Event = Callable[[str], object]
"""Told of each event by its kind; may not come back."""

writing.SetInfo = partial(writing.SetInfo, shard_size=3)  # type: ignore[misc,assignment]
"""A set of ten then has four shards."""


def watch(event: Event) -> None:
    """Tell of events of this process from now on."""

    def audited(name: str, args: tuple[Any, ...]) -> None:
        if name == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
            event("open to write")
        elif name in ("os.rename", "os.remove", "os.mkdir"):
            event(name)

    def around(function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def told(*args: Any, **kwargs: Any) -> Any:
            event(kind)
            return function(*args, **kwargs)

        return told

    sys.addaudithook(audited)
    os.fsync = around(os.fsync, "fsync")
    for stream in (sys.stdout, sys.stderr):
        stream.write = around(stream.write, "line")  # type: ignore[method-assign]
    register_optimizer_step_pre_hook(lambda *_: event("optimizer step") and None)
    register_optimizer_step_post_hook(lambda *_: event("optimizer step") and None)
    register_module_forward_pre_hook(
        lambda module, _: event("UNet") and None if type(module).__name__ == "UNet2DConditionModel" else None
    )


def start(work: Callable[[], int], prepare: Callable[[], None]) -> int:
    """A fork of this process that does the work; its number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            prepare()
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return child


def ended(child: int) -> int:
    """How a fork ends: its exit code, or the signal less than 0."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def forked(work: Callable[[], int], prepare: Callable[[], None]) -> int:
    """How a fork ends that does the work."""
    return ended(start(work, prepare))


def counted(work: Callable[[], int], place: Path) -> Counter[str]:
    """How many events of each kind undisturbed work has, and the bytes of the largest file there is then."""
    heard, told = os.pipe()
    assert forked(work, lambda: watch(lambda kind: os.write(told, kind.encode() + b"\n"))) == 0
    os.close(told)
    with open(heard, encoding="utf-8") as lines:
        events = Counter(line.strip() for line in lines)
    return events + Counter({BYTE: max(path.stat().st_size for path in place.rglob("*"))})


def ending(number: int, kind: str, which: int) -> Callable[[], None]:
    """Let this process get the signal at the event of that kind and number, counted from 0."""
    seen = Counter[str]()

    def event(happened: str) -> None:
        seen[happened] += 1
        if happened == kind and seen[kind] == which + 1:
            os.kill(os.getpid(), number)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (which, which))

    return limit if kind == BYTE else partial(watch, event)


def run(folder: Path) -> list[dict[str, Any]]:
    chance, happened = random.Random(0), list[dict[str, Any]]()
    signals = chance.sample(list(SIGNALS), sum(SIGNALS.values()), counts=SIGNALS.values())
    events, place = {}, -1
    for name in ("whole", "counted", "together"):
        (folder / name).mkdir()
    for name, job in JOBS.items():
        assert job(folder, folder / "whole") == 0  # here, so that all is imported
        events[name] = counted(partial(job, folder, folder / "counted"), folder / "counted")
    for name in TWICE:
        both = [start(partial(JOBS[name], folder, folder / "together"), lambda: None) for _ in range(2)]
        assert [*map(ended, both)] == [0, 0]
    while signals:
        place += 1
        where = folder / str(place)
        where.mkdir()
        for name, job in JOBS.items():
            for number in signals[:MOST_OF_A_JOB]:
                kind = chance.choice(sorted(events[name].keys() - (set() if number == signal.SIGKILL else {BYTE})))
                which = chance.randrange(events[name][kind])
                end = forked(partial(job, folder, where), ending(number, kind, which))
                if end == 0:
                    break
                del signals[0]
                happened.append({"place": place, "job": name, "kind": kind, "which": which, "ended": end})
            else:
                assert forked(partial(job, folder, where), lambda: None) == 0
    return happened


if __name__ == "__main__":
    with redirect_stdout(io.StringIO()):
        result = run(Path(sys.argv[1]))
    print(json.dumps(result))
