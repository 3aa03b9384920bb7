"""Where a page of ComfyUI draws the nodes of its open graph, the same for classic nodes and for Nodes 2.0."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devhost import PACK_NAME

if TYPE_CHECKING:
    from playwright.sync_api import Page

# The page opens a graph of its own when all else is there; what is opened before that is lost.
LOADED = """() => window.app?.graph && window.app.extensionManager?.workflow?.activeWorkflow
    && window.LiteGraph?.registered_node_types?.KSampler && !document.getElementById("splash-loader")"""
# In a first tab; a second one may open an empty graph.
READY = f"{LOADED} && app.graph._nodes.length"

GRAPH = "#graph-canvas"
TOGGLE_APP = "Comfy.ToggleLinear"

OPEN = """async ([pack, name]) => {
    const answer = await fetch(`/api/workflow_templates/${pack}/${encodeURIComponent(name)}.json`)
    await app.loadGraphData(await answer.json(), true, true, name, {openSource: 'template'})
}"""

# A node of Nodes 2.0 is an element; a classic one is drawn on the canvas, and the graph knows its box.
# Points just inside a node's edges and on a grid between them are asked for what lies on top there.
MEASURE = """() => {
    const pane = app.canvas.canvas.getBoundingClientRect(), {scale, offset} = app.canvas.ds
    const boxes = {}
    const name = element =>
        element.closest('[data-testid]')?.dataset.testid ?? `${element.tagName} ${element.className}`
    for (const node of app.graph._nodes) {
        const element = document.querySelector(`[data-node-id="${node.id}"]`)
        let left, top, width, height
        if (element) ({left, top, width, height} = element.getBoundingClientRect())
        else {
            const [x, y, w, h] = node.boundingRect
            left = pane.left + (x + offset[0]) * scale
            top = pane.top + (y + offset[1]) * scale
            width = w * scale
            height = h * scale
        }
        const covers = new Set()
        for (let i = 0; i <= 8; i++) for (let j = 0; j <= 8; j++) {
            const x = left + 4 + (width - 8) * i / 8, y = top + 4 + (height - 8) * j / 8
            const found = document.elementFromPoint(x, y)
            const own = found && (found === app.canvas.canvas || element?.contains(found)
                || !element && found.closest('.dom-widget'))
            if (!own) covers.add(found ? name(found) : 'outside the page')
        }
        boxes[node.id] = {left, top, width, height, covers: [...covers]}
    }
    return {scale, boxes}
}"""

# Every node has its box, and the view is where it was a moment ago: fitting it takes a few frames.
STANDS_STILL = """async () => {
    const state = () => JSON.stringify([app.canvas.ds.scale, app.canvas.ds.offset, app.canvas.canvas.width,
        app.graph._nodes.map(node => [...node.boundingRect,
            document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect().bottom])])
    if (!app.canvas.canvas.width || !app.graph._nodes.every(node => node.boundingRect[2])) return false
    const before = state()
    await new Promise(resolve => setTimeout(resolve, 400))
    return state() === before
}"""


@dataclass(frozen=True)
class Drawn:
    """One node on the screen.

    Attributes:
        left, top, right, bottom: its edges in the page's pixels, the title included.
        covers: what of the page lies on it: test ids, or tags and classes, or "outside the page".
    """

    left: float
    top: float
    right: float
    bottom: float
    covers: tuple[str, ...]


def drawn_nodes(page: Page) -> tuple[float, dict[int, Drawn]]:
    """The scale of the view, in pixels a unit of the graph, and every node of the open graph by its id."""
    measured: dict[str, Any] = page.evaluate(MEASURE)
    nodes = {
        int(number): Drawn(
            box["left"], box["top"], box["left"] + box["width"], box["top"] + box["height"], tuple(box["covers"])
        )
        for number, box in measured["boxes"].items()
    }
    return measured["scale"], nodes


def set_up(url: str, vue_nodes: bool, minimap: bool = True) -> None:
    """Choose the kind of nodes for visits to the server at `url`, and make them second ones: no Templates, no tour,
    no panel that an earlier visit left open, no other language."""
    settings = {
        "Comfy.VueNodes.Enabled": vue_nodes,
        "Comfy.TutorialCompleted": True,
        "Comfy.OnboardingCoachmarks.Seen": ["appMode"],
        "Comfy.RightSidePanel.IsOpen": False,
        "Comfy.Minimap.Visible": minimap,
        "Comfy.Locale": "en",
    }
    for name, value in settings.items():
        urllib.request.urlopen(f"{url}/settings/{name}", data=json.dumps(value).encode()).close()


def visit(page: Page, url: str) -> None:
    """Open the page of the server at `url` and wait until it can be used."""
    page.goto(url)
    page.wait_for_function(READY)


def open_workflow(page: Page, name: str, workflow: dict[str, Any]) -> None:
    """Open a workflow of the pack as its card under Templates does, and wait until all its nodes are there."""
    page.evaluate(OPEN, [PACK_NAME, name])
    page.wait_for_function(
        "ids => ids.every(id => app.graph.getNodeById(id))", arg=[node["id"] for node in workflow["nodes"]]
    )
    if workflow["extra"].get("linearMode") and knows_apps(page):
        page.locator(GRAPH).wait_for(state="hidden")


def knows_apps(page: Page) -> bool:
    """Whether this page has apps: frontends from 1.41.13 on."""
    version: str = page.evaluate("window.__COMFYUI_FRONTEND_VERSION__")
    return tuple(map(int, version.split(".")[:3])) >= (1, 41, 13)


def show_graph(page: Page) -> None:
    """Turn from the app, where the open workflow is shown as one, to its graph; wait until that stands still."""
    if not page.locator(GRAPH).is_visible():
        page.evaluate(f"app.extensionManager.command.execute('{TOGGLE_APP}')")
    page.wait_for_function(STANDS_STILL)
