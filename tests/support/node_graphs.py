"""A graph that runs one node of the pack, on the built-in models, with whatever it needs before it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from comfy_client import Graph

_SMALL = {
    "count": 2,
    "steps": 1,
    "guidance": 1.0,
    "width": 64,
    "height": 64,
    "batch_size": 2,
    "iterations": 1,
    "samples": 1,
    "frames": 2,
    "teacher_steps": 1,
}
_BEFORE: Graph = {
    "loader": {
        "class_type": "InstaFlowLoadCheckpoint",
        "inputs": {"checkpoint": "built-in: shapes", "weight_dtype": "default"},
    },
    "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["loader", 1], "text": "a red circle"}},
    "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "image": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
    "set": {
        "class_type": "InstaFlowTriplets",
        "inputs": {"model": ["loader", 0], "clip": ["loader", 1], "prompts": "a red circle", "name": "small"}
        | {name: _SMALL[name] for name in ("count", "steps", "guidance", "width", "height", "batch_size")}
        | {"seed": 0},
    },
}
_GIVES: dict[str, list[Any]] = {
    "MODEL": ["loader", 0],
    "CLIP": ["loader", 1],
    "VAE": ["loader", 2],
    "CONDITIONING": ["text", 0],
    "LATENT": ["latent", 0],
    "IMAGE": ["image", 0],
    "INSTAFLOW_TRIPLETS": ["set", 0],
}


def graph_of(node: str, object_info: dict[str, Any], **inputs: Any) -> Graph:
    """The graph: the node is called "node", what it gives is shown by another where it is no output node.

    Args:
        object_info: the server's answer to /object_info; of it come the defaults.
        inputs: in place of small numbers and defaults.
    """
    schema = object_info[node]
    given = {name: _value(name, kind) for name, kind in schema["input"].get("required", {}).items()} | inputs
    graph = {"node": {"class_type": node, "inputs": given}}
    if not schema["output_node"]:
        graph["shown"] = {"class_type": "PreviewAny", "inputs": {"source": ["node", 0]}}
    used = [value[0] for value in given.values() if isinstance(value, list)]
    while used:
        name = used.pop()
        graph[name] = deepcopy(_BEFORE[name])
        used += [value[0] for value in _BEFORE[name]["inputs"].values() if isinstance(value, list)]
    return graph


def text_inputs(object_info: dict[str, Any], pack: str) -> dict[tuple[str, str], list[str] | None]:
    """Every input of the pack's nodes that takes a text: (node, input) -> its choices, None where it is written."""
    found: dict[tuple[str, str], list[str] | None] = {}
    for node, schema in object_info.items():
        if pack not in schema["python_module"]:
            continue
        for inputs in schema["input"].values():
            for name, kind in inputs.items():
                if kind[0] == "STRING":
                    found[node, name] = None
                elif kind[0] == "COMBO" or isinstance(kind[0], list):
                    found[node, name] = _choices(kind)
    return found


def _choices(kind: list[Any]) -> list[str]:
    return list(kind[0]) if isinstance(kind[0], list) else list(kind[1]["options"])


def _value(name: str, kind: list[Any]) -> Any:
    """What an input gets: a link for a socket, else something small."""
    if isinstance(kind[0], str) and kind[0] in _GIVES:
        return _GIVES[kind[0]]
    options = kind[1] if len(kind) > 1 else {}
    if name in _SMALL:
        return max(_SMALL[name], options.get("min", 0))
    if "default" in options:
        return options["default"]
    choices = _choices(kind)
    return choices[0] if choices else ""
