"""The server process and its client: what they give, and what they say when something is wrong."""

from __future__ import annotations

import io
import socket
from pathlib import Path

import comfy_server
import pytest
from comfy_client import Graph, PromptFailed, PromptRefused
from comfy_server import ComfyServer, ServerError
from devhost import DevHost
from PIL import Image
from running_server import RunningServer


def picture_graph(**changes: object) -> Graph:
    """A graph of the host's own nodes that saves one 64x32 red picture."""
    size = {"width": 64, "height": 32, "batch_size": 1, "color": 0xFF0000}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size | changes},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "client"}},
    }


def test_a_prompt_gives_its_picture(server: RunningServer) -> None:
    result = server.run_prompt(picture_graph())
    (png,) = result.images
    picture = Image.open(io.BytesIO(png))
    assert picture.size == (64, 32)
    assert picture.getpixel((3, 3)) == (255, 0, 0)
    assert 0 < result.seconds < 60


def test_a_bad_graph_is_refused_with_the_nodes_reason(server: RunningServer) -> None:
    with pytest.raises(PromptRefused, match=r"EmptyImage \(node 1\): Value 0 smaller than min") as refused:
        server.run_prompt(picture_graph(width=0))
    assert set(refused.value.node_errors) == {"1"}


def test_a_bad_branch_beside_a_good_one_is_refused_too(server: RunningServer) -> None:
    good = picture_graph()
    bad = {f"{name}0": node for name, node in picture_graph(width=0).items()}
    bad["20"]["inputs"]["images"] = ["10", 0]
    with pytest.raises(PromptRefused):
        server.run_prompt(good | bad)


def test_an_unknown_node_is_refused(server: RunningServer) -> None:
    with pytest.raises(PromptRefused, match="NoSuchNode"):
        server.run_prompt({"1": {"class_type": "NoSuchNode", "inputs": {}}})


def test_a_node_that_raises_is_named(server: RunningServer) -> None:
    graph = picture_graph()
    graph["2"]["inputs"]["filename_prefix"] = "../../outside"
    with pytest.raises(PromptFailed, match=r"SaveImage \(node 2\)") as failed:
        server.run_prompt(graph)
    assert failed.value.node_type == "SaveImage"
    assert failed.value.traceback


def test_a_server_that_does_not_start_says_its_last_words(dev_host: DevHost, tmp_path: Path) -> None:
    process = ComfyServer(dev_host, tmp_path, cpu=True, flags=("--no-such-flag",))
    with pytest.raises(ServerError, match="no-such-flag"):
        process.start()
    assert not process.is_running


def test_a_server_that_takes_too_long_is_stopped(
    dev_host: DevHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comfy_server, "START_LIMIT", 0.3)
    process = ComfyServer(dev_host, tmp_path, cpu=True)
    with pytest.raises(ServerError, match="did not answer"):
        process.start()
    assert not process.is_running
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", process.port)) != 0
