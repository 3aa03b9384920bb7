"""A workflow as the browser saves it (UI format) -> the prompt the server runs (API format).

The server's own /object_info says which inputs a node has, in which order, and which of them are widgets. Covered: V1
and V3 nodes, the extra value after a seed (control after generate) and after an upload, notes, reroutes, muted and
bypassed nodes. Anything else (subgraphs, primitive nodes, dynamic inputs) is refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from comfy_client import Graph

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR"}
NOT_EXECUTED = {"Note", "MarkdownNote", "Reroute"}
SEED_NAMES = ("seed", "noise_seed")
MUTED, BYPASSED = 2, 4

NodeSchema = dict[str, Any]
Link = tuple[str, int]  # origin node id, origin slot


class WorkflowError(ValueError):
    """A workflow that this converter does not cover, or that does not fit the server's nodes."""


def to_prompt(workflow: dict[str, Any], object_info: dict[str, NodeSchema]) -> Graph:
    """Convert a UI-format workflow to an API-format prompt.

    Args:
        workflow: the parsed .json of a saved workflow.
        object_info: the server's answer to /object_info.

    Raises:
        WorkflowError: a node the server lacks, subgraphs, dynamic inputs, or more widget values than widgets.
    """
    if workflow.get("definitions", {}).get("subgraphs"):
        raise WorkflowError("the workflow has subgraphs, expected plain nodes: unpack the subgraphs and save it again.")
    nodes = {str(node["id"]): node for node in workflow["nodes"]}
    origins: dict[int, Link] = {link[0]: (str(link[1]), link[2]) for link in workflow["links"]}
    graph: Graph = {}
    for node_id, node in nodes.items():
        kind = node["type"]
        if kind in NOT_EXECUTED or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        if kind not in object_info:
            raise WorkflowError(f"node {node_id} is a {kind}, which this server does not have: is its pack installed?")
        inputs: dict[str, Any] = _widget_values(node, object_info[kind])
        for socket in node.get("inputs", []):
            if (origin := _follow(socket.get("link"), nodes, origins)) is not None:
                inputs[socket["name"]] = list(origin)
        title = node.get("title") or object_info[kind].get("display_name") or kind
        graph[node_id] = {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}
    return graph


def set_text(graph: Graph, text: str) -> None:
    """Write `text` into the text encoder that feeds the `positive` input of the one sampler in `graph`.

    Raises:
        WorkflowError: there is not exactly one such text encoder.
    """
    found = {
        node["inputs"]["positive"][0]
        for node in graph.values()
        if isinstance(node["inputs"].get("positive"), list) and "text" in graph[node["inputs"]["positive"][0]]["inputs"]
    }
    if len(found) != 1:
        raise WorkflowError(f"{len(found)} text encoders feed a `positive` input, expected one: set the text by hand.")
    graph[found.pop()]["inputs"]["text"] = text


def set_seed(graph: Graph, seed: int) -> None:
    """Write `seed` into every seed widget of `graph`.

    Raises:
        WorkflowError: no node has one.
    """
    places = [
        (node["inputs"], name)
        for node in graph.values()
        for name in SEED_NAMES
        if isinstance(node["inputs"].get(name), int)
    ]
    if not places:
        raise WorkflowError("no node of the workflow has a seed: remove SEED, or add a node that draws noise.")
    for inputs, name in places:
        inputs[name] = seed


def _widget_values(node: dict[str, Any], schema: NodeSchema) -> dict[str, Any]:
    """Input name -> value of every widget of `node`; its default where the file is older than the widget."""
    saved = node.get("widgets_values") or []
    if isinstance(saved, dict):
        return {name: value for name, _, _ in _widgets(schema) if (value := saved.get(name)) is not None}
    rest = list(saved)
    values = {}
    for name, options, extra in _widgets(schema):
        if rest:
            values[name] = rest.pop(0)
            del rest[:extra]
        elif "default" in options:
            values[name] = options["default"]
    if rest:
        raise WorkflowError(
            f"node {node['id']} ({node['type']}) has {len(saved)} widget values, {len(rest)} more than the server's "
            "node has widgets: it was saved with another version. Open it in the browser and save it again."
        )
    return values


def _widgets(schema: NodeSchema) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Name, options and number of extra saved values of each widget, in the order the browser shows them."""
    order = schema["input_order"]
    for group in ("required", "optional"):
        for name in order.get(group, []):
            kind, *rest = schema["input"][group][name]
            options = rest[0] if rest else {}
            if isinstance(kind, str) and kind.startswith("COMFY_") and kind.endswith("_V3"):
                raise WorkflowError(f"input {name} is a dynamic {kind}, which is not covered here.")
            if not (isinstance(kind, list) or kind in WIDGET_TYPES) or options.get("forceInput"):
                continue
            yield name, options, _extra_values(name, kind, options)


def _extra_values(name: str, kind: Any, options: dict[str, Any]) -> int:
    """How many values the browser saves after this widget's own: seed control, upload button."""
    if kind == "INT":
        # The browser adds the control to integers of these names also where the node does not ask for it.
        return int(bool(options.get("control_after_generate", name in SEED_NAMES)))
    return int(any(options.get(upload) for upload in ("image_upload", "video_upload", "audio_upload")))


def _follow(link: int | None, nodes: dict[str, Any], origins: dict[int, Link]) -> Link | None:
    """The node and slot a link really comes from, through reroutes and bypassed nodes; None where it is cut."""
    while link is not None:
        origin, slot = origins[link]
        node = nodes[origin]
        mode = node.get("mode", 0)
        if node["type"] == "Reroute":
            link = node["inputs"][0].get("link")
        elif mode == BYPASSED:
            wanted = node["outputs"][slot]["type"]
            link = next((i.get("link") for i in node.get("inputs", []) if i["type"] == wanted), None)
        elif mode == MUTED:
            return None
        else:
            return origin, slot
    return None
