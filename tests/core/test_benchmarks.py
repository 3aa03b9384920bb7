"""What `make bench` does with its rows; what it measures is not tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bench_table
import pytest
import run
from PIL import Image
from rows import Row

FIELDS = {"name", "value", "unit", "baseline", "baseline_value", "ratio", "device"}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """build/bench.json, elsewhere; the parts are two that work and one that fails."""

    def fails() -> list[Row]:
        raise OSError("no room left")

    path = tmp_path / "bench.json"
    monkeypatch.setattr(run, "RESULTS", path)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "machine", lambda: "two cores")
    parts = {
        "a": lambda: [Row("a", 2.0, "s", "b", 4.0)],
        "bad": fails,
        "c": lambda: [Row("c", None, "s", reason="why")],
    }
    monkeypatch.setattr(run, "PARTS", parts)
    return path


def bench(monkeypatch: pytest.MonkeyPatch, *parts: str) -> int:
    monkeypatch.setattr("sys.argv", ["run.py", *parts])
    return run.main()


def test_a_part_that_fails_does_not_lose_the_others(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(monkeypatch) == 1
    a, c = json.loads(results.read_text())
    assert set(a) == FIELDS and (a["ratio"], a["device"]) == (0.5, "two cores")
    assert set(c) == FIELDS | {"reason"} and c["value"] is None
    said = capsys.readouterr()
    assert "no room left" in said.err and "Failed: bad" in said.err and "not run: why" in said.out


def test_parts_by_name_leave_the_rows_of_others(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench(monkeypatch, "c") == 0 and bench(monkeypatch, "a") == 0 and bench(monkeypatch, "a") == 0
    assert [record["name"] for record in json.loads(results.read_text())] == ["c", "a"]


def test_a_part_that_is_not_there_is_said(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench(monkeypatch, "sampling")
    assert "there is no part sampling; there are a, bad, c" in capsys.readouterr().err
    assert not results.exists()


def records() -> list[dict[str, Any]]:
    rows = [
        Row("sampler/builtin", 9.32, "ms", "KSampler", 10.0),
        Row("import", 1234.5, "ms"),
        Row("gpu/full", None, "ms", reason="no CUDA GPU is at hand"),
        *(Row(f"growth/batch-{n}", n * 0.5 + 1, "s", f"{n} times batch 1", n * 1.5) for n in (1, 4, 16)),
        *(Row(f"growth/batch-{n}/memory", n * 0.1, "GB", f"{n} times batch 1", n * 0.1) for n in (1, 4, 16)),
    ]
    return [row.record("two cores") for row in rows]


def test_the_table_is_written_between_its_marks() -> None:
    document = f"before\n{bench_table.START}old\n{bench_table.END}\nafter"
    written = bench_table.with_table(document, records())
    assert written.startswith("before\n") and written.endswith("\nafter") and "old" not in written
    assert "| `sampler/builtin` | 9.32 ms | KSampler: 10 | 0.93 |" in written
    assert "| `import` | 1234 ms |  |  |" in written
    assert "not run: no CUDA GPU is at hand" in written
    assert bench_table.with_table(written, records()) == written


def test_the_document_has_a_place_for_the_table() -> None:
    document = bench_table.DOCUMENT.read_text(encoding="utf-8")
    assert document.count(bench_table.START) == document.count(bench_table.END) == 1


def test_growth_is_drawn_where_it_was_measured(tmp_path: Path) -> None:
    paths = bench_table.draw(records(), tmp_path)
    assert [path.name for path in paths] == ["growth-batch.webp", "growth-batch-memory.webp"]
    for path in paths:
        with Image.open(path) as chart:
            assert chart.getextrema() != ((255, 255),) * 3


def test_a_row_beside_nothing_is_printed() -> None:
    """So little memory that the system counted none of it."""
    assert Row("growth/steps-1/memory", 0.01, "GB", "1 times steps 1", 0.0).line().endswith("1 times steps 1: 0")
