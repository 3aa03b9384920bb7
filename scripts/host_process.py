"""ComfyUI inside this process, with its own nodes: for node tests and for measuring what the pack's import costs."""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from devhost import DevHost, make_base


def open_host(host: DevHost, base: Path, cpu: bool = True) -> ModuleType:
    """Import the real host, on the CPU or on its GPU, with `base` as its base directory, and load the nodes it ships.

    What main.py does up to the point where custom nodes are loaded. Call it once in a process, before anything else
    has imported a host module.

    Returns:
        the host's `nodes` module.
    """
    make_base(base)
    sys.path.insert(0, str(host.comfyui))
    import comfy.options

    comfy.options.args_parsing = False
    from comfy.cli_args import args

    args.cpu = cpu
    args.base_directory = str(base)
    args.database_url = "sqlite:///:memory:"
    args.disable_api_nodes = True
    # As main.py does, first: `nodes` puts comfy/ in front on sys.path, where `utils` is another module.
    import utils.extra_config  # noqa: F401, I001
    import server

    nodes = importlib.import_module("nodes")  # the host's; the checker would take it for ours
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    server.PromptServer(loop)
    loop.run_until_complete(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    return nodes


def load_pack(nodes: ModuleType, pack: Path) -> None:
    """Load the pack at `pack` (a folder of custom_nodes) through the host's own loader.

    Raises:
        ImportError: the host refused it; its log says why.
    """
    if not asyncio.run(nodes.load_custom_node(str(pack), set(nodes.NODE_CLASS_MAPPINGS))):
        raise ImportError(f"the host could not load the pack at {pack}; the lines above say why.")


def run_node(nodes: ModuleType, node_id: str, **inputs: Any) -> tuple[Any, ...]:
    """Run a node of either API as the executor does, in inference mode; its outputs."""
    import torch

    kind = nodes.NODE_CLASS_MAPPINGS[node_id]
    with torch.inference_mode():
        if hasattr(kind, "define_schema"):
            return tuple(kind.EXECUTE_NORMALIZED(**inputs).result or ())
        return tuple(getattr(kind(), kind.FUNCTION)(**inputs))
