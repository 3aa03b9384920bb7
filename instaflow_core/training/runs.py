"""Steps 2 and 3 of the paper from checkpoint to checkpoint, which both the commands and the nodes call.

`train` with the stage "reflow" straightens a teacher's trajectories into a 2-rectified flow (section 2.1); with
"distill" it makes that flow's one-step student (section 3), from a set that the flow made.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..triplets.format import SetInfo, read_info
from ..triplets.reading import Reader, open_sets
from ..triplets.storage import Storage
from ..weights.checkpoint import Checkpoint
from ..weights.files import WEIGHT_ENDINGS, fingerprint
from ..weights.modules import build_text_encoder, build_unet, build_vae
from .accelerator import own_state
from .batches import TIMES, SetBatches
from .config import Loss, StageConfig
from .loop import fit
from .lora import add_lora, save_lora
from .objectives import (
    DISTILLATION_LOSSES,
    Distance,
    decoded_lpips,
    distill_step,
    on_policy_step,
    reflow_step,
    time_of,
)
from .place import alone_in_run, check_device, check_place, keep_charts, training_device, work_folder
from .results import RECORDED, check_result, described_result, record_of, result_of, save_result
from .state import STATE_FILE
from .time_bins import draw_by_time
from .watching import InTraining, SampleSheets, Watcher, draw_losses

STAGES = ("reflow", "distill")
METHODS = ("full", "lora")
LOSSES = (*DISTILLATION_LOSSES, "lpips")
LOOKED_AT = 64
"""Of a set's latents, for what measures a model in training."""


@dataclass
class StageResult:
    """What a stage made: the file or folder, its loss after each iteration, charts of it (over the iterations and, for
    reflow, over t) and of what was measured on the way, and whether this process is the one that wrote them."""

    path: Path
    losses: list[float]
    charts: list[Image.Image]
    is_main: bool


def train(
    init: Checkpoint,
    storages: Sequence[Storage],
    config: StageConfig,
    out: Path,
    resume: bool = False,
    device: str | None = None,
    progress: Callable[[int, float], None] | None = None,
    preview: Callable[[Image.Image], None] | None = None,
    stop: Callable[[], bool] | None = None,
    work: Path | None = None,
    lora: Path | None = None,
    watcher: Callable[[InTraining], Watcher] | None = None,
) -> StageResult:
    """Train, and save the result at `out`: one file where it ends in .safetensors, a diffusers folder otherwise.

    The folder `work` holds the checkpoint to resume from, loss.csv, loss.png, for reflow the same by time, and, where
    the model has a VAE, sheets of samples.

    Args:
        init: the teacher for reflow; the 2-rectified flow for distillation.
        storages: where the set of triplets is; of several, every batch holds as many of each.
        resume: go on with the run in `work`, if there is one.
        device: "cpu" to stay off an accelerator; otherwise accelerate's choice.
        progress: called after each step with (steps done, its loss); may raise to cancel, which leaves a checkpoint.
        preview: called with each sheet of samples.
        stop: asked after each step whether to stop, on every process; leaves a checkpoint.
        work: `<out>.training` where it is not given.
        lora: where the LoRA of that method goes, beside the result it is merged into; `lora.safetensors` in `work`
            where it is not given.
        watcher: makes what is called every `evaluate_every` steps of the loop, and whose charts go to `work`, too.

    Raises:
        KeyboardInterrupt: the run was stopped.
        CannotWrite: the disk is full, or may not be written to.
        ValueError: the configuration does not fit, there is no whole set, there is a run or a result and no `resume`,
            a result that is not this run's, or another run at work in `work`.
    """
    work = work or work_folder(out)
    lora = lora or work / "lora.safetensors"
    _check(config, out, device)
    reader = open_sets(storages, config.seed)
    _check_latents(init, reader.info)
    record = record_of(init, reader.info, config)
    with alone_in_run(work, device):
        _check_place(out, lora if config.method == "lora" else out, record, work, resume)
        unet = build_unet(init).requires_grad_(True)
        if config.checkpointing:
            unet.enable_gradient_checkpointing()
        if config.method == "lora":
            add_lora(unet, config.rank, config.seed)
        with own_state():
            encoder = build_text_encoder(init).to(training_device(device))
            batches = SetBatches(reader, encoder, config.batch_size, config.seed + 1, config.times)
            with_times = config.stage == "reflow" or config.on_policy
            batch = batches.timed_pairs if with_times else batches.pairs
            snapshot, measured = None, None
            of_the_set, latents = _first(reader)
            prompts = config.validation_prompts or of_the_set
            if watcher and config.loop.evaluate_every:
                becomes = described_result(init, record, reader.info)
                goes_on = (work / STATE_FILE).exists()
                of = InTraining(config.stage, init, becomes, encoder, unet, prompts, latents, work, goes_on)
                measured = watcher(of)
            if init.vae and config.loop.snapshot_every:
                steps = 1 if config.stage == "distill" else 4
                snapshot = SampleSheets(
                    init,
                    encoder,
                    prompts,
                    reader.info.latent_shape,
                    unet,
                    steps,
                    config.seed,
                    work / "samples",
                    preview,
                )
            result = fit(
                unet,
                batch,
                _loss(init, config),
                config.loop,
                work,
                resume,
                progress,
                snapshot,
                measured,
                _origin(init, reader.info, config),
                device,
                stop,
                time_of if config.stage == "reflow" else None,
            )
        charts = {"loss": draw_losses(result.losses, config.stage)}
        if result.by_time:
            charts["loss_by_time"] = draw_by_time(result.by_time, config.stage)
        if result.is_main:
            charts |= measured.charts() if measured else {}
            keep_charts(charts, work)
            if config.method == "lora":
                save_lora(unet, config.rank, lora)
            record |= asdict(config.loop) | {"precision": result.precision}
            save_result(result_of(init, unet, record, reader.info), out, config.dtype)
        return StageResult(out, result.losses, list(charts.values()), result.is_main)


def equal_parts(batch_size: int, storage: Storage, loss: str) -> list[int]:
    """How many equal parts to go through a batch in, so that none has more than four latents of 512 pixels: what a GPU
    of 24 GB can hold beside a full training. Under lpips it holds one, whose decoding is kept for the gradient. After
    that number, those to go on to where the memory is less."""
    _, height, width = read_info(storage).latent_shape
    most = max(1, (1 if loss == "lpips" else 4) * 64 * 64 // (height * width))
    return [parts for parts in range(1, batch_size + 1) if batch_size % parts == 0 and batch_size // parts <= most]


def _first(reader: Reader) -> tuple[list[str], Tensor]:
    """Prompts of the set, each once, but the empty one; and up to LOOKED_AT latents of such."""
    first = reader.read(range(min(256, len(reader))))
    said = [row for row, text in enumerate(first.texts) if text] or list(range(len(first.texts)))
    prompts = list(dict.fromkeys(first.texts[row] for row in said))
    return prompts, first.latents[said[:LOOKED_AT]].float()


def _check(config: StageConfig, out: Path, device: str | None) -> None:
    for name, value, known in (
        ("stage", config.stage, STAGES),
        ("method", config.method, METHODS),
        ("times", config.times, TIMES),
        ("loss", config.loss, LOSSES),
    ):
        if value not in known:
            raise ValueError(f"Unknown {name} {value!r}; expected one of {', '.join(known)}.")
    for name, number in (("iterations", config.loop.iterations), ("batch_size", config.batch_size)):
        if number < 1:
            raise ValueError(f"{name} is {number}. Give 1 or more.")
    if not 0 <= config.on_policy <= 1:
        raise ValueError(f"on_policy is {config.on_policy}. Give a share from 0 to 1.")
    if out.suffix.lower() in WEIGHT_ENDINGS and out.suffix != ".safetensors":
        raise ValueError(f"{out} is no name for a result. Give a .safetensors file, or a folder for diffusers.")
    check_device(device)


def _check_place(out: Path, lora: Path, record: dict[str, Any], work: Path, resume: bool) -> None:
    """Make sure that nothing is there but this run and its results."""
    if not check_place(out, work, resume):
        check_result(out, lora, record, work)


def _check_latents(init: Checkpoint, info: SetInfo) -> None:
    channels = init.unet_config["in_channels"]
    if info.latent_shape[0] != channels:
        raise ValueError(
            f"The triplets hold latents of the shape {info.latent_shape}, and the model takes {channels} channels. "
            "Train on triplets that a model of the same kind has made."
        )


def _origin(init: Checkpoint, info: SetInfo, config: StageConfig) -> dict[str, Any]:
    """What the run starts from and learns from, and each number of the stage that is not at its default."""
    defaults = StageConfig(config.stage, config.loop)
    names = [name for name in ("rank", *RECORDED) if getattr(config, name) != getattr(defaults, name)]
    chosen = {name: getattr(config, name) for name in names}
    return {"stage": config.stage, "init": fingerprint(init.unet), "set": info.digest(), **chosen}


def _loss(init: Checkpoint, config: StageConfig) -> Loss:
    if config.stage == "reflow":
        return reflow_step
    lpips = config.loss == "lpips"
    distance: Distance = decoded_lpips(build_vae(init)) if lpips else DISTILLATION_LOSSES[config.loss]
    if config.on_policy:
        return on_policy_step(distance, build_unet(init), config.on_policy)
    return distill_step(distance)
