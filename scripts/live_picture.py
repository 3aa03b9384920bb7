"""Make the README's moving picture: workflow 14 in a page of ComfyUI, Live pressed, two captions typed, then Play.

    python3 scripts/devhost.py scripts/live_picture.py

Every frame is a screenshot of the page, one for each key, taken when the picture of the text so far is there. The nodes
are moved together first, so that the text can be read; what is done to them is done by mouse and keys.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import browser
from canvas import drawn_nodes, open_workflow, set_up, show_graph, visit
from comfy_server import ComfyServer
from devhost import ROOT, located
from PIL import Image
from playwright.sync_api import Page, sync_playwright

TARGET = ROOT / "docs" / "live.webp"
NAME = "14_live"
CAPTIONS = ("a red heart on a white background", "a green star on a black background")
WIDTH = 620  # of the picture
LIMIT = 1_500_000  # bytes of it
MARGIN = 26  # around the nodes, in pixels of the page
KEY, LOOK, SEED = 90, 1400, 250  # ms that a frame is shown: after a key, at the end of a caption, while playing
SEEDS = 14  # frames of playing

# The nodes by their types: in two columns, what has nothing to see folded; note and groups away; all of it in view.
MOVE = """places => {
    for (const node of [...app.graph._nodes]) {
        const place = places[node.type]
        if (!place) { app.graph.remove(node); continue }
        node.pos = place.pos
        if (place.size) node.size = place.size
        if (place.folded) node.collapse()
    }
    for (const group of [...app.graph._groups]) app.graph.remove(group)
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [160, 120]
    app.canvas.setDirty(true, true)
}"""
PLACES = {
    "InstaFlowLoadCheckpoint": {"pos": [20, 80], "size": [380, 130]},
    "CLIPTextEncode": {"pos": [20, 260], "size": [380, 120]},
    "EmptyLatentImage": {"pos": [20, 430], "folded": True},
    "InstaFlowSampler": {"pos": [20, 480], "size": [380, 260]},
    "VAEDecode": {"pos": [440, 740], "folded": True},
    "InstaFlowLivePreview": {"pos": [440, 80], "size": [420, 580]},
}
# Of the page: no bar over the node that is typed in, and letters that can be read when the frame is made smaller.
SETTINGS = {"Comfy.Canvas.SelectionToolbox": False, "Comfy.TextareaWidget.FontSize": 17}
SET = """async settings => {
    for (const [name, value] of Object.entries(settings)) await app.extensionManager.setting.set(name, value)
}"""
# How many pictures the live node has shown.
COUNT = """() => {
    window.shown = 0
    document.addEventListener("load", ({target}) => shown += Boolean(target.closest?.(".instaflow-live")), true)
}"""


def main() -> None:
    """Write docs/live.webp."""
    with (
        tempfile.TemporaryDirectory() as base,
        ComfyServer(located(), Path(base)) as server,
        sync_playwright() as playwright,
    ):
        chromium = playwright.chromium.launch(executable_path=browser.executable(), args=list(browser.FLAGS))
        set_up(server.url, vue_nodes=False)
        page = chromium.new_page(viewport={"width": 1500, "height": 1050})
        page.set_default_timeout(120_000)
        visit(page, server.url)
        open_workflow(page, NAME, json.loads((ROOT / "workflows" / f"{NAME}.json").read_text(encoding="utf-8")))
        show_graph(page)
        page.evaluate(SET, SETTINGS)
        page.evaluate(MOVE, PLACES)
        show_graph(page)
        frames = list(recorded(Recorder(page)))
        chromium.close()
    TARGET.write_bytes(webp(frames))
    print(TARGET, len(frames), "frames,", TARGET.stat().st_size, "bytes")


class Recorder:
    """The page's nodes, as pictures."""

    def __init__(self, page: Page) -> None:
        self.page = page
        page.evaluate(COUNT)
        _, drawn = drawn_nodes(page)
        left, top = (min(getattr(box, side) for box in drawn.values()) - MARGIN for side in ("left", "top"))
        right, bottom = (max(getattr(box, side) for box in drawn.values()) + MARGIN for side in ("right", "bottom"))
        self.left, self.top, self.width, self.height = left, top, right - left, bottom - top

    def frame(self, shown_for: int) -> tuple[Image.Image, int]:
        """What is on the screen, WIDTH wide, and for how many milliseconds it is shown."""
        png = self.page.screenshot(clip={"x": self.left, "y": self.top, "width": self.width, "height": self.height})
        image = Image.open(io.BytesIO(png)).convert("RGB")
        size = (WIDTH, round(image.height * WIDTH / image.width))
        return image.resize(size, Image.Resampling.LANCZOS), shown_for

    def press(self, key: str) -> None:
        """Press a key and wait for the picture that follows."""
        before = self.page.evaluate("shown")
        self.page.keyboard.press(key)
        self.page.wait_for_function("before => shown > before", arg=before)


def recorded(recorder: Recorder) -> Iterator[tuple[Image.Image, int]]:
    """The frames from the press on Live to the last seed of Play."""
    page, buttons = recorder.page, recorder.page.locator(".instaflow-live button")
    yield recorder.frame(LOOK // 2)
    buttons.nth(0).click()
    page.wait_for_function("shown > 0")
    yield recorder.frame(LOOK)
    page.locator("textarea:visible").first.click()
    for caption in CAPTIONS:
        page.keyboard.press("Control+a")
        for letter in caption[:-1]:
            recorder.press(letter)
            yield recorder.frame(KEY)
        recorder.press(caption[-1])
        yield recorder.frame(LOOK)
    buttons.nth(1).click()
    for _ in range(SEEDS):
        before = page.evaluate("shown")
        page.wait_for_function("before => shown > before", arg=before)
        yield recorder.frame(SEED)
    buttons.nth(1).click()
    yield recorder.frame(LOOK)


def webp(frames: list[tuple[Image.Image, int]]) -> bytes:
    """The frames as one WebP that begins again, in LIMIT bytes at most.

    Raises:
        ValueError: it does not go into so few.
    """
    images, durations = zip(*frames, strict=True)
    for quality in (85, 75, 65, 50):
        file = io.BytesIO()
        images[0].save(
            file, "WEBP", save_all=True, append_images=images[1:], duration=list(durations), loop=0,
            quality=quality, method=6,
        )  # fmt: skip
        if len(file.getvalue()) <= LIMIT:
            return file.getvalue()
    raise ValueError(f"The frames do not go into {LIMIT} bytes: lower WIDTH.")


if __name__ == "__main__":
    main()
