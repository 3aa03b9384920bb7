"""The newest hosts' ModelPatcher of dynamic VRAM on the CPU, where they put their other one in its place.

Real are its clones, its backups of weights and buffers, and how it loads. Of the native library under it, which wants a
GPU, the buffers of pinned memory are left out; weights are not pinned on a CPU. Patches of large weights stay without
effect, since it applies them on the way to a GPU.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest


class _NoBuffer:
    """Pinned memory that holds nothing."""

    size = 0

    def __init__(self, *_: Any) -> None: ...

    def truncate(self, *_: Any, **__: Any) -> None: ...


def use_dynamic_vram(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the host gives each model a dynamic patcher."""
    patcher = importlib.import_module("comfy.model_patcher")
    monkeypatch.setattr(importlib.import_module("comfy_aimdo.host_buffer"), "HostBuffer", _NoBuffer)

    class OnTheCPU(patcher.ModelPatcherDynamic):  # type: ignore[name-defined, misc]
        def __new__(cls, *_: Any, **__: Any) -> Any:
            return object.__new__(cls)

        def partially_unload(self, *_: Any, **__: Any) -> int:
            return int(self.restore_loaded_backups())

    monkeypatch.setattr(patcher, "CoreModelPatcher", OnTheCPU)
