"""A real Chromium on a real ComfyUI."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator

import browser
import pytest
from devhost import ROOT
from playwright.sync_api import Browser, Page, sync_playwright
from running_server import RunningServer

SCREENSHOTS = ROOT / "build" / "browser"  # one of every test, to look at

READY = """() => window.app?.graph && window.app.extensionManager
    && window.LiteGraph?.registered_node_types?.KSampler"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The browser; gone after the module, since its driver keeps an event loop running in this thread."""
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=browser.executable(), args=list(browser.FLAGS))
        yield running
        running.close()


@pytest.fixture
def page(chromium: Browser, server: RunningServer, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A fresh tab on the server's page; a screenshot is taken when the test is over."""
    # A first visitor is shown the Templates dialog; this is a second visit.
    urllib.request.urlopen(f"{server.url}/settings/Comfy.TutorialCompleted", data=json.dumps(True).encode()).close()
    with chromium.new_context(viewport={"width": 1400, "height": 900}) as context:
        tab = context.new_page()
        tab.set_default_timeout(60_000)
        tab.goto(server.url)
        tab.wait_for_function(READY)
        yield tab
        tab.screenshot(path=SCREENSHOTS / f"{request.node.name}.png")


@pytest.fixture
def open_template(page: Page, server: RunningServer) -> Callable[[str], None]:
    """Opens a workflow of the pack as its card under Templates does, and waits until all its nodes are there."""

    def open_it(name: str) -> None:
        saved = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        page.goto(f"{server.url}/?template={name}&source=ComfyUI-InstaFlow")
        page.wait_for_function(
            "ids => window.app?.graph && ids.every(id => app.graph.getNodeById(id))",
            arg=[node["id"] for node in saved["nodes"]],
        )

    return open_it
