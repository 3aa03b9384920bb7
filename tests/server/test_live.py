"""InstaFlow Live Preview on a real server: who gets frames, what they hold, and that the disk stays as it was."""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from listening import Message, listening, run_for
from PIL import Image

Nodes = dict[str, tuple[str, dict[str, Any]]]

GREEN = 0x28AA46


def graph(nodes: Nodes) -> dict[str, Any]:
    """An API prompt of these nodes with a live node, "live", on the node "images"."""
    live = ("InstaFlowLivePreview", {"images": ["images", 0]})
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in {**nodes, "live": live}.items()}


def colour(value: int = GREEN, size: tuple[int, int] = (24, 16), batch: int = 1) -> tuple[str, dict[str, Any]]:
    return "EmptyImage", {"width": size[0], "height": size[1], "batch_size": batch, "color": value}


def frames(messages: Sequence[Message]) -> list[tuple[dict[str, Any], Image.Image]]:
    """What was announced of each frame, and its picture, which is the next message."""
    found = []
    for announced, binary in pairwise(messages):
        if isinstance(announced, tuple) and announced[0] == "instaflow.live":
            assert isinstance(binary, bytes)
            assert binary[:8] == struct.pack(">II", 1, 1), "the host's PREVIEW_IMAGE, a JPEG"
            found.append((announced[1], Image.open(io.BytesIO(binary[8:]))))
    assert len(found) == sum(isinstance(message, bytes) for message in messages), "a picture that was not announced"
    return found


def files(base: Path) -> set[Path]:
    return {path for folder in ("output", "temp", "input") for path in (base / folder).rglob("*")}


def test_frames_reach_the_asker_alone_and_no_disk(server: Any) -> None:
    before = files(server.base)
    with listening(server.url, "asker") as asker, listening(server.url, "other") as other:
        first = run_for(server, graph({"images": colour(GREEN)}), "asker")
        second = run_for(server, graph({"images": colour(0xDC2828)}), "other")
        time.sleep(0.3)  # for what should not come
    for messages, prompt_id, rgb in ((asker, first, (40, 170, 70)), (other, second, (220, 40, 40))):
        ((about, picture),) = frames(messages)
        assert about == {"node": "live", "prompt_id": prompt_id, "index": 0, "count": 1, "width": 24, "height": 16}
        assert picture.format == "JPEG"
        assert picture.size == (24, 16)
        assert picture.getpixel((5, 5)) == pytest.approx(rgb, abs=4)
    assert files(server.base) == before


@pytest.mark.parametrize(
    ("nodes", "sizes"),
    [
        ({"images": colour(batch=3)}, [(24, 16)] * 3),
        (
            {
                "batch": colour(batch=3),
                "images": ("RebatchImages", {"images": ["batch", 0], "batch_size": 2}),
            },
            [(24, 16)] * 3,
        ),
        (
            {
                "picture": colour(),
                "mask": ("SolidMask", {"value": 0.5, "width": 24, "height": 16}),
                "images": ("JoinImageWithAlpha", {"image": ["picture", 0], "alpha": ["mask", 0]}),
            },
            [(24, 16)],
        ),
        ({"images": colour(size=(4096, 64))}, [(2048, 32)]),
    ],
    ids=["a batch", "a list of batches", "with alpha", "larger than a node"],
)
def test_every_picture_is_a_frame(server: Any, nodes: Nodes, sizes: list[tuple[int, int]]) -> None:
    with listening(server.url, "asker") as asker:
        run_for(server, graph(nodes), "asker")
    found = frames(asker)
    assert [(about["index"], about["count"]) for about, _ in found] == [(i, len(sizes)) for i in range(len(sizes))]
    assert [picture.size for _, picture in found] == sizes
    assert all(picture.getpixel((5, 5)) == pytest.approx((40, 170, 70), abs=4) for _, picture in found)


def test_who_asks_again_gets_the_picture_again(server: Any) -> None:
    """Another page, or the same: what leads to the node is in the host's cache, the node itself is not."""
    prompt = graph({"images": colour(0x123456)})
    with listening(server.url, "one") as one, listening(server.url, "two") as two:
        for client in ("one", "two", "two"):
            run_for(server, prompt, client)
    assert (len(frames(one)), len(frames(two))) == (1, 2)


@pytest.mark.parametrize("client", [None, "gone"], ids=["no client", "a client that has left"])
def test_without_a_page_the_prompt_runs_and_nobody_gets_frames(server: Any, client: str | None) -> None:
    with listening(server.url, "bystander") as bystander:
        run_for(server, graph({"images": colour(0x654321)}), client)
    assert frames(bystander) == []
