"""scripts/new_shape.py, the part of docs/one-step-finetunes.md that is no command, smaller."""

from dataclasses import replace
from pathlib import Path

import new_shape
import pytest
import torch

from instaflow_core.shapes.captions import Caption, sample_captions
from instaflow_core.shapes.judge import judge, look
from instaflow_core.shapes.render import OUTLINES, Scene, render
from instaflow_core.weights.checkpoint import load

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OUTLINES, new_shape.NAME, lambda: new_shape.ARROW)


@pytest.mark.parametrize("extent", [0.35, 0.7])
def test_the_judge_tells_the_new_shape_from_the_old_ones(extent: float) -> None:
    for shape in OUTLINES:
        caption = Caption(shape, "white", "blue")
        drawn = render(Scene(caption, extent, 0.5, 0.5))
        seen = look(drawn)
        assert seen is not None and seen.shape == shape
        assert judge(drawn, caption)


def test_the_captions_are_new_and_old_in_turn() -> None:
    said = new_shape.captions(40, 1)
    assert [caption.shape == new_shape.NAME for caption in said] == [True, False] * 20
    assert not any(caption.held_out for caption in said)
    assert all(c.held_out for c in sample_captions(20, 1, held_out=True, shapes=(new_shape.NAME,)))


def test_a_teacher_learns_and_its_pictures_are_counted(tmp_path: Path) -> None:
    learning = replace(new_shape.LEARNING, iterations=2, warmup=1)
    path = new_shape.teach(tmp_path, learning, 64)
    taught, before = load(str(path)).unet, load("built-in: shapes-teacher").unet
    assert any(not torch.equal(weight.float(), before[name].float()) for name, weight in taught.items())
    shares, grid = new_shape.judge(str(path), steps=2, guidance=2.0, count=8)
    assert len(shares) == 4 and all(0 <= share <= 1 for share in shares)
    assert grid.size[0] > grid.size[1]
