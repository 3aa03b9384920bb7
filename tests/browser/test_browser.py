"""What a user sees: the nodes in the search, the workflows under Templates, no red node, a picture after Run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from devhost import PACK_NAME, ROOT
from playwright.sync_api import Page, expect
from running_server import RunningServer

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
ON_BUILT_IN_MODELS = [path.stem for path in WORKFLOWS if "built-in: " in path.read_text(encoding="utf-8")]

assert len(ON_BUILT_IN_MODELS) >= 9, "a workflow no longer names the model it runs on"

Open = Callable[[str], None]


def pack_nodes(server: RunningServer) -> dict[str, str]:
    """Node id -> display name of every node the pack registered."""
    return {
        name: schema["display_name"]
        for name, schema in server.object_info().items()
        if PACK_NAME in schema["python_module"]
    }


def test_every_node_is_found_by_the_search(page: Page, server: RunningServer) -> None:
    names = pack_nodes(server)
    assert names
    page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.wait_for_function("document.activeElement instanceof HTMLInputElement")
    page.keyboard.type("InstaFlow", delay=30)
    for name in names.values():
        expect(page.get_by_text(name, exact=True).first).to_be_visible()


def test_templates_shows_the_packs_workflows(page: Page) -> None:
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(PACK_NAME, exact=True).first.click()
    for path in WORKFLOWS:
        heading = page.get_by_role("heading", name=path.stem)
        heading.scroll_into_view_if_needed()  # pictures further down are loaded when they are looked at
        expect(heading).to_be_visible()
        picture = page.get_by_role("img", name=path.stem)
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate("picture => picture.naturalWidth") > 0, "a broken picture is complete too"


@pytest.mark.parametrize("name", ON_BUILT_IN_MODELS)
def test_a_workflow_opens_without_a_warning(page: Page, open_template: Open, name: str) -> None:
    open_template(name)
    unknown = page.evaluate("app.graph._nodes.filter(n => n.has_errors || !n.comfyClass && !n.isVirtualNode)")
    assert not unknown, "red nodes"
    page.wait_for_timeout(1500)  # a dialog about missing nodes or models comes a moment later
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator(".p-toast-message")).to_have_count(0)


def test_run_shows_the_picture(page: Page, open_template: Open) -> None:
    open_template("01_one_step_text_to_image")
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.wait_for_function("app.graph._nodes.some(n => n.imgs?.[0]?.naturalWidth >= 64)", timeout=120_000)
    expect(page.get_by_role("dialog")).to_have_count(0)
