"""Step 1 of the paper: a set of triplets from a teacher, or from a 2-rectified flow for distillation (section 4.1).

A shard appears when it is whole, so a run that is killed loses at most one shard's work and goes on from there, and
several processes each make their own shards.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..flow.diffusion import check_zero_snr
from ..flow.sampling import check_steps, sample_latents
from ..generate import settled_size
from ..memory import is_out_of_memory
from ..rules import Rule
from ..text import encode_prompts
from ..weights.checkpoint import Checkpoint
from ..weights.files import fingerprint
from ..weights.modules import build_text_encoder, build_unet, needed_part
from .format import SET_FILE, SetInfo, Triplets, format_info, format_shard, shard_name, stored_info
from .prompts import with_empty
from .storage import Storage

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SetConfig:
    """A set to make: how many triplets, from which noise, by how many steps at which guidance, in pixels of which size
    (None: the teacher's own), so many at once, by a network that computes in `dtype`.

    empty_share: of the triplets, 0 to 1, which have the empty prompt. A flow learns from these what it draws without a
    caption, which is what guidance leads away from.
    """

    count: int
    seed: int = 0
    steps: int = 25
    guidance: float = 5.0
    width: int | None = None
    height: int | None = None
    batch_size: int = 8
    dtype: torch.dtype = torch.float32
    empty_share: float = 0.0


Generate = Callable[[list[str], Tensor], Tensor]
"""From prompts and noise (B, C, H, W) to latents of the same shape."""


class SetWriter:
    """A set in the making. Its place is taken at once: by writing there how the set is made.

    Several may make the same set; of two that would make different ones in one place at once, one gives up before its
    first shard.

    Raises:
        ValueError: the place holds a set that was made otherwise.
    """

    def __init__(self, storage: Storage, info: SetInfo) -> None:
        self.storage, self.info = storage, info
        if SET_FILE not in storage.names():
            storage.write(SET_FILE, format_info(info))
        self._check_place()

    def _check_place(self) -> None:
        """Raise ValueError where the place holds another set.

        Not every filesystem can refuse a file to the second who writes it: two that start at once may both have found
        the place empty, and the later set.json holds. So it is looked at again before each shard."""
        there = stored_info(self.storage)
        if _identity(there) != _identity(self.info):
            raise ValueError(
                f"{self.storage} holds {there}, and this run would make {self.info}. Choose another folder."
            )

    def count_of(self, part: int, parts: int) -> int:
        """How many triplets are in the shards of one of several processes."""
        return sum(len(self.info.indices(shard)) for shard in range(part, self.info.shards, parts))

    def write(
        self,
        prompts: Sequence[str],
        generate: Generate,
        batch_size: int,
        progress: Callable[[int], None] | None = None,
        part: int = 0,
        parts: int = 1,
    ) -> None:
        """Write the shards that are missing. Triplet i has prompt i, counted round, and noise (seed, i).

        Args:
            batch_size: how many are generated at once; half as many from where the memory does not suffice.
            progress: called with the number of triplets that each batch, or each shard found there, adds; may raise to
                cancel.
            part, parts: which of several processes this is; each makes every parts-th shard. The set does not depend
                on it.

        Raises:
            ValueError: there are no prompts, or the place holds another set by now.
        """
        if not prompts:
            raise ValueError("There are no prompts to make triplets from; give at least one.")
        there = self.storage.names()
        for shard in range(part, self.info.shards, parts):
            indices = self.info.indices(shard)
            if shard_name(shard) in there:
                if progress:
                    progress(len(indices))
                continue
            texts = [prompts[i % len(prompts)] for i in indices]
            latents = list[Tensor]()
            while (done := sum(map(len, latents))) < len(indices):
                rows = slice(done, done + batch_size)
                made = _made(generate, texts[rows], self.info.noise(indices[rows]))
                if made is None:
                    batch_size = len(texts[rows]) // 2
                    _log.warning("The memory does not suffice for so many pictures at once: now %d.", batch_size)
                    continue
                latents.append(made)
                if progress:
                    progress(len(made))
            triplets = Triplets(self.info, list(indices), texts, torch.cat(latents))
            self._check_place()
            self.storage.write(shard_name(shard), format_shard(triplets))


def _made(generate: Generate, texts: list[str], noise: Tensor) -> Tensor | None:
    """The latents as a set keeps them; None where the memory does not suffice for more than one of them at once.

    The error, which holds what the memory is full of, is gone by then."""
    try:
        return generate(texts, noise).to("cpu", torch.float16)
    except (RuntimeError, MemoryError) as error:
        if len(texts) == 1 or not is_out_of_memory(error):
            raise
    return None


def _identity(info: SetInfo) -> SetInfo:
    """What must be the same when a set is gone on with: all but how many pictures were made at once, which a machine of
    less memory may have to lower."""
    return replace(info, source={name: value for name, value in info.source.items() if name != "batch_size"})


def describe_set(teacher: Checkpoint, config: SetConfig, prompts: Sequence[str]) -> SetInfo:
    """What the set of this teacher and these prompts says of itself, and so what must be the same when it is gone on
    with.

    Raises:
        ValueError: a number of the configuration is too small, the size does not fit the teacher's autoencoder, or its
            prediction cannot be sampled on its noise schedule, or in so many steps.
    """
    check_zero_snr(teacher.prediction, teacher.zero_snr)
    needed_part(teacher, "text_encoder", "text encoder")  # or its place would be taken by a set that cannot be made
    for name in ("count", "steps", "batch_size"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}. Give 1 or more.")
    if not 0 <= config.empty_share < 1:
        raise ValueError(f"empty_share is {config.empty_share}. Give a share from 0 to 1, such as 0.1.")
    width, height = settled_size(teacher, config.width, config.height)
    check_steps(teacher.rule, config.steps)
    solver = "Euler" if teacher.is_flow else teacher.rule.name if teacher.rule else "DPM-Solver++"
    if teacher.zero_snr:
        solver += " from zero SNR"
    source = {
        "teacher": fingerprint(teacher.unet),
        "stage": teacher.stage,
        "solver": solver,
        "steps": config.steps,
        "guidance": config.guidance,
        "batch_size": config.batch_size,
        "dtype": str(config.dtype).removeprefix("torch."),
        "prompts": digest(prompts),
    }
    if config.empty_share:
        source["empty_share"] = config.empty_share
    return SetInfo(config.count, config.seed, teacher.latent_shape(width, height), source=source)


def native_guidance(teacher: Checkpoint) -> float:
    """The guidance a teacher is followed at: what its file says, else the paper's, 5.0 for a diffusion model (section
    4.1) and 1.5 for a 2-rectified flow. A diffusion model said to want none says nothing: every one is guided, but for
    those of few steps."""
    return teacher.guidance if teacher.is_flow or teacher.rule or teacher.guidance > 1 else 5.0


def make_set(
    writer: SetWriter,
    teacher: Checkpoint,
    config: SetConfig,
    prompts: Sequence[str],
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
    part: int = 0,
    parts: int = 1,
) -> None:
    """Make a set that `describe_set` has described, or what is missing of it: by Euler steps where the teacher is a
    flow, by its rule where it is a few-step model, else by DPM-Solver++.

    Args:
        progress: called with the number of triplets each batch adds; may raise to cancel.
        part, parts: which of several processes this is.

    Raises:
        ValueError: there are no prompts, or the teacher makes latents that are not finite.
    """
    encoder = build_text_encoder(teacher, config.dtype).to(device)
    unet = build_unet(teacher, config.dtype).to(device)
    generate = latent_maker(
        encoder, unet, teacher.prediction, config.steps, config.guidance, teacher.zero_snr, teacher.rule
    )
    if config.empty_share:
        prompts = with_empty(prompts, config.count, config.empty_share)
    writer.write(prompts, _finite(generate), config.batch_size, progress, part, parts)


def latent_maker(
    text_encoder: Any,
    unet: Any,
    prediction: str,
    steps: int,
    guidance: float,
    zero_snr: bool = False,
    rule: Rule | None = None,
) -> Generate:
    """What `SetWriter.write` makes latents with: `sample_latents`, guided away from the empty prompt, on the UNet's
    device. The UNet computes in its own type, the solver in float32: in half precision each step would round the
    latents to eight bits, and they would start from another noise than the set says."""
    empty, weight = encode_prompts(text_encoder, [""]), next(unet.parameters())

    def predict(x: Tensor, timesteps: Tensor, **more: Any) -> tuple[Tensor]:
        return (unet(x.to(weight.dtype), timesteps, **more)[0].float(),)

    @torch.no_grad()
    def generate(texts: list[str], noise: Tensor) -> Tensor:
        states = encode_prompts(text_encoder, texts)
        x = noise.to(weight.device)
        return sample_latents(predict, prediction, states, empty, x, steps, guidance, None, zero_snr, rule)

    return generate


def digest(prompts: Sequence[str]) -> str:
    """A short name for these prompts, by which a set knows that it was made from others."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]


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
