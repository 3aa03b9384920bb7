"""make bench: every benchmark on this machine; prints a table, writes build/bench.json.

    python3 scripts/devhost.py benchmarks/run.py                 all parts
    python3 scripts/devhost.py benchmarks/run.py sampler load    these; the rows of others stay as they are

The rows of a part are written when it is done; one that fails is reported, and the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))

import accelerated
import decoder
import gpu
import growth
import import_cost
import node_times
import object_info
import prompt_live
import prompt_time
import torch
import training_speed
import triplets
from comfy_server import has_gpu
from devhost import ROOT, located
from rows import Row

# Last on the path: our nodes/ would shadow a host's module of that name.
sys.path.append(str(ROOT))

from instaflow_core.atomic import replacing

RESULTS = ROOT / "build" / "bench.json"


def machine() -> str:
    """What the numbers were measured on."""
    version = (located().comfyui / "comfyui_version.py").read_text().split('"')[-2]
    device = torch.cuda.get_device_name() if has_gpu() and torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return f"{device}, ComfyUI {version}, torch {torch.__version__}, Python {platform.python_version()}"


def importing() -> list[Row]:
    """Of later starts, and of the first, which compiles the pack's files."""
    first, later = import_cost.measure(times=5)
    return [Row("import", 1000 * later, "ms"), Row("import/first", 1000 * first, "ms")]


def server() -> list[Row]:
    """A server's start, its first prompt and later ones."""
    times = prompt_time.measure()
    return [
        Row("server/start", times["server_start"], "s"),
        Row("prompt/first", times["first_prompt"], "s"),
        Row("prompt/later", times["prompt"], "s"),
    ]


def listing() -> list[Row]:
    """The list of nodes with very many files."""
    found = object_info.measure()
    name = f"object_info/{found['files']}-files"
    return [Row(name, found["later"], "s"), Row(f"{name}/ours", found["pack"], "s")]


PARTS: dict[str, Callable[[], list[Row]]] = {
    "import": importing,
    "server": server,
    "object_info": listing,
    "prompt": prompt_live.measure,
    "sampler": lambda: node_times.measure("sampler"),
    "load": lambda: node_times.measure("load"),
    "accelerate": accelerated.measure,
    "decoder": decoder.measure,
    "train": training_speed.measure,
    "triplets": triplets.measure,
    "growth": growth.measure,
    "gpu": gpu.measure,
}
"""What can be measured, in this order."""


def measured(parts: list[str], device: str) -> list[str]:
    """Measure these parts; print and write the rows of each as they come. The parts that failed."""
    failed = []
    for part in parts:
        try:
            rows = PARTS[part]()
        except Exception:  # the others' minutes are not to be lost for it
            traceback.print_exc()
            failed.append(part)
            continue
        write([row.record(device) for row in rows])
        for row in rows:
            print(row.line(), flush=True)
    return failed


def write(records: list[dict[str, Any]]) -> None:
    """Put these records after those of other names that are there."""
    earlier = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    names = {record["name"] for record in records}
    with replacing(RESULTS) as temporary:
        others = [record for record in earlier if record["name"] not in names]
        temporary.write_text(json.dumps(others + records, indent=2) + "\n")


def main() -> int:
    """Measure, print, write; 1 where a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parts = parser.parse_args().parts
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    device = machine()
    print(device)
    if not parts:
        RESULTS.unlink(missing_ok=True)
    failed = measured(parts or list(PARTS), device)
    if RESULTS.exists():
        print(RESULTS.relative_to(ROOT))
    if failed:
        print(f"Failed: {', '.join(failed)}. What they said is above.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
