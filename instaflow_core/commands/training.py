"""`triplets`, `reflow` and `distill`: the paper's three steps. Each goes on where it was stopped or killed.

Under `accelerate launch -m instaflow_core ...` every process does its part.
"""

import argparse
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from ..training.accelerator import LOGGERS, PRECISIONS
from ..training.batches import TIMES
from ..training.config import SCHEDULES, LoopConfig, StageConfig, usual_warmup
from ..training.optimizer import OPTIMIZERS
from ..training.runs import LOSSES, METHODS, train
from ..training.watching import SampleSheets
from ..triplets.prompts import read_prompts
from ..triplets.storage import Storage
from ..triplets.writing import SetConfig, SetWriter, describe_set, make_set, native_guidance
from .common import (
    CHECKPOINT_HELP,
    COMPUTE_DTYPES,
    DTYPES,
    Commands,
    add,
    add_prediction,
    device,
    load_said,
    seed,
)

_STOPPING = (signal.SIGINT, signal.SIGTERM)
_ECHO = 1.0  # seconds


# --- triplets ---------------------------------------------------------------------------------------------------------


def add_triplets(commands: Commands) -> None:
    """Add the command."""
    parser = add(
        commands,
        "triplets",
        _triplets,
        "Make a set of (text, noise, latent) from a teacher: the first step, and for distillation the third.",
        'python -m instaflow_core triplets --teacher "built-in: shapes-teacher" --prompts captions.txt --count 2000 '
        "--guidance 2 --out sets/teacher",
    )
    parser.add_argument("--teacher", required=True, metavar="NAME|PATH", help=CHECKPOINT_HELP)
    add_prediction(parser)
    parser.add_argument(
        "--prompts",
        required=True,
        metavar="FILE|DATASET",
        help="a text file with a prompt a line, a .parquet, .csv or .jsonl file, or a Hugging Face dataset; "
        "`name:column` names the column",
    )
    parser.add_argument("--count", type=int, required=True, help="how many triplets; prompts are used again as needed")
    parser.add_argument(
        "--empty-share",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of the triplets with no prompt, 0 to 1: what a flow needs that is to be guided; 0.1 is a good number "
        "(default 0, as in the paper)",
    )
    parser.add_argument("--steps", type=int, default=25, help="of the teacher (default 25)")
    parser.add_argument(
        "--guidance", type=float, help="(default: what the teacher says, else 5.0; 1.5 for a 2-rectified flow)"
    )
    parser.add_argument("--width", type=int, help="in pixels (default: the teacher's native size)")
    parser.add_argument("--height", type=int, help="in pixels (default: the teacher's native size)")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures at once (default 8)")
    parser.add_argument("--seed", type=seed, default=0, help="of the noise (default 0)")
    parser.add_argument("--dtype", choices=COMPUTE_DTYPES, default="fp32", help="what to compute in (default fp32)")
    parser.add_argument("--device", type=device, default="auto", help="cpu, cuda, mps or auto (default)")
    parser.add_argument("--out", required=True, help="a folder, or a URL such as s3://bucket/folder")


def _triplets(options: argparse.Namespace) -> None:
    from accelerate import PartialState

    teacher, prompts = load_said(options.teacher, options.prediction), read_prompts(options.prompts, options.count)
    guidance = native_guidance(teacher) if options.guidance is None else options.guidance
    fields = ("count", "seed", "steps", "width", "height", "batch_size", "empty_share")
    values = {name: getattr(options, name) for name in fields}
    config = SetConfig(guidance=guidance, dtype=DTYPES[options.dtype], **values)
    storage, info = Storage(options.out), describe_set(teacher, config, prompts)
    state = PartialState(cpu=options.device == "cpu")
    with state.main_process_first():
        writer = SetWriter(storage, info)
    where = str(state.device) if state.num_processes > 1 else options.device
    part, parts = state.process_index, state.num_processes
    silent = None if state.is_main_process else True
    with tqdm(total=writer.count_of(part, parts), unit=" images", disable=silent) as bar:
        make_set(writer, teacher, config, prompts, where, bar.update, part, parts)
    state.wait_for_everyone()
    if state.is_main_process:
        print(options.out)


# --- reflow and distill -----------------------------------------------------------------------------------------------


def add_reflow(commands: Commands) -> None:
    """Add the command."""
    parser = add(
        commands,
        "reflow",
        _reflow,
        "Train a 2-rectified flow on a teacher's triplets, starting from the teacher.",
        'python -m instaflow_core reflow --init "built-in: shapes-teacher" --triplets sets/teacher '
        "--iterations 1000 --lr 5e-4 --warmup 50 --ema 0.99 --out my-2rf.safetensors",
    )
    _add_training(parser)
    parser.add_argument(
        "--times", choices=TIMES, default=TIMES[0], help="draw t evenly, or both ends more often (default uniform)"
    )


def add_distill(commands: Commands) -> None:
    """Add the command."""
    parser = add(
        commands,
        "distill",
        _distill,
        "Distil a 2-rectified flow into one step, on triplets that it made.",
        "python -m instaflow_core distill --init my-2rf.safetensors --triplets sets/2rf "
        "--iterations 1000 --lr 5e-4 --warmup 50 --ema 0.99 --loss huber --out my-instaflow.safetensors",
    )
    _add_training(parser)
    parser.add_argument("--loss", choices=LOSSES, default="l2", help="distance from the flow's end point (default l2)")
    parser.add_argument(
        "--on-policy",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="of a batch, 0 to 1, that learns the flow's answer to the student's own draft in place of the flow's end, "
        "for half as much again to compute (default 0, as in the paper)",
    )


def _add_training(parser: argparse.ArgumentParser) -> None:
    """The arguments that both trainings take; the defaults are the paper's."""
    parser.add_argument("--init", required=True, metavar="NAME|PATH", help=f"where to start: {CHECKPOINT_HELP}")
    add_prediction(parser)
    parser.add_argument("--triplets", required=True, metavar="FOLDER", help="a set of triplets: a folder or a URL")
    parser.add_argument("--iterations", type=int, required=True, help="optimiser steps in all")
    parser.add_argument(
        "--batch-size", type=int, default=64, help="over all processes and accumulated parts (default 64)"
    )
    parser.add_argument("--accumulate", type=int, default=1, help="parts of a batch, one after another (default 1)")
    parser.add_argument("--lr", type=float, default=1e-6, help="learning rate (default 1e-6)")
    parser.add_argument(
        "--warmup", type=int, help="iterations up to that rate (default 1000, or a tenth of a shorter run)"
    )
    parser.add_argument(
        "--schedule",
        choices=SCHEDULES,
        default="constant",
        help="hold the rate, or let it fall to 0 (default constant)",
    )
    parser.add_argument("--weight-decay", type=float, default=0.01, help="of AdamW (default 0.01)")
    parser.add_argument("--ema", type=float, default=0.9999, help="decay of the weights' average (default 0.9999)")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the computation (default: what `accelerate launch` says, else fp32)",
    )
    parser.add_argument("--method", choices=METHODS, default="full", help="all weights, or a LoRA (default full)")
    parser.add_argument("--rank", type=int, default=64, help="of the LoRA (default 64)")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="adamw8bit needs bitsandbytes")
    parser.add_argument(
        "--compile", action="store_true", help="by torch.compile: slow to start, then faster; needs a C++ compiler"
    )
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    parser.add_argument("--checkpoint-every", type=int, default=500, help="iterations; 0 for none (default 500)")
    parser.add_argument("--checkpoint-minutes", type=float, default=10.0, help="and after so long (default 10)")
    parser.add_argument("--sample-every", type=int, default=500, help="iterations; 0 for no samples (default 500)")
    parser.add_argument(
        "--validation-prompts",
        metavar="FILE|DATASET",
        help="what samples are drawn from, the first eight, read as `triplets` reads --prompts (default: of the set)",
    )
    parser.add_argument("--log", choices=LOGGERS, default="none", help="beside the loss file (default none)")
    parser.add_argument("--save-dtype", choices=DTYPES, default="fp32", help="of the saved weights (default fp32)")
    parser.add_argument("--seed", type=seed, default=0, help="of the order and of the times (default 0)")
    parser.add_argument("--device", type=device, default="auto", help="cpu, or what accelerate finds (default auto)")
    parser.add_argument("--resume", action="store_true", help="go on with an earlier run for the same --out, if any")
    parser.add_argument("--out", type=Path, required=True, help="a .safetensors file, or a folder for diffusers")


def _reflow(options: argparse.Namespace) -> None:
    _train(options, "reflow", times=options.times)


def _distill(options: argparse.Namespace) -> None:
    _train(options, "distill", loss=options.loss, on_policy=options.on_policy)


def _train(options: argparse.Namespace, stage: str, **only_here: Any) -> None:
    loop = LoopConfig(
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
        log=options.log,
    )
    prompts = read_prompts(options.validation_prompts, SampleSheets.COUNT) if options.validation_prompts else []
    config = StageConfig(
        stage,
        loop,
        batch_size=options.batch_size,
        seed=options.seed,
        method=options.method,
        rank=options.rank,
        checkpointing=options.gradient_checkpointing,
        dtype=DTYPES[options.save_dtype],
        validation_prompts=tuple(prompts),
        **only_here,
    )
    checkpoint, storage = load_said(options.init, options.prediction), Storage(options.triplets)
    with _bar(stage, options.iterations) as progress, _stopping() as stop:
        trained = train(
            checkpoint, storage, config, options.out, options.resume, options.device, progress, stop=stop
        )  # fmt: skip
    if trained.is_main:
        print(trained.path)


@contextmanager
def _bar(name: str, iterations: int) -> Iterator[Callable[[int, float], None]]:
    """A progress bar."""
    with tqdm(total=iterations, desc=name, unit=" steps", disable=None) as bar:

        def progress(step: int, loss: float) -> None:
            if not bar.n:
                bar.initial = step - 1
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

        yield progress


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
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
