"""A tiny VAE in a checkpoint's VAE's place, in TAESD's shape and files, learned from that VAE's own latents."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..atomic import replacing
from ..pictures.images import contact_sheet, to_images
from ..pictures.sources import Pictures
from ..triplets.format import read_info
from ..triplets.reading import SetReader, last_triplets
from ..triplets.storage import Storage
from ..weights.checkpoint import Checkpoint
from ..weights.files import fingerprint, write_weights
from ..weights.modules import needed_part
from ..weights.taesd import DOWNSCALE, encoder_beside, taesd_config, taesd_half
from .accelerator import own_state
from .config import LoopConfig
from .loop import fit
from .place import alone_in_run, check_device, check_place, keep_charts, training_device, work_folder
from .tiny import (
    PICTURE_LOSSES,
    Batches,
    FullVAE,
    LatentBatches,
    PictureBatches,
    Tiny,
    by_turns,
    picture_distance,
    squares,
    tiny_step,
)
from .watching import draw_losses

STAGE = "distill-decoder"
HELD_OUT = 32
"""At most so many of a set's triplets, and of a folder's pictures, are not learned from but measured on; an eighth of
fewer."""
_SHOWN = 6


@dataclass(frozen=True)
class DecoderConfig:
    """How a tiny VAE is trained.

    Attributes:
        loop: how its loop trains.
        batch_size: pictures to a step, over all processes and accumulated parts.
        size: side of what is learned from, in pixels; None for the checkpoint's native size.
        loss: one of tiny.PICTURE_LOSSES, for the decoder.
        encoder: whether the encoder is trained, too.
        dtype: what the weights are saved in.
    """

    loop: LoopConfig
    batch_size: int = 16
    seed: int = 0
    size: int | None = None
    loss: str = PICTURE_LOSSES[0]
    encoder: bool = True
    dtype: torch.dtype = torch.float32


@dataclass
class TinyResult:
    """What a training made: its files, its loss after each iteration, whether this process is the one that wrote them;
    what they are measured by: the modules, and latents (1, C, H, W) that were held out."""

    paths: list[Path]
    losses: list[float]
    is_main: bool
    tiny: Tiny
    full: FullVAE
    held_out: list[Tensor]


def distill_decoder(
    checkpoint: Checkpoint,
    config: DecoderConfig,
    out: Path,
    storage: Storage | None = None,
    pictures: Pictures | None = None,
    resume: bool = False,
    device: str | None = None,
    progress: Callable[[int, float], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> TinyResult:
    """Train, and write `out`, called NAME_decoder.safetensors, and NAME_encoder.safetensors beside it.

    The folder NAME_decoder.training holds the checkpoint to resume from, loss.csv, loss.png and sheets of samples: the
    VAE's pictures over the tiny one's, of latents that are held out.

    Args:
        storage: where a set of triplets is whose latents are learned from.
        pictures: which the VAE encodes, to learn from; of both, batch by batch in turn.
        resume: go on with an earlier run for `out`, if there is one.
        device: "cpu" to stay off an accelerator; otherwise accelerate's choice.
        progress: called after each step with (steps done, its loss); may raise to cancel, which leaves a checkpoint.
        stop: asked after each step whether to stop, on every process; leaves a checkpoint.

    Raises:
        KeyboardInterrupt: the run was stopped.
        CannotWrite: the disk is full, or may not be written to.
        ValueError: the configuration or what is learned from does not fit the VAE, there is a run or a result and no
            `resume`, a result without its run, or another run at work.
    """
    size = _check(config, checkpoint, device)
    vae, _ = needed_part(checkpoint, "vae", "VAE")
    tiny_config, encoder, work = taesd_config(checkpoint), encoder_beside(out), work_folder(out)
    sources = _Sources(config, size, tiny_config["latent_channels"], storage, pictures)
    record = {"stage": STAGE, "vae": fingerprint(vae), **sources.said, "size": size}
    record |= {name: getattr(config, name) for name in ("batch_size", "seed", "loss", "encoder")}
    paths = [out, encoder] if config.encoder else [out]
    with alone_in_run(work, device):
        for path in paths:
            if not check_place(path, work, resume) and path.exists():
                raise ValueError(
                    f"{path} is there already, and no run for it in {work}. Give another name, or move it."
                )
        tiny, full = Tiny(tiny_config, config.seed, config.encoder), FullVAE(checkpoint)
        with own_state():
            where = training_device(device)
            held_out = sources.held_out(full, where)
            result = fit(
                tiny,
                sources.batches,
                tiny_step(full, picture_distance(config.loss)),
                config.loop,
                work,
                resume,
                progress,
                _Sheets(tiny, full, held_out, where, work / "samples") if config.loop.snapshot_every else None,
                origin=record,
                device=device,
                stop=stop,
            )
        if result.is_main:
            keep_charts({"loss": draw_losses(result.losses, STAGE)}, work)
            record |= asdict(config.loop) | {"precision": result.precision}
            metadata = {"format": "pt", "instaflow.training": json.dumps(record)}
            if "instaflow.license" in checkpoint.metadata:
                metadata["instaflow.license"] = checkpoint.metadata["instaflow.license"]
            # The decoder comes last: where it is, all is.
            for path, half in reversed(list(zip(paths, ("decoder", "encoder"), strict=False))):
                write_weights(taesd_half(tiny.state_dict(), half, tiny_config, config.dtype), path, metadata)
    return TinyResult(paths, result.losses, result.is_main, tiny, full, held_out)


def _check(config: DecoderConfig, checkpoint: Checkpoint, device: str | None) -> int:
    """The side of what is learned from, in pixels; ValueError where the configuration does not fit."""
    if config.loss not in PICTURE_LOSSES:
        raise ValueError(f"Unknown loss {config.loss!r}; expected one of {', '.join(PICTURE_LOSSES)}.")
    for name, number in (("iterations", config.loop.iterations), ("batch_size", config.batch_size)):
        if number < 1:
            raise ValueError(f"{name} is {number}. Give 1 or more.")
    size = checkpoint.native_size if config.size is None else config.size
    if size < DOWNSCALE or size % DOWNSCALE:
        raise ValueError(f"The size is {size} pixels. Give a multiple of {DOWNSCALE}.")
    check_device(device)
    return size


class _Sources:
    """What is learned from, and what is held out of it.

    said: what they are, for a record.
    """

    def __init__(
        self, config: DecoderConfig, size: int, channels: int, storage: Storage | None, pictures: Pictures | None
    ) -> None:
        self.storage, self.pictures, self.size = storage, pictures, size
        self.said = dict[str, Any]()
        each = list[Batches]()
        if storage is not None:
            info = read_info(storage)
            if info.latent_shape[0] != channels:
                raise ValueError(
                    f"The triplets hold latents of the shape {info.latent_shape}, and the VAE has {channels} channels. "
                    "Learn from triplets that a model with this VAE has made."
                )
            self.said["triplets"] = info.digest()
            self.triplets_held_out = _held_out(info.count)
            reader = SetReader(storage, config.seed, held_out=self.triplets_held_out)
            each.append(LatentBatches(reader, config.batch_size, size // DOWNSCALE, config.seed + 1))
        if pictures is not None:
            self.said["images"] = pictures.words
            left = len(pictures) - _held_out(len(pictures))
            if left < 1:
                raise ValueError(f"{pictures.words}: one of them is held out, and nothing is left. Give two or more.")
            each.append(PictureBatches(pictures, left, config.batch_size, size // DOWNSCALE, config.seed + 2))
        if not each:
            raise ValueError("There is nothing to learn from. Give a set of triplets, a folder of pictures, or both.")
        self.batches = by_turns(each)

    def held_out(self, full: FullVAE, device: Any) -> list[Tensor]:
        """Latents (1, C, H, W) that are not learned from, on the CPU."""
        found = list[Tensor]()
        if self.storage is not None:
            found += last_triplets(self.storage, self.triplets_held_out).latents.float().split(1)
        if self.pictures is not None:
            count = len(self.pictures)
            last = self.pictures.read(range(count - _held_out(count), count))
            found += full.encode(squares(last, self.size).to(device)).cpu().split(1)
        return found


def _held_out(count: int) -> int:
    return min(HELD_OUT, max(1, count // 8))


class _Sheets:
    """Sheets of the VAE's pictures over the tiny one's, of the same latents: one after each call."""

    def __init__(self, tiny: Tiny, full: FullVAE, held_out: list[Tensor], device: Any, folder: Path) -> None:
        like = [latents for latents in held_out if latents.shape == held_out[0].shape]
        self.tiny, self.latents, self.folder = tiny, torch.cat(like[:_SHOWN]).to(device), folder
        self.above: list[Image.Image] = to_images(full.decode(self.latents))

    def __call__(self, step: int) -> None:
        sheet = contact_sheet([*self.above, *to_images(self.tiny.decoder(self.latents))], len(self.latents))
        with replacing(self.folder / f"{step:06d}.png") as temporary:
            sheet.save(temporary, format="PNG")
