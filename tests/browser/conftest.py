"""A real Chromium on a real ComfyUI."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import browser
import canvas
import pytest
from devhost import ROOT
from playwright.sync_api import Browser, Page, expect, sync_playwright
from running_server import RunningServer

expect.set_options(timeout=30_000)  # a machine that tests on all its cores draws slowly
SCREENSHOTS = ROOT / "build" / "browser"  # one of every test, to look at


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The browser; gone after the module, since its driver keeps an event loop running in this thread."""
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=browser.executable(), args=list(browser.FLAGS))
        yield running
        running.close()


@pytest.fixture
def nodes_2() -> bool:
    """Whether the page draws Nodes 2.0; tests that look at both take this as a parameter."""
    return False


@pytest.fixture
def page(chromium: Browser, server: RunningServer, nodes_2: bool, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A fresh tab on the server's page; a screenshot is taken when the test is over."""
    canvas.set_up(server.url, nodes_2)
    with chromium.new_context(viewport={"width": 1400, "height": 900}) as context:
        tab = context.new_page()
        tab.set_default_timeout(60_000)
        canvas.visit(tab, server.url)
        yield tab
        tab.screenshot(path=SCREENSHOTS / f"{request.node.name}.png")


@pytest.fixture
def open_template(page: Page) -> Callable[[str], None]:
    """Opens a workflow of the pack as its card under Templates does, and waits until all its nodes are there."""

    def open_it(name: str) -> None:
        saved = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        canvas.open_workflow(page, name, saved)

    return open_it
