"""What a stranger has written is shown as text, never as HTML: names of files and sets, captions, reports, errors."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from node_graphs import graph_of
from playwright.sync_api import Dialog, Page, expect
from running_server import RunningServer
from small_models import small_checkpoint

from instaflow_core.weights.saving import save

RUN = "window.ranAs = 'HTML'; alert(1)"
HTML = f'<img src=x onerror="{RUN}"><script>{RUN}</script><svg onload="{RUN}">'
"""A caption."""
FILE = HTML.replace("/", "") + ".safetensors"
"""As much of it as a file's name can be."""


@pytest.fixture
def hostile(server: RunningServer) -> Iterator[Path]:
    """A checkpoint, a folder of diffusers and a set that are called so when the page is opened; gone after the test."""
    models, sets = server.base / "models", server.base / "output" / "instaflow" / "triplets"
    made = [models / "checkpoints" / FILE, models / "diffusers" / FILE, sets / FILE]
    made.append(sets / "good")
    for path in made[1:]:
        (path / "unet").mkdir(parents=True)
    for path in made[2:]:
        (path / "set.json").write_text("{}")
    save(small_checkpoint(), made[0])
    yield made[0]
    made[0].unlink()
    for path in made[1:]:
        shutil.rmtree(path)


@pytest.fixture
def dialogs(page: Page) -> list[str]:
    """What the page has asked by alert() and the like."""
    asked: list[str] = []

    def note(dialog: Dialog) -> None:
        asked.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", note)
    return asked


def open_and_run(page: Page, graph: dict[str, Any]) -> None:
    page.evaluate("graph => app.loadApiJson(graph, 'hostile')", graph)
    page.wait_for_function("ids => ids.every(id => app.graph.getNodeById(id))", arg=[int(name) for name in graph])
    page.get_by_role("button", name="Run", exact=True).first.click()


def numbered(graph: dict[str, Any]) -> dict[str, Any]:
    """With numbers for names, as the browser has them."""
    numbers = {name: str(number) for number, name in enumerate(graph, 1)}

    def link(value: Any) -> Any:
        return [numbers[value[0]], value[1]] if isinstance(value, list) else value

    return {
        numbers[name]: node | {"inputs": {key: link(value) for key, value in node["inputs"].items()}}
        for name, node in graph.items()
    }


def assert_text_only(page: Page, dialogs: list[str]) -> None:
    """Nothing ran, and there is no element that only the texts could have made."""
    page.wait_for_timeout(500)  # a picture that is not there takes a moment to say so
    assert not dialogs
    assert page.evaluate("window.ranAs === undefined")
    made = "img[src='x'], [onerror], svg[onload]"
    assert page.locator(made).count() == 0
    assert not [text for text in page.locator("script").all_inner_texts() if "ranAs" in text]


def a_report(nodes: dict[str, Any]) -> dict[str, Any]:
    """A caption, shown as text, beside a report of the pack."""
    graph = graph_of("InstaFlowStraightness", nodes, samples=1, steps=2)
    graph["text"]["inputs"]["text"] = HTML
    graph["shown"]["inputs"]["source"] = ["node", 2]
    graph["caption"] = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": HTML}}
    graph["shown-caption"] = {"class_type": "PreviewAny", "inputs": {"source": ["caption", 0]}}
    return graph


def test_what_a_prompt_shows_is_text(hostile: Path, page: Page, server: RunningServer, dialogs: list[str]) -> None:
    before = len(server.get_json("/history"))
    open_and_run(page, numbered(a_report(server.object_info())))
    for _ in range(600):
        if len(history := server.get_json("/history")) > before:
            break
        page.wait_for_timeout(100)
    assert list(history.values())[-1]["status"]["status_str"] == "success"
    page.wait_for_function("[...document.querySelectorAll('textarea')].some(t => t.value.includes('onerror'))")
    assert_text_only(page, dialogs)


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        ("InstaFlowTriplets", {"name": HTML}),
        ("InstaFlowTriplets", {"prompts": f"../{HTML}.txt"}),
        ("InstaFlowSaveCheckpoint", {"filename_prefix": HTML}),
        ("InstaFlowLoadTriplets", {"name": "absent " + FILE}),
        ("InstaFlowLoadCheckpoint", {"checkpoint": FILE}),
    ],
)
def test_what_an_error_shows_is_text(
    hostile: Path, page: Page, server: RunningServer, dialogs: list[str], node: str, inputs: dict[str, str]
) -> None:
    open_and_run(page, numbered(graph_of(node, server.object_info(), **inputs)))
    shown, details = page.get_by_text("onerror="), page.get_by_role("button", name="View details")
    expect(shown.or_(details).first).to_be_attached(timeout=60_000)
    if details.count():  # newer pages say first that there is an error
        details.first.click()
    expect(shown.first).to_be_attached()
    assert_text_only(page, dialogs)


@pytest.mark.parametrize("node", ["InstaFlowLoadCheckpoint", "InstaFlowLoadUNet", "InstaFlowLoadTriplets"])
def test_the_list_of_a_node_makes_no_html(
    hostile: Path, page: Page, server: RunningServer, dialogs: list[str], node: str
) -> None:
    """Opened as the page opens it; what hosts up to 0.3.75 list becomes HTML."""
    page.evaluate("graph => app.loadApiJson(graph, 'hostile')", numbered(graph_of(node, server.object_info())))
    shown = page.evaluate(
        """async name => { const node = app.graph._nodes.find(node => node.comfyClass === name);
        const values = node.widgets[0].options.values;
        new LiteGraph.ContextMenu(values, {scale: 1});
        return values; }""",
        node,
    )
    assert "good" in shown or "built-in: shapes" in shown
    expect(page.locator(".litemenu-entry")).to_have_count(len(shown))
    assert_text_only(page, dialogs)
