"""Sets of (text, noise, latent): what reflow and distillation learn from.

A set is a folder of Parquet shards, each with the records of one range of indices, and `set.json`, which says how they
were made. The noise is a function of (seed, index) and is not stored. A shard appears when it is whole, so a run that
is killed loses at most one shard's work and goes on from there, and several processes each make their own shards.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..flow.noise import indexed_noise
from .storage import Folder

SET_FILE = "set.json"
SHARD_SIZE = 256
"""Records in a shard: of 512-pixel latents, 8 MB."""


@dataclass(frozen=True)
class SetInfo:
    """How a set is made: `count` records, latents of `latent_shape` (C, H, W), shards of `shard_size` records, and
    whatever else they depend on, such as the teacher, its steps and its guidance."""

    count: int
    seed: int
    latent_shape: tuple[int, ...]
    shard_size: int = SHARD_SIZE
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def shards(self) -> int:
        """How many shards the whole set has."""
        return -(-self.count // self.shard_size)

    def indices(self, shard: int) -> range:
        """The indices of the records in a shard."""
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, self.count))

    def noise(self, indices: Sequence[int]) -> Tensor:
        """The noise x_0 of these records, float32 (B, C, H, W)."""
        return torch.stack([indexed_noise(self.seed, i, self.latent_shape) for i in indices])


Generate = Callable[[list[str], Tensor], Tensor]
"""From prompts and noise (B, C, H, W) to latents of the same shape."""


def claim(folder: Folder, info: SetInfo) -> None:
    """Write how the set is made, or make sure that it is what is there.

    Raises:
        ValueError: the folder holds a set that was made otherwise.
    """
    if SET_FILE not in folder.names():
        folder.write(SET_FILE, json.dumps(asdict(info), indent=1).encode())
        return
    there = _parse(folder.read(SET_FILE))
    if there != info:
        raise ValueError(f"{folder} holds {there}, and this run would make {info}. Choose another folder.")


def write_triplets(
    folder: Folder,
    info: SetInfo,
    prompts: Sequence[str],
    generate: Generate,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
    part: int = 0,
    parts: int = 1,
) -> None:
    """Write the set, or what is missing of it. Record i has prompt i, counted round, and noise (seed, i).

    Args:
        progress: called with the number of records that each batch, or each shard found there, adds; may raise to
            cancel.
        part, parts: which of several processes this is; each makes every parts-th shard. The set does not depend on it.

    Raises:
        ValueError: the folder holds a set that was made otherwise, or there are no prompts.
    """
    if not prompts:
        raise ValueError("There are no prompts to make triplets from; give at least one.")
    claim(folder, info)
    there = folder.names()
    for shard in range(part, info.shards, parts):
        indices = info.indices(shard)
        if shard_name(shard) in there:
            if progress:
                progress(len(indices))
            continue
        texts = [prompts[i % len(prompts)] for i in indices]
        latents = []
        for start in range(0, len(indices), batch_size):
            rows = slice(start, start + batch_size)
            made = generate(texts[rows], info.noise(indices[rows]))
            latents.append(made.to("cpu", torch.float16))
            if progress:
                progress(len(made))
        folder.write(shard_name(shard), _parquet(info, indices, texts, torch.cat(latents)))


def read_info(folder: Folder) -> SetInfo:
    """How the set in a folder was made.

    Raises:
        ValueError: the folder holds no set, or some of its shards are missing.
    """
    there = folder.names()
    if SET_FILE not in there:
        raise ValueError(f"{folder} holds no {SET_FILE}, so it is no set of triplets. Make one first.")
    info = _parse(folder.read(SET_FILE))
    missing = [name for name in map(shard_name, range(info.shards)) if name not in there]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {info.shards} shards ({missing[0]} first). "
            "Run the command that makes this set again; it goes on where it stopped."
        )
    return info


def shard_name(shard: int) -> str:
    """The file name of a shard."""
    return f"shard-{shard:06d}.parquet"


def digest(prompts: Sequence[str]) -> str:
    """A short name for these prompts, by which a set knows that it was made from others."""
    return hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:16]


def _parse(content: bytes) -> SetInfo:
    values = json.loads(content)
    return SetInfo(**values | {"latent_shape": tuple(values["latent_shape"])})


def _parquet(info: SetInfo, indices: Sequence[int], texts: list[str], latents: Tensor) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = latents.flatten(1)
    values = pa.array(flat.numpy().reshape(-1), type=pa.float16())
    table = pa.table(
        {
            "index": pa.array(indices, type=pa.int64()),
            "seed": pa.array([info.seed] * len(indices), type=pa.uint64()),
            "text": pa.array(texts, type=pa.string()),
            "latent": pa.FixedSizeListArray.from_arrays(values, flat.shape[1]),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()
