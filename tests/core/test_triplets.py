from dataclasses import replace

import pytest
import torch

from instaflow_core.noise import indexed_noise
from instaflow_core.triplets import SetInfo, read_triplets, write_triplets

INFO = SetInfo(count=23, seed=4, latent_shape=(4, 2, 3), shard_size=5, source="test")
PROMPTS = ["one", "two, with a comma", "drei Ü"]


def double(prompts: list[str], noise: torch.Tensor) -> torch.Tensor:
    return 2 * noise + torch.tensor([len(p) for p in prompts]).reshape(-1, 1, 1, 1)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_set_comes_back_whole(tmp_path):
    seen = []
    write_triplets(tmp_path, INFO, PROMPTS, double, batch_size=2, progress=seen.append)
    read = read_triplets(tmp_path)
    assert read.info == INFO
    assert read.texts == [PROMPTS[i % 3] for i in range(23)]
    x_0, x_1 = read.pairs(torch.arange(23))
    assert torch.equal(x_0, torch.stack([indexed_noise(4, i, (4, 2, 3)) for i in range(23)]))
    torch.testing.assert_close(x_1, double(read.texts, x_0), atol=2e-2, rtol=1e-3)
    assert seen[-1] == 23


def test_an_interrupted_set_goes_on_and_ends_the_same(tmp_path):
    write_triplets(tmp_path / "whole", INFO, PROMPTS, double, batch_size=2)

    calls = 0

    def interrupted(prompts: list[str], noise: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return double(prompts, noise)

    for _ in range(6):
        calls = 0
        try:
            write_triplets(tmp_path / "parts", INFO, PROMPTS, interrupted, batch_size=2)
        except KeyboardInterrupt:
            with pytest.raises(ValueError, match="Run the command that makes this set again"):
                read_triplets(tmp_path / "parts")
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


def test_the_batch_size_does_not_change_the_set(tmp_path):
    for batch_size in (1, 4):
        write_triplets(tmp_path / str(batch_size), INFO, PROMPTS, double, batch_size)
    assert files(tmp_path / "1") == files(tmp_path / "4")


def test_another_set_is_not_overwritten(tmp_path):
    write_triplets(tmp_path, INFO, PROMPTS, double, 8)
    before = files(tmp_path)
    with pytest.raises(ValueError, match="Choose another folder"):
        write_triplets(tmp_path, replace(INFO, seed=5), PROMPTS, double, 8)
    assert files(tmp_path) == before


def test_no_prompts_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_triplets(tmp_path, INFO, [], double, 8)


def test_an_empty_folder_is_no_set(tmp_path):
    with pytest.raises(ValueError, match="no set of triplets"):
        read_triplets(tmp_path)
