"""Messages reach the client that asked, other sites get nothing, and no other machine is asked for anything."""

from __future__ import annotations

import asyncio
import json
import os
import re
import struct
import subprocess
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from comfy_client import Graph
from demo import load_workflow
from devhost import ROOT, DevHost
from node_graphs import graph_of
from watched_server import WatchedServer
from workflow import to_prompt

FOR_EVERYBODY = {"status", "feature_flags"}  # the length of the queue; the answer to a client's own message
WEB = ROOT / "web"


def wait_for(work: Coroutine[Any, Any, Any]) -> Any:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, asyncio.wait_for(work, 300)).result()


# --- other clients ---


class Client:
    """A browser, as far as messages go: what it is told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.texts: list[dict[str, Any]] = []
        self.pictures: list[bytes] = []
        self.done = asyncio.Event()

    async def listen(self, session: aiohttp.ClientSession, ready: asyncio.Event) -> None:
        async with session.ws_connect(f"/ws?clientId={self.name}", max_msg_size=0) as socket:
            # As the browser does: newer hosts then send previews with what they belong to.
            await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            ready.set()
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    self.pictures.append(message.data)
                else:
                    self.texts.append(event := json.loads(message.data))
                    if event["type"] in ("execution_success", "execution_error"):
                        self.done.set()

    def prompts(self) -> set[str]:
        """The prompts that it was told of."""
        return {event["data"]["prompt_id"] for event in self.texts if event.get("data", {}).get("prompt_id")}


async def two_at_once(url: str, graphs: list[Graph]) -> tuple[list[Client], list[str]]:
    """Each graph asked for by a client of its own, all listening to the end; a third listens and asks for nothing.

    Returns:
        the clients, and the ids of the prompts.
    """
    clients = [Client(name) for name in ("first", "second", "silent")]
    async with aiohttp.ClientSession(url) as session:
        tasks = []
        for client in clients:
            ready = asyncio.Event()
            tasks.append(asyncio.create_task(client.listen(session, ready)))
            await ready.wait()
        queued = []
        for client, graph in zip(clients, graphs, strict=False):
            async with session.post("/prompt", json={"prompt": graph, "client_id": client.name}) as answer:
                queued.append((await answer.json())["prompt_id"])
        for client in clients[: len(graphs)]:
            await client.done.wait()
        await asyncio.sleep(0.3)  # what comes after the end
        for task in tasks:
            task.cancel()
    return clients, queued


def test_progress_previews_and_reports_reach_only_who_asked(watched: WatchedServer) -> None:
    """A training with its pictures; a report; an error. Who asked for something else hears of none of them."""
    nodes = watched.object_info()
    training = graph_of("InstaFlowReflow", nodes, name="watched", iterations=3, vae=["loader", 2])
    report = graph_of("InstaFlowStraightness", nodes, seed=3)
    failing = graph_of("InstaFlowSaveCheckpoint", nodes, filename_prefix="../theirs")
    for graphs in ([training, report], [report, failing]):
        clients, queued = wait_for(two_at_once(watched.url, graphs))
        for client, prompt in zip(clients, queued, strict=False):
            assert client.prompts() == {prompt}
            of_the_prompt = [event for event in client.texts if event["type"] not in FOR_EVERYBODY]
            assert {"execution_start", "executing"} <= {event["type"] for event in of_the_prompt}
        assert {event["type"] for event in clients[2].texts} <= FOR_EVERYBODY
        assert not clients[2].pictures
        if graphs[0] is training:
            assert any(event["type"] == "progress" for event in clients[0].texts)
            assert clients[0].pictures, "a training shows its samples"
            assert not clients[1].pictures
            assert all(b"\xff\xd8\xff" in picture[:400] for picture in clients[0].pictures), "JPEG"
            assert struct.unpack(">I", clients[0].pictures[0][:4])[0] in (1, 4), "the host's kinds of preview"
        else:
            assert any(event["type"] == "execution_error" for event in clients[1].texts)
            assert "theirs" not in json.dumps([clients[0].texts, clients[2].texts])


# --- other sites ---


@pytest.mark.parametrize(
    "path",
    [
        "/object_info/InstaFlowLoadCheckpoint",
        "/history",
        "/extensions",
        "/workflow_templates",
        "/api/workflow_templates/ComfyUI-InstaFlow/01_one_step_text_to_image.json",
        "/i18n",
    ],
)
@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:1", "http://localhost.evil.example"])
def test_another_site_reads_nothing(watched: WatchedServer, path: str, origin: str) -> None:
    assert wait_for(status(watched.url, "GET", path, {})) == 200, "the page itself does"
    assert wait_for(status(watched.url, "GET", path, {"Origin": origin})) == 403


def test_another_site_queues_nothing_and_hears_nothing(watched: WatchedServer) -> None:
    graph = graph_of("InstaFlowSaveCheckpoint", watched.object_info(), filename_prefix="theirs")
    before = set(watched.get_json("/history"))
    other = {"Origin": "https://evil.example"}
    assert wait_for(status(watched.url, "POST", "/prompt", other, {"prompt": graph})) == 403
    assert wait_for(status(watched.url, "GET", "/ws?clientId=first", other)) == 403
    assert set(watched.get_json("/history")) == before
    assert watched.get_json("/queue") == {"queue_running": [], "queue_pending": []}


async def status(url: str, method: str, path: str, headers: dict[str, str], body: Any = None) -> int:
    async with (
        aiohttp.ClientSession(url) as session,
        session.request(method, path, headers=headers, json=body) as answer,
    ):
        return answer.status


# --- other machines ---


def test_no_other_machine_is_asked_for_anything(watched: WatchedServer) -> None:
    """From the start of the server on: by the import, by a picture, by prompts out of a file of data, a training."""
    nodes = watched.object_info()
    assert watched.run_prompt(to_prompt(load_workflow(), nodes)).images
    (watched.base / "input" / "captions.csv").write_text("text\na red circle\na blue star\n")
    watched.run_prompt(graph_of("InstaFlowTriplets", nodes, name="from-data", prompts="captions.csv"))
    watched.run_prompt(graph_of("InstaFlowReflow", nodes, name="no-network", vae=["loader", 2]))
    watched.run_prompt(graph_of("InstaFlowDistill", nodes, name="no-network-either", loss="huber"))
    assert watched.watch.events("socket.") == []


def test_the_watch_sees_what_asks_another_machine(dev_host: DevHost, watched: WatchedServer, tmp_path: Path) -> None:
    """By the same hook, in the same environment."""
    record = tmp_path / "record"
    ask = "import urllib.request; urllib.request.urlopen('http://example.org')"
    environment = os.environ | watched.watch.environment | {"WATCH_RECORD": str(record)}
    ran = subprocess.run([dev_host.python, "-c", ask], env=environment, capture_output=True, text=True)
    assert "there is no network here" in ran.stderr
    assert json.loads(record.read_text().splitlines()[0]) == ["socket.getaddrinfo", "example.org"]


# --- what is shipped to the browser ---


@pytest.mark.parametrize("path", sorted(WEB.rglob("*.md")), ids=lambda path: path.name)
def test_a_help_page_is_text(path: Path) -> None:
    """Markdown, which a browser shows: no script, no HTML, no address that runs or that is loaded by looking at it."""
    text = re.sub(r"`[^`]*`", "", path.read_text(encoding="utf-8"))
    assert not re.search(r"<\s*[a-zA-Z/!]", text), "an element of HTML"
    assert not re.search(r"(javascript|data|vbscript):", text, re.IGNORECASE)
    assert not re.search(r"!\[[^\]]*\]\(\s*(https?:)?//", text), "a picture of another machine"


UNSAFE = (
    r"\.(inner|outer)HTML\b|insertAdjacentHTML|document\.write|\beval\s*\(|new\s+Function\b|\bsrcdoc\b"
    r"|setAttribute\(\s*['\"]on|createContextualFragment|DOMParser|dangerouslySet|v-html"
    r"|setTimeout\(\s*['\"`]|setInterval\(\s*['\"`]"
)
REMOTE = r"['\"`(]\s*(https?:|wss?:)?//[\w.-]+"


def unsafe_in(script: str) -> list[str]:
    return [found[0] for found in re.finditer(f"{UNSAFE}|{REMOTE}", script)]


def test_no_script_makes_html_of_text_or_loads_from_elsewhere() -> None:
    """Of all that the pack ships for the browser; today it ships none."""
    for path in (path for ending in ("js", "mjs", "ts", "html", "css", "vue") for path in WEB.rglob(f"*.{ending}")):
        assert not unsafe_in(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    "line",
    [
        "node.innerHTML = text",
        "node.insertAdjacentHTML('beforeend', text)",
        "eval(text)",
        "new Function(text)()",
        "import 'https://cdn.example/x.js'",
        "fetch(`//cdn.example/x`)",
        "node.setAttribute('onclick', text)",
        "setTimeout('run()', 1)",
    ],
)
def test_such_a_script_would_be_found(line: str) -> None:
    assert unsafe_in(line)
    assert not unsafe_in("node.textContent = text; // see the help page")
