"""The subgraph blueprints: listed by the server, well-formed, and with values its nodes take."""

from __future__ import annotations

import json
from typing import Any

import pytest
from devhost import PACK_NAME, ROOT

FOLDER = ROOT / "subgraphs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
INPUTS, OUTPUTS = -10, -20  # ids of a subgraph's own two ends


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def test_both_are_listed(server: Any) -> None:
    listed = server.get_json("/global_subgraphs").values()
    ours = [entry["name"] for entry in listed if PACK_NAME in entry["info"]["node_pack"]]
    assert sorted(ours) == NAMES == ["InstaFlow text to image", "Train an InstaFlow"]


@pytest.mark.parametrize("name", NAMES)
def test_the_root_is_one_subgraph_node(name: str) -> None:
    blueprint = read(name)
    (node,) = blueprint["nodes"]
    (subgraph,) = blueprint["definitions"]["subgraphs"]
    assert node["type"] == subgraph["id"]
    assert node["title"] == subgraph["name"] == name
    assert [i["name"] for i in node["inputs"]] == [i["name"] for i in subgraph["inputs"]]
    assert [o["name"] for o in node["outputs"]] == [o["name"] for o in subgraph["outputs"]]
    assert "instaflow" in blueprint["extra"]["BlueprintSearchAliases"]
    assert len(blueprint["extra"]["BlueprintDescription"]) > 40


@pytest.mark.parametrize("name", NAMES)
def test_links_join_the_sockets_they_name(name: str) -> None:
    (subgraph,) = read(name)["definitions"]["subgraphs"]
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    assert len({link["id"] for link in subgraph["links"]}) == len(subgraph["links"])
    for link in subgraph["links"]:
        if link["origin_id"] == INPUTS:
            start = subgraph["inputs"][link["origin_slot"]]
            assert link["id"] in start["linkIds"]
        else:
            start = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
            assert link["id"] in start["links"]
        if link["target_id"] == OUTPUTS:
            end = subgraph["outputs"][link["target_slot"]]
            assert link["id"] in end["linkIds"]
        else:
            end = nodes[link["target_id"]]["inputs"][link["target_slot"]]
            assert link["id"] == end["link"]
        assert start["type"] == end["type"] == link["type"]


@pytest.mark.parametrize("name", NAMES)
def test_values_are_the_servers(server: Any, name: str) -> None:
    """The nodes are there, take these values, and have the widgets that are shown outside."""
    info = server.object_info()
    (subgraph,) = read(name)["definitions"]["subgraphs"]
    for node in subgraph["nodes"]:
        schema = info[node["type"]]["input"]
        kinds = {**schema.get("required", {}), **schema.get("optional", {})}
        values = [value for value in node["widgets_values"] if value != "randomize"]
        assert {socket["name"] for socket in node["inputs"]} <= set(kinds)
        widgets = [spec for spec in kinds.values() if isinstance(spec[0], list) or spec[0] in WIDGETS]
        assert len(values) <= len(widgets)
        for (kind, *rest), value in zip(widgets, values, strict=False):
            options = rest[0] if rest else {}
            choices = kind if isinstance(kind, list) else options.get("options")
            assert choices is None or value in choices
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= value <= options["max"]


WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
