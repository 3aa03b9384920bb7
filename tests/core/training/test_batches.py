"""Batches of a set: text states, times, and parts that make up the whole."""

import math
from typing import Any

import pytest
import torch

from instaflow_core.text import encode_prompts
from instaflow_core.training import batches
from instaflow_core.training.batches import BatchPart, PromptStates, SetBatches, sample_times


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that are encoded."""
    prompts = list[str]()

    def encode(text_encoder: Any, some: list[str]) -> torch.Tensor:
        prompts.extend(some)
        return encode_prompts(text_encoder, some)

    monkeypatch.setattr(batches, "encode_prompts", encode)
    return prompts


def test_the_text_of_a_part_alone_is_encoded(reader, encoder, asked):
    SetBatches(reader, encoder, 6).pairs(0, BatchPart(1, 3))
    assert sorted(asked) == sorted(set(reader.read(range(2, 4)).texts))


def test_text_is_encoded_once_for_each_prompt(encoder, asked):
    states = PromptStates(encoder)
    rows = states(["a", "a", "b"])
    states(["b", "c", "a"])
    assert asked == ["a", "b", "c"]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    torch.testing.assert_close(rows[2], encode_prompts(encoder, ["b"])[0])


def test_no_more_text_states_are_kept_than_there_is_room_for(encoder, monkeypatch):
    monkeypatch.setattr(batches, "_REMEMBERED", 2 * encode_prompts(encoder, ["a"]).nbytes)
    states = PromptStates(encoder)
    assert len(states(["a", "b", "c"])) == 3
    assert list(states._known) == ["b", "c"]


def test_text_states_do_not_depend_on_what_was_encoded_before(encoder):
    """A run that is resumed begins with nothing remembered, and must see the same bits."""
    fresh, used = PromptStates(encoder), PromptStates(encoder)
    used([f"prompt {i}" for i in range(40)])
    assert torch.equal(fresh(["a", "b"]), used(["b", "prompt 3", "a"])[[2, 0]])


def test_parts_of_a_batch_make_up_the_batch(reader, encoder):
    made = SetBatches(reader, encoder, 4)
    whole = made.timed_pairs(5, BatchPart())
    parts = zip(*(made.timed_pairs(5, BatchPart(part, 2)) for part in range(2)), strict=True)
    for tensor, shares in zip(whole, parts, strict=True):
        torch.testing.assert_close(torch.cat(shares), tensor)


@pytest.mark.parametrize(("how", "near_an_end"), [("uniform", 0.2), ("u-shaped", 1 - math.sinh(1.6) / math.sinh(2))])
def test_times_follow_their_density(how, near_an_end):
    """near_an_end: the share of all times below 0.1 or above 0.9, the integral of the density."""
    times = sample_times(20000, torch.Generator().manual_seed(0), how)
    assert 0 <= times.min() <= times.max() <= 1
    for end in (times, 1 - times):
        assert (end < 0.1).float().mean() == pytest.approx(near_an_end / 2, abs=0.01)
