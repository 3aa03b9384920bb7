"""A host started to save memory or to compute otherwise draws the same pictures, within its precision."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfy_server import ComfyServer
from devhost import ROOT, DevHost
from PIL import Image
from running_server import RunningServer
from workflow import to_prompt

pytestmark = pytest.mark.slow

# --lowvram and --novram cannot stand beside --cpu; tests/nodes/test_low_vram.py follows their rules on the CPU.
FLAGS = {
    "half": (("--fp16-unet", "--cache-none", "--disable-smart-memory"), "torch.float16, manual cast: torch.float32"),
    "full": (("--force-fp32", "--cpu-vae", "--fp32-text-enc"), "model weight dtype torch.float32, manual cast: None"),
}
# One inverts a picture and moves its noise, the other is a single step.
WORKFLOWS = ("08_invert_and_edit", "01_one_step_text_to_image")


def pictures(server: RunningServer) -> dict[str, np.ndarray]:
    """What the workflows draw, (H, W, 3) in 0..1, by workflow and number."""
    drawn = {}
    for name in WORKFLOWS:
        workflow: dict[str, Any] = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        result = server.run_prompt(to_prompt(workflow, server.object_info()))
        for number, picture in enumerate(result.images):
            pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=np.float64)
            drawn[f"{name} {number}"] = pixels / 255
    return drawn


@pytest.mark.parametrize(("flags", "said"), FLAGS.values(), ids=FLAGS)
def test_the_pictures_are_the_same(
    dev_host: DevHost, server: RunningServer, tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    expected = pictures(server)
    with ComfyServer(dev_host, tmp_path, cpu=True, flags=flags) as process:
        found = pictures(RunningServer(process))
        assert said in process.log.read_text(errors="replace")
    assert list(found) == list(expected)
    for name, picture in expected.items():
        assert -10 * np.log10(np.square(found[name] - picture).mean() + 1e-12) > 25, name
