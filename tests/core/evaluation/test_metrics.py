"""Metrics on columns of numbers."""

from pathlib import Path

from PIL import Image

from instaflow_core.evaluation.columns import Columns
from instaflow_core.evaluation.metrics import Batch, judged_column, share


def test_what_a_judge_has_no_opinion_of_does_not_count(tmp_path: Path) -> None:
    texts, picture = ["yes", "not mine", "no", "yes"], Image.new("RGB", (8, 8))
    column = judged_column("right", lambda _, text: None if text == "not mine" else text == "yes")
    columns = Columns(tmp_path, len(texts), 3)
    for number, indices in columns.batches():
        column.keep(columns, number, Batch(indices, [texts[i] for i in indices], [picture] * len(indices)))
    assert abs(share(columns, column, "").value - 2 / 3) < 1e-9
