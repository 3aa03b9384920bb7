"""Reading a set in a shuffled order that is the same in every run, two blocks of shards in memory at a time.

The set may be larger than memory or disk, on any filesystem.
"""

from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import accumulate, groupby

import torch

from ..flow.noise import indexed_generator
from .format import SetInfo, Triplets, in_turn, joined, read_info, read_shard
from .storage import Storage

BLOCK = 16384
"""Triplets of a block: 0.5 GB of 512-pixel latents."""

_Shards = tuple[int, ...]


class SetReader:
    """A set as an endless sequence of triplets: every epoch goes once through all of them, in another order.

    Shards are shuffled over the epoch and triplets within a block, by the seed alone. A set of up to `block` triplets
    is shuffled whole. While a block is used, a thread reads the next one.

    Args:
        storage: where the set is.
        seed: of the order.
        block: triplets to shuffle among each other, rounded up to whole shards; memory holds twice as many.
        held_out: how many of the last triplets are left out, for a measurement (`last_triplets`).

    Raises:
        ValueError: there is no set, or it is not whole, or nothing of it is left.
    """

    def __init__(self, storage: Storage, seed: int = 0, block: int = BLOCK, held_out: int = 0) -> None:
        self.storage, self.seed = storage, seed
        self._whole = read_info(storage)
        if held_out >= self._whole.count:
            raise ValueError(f"{storage} holds {self._whole.count} triplets, and {held_out} are held out. Make more.")
        self.info = replace(self._whole, count=self._whole.count - held_out)
        self._shards_per_block = max(1, -(-block // self.info.shard_size))
        self._blocks_per_epoch = -(-self.info.shards // self._shards_per_block)
        # Of the epoch read last: the shards of each block, in rising order, and the place of its first triplet.
        self._epoch, self._blocks, self._starts = -1, list[_Shards](), list[int]()
        self._block: tuple[_Shards, Triplets] | None = None
        self._ahead: tuple[_Shards, Future[Triplets]] | None = None
        self._thread = ThreadPoolExecutor(1, "instaflow-triplets")

    def __len__(self) -> int:
        return self.info.count

    def read(self, positions: range) -> Triplets:
        """The triplets at these positions of the sequence."""
        places = [self._place(position) for position in positions]
        parts = []
        for (epoch, number), group in groupby(places, key=lambda place: place[:2]):
            self._turn_to(epoch)
            block = self._block_of(self._blocks[number])
            self._read_ahead(number + 1)
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
        self._blocks = self._layout(epoch)
        sizes = (sum(len(self.info.indices(shard)) for shard in shards) for shards in self._blocks)
        self._starts = list(accumulate(sizes, initial=0))[:-1]
        self._epoch = epoch

    def _layout(self, epoch: int) -> list[_Shards]:
        """The shards of each block of an epoch."""
        order = torch.randperm(self.info.shards, generator=self._generator(epoch, 0)).tolist()
        size = self._shards_per_block
        return [tuple(sorted(order[first : first + size])) for first in range(0, len(order), size)]

    def _generator(self, epoch: int, use: int) -> torch.Generator:
        return indexed_generator(self.seed, epoch * (self._blocks_per_epoch + 1) + use)

    def _block_of(self, shards: _Shards) -> Triplets:
        """A block: the one that is used, or the one read ahead, or another."""
        if self._block is None or self._block[0] != shards:
            self._block = None  # three blocks at once would be more memory than is said
            if self._ahead and self._ahead[0] == shards:
                read = self._ahead[1].result()
            else:
                read = _read(self.storage, self._whole, shards, self.info.count)
            self._block = shards, read
        return self._block[1]

    def _read_ahead(self, number: int) -> None:
        """Let the thread read the block of this number of the epoch, or the first one of the next epoch."""
        if number == len(self._blocks):
            number, blocks = 0, self._layout(self._epoch + 1)
        else:
            blocks = self._blocks
        shards = blocks[number]
        held = self._block[0] if self._block else None
        if shards != held and (self._ahead is None or self._ahead[0] != shards):
            self._ahead = shards, self._thread.submit(_read, self.storage, self._whole, shards, self.info.count)


class SetsInTurn:
    """Several sets as one endless sequence: a triplet of each in turn, so that every batch holds as many of each,
    however large they are.

    Raises:
        ValueError: their latents have different shapes.
    """

    def __init__(self, readers: Sequence[SetReader]) -> None:
        self.readers = readers
        self.info = in_turn([reader.info for reader in readers])

    def __len__(self) -> int:
        return self.info.count

    def read(self, positions: range) -> Triplets:
        """The triplets at these positions of the sequence."""
        count, parts, places = len(self.readers), list[Triplets](), list[int]()
        for number, reader in enumerate(self.readers):
            mine = positions[(number - positions.start) % count :: count]
            if mine:
                read = reader.read(range(mine[0] // count, mine[-1] // count + 1))
                indices = [count * index + number for index in read.indices]
                parts.append(Triplets(self.info, indices, read.texts, read.latents))
                places += mine
        return joined(parts).rows(sorted(range(len(places)), key=places.__getitem__))


Reader = SetReader | SetsInTurn
"""What a training reads from."""


def open_sets(storages: Sequence[Storage], seed: int) -> Reader:
    """A set, or several in turn, in the orders of a seed. Raises as `SetReader` and `SetsInTurn`."""
    readers = [SetReader(storage, seed) for storage in storages]
    return SetsInTurn(readers) if len(readers) > 1 else readers[0]


def _read(storage: Storage, info: SetInfo, shards: _Shards, count: int) -> Triplets:
    """Of these shards the triplets that are among the set's first `count`."""
    parts = [read_shard(storage, info, shard) for shard in shards]
    return joined([part.rows(range(sum(index < count for index in part.indices))) for part in parts])


def last_triplets(storage: Storage, count: int) -> Triplets:
    """The last ones of a set: what a reader has not that holds so many out."""
    info = read_info(storage)
    first = max(0, info.count - count)
    shards = range(first // info.shard_size, info.shards)
    read = joined([read_shard(storage, info, shard) for shard in shards])
    return read.rows(range(first - shards.start * info.shard_size, len(read)))
