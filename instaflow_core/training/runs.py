"""Steps 2 and 3 of the paper from checkpoint to checkpoint, which both the commands and the nodes call.

`train` with the stage "reflow" straightens a teacher's trajectories into a 2-rectified flow (section 2.1); with
"distill" it makes that flow's one-step student (section 3), from a set that the flow made.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..atomic import remove_leftovers_of, replacing
from ..triplets.format import SetInfo, read_info
from ..triplets.reading import Triplets
from ..triplets.storage import Folder
from ..weights.checkpoint import Checkpoint
from ..weights.files import fingerprint, write_weights
from ..weights.modules import build_text_encoder, build_unet, build_vae
from ..weights.saving import save, save_folder
from .loop import TrainConfig, fit
from .losses import DISTILLATION_LOSSES, TIMES, decoded_lpips
from .objectives import Distance, PairBatches, ReflowBatches, distill_step, on_policy_step, reflow_step
from .watching import Samples, draw_losses

STAGES = ("reflow", "distill")
METHODS = ("full", "lora")
LOSSES = (*DISTILLATION_LOSSES, "lpips")
_RESULT = {"reflow": ("2-rectified-flow", "1.5"), "distill": ("one-step", "1.0")}
_RECORDED = ("batch_size", "seed", "method", "times", "loss", "on_policy")
_LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@dataclass(frozen=True)
class TrainRequest:
    """A training of a UNet on a set.

    Attributes:
        stage: one of STAGES.
        batch_size: records to a step, over all processes and accumulated parts.
        method: "full", or "lora" for a low-rank adapter of `rank` on the attention layers, merged in the end.
        times: one of losses.TIMES, for reflow.
        loss: one of LOSSES, for distillation.
        on_policy: for distillation, the share of a batch whose targets are the flow's answers to the student's drafts
            (`stages.on_policy_step`), 0 to 1; the flow is what the training starts from.
        checkpointing: compute activations again in the backward pass, to save memory.
        dtype: what the UNet's weights are saved in; None for float32.
    """

    stage: str
    config: TrainConfig
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
class Trained:
    """What a training made: the file or folder, its loss after each iteration, that as a picture, and whether this
    process is the one that wrote them."""

    path: Path
    losses: list[float]
    curve: Image.Image
    is_main: bool


def train(
    init: Checkpoint,
    folder: Folder,
    request: TrainRequest,
    out: Path,
    resume: bool = False,
    device: str | None = None,
    progress: Callable[[int, float], None] | None = None,
    preview: Callable[[Image.Image], None] | None = None,
) -> Trained:
    """Train, and save the result at `out`: one file where it ends in .safetensors, a diffusers folder otherwise.

    Beside it, `<out>.training` holds the checkpoint to resume from, loss.csv, loss.png and, where the model has a VAE,
    sheets of samples.

    Args:
        init: the teacher for reflow; the 2-rectified flow for distillation.
        folder: the set of triplets.
        resume: go on with the run in `<out>.training`, if there is one.
        device: "cpu" to stay off an accelerator.
        progress: called after each step with (steps done, its loss); may raise to cancel, which leaves a checkpoint.
        preview: called with each sheet of samples.

    Raises:
        ValueError: the request does not fit, there is no whole set, or there is a run or a result and no `resume`.
    """
    _check(request, out, resume)
    work = work_folder(out)
    triplets = Triplets(folder, request.seed)
    encoder = build_text_encoder(init).to(_device(device))
    unet = build_unet(init).requires_grad_(True)
    if request.checkpointing:
        unet.enable_gradient_checkpointing()
    if request.method == "lora":
        _add_lora(unet, request)
    if request.stage == "reflow" or request.on_policy:
        batches: Any = ReflowBatches(triplets, encoder, request.batch_size, request.seed + 1, request.times)
    else:
        batches = PairBatches(triplets, encoder, request.batch_size)
    about = {
        **{name: getattr(request, name) for name in ("stage", "rank", *_RECORDED)},
        "init": fingerprint(init.unet),
        "triplets": json.dumps(asdict(triplets.info), sort_keys=True),
    }
    snapshot = None
    if init.vae and request.config.snapshot_every:
        steps = 1 if request.stage == "distill" else 4
        snapshot = Samples(init, encoder, triplets, unet, steps, request.seed, work / "samples", preview)
    loss = _loss(init, request)
    result = fit(unet, batches, loss, request.config, work, resume, progress, snapshot, about, device)
    curve = draw_losses(result.losses, request.stage)
    is_main = _is_main_process()
    if is_main:
        with replacing(work / "loss.png") as temporary:
            curve.save(temporary, format="PNG")
        if request.method == "lora":
            _save_lora(unet, work / "lora.safetensors")
        _save(_trained(init, unet, request, triplets.info), out, request.dtype)
    return Trained(out, result.losses, curve, is_main)


def equal_parts(batch_size: int, folder: Folder) -> int:
    """How many equal parts to go through a batch in, so that none has more than four latents of 512 pixels: what a GPU
    of 24 GB can hold beside a full training."""
    _, height, width = read_info(folder).latent_shape
    most = max(1, 4 * 64 * 64 // (height * width))
    return next(parts for parts in range(1, batch_size + 1) if batch_size % parts == 0 and batch_size // parts <= most)


def work_folder(out: Path) -> Path:
    """Where a training keeps what it needs to go on."""
    return out.with_name(out.name.removesuffix(".safetensors") + ".training")


def _check(request: TrainRequest, out: Path, resume: bool) -> None:
    for name, value, known in (
        ("stage", request.stage, STAGES),
        ("method", request.method, METHODS),
        ("times", request.times, TIMES),
        ("loss", request.loss, LOSSES),
    ):
        if value not in known:
            raise ValueError(f"Unknown {name} {value!r}; expected one of {', '.join(known)}.")
    for name, number in (("iterations", request.config.iterations), ("batch_size", request.batch_size)):
        if number < 1:
            raise ValueError(f"{name} is {number}. Give 1 or more.")
    if not 0 <= request.on_policy <= 1:
        raise ValueError(f"on_policy is {request.on_policy}. Give a share from 0 to 1.")
    if not resume and (out.exists() or (work_folder(out) / "state.pt").exists()):
        raise ValueError(
            f"{out} is there already, or a run for it. Give another name, resume, or remove {work_folder(out)}."
        )


def _device(device: str | None) -> Any:
    """The device the training will be on."""
    from accelerate import PartialState

    return "cpu" if device == "cpu" else PartialState().device


def _is_main_process() -> bool:
    from accelerate import PartialState

    return PartialState().is_main_process


def _loss(init: Checkpoint, request: TrainRequest) -> Callable[[nn.Module, Any], Tensor]:
    if request.stage == "reflow":
        return reflow_step
    lpips = request.loss == "lpips"
    distance: Distance = decoded_lpips(build_vae(init)) if lpips else DISTILLATION_LOSSES[request.loss]
    if request.on_policy:
        return on_policy_step(distance, build_unet(init), request.on_policy)
    return distill_step(distance)


def _add_lora(unet: Any, request: TrainRequest) -> None:
    """Freeze the UNet and add an adapter whose start depends on the seed alone."""
    from peft import LoraConfig

    unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        unet.add_adapter(LoraConfig(r=request.rank, lora_alpha=request.rank, target_modules=_LORA_TARGETS))


def _save_lora(unet: Any, path: Path) -> None:
    """Write the adapter as a LoRA file for any loader, and merge it into the UNet."""
    from peft import get_peft_model_state_dict

    tensors = {f"unet.{name}": tensor.cpu() for name, tensor in get_peft_model_state_dict(unet).items()}
    write_weights(tensors, path, {"format": "pt"})
    unet.fuse_lora()
    unet.unload_lora()


def _trained(init: Checkpoint, unet: Any, request: TrainRequest, info: SetInfo) -> Checkpoint:
    """The checkpoint with the trained UNet, which says what it is and how it was made."""
    stage, guidance = _RESULT[request.stage]
    record = {
        "stage": request.stage,
        "from": json.loads(init.metadata.get("instaflow.training", "null")) or fingerprint(init.unet),
        "triplets": asdict(info),
        **{name: getattr(request, name) for name in _RECORDED},
        **asdict(request.config),
    }
    dropped = ("instaflow.folder", "instaflow.renamed", "modelspec.title", "modelspec.prediction_type")
    metadata = {name: value for name, value in init.metadata.items() if name not in dropped} | {
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
