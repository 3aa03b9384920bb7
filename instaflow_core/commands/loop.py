"""What the commands that train share: the arguments of the loop, its progress on the terminal, how it is stopped."""

import argparse
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tqdm import tqdm

from ..training.accelerator import LOGGERS, PRECISIONS
from ..training.config import SCHEDULES, LoopConfig, usual_warmup
from ..training.optimizer import OPTIMIZERS
from .common import device, seed

_STOPPING = (signal.SIGINT, signal.SIGTERM)
_ECHO = 1.0  # seconds


def add_loop(parser: argparse.ArgumentParser, batch_size: int, lr: float, schedule: str, ema: float) -> None:
    """Add the arguments of the loop, with these defaults."""
    parser.add_argument("--iterations", type=int, required=True, help="optimiser steps in all")
    parser.add_argument(
        "--batch-size", type=int, default=batch_size, help=f"over all processes and parts (default {batch_size})"
    )
    parser.add_argument("--accumulate", type=int, default=1, help="parts of a batch, one after another (default 1)")
    parser.add_argument("--lr", type=float, default=lr, help=f"learning rate (default {lr:g})")
    parser.add_argument(
        "--warmup", type=int, help="iterations up to that rate (default 1000, or a tenth of a shorter run)"
    )
    parser.add_argument(
        "--schedule",
        choices=SCHEDULES,
        default=schedule,
        help=f"hold the rate, or let it fall to 0 (default {schedule})",
    )
    parser.add_argument("--weight-decay", type=float, default=0.01, help="of AdamW (default 0.01)")
    parser.add_argument("--ema", type=float, default=ema, help=f"decay of the weights' average (default {ema})")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the computation (default: what `accelerate launch` says, else fp32)",
    )
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="adamw8bit needs bitsandbytes")
    parser.add_argument(
        "--compile", action="store_true", help="by torch.compile: slow to start, then faster; needs a C++ compiler"
    )
    parser.add_argument("--checkpoint-every", type=int, default=500, help="iterations; 0 for none (default 500)")
    parser.add_argument("--checkpoint-minutes", type=float, default=10.0, help="and after so long (default 10)")
    parser.add_argument("--sample-every", type=int, default=500, help="iterations; 0 for no samples (default 500)")
    parser.add_argument("--log", choices=LOGGERS, default="none", help="beside the loss file (default none)")
    parser.add_argument("--seed", type=seed, default=0, help="of all that is drawn at random (default 0)")
    parser.add_argument("--device", type=device, default="auto", help="cpu, or what accelerate finds (default auto)")
    parser.add_argument("--resume", action="store_true", help="go on with an earlier run for the same --out, if any")


def loop_config(options: argparse.Namespace, evaluate_every: int = 0) -> LoopConfig:
    """How the loop trains, as the arguments say."""
    return LoopConfig(
        iterations=options.iterations,
        learning_rate=options.lr,
        warmup=usual_warmup(options.iterations) if options.warmup is None else options.warmup,
        schedule=SCHEDULES[options.schedule],
        weight_decay=options.weight_decay,
        ema=options.ema,
        precision=PRECISIONS[options.precision] if options.precision else None,
        accumulate=options.accumulate,
        optimizer=options.optimizer,
        compile=options.compile,
        checkpoint_every=options.checkpoint_every,
        checkpoint_minutes=options.checkpoint_minutes,
        snapshot_every=options.sample_every,
        evaluate_every=evaluate_every,
        log=options.log,
    )


@contextmanager
def progress_bar(name: str, iterations: int) -> Iterator[Callable[[int, float], None]]:
    """A progress bar."""
    with tqdm(total=iterations, desc=name, unit=" steps", disable=None) as bar:

        def progress(step: int, loss: float) -> None:
            if not bar.n:
                bar.initial = step - 1
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

        yield progress


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM has come. The first waits for the end of a step, so that its checkpoint is written; a
    second one ends the process at once, also where a step hangs in a call that lets no Python handler run."""
    asked = list[int]()

    def ask(number: int, frame: FrameType | None) -> None:
        if not asked:
            print("stopping after this step; --resume goes on from there, once more stops at once", file=sys.stderr)
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in _STOPPING}
    heard, told = socket.socketpair()
    told.setblocking(False)
    wakeup = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_end_at_the_second, args=(heard,), daemon=True).start()
    try:
        yield lambda: bool(asked)
    finally:
        signal.set_wakeup_fd(wakeup)
        told.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_at_the_second(heard: socket.socket) -> None:
    """End the process when a signal comes that is not the first one's echo: a launcher passes on to its processes what
    the terminal has sent them already."""
    first = None
    with heard:
        while told := heard.recv(1):
            if told[0] not in _STOPPING:
                continue
            if first is None:
                first = time.monotonic()
            elif time.monotonic() - first > _ECHO:
                os._exit(128 + told[0])
