"""What importing the pack costs a host that has already imported itself.

    python benchmarks/import_cost.py    measured once, in this process; one line of JSON

Importing is once a process, so `measure` starts a process for each time.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))

from devhost import PACK_NAME, located
from host_process import load_pack, open_host


def measure_here() -> dict[str, Any]:
    """Open the host in this process, load the pack, and return what that took.

    Returns:
        `seconds` the host's loader spent on the pack, `imported` the top-level modules it brought in, `nodes` their
        number.
    """
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        nodes = open_host(located(), base)
        modules, classes = set(sys.modules), len(nodes.NODE_CLASS_MAPPINGS)
        started = time.perf_counter()
        load_pack(nodes, base / "custom_nodes" / PACK_NAME)
        seconds = time.perf_counter() - started
    pack = {name for name in sys.modules if PACK_NAME in name}
    return {
        "seconds": seconds,
        "imported": sorted({name.partition(".")[0] for name in set(sys.modules) - modules - pack}),
        "nodes": len(nodes.NODE_CLASS_MAPPINGS) - classes,
    }


def measure(times: int = 1) -> dict[str, Any]:
    """Measure in `times` fresh processes; `seconds` is the median of theirs."""
    command = [sys.executable, __file__]
    printed = [subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout for _ in range(times)]
    runs = [json.loads(text.splitlines()[-1]) for text in printed]
    return {**runs[0], "seconds": statistics.median(run["seconds"] for run in runs)}


if __name__ == "__main__":
    print(json.dumps(measure_here()))
