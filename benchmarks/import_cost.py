"""What importing the pack costs a host that has already imported itself.

    python benchmarks/import_cost.py FOLDER    measured once, in this process, the host's base there; one line of JSON

Importing is once a process, so `measure` starts a process for each time.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))

from devhost import PACK_NAME, located
from host_process import load_pack, open_host
from measuring import answer_of


def measure_here(base: Path) -> dict[str, Any]:
    """Open the host in this process on a base directory, load the pack, and return what that took.

    Returns:
        `seconds` the host's loader spent on the pack, `imported` the top-level modules it brought in, `nodes` their
        number.
    """
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


def once(base: Path) -> dict[str, Any]:
    """As `measure_here`, in a process of its own, which keeps under `base` what Python compiles, and finds it there
    the next time: as a host does, also where this process was told to keep nothing."""
    kept = {"PYTHONPYCACHEPREFIX": str(base / "compiled"), "PYTHONDONTWRITEBYTECODE": ""}
    return dict(answer_of(__file__, base, **kept))


def measure(times: int) -> tuple[float, float]:
    """Seconds of the first start after an installation, which compiles the pack, and the median of later ones."""
    with tempfile.TemporaryDirectory() as folder:
        first, *later = [once(Path(folder))["seconds"] for _ in range(1 + times)]
    return first, statistics.median(later)


if __name__ == "__main__":
    print(json.dumps(measure_here(Path(sys.argv[1]))))
