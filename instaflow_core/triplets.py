"""Sets of (text, noise, latent): what reflow and distillation learn from.

A set is a folder of Parquet shards, each with the records of one range of indices, and `set.json`, which says how they
were made. The noise is a function of (seed, index) and is not stored. A shard is written under a temporary name and
renamed, so a run that is killed loses at most one shard's work and starts again where it stopped.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .atomic import replacing
from .noise import indexed_noise

SET_FILE = "set.json"


@dataclass(frozen=True)
class SetInfo:
    """How a set is made: `count` records, latents of `latent_shape` (C, H, W), shards of `shard_size` records, and
    whoever made them (model, steps, guidance) in words."""

    count: int
    seed: int
    latent_shape: tuple[int, ...]
    shard_size: int
    source: str


Generate = Callable[[list[str], Tensor], Tensor]
"""From prompts and noise (B, C, H, W) to latents of the same shape."""


def write_triplets(
    folder: Path,
    info: SetInfo,
    prompts: Sequence[str],
    generate: Generate,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the set, or what is missing of it. Record i has prompt i, counted round, and noise (seed, i).

    Args:
        progress: called after each batch with the number of records written so far; may raise to cancel.

    Raises:
        ValueError: the folder holds a set that was made otherwise, or there are no prompts.
    """
    if not prompts:
        raise ValueError("There are no prompts to make triplets from; give at least one.")
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, info)
    for first in range(0, info.count, info.shard_size):
        path = _shard_path(folder, first // info.shard_size)
        indices = list(range(first, min(first + info.shard_size, info.count)))
        if path.exists():
            continue
        texts = [prompts[i % len(prompts)] for i in indices]
        latents = []
        for start in range(0, len(indices), batch_size):
            part = slice(start, start + batch_size)
            noise = torch.stack([indexed_noise(info.seed, i, info.latent_shape) for i in indices[part]])
            latents.append(generate(texts[part], noise).to("cpu", torch.float16))
            if progress:
                progress(indices[part][-1] + 1)
        _write_shard(path, indices, texts, torch.cat(latents))


@dataclass
class Triplets:
    """A set in memory: texts, latents (N, C, H, W) float16, and the noise of any of them on demand."""

    info: SetInfo
    texts: list[str]
    latents: Tensor

    def __len__(self) -> int:
        return len(self.texts)

    def pairs(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """(x_0, x_1) of the records at these indices, float32 (B, C, H, W)."""
        x_0 = torch.stack([indexed_noise(self.info.seed, i, self.info.latent_shape) for i in index.tolist()])
        return x_0, self.latents[index].float()


def read_triplets(folder: Path) -> Triplets:
    """Read a whole set.

    Raises:
        ValueError: the folder holds no set, or some of its shards are missing.
    """
    import pyarrow.parquet as pq

    info = _read_info(folder)
    if info is None:
        raise ValueError(f"{folder} holds no {SET_FILE}, so it is no set of triplets. Make one first.")
    shards = [_shard_path(folder, i) for i in range(-(-info.count // info.shard_size))]
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {len(shards)} shards ({missing[0]} first). "
            "Run the command that makes this set again; it goes on where it stopped."
        )
    tables = [pq.read_table(shard) for shard in shards]
    texts = [text for table in tables for text in table["text"].to_pylist()]
    flat = np.concatenate([table["latent"].combine_chunks().values.to_numpy() for table in tables])
    latents = torch.from_numpy(flat.reshape(info.count, *info.latent_shape).copy())
    return Triplets(info, texts, latents)


def _claim(folder: Path, info: SetInfo) -> None:
    there = _read_info(folder)
    if there is None:
        with replacing(folder / SET_FILE) as temporary:
            temporary.write_text(json.dumps(asdict(info), indent=1), encoding="utf-8")
    elif there != info:
        raise ValueError(f"{folder} holds {there}, and this run would make {info}. Choose another folder.")


def _read_info(folder: Path) -> SetInfo | None:
    path = folder / SET_FILE
    if not path.exists():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    return SetInfo(**content | {"latent_shape": tuple(content["latent_shape"])})


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06d}.parquet"


def _write_shard(path: Path, indices: list[int], texts: list[str], latents: Tensor) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = latents.flatten(1)
    values = pa.array(flat.numpy().reshape(-1), type=pa.float16())
    table = pa.table(
        {"index": indices, "text": texts, "latent": pa.FixedSizeListArray.from_arrays(values, flat.shape[1])}
    )
    with replacing(path) as temporary:
        pq.write_table(table, temporary)
