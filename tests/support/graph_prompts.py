"""Prompts and MODELs as other nodes change them, for the tables of graphs."""

from __future__ import annotations

from typing import Any

from graph_parts import Parts
from torch import Tensor


def with_option(conditioning: Any, **options: Any) -> Any:
    return [[states, known | options] for states, known in conditioning]


def without(conditioning: Any, option: str) -> Any:
    return [[states, {k: v for k, v in known.items() if k != option}] for states, known in conditioning]


def in_time(p: Parts, conditioning: Any, start: float, end: float) -> Any:
    return p.run("ConditioningSetTimestepRange", conditioning=conditioning, start=start, end=end)


def both(p: Parts, one: Any, other: Any) -> Any:
    return p.run("ConditioningCombine", conditioning_1=one, conditioning_2=other)


def masked(p: Parts, mask: Tensor, area: str = "default", strength: float = 1.0) -> Any:
    return p.run("ConditioningSetMask", conditioning=p.text, mask=mask, strength=strength, set_cond_area=area)


def hooked(p: Parts) -> Any:
    hooks = p.run("CreateHookLora", lora_name="small.safetensors", strength_model=5.0, strength_clip=0.0)
    return p.run("ConditioningSetProperties", cond_NEW=p.text, strength=1.0, set_cond_area="default", hooks=hooks)


def in_area(p: Parts) -> Any:
    """A prompt, and another in a quarter of the picture."""
    area = {"width": 0.5, "height": 0.5, "x": 0.5, "y": 0.5, "strength": 0.7}
    return both(p, p.other, p.run("ConditioningSetAreaPercentage", conditioning=p.text, **area))


def one_after_the_other(p: Parts) -> Any:
    """A prompt for the first half of the time, another for the second."""
    return both(p, in_time(p, p.text, 0.0, 0.5), in_time(p, p.other, 0.5, 1.0))


def as_flow(p: Parts, model: Any) -> Any:
    return p.run("InstaFlowModelSampling", model=model)


def painting(p: Parts) -> Any:
    model = p.with_more_channels(9)
    model.model.set_inpaint()
    return model
