"""What people drag: pictures onto the canvas, and links from the pack's own sockets."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from canvas import show_graph
from devhost import ROOT
from PIL import Image
from playwright.sync_api import Page, expect
from running_server import RunningServer

DROP = """([content, name, type]) => {
    const bytes = Uint8Array.from(atob(content), character => character.charCodeAt(0))
    const dropped = new DataTransfer()
    dropped.items.add(new File([bytes], name, {type}))
    app.canvas.canvas.dispatchEvent(new DragEvent("drop", {dataTransfer: dropped, bubbles: true, cancelable: true}))
}"""

Open = Callable[[str], None]

both_renderers = pytest.mark.parametrize("nodes_2", [False, True], ids=["classic", "nodes 2.0"])


def drop(page: Page, content: bytes, name: str, kind: str) -> None:
    page.evaluate("app.graph.clear()")
    page.evaluate(DROP, [base64.b64encode(content).decode(), name, kind])


def test_a_picture_gives_its_graph_back(page: Page, server: RunningServer, open_template: Open) -> None:
    """The picture that the server saved when the page ran the first workflow."""
    name = "01_one_step_text_to_image"
    saved = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    open_template(name)
    show_graph(page)
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.wait_for_function("app.graph._nodes.some(n => n.imgs?.length)", timeout=120_000)
    newest = max((Path(server.base) / "output").glob("InstaFlow_0*.png"), key=lambda path: path.stat().st_mtime)
    drop(page, newest.read_bytes(), newest.name, "image/png")
    page.wait_for_function("count => app.graph._nodes.length === count", arg=len(saved["nodes"]))
    kinds = page.evaluate("app.graph._nodes.map(node => node.type)")
    assert sorted(kinds) == sorted(node["type"] for node in saved["nodes"])


def test_the_picture_of_a_help_page_gives_its_graph(page: Page, open_template: Open) -> None:
    """It is shown in the node's help, and dropped, it opens."""
    open_template("03_few_step_2_rectified_flow")
    show_graph(page)
    page.evaluate("app.canvas.selectNode(app.graph._nodes.find(node => node.type === 'InstaFlowSampler'))")
    page.locator("[data-testid=info-button], .help-button").first.click()
    shown = page.locator("img[src*='InstaFlowSampler.webp']")
    expect(shown).to_have_js_property("complete", True)
    assert shown.evaluate("picture => picture.naturalWidth") > 400
    drop(page, (ROOT / "web" / "docs" / "InstaFlowSampler.webp").read_bytes(), "InstaFlowSampler.webp", "image/webp")
    page.wait_for_function("app.graph._nodes.some(node => node.type === 'InstaFlowSampler')")


@both_renderers
def test_triplets_have_their_own_colour(page: Page, open_template: Open) -> None:
    """Also after another palette was chosen, which clears the colours of types it does not know."""
    open_template("09_train_your_own_instaflow")
    for palette in ("dark", "light"):
        page.evaluate("palette => app.extensionManager.setting.set('Comfy.ColorPalette', palette)", palette)
        show_graph(page)
        assert (0x2D, 0xD4, 0xBF) in colours_at_the_triplets(page)
    assert page.evaluate("app.canvas.constructor.link_type_colors.INSTAFLOW_TRIPLETS") == "#2dd4bf"


def colours_at_the_triplets(page: Page) -> set[tuple[int, int, int]]:
    """What is drawn around the output socket of InstaFlow Triplets, zoomed in."""
    page.evaluate("""() => {
        const node = app.graph._nodes.find(node => node.type === "InstaFlowTriplets")
        app.canvas.ds.fitToBounds(node.boundingRect, {zoom: 0.5})
        app.canvas.setDirty(true, true)
    }""")
    show_graph(page)
    x, y = page.evaluate("""() => {
        const node = app.graph._nodes.find(node => node.type === "InstaFlowTriplets")
        const [x, y] = node.getConnectionPos(false, 0), {scale, offset} = app.canvas.ds
        const pane = app.canvas.canvas.getBoundingClientRect()
        return [pane.left + (x + offset[0]) * scale, pane.top + (y + offset[1]) * scale]
    }""")
    clip = {"x": x - 12, "y": y - 12, "width": 24, "height": 24}
    return set(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB").get_flattened_data())
