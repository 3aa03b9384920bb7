"""`triplets`, `reflow` and `distill`: the paper's three steps. Each goes on where it was stopped or killed.

Under `accelerate launch -m instaflow_core ...` every process does its part.
"""

import argparse
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..shapes.evaluate import training_curve
from ..training.batches import TIMES
from ..training.config import StageConfig
from ..training.runs import LOSSES, METHODS, train
from ..training.watching import SampleSheets
from ..triplets.prompts import read_prompts
from ..triplets.storage import Storage
from ..triplets.writing import SetConfig, SetWriter, describe_set, make_set, native_guidance
from .common import (
    CHECKPOINT_HELP,
    DTYPES,
    Commands,
    add,
    add_drawing,
    add_extractor,
    add_prediction,
    add_rule,
    load_said,
    said_networks,
    seed,
)
from .loop import add_loop, loop_config, progress_bar, stopping

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
    add_rule(parser)
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
    add_drawing(parser, 8, "teacher", "; fewer where memory does not suffice")
    parser.set_defaults(tried="batch_size")
    parser.add_argument("--seed", type=seed, default=0, help="of the noise (default 0)")
    parser.add_argument("--out", required=True, help="a folder, or a URL such as s3://bucket/folder")


def _triplets(options: argparse.Namespace) -> None:
    from accelerate import PartialState

    teacher, prompts = (
        load_said(options.teacher, options.prediction, options.rule),
        read_prompts(options.prompts, options.count),
    )
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
    parser.add_argument(
        "--triplets",
        required=True,
        action="append",
        metavar="FOLDER",
        help="a set of triplets: a folder or a URL; given several times, every batch holds as many of each set",
    )
    add_loop(parser, batch_size=64, lr=1e-6, schedule="constant", ema=0.9999)
    parser.add_argument("--method", choices=METHODS, default="full", help="all weights, or a LoRA (default full)")
    parser.add_argument("--rank", type=int, default=64, help="of the LoRA (default 64)")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    parser.add_argument(
        "--evaluate-every",
        type=int,
        default=0,
        metavar="N",
        help="iterations between small evaluations, drawn as curves; 0 for none (default 0)",
    )
    add_extractor(parser)
    parser.add_argument(
        "--validation-prompts",
        metavar="FILE|DATASET",
        help="what samples and evaluations are drawn from, the first eight, read as `triplets` reads --prompts "
        "(default: of the set)",
    )
    parser.add_argument("--save-dtype", choices=DTYPES, default="fp32", help="of the saved weights (default fp32)")
    parser.add_argument("--out", type=Path, required=True, help="a .safetensors file, or a folder for diffusers")


def _reflow(options: argparse.Namespace) -> None:
    _train(options, "reflow", times=options.times)


def _distill(options: argparse.Namespace) -> None:
    _train(options, "distill", loss=options.loss, on_policy=options.on_policy)


def _train(options: argparse.Namespace, stage: str, **only_here: Any) -> None:
    loop = loop_config(options, options.evaluate_every)
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
    checkpoint = load_said(options.init, options.prediction)
    storages = [Storage(folder) for folder in options.triplets]
    with progress_bar(stage, options.iterations) as progress, stopping() as stop:
        trained = train(
            checkpoint,
            storages,
            config,
            options.out,
            options.resume,
            options.device,
            progress,
            stop=stop,
            watcher=training_curve("cpu", said=said_networks(options.extractor)),
        )
    if trained.is_main:
        print(trained.path)
