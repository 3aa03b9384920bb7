"""`evaluate`: what models are worth, by the metrics of papers; without prompts, on the built-in domain."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, product
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..evaluation.coco import CLIP, PRESETS, coco_captions
from ..evaluation.drawing import Drawing
from ..evaluation.extractors import Networks
from ..evaluation.pictures import reference_pictures
from ..evaluation.report import Row, markdown, write_grid, write_rows
from ..evaluation.runs import Evaluation, EvaluationConfig, Share
from ..generate import TEACHER_STEPS
from ..shapes.evaluate import judges_of
from ..triplets.prompts import read_prompts
from ..weights.checkpoint import Checkpoint, load
from .common import (
    CHECKPOINT_HELP,
    DTYPES,
    Commands,
    add,
    add_drawing,
    add_extractor,
    add_rule,
    load_said,
    said_networks,
    seed,
)

_SHAPES_COUNT = 400


def add_evaluate(commands: Commands) -> None:
    """Add the command."""
    parser = add(
        commands,
        "evaluate",
        _evaluate,
        "Measure models: FID, KID, CMMD, CLIP score, distance to a teacher, diversity, straightness, time. Goes on "
        "where it was stopped; `accelerate launch -m instaflow_core evaluate ...` shares the work out. Without "
        "--prompts: accuracy and the other figures of the built-in shapes.",
        'python -m instaflow_core evaluate --checkpoint "built-in: shapes" --checkpoint "built-in: shapes-2rf" '
        '--prompts captions.txt --teacher "built-in: shapes-teacher" --steps 1 4 --count 200 --out bench',
    )
    parser.add_argument(
        "--checkpoint", action="append", metavar="NAME|PATH", help=f"may be given again; {CHECKPOINT_HELP}"
    )
    add_rule(parser)
    parser.add_argument(
        "--prompts",
        metavar="FILE|DATASET",
        help="as `triplets` takes them; with a preset, COCO's file of captions",
    )
    parser.add_argument("--images", metavar="FOLDER|DATASET", help="pictures that fid, kid and cmmd compare with")
    parser.add_argument("--teacher", metavar="NAME|PATH", help="whose pictures lpips and psnr compare with")
    parser.add_argument("--preset", choices=PRESETS, help="a published recipe: its count, size and CLIP")
    parser.add_argument("--steps", type=int, nargs="+", default=[1], help="one row for each (default 1)")
    parser.add_argument("--guidance", type=float, nargs="+", help="one row for each (default: the checkpoint's)")
    parser.add_argument("--teacher-steps", type=int, default=TEACHER_STEPS, help=f"(default {TEACHER_STEPS})")
    parser.add_argument("--teacher-guidance", type=float, help="(default: the teacher's)")
    parser.add_argument(
        "--count", type=int, help=f"pictures (default: one of each prompt; {_SHAPES_COUNT} of each part of the shapes)"
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the noise (default 0)")
    add_drawing(parser, 8)
    parser.add_argument(
        "--resize", type=int, metavar="PIXELS", help="reduce and cut to this before fid, kid, cmmd (default: do not)"
    )
    add_extractor(parser)
    parser.add_argument("--out", type=Path, help="the folder of pictures and figures, needed with --prompts")


def _evaluate(options: argparse.Namespace) -> None:
    names = options.checkpoint or ["built-in: shapes"]
    if options.count is not None and options.count < 2:
        raise ValueError(f"count is {options.count}. Give 2 or more.")
    if options.prompts or options.preset:
        _measure(options, names)
    else:
        _measure_shapes(options, names)


def _measure(options: argparse.Namespace, names: Sequence[str]) -> None:
    from accelerate import PartialState

    if options.out is None:
        raise ValueError("The pictures and figures need a place. Give --out FOLDER.")
    prompts = _prompts(options)
    base = _config(options, len(prompts))
    state = PartialState(cpu=options.device == "cpu")
    where = str(state.device) if state.num_processes > 1 else options.device
    dtype = DTYPES[options.dtype]
    share = Share(state.process_index, state.num_processes, state.wait_for_everyone)
    common: dict[str, Any] = {
        "networks": Networks(where, ({"clip": CLIP} if options.preset else {}) | said_networks(options.extractor)),
        "images": reference_pictures(options.images) if options.images else None,
        "teacher": Drawing(load(options.teacher), where, dtype) if options.teacher else None,
        "judges": judges_of(prompts),
        "share": share,
    }
    rows = list[Row]()
    for name in names:
        drawing = Drawing(load_said(name, options.prediction, options.rule), where, dtype)
        for steps, guidance in product(options.steps, options.guidance or [None]):
            config = replace(base, steps=steps, guidance=guidance)
            folder = options.out / _folder_name(name, steps, guidance)
            evaluation = Evaluation(drawing, prompts, config, folder, options.out, **common)
            mine = sum(len(indices) for _, indices in evaluation.columns.batches(share.part, share.parts))
            with tqdm(total=mine, unit=" images", disable=None if state.is_main_process else True) as bar:
                results = evaluation.run(bar.update)
            if state.is_main_process:
                write_grid(evaluation.gallery, folder)
                said = (name, drawing.checkpoint.stage, steps, evaluation.guidance, config.count, options.seed)
                rows.append(Row(*said, results))
    if state.is_main_process:
        path = write_rows(rows, options.out)
        print(markdown(rows))
        print(path)


def _config(options: argparse.Namespace, prompts: int) -> EvaluationConfig:
    """What all rows have in common."""
    if options.resize is not None and options.resize < 1:
        raise ValueError(f"resize is {options.resize}. Give 1 pixel or more.")
    preset = PRESETS.get(options.preset)
    count = prompts if options.count is None else options.count
    if preset and options.count is None:
        count = preset.count
    return EvaluationConfig(
        count,
        options.seed,
        width=options.width,
        height=options.height,
        batch_size=options.batch_size,
        side=preset.side if preset and options.resize is None else options.resize,
        teacher_steps=options.teacher_steps,
        teacher_guidance=options.teacher_guidance,
    )


def _prompts(options: argparse.Namespace) -> list[str]:
    """The prompts, of COCO where a preset is named."""
    if not options.preset:
        return read_prompts(options.prompts, options.count or 2**31)
    preset = PRESETS[options.preset]
    if not options.prompts or not options.images:
        raise ValueError(
            f"{options.preset} needs --images {preset.images} and --prompts {preset.captions}, both unpacked."
        )
    return coco_captions(Path(options.prompts).expanduser(), options.count or preset.count)


def _folder_name(checkpoint: str, steps: int, guidance: float | None) -> str:
    """A row's folder: what the checkpoint is called, without what a file name cannot hold."""
    stem = re.sub(r"[^\w.-]+", "-", Path(checkpoint).name.removesuffix(".safetensors")).strip("-.") or "model"
    return f"{stem}-{steps}-steps" + ("" if guidance is None else f"-guidance-{guidance:g}")


# --- the built-in domain ----------------------------------------------------------------------------------------------


def _measure_shapes(options: argparse.Namespace, names: Sequence[str]) -> None:
    """The rows of `make table` for these checkpoints."""
    from ..shapes.table import Table, write_table

    checkpoints = [load_said(name, options.prediction, options.rule) for name in names]
    for name, checkpoint in zip(names, checkpoints, strict=True):
        _check_schedule(name, checkpoint)
    path = options.out and (options.out if options.out.suffix == ".json" else options.out / "shapes.json")
    with Table(options.count or _SHAPES_COUNT) as table:
        each = product(checkpoints, options.guidance or [None])
        write_table(chain.from_iterable(table.rows(c.stage, c, options.steps, guidance) for c, guidance in each), path)
    if path:
        print(path)


def _check_schedule(name: str, checkpoint: Checkpoint) -> None:
    if checkpoint.zero_snr:
        raise ValueError(
            f"{name} was trained on a noise schedule of zero terminal SNR, and the table measures on Stable "
            "Diffusion's own. Look at its pictures with `generate`."
        )
