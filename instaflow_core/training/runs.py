"""Steps 2 and 3 of the paper from checkpoint to checkpoint, which both the commands and the nodes call.

`train` with the stage "reflow" straightens a teacher's trajectories into a 2-rectified flow (section 2.1); with
"distill" it makes that flow's one-step student (section 3), from a set that the flow made.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..atomic import remove_leftovers_of, replacing
from ..triplets.format import SetInfo, read_info
from ..triplets.reading import SetReader
from ..triplets.storage import Storage
from ..weights.checkpoint import Checkpoint, load
from ..weights.files import WEIGHT_ENDINGS, FormatError, fingerprint, write_weights
from ..weights.loras import under_kohya_names
from ..weights.metadata import ASSUMED_KEY
from ..weights.modules import build_text_encoder, build_unet, build_vae
from ..weights.saving import save, save_folder
from .accelerator import own_state
from .batches import TIMES, SetBatches
from .loop import LoopConfig, Loss, fit
from .objectives import DISTILLATION_LOSSES, Distance, decoded_lpips, distill_step, on_policy_step, reflow_step
from .state import STATE_FILE
from .watching import SampleSheets, draw_losses

STAGES = ("reflow", "distill")
METHODS = ("full", "lora")
LOSSES = (*DISTILLATION_LOSSES, "lpips")
_RESULT = {"reflow": ("2-rectified-flow", "1.5"), "distill": ("one-step", "1.0")}
_NOT_INHERITED = (
    ASSUMED_KEY,
    "instaflow.folder",
    "instaflow.renamed",
    "modelspec.title",
    "modelspec.prediction_type",
    "modelspec.resolution",
)
_RECORDED = ("batch_size", "seed", "method", "times", "loss", "on_policy")
_LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@dataclass(frozen=True)
class StageConfig:
    """How a stage trains a UNet on a set.

    Attributes:
        stage: one of STAGES.
        loop: how its loop trains.
        batch_size: triplets to a step, over all processes and accumulated parts.
        method: "full", or "lora" for a low-rank adapter of `rank` on the attention layers, merged in the end.
        times: one of batches.TIMES, for reflow.
        loss: one of LOSSES, for distillation.
        on_policy: for distillation, the share of a batch whose targets are the flow's answers to the student's drafts
            (`objectives.on_policy_step`), 0 to 1; the flow is what the training starts from.
        checkpointing: compute activations again in the backward pass, to save memory.
        dtype: what the UNet's weights are saved in; None for float32.
    """

    stage: str
    loop: LoopConfig
    batch_size: int = 64
    seed: int = 0
    method: str = "full"
    rank: int = 64
    times: str = TIMES[0]
    loss: str = "l2"
    on_policy: float = 0.0
    checkpointing: bool = False
    dtype: torch.dtype | None = None


@dataclass
class StageResult:
    """What a stage made: the file or folder, its loss after each iteration, that as a picture, and whether this process
    is the one that wrote them."""

    path: Path
    losses: list[float]
    curve: Image.Image
    is_main: bool


def train(
    init: Checkpoint,
    storage: Storage,
    config: StageConfig,
    out: Path,
    resume: bool = False,
    device: str | None = None,
    progress: Callable[[int, float], None] | None = None,
    preview: Callable[[Image.Image], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> StageResult:
    """Train, and save the result at `out`: one file where it ends in .safetensors, a diffusers folder otherwise.

    Beside it, `<out>.training` holds the checkpoint to resume from, loss.csv, loss.png and, where the model has a VAE,
    sheets of samples.

    Args:
        init: the teacher for reflow; the 2-rectified flow for distillation.
        storage: where the set of triplets is.
        resume: go on with the run in `<out>.training`, if there is one.
        device: "cpu" to stay off an accelerator; otherwise accelerate's choice.
        progress: called after each step with (steps done, its loss); may raise to cancel, which leaves a checkpoint.
        preview: called with each sheet of samples.
        stop: asked after each step whether to stop, on every process; leaves a checkpoint.

    Raises:
        KeyboardInterrupt: the run was stopped.
        ValueError: the configuration does not fit, there is no whole set, there is a run or a result and no `resume`,
            or a result that is not this run's.
    """
    _check(config, out, resume, device)
    reader, work = SetReader(storage, config.seed), work_folder(out)
    record = _record(init, reader.info, config)
    if out.exists() and not (work / STATE_FILE).exists():
        _check_result(out, record)
    unet = build_unet(init).requires_grad_(True)
    if config.checkpointing:
        unet.enable_gradient_checkpointing()
    if config.method == "lora":
        _add_lora(unet, config)
    with own_state():
        encoder = build_text_encoder(init).to(_device(device))
        batches = SetBatches(reader, encoder, config.batch_size, config.seed + 1, config.times)
        with_times = config.stage == "reflow" or config.on_policy
        batch = batches.timed_pairs if with_times else batches.pairs
        snapshot = None
        if init.vae and config.loop.snapshot_every:
            steps = 1 if config.stage == "distill" else 4
            snapshot = SampleSheets(init, encoder, reader, unet, steps, config.seed, work / "samples", preview)
        origin = _origin(init, reader.info, config)
        result = fit(
            unet, batch, _loss(init, config), config.loop, work, resume, progress, snapshot, origin, device, stop
        )  # fmt: skip
    curve = draw_losses(result.losses, config.stage)
    if result.is_main:
        with replacing(work / "loss.png") as temporary:
            curve.save(temporary, format="PNG")
        if config.method == "lora":
            _save_lora(unet, config.rank, work / "lora.safetensors")
        record |= asdict(config.loop) | {"precision": result.precision}
        _save(_trained(init, unet, record, reader.info), out, config.dtype)
    return StageResult(out, result.losses, curve, result.is_main)


def equal_parts(batch_size: int, storage: Storage) -> int:
    """How many equal parts to go through a batch in, so that none has more than four latents of 512 pixels: what a GPU
    of 24 GB can hold beside a full training."""
    _, height, width = read_info(storage).latent_shape
    most = max(1, 4 * 64 * 64 // (height * width))
    return next(parts for parts in range(1, batch_size + 1) if batch_size % parts == 0 and batch_size // parts <= most)


def work_folder(out: Path) -> Path:
    """Where a training keeps what it needs to go on."""
    return out.with_name(out.name.removesuffix(".safetensors") + ".training")


def _check(config: StageConfig, out: Path, resume: bool, device: str | None) -> None:
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
    if device and ":" in device:
        raise ValueError(
            f"The device is {device}, and a training takes the first one it sees, or those of `accelerate launch`. "
            f"Give {device.split(':')[0]}, and hide the others: CUDA_VISIBLE_DEVICES={device.split(':')[1]}."
        )
    if not resume and (out.exists() or (work_folder(out) / STATE_FILE).exists()):
        raise ValueError(
            f"{out} is there already, or a run for it. Give another name, resume, or remove {work_folder(out)}."
        )


def _check_result(out: Path, record: dict[str, Any]) -> None:
    """Make sure that a result without a run is this run's own: the training would replace it in the end."""
    try:
        there = json.loads(load(out).metadata.get("instaflow.training", "{}"))
    except FormatError:
        there = {}
    if {name: there.get(name) for name in record} != json.loads(json.dumps(record)):
        raise ValueError(
            f"{out} is there already, and not a result of this run: there is no run to resume in {work_folder(out)}. "
            "Give another name, or move that away."
        )


def _device(device: str | None) -> Any:
    """The device the training will be on."""
    from accelerate import PartialState

    return "cpu" if device == "cpu" else PartialState().device


def _origin(init: Checkpoint, info: SetInfo, config: StageConfig) -> dict[str, Any]:
    """What the run starts from and learns from, and each number of the stage that is not at its default."""
    defaults = StageConfig(config.stage, config.loop)
    names = [name for name in ("rank", *_RECORDED) if getattr(config, name) != getattr(defaults, name)]
    made = hashlib.sha256(json.dumps(asdict(info), sort_keys=True).encode()).hexdigest()[:16]
    chosen = {name: getattr(config, name) for name in names}
    return {"stage": config.stage, "init": fingerprint(init.unet), "set": made, **chosen}


def _loss(init: Checkpoint, config: StageConfig) -> Loss:
    if config.stage == "reflow":
        return reflow_step
    lpips = config.loss == "lpips"
    distance: Distance = decoded_lpips(build_vae(init)) if lpips else DISTILLATION_LOSSES[config.loss]
    if config.on_policy:
        return on_policy_step(distance, build_unet(init), config.on_policy)
    return distill_step(distance)


def _add_lora(unet: Any, config: StageConfig) -> None:
    """Freeze the UNet and add an adapter whose start depends on the seed alone."""
    from peft import LoraConfig

    unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # no device's: those would not be put back
        unet.add_adapter(LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=_LORA_TARGETS))


def _save_lora(unet: Any, rank: int, path: Path) -> None:
    """Write the adapter as a LoRA file that ComfyUI's loader reads, and merge it into the UNet."""
    from peft import get_peft_model_state_dict

    tensors = {f"unet.{name}": tensor.cpu() for name, tensor in get_peft_model_state_dict(unet).items()}
    write_weights(under_kohya_names(tensors, {"unet": rank}), path, {"format": "pt"})
    unet.fuse_lora()
    unet.unload_lora()


def _record(init: Checkpoint, info: SetInfo, config: StageConfig) -> dict[str, Any]:
    """What a checkpoint says of the stage that made it, but for its loop."""
    return {
        "stage": config.stage,
        "from": json.loads(init.metadata.get("instaflow.training", "null")) or fingerprint(init.unet),
        "triplets": asdict(info),
        **{name: getattr(config, name) for name in _RECORDED},
    }


def _trained(init: Checkpoint, unet: Any, record: dict[str, Any], info: SetInfo) -> Checkpoint:
    """The checkpoint with the trained UNet, which says what it is and how it was made."""
    stage, guidance = _RESULT[record["stage"]]
    metadata = {name: value for name, value in init.metadata.items() if name not in _NOT_INHERITED} | {
        "instaflow.prediction": "velocity",
        "instaflow.stage": stage,
        "instaflow.guidance": guidance,
        "instaflow.training": json.dumps(record),
    }
    height, width = (side * init.latent_downscale for side in info.latent_shape[1:])
    if height == width:
        metadata["instaflow.native_size"] = str(height)
    weights = {name: tensor.detach().cpu() for name, tensor in unet.state_dict().items()}
    return replace(init, unet=weights, metadata=metadata)


def _save(checkpoint: Checkpoint, out: Path, dtype: torch.dtype | None) -> None:
    remove_leftovers_of(out)
    if out.suffix == ".safetensors":
        save(checkpoint, out, dtype)
    else:
        save_folder(checkpoint, out, dtype)
