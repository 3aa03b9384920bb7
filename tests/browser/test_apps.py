"""Workflows that open as apps: a prompt, a seed, a picture. A page without apps shows the ordinary graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from canvas import GRAPH, knows_apps, show_graph
from playwright.sync_api import Page, expect

APPS = {  # name: (its prompt, the width of its picture)
    "01_one_step_text_to_image": ("a yellow star on a purple background", 512),
    "04_compare_with_stable_diffusion": ("a large yellow star in the center on a blue background", 804),
}

Open = Callable[[str], None]


@pytest.mark.parametrize("name", APPS)
def test_opens_as_an_app_and_runs_to_a_picture(page: Page, open_template: Open, name: str) -> None:
    prompt, width = APPS[name]
    open_template(name)
    if knows_apps(page):
        expect(page.locator("textarea:visible")).to_have_count(1)
        expect(page.locator("textarea:visible")).to_have_value(prompt)
        expect(page.get_by_text("prompt", exact=True)).to_be_visible()
        expect(page.get_by_text("seed", exact=True)).to_be_visible()
        expect(page.locator(GRAPH)).not_to_be_visible()
    else:
        show_graph(page)
        expect(page.locator(GRAPH)).to_be_visible()
    seeds = "app.graph._nodes.flatMap(n => n.widgets ?? []).filter(w => w.name === 'seed').map(w => w.value)"
    before = page.evaluate(seeds)
    page.locator("button:visible", has_text="Run").first.click()
    page.wait_for_function(
        "width => [...document.images, ...app.graph._nodes.flatMap(n => n.imgs ?? [])].some("
        "image => image.naturalWidth === width)",
        arg=width,
        timeout=180_000,
    )
    assert page.evaluate(seeds) != before, "the next picture would be the same"
    expect(page.get_by_role("dialog")).to_have_count(0)
