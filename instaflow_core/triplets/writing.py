"""Step 1 of the paper: a set of triplets from a teacher, or from a 2-rectified flow for distillation (section 4.1)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..flow.sampling import sample_latents
from ..text import encode_prompts
from ..weights.checkpoint import Checkpoint
from ..weights.files import fingerprint
from ..weights.modules import build_text_encoder, build_unet
from .format import Generate, SetInfo, claim, digest, write_triplets
from .storage import Folder


@dataclass(frozen=True)
class TripletRequest:
    """A set to make: how many, from which noise, by how many steps at which guidance, in pixels of which size (None:
    the teacher's own), so many at once, computed in `dtype`."""

    count: int
    seed: int = 0
    steps: int = 25
    guidance: float = 5.0
    width: int | None = None
    height: int | None = None
    batch_size: int = 8
    dtype: torch.dtype = torch.float32


def describe_set(teacher: Checkpoint, request: TripletRequest, prompts: Sequence[str]) -> SetInfo:
    """What the set of this request says of itself, and so what must be the same when it is gone on with.

    Raises:
        ValueError: a number of the request is too small, or the size does not fit the teacher's autoencoder.
    """
    for name in ("count", "steps", "batch_size"):
        if getattr(request, name) < 1:
            raise ValueError(f"{name} is {getattr(request, name)}. Give 1 or more.")
    unit = teacher.latent_downscale
    width, height = request.width or teacher.native_size, request.height or teacher.native_size
    if width % unit or height % unit:
        raise ValueError(f"{width} x {height} does not fit this autoencoder. Give multiples of {unit}.")
    solver = "DPM-Solver++" if teacher.prediction == "epsilon" else "Euler"
    source = {
        "teacher": fingerprint(teacher.unet),
        "stage": teacher.stage,
        "solver": solver,
        "steps": request.steps,
        "guidance": request.guidance,
        "batch_size": request.batch_size,
        "dtype": str(request.dtype).removeprefix("torch."),
        "prompts": digest(prompts),
    }
    return SetInfo(request.count, request.seed, teacher.latent_shape(width, height), source=source)


def make_triplets(
    teacher: Checkpoint,
    request: TripletRequest,
    prompts: Sequence[str],
    folder: Folder,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
    part: int = 0,
    parts: int = 1,
) -> SetInfo:
    """Make a set, or what is missing of it: DPM-Solver++ where the teacher predicts noise, Euler steps where it is a
    flow.

    Args:
        progress: called with the number of records each batch adds; may raise to cancel.
        part, parts: which of several processes this is. The first one must have called `claim` before.

    Raises:
        ValueError: the request does not fit the teacher, the folder holds another set, or there are no prompts.
    """
    info = describe_set(teacher, request, prompts)
    claim(folder, info)
    encoder = build_text_encoder(teacher, request.dtype).to(device)
    unet = build_unet(teacher, request.dtype).to(device)
    generate = latent_maker(encoder, unet, teacher.prediction, request.steps, request.guidance)
    write_triplets(folder, info, prompts, _finite(generate), request.batch_size, progress, part, parts)
    return info


def latent_maker(text_encoder: Any, unet: Any, prediction: str, steps: int, guidance: float) -> Generate:
    """What `write_triplets` makes latents with: `sample_latents`, guided away from the empty prompt, in the UNet's type
    and on its device."""
    empty, weight = encode_prompts(text_encoder, [""]), next(unet.parameters())

    @torch.no_grad()
    def generate(texts: list[str], noise: Tensor) -> Tensor:
        states = encode_prompts(text_encoder, texts)
        noise = noise.to(weight.device, weight.dtype)
        return sample_latents(unet, prediction, states, empty, noise, steps, guidance)

    return generate


def _finite(generate: Generate) -> Generate:
    """The same, but latents that are not finite stop the run: they would poison a training."""

    def checked(texts: list[str], noise: Tensor) -> Tensor:
        latents = generate(texts, noise)
        if not torch.isfinite(latents).all():
            raise ValueError(
                f"The teacher made latents that are not finite, at the prompt {texts[0]!r} or near it. "
                "Use float32 or bfloat16 instead of float16, or a lower guidance."
            )
        return latents

    return checked
