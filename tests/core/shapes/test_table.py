"""The figures of `make table` and `evaluate`."""

import json
import random

import pytest
import torch

from instaflow_core.__main__ import main
from instaflow_core.evaluation.figures import Moments, frechet_distance, moments
from instaflow_core.evaluation.pictures import pixels
from instaflow_core.shapes.captions import sample_captions
from instaflow_core.shapes.features import picture_features
from instaflow_core.shapes.render import render, sample_scene
from instaflow_core.shapes.table import METHODS
from instaflow_core.weights.checkpoint import load


def normal(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_frechet_distance_is_that_of_the_gaussians():
    """In closed form where covariances are diagonal: the sum of (m_a - m_b)^2 + (s_a - s_b)^2."""
    scale, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([1.0, 0.0, -2.0])
    a, b = moments([normal(200_000, 0)]), moments([normal(200_000, 1) * scale + shift])
    wanted = float((shift.square() + (1 - scale).square()).sum())
    assert frechet_distance(a, b) == pytest.approx(wanted, abs=0.05)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b))


@pytest.mark.slow
def test_features_tell_pictures_of_other_things_apart():
    """As many pictures as `make table` takes: other things lie apart, other pictures of the same thing do not."""
    rng = random.Random(0)

    def drawn(shape: str, seed: int) -> Moments:
        captions = [c for c in sample_captions(3000, seed) if c.shape == shape][:200]
        features = picture_features(pixels([render(sample_scene(c, rng)) for c in captions]))
        assert features.shape == (200, 128)
        return moments([features])

    stars, more_stars, others_still = (drawn("star", seed) for seed in (0, 1, 2))
    squares = drawn("square", 3)
    by_chance = frechet_distance(stars, more_stars)
    assert frechet_distance(stars, squares) > 1.5 * by_chance
    assert frechet_distance(stars, others_still) < 1.5 * by_chance


@pytest.mark.slow
def test_evaluate_prints_and_writes_a_row_for_each_number_of_steps(tmp_path, capsys):
    out = tmp_path / "rows.json"
    command = ["evaluate", "--checkpoint", "built-in: shapes-2rf", "--steps", "1", "2", "--count", "4"]
    assert main([*command, "--out", str(out)]) == 0
    rows = json.loads(out.read_text())
    assert [(row["method"], row["steps"]) for row in rows] == [("2-rectified-flow", 1), ("2-rectified-flow", 2)]
    for row in rows:
        assert 0 <= row["accuracy_seen"] <= 1 and 0 <= row["accuracy_heldout"] <= 1
        assert row["frechet"] > 0 and row["straightness"] > 0 and row["ms"] > 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_evaluate_wants_enough_captions(capsys):
    assert main(["evaluate", "--count", "1"]) == 2
    assert "Give 2 or more" in capsys.readouterr().err


def test_every_method_of_the_table_has_its_model():
    found = {method: load(source) for method, (source, _) in METHODS.items()}
    assert {method: (checkpoint.stage, checkpoint.prediction) for method, checkpoint in found.items()} == {
        "teacher": ("teacher", "epsilon"),
        "direct": ("one-step", "velocity"),
        "2rf": ("2-rectified-flow", "velocity"),
        "instaflow": ("one-step", "velocity"),
    }
    direct, ours = found["direct"].unet, found["instaflow"].unet
    assert any(not torch.equal(weight, ours[name]) for name, weight in direct.items()), "the same weights twice"
