"""make table: the built-in models measured; prints a table, writes build/table.json. The host takes no part."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from devhost import ROOT

# Last on the path: our nodes/ would shadow a host's module of that name.
sys.path.append(str(ROOT))

from instaflow_core.atomic import replacing
from instaflow_core.shapes.table import METHODS, Table, header, line
from instaflow_core.weights.checkpoint import load

RESULTS = ROOT / "build" / "table.json"


def main() -> None:
    """Measure every row, print the table, write the file."""
    table, rows = Table(), []
    print(header())
    for method, (source, steps) in METHODS.items():
        for row in table.rows(method, load(source), steps):
            rows.append(asdict(row))
            print(line(row), flush=True)
    with replacing(RESULTS) as temporary:
        temporary.write_text(json.dumps(rows, indent=2) + "\n")
    print(RESULTS.relative_to(ROOT))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
