"""Ten clients of one server at once, each with pictures of its own."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import requests
from comfy_client import Graph

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black", "red", "blue")
CLIENTS = tuple(range(len(COLORS)))


def graph(client: int) -> Graph:
    """A caption and a seed for each client, by two models in turn, one of them through an inversion."""
    steps = 1 + client % 2
    checkpoint = "built-in: shapes-2rf" if client % 2 else "built-in: shapes"
    caption = f"a {COLORS[client]} circle on a {COLORS[(client + 3) % 8]} background"
    sampler = {"model": ["1", 0], "positive": ["2", 0], "steps": steps, "guidance": 1.0, "denoise": 1.0}
    return {
        "1": {"class_type": "InstaFlowLoadCheckpoint", "inputs": {"checkpoint": checkpoint, "weight_dtype": "fp32"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": caption}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": {"class_type": "InstaFlowSampler", "inputs": sampler | {"latent_image": ["3", 0], "seed": 100 + client}},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 0]}},
        "7": {
            "class_type": "InstaFlowInvert",
            "inputs": {"model": ["1", 0], "positive": ["2", 0], "latent_image": ["4", 0], "steps": 1},
        },
        "8": {"class_type": "PreviewAny", "inputs": {"source": ["7", 2]}},
    }


async def one(session: aiohttp.ClientSession, client: int) -> tuple[str, list[dict[str, Any]]]:
    """Queue the client's prompt and listen until it is done: its id, and every message that came with a prompt's id."""
    heard = []
    async with session.ws_connect(f"/ws?clientId=client-{client}", max_msg_size=0) as socket:
        async with session.post("/prompt", json={"prompt": graph(client), "client_id": f"client-{client}"}) as answer:
            body = await answer.json()
            assert answer.status == 200, body
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            if "prompt_id" in event["data"]:
                heard.append(event)
            if event["type"] in ("execution_success", "execution_error"):
                assert event["type"] == "execution_success", event
                return body["prompt_id"], heard
    raise AssertionError("the server closed the websocket")


async def all_at_once(url: str) -> list[tuple[str, list[dict[str, Any]]]]:
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(300)) as session:
        return await asyncio.gather(*(one(session, client) for client in CLIENTS))


def test_ten_clients_get_their_own_pictures_and_messages(server: Any) -> None:
    """Each hears of its own prompt alone, and gets the very picture and text that it gets when nobody else is there."""
    alone = [server.run_prompt(graph(client)) for client in CLIENTS]
    freed = requests.post(f"{server.url}/free", json={"unload_models": True, "free_memory": True}, timeout=30)
    assert freed.ok
    ran = asyncio.run(all_at_once(server.url))
    for client, (prompt_id, heard) in zip(CLIENTS, ran, strict=True):
        assert {event["data"]["prompt_id"] for event in heard} == {prompt_id}
        assert {"execution_start", "executing", "progress", "executed"} <= {event["type"] for event in heard}
        outputs = server.get_json(f"/history/{prompt_id}")[prompt_id]["outputs"]
        (picture,) = outputs["6"]["images"]
        assert requests.get(f"{server.url}/view", params=picture, timeout=30).content == alone[client].images[0]
        assert outputs["8"]["text"] == alone[client].outputs["8"]["text"]
    assert len({result.images[0] for result in alone}) == len(CLIENTS)
