"""Files from strangers: each is refused in words, nothing of it runs, nothing beside it is read, and the next good file
loads in the same process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile_pickles import PICKLES
from hostile_readings import harmless, refused
from hostile_tensors import TENSORS, THINGS
from safetensors.torch import save_file
from watched import watched

from instaflow_core.weights.checkpoint import load
from instaflow_core.weights.files import read_weights


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.safetensors"
    save_file({"weight": torch.arange(4.0)}, path)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "good.ckpt")
    for warm in (path, tmp_path / "good.ckpt"):
        read_weights(warm)  # what the first reading imports is no concern of ours
    return path


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.filterwarnings("ignore")
def test_a_pickle_is_named_and_not_run(name: str, good: Path, tmp_path: Path) -> None:
    make, says = PICKLES[name]
    folder, canary = tmp_path / "hostile", tmp_path / "it-ran"
    folder.mkdir()
    path = folder / "model.ckpt"
    make(path, canary)
    with watched() as seen, pytest.raises(ValueError, match=says) as caught:
        read_weights(path)
    refused(caught.value, "model.ckpt")
    assert not canary.exists()
    harmless(seen, folder, path.stat().st_size)
    assert torch.equal(read_weights(good)[0]["weight"], torch.arange(4.0))


@pytest.mark.parametrize("name", TENSORS)
def test_a_file_that_lies_is_refused(name: str, good: Path, tmp_path: Path) -> None:
    content, says = TENSORS[name]
    folder = tmp_path / "hostile"
    folder.mkdir()
    path = folder / "model.safetensors"
    path.write_bytes(content)
    with watched() as seen, pytest.raises(ValueError, match=says) as caught:
        load(path)
    refused(caught.value, "model.safetensors")
    harmless(seen, folder, len(content))
    assert torch.equal(read_weights(good)[0]["weight"], torch.arange(4.0))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes and devices among its files")
@pytest.mark.parametrize("read", [read_weights, load])
@pytest.mark.parametrize("name", THINGS)
def test_what_is_no_file_is_not_waited_for(name: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    make, says = THINGS[name]
    path = tmp_path / "model.safetensors"
    make(path)
    with pytest.raises(ValueError, match=says) as caught:
        read(path)
    refused(caught.value, "model.safetensors")
