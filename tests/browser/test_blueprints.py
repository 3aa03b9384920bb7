"""The subgraph blueprints, from the node library to a picture."""

from __future__ import annotations

import pytest
from canvas import show_graph
from devhost import ROOT
from playwright.sync_api import Page

NAMES = sorted(path.stem for path in (ROOT / "subgraphs").glob("*.json"))


def insert(page: Page, name: str) -> None:
    """From the node library onto an empty canvas."""
    page.evaluate("app.graph.clear()")
    page.evaluate("app.extensionManager.command.execute('Workspace.ToggleSidebarTab.node-library')")
    page.get_by_placeholder("Search").first.fill(name)
    page.get_by_text(name, exact=True).first.click()
    page.mouse.move(800, 300)
    if not page.evaluate("app.graph._nodes.length"):  # newer pages hang the node on the pointer first
        page.mouse.click(800, 300)
    page.wait_for_function("app.graph._nodes.length === 1")


@pytest.mark.parametrize("name", NAMES)
def test_comes_with_its_widgets(page: Page, name: str) -> None:
    insert(page, name)
    title, widgets = page.evaluate("[app.graph._nodes[0].title, app.graph._nodes[0].widgets.map(w => w.value)]")
    assert title == name
    assert len(widgets) >= 6
    assert all(value is not None for value in widgets)


def test_text_to_image_runs_to_a_picture(page: Page) -> None:
    insert(page, "InstaFlow text to image")
    page.evaluate("""() => {
        const preview = LiteGraph.createNode("PreviewImage")
        preview.pos = [900, 100]
        app.graph.add(preview)
        app.graph._nodes[0].connect(0, preview, 0)
    }""")
    show_graph(page)
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.wait_for_function("app.graph._nodes.some(n => n.imgs?.[0]?.naturalWidth === 64)", timeout=180_000)
