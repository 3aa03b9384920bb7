"""From the question to the picture: what a prompt takes beside the calls of its models, in a server and in a browser.

python3 scripts/devhost.py benchmarks/prompt_live.py
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))

import aiohttp
import browser
import workflow
from comfy_client import ComfyClient, Graph
from comfy_server import ComfyServer
from devhost import ROOT, located, make_base
from rows import Row

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "diamond")
SAVED, LIVE = "01_one_step_text_to_image", "14_live"
WARM = 5  # prompts before those that count
LIVE_NODE = "InstaFlowLivePreview"


def measure(prompts: int = 60, windows: int = 7) -> list[Row]:
    """Start a server; prompts of workflows 01 and 14 in turn, then workflow 14 playing in a browser.

    Args:
        prompts: of each workflow, every one with another seed and another caption.
        windows: of playing that are counted, five seconds each.
    """
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        make_base(base)
        shutil.copytree(ROOT / "benchmarks" / "model_calls", base / "custom_nodes" / "model_calls")
        with ComfyServer(located(), base) as server:
            info = ComfyClient(server.url).object_info()
            graphs = {name: workflow.to_prompt(read(name), info) for name in (SAVED, LIVE)}
            times = asyncio.run(ask(server.url, graphs, prompts))
            playing = play(server.url, windows)
    return [
        *(
            row
            for name, of in (("prompt/overhead", SAVED), ("prompt/live", LIVE))
            for row in prompt_rows(name, times[of])
        ),
        *browser_rows(playing),
    ]


def read(name: str) -> dict[str, Any]:
    """A shipped workflow, parsed."""
    return dict(json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8")))


def prompt_rows(name: str, times: list[tuple[float, float]]) -> list[Row]:
    """Of (whole, model calls) in milliseconds: the median and the 95th percentile, and what is not the model."""
    whole, calls = ([pair[i] for pair in times] for i in (0, 1))
    calls_median = statistics.median(calls)
    late = statistics.quantiles(whole, n=20)[-1]
    return [
        Row(name, statistics.median(whole), "ms", "its model calls", calls_median),
        Row(f"{name}/p95", late, "ms", "its model calls, median", calls_median),
        Row(f"{name}/around", statistics.median(a - b for a, b in times), "ms"),
    ]


def browser_rows(playing: list[tuple[float, float]]) -> list[Row]:
    """Pictures per second in the page, beside what the model calls of the same pictures would allow; medians."""
    shown, allowed = (statistics.median(pair[i] for pair in playing) for i in (0, 1))
    return [Row("prompt/live/browser", shown, "pictures/s", "the model calls alone", allowed)]


async def ask(url: str, graphs: dict[str, Graph], prompts: int) -> dict[str, list[tuple[float, float]]]:
    """For each graph, milliseconds from the question to the picture at the client, and of those in model calls."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in graphs}
    client = uuid.uuid4().hex
    async with (
        aiohttp.ClientSession(url) as session,
        session.ws_connect(f"/ws?clientId={client}", max_msg_size=0) as socket,
    ):
        for number in range(WARM + prompts):
            for place, (name, graph) in enumerate(graphs.items()):
                colour, other = COLOURS[number % 8], COLOURS[(number + 1 + number // 8 % 7) % 8]
                workflow.set_text(graph, f"a {colour} {SHAPES[number // 3 % 8]} on a {other} background")
                workflow.set_seed(graph, number * len(graphs) + place)  # else the other's picture, from the cache
                await model_calls(session)
                whole = await seconds_to_picture(session, socket, graph, client)
                calls = await model_calls(session)
                if number >= WARM:
                    times[name].append((1000 * whole, 1000 * calls["seconds"]))
    return times


async def seconds_to_picture(
    session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse[Any], graph: Graph, client: str
) -> float:
    """Run `graph` to its end; the seconds from its queuing to its picture, which is a frame or a file to be fetched."""
    began = time.perf_counter()
    async with session.post("/prompt", json={"prompt": graph, "client_id": client}) as answer:
        prompt_id = (await answer.json())["prompt_id"]
    took = None
    async for message in socket:
        if message.type is aiohttp.WSMsgType.BINARY:
            took = time.perf_counter() - began
            continue
        event = json.loads(message.data)
        if event["data"].get("prompt_id") != prompt_id:
            continue
        if event["type"] == "executed":
            async with session.get("/view", params=event["data"]["output"]["images"][0]) as answer:
                await answer.read()
            took = time.perf_counter() - began
        elif event["type"] == "execution_error":
            raise RuntimeError(event["data"]["exception_message"])
        elif event["type"] == "execution_success" and took is not None:
            return took
    raise ConnectionError("the server closed the websocket before there was a picture")


async def model_calls(session: aiohttp.ClientSession) -> dict[str, float]:
    """Seconds in model calls, and pictures, since the last time."""
    async with session.get("/benchmark/model_calls") as answer:
        answer.raise_for_status()
        return dict(await answer.json())


def play(url: str, windows: int) -> list[tuple[float, float]]:
    """Open workflow 14 in a browser, switch it live, play: for each window the pictures shown a second, and how many
    its model calls would have allowed."""
    from playwright.sync_api import sync_playwright

    def calls() -> dict[str, float]:
        with urllib.request.urlopen(f"{url}/benchmark/model_calls") as answer:
            return dict(json.load(answer))

    urllib.request.urlopen(f"{url}/settings/Comfy.TutorialCompleted", data=b"true").close()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser.executable(), args=list(browser.FLAGS))
        page = chromium.new_page(viewport={"width": 1400, "height": 900})
        page.goto(f"{url}/?template={LIVE}&source=ComfyUI-InstaFlow")
        buttons = page.locator(".instaflow-live button")
        buttons.nth(0).click()
        page.evaluate("""() => {
            window.shown = 0;
            const count = ({target}) => shown += Boolean(target.closest?.(".instaflow-live"));
            document.addEventListener("load", count, true);
        }""")
        buttons.nth(1).click()
        page.wait_for_function("shown > 10")
        playing = []
        for _ in range(windows):
            calls()
            began, before = time.perf_counter(), page.evaluate("shown")
            page.wait_for_timeout(5000)
            shown, took, spent = page.evaluate("shown") - before, time.perf_counter() - began, calls()
            playing.append((shown / took, spent["pictures"] / spent["seconds"]))
        chromium.close()
    return playing


if __name__ == "__main__":
    for row in measure():
        print(row.line())
