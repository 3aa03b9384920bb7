"""How the workflows lie on the page when they open: nothing on anything, nothing under the page's own bars."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
from canvas import Drawn, drawn_nodes, knows_apps, show_graph
from devhost import ROOT
from playwright.sync_api import Page, expect

NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
SIZES = {"small": (1400, 900), "large": (1920, 1080)}
FILLED = 0.6  # of the node's width, at least, is the picture

Open = Callable[[str], None]

both_renderers = pytest.mark.parametrize("nodes_2", [False, True], ids=["classic", "nodes 2.0"])


def overlap(a: Drawn, b: Drawn) -> bool:
    return a.left < b.right and b.left < a.right and a.top < b.bottom and b.top < a.bottom


def stretches(page: Page, nodes_2: bool) -> bool:
    """Whether this is the first Nodes 2.0, of old hosts, which makes a graph larger after it was fitted."""
    return nodes_2 and not knows_apps(page)


def faults(page: Page) -> list[str]:
    """What lies on what, in the graph that is open."""
    _, nodes = drawn_nodes(page)
    names = page.evaluate("Object.fromEntries(app.graph._nodes.map(node => [node.id, node.title]))")
    found = []
    for i, node in nodes.items():
        # Newer pages say in a box, which closes, which models are not there.
        if covers := [cover for cover in node.covers if not cover.startswith("error-overlay")]:
            found.append(f"{names[str(i)]} {i} under {', '.join(covers)}")
    for a, b in combinations(nodes, 2):
        if overlap(nodes[a], nodes[b]):
            found.append(f"{names[str(a)]} {a} on {names[str(b)]} {b}")
    groups = page.evaluate("""app.graph._groups.map(group => {
        const {scale, offset} = app.canvas.ds, pane = app.canvas.canvas.getBoundingClientRect()
        const [x, y, w, h] = group._bounding
        return [x + offset[0], y + offset[1], x + w + offset[0], y + h + offset[1]].map(
            (edge, i) => edge * scale + (i % 2 ? pane.top : pane.left))
    })""")
    for i, node in nodes.items():
        for left, top, right, bottom in groups:
            if not overlap(node, Drawn(left, top, right, bottom, ())):
                continue
            inside = left < node.left and top < node.top and node.right < right and node.bottom < bottom
            if not inside:
                found.append(f"{names[str(i)]} {i} out of its group")
    return found


@pytest.mark.parametrize(
    ("nodes_2", "size"),
    [(False, "small"), (False, "large"), (True, "small")],
    ids=["classic, small", "classic, large", "nodes 2.0, small"],
)
def test_every_workflow_opens_with_nothing_on_anything(
    page: Page, open_template: Open, nodes_2: bool, size: str
) -> None:
    width, height = SIZES[size]
    page.set_viewport_size({"width": width, "height": height})
    found = {}
    for name in NAMES:
        open_template(name)
        page.keyboard.press("Escape")  # old pages list the models that are not there in a dialog
        show_graph(page)
        if stretches(page, nodes_2):
            assert all(node.right > node.left for node in drawn_nodes(page)[1].values())
        else:
            found[name] = faults(page)
    assert {name: said for name, said in found.items() if said} == {}


@both_renderers
def test_the_first_picture_fills_its_node(page: Page, open_template: Open, nodes_2: bool) -> None:
    """Also after it has come, nothing lies on anything."""
    open_template("01_one_step_text_to_image")
    show_graph(page)
    number = page.evaluate("app.graph._nodes.find(node => node.type === 'SaveImage').id")
    page.get_by_role("button", name="Run", exact=True).first.click()
    if nodes_2:
        shown = page.locator(f"[data-node-id='{number}'] img").first
        expect(shown).to_have_js_property("naturalWidth", 512, timeout=120_000)
    else:
        page.wait_for_function(
            "id => app.graph.getNodeById(id).imgs?.[0]?.naturalWidth === 512", arg=number, timeout=120_000
        )
    show_graph(page)
    if not stretches(page, nodes_2):
        assert faults(page) == []
    scale, nodes = drawn_nodes(page)
    if nodes_2:
        width = shown.evaluate("image => image.getBoundingClientRect().width")
    else:
        # A classic node draws its picture below the widgets, never larger than it is.
        width = scale * page.evaluate(
            """id => {
                const {size, widgets, imgs} = app.graph.getNodeById(id)
                return Math.min(size[0], size[1] - widgets.at(-1).last_y - 40, imgs[0].naturalWidth)
            }""",
            number,
        )
    node = nodes[int(number)]
    assert width > FILLED * (node.right - node.left)
