"""What the nodes beside the sampler make of odd inputs that they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from graph_parts import GOOD, Parts
from graph_prompts import as_flow, both, hooked, in_area, masked, one_after_the_other, painting
from torch import Tensor

Changes = Callable[[Parts], dict[str, Any]]

RESULTS: dict[str, tuple[str, Changes, tuple[int, ...]]] = {
    "Invert: odd sides": ("InstaFlowInvert", lambda p: {"latent_image": p.latent(1, 4, 7, 9)}, (1, 4, 7, 9)),
    "Invert: one latent pixel": ("InstaFlowInvert", lambda p: {"latent_image": p.latent(1, 4, 1, 1)}, (1, 4, 1, 1)),
    "Invert: float16": (
        "InstaFlowInvert", lambda p: {"latent_image": {"samples": p.latent()["samples"].half()}}, (1, 4, 8, 8)
    ),
    "Invert: an area": (
        "InstaFlowInvert",
        lambda p: {"positive": in_area(p)},
        (1, 4, 8, 8),
    ),
    "Invert: a prompt under a mask": (
        "InstaFlowInvert", lambda p: {"positive": both(p, p.other, masked(p, p.mask(1, 64, 64)))}, (1, 4, 8, 8)
    ),
    "Invert: a LoRA of the prompt's own": ("InstaFlowInvert", lambda p: {"positive": hooked(p)}, (1, 4, 8, 8)),
    "Invert: prompts for parts of the time": (
        "InstaFlowInvert",
        lambda p: {"positive": one_after_the_other(p), "steps": 2},
        (1, 4, 8, 8),
    ),
    "Invert: a MODEL that paints into pictures": (
        "InstaFlowInvert", lambda p: {"model": as_flow(p, painting(p))}, (1, 4, 8, 8)
    ),
    "Control: one target for three pictures": (
        "InstaFlowControl", lambda p: {"latent_image": p.latent(3, 4, 8, 8)}, (3, 4, 8, 8)
    ),
    "Control: float16": (
        "InstaFlowControl",
        lambda p: {name: {"samples": p.latent()["samples"].half()} for name in ("latent_image", "target")},
        (1, 4, 8, 8),
    ),
    "Control: a target in float64": (
        "InstaFlowControl", lambda p: {"target": {"samples": p.latent()["samples"].double()}}, (1, 4, 8, 8)
    ),
    "Control: a mask of two dimensions": ("InstaFlowControl", lambda p: {"mask": p.mask(64, 64)}, (1, 4, 8, 8)),
    "Control: a mask of four dimensions": ("InstaFlowControl", lambda p: {"mask": p.mask(1, 1, 64, 64)}, (1, 4, 8, 8)),
    "Control: a mask of another size": ("InstaFlowControl", lambda p: {"mask": p.mask(1, 13, 7)}, (1, 4, 8, 8)),
    "Control: a mask of true and false": (
        "InstaFlowControl", lambda p: {"mask": p.mask(1, 64, 64).bool()}, (1, 4, 8, 8)
    ),
    "Control: three masks for two pictures": (
        "InstaFlowControl",
        lambda p: {"latent_image": p.latent(2, 4, 8, 8), "mask": p.mask(3, 64, 64)},
        (2, 4, 8, 8),
    ),
    "Control: no iterations": ("InstaFlowControl", lambda p: {"iterations": 0}, (1, 4, 8, 8)),
    "Control: no noise": ("InstaFlowControl", lambda p: {"noise": p.run("DisableNoise")}, (1, 4, 8, 8)),
    "Control: odd sides": (
        "InstaFlowControl",
        lambda p: {"latent_image": p.latent(1, 4, 5, 9), "target": p.latent(1, 4, 5, 9)},
        (1, 4, 5, 9),
    ),
    "Interpolate Noise: 16 channels": (
        "InstaFlowInterpolateNoise", lambda p: {"latent_image": p.latent(1, 16, 8, 8)}, (2, 16, 8, 8)
    ),
    "Interpolate Noise: a batch, of which only the size counts": (
        "InstaFlowInterpolateNoise", lambda p: {"latent_image": p.latent(5, 4, 3, 3), "frames": 4}, (4, 4, 3, 3)
    ),
    "Interpolate Noise: twice the same seed": (
        "InstaFlowInterpolateNoise", lambda p: {"seed_to": 0, "frames": 3}, (3, 4, 8, 8)
    ),
    "Compare: three pictures": ("InstaFlowCompare", lambda p: {"latent_image": p.latent(3, 4, 8, 8)}, (3, -1, -1, 3)),
    "Compare: odd sides": ("InstaFlowCompare", lambda p: {"latent_image": p.latent(1, 4, 7, 9)}, (1, -1, -1, 3)),
    "Compare: a mask, which it has no use for": (
        "InstaFlowCompare", lambda p: {"latent_image": p.latent(noise_mask=p.mask(1, 64, 64))}, (1, -1, -1, 3)
    ),
    "Compare: a flow as its own teacher": ("InstaFlowCompare", lambda p: {"teacher": p.model}, (1, -1, -1, 3)),
    "Compare: a teacher that predicts v": (
        "InstaFlowCompare",
        lambda p: {"teacher": p.run("ModelSamplingDiscrete", model=p.teacher, sampling="v_prediction", zsnr=True)},
        (1, -1, -1, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("node", "changes", "shape"), RESULTS.values(), ids=RESULTS)
def test_a_result_of_the_right_size(parts: Parts, node: str, changes: Changes, shape: tuple[int, ...]) -> None:
    results = parts.host.run(node, **GOOD[node](parts) | changes(parts))
    found = next(r["samples"] if isinstance(r, dict) else r for r in results if isinstance(r, (dict, Tensor)))
    assert len(found.shape) == len(shape)
    assert all(side in (-1, there) for side, there in zip(shape, found.shape, strict=True))
    assert found.isfinite().all()


@pytest.mark.parametrize("steps", [1, 3, 999, 10000])
@pytest.mark.parametrize("denoise", [0.0, 1e-9, 0.5, 1.0])
def test_levels_of_extreme_numbers_of_steps(parts: Parts, steps: int, denoise: float) -> None:
    sigmas = parts.run("InstaFlowScheduler", model=parts.model, steps=steps, denoise=denoise)
    assert sigmas.shape == ((steps + 1,) if denoise else (0,))
    assert (sigmas.diff() <= 0).all()
    assert sigmas.isfinite().all()
    if denoise:
        assert float(sigmas[0]) == pytest.approx(denoise)
        assert float(sigmas[-1]) == 0.0


def test_straightness_is_that_of_the_size_alone(parts: Parts) -> None:
    """A batch, a mask and what the latents hold change nothing."""
    inputs = GOOD["InstaFlowStraightness"](parts)
    expected = parts.run("InstaFlowStraightness", **inputs)
    odd = parts.latent(3, 4, 8, 8, noise_mask=parts.mask(3, 64, 64), batch_index=[7, 8, 9])
    assert parts.run("InstaFlowStraightness", **inputs | {"latent_image": odd}) == expected
