"""Make the README's picture: sixteen captions, each drawn by one evaluation of the built-in model.

python3 scripts/devhost.py scripts/picture.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from instaflow_core.evaluation.drawing import Drawing  # noqa: E402
from instaflow_core.pictures.images import contact_sheet  # noqa: E402
from instaflow_core.shapes.captions import sample_captions  # noqa: E402
from instaflow_core.shapes.evaluate import draw_pictures  # noqa: E402
from instaflow_core.weights.checkpoint import load  # noqa: E402


def main() -> None:
    """Write docs/shapes.jpg."""
    pictures = draw_pictures(Drawing(load("built-in: shapes")), sample_captions(16, 5), seed=5, steps=1, guidance=1.0)
    target = ROOT / "docs" / "shapes.jpg"
    target.parent.mkdir(exist_ok=True)
    contact_sheet([p.resize((96, 96)) for p in pictures], 8).save(target, quality=92)
    print(target)


if __name__ == "__main__":
    main()
