"""Prompt after prompt with changing models through the host's own executor: what is alive does not become more.

benchmarks/long_run.py runs the same prompts by the hundred in a real server.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from long_run import PERIOD, graph

PYTHONS_OWN = ("weakref.ReferenceType", "builtins.builtin_function_or_method")
"""What the caches of abstract base classes consist of, which grow when a class is first asked about."""
SPARE = 10
"""Objects of other kinds that may have come, such as those that count them."""


@pytest.fixture(scope="module")
def execute(host: Any) -> Callable[[int], None]:
    """Runs the prompt of a number, as the server's thread does."""
    execution = importlib.import_module("execution")
    server = importlib.import_module("server").PromptServer.instance
    numbers = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
    executor = execution.PromptExecutor(server, cache_type=execution.CacheType.CLASSIC, cache_args=numbers)

    def execute_(number: int) -> None:
        prompt = graph(number)
        shown = [name for name, node in prompt.items() if node["class_type"] == "PreviewImage"]
        executor.execute(prompt, f"prompt-{number}", {}, shown)
        assert executor.success, executor.status_messages[-1]
        server.loop.run_until_complete(asyncio.sleep(0))  # hands the messages on, which nobody fetches here
        while not server.messages.empty():
            server.messages.get_nowait()

    return execute_


def alive() -> tuple[Counter[str], int]:
    """The objects there are, by their class's name, and the bytes of all tensors."""
    gc.collect()
    objects = gc.get_objects()
    size = sum(x.nbytes for x in objects if type(x) in (torch.Tensor, torch.nn.Parameter))
    return Counter(f"{type(x).__module__}.{type(x).__qualname__}" for x in objects), size


def test_prompts_with_changing_models_do_not_grow(execute: Callable[[int], None]) -> None:
    for number in range(2 * PERIOD):
        execute(number)
    objects, size = alive()
    for number in range(2 * PERIOD, 4 * PERIOD):
        execute(number)
    objects_after, size_after = alive()
    more = objects_after - objects
    for name in PYTHONS_OWN:
        more.pop(name, None)
    assert size_after == size
    assert not [name for name in more if name.startswith(("comfy", "torch", "/"))]
    assert more.total() <= SPARE, more.most_common(10)
