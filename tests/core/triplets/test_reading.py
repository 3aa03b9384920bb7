"""Reading a set in blocks: every triplet once an epoch, in an order that depends on the seed alone."""

import threading
import weakref

import pytest
import torch

from instaflow_core.flow.noise import indexed_noise
from instaflow_core.triplets import reading
from instaflow_core.triplets.format import SetInfo, Triplets
from instaflow_core.triplets.reading import SetReader, SetsInTurn, last_triplets
from instaflow_core.triplets.storage import Storage
from instaflow_core.triplets.writing import SetWriter

SHAPE = (1, 2, 2)


@pytest.fixture(scope="module", params=["local", "memory"])
def storage(request, tmp_path_factory) -> Storage:
    """23 triplets whose latent is their noise plus one, in shards of 4."""
    name = tmp_path_factory.mktemp("a set [with] brackets")
    made = Storage(name if request.param == "local" else "memory://records")
    info = SetInfo(23, 5, SHAPE, shard_size=4)
    SetWriter(made, info).write([f"prompt {i}" for i in range(23)], lambda _, noise: noise + 1, 4)
    return made


@pytest.mark.parametrize("block", [1, 8, 100])
def test_every_epoch_has_every_triplet_once_in_another_order(storage, block):
    reader = SetReader(storage, seed=1, block=block)
    epochs = [reader.read(range(i * 23, (i + 1) * 23)).indices for i in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(23))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("block", [8, 100])
def test_a_position_has_the_same_triplet_wherever_reading_starts(storage, block):
    whole = SetReader(storage, 1, block).read(range(60)).indices
    assert SetReader(storage, 1, block).read(range(30, 60)).indices == whole[30:]
    assert SetReader(storage, 2, block).read(range(60)).indices != whole


def test_a_triplet_has_its_own_text_noise_and_latent(storage):
    triplets = SetReader(storage).read(range(10))
    assert triplets.texts == [f"prompt {index}" for index in triplets.indices]
    noise = torch.stack([indexed_noise(5, index, SHAPE) for index in triplets.indices])
    assert torch.equal(triplets.noise(), noise)
    torch.testing.assert_close(triplets.latents.float(), noise + 1, atol=2e-3, rtol=1e-3)


def test_the_order_is_that_of_version_0_1(storage):
    """A run that was begun goes on over the triplets it would have seen."""
    assert SetReader(storage, 1, block=8).read(range(30)).indices == [
        15, 18, 19, 13, 14, 16, 12, 17, 10, 11, 9, 20, 8, 21, 22, 7, 4, 5, 0, 1, 6, 2, 3, 17, 8, 10, 11, 16, 9, 19,
    ]  # fmt: skip


def test_no_more_than_two_blocks_are_in_memory_and_the_second_is_read_while_the_first_is_used(storage, monkeypatch):
    held, blocks = list[weakref.ref[Triplets]](), list[tuple[tuple[int, ...], str]]()
    whole, read = SetReader(storage, block=8).read(range(60)).indices, reading._read

    def watched(place: Storage, info: SetInfo, shards: tuple[int, ...], count: int) -> Triplets:
        made = read(place, info, shards, count)
        held.append(weakref.ref(made))
        blocks.append((shards, threading.current_thread().name.partition("_")[0]))
        return made

    monkeypatch.setattr(reading, "_read", watched)
    reader, seen = SetReader(storage, block=8), list[int]()
    for start in range(0, 60, 5):
        seen += reader.read(range(start, start + 5)).indices
        shards, coming = reader._ahead
        coming.result()
        assert shards == blocks[-1][0]
        assert len([block for block in held if block()]) <= 2
    assert seen == whole
    names = [name for _, name in blocks]
    assert names == [threading.current_thread().name, *["instaflow-triplets"] * (len(blocks) - 1)]


def test_a_set_of_one_block_is_read_once(storage, monkeypatch):
    reads, read = list[int](), reading.read_shard
    monkeypatch.setattr(reading, "read_shard", lambda *named: reads.append(named[2]) or read(*named))
    reader = SetReader(storage)
    for start in range(0, 60, 5):
        reader.read(range(start, start + 5))
    assert reads == list(range(6))


def test_what_goes_wrong_while_reading_ahead_is_raised_where_that_block_is_used(tmp_path):
    made, info = Storage(tmp_path), SetInfo(8, 0, SHAPE, shard_size=4)
    SetWriter(made, info).write(["a"], lambda _, noise: noise, 4)
    reader = SetReader(made, block=4)
    first = reader._layout(0)[0][0]
    (tmp_path / f"shard-{1 - first:06d}.parquet").write_bytes(b"no longer a shard")
    assert len(reader.read(range(4))) == 4
    with pytest.raises(ValueError, match="not a parquet file"):
        reader.read(range(4, 8))


def test_a_folder_without_a_set_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no set of triplets"):
        SetReader(Storage(tmp_path))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_sets_take_turns_each_in_its_own_order(storage, tmp_path, count):
    for number in range(1, count):
        writer = SetWriter(Storage(tmp_path / str(number)), SetInfo(9, 70 + number, SHAPE))
        writer.write([f"another {i}" for i in range(9)], lambda _, noise: noise + 1, 4)
    places = [storage, *(Storage(tmp_path / str(number)) for number in range(1, count))]
    alone = [SetReader(place, 1).read(range(20)) for place in places]
    reader = SetsInTurn([SetReader(place, 1) for place in places])
    together = reader.read(range(20 * count))
    assert together.texts == [alone[i % count].texts[i // count] for i in range(20 * count)]
    assert torch.equal(together.latents, torch.stack([part.latents for part in alone], 1).flatten(0, 1))
    assert torch.equal(together.noise(), torch.stack([part.noise() for part in alone], 1).flatten(0, 1))
    some = reader.read(range(7, 12))
    assert some.texts == together.texts[7:12]
    assert torch.equal(some.noise(), together.noise()[7:12])
    assert len(reader) == 23 + 9 * (count - 1)


@pytest.mark.parametrize("held_out", [3, 4, 9])
def test_what_is_held_out_is_never_read_and_is_the_rest(storage, held_out):
    reader = SetReader(storage, seed=1, block=8, held_out=held_out)
    left = 23 - held_out
    assert len(reader) == left
    epochs = [reader.read(range(i * left, (i + 1) * left)) for i in range(2)]
    assert [sorted(epoch.indices) for epoch in epochs] == [list(range(left))] * 2
    rest = last_triplets(storage, held_out)
    assert rest.indices == list(range(left, 23))
    torch.testing.assert_close(rest.latents.float(), rest.noise() + 1, atol=2e-3, rtol=1e-3)


def test_not_all_of_a_set_can_be_held_out(storage):
    with pytest.raises(ValueError, match="holds 23 triplets, and 23 are held out"):
        SetReader(storage, held_out=23)
