"""Patches on a MODEL's attention, which IP-Adapter and its like are made of, reach InstaFlow's sampling.

Each patch is one whose effect has another name: other text, or a layer whose weights are zero.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from samplers import WAYS
from small_models import small_checkpoint
from torch import Tensor

from instaflow_core.weights.saving import save

every_way = pytest.mark.parametrize("sample", WAYS, ids=lambda way: way.__name__)
Flow = tuple[Any, Any, Any]


def without_values(host: Any, attention: str) -> Any:
    """The same MODEL with `attention`'s value projections zero in every block: that attention adds its bias alone."""
    checkpoint = small_checkpoint("2-rectified-flow", vae="kl", seed=1)
    unet = {k: torch.zeros_like(w) if f"{attention}.to_v" in k else w for k, w in checkpoint.unet.items()}
    path = host.base / "models" / "checkpoints" / f"no_{attention}.safetensors"
    save(dataclasses.replace(checkpoint, unet=unet), path)
    return host.run("InstaFlowLoadCheckpoint", checkpoint=path.name, weight_dtype="fp32")[0]


def encode(host: Any, two_rf: Flow, text: str) -> Any:
    return host.run("CLIPTextEncode", clip=two_rf[1], text=text)[0]


def run(host: Any, sample: Any, model: Any, positive: Any) -> Tensor:
    (empty,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=1)
    return sample(host, model, positive, empty, seed=3, steps=2)


@every_way
def test_attn2_patch(host: Any, two_rf: Flow, sample: Any) -> None:
    """A patch that puts another text's states in the place of the prompt's gives the other text's picture."""
    positive, other = encode(host, two_rf, "a red circle"), encode(host, two_rf, "a blue square")
    states = other[0][0]
    patched = two_rf[0].clone()
    patched.set_model_attn2_patch(lambda query, context, value, options: (query, states, states))
    ours = run(host, sample, patched, positive)
    assert torch.allclose(ours, run(host, sample, two_rf[0], other), rtol=0, atol=1e-4)
    assert (ours - run(host, sample, two_rf[0], positive)).abs().max() > 1e-2


@every_way
def test_attn1_patch(host: Any, two_rf: Flow, sample: Any) -> None:
    """A patch that gives self-attention nothing to read is a model whose self-attention has no values."""
    positive, patched = encode(host, two_rf, "a red circle"), two_rf[0].clone()
    patched.set_model_attn1_patch(lambda query, context, value, options: (query, context, torch.zeros_like(value)))
    ours = run(host, sample, patched, positive)
    assert torch.allclose(ours, run(host, sample, without_values(host, "attn1"), positive), rtol=0, atol=1e-4)
    assert (ours - run(host, sample, two_rf[0], positive)).abs().max() > 1e-2


@every_way
def test_attn2_replace(host: Any, two_rf: Flow, sample: Any) -> None:
    """As IP-Adapter finds them, every block's cross-attention replaced: by nothing, which is a model without values."""
    positive = encode(host, two_rf, "a red circle")
    blocks = cross_attention_blocks(host, two_rf, sample)
    assert {name for name, *_ in blocks} == {"input", "middle", "output"}
    patched = two_rf[0].clone()
    for block in blocks:
        patched.set_model_attn2_replace(lambda query, key, value, options: torch.zeros_like(query), *block)
    ours = run(host, sample, patched, positive)
    assert torch.allclose(ours, run(host, sample, without_values(host, "attn2"), positive), rtol=0, atol=1e-4)
    assert (ours - run(host, sample, two_rf[0], positive)).abs().max() > 1e-2


def cross_attention_blocks(host: Any, two_rf: Flow, sample: Any) -> set[tuple[str, int]]:
    """The (name, number) of every block whose cross-attention runs in a sampling."""
    seen: set[tuple[str, int]] = set()

    def note(query: Tensor, context: Tensor, value: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        seen.add(options["block"][:2])
        return query, context, value

    noting = two_rf[0].clone()
    noting.set_model_attn2_patch(note)
    run(host, sample, noting, encode(host, two_rf, ""))
    return seen
