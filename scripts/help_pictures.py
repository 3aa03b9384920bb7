"""Make the pictures of the help pages: each node in the plainest graph, as a page of ComfyUI draws it.

    python3 scripts/devhost.py scripts/help_pictures.py [NODE...]

The graph travels in the picture, as in every picture that ComfyUI saves: dropped on the canvas, it opens.
"""

from __future__ import annotations

import io
import itertools
import json
import sys
from typing import Any

import browser
from canvas import drawn_nodes, set_up, show_graph, visit
from comfy_client import ComfyClient, Graph
from comfy_server import ComfyServer
from devhost import HOST_FOLDER, PACK_NAME, ROOT, located
from PIL import Image
from plain_graphs import Plain, plain_graph
from playwright.sync_api import Page, sync_playwright

FOLDER = ROOT / "web" / "docs"
WIDTHS = (1400, 1200, 1000, 900, 800)  # of a picture, the largest that goes into LIMIT
QUALITIES = (70, 60, 50, 40)  # of a WebP, the same; below them letters blur
LIMIT = 40_000  # bytes of a picture with its graph
MARGIN = 12  # around the nodes, in pixels of the page
TRAINING = {
    "InstaFlowTriplets",
    "InstaFlowLoadTriplets",
    "InstaFlowReflow",
    "InstaFlowDistill",
}  # what runs long with its defaults
EXIF_MAKE = 0x010F  # where ComfyUI looks for a workflow in a WebP

# What a node shows of its run is there; Nodes 2.0 says so in words until it is.
SHOWN = """() => Object.values(app.nodeOutputs).some(output => output.images?.length)
    && [...document.querySelectorAll('[data-node-id] img')].every(image => image.complete && image.naturalWidth)
    && ![...document.querySelectorAll('[data-node-id]')].some(node => node.textContent.includes('Loading'))"""

# Columns by how far a node is from the loaders, each no higher than its nodes; then the whole of it in view.
ARRANGE = """() => {
    app.graph.arrange(60)
    app.canvas.ds.fitToBounds([...app.graph._nodes.reduce((box, node) => {
        const [x, y, w, h] = node.boundingRect
        return [Math.min(box[0], x), Math.min(box[1], y), Math.max(box[2], x + w), Math.max(box[3], y + h)]
    }, [1e9, 1e9, -1e9, -1e9])].map((edge, i, box) => i < 2 ? edge : edge - box[i - 2]), {zoom: 0.7})
    app.canvas.setDirty(true, true)
}"""


def main() -> None:
    """Write web/docs/NODE.webp for the named nodes, or every one of the pack."""
    with ComfyServer(located(), HOST_FOLDER / "base") as server, sync_playwright() as playwright:
        info = ComfyClient(server.url).object_info()
        kinds = sys.argv[1:] or [name for name, said in info.items() if PACK_NAME in said["python_module"]]
        chromium = playwright.chromium.launch(executable_path=browser.executable(), args=list(browser.FLAGS))
        set_up(server.url, vue_nodes=True, minimap=False)
        page = chromium.new_page(viewport={"width": 1920, "height": 1200})
        page.set_default_timeout(120_000)
        visit(page, server.url)
        for kind in kinds:
            path = FOLDER / f"{kind}.webp"
            path.write_bytes(picture(page, kind, plain_graph(kind, Plain(info))))
            print(path, path.stat().st_size)
        chromium.close()


def picture(page: Page, kind: str, graph: Graph) -> bytes:
    """The graph as a WebP that carries it."""
    page.evaluate("app.nodeOutputs = {}")
    page.evaluate("([graph, name]) => app.loadApiJson(graph, name)", [graph, kind])
    show_graph(page)
    kinds = {node["class_type"] for node in graph.values()}
    if "PreviewImage" in kinds and not TRAINING & kinds:
        page.get_by_role("button", name="Run", exact=True).first.click()
        page.wait_for_function(SHOWN)
    for _ in range(2):  # nodes grow as they come into view, and the page fits what it knew before
        page.evaluate(ARRANGE)
        show_graph(page)
    _, drawn = drawn_nodes(page)
    left, top = (min(getattr(box, side) for box in drawn.values()) - MARGIN for side in ("left", "top"))
    right, bottom = (max(getattr(box, side) for box in drawn.values()) + MARGIN for side in ("right", "bottom"))
    png = page.screenshot(clip={"x": left, "y": top, "width": right - left, "height": bottom - top})
    return webp(Image.open(io.BytesIO(png)).convert("RGB"), page.evaluate("app.graph.serialize()"))


def webp(image: Image.Image, workflow: dict[str, Any]) -> bytes:
    """The image, no wider than the first of WIDTHS, with the workflow in it, in LIMIT bytes at most.

    Raises:
        ValueError: it does not go into so few.
    """
    exif = Image.Exif()
    exif[EXIF_MAKE] = "workflow:" + json.dumps(workflow, separators=(",", ":"))
    for width, quality in itertools.product(WIDTHS, QUALITIES):
        smaller, file = image.copy(), io.BytesIO()
        smaller.thumbnail((width, width), Image.Resampling.LANCZOS)
        smaller.save(file, "WEBP", quality=quality, method=6, exif=exif)
        if len(file.getvalue()) <= LIMIT:
            return file.getvalue()
    raise ValueError(f"The picture and its graph do not go into {LIMIT} bytes: add a smaller one to WIDTHS.")


if __name__ == "__main__":
    main()
