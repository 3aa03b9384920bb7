"""A client of a ComfyUI server: HTTP for prompts and files, the websocket for progress.

It needs only what ComfyUI itself brings, so it runs in any ComfyUI's environment.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp

T = TypeVar("T")

Graph = dict[str, dict[str, Any]]  # a prompt in API format: node id -> {"class_type", "inputs"}


class PromptRefused(Exception):
    """The server found the graph, or a branch of it, invalid. `node_errors` is what it said of each node."""

    def __init__(self, message: str, node_errors: dict[str, Any]) -> None:
        super().__init__(message)
        self.node_errors = node_errors


class PromptFailed(Exception):
    """A node raised while the prompt ran: the text of the red box."""

    def __init__(self, event: dict[str, Any]) -> None:
        super().__init__(f"{event['node_type']} (node {event['node_id']}): {event['exception_message'].strip()}")
        self.node_id: str = event["node_id"]
        self.node_type: str = event["node_type"]
        self.exception_type: str = event["exception_type"]
        self.exception_message: str = event["exception_message"]
        self.traceback: str = "".join(event["traceback"])


@dataclass(frozen=True)
class PromptResult:
    """What a prompt gave.

    Attributes:
        prompt_id: the server's id for it.
        outputs: node id -> what the node showed ({"images": [...]}, {"text": [...]}, ...).
        seconds: from the start of execution to its end, by the server's own clock.
        images: the PNG files of every image output, in the order of node ids.
        progress: the (node id, value, maximum) messages seen on the websocket.
        frames: the JPEG files that InstaFlow Live Preview sent.
    """

    prompt_id: str
    outputs: dict[str, Any]
    seconds: float
    images: list[bytes]
    progress: list[tuple[str, int, int]] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)


class ComfyClient:
    """Talks to the server at `url`; every call opens and closes its own connection."""

    def __init__(self, url: str) -> None:
        self.url = url

    def object_info(self) -> dict[str, Any]:
        """Node class -> its inputs and outputs, as the server describes them."""
        return _wait_for(self._get_json("/object_info"))

    def get_json(self, path: str) -> Any:
        """The JSON answer to GET `path`."""
        return _wait_for(self._get_json(path))

    def run_prompt(self, graph: Graph, timeout: float = 300.0) -> PromptResult:
        """Run a prompt to its end.

        Args:
            graph: the prompt in API format.
            timeout: seconds to wait for its end.

        Raises:
            PromptRefused: the server refused the graph or would have dropped a branch of it.
            PromptFailed: a node raised.
            TimeoutError: it did not end in time.
        """
        return _wait_for(asyncio.wait_for(self._run_prompt(graph), timeout))

    async def _get_json(self, path: str) -> Any:
        async with aiohttp.ClientSession(self.url) as session, session.get(path) as answer:
            answer.raise_for_status()
            return await answer.json()

    async def _run_prompt(self, graph: Graph) -> PromptResult:
        client_id = uuid.uuid4().hex
        async with aiohttp.ClientSession(self.url) as session:
            # Listen first: a short prompt may be over before a later connection stands.
            async with session.ws_connect(f"/ws?clientId={client_id}", max_msg_size=0) as socket:
                prompt_id = await self._queue(session, graph, client_id)
                progress, frames = await _listen(socket, prompt_id)
            entry = await self._history(session, prompt_id)
            outputs = entry["outputs"]
            images = [
                await self._view(session, image)
                for _, output in sorted(outputs.items(), key=lambda item: (len(item[0]), item[0]))  # 9 before 12
                for image in output.get("images", [])
            ]
        times = {name: data["timestamp"] for name, data in entry["status"]["messages"]}
        seconds = (times["execution_success"] - times["execution_start"]) / 1000
        return PromptResult(prompt_id, outputs, seconds, images, progress, frames)

    @staticmethod
    async def _queue(session: aiohttp.ClientSession, graph: Graph, client_id: str) -> str:
        async with session.post("/prompt", json={"prompt": graph, "client_id": client_id}) as answer:
            body = await answer.json()
        if answer.status != 200 or body.get("node_errors"):
            node_errors = body.get("node_errors") or {}
            # A graph with one good branch is accepted; the caller asked for all of it.
            if "prompt_id" in body:
                async with session.post("/queue", json={"delete": [body["prompt_id"]]}):
                    pass
            raise PromptRefused(_describe_refusal(body.get("error"), node_errors), node_errors)
        return str(body["prompt_id"])

    @staticmethod
    async def _history(session: aiohttp.ClientSession, prompt_id: str) -> dict[str, Any]:
        # The last websocket message is sent a moment before the entry is written.
        deadline = time.monotonic() + 10
        while True:
            async with session.get(f"/history/{prompt_id}") as answer:
                body = await answer.json()
            if prompt_id in body:
                return dict(body[prompt_id])
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server has no history of prompt {prompt_id} 10 s after its end.")
            await asyncio.sleep(0.05)

    @staticmethod
    async def _view(session: aiohttp.ClientSession, image: dict[str, str]) -> bytes:
        async with session.get("/view", params=image) as answer:
            answer.raise_for_status()
            return await answer.read()


def _wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end. In a thread of its own: the caller's may have an event loop (a browser driver does)."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def _listen(
    socket: aiohttp.ClientWebSocketResponse[Any], prompt_id: str
) -> tuple[list[tuple[str, int, int]], list[bytes]]:
    """Read messages until `prompt_id` is done; return its progress messages and the frames of live nodes."""
    progress: list[tuple[str, int, int]] = []
    frames: list[bytes] = []
    announced = False
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.TEXT:
            if announced:  # else a sampler's preview
                frames.append(message.data[8:])
            announced = False
            continue
        event = json.loads(message.data)
        data = event.get("data", {})
        if data.get("prompt_id") != prompt_id:
            continue
        match event["type"]:
            case "progress":
                progress.append((str(data["node"]), data["value"], data["max"]))
            case "instaflow.live":
                announced = True
            case "execution_error":
                raise PromptFailed(data)
            case "execution_interrupted":
                raise PromptFailed(data | {"exception_message": "interrupted", "exception_type": "", "traceback": []})
            case "execution_success":
                return progress, frames
    raise ConnectionError("the server closed the websocket before the prompt was done; see its log.")


def _describe_refusal(error: Any, node_errors: dict[str, Any]) -> str:
    """One line of what the server said of a refused graph."""
    parts = [f"{error['message']} {error['details']}".strip()] if isinstance(error, dict) else []
    for node_id, found in node_errors.items():
        parts += [
            f"{found['class_type']} (node {node_id}): {reason['message']}: {reason['details']}"
            for reason in found["errors"]
        ]
    return "the server refused the prompt: " + "; ".join(parts or [str(error)])
