"""Files from strangers through a real server: the node that reads one says so, and the next good prompt works."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comfy_client import PromptFailed
from hostile_models import MODELS, POISONED, Sound
from hostile_pickles import PICKLES
from hostile_sets import PROMPTS, SETS, new_set
from hostile_tensors import TENSORS
from small_models import install

Graph = dict[str, Any]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="some of these files are pipes and links"),
]


@pytest.fixture(scope="module")
def models(server: Any) -> Path:
    folder: Path = server.base / "models"
    install(folder)
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    return Sound.new(tmp_path_factory.mktemp("sound"))


def picture(checkpoint: str, seed: int = 0) -> Graph:
    return {
        "1": {
            "class_type": "InstaFlowLoadCheckpoint",
            "inputs": {"checkpoint": checkpoint, "weight_dtype": "default"},
        },
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a red circle"}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": {
            "class_type": "InstaFlowSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["2", 0],
                "latent_image": ["3", 0],
                "seed": seed,
                "steps": 1,
                "guidance": 1.0,
                "denoise": 1.0,
            },
        },
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "hostile"}},
    }


@pytest.fixture(autouse=True)
def works_afterwards(server: Any, models: Path) -> Any:
    yield
    seed = int.from_bytes(os.urandom(4), "big")  # a new one, so that nothing comes from the server's cache
    assert len(server.run_prompt(picture("one-step.safetensors", seed)).images) == 1


def fails(server: Any, graph: Graph, node: str, says: str, name: str) -> None:
    with pytest.raises(PromptFailed, match=says) as failed:
        server.run_prompt(graph)
    assert failed.value.node_type == node
    assert name in failed.value.exception_message


_FILES: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    **{name: PICKLES[name] for name in ("os.system", "builtins.eval", "a whole module", "a zip bomb")},
    **{
        name: (lambda path, canary, content=TENSORS[name][0]: path.write_bytes(content), TENSORS[name][1])
        for name in ("a web page", "a header of 2^63 bytes", "a hole", "sides that overflow")
    },
}


@pytest.mark.parametrize("name", _FILES)
def test_a_checkpoint_that_is_none(name: str, server: Any, models: Path, tmp_path: Path) -> None:
    make, says = _FILES[name]
    make(models / "checkpoints" / "hostile.ckpt", tmp_path / "it-ran")
    fails(server, picture("hostile.ckpt"), "InstaFlowLoadCheckpoint", says, "hostile.ckpt")
    assert not (tmp_path / "it-ran").exists()


_FOLDERS = {
    name: (MODELS | POISONED)[name]
    for name in ("a billion layers", "a config that is a pipe", "an index with ..", "a weight that is NaN")
}


@pytest.mark.parametrize("name", _FOLDERS)
def test_a_folder_that_lies(name: str, server: Any, models: Path, sound: Sound, tmp_path: Path) -> None:
    make, says = _FOLDERS[name]
    link = models / "diffusers" / "hostile"
    link.symlink_to(make(sound, tmp_path))
    try:
        assert "InstaFlowLoadCheckpoint" in server.object_info()
        fails(server, picture("hostile"), "InstaFlowLoadCheckpoint", says, "")
    finally:
        link.unlink()


def test_a_pipe_beside_weights_hides_no_node(server: Any, models: Path) -> None:
    """What a folder is must be read of its config.json, on every page load; a pipe would be waited for, for ever."""
    folder = models / "diffusers" / "piped"
    folder.mkdir()
    (folder / "diffusion_pytorch_model.safetensors").touch()
    os.mkfifo(folder / "config.json")
    try:
        assert "InstaFlowLoadUNet" in server.object_info()
    finally:
        (folder / "config.json").unlink()
        (folder / "diffusion_pytorch_model.safetensors").unlink()
        folder.rmdir()


def reflow(model: str, triplets: str) -> Graph:
    """A short training of the MODEL of one node on the triplets of another."""
    return {
        "class_type": "InstaFlowReflow",
        "inputs": {
            "model": [model, 0],
            "triplets": [triplets, 0],
            "iterations": 1,
            "batch_size": 1,
            "learning_rate": 1e-5,
            "ema": 0.9,
            "method": "full",
            "resume": False,
            "seed": 0,
            "name": "hostile",
        },
    }


@pytest.mark.parametrize("name", ["a list", "a count in a text", "ten billion triplets"])
def test_a_set_that_lies(name: str, server: Any, models: Path) -> None:
    change, says = SETS[name]
    folder = server.base / "output" / "instaflow" / "triplets" / name.replace(" ", "-")
    new_set(folder)
    change(folder)
    files = sorted(path.name for path in folder.iterdir())
    graph = picture("teacher.safetensors")
    graph["7"] = {"class_type": "InstaFlowLoadTriplets", "inputs": {"name": folder.name, "clip": ["1", 1]}}
    graph["8"] = reflow("1", "7")
    graph["9"] = {"class_type": "PreviewImage", "inputs": {"images": ["8", 1]}}
    for number in "23456":
        del graph[number]
    fails(server, graph, "InstaFlowLoadTriplets", says, folder.name)
    assert files and sorted(path.name for path in folder.iterdir()) == files


@pytest.mark.parametrize("name", ["JSON nested 100,000 deep", "pictures for texts", "a field of 200,000 characters"])
def test_prompts_that_are_none(name: str, server: Any, models: Path) -> None:
    make, says = PROMPTS[name]
    (server.base / "input").mkdir(exist_ok=True)
    file = make(server.base / "input")
    graph = {"1": picture("teacher.safetensors")["1"]}
    graph["2"] = {
        "class_type": "InstaFlowTriplets",
        "inputs": {
            "model": ["1", 0],
            "clip": ["1", 1],
            "prompts": file.name,
            "count": 1,
            "steps": 1,
            "guidance": 1.0,
            "width": 64,
            "height": 64,
            "batch_size": 1,
            "seed": 0,
            "name": "of-hostile-prompts",
        },
    }
    graph["3"] = reflow("1", "2")
    graph["4"] = {"class_type": "PreviewImage", "inputs": {"images": ["3", 1]}}
    fails(server, graph, "InstaFlowTriplets", says, file.name)
    assert not (server.base / "output" / "instaflow" / "triplets" / "of-hostile-prompts").exists()
