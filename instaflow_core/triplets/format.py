"""What a set of triplets is: Parquet shards, each with the triplets of one range of indices, and `set.json`, which says
how they were made. The noise is a function of (seed, index) and is not stored.
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ..flow.noise import indexed_noise
from ..weights.bounded_json import parse
from .storage import Storage

SET_FILE = "set.json"
_SHARD_NAME = re.compile(r"shard-([0-9]{6,12})\.parquet")
_BOUNDS = {"thrift_string_size_limit": 2**22, "thrift_container_size_limit": 2**16}
"""Of what a Parquet file may say of itself."""

# What no set comes near, and what numbers that lie are held against before anything is made of them.
_LARGEST_INFO = 2**20
_LONGEST_TEXT = 2**16
_LARGEST_SIDE = 4096
_MOST_TRIPLETS = 10**10
_MOST_NUMBERS = 2**28
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

    def digest(self) -> str:
        """Sixteen characters that a set made in another way does not have."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def noise(self, indices: Sequence[int]) -> Tensor:
        """The noise x_0 of these triplets, float32 (B, C, H, W)."""
        return torch.stack([indexed_noise(self.seed, i, self.latent_shape) for i in indices])


@dataclass(frozen=True)
class InTurn(SetInfo):
    """Several sets as one, whose index i is number i // n of set i % n of the n in `sets`."""

    sets: tuple[SetInfo, ...] = ()

    def noise(self, indices: Sequence[int]) -> Tensor:
        """As of one set; each set has its own seed."""
        count = len(self.sets)
        return torch.cat([self.sets[i % count].noise([i // count]) for i in indices])


def in_turn(sets: Sequence[SetInfo]) -> InTurn:
    """Sets of latents of one shape as one.

    Raises:
        ValueError: their latents have different shapes.
    """
    shapes = {info.latent_shape for info in sets}
    if len(shapes) > 1:
        raise ValueError(
            f"The sets of triplets hold latents of different shapes: {', '.join(map(str, sorted(shapes)))}. "
            "Train on sets of pictures of one size."
        )
    return InTurn(sum(info.count for info in sets), 0, shapes.pop(), sets=tuple(sets))


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
    info = stored_info(storage)
    # What a set.json says it has may be more than anybody could count.
    first = next((name for name in map(shard_name, range(info.shards)) if name not in there), None)
    if first:
        numbers = {int(found[1]) for found in map(_SHARD_NAME.fullmatch, there) if found}
        present = sum(number < info.shards for number in numbers)
        raise ValueError(
            f"{storage} lacks {info.shards - present} of {info.shards} shards ({first} first). "
            "Run the command that makes this set again; it goes on where it stopped."
        )
    return info


def stored_info(storage: Storage) -> SetInfo:
    """The set.json in a place, of a whole set or not; ValueError where it is none."""
    try:
        return parse_info(storage.read(SET_FILE, _LARGEST_INFO))
    except ValueError as error:
        raise ValueError(
            f"{storage}/{SET_FILE} {error}. It was not written by this pack, or was changed. Expected what a set says "
            "of itself: count, seed, latent_shape, shard_size and source. Make the set again in another folder."
        ) from error


def parse_info(content: bytes) -> SetInfo:
    """A set.json. Raises ValueError, which says what is wrong and leaves it to the caller to say where."""
    values = parse(content, dict)
    names = {field.name for field in fields(SetInfo)}
    if values.keys() != names:
        raise ValueError(f"has the entries {', '.join(map(repr, sorted(values)))[:200]}")
    for name, most in (("count", _MOST_TRIPLETS), ("seed", 2**64 - 1), ("shard_size", _MOST_TRIPLETS)):
        if not _is_whole(values[name], 0 if name == "seed" else 1, most):
            raise ValueError(f"says {name} = {repr(values[name])[:60]}")
    shape = values["latent_shape"]
    if not (isinstance(shape, list) and len(shape) == 3 and all(_is_whole(side, 1, _LARGEST_SIDE) for side in shape)):
        raise ValueError(f"says latent_shape = {repr(shape)[:60]}")
    if min(values["shard_size"], values["count"]) * math.prod(shape) > _MOST_NUMBERS:
        raise ValueError(f"says shard_size = {values['shard_size']} of latents {shape}, too many for one file")
    if not isinstance(values["source"], dict):
        raise ValueError(f"says source = {repr(values['source'])[:60]}")
    return SetInfo(**values | {"latent_shape": tuple(shape)})


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


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

    flat, types = triplets.latents.flatten(1), _columns(triplets.info)
    values = pa.array(flat.numpy().reshape(-1), type=pa.float16())
    table = pa.table(
        {
            "index": pa.array(triplets.indices, type=types["index"]),
            "seed": pa.array([triplets.info.seed] * len(triplets), type=types["seed"]),
            "text": pa.array(triplets.texts, type=types["text"]),
            "latent": pa.FixedSizeListArray.from_arrays(values, flat.shape[1]),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _columns(info: SetInfo) -> dict[str, Any]:
    """The columns of a shard and their types."""
    import pyarrow as pa

    latent = pa.list_(pa.float16(), math.prod(info.latent_shape))
    return {"index": pa.int64(), "seed": pa.uint64(), "text": pa.string(), "latent": latent}


def read_shard(storage: Storage, info: SetInfo, shard: int) -> Triplets:
    """The triplets of one shard, in rising order.

    Raises ValueError, which names the file, where it is not the shard of such a set.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    indices = info.indices(shard)
    try:
        storage.check_file(shard_name(shard))
        with storage.fs.open(f"{storage.root}/{shard_name(shard)}") as file, pq.ParquetFile(file, **_BOUNDS) as parquet:
            _check_shard(parquet, info, indices)
            table = parquet.read(use_threads=False)
        empty = [name for name in table.column_names if table[name].null_count]
        if empty:
            raise ValueError(f"has rows without {' and '.join(empty)}")
        numbers = table["latent"].combine_chunks().flatten()
        if numbers.null_count:
            raise ValueError("has latents without some of their numbers")
        latents = numbers.to_numpy().reshape(-1, *info.latent_shape)
        triplets = Triplets(info, table["index"].to_pylist(), table["text"].to_pylist(), torch.tensor(latents))
        if triplets.indices != list(indices):
            raise ValueError(f"has other triplets than {indices.start} to {indices.stop - 1}")
        if set(table["seed"].to_pylist()) != {info.seed}:
            raise ValueError(f"is of another seed than {info.seed}")
        if not torch.isfinite(triplets.latents).all():
            raise ValueError("has latents that are NaN or infinite")
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # no damage, but a disk or a network that fails
            raise
        raise ValueError(
            f"{storage}/{shard_name(shard)} {str(error)[:300]}. Expected the {len(indices)} triplets from "
            f"{indices.start} on of the set that {SET_FILE} beside it describes. Delete that file and run the command "
            "that made the set again; it makes what is missing."
        ) from error
    return triplets


def _check_shard(parquet: Any, info: SetInfo, indices: range) -> None:
    """Raise ValueError where a Parquet file's footer is not that of this shard. Nothing else of it was read yet."""
    there = {field.name: field.type for field in parquet.schema_arrow}
    expected = _columns(info)
    if there != expected:
        listed, wanted = (
            ", ".join(f"{name} {kind}" for name, kind in columns.items()) for columns in (there, expected)
        )
        raise ValueError(f"has the columns {listed[:200] or 'none'}, and not {wanted}")
    footer = parquet.metadata
    if footer.num_rows != len(indices):
        raise ValueError(f"has {footer.num_rows:,} rows")
    # Of a group and no further: asked for a column's part of a footer that lies, Arrow ends the process.
    size = sum(footer.row_group(number).total_byte_size for number in range(footer.num_row_groups))
    most = len(indices) * (4 * math.prod(info.latent_shape) + _LONGEST_TEXT)
    if not 0 <= size <= most:
        raise ValueError(f"would unpack to {size:,} bytes, more than {most:,}")
