"""Reading a set of triplets in a shuffled order that is the same in every run, a block of shards in memory at a time.

The set may be larger than memory or disk: shards come through 🤗 datasets as a stream, from any filesystem.
"""

import glob
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby

import numpy as np
import torch
from torch import Tensor

from ..flow.noise import indexed_generator
from .format import SetInfo, read_info, shard_name
from .storage import Folder

BLOCK = 16384
"""Records held in memory: 0.5 GB of 512-pixel latents, and as much again four times over for their text states."""


@dataclass(eq=False)
class Block:
    """Some records of a set, in an order of its own: indices, texts, and latents x_1 (N, C, H, W) float16."""

    indices: list[int]
    texts: list[str]
    latents: Tensor


class Triplets:
    """A set as an endless sequence of records: every epoch goes once through all of them, in another order.

    Shards are shuffled over the epoch and records within a block, by the seed alone. A set of up to `block` records is
    shuffled whole.

    Args:
        folder: where the set is.
        seed: of the order.
        block: records to hold in memory, rounded up to whole shards.

    Raises:
        ValueError: there is no set in the folder, or it is not whole.
    """

    def __init__(self, folder: Folder, seed: int = 0, block: int = BLOCK) -> None:
        self.folder, self.seed = folder, seed
        self.info: SetInfo = read_info(folder)
        self.shards_per_block = max(1, -(-block // self.info.shard_size))
        self.blocks = -(-self.info.shards // self.shards_per_block)
        self._held: tuple[tuple[int, ...], Block] | None = None

    def __len__(self) -> int:
        return self.info.count

    def draw(self, positions: range) -> Iterator[tuple[Block, Tensor]]:
        """The records at these positions of the sequence, as rows of one block after another."""
        places = (self._place(position) for position in positions)
        for (epoch, number), group in groupby(places, key=lambda place: place[:2]):
            block = self._block(self._shards(epoch, number))
            order = self._order(epoch, number, len(block.texts))
            yield block, order[[row for _, _, row in group]]

    def _place(self, position: int) -> tuple[int, int, int]:
        """The epoch of a position, its block there, and its place in that block."""
        epoch, place = divmod(position, self.info.count)
        starts = self._starts(epoch)
        number = bisect_right(starts, place) - 1
        return epoch, number, place - starts[number]

    def _shards(self, epoch: int, number: int) -> tuple[int, ...]:
        """The shards of a block, in rising order."""
        first = number * self.shards_per_block
        return tuple(sorted(self._epoch(epoch)[first : first + self.shards_per_block]))

    @lru_cache(maxsize=2)  # noqa: B019 - a set lives as long as its run
    def _starts(self, epoch: int) -> list[int]:
        """The place of each block's first record in an epoch."""
        blocks = (self._shards(epoch, number) for number in range(self.blocks))
        sizes = (sum(len(self.info.indices(shard)) for shard in shards) for shards in blocks)
        return list(accumulate(sizes, initial=0))[:-1]

    @lru_cache(maxsize=2)  # noqa: B019
    def _epoch(self, epoch: int) -> list[int]:
        return torch.randperm(self.info.shards, generator=self._generator(epoch, 0)).tolist()

    @lru_cache(maxsize=2)  # noqa: B019
    def _order(self, epoch: int, number: int, size: int) -> Tensor:
        return torch.randperm(size, generator=self._generator(epoch, 1 + number))

    def _generator(self, epoch: int, use: int) -> torch.Generator:
        return indexed_generator(self.seed, epoch * (self.blocks + 1) + use)

    def _block(self, shards: tuple[int, ...]) -> Block:
        if self._held is None or self._held[0] != shards:
            self._held = None  # two blocks at once would be twice the memory
            self._held = shards, self._read(shards)
        return self._held[1]

    def _read(self, shards: tuple[int, ...]) -> Block:
        from datasets import load_dataset

        files = [glob.escape(self.folder.url(shard_name(shard))) for shard in shards]
        rows = load_dataset("parquet", data_files=files, split="train", streaming=True).with_format("arrow")
        indices, texts, latents = list[int](), list[str](), list[np.ndarray]()
        for table in rows.iter(batch_size=self.info.shard_size):
            indices += table["index"].to_pylist()
            texts += table["text"].to_pylist()
            latents.append(table["latent"].combine_chunks().flatten().to_numpy())
        flat = np.concatenate(latents).reshape(len(texts), *self.info.latent_shape)
        return Block(indices, texts, torch.from_numpy(flat))
