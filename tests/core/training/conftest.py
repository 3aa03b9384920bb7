"""What the tests of training share: a small set, a text encoder, and a folder to train in."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small_checkpoint
from small_runs import PROMPTS, triplets

from instaflow_core.__main__ import main
from instaflow_core.shapes.making.anatomy import new_text_encoder
from instaflow_core.triplets.format import SetInfo
from instaflow_core.triplets.reading import SetReader
from instaflow_core.triplets.storage import Storage
from instaflow_core.triplets.writing import SetWriter
from instaflow_core.weights.saving import save


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
    """teacher.safetensors and flow.safetensors (random), prompts.txt, and teacher-set, 10 triplets of the teacher."""
    place = tmp_path_factory.mktemp("runs")
    save(small_checkpoint("teacher", "epsilon"), place / "teacher.safetensors")
    save(small_checkpoint("2-rectified-flow", seed=1), place / "flow.safetensors")
    (place / "prompts.txt").write_text("\n".join([*PROMPTS, "", ""]))
    assert main(triplets(place, "teacher", "teacher-set")) == 0
    return place
