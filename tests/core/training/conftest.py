"""What the tests of training share: a small set, a text encoder, and a folder to train in."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import begin

from instaflow_core.shapes.making.anatomy import new_text_encoder
from instaflow_core.triplets.format import SetInfo
from instaflow_core.triplets.reading import SetReader
from instaflow_core.triplets.storage import Storage
from instaflow_core.triplets.writing import SetWriter


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SetReader:
    """Six triplets with the prompts a, b and c."""
    storage = Storage(tmp_path_factory.mktemp("set"))

    def draw(texts: list[str], noise: torch.Tensor) -> torch.Tensor:
        return noise.flip(0) + len(texts)

    SetWriter(storage, SetInfo(6, 0, (4, 8, 8), shard_size=4)).write(["a", "b", "c"], draw, batch_size=6)
    return SetReader(storage)


@pytest.fixture(scope="session")
def encoder() -> Any:
    return new_text_encoder(0).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `begin` makes."""
    return begin(tmp_path_factory.mktemp("runs"))
