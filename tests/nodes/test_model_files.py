"""What the lists of models ask of the disk: counted, since a clock tells of the machine."""

from __future__ import annotations

import builtins
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def asked(function: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a function asks the file system for something."""
    calls = Counter[str]()
    with monkeypatch.context() as patched:
        for module, names in ((os, ("stat", "lstat", "scandir", "listdir", "readlink")), (builtins, ("open",))):
            for name in names:
                known = getattr(module, name)

                def counted(*given: Any, known: Any = known, name: str = name, **more: Any) -> Any:
                    calls[name] += 1
                    return known(*given, **more)

                patched.setattr(module, name, counted)
        function()
    return calls.total()


def fill(models: Path, pipelines: int, files: int) -> None:
    for number in range(pipelines):
        for folder in (f"diffusers/of-{pipelines}/pipeline-{number}/unet", f"checkpoints/of-{pipelines}/{number}"):
            (models / folder).mkdir(parents=True, exist_ok=True)
            for name in range(files):
                (models / folder / f"{name}.safetensors").touch()


@pytest.mark.parametrize("node", ["InstaFlowLoadCheckpoint", "InstaFlowLoadUNet"])
def test_a_list_asks_for_folders_and_not_for_files(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, node: str
) -> None:
    """From the second time on, as the host keeps its own lists: so fifty thousand files in the same folders cost no
    question more than a few."""
    import folder_paths

    def listed() -> list[str]:
        return host.node(node).define_schema().inputs[0].options

    def questions(pipelines: int, files: int) -> int:
        fill(tmp_path, pipelines, files)
        assert f"of-{pipelines}/pipeline-0" in " ".join(listed())
        return asked(listed, monkeypatch)

    for kind in ("checkpoints", "diffusers"):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path / kind)], {".safetensors"}))
        monkeypatch.delitem(folder_paths.filename_list_cache, kind, raising=False)
    nothing = questions(1, 1)
    few = questions(20, 1)
    assert questions(20, 100) == few
    a_pipeline = (few - nothing) / 20
    assert a_pipeline < 4 * len(tmp_path.parts), "a folder is asked for its way from the root a few times"
