"""The real host inside the test process, with the pack loaded as the host loads it: fixtures."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from devhost import PACK_NAME, DevHost
from host_process import load_pack, open_host, run_node
from small_models import install

Loaded = tuple[Any, Any, Any]
"""MODEL, CLIP and VAE of a checkpoint."""


@dataclass(frozen=True)
class OpenHost:
    """The host in this process.

    Attributes:
        base: its base directory; checkpoints go under `base / "models" / ...`.
        nodes: its `nodes` module.
        pack_path: where it finds the pack.
    """

    base: Path
    nodes: ModuleType
    pack_path: Path

    def node(self, node_id: str) -> Any:
        """The class the host has registered under `node_id`."""
        return self.nodes.NODE_CLASS_MAPPINGS[node_id]

    def run(self, node_id: str, **inputs: Any) -> tuple[Any, ...]:
        """As `run_node`."""
        return run_node(self.nodes, node_id, **inputs)


def _tell_all_progress() -> None:
    """Newer hosts leave out what comes soon after other progress, which is what tests press Cancel at."""
    import comfy.utils

    for limit in ("PROGRESS_THROTTLE_MIN_INTERVAL", "PROGRESS_THROTTLE_MIN_PERCENT"):
        if limit in vars(comfy.utils):
            setattr(comfy.utils, limit, 0)


@pytest.fixture(scope="session")
def host(dev_host: DevHost, tmp_path_factory: pytest.TempPathFactory) -> OpenHost:
    """The host with its own nodes and the pack's."""
    base = tmp_path_factory.mktemp("host")
    nodes = open_host(dev_host, base)
    _tell_all_progress()
    pack_path = base / "custom_nodes" / PACK_NAME
    load_pack(nodes, pack_path)
    return OpenHost(base, nodes, pack_path)


@pytest.fixture(scope="session")
def pack(host: OpenHost) -> ModuleType:
    """The pack's root package as the host has imported it: `pack.nodes`, `pack.instaflow_core` are its parts."""
    return sys.modules[str(host.pack_path).replace(".", "_x_")]


@pytest.fixture(scope="session")
def models(host: OpenHost) -> Path:
    """The host's models folder, with the small random checkpoints of `small_models.install` in it."""
    install(host.base / "models")
    return host.base / "models"


@pytest.fixture
def no_room(host: OpenHost) -> Iterator[None]:
    """The host's own rules for a GPU without room, which it would not follow on a CPU."""
    import comfy.model_management as management

    management.unload_all_models()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(management, "vram_state", management.VRAMState.NO_VRAM)
        patch.setattr(management, "is_device_cpu", lambda device: False)
        yield
        management.unload_all_models()


def load(host: OpenHost, checkpoint: str) -> Loaded:
    return host.run("InstaFlowLoadCheckpoint", checkpoint=checkpoint, weight_dtype="fp32")


@pytest.fixture(scope="session")
def one_step(host: OpenHost, models: Path) -> Loaded:
    """A random one-step InstaFlow, everything in fp32. Those who change it work on a clone."""
    return load(host, "one-step.safetensors")


@pytest.fixture(scope="session")
def two_rf(host: OpenHost, models: Path) -> Loaded:
    """A random 2-rectified flow with an AutoencoderKL."""
    return load(host, "two-rf.safetensors")


@pytest.fixture(scope="session")
def teacher(host: OpenHost, models: Path) -> Loaded:
    """A random diffusion model, which predicts noise."""
    return load(host, "teacher.safetensors")


@pytest.fixture(scope="session")
def shapes(host: OpenHost) -> Loaded:
    """The built-in one-step model, which has learned something."""
    return load(host, "built-in: shapes")
