"""From a saved workflow to a prompt, against the real server's description of its nodes."""

from __future__ import annotations

from typing import Any

import pytest
from running_server import RunningServer
from workflow import BYPASSED, MUTED, WorkflowError, set_seed, set_text, to_prompt

Node = dict[str, Any]


def node(
    node_id: int, kind: str, values: object = (), inputs: dict[str, int | None] | None = None, **more: Any
) -> Node:
    """A node as the browser saves it; `inputs` maps an input's name to the id of its link."""
    sockets = [{"name": name, "type": "*", "link": link} for name, link in (inputs or {}).items()]
    values = list(values) if isinstance(values, tuple) else values
    return {"id": node_id, "type": kind, "widgets_values": values, "inputs": sockets, "mode": 0, **more}


def saved(*nodes: Node, links: list[list[Any]] | None = None) -> dict[str, Any]:
    """A workflow as the browser saves it."""
    return {"nodes": list(nodes), "links": links or [], "version": 0.4}


@pytest.fixture(scope="module")
def schemas(server: RunningServer) -> dict[str, Any]:
    """The server's own description of its nodes."""
    return server.object_info()


def test_widgets_get_their_names_and_the_seeds_control_is_dropped(schemas: dict[str, Any]) -> None:
    sampler = node(3, "KSampler", (7, "randomize", 20, 8.0, "euler", "simple", 1.0))
    assert to_prompt(saved(sampler), schemas)["3"]["inputs"] == {
        "seed": 7,
        "steps": 20,
        "cfg": 8.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
    }


def test_the_packs_own_nodes_are_read_the_same_way(schemas: dict[str, Any]) -> None:
    sampler = node(3, "InstaFlowSampler", (7, "fixed", 2, 1.5, 1.0))
    assert to_prompt(saved(sampler), schemas)["3"]["inputs"] == {
        "seed": 7,
        "steps": 2,
        "guidance": 1.5,
        "denoise": 1.0,
    }


def test_a_file_older_than_a_widget_gets_its_default(schemas: dict[str, Any]) -> None:
    inputs = to_prompt(saved(node(1, "EmptyLatentImage", (64, 64))), schemas)["1"]["inputs"]
    assert inputs == {"width": 64, "height": 64, "batch_size": 1}


def test_widget_values_saved_by_name_are_taken_by_name(schemas: dict[str, Any]) -> None:
    inputs = to_prompt(saved(node(1, "EmptyLatentImage", {"height": 8, "width": 16})), schemas)["1"]["inputs"]
    assert inputs == {"width": 16, "height": 8}


def test_an_upload_button_is_no_input(schemas: dict[str, Any]) -> None:
    assert to_prompt(saved(node(1, "LoadImage", ("a.png", "image"))), schemas)["1"]["inputs"] == {"image": "a.png"}


def test_links_go_through_reroutes_and_bypassed_nodes_and_stop_at_muted_ones(schemas: dict[str, Any]) -> None:
    image = {"outputs": [{"name": "IMAGE", "type": "IMAGE"}]}
    workflow = saved(
        node(1, "EmptyImage", (64, 64, 1, 0), **image),
        node(2, "Reroute", inputs={"": 1}),
        node(3, "ImageInvert", inputs={"image": 2}, **image | {"mode": BYPASSED}),
        node(4, "PreviewImage", inputs={"images": 3}),
        node(5, "EmptyImage", (64, 64, 1, 0), **image | {"mode": MUTED}),
        node(6, "PreviewImage", inputs={"images": 4}),
        node(7, "MarkdownNote", ("read me",)),
        links=[[1, 1, 0, 2, 0, "*"], [2, 2, 0, 3, 0, "*"], [3, 3, 0, 4, 0, "*"], [4, 5, 0, 6, 0, "*"]],
    )
    workflow["nodes"][2]["inputs"][0]["type"] = "IMAGE"
    graph = to_prompt(workflow, schemas)
    assert set(graph) == {"1", "4", "6"}
    assert graph["4"]["inputs"] == {"images": ["1", 0]}
    assert graph["6"]["inputs"] == {}


def test_a_linked_widget_takes_the_link(schemas: dict[str, Any]) -> None:
    workflow = saved(
        node(1, "PrimitiveInt", (32, "fixed")),
        node(2, "EmptyLatentImage", (64, 64, 1), inputs={"width": 1}),
        links=[[1, 1, 0, 2, 0, "INT"]],
    )
    assert to_prompt(workflow, schemas)["2"]["inputs"] == {"width": ["1", 0], "height": 64, "batch_size": 1}


@pytest.mark.parametrize(
    ("workflow", "said"),
    [
        (saved(node(1, "NoSuchNode")), "is a NoSuchNode, which this server does not have"),
        (saved(node(1, "EmptyLatentImage", (64, 64, 1, 9, 9))), "2 more than the server's node has widgets"),
        (saved() | {"definitions": {"subgraphs": [{}]}}, "has subgraphs"),
    ],
)
def test_what_is_not_covered_is_said(workflow: dict[str, Any], said: str, schemas: dict[str, Any]) -> None:
    with pytest.raises(WorkflowError, match=said):
        to_prompt(workflow, schemas)


def test_a_dynamic_input_is_refused() -> None:
    schema = {"X": {"input": {"required": {"a": ["COMFY_AUTOGROW_V3", {}]}}, "input_order": {"required": ["a"]}}}
    with pytest.raises(WorkflowError, match="dynamic COMFY_AUTOGROW_V3"):
        to_prompt(saved(node(1, "X")), schema)


def test_text_and_seed_are_written_where_the_sampler_reads_them() -> None:
    graph = {
        "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "a"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "b"}},
        "3": {"class_type": "KSampler", "inputs": {"seed": 0, "positive": ["2", 0], "negative": ["1", 0]}},
    }
    set_text(graph, "c")
    set_seed(graph, 5)
    assert [graph[i]["inputs"].get("text") for i in "12"] == ["a", "c"]
    assert graph["3"]["inputs"]["seed"] == 5


def test_text_or_seed_without_a_place_is_said() -> None:
    graph = {"1": {"class_type": "EmptyImage", "inputs": {}}}
    with pytest.raises(WorkflowError, match="0 text encoders"):
        set_text(graph, "c")
    with pytest.raises(WorkflowError, match="has a seed"):
        set_seed(graph, 5)
