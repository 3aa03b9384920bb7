"""The live mode as a user meets it: type, and the picture follows, in classic nodes and in Nodes 2.0."""

from __future__ import annotations

import base64
import io
import json
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import canvas
import pytest
from devhost import PACK_NAME, ROOT
from PIL import Image, ImageChops
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, expect
from running_server import RunningServer

from instaflow_core.shapes.captions import parse
from instaflow_core.shapes.judge import judge

WORKFLOW = json.loads((ROOT / "workflows" / "14_live.json").read_text(encoding="utf-8"))
SAMPLER = next(node["id"] for node in WORKFLOW["nodes"] if node["type"] == "InstaFlowSampler")
LIVE_NODE = "InstaFlowLivePreview"
STOCK = """async () => {
    await app.loadGraphData({version: 0.4, nodes: [], links: [], groups: [], config: {}, extra: {}, last_node_id: 0,
        last_link_id: 0});
    const add = (kind, x) => {
        const node = LiteGraph.createNode(kind);
        node.pos = [x, 200];
        app.graph.add(node);
        return node;
    };
    const [source, live] = [add("EmptyImage", 150), add("InstaFlowLivePreview", 700)];
    source.connect(0, live, 0);
    source.widgets[0].value = source.widgets[1].value = 32;
    window.source = source;
}"""
BLACK, RED, BLUE = 0, 0xDC2828, 0x2850DC


class LivePage:
    """A page with a live node, and what it asks of the server."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.prompts: list[dict[str, Any]] = []
        self.said_wrong: list[str] = []
        page.on("request", self._count)
        page.on("console", self._listen)
        self.panel = page.locator(".instaflow-live")
        self.live, self.save = (self.panel.get_by_role("button", name=name, exact=True) for name in ("Live", "Save"))
        self.play = self.panel.locator("button").nth(1)
        self.picture = self.panel.locator("img")
        self.said = self.panel.get_by_role("status")

    def _count(self, request: Any) -> None:
        if request.method == "POST" and request.url.endswith("/prompt"):
            self.prompts.append(request.post_data_json["prompt"])

    def _listen(self, message: ConsoleMessage) -> None:
        if message.type == "error" and PACK_NAME in message.text + str(message.location):
            self.said_wrong.append(message.text)

    def watch(self) -> None:
        """From now on, note the longest queue of the server and the pictures shown."""
        self.page.evaluate("""() => {
            window.longest = window.shown = 0;
            app.api.addEventListener("status", ({detail}) => {
                if (detail) longest = Math.max(longest, detail.exec_info.queue_remaining);
            });
            document.addEventListener("load", ({target}) => {
                if (target.closest?.(".instaflow-live")) shown += 1;
            }, true);
        }""")

    def seen(self) -> Image.Image:
        """The picture in the node; one that is just being loaded is waited for, a few seconds at most."""
        data = self.picture.evaluate("""async picture => {
            for (let frame = 0; !picture.naturalWidth && frame < 300; frame++) await new Promise(requestAnimationFrame);
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
            canvas.getContext("2d").drawImage(picture, 0, 0);
            return canvas.toDataURL("image/png").split(",")[1];
        }""")
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")

    def until(self, holds: Callable[[Image.Image], bool], what: str) -> None:
        """Wait until the picture is as it should be."""
        for _ in range(300):
            if self.picture.count() and self.picture.evaluate("picture => picture.complete") and holds(self.seen()):
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"no picture of {what} came; the node says {self.said.inner_text()!r}")

    def shows(self, caption: str) -> None:
        self.until(lambda picture: bool(judge(picture, parse(caption))), caption)

    def shows_the_graph(self) -> None:
        """The picture is what the graph in the page asks for, its seed among that; asked by switching off and on."""
        before, shown = self.seen(), self.page.evaluate("shown")
        self.live.click()
        self.live.click()
        self.page.wait_for_function("before => shown > before", arg=shown)
        assert self.seen().tobytes() == before.tobytes()

    def is_coloured(self, value: int) -> None:
        rgb = ((value >> 16) & 255, (value >> 8) & 255, value & 255)

        def near(picture: Image.Image) -> bool:
            return max(abs(a - b) for a, b in zip(picture.getpixel((9, 9)), rgb, strict=True)) < 6

        self.until(near, f"the colour {rgb}")

    def set_colour(self, value: int) -> None:
        self.page.evaluate("value => source.widgets.find(w => w.name === 'color').value = value", value)

    def stays_quiet(self) -> None:
        """What was asked comes to its end, and nothing more is queued for a while."""
        self.page.wait_for_timeout(300)
        while any(self.page.evaluate("async () => Object.values(await (await app.api.fetchApi('/queue')).json())")):
            self.page.wait_for_timeout(100)
        self.page.wait_for_timeout(100)  # the last picture is decoded
        before = len(self.prompts)
        self.page.wait_for_timeout(700)
        assert len(self.prompts) == before

    def draws(self, pictures: int) -> None:
        """Wait for so many more."""
        shown = self.page.evaluate("shown")
        self.page.wait_for_function("wanted => shown > wanted", arg=shown + pictures)

    def draws_several(self) -> None:
        """Wait until a prompt asks for more than one picture, as they do where pictures come quickly."""
        for _ in range(300):
            if self.asks_for_several():
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"each of {len(self.prompts)} prompts asked for one picture")

    def asks_for_several(self) -> bool:
        """Whether some prompt asked for more than one picture."""
        return any(sum(node["class_type"] == LIVE_NODE for node in prompt.values()) > 1 for prompt in self.prompts)

    def type_caption(self, text: str) -> None:
        """Write `text` into the prompt's own field, as fast as keys can be sent."""
        field = self.page.locator("textarea:visible").first
        field.click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.type(text)


@pytest.fixture(params=["classic", "Nodes 2.0"])
def renderer(request: pytest.FixtureRequest, server: RunningServer) -> Iterator[str]:
    """Who draws the nodes."""
    setting = f"{server.url}/settings/Comfy.VueNodes.Enabled"
    urllib.request.urlopen(setting, data=json.dumps(request.param == "Nodes 2.0").encode()).close()
    yield request.param
    urllib.request.urlopen(setting, data=b"false").close()


@pytest.fixture
def live(page: Page) -> Iterator[LivePage]:
    """The page; that our part of it reported no error is held at the end."""
    opened = LivePage(page)
    yield opened
    assert opened.said_wrong == []


@pytest.fixture
def stock(live: LivePage) -> LivePage:
    """A graph of ComfyUI's own nodes that ends in the live node."""
    live.page.evaluate(STOCK)
    expect(live.live).to_be_visible()
    return live


def switch_on(live: LivePage) -> None:
    live.live.click()
    expect(live.live).to_have_attribute("aria-pressed", "true")
    live.page.wait_for_function("document.querySelector('.instaflow-live img')?.naturalWidth > 0")
    live.watch()


def history(server: RunningServer) -> dict[str, Any]:
    return dict(server.get_json("/history"))


def test_typing_ends_with_the_picture_of_the_last_text(
    renderer: str, live: LivePage, open_template: Callable[[str], None], server: RunningServer
) -> None:
    open_template("14_live")
    before = set(history(server))
    switch_on(live)
    live.shows("a yellow star on a purple background")
    live.type_caption("a large blue heart on a white background")
    live.shows("a large blue heart on a white background")
    live.stays_quiet()
    live.shows("a large blue heart on a white background")
    assert live.page.evaluate("longest") <= 2, "a backlog"  # the host counts one that has just ended
    assert "ms" in live.said.inner_text()
    assert set(history(server)) == before, "frames leave nothing in the history"
    saved = live.page.evaluate("app.graph.serialize().nodes.find(n => n.type === 'InstaFlowLivePreview')")
    assert not saved.get("widgets_values"), "an opened workflow would begin by itself"


def test_play_draws_seeds_until_paused(renderer: str, live: LivePage, open_template: Callable[[str], None]) -> None:
    open_template("14_live")
    seed = f"app.graph.getNodeById({SAMPLER}).widgets.find(w => w.name === 'seed').value"
    first = live.page.evaluate(seed)
    switch_on(live)
    live.play.click()
    live.page.wait_for_function("shown > 6")
    live.draws_several()
    expect(live.said).to_contain_text("pictures/s")  # of two seconds; a busy machine may draw none in them
    live.play.click()
    live.stays_quiet()
    assert live.page.evaluate("longest") <= 2, "a backlog"
    assert live.page.evaluate(seed) != first
    live.shows_the_graph()


def test_a_change_is_drawn_while_it_plays(
    renderer: str, live: LivePage, open_template: Callable[[str], None], server: RunningServer
) -> None:
    """What was asked before it, several pictures and more that wait, is called off and leaves nothing behind."""
    open_template("14_live")
    before = set(history(server))
    switch_on(live)
    live.play.click()
    for caption in ("a large red circle on a black background", "a small green ring on a white background"):
        live.draws(20)
        live.type_caption(caption)
        live.shows(caption)
    live.play.click()
    live.stays_quiet()
    live.shows_the_graph()
    live.stays_quiet()
    assert set(history(server)) == before
    expect(live.live).to_have_attribute("aria-pressed", "true")


def test_a_picture_of_several_is_saved_as_it_was_made(
    live: LivePage, open_template: Callable[[str], None], server: RunningServer
) -> None:
    """Its own seed, under the page's own ids."""
    open_template("14_live")
    switch_on(live)
    live.play.click()
    live.draws_several()
    live.draws(20)
    live.play.click()
    live.stays_quiet()
    seen = live.seen()
    live.save.click()
    expect(live.said).to_contain_text("Saved as InstaFlow_")
    path = server.base / "output" / live.said.inner_text().removeprefix("Saved as ")
    with Image.open(path) as picture:
        workflow, prompt = (json.loads(picture.info[name]) for name in ("workflow", "prompt"))
        difference = ImageChops.difference(picture.convert("RGB"), seen)
    assert max(high for _, high in difference.getextrema()) < 40, "a JPEG of it was shown"
    (sampler,) = (node for node in workflow["nodes"] if node["id"] == SAMPLER)
    assert prompt[str(SAMPLER)]["inputs"]["seed"] in sampler["widgets_values"]
    assert set(prompt) <= {str(node["id"]) for node in workflow["nodes"]} | {str(workflow["last_node_id"] + 1)}


def test_nodes_that_look_at_themselves_are_asked_one_picture_at_a_time(
    live: LivePage, open_template: Callable[[str], None]
) -> None:
    """ComfyUI's Get Image Size tells the page under which id it ran."""
    open_template("14_live")
    live.page.evaluate("""() => {
        const at = kind => app.graph._nodes.find(node => node.type === kind);
        const add = (kind, x) => {
            const node = LiteGraph.createNode(kind);
            node.pos = [x, 900];
            app.graph.add(node);
            return node;
        };
        const [size, blank] = [add("GetImageSize", 300), add("EmptyImage", 700)];
        at("VAEDecode").connect(0, size, 0);
        size.connect(0, blank, blank.inputs.findIndex(input => input.name === "width"));
        blank.connect(0, at("InstaFlowLivePreview"), 0);
    }""")
    switch_on(live)
    live.play.click()
    live.draws(20)
    assert any(node["class_type"] == "GetImageSize" for node in live.prompts[-1].values())
    assert not live.asks_for_several()


def test_prompts_put_together_ask_for_what_each_asks(live: LivePage) -> None:
    """Nodes that lead to nothing different are shared; a circle and a dangling link are left to the host to refuse."""
    prompts = [
        {
            "1": {"class_type": "Load", "inputs": {"name": "model"}},
            "2": {"class_type": "Sample", "inputs": {"model": ["1", 0], "seed": seed, "gone": ["99", 0]}},
            "5:3": {"class_type": "Decode", "inputs": {"samples": ["2", 0], "vae": ["1", 2]}},
            "8": {"class_type": "Circle", "inputs": {"in": ["9", 0]}},
            "9": {"class_type": "Circle", "inputs": {"in": ["8", 0], "from": ["1", 0]}},
            "4": {"class_type": "Live", "inputs": {"images": ["5:3", 0]}},
        }
        for seed in (7, 8, 7)
    ]
    both = live.page.evaluate(
        """async prompts => {
            const {origin, together} = await import("/extensions/ComfyUI-InstaFlow/live/together.js");
            const both = together(prompts, ["4", "8"]);
            return {...both, origins: both.targets.map(origin)};
        }""",
        prompts,
    )
    assert both["targets"] == ["4", "8", "4~1", "8~1", "8~2"], "the third picture is the first"
    assert both["origins"][0] == {"id": "4", "index": 0}
    assert both["origins"][2] == {"id": "4", "index": 1}
    first, second = ({id: both["prompt"][id]["inputs"] for id in ids} for ids in (("2", "5:3"), ("2~1", "5:3~1")))
    assert first["2"] == {"model": ["1", 0], "seed": 7, "gone": ["99", 0]}
    assert second["2~1"] == {"model": ["1", 0], "seed": 8, "gone": ["99", 0]}
    assert first["5:3"] == {"samples": ["2", 0], "vae": ["1", 2]}
    assert second["5:3~1"] == {"samples": ["2~1", 0], "vae": ["1", 2]}
    assert both["prompt"]["4~1"]["inputs"]["images"] == ["5:3~1", 0]
    assert both["prompt"]["9"]["inputs"] == {"in": ["8", 0], "from": ["1", 0]}


def test_any_graph_that_ends_in_the_node_is_live(renderer: str, stock: LivePage) -> None:
    switch_on(stock)
    for colour in (RED, BLUE):
        stock.set_colour(colour)
        stock.is_coloured(colour)
    # The same two nodes inside a subgraph, changed there.
    stock.page.evaluate("app.graph.convertToSubgraph(new Set([source]))")
    stock.page.evaluate("""() => {
        window.source = app.graph._nodes.find(n => n.subgraph).subgraph._nodes.find(n => n.type === "EmptyImage");
    }""")
    stock.set_colour(RED)
    stock.is_coloured(RED)


def test_undo_and_redo_keep_it_live(renderer: str, stock: LivePage) -> None:
    switch_on(stock)
    for colour in (BLACK, RED):
        stock.set_colour(colour)
        stock.is_coloured(colour)
        # As the page notes a change that was made by hand; older ones call it otherwise.
        stock.page.evaluate("""() => {
            const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
            tracker.captureCanvasState ? tracker.captureCanvasState() : tracker.checkState();
        }""")
    for command, colour in (("Comfy.Undo", BLACK), ("Comfy.Redo", RED)):
        stock.page.evaluate("name => app.extensionManager.command.execute(name)", command)
        stock.page.evaluate("window.source = app.graph._nodes.find(node => node.type === 'EmptyImage')")
        stock.is_coloured(colour)
        expect(stock.live).to_have_attribute("aria-pressed", "true")
    stock.set_colour(BLUE)
    stock.is_coloured(BLUE)
    stock.page.evaluate("app.loadGraphData(app.graph.serialize())")  # as opening a workflow does
    expect(stock.live).to_have_attribute("aria-pressed", "false")


def test_switched_off_nothing_follows(stock: LivePage) -> None:
    switch_on(stock)
    stock.set_colour(RED)
    stock.is_coloured(RED)
    stock.live.click()
    stock.set_colour(BLUE)
    stock.stays_quiet()
    stock.is_coloured(RED)


def test_an_error_stops_it_and_says_why(live: LivePage, open_template: Callable[[str], None]) -> None:
    open_template("14_live")
    switch_on(live)
    guidance = f"app.graph.getNodeById({SAMPLER}).widgets.find(w => w.name === 'guidance')"
    live.page.evaluate(f"{guidance}.value = 1.5")
    expect(live.said).to_contain_text("Live stopped: InstaFlowSampler: ")
    expect(live.said).to_contain_text("one-step InstaFlow")
    expect(live.live).to_have_attribute("aria-pressed", "false")
    live.page.evaluate(f"{guidance}.value = 1.6")
    live.stays_quiet()


def test_a_graph_that_the_server_refuses_stops_it(stock: LivePage) -> None:
    switch_on(stock)
    stock.page.evaluate("source.widgets[0].value = -5")
    expect(stock.said).to_contain_text("Live stopped: EmptyImage: Value -5 smaller than min")
    expect(stock.live).to_have_attribute("aria-pressed", "false")
    stock.stays_quiet()


def test_tabs_do_not_mix(stock: LivePage, server: RunningServer) -> None:
    """Not even a duplicated tab, which has the first one's client id."""
    context: BrowserContext = stock.page.context
    name = stock.page.evaluate("window.name")
    tab = context.new_page()
    tab.add_init_script(f"window.name = {json.dumps(name)}")
    tab.goto(server.url)
    tab.wait_for_function(canvas.LOADED)
    other = LivePage(tab)
    tab.evaluate(STOCK)
    switch_on(stock)
    switch_on(other)
    for one, two in ((RED, BLUE), (BLUE, RED), (RED, BLUE)):
        stock.set_colour(one)
        other.set_colour(two)
        stock.is_coloured(one)
        other.is_coloured(two)
    shown = tab.evaluate("shown")
    for colour in (BLUE, RED):
        stock.set_colour(colour)
        stock.is_coloured(colour)
    assert tab.evaluate("shown") == shown
    assert other.said_wrong == []


@pytest.mark.parametrize("how", ["Live", "Run"])
def test_a_picture_is_saved_with_its_workflow(stock: LivePage, server: RunningServer, how: str) -> None:
    before = set((server.base / "output").iterdir())
    stock.set_colour(BLUE)
    if how == "Live":
        switch_on(stock)
    else:
        stock.page.evaluate("app.queuePrompt(0)")
    stock.is_coloured(BLUE)
    assert set((server.base / "output").iterdir()) == before, "pictures are written when they are saved"
    stock.save.click()
    expect(stock.said).to_contain_text("Saved as InstaFlow_")
    (path,) = set((server.base / "output").iterdir()) - before
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.getpixel((9, 9)) == (0x28, 0x50, 0xDC)
        workflow, prompt = (json.loads(picture.info[name]) for name in ("workflow", "prompt"))
    assert {node["type"] for node in workflow["nodes"]} == {"EmptyImage", "InstaFlowLivePreview"}
    assert {node["class_type"] for node in prompt.values()} == {"EmptyImage", "SaveImage"}


def test_leaving_the_page_ends_what_it_asked(stock: LivePage, server: RunningServer) -> None:
    switch_on(stock)
    stock.set_colour(RED)
    stock.is_coloured(RED)
    stock.page.goto("about:blank")
    stock.page.wait_for_timeout(500)
    queue = server.get_json("/queue")
    assert queue["queue_running"] == queue["queue_pending"] == []
