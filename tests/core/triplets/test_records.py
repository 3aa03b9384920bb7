"""Reading a set in blocks: every record once an epoch, in an order that depends on the seed alone."""

from itertools import chain

import pytest
import torch

from instaflow_core.flow.noise import indexed_noise
from instaflow_core.triplets.format import SetInfo, write_triplets
from instaflow_core.triplets.reading import Triplets
from instaflow_core.triplets.storage import Folder

SHAPE = (1, 2, 2)


@pytest.fixture(scope="module", params=["local", "memory"])
def folder(request, tmp_path_factory) -> Folder:
    """23 records whose latent is their noise plus one, in shards of 4."""
    name = tmp_path_factory.mktemp("a set [with] brackets")
    made = Folder(name if request.param == "local" else "memory://records")
    info = SetInfo(23, 5, SHAPE, shard_size=4)
    write_triplets(made, info, [f"prompt {i}" for i in range(23)], lambda _, noise: noise + 1, 4)
    return made


def drawn(triplets: Triplets, positions: range) -> list[int]:
    return list(chain.from_iterable([block.indices[row] for row in rows] for block, rows in triplets.draw(positions)))


@pytest.mark.parametrize("block", [1, 8, 100])
def test_every_epoch_has_every_record_once_in_another_order(folder, block):
    triplets = Triplets(folder, seed=1, block=block)
    epochs = [drawn(triplets, range(i * 23, (i + 1) * 23)) for i in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(23))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("block", [8, 100])
def test_a_position_has_the_same_record_wherever_reading_starts(folder, block):
    whole = drawn(Triplets(folder, 1, block), range(60))
    assert drawn(Triplets(folder, 1, block), range(30, 60)) == whole[30:]
    assert drawn(Triplets(folder, 2, block), range(60)) != whole


def test_a_record_has_its_own_text_and_latent(folder):
    triplets = Triplets(folder)
    for block, rows in triplets.draw(range(10)):
        for row in rows:
            index = block.indices[row]
            assert block.texts[row] == f"prompt {index}"
            torch.testing.assert_close(
                block.latents[row].float(), indexed_noise(5, index, SHAPE) + 1, atol=2e-3, rtol=1e-3
            )


def test_no_more_than_a_block_is_in_memory(folder):
    triplets = Triplets(folder, block=8)
    assert max(len(block.texts) for block, _ in triplets.draw(range(23))) == 8


def test_a_folder_without_a_set_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no set of triplets"):
        Triplets(Folder(tmp_path))
