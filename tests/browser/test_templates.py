"""The workflows as a user meets them: under Templates with a picture, opened without a warning, and where a file is
missing, the page's own offer to download it, or a note with the command that fetches it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from devhost import PACK_NAME, ROOT
from playwright.sync_api import Locator, Page, Route, expect

WORKFLOWS = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))["nodes"]
    for path in sorted((ROOT / "workflows").glob("*.json"))
}
MUTED = 2
RELEASED = {"instaflow_0_9B_from_sd_1_5": "instaflow", "2_rectified_flow_from_sd_1_5": "2rf"}
"""Folders that loaders name, and what `download` calls them. The page offers no download of folders."""

Open = Callable[[str], None]


def single_files(name: str) -> dict[str, str]:
    """The files that loaders of the workflow say where to get, and their addresses."""
    models = [model for node in WORKFLOWS[name] for model in node["properties"].get("models", [])]
    return {model["name"]: model["url"] for model in models}


def released_folders(name: str) -> set[str]:
    return {str(value) for node in WORKFLOWS[name] for value in node.get("widgets_values", [])} & RELEASED.keys()


WITH_FILES = [name for name in WORKFLOWS if single_files(name)]
WITH_FOLDERS = [name for name in WORKFLOWS if released_folders(name)]

assert len(WITH_FILES) >= 3 and len(WITH_FOLDERS) >= 3, "workflows no longer name what is not shipped"


def warnings(page: Page) -> Locator:
    """A dialog, a message, and what newer pages say instead: that errors were found."""
    dialog, message = page.get_by_role("dialog"), page.locator(".p-toast-message")
    return dialog.or_(message).or_(page.get_by_test_id("error-overlay"))


def red_nodes(page: Page) -> list[Any]:
    return page.evaluate("app.graph._nodes.filter(n => n.has_errors || !n.comfyClass && !n.isVirtualNode)")


def test_templates_shows_the_packs_workflows(page: Page) -> None:
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(PACK_NAME, exact=True).first.click()
    for name in WORKFLOWS:
        heading = page.get_by_role("heading", name=name)
        expect(heading).to_be_attached()
        heading.evaluate("heading => heading.scrollIntoView({block: 'end'})")  # pictures load when they are looked at
        expect(heading).to_be_visible()
        picture = page.get_by_role("img", name=name)
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate("picture => picture.naturalWidth") > 0, "a broken picture is complete too"


def test_a_click_on_its_picture_opens_a_workflow(page: Page) -> None:
    page.evaluate("app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_text(PACK_NAME, exact=True).first.click()
    page.get_by_role("heading", name="02_instaflow_0.9B_text_to_image").click()
    page.wait_for_function("app.graph._nodes.some(node => node.type === 'InstaFlowSampler')")
    expect(warnings(page)).to_have_count(0)


@pytest.mark.parametrize("name", [name for name in WORKFLOWS if name not in WITH_FILES])
def test_a_workflow_opens_without_a_warning(page: Page, open_template: Open, name: str) -> None:
    """Also one of a folder that is not there: its note says how to get it."""
    open_template(name)
    assert not red_nodes(page)
    page.wait_for_timeout(1500)  # a dialog about missing nodes or models comes a moment later
    expect(warnings(page)).to_have_count(0)
    assert not red_nodes(page)


def let_the_page_ask_for_sizes(page: Page) -> None:
    """Older pages ask how large a file is, and open its repository instead where they are not answered. The server of
    these tests forbids its pages to ask anybody, as one without API nodes does; an ordinary one does not."""

    def without_policy(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, headers={**answer.headers, "content-security-policy": ""})

    page.route(lambda url: url == page.url, without_policy)
    answers = {"content-length": "1000", "access-control-allow-origin": "*"}
    page.route("https://huggingface.co/**", lambda route: route.fulfill(headers=answers))
    page.reload()
    page.wait_for_function("window.app?.graph?._nodes.length")


@pytest.mark.parametrize("name", WITH_FILES)
def test_the_page_offers_to_download_what_is_missing(page: Page, open_template: Open, name: str) -> None:
    """And warns of nothing else. Its buttons open the addresses in the workflow, of which nothing is fetched here."""
    let_the_page_ask_for_sizes(page)
    page.evaluate("""() => {
        window.opened = []
        HTMLAnchorElement.prototype.click = function () { opened.push(this.href) }
    }""")
    open_template(name)
    expect(warnings(page)).to_have_count(1)
    details = page.get_by_test_id("error-overlay-see-errors")
    if details.is_visible():  # newer pages list what is missing in a panel
        details.click()
        buttons = page.get_by_test_id("missing-model-download")
        place = page.locator("body")
    else:
        place = page.get_by_role("dialog")
        expect(place).to_contain_text("Missing Models")
        buttons = place.get_by_role("button", name="Download")
    files = single_files(name)
    expect(buttons).to_have_count(len(files))
    for file in files:
        expect(place.get_by_text(file).first).to_be_visible()
    for button in buttons.all():
        button.click()
    assert set(page.evaluate("opened")) == set(files.values())


@pytest.mark.parametrize("name", WITH_FOLDERS)
def test_a_note_says_how_to_fetch_a_folder(page: Page, open_template: Open, name: str) -> None:
    open_template(name)
    page.evaluate("""() => {
        app.canvas.ds.scale = 1  // from far away, pages leave out what a note says
        app.canvas.centerOnNode(app.graph._nodes.find(node => node.type === 'MarkdownNote'))
    }""")
    for folder in released_folders(name):
        command = f"python -m instaflow_core download {RELEASED[folder]}"
        expect(page.get_by_text(command).first).to_be_visible()
    expect(page.get_by_text("CC-BY-NC-4.0").first).to_be_visible()
