"""make bench: every benchmark on this machine; prints a table, writes build/bench.json."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))

import import_cost
import prompt_time
import torch
from comfy_server import has_gpu
from devhost import ROOT, located

# Last on the path: our nodes/ would shadow a host's module of that name.
sys.path.append(str(ROOT))

from instaflow_core.atomic import replacing

RESULTS = ROOT / "build" / "bench.json"


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    version = (located().comfyui / "comfyui_version.py").read_text().split('"')[-2]
    gpu = torch.cuda.get_device_name() if has_gpu() and torch.cuda.is_available() else None
    return {
        "comfyui": version,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "gpu": gpu,
    }


def main() -> None:
    """Measure, print, write."""
    cost = import_cost.measure(times=5)
    times = prompt_time.measure()
    results = {"machine": machine(), "import_cost": cost, "prompt_time": times}
    rows = [
        ("import of the pack, beyond the host's own", f"{1000 * cost['seconds']:.0f} ms"),
        ("server start, until it answers", f"{times['server_start']:.1f} s"),
        ("first prompt of workflow 01, with loading", f"{times['first_prompt']:.2f} s"),
        ("later prompts of workflow 01, median", f"{times['prompt']:.3f} s"),
    ]
    print(" · ".join(f"{name} {value}" for name, value in results["machine"].items()))
    for name, value in rows:
        print(f"{name:45} {value:>10}")
    with replacing(RESULTS) as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n")
    print(RESULTS.relative_to(ROOT))


if __name__ == "__main__":
    main()
