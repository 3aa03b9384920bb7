"""The models the pack ships: what they say of themselves, and what they draw."""

import json

import pytest
import torch

from instaflow_core.evaluation.drawing import Drawing
from instaflow_core.shapes.captions import sample_captions
from instaflow_core.shapes.evaluate import accuracy, draw_pictures
from instaflow_core.shapes.making.autoencoder import render_pictures
from instaflow_core.shapes.making.intended import meant_pictures
from instaflow_core.weights.checkpoint import BUILT_IN, MODELS, load
from instaflow_core.weights.modules import build_vae

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


@pytest.mark.slow
def test_one_step_draws_a_few_captions_right():
    """32 of them, the same each time. At 95 % right, as below, fewer than 27 are as unlikely as 1 in 200."""
    captions = sample_captions(32, 2024)
    pictures = draw_pictures(Drawing(load("built-in: shapes")), captions, seed=1, steps=1, guidance=1.0)
    assert accuracy(pictures, captions) >= 27 / 32


@pytest.mark.slow
@pytest.mark.parametrize(("held_out", "least"), [(False, 0.95), (True, 0.92)], ids=["seen", "held out"])
def test_one_step_draws_what_the_caption_says(held_out: bool, least: float):
    captions = sample_captions(400, 2024, held_out)
    pictures = draw_pictures(Drawing(load("built-in: shapes")), captions, seed=1, steps=1, guidance=1.0)
    assert accuracy(pictures, captions) >= least


@torch.no_grad()
@pytest.mark.slow
def test_what_latents_were_meant_to_show_is_told_from_them():
    captions, true = sample_captions(24, 8), render_pictures(24, 8)
    vae = build_vae(load("built-in: shapes"))
    rows, told = meant_pictures(vae.decoder, vae.encoder(true / 127.5 - 1), [str(c) for c in captions])
    assert len(rows) >= 22
    assert (told.float() - true[rows].float()).abs().mean() < 3
    # Latents of another caption's picture were meant to show neither.
    rows, told = meant_pictures(
        vae.decoder, vae.encoder(true[:1] / 127.5 - 1), ["a small red ring on a blue background"]
    )
    assert len(rows) == len(told) == 0
