"""The pack's nodes dropped as they are and wired in the plainest way: they run, and show something."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfy_client import Graph
from devhost import PACK_NAME
from PIL import Image
from plain_graphs import BUILT_IN, Plain, plain_graph
from small_models import install

# The built-in models, and random ones with Stable Diffusion 1.5's layout.
MODELS = {
    "built-in": BUILT_IN,
    "sd15": {role: f"{role}.safetensors" for role in BUILT_IN},
}
FEWER = {  # of what is only long with the defaults
    "InstaFlowTriplets": {"count": 8, "steps": 2},
    "InstaFlowReflow": {"iterations": 2, "batch_size": 4},
    "InstaFlowDistill": {"iterations": 2, "batch_size": 4},
}


def shortened(graph: Graph, models: str) -> Graph:
    """With sets and results of their own for each kind of models: they are kept by name."""
    for node in graph.values():
        node["inputs"] |= FEWER.get(node["class_type"], {})
        if "name" in node["inputs"]:
            node["inputs"]["name"] = models if "Triplets" in node["class_type"] else f"{models}-{node['class_type']}"
    return graph


def pack_nodes(info: dict[str, Any]) -> list[str]:
    return [name for name, schema in info.items() if PACK_NAME in schema["python_module"]]


@pytest.mark.parametrize("models", MODELS)
def test_every_node_runs_with_its_defaults(server: Any, models: str) -> None:
    install(Path(server.base) / "models")
    info = server.object_info()
    made = Plain(info, MODELS[models])
    made.add("PreviewAny", source=[made.dropped("InstaFlowTriplets"), 0])
    server.run_prompt(shortened(made.graph, models))
    for kind in pack_nodes(info):
        result = server.run_prompt(shortened(plain_graph(kind, Plain(info, MODELS[models])), models))
        pictures = [np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in result.images]
        assert result.outputs or result.frames, f"{kind} shows nothing"
        assert all(picture.std() > 0.5 for picture in pictures), f"{kind} shows an empty picture"
