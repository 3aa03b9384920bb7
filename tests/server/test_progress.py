"""What a page that asked hears of a long node: how much is done and how long the rest takes."""

from __future__ import annotations

import struct
from typing import Any

from comfy_client import Graph
from listening import listening, run_for

TEXT = 3  # the host's binary message for a text under a node: the length of the node's id, the id, the text
SAMPLES, STEPS = 24, 25


def measuring() -> Graph:
    """A graph whose node "measured" takes some seconds."""
    load = {"checkpoint": "built-in: shapes-2rf", "weight_dtype": "default"}
    inputs: dict[str, tuple[str, dict[str, Any]]] = {
        "loaded": ("InstaFlowLoadCheckpoint", load),
        "prompt": ("CLIPTextEncode", {"text": "a red star on a blue background", "clip": ["loaded", 1]}),
        "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "measured": (
            "InstaFlowStraightness",
            {
                "model": ["loaded", 0],
                "positive": ["prompt", 0],
                "latent_image": ["latent", 0],
                "seed": 1,
                "samples": SAMPLES,
                "steps": STEPS,
            },
        ),
        "shown": ("PreviewImage", {"images": ["measured", 1]}),
    }
    return {name: {"class_type": kind, "inputs": given} for name, (kind, given) in inputs.items()}


def texts(messages: list[Any]) -> list[tuple[str, str]]:
    """(node, text) of every text under a node."""
    found = []
    for message in messages:
        if isinstance(message, bytes) and message[:4] == struct.pack(">I", TEXT):
            (length,) = struct.unpack(">I", message[4:8])
            found.append((message[8 : 8 + length].decode(), message[8 + length :].decode()))
    return found


def test_the_asker_alone_reads_how_long_it_takes(server: Any) -> None:
    with listening(server.url, "asker") as asker, listening(server.url, "other") as other:
        run_for(server, measuring(), "asker", seconds=300)
    said = texts(asker)
    assert {node for node, _ in said} == {"measured"}
    total = SAMPLES * STEPS
    *going, over = [text for _, text in said]
    assert going, "nothing was said on the way"
    assert all(text.endswith(" left") and f" of {total}, " in text for text in going)
    counts = [int(text.split()[0]) for text in going]
    assert counts == sorted(set(counts))
    assert over.startswith(f"{total} of {total}, ")
    assert "left" not in over
    assert texts(other) == []
