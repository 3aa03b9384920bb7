"""make table: the built-in models measured; prints a table, writes build/table.json. The host takes no part."""

from __future__ import annotations

import sys
from itertools import chain

from devhost import ROOT

# Last on the path: our nodes/ would shadow a host's module of that name.
sys.path.append(str(ROOT))

from instaflow_core.shapes.table import METHODS, Table, write_table
from instaflow_core.weights.checkpoint import load

RESULTS = ROOT / "build" / "table.json"


def main() -> None:
    """Measure every row, print the table, write the file."""
    with Table() as table:
        rows = (table.rows(method, load(source), steps) for method, (source, steps) in METHODS.items())
        write_table(chain.from_iterable(rows), RESULTS)
    print(RESULTS.relative_to(ROOT))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
