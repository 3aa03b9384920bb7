"""Give every node of the workflows the room that pages of ComfyUI draw it in.

    python3 scripts/devhost.py scripts/layout.py [NAME...]

Each workflow is opened in a browser, with classic nodes and with Nodes 2.0. What is drawn taller than the file says is
made so in the file, then groups and free nodes move down until nothing lies on anything. Columns stay where they are.
`COMFYUI_PATH` names another host; after a run on each the file fits all of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import browser
from canvas import drawn_nodes, open_workflow, set_up, show_graph, visit
from comfy_server import ComfyServer
from devhost import HOST_FOLDER, ROOT, located
from playwright.sync_api import Browser, sync_playwright

TITLE = 30  # height of a node's title, above its position
GAP = 25  # between a node and the next one's title, and between groups
HEADING = 50  # of a group, above its first node's title
MARGIN = 20  # between a group and the nodes in it

Node = dict[str, Any]
Heights = dict[int, int]


@dataclass
class Block:
    """What moves as one: a group with its nodes, or a node that stands alone."""

    nodes: list[Node]
    group: dict[str, Any] | None = None

    @property
    def sides(self) -> tuple[float, float]:
        """Left and right."""
        if self.group:
            left, _, width, _ = self.group["bounding"]
            return left, left + width
        return self.nodes[0]["pos"][0], self.nodes[0]["pos"][0] + self.nodes[0]["size"][0]

    @property
    def top(self) -> float:
        """Of the group, or of the lone node's title."""
        return float(self.group["bounding"][1] if self.group else self.nodes[0]["pos"][1] - TITLE)

    def place(self, top: float) -> float:
        """Stack the nodes from `top` on, each column for itself; return the bottom."""
        if not self.group:
            self.nodes[0]["pos"][1] = top + TITLE
            return float(top + TITLE + self.nodes[0]["size"][1])
        bottoms: dict[float, float] = {}
        for node in sorted(self.nodes, key=lambda node: node["pos"][1]):
            column = node["pos"][0]
            node["pos"][1] = (bottoms[column] + GAP if column in bottoms else top + HEADING) + TITLE
            bottoms[column] = node["pos"][1] + node["size"][1]
        bottom = max(bottoms.values()) + MARGIN
        self.group["bounding"][1], self.group["bounding"][3] = top, bottom - top
        return bottom


def main() -> None:
    """Lay out workflows/NAME.json for the named workflows, or every one."""
    paths = [ROOT / "workflows" / f"{name}.json" for name in sys.argv[1:]]
    with ComfyServer(located(), HOST_FOLDER / "base") as server, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser.executable(), args=list(browser.FLAGS))
        for path in paths or sorted((ROOT / "workflows").glob("*.json")):
            workflow = json.loads(path.read_text(encoding="utf-8"))
            lay_out(workflow, tallest(chromium, server.url, path.stem, workflow))
            path.write_text(json.dumps(workflow, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            print(path)
        chromium.close()


def tallest(chromium: Browser, url: str, name: str, workflow: dict[str, Any]) -> Heights:
    """How tall either kind of nodes is drawn, in units of the graph and without the title, by the node's id."""
    heights: Heights = {}
    for vue_nodes in (False, True):
        set_up(url, vue_nodes)
        page = chromium.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(120_000)
        visit(page, url)
        open_workflow(page, name, workflow)
        show_graph(page)
        scale, drawn = drawn_nodes(page)
        for node in workflow["nodes"]:
            box = drawn[node["id"]]
            # Some pages draw Nodes 2.0 larger than the file says, in both directions.
            stretch = (box.right - box.left) / node["size"][0] / scale
            height = round((box.bottom - box.top) / scale / max(stretch, 1)) - TITLE
            heights[node["id"]] = max(heights.get(node["id"], 0), height)
        page.close()
    return heights


def lay_out(workflow: dict[str, Any], heights: Heights) -> None:
    """Make the nodes at least so tall, and stack groups and free nodes anew, in their order."""
    blocks = sorted(_blocks(workflow), key=lambda block: block.top)
    for node in workflow["nodes"]:
        if heights[node["id"]] > node["size"][1] + 2:  # what is drawn is rounded
            node["size"][1] = -(-heights[node["id"]] // 10) * 10
    bottoms: list[tuple[Block, float]] = []
    for block in blocks:
        left, right = block.sides
        above = [bottom for other, bottom in bottoms if other.sides[0] < right and left < other.sides[1]]
        bottoms.append((block, block.place(max(above) + GAP if above else 0)))


def _blocks(workflow: dict[str, Any]) -> Iterator[Block]:
    left_over = list(workflow["nodes"])
    for group in workflow["groups"]:
        x, y, width, height = group["bounding"]
        inside = [node for node in left_over if x <= node["pos"][0] < x + width and y <= node["pos"][1] < y + height]
        left_over = [node for node in left_over if node not in inside]
        yield Block(inside, group)
    for node in left_over:
        yield Block([node])


if __name__ == "__main__":
    main()
