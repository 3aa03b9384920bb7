"""The page in other languages: what the pack's own parts say follows the page."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable

import canvas
import pytest
from devhost import PACK_NAME, ROOT
from languages import LANGUAGES, words
from playwright.sync_api import Page, expect
from running_server import RunningServer

Open = Callable[[str], None]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_speaks(page: Page, server: RunningServer, open_template: Open, language: str) -> None:
    """The live node's buttons, a help page and, where the page itself keeps packs' words, a node's name."""
    data = json.dumps(language).encode()
    urllib.request.urlopen(f"{server.url}/settings/Comfy.Locale", data=data).close()
    page.reload()
    page.wait_for_function(canvas.READY)
    open_template("14_live")
    canvas.show_graph(page)
    panel = page.locator(".instaflow-live")
    for said in ("Live", "Play", "Save"):
        expect(panel.get_by_role("button", name=words(language, "main.json")["instaflowLive"][said])).to_be_attached()
    served = page.request.get(f"{server.url}/extensions/{PACK_NAME}/docs/InstaFlowSampler/{language}.md")
    assert served.text() == (ROOT / f"web/docs/InstaFlowSampler/{language}.md").read_text(encoding="utf-8")
    sampler = words(language, "nodeDefs.json")["InstaFlowSampler"]
    if canvas.knows_apps(page):  # older pages load their own words later, over those of packs
        assert page.evaluate("LiteGraph.registered_node_types.InstaFlowSampler.title") == sampler["display_name"]
