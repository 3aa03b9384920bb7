"""The models the pack ships: what they say of themselves, and what they draw."""

import json

import pytest

from instaflow_core.checkpoints import BUILT_IN, MODELS, load
from instaflow_core.shapes.captions import sample_captions
from instaflow_core.shapes.evaluate import accuracy, draw_pictures

STAGES = {
    "built-in: shapes": ("one-step", "velocity"),
    "built-in: shapes-2rf": ("2-rectified-flow", "velocity"),
    "built-in: shapes-teacher": ("teacher", "epsilon"),
}


def test_together_they_are_small():
    assert sum(path.stat().st_size for path in MODELS.glob("*.safetensors")) < 30e6


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_model_says_what_it_is_and_how_it_was_made(name: str):
    checkpoint = load(name)
    assert (checkpoint.stage, checkpoint.prediction) == STAGES[name]
    assert checkpoint.native_size == 64
    assert checkpoint.text_encoder
    assert checkpoint.vae
    training = json.loads(checkpoint.metadata["instaflow.training"])
    assert {"seed", "data", "commit", "teacher", "reflow", "distill"} <= set(training)
    assert training["teacher"]["iterations"] > 0


@pytest.mark.parametrize(("held_out", "least"), [(False, 0.90), (True, 0.85)], ids=["seen", "held out"])
def test_one_step_draws_what_the_caption_says(held_out: bool, least: float):
    captions = sample_captions(400, 2024, held_out)
    pictures = draw_pictures(load("built-in: shapes"), captions, seed=1, steps=1, guidance=1.0)
    assert accuracy(pictures, captions) >= least
