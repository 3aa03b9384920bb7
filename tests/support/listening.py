"""Clients that hear everything a server sends them, and their prompts."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import requests

Message = tuple[str, Any] | bytes
"""Type and data of a JSON message, or a binary one."""


@contextmanager
def listening(url: str, client_id: str) -> Iterator[list[Message]]:
    """A websocket of `client_id`; what has come so far is in the list, which is complete when the context ends."""
    messages: list[Message] = []
    ready, over = threading.Event(), threading.Event()

    async def listen() -> None:
        async with (
            aiohttp.ClientSession(url) as session,
            session.ws_connect(f"/ws?clientId={client_id}", max_msg_size=0) as socket,
        ):
            while True:
                try:
                    message = await socket.receive(timeout=0.1)
                except asyncio.TimeoutError:  # of Python 3.10, which is not TimeoutError
                    if over.is_set():  # and what was on its way has come
                        return
                    continue
                if message.type is aiohttp.WSMsgType.BINARY:
                    messages.append(message.data)
                elif message.type is aiohttp.WSMsgType.TEXT:
                    event = json.loads(message.data)
                    messages.append((event["type"], event["data"]))
                    ready.set()  # its first message comes when the server has put the client on its list
                else:
                    return

    thread = threading.Thread(target=asyncio.run, args=(listen(),))
    thread.start()
    try:
        assert ready.wait(30), "the server did not greet the client"
        yield messages
    finally:
        over.set()
        thread.join()


def run_for(server: Any, prompt: dict[str, Any], client: str | None, seconds: float = 120) -> str:
    """Run a prompt for `client` to its end, within so many seconds; its id."""
    body = {"prompt": prompt} | ({"client_id": client} if client else {})
    answer = requests.post(f"{server.url}/prompt", json=body, timeout=30)
    answer.raise_for_status()
    assert not answer.json()["node_errors"]
    prompt_id = str(answer.json()["prompt_id"])
    deadline = time.monotonic() + seconds
    while prompt_id not in (history := server.get_json(f"/history/{prompt_id}")):
        assert time.monotonic() < deadline, "the prompt did not end"
        time.sleep(0.02)
    assert history[prompt_id]["status"]["status_str"] == "success", history[prompt_id]["status"]
    return prompt_id
