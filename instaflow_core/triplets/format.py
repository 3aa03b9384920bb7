"""What a set of triplets is: Parquet shards, each with the triplets of one range of indices, and `set.json`, which says
how they were made. The noise is a function of (seed, index) and is not stored.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..flow.noise import indexed_noise
from .storage import Storage

SET_FILE = "set.json"
SHARD_SIZE = 256
"""Triplets in a shard: of 512-pixel latents, 8 MB."""


@dataclass(frozen=True)
class SetInfo:
    """How a set is made: `count` triplets, latents of `latent_shape` (C, H, W), shards of `shard_size` triplets, and
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
        """The indices of the triplets in a shard."""
        first = shard * self.shard_size
        return range(first, min(first + self.shard_size, self.count))

    def noise(self, indices: Sequence[int]) -> Tensor:
        """The noise x_0 of these triplets, float32 (B, C, H, W)."""
        return torch.stack([indexed_noise(self.seed, i, self.latent_shape) for i in indices])


@dataclass(eq=False)
class Triplets:
    """Some triplets of a set, in an order of their own: their indices, texts, and latents x_1 (N, C, H, W) float16."""

    info: SetInfo
    indices: list[int]
    texts: list[str]
    latents: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def noise(self) -> Tensor:
        """Their noise x_0, float32 (N, C, H, W)."""
        return self.info.noise(self.indices)

    def rows(self, rows: Sequence[int]) -> "Triplets":
        """Those at these rows, in this order."""
        return Triplets(
            self.info, [self.indices[i] for i in rows], [self.texts[i] for i in rows], self.latents[list(rows)]
        )


def joined(parts: Sequence[Triplets]) -> Triplets:
    """All of these, one after another; at least one."""
    indices, texts = [i for part in parts for i in part.indices], [text for part in parts for text in part.texts]
    return Triplets(parts[0].info, indices, texts, torch.cat([part.latents for part in parts]))


def read_info(storage: Storage) -> SetInfo:
    """How the set in a place was made.

    Raises:
        ValueError: there is no set, or some of its shards are missing.
    """
    there = storage.names()
    if SET_FILE not in there:
        raise ValueError(f"{storage} holds no {SET_FILE}, so it is no set of triplets. Make one first.")
    info = parse_info(storage.read(SET_FILE))
    missing = [name for name in map(shard_name, range(info.shards)) if name not in there]
    if missing:
        raise ValueError(
            f"{storage} lacks {len(missing)} of {info.shards} shards ({missing[0]} first). "
            "Run the command that makes this set again; it goes on where it stopped."
        )
    return info


def parse_info(content: bytes) -> SetInfo:
    """A set.json."""
    values = json.loads(content)
    return SetInfo(**values | {"latent_shape": tuple(values["latent_shape"])})


def format_info(info: SetInfo) -> bytes:
    """The set.json that says this."""
    return json.dumps(asdict(info), indent=1).encode()


def shard_name(shard: int) -> str:
    """The file name of a shard."""
    return f"shard-{shard:06d}.parquet"


def format_shard(triplets: Triplets) -> bytes:
    """A shard of these triplets: the columns index, seed, text and latent (float16, flat)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = triplets.latents.flatten(1)
    values = pa.array(flat.numpy().reshape(-1), type=pa.float16())
    table = pa.table(
        {
            "index": pa.array(triplets.indices, type=pa.int64()),
            "seed": pa.array([triplets.info.seed] * len(triplets), type=pa.uint64()),
            "text": pa.array(triplets.texts, type=pa.string()),
            "latent": pa.FixedSizeListArray.from_arrays(values, flat.shape[1]),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def read_shard(storage: Storage, info: SetInfo, shard: int) -> Triplets:
    """The triplets of one shard, in rising order."""
    import pyarrow.parquet as pq

    with storage.fs.open(f"{storage.root}/{shard_name(shard)}") as file:
        table = pq.read_table(file)
    latents = table["latent"].combine_chunks().flatten().to_numpy().reshape(-1, *info.latent_shape)
    return Triplets(info, table["index"].to_pylist(), table["text"].to_pylist(), torch.tensor(latents))
