"""Reading a set in a shuffled order that is the same in every run, a block of shards in memory at a time.

The set may be larger than memory or disk, on any filesystem.
"""

from bisect import bisect_right
from itertools import accumulate, groupby

import torch

from ..flow.noise import indexed_generator
from .format import Triplets, joined, read_info, read_shard
from .storage import Storage

BLOCK = 16384
"""Triplets held in memory: 0.5 GB of 512-pixel latents."""


class SetReader:
    """A set as an endless sequence of triplets: every epoch goes once through all of them, in another order.

    Shards are shuffled over the epoch and triplets within a block, by the seed alone. A set of up to `block` triplets
    is shuffled whole.

    Args:
        storage: where the set is.
        seed: of the order.
        block: triplets to hold in memory, rounded up to whole shards.

    Raises:
        ValueError: there is no set, or it is not whole.
    """

    def __init__(self, storage: Storage, seed: int = 0, block: int = BLOCK) -> None:
        self.storage, self.seed = storage, seed
        self.info = read_info(storage)
        self._shards_per_block = max(1, -(-block // self.info.shard_size))
        self._blocks_per_epoch = -(-self.info.shards // self._shards_per_block)
        # Of the epoch read last: the shards of each block, in rising order, and the place of its first triplet.
        self._epoch, self._blocks, self._starts = -1, list[tuple[int, ...]](), list[int]()
        self._block: tuple[tuple[int, ...], Triplets] | None = None

    def __len__(self) -> int:
        return self.info.count

    def read(self, positions: range) -> Triplets:
        """The triplets at these positions of the sequence."""
        places = [self._place(position) for position in positions]
        parts = []
        for (epoch, number), group in groupby(places, key=lambda place: place[:2]):
            self._turn_to(epoch)
            block = self._read_block(self._blocks[number])
            order = torch.randperm(len(block), generator=self._generator(epoch, 1 + number))
            parts.append(block.rows(order[[row for _, _, row in group]].tolist()))
        return joined(parts)

    def _place(self, position: int) -> tuple[int, int, int]:
        """The epoch of a position, its block there, and its place in that block."""
        epoch, place = divmod(position, self.info.count)
        self._turn_to(epoch)
        number = bisect_right(self._starts, place) - 1
        return epoch, number, place - self._starts[number]

    def _turn_to(self, epoch: int) -> None:
        """Lay out an epoch, unless it is the one laid out already."""
        if epoch == self._epoch:
            return
        order = torch.randperm(self.info.shards, generator=self._generator(epoch, 0)).tolist()
        size = self._shards_per_block
        self._blocks = [tuple(sorted(order[first : first + size])) for first in range(0, len(order), size)]
        sizes = (sum(len(self.info.indices(shard)) for shard in shards) for shards in self._blocks)
        self._starts = list(accumulate(sizes, initial=0))[:-1]
        self._epoch = epoch

    def _generator(self, epoch: int, use: int) -> torch.Generator:
        return indexed_generator(self.seed, epoch * (self._blocks_per_epoch + 1) + use)

    def _read_block(self, shards: tuple[int, ...]) -> Triplets:
        if self._block is None or self._block[0] != shards:
            self._block = None  # two blocks at once would be twice the memory
            self._block = shards, joined([read_shard(self.storage, self.info, shard) for shard in shards])
        return self._block[1]
