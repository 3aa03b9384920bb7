"""PyTorch as it is built for some machines: without torch.distributed."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import run_each

# Such a build has no functions that begin torch.distributed, and PyTorch's own Python then leaves out all the rest.
WITHOUT_DISTRIBUTED = """
from importlib.machinery import ExtensionFileLoader

load = ExtensionFileLoader.exec_module

def load_less(self, module):
    load(self, module)
    if module.__name__ == "torch._C":
        module._has_distributed = False
        for name in ("_c10d_init", "_rpc_init", "_dist_autograd_init"):
            delattr(module, name)

ExtensionFileLoader.exec_module = load_less
import torch.distributed
assert not torch.distributed.is_available() and not hasattr(torch.distributed, "is_initialized")
"""


@pytest.mark.slow
def test_pictures_and_trainings_are_made_without_torch_distributed(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red star on a blue background\n")
    teacher, on_cpu = "built-in: shapes-teacher", ["--device", "cpu", "--out"]
    making = ["--prompts", "prompts.txt", "--count", "2", "--steps", "1", "--guidance", "1"]
    commands = [
        ["generate", "--prompt", "a red star on a blue background", *on_cpu, "picture.png"],
        ["triplets", "--teacher", teacher, *making, *on_cpu, "set"],
        ["reflow", "--init", teacher, "--triplets", "set", "--iterations", "1", "--batch-size", "2", *on_cpu, "flow"],
    ]
    run_each(commands, tmp_path, before=WITHOUT_DISTRIBUTED)
    assert (tmp_path / "picture.png").exists() and (tmp_path / "flow" / "model_index.json").exists()
