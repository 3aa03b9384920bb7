"""Numbers and choices that a link brings to a node: the host looks only at those that are typed in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from graph_parts import GOOD, Parts, check_refused

NUMBERS = {
    "InstaFlowMergeDelta": "strength",
    "InstaFlowPeRFlow": "steps windows",
    "InstaFlowSampler": "seed steps guidance denoise",
    "InstaFlowScheduler": "steps denoise",
    "InstaFlowSeedNoise": "seed",
    "InstaFlowInterpolateNoise": "seed_from seed_to frames",
    "InstaFlowInvert": "steps guidance",
    "InstaFlowControl": "iterations learning_rate steps guidance",
    "InstaFlowStraightness": "seed samples steps guidance",
    "InstaFlowCompare": "seed teacher_steps teacher_guidance steps guidance more_steps more_guidance",
    "InstaFlowEvaluate": "count steps guidance seed width height teacher_steps teacher_guidance",
    "InstaFlowTriplets": "count steps guidance width height batch_size seed empty_share",
    "InstaFlowReflow": "iterations batch_size learning_rate ema seed warmup rank evaluate_every",
    "InstaFlowDistill": "iterations batch_size learning_rate ema seed on_policy warmup rank evaluate_every",
}
"""Every number of every node."""

CHOICES = {
    "InstaFlowLoadCheckpoint": "checkpoint weight_dtype prediction rule",
    "InstaFlowLoadUNet": "unet_name weight_dtype prediction rule",
    "InstaFlowPeRFlow": "prediction",
    "InstaFlowAccelerate": "mode decoder",
    "InstaFlowSeedNoise": "draw",
    "InstaFlowCompare": "teacher_sampler",
    "InstaFlowEvaluate": "networks",
    "InstaFlowLoadTriplets": "name",
    "InstaFlowReflow": "method times schedule precision",
    "InstaFlowDistill": "loss method schedule precision",
}
"""Every list of every node."""

TEXTS = {
    "InstaFlowSaveCheckpoint": "filename_prefix",
    "InstaFlowEvaluate": "prompts",
    "InstaFlowTriplets": "prompts name",
    "InstaFlowReflow": "name",
    "InstaFlowDistill": "name",
}

ODD = {
    "one below its least": lambda said: said.min - 1,
    "one above its most": lambda said: said.max + 1,
    "minus infinity": lambda said: float("-inf"),
    "not a number": lambda said: float("nan"),
    "a number as text": lambda said: "1",
}
ODD_IN_WHOLE_NUMBERS = {
    "a fraction": lambda said: said.min + 0.5,
    "a whole number that is written as a fraction": lambda said: float(said.min),
}


def of_every(inputs: dict[str, str]) -> Iterator[tuple[str, str]]:
    for node, names in inputs.items():
        for name in names.split():
            yield node, name


def said_of(parts: Parts, node: str, name: str) -> Any:
    return next(said for said in parts.host.node(node).define_schema().inputs if said.id == name)


def test_the_tables_have_every_node(pack: Any) -> None:
    assert list(GOOD) == [node.define_schema().node_id for node in pack.nodes.NODE_CLASS_MAPPINGS.values()]


@pytest.mark.parametrize("kinds", [(NUMBERS, "INT", "FLOAT"), (CHOICES, "COMBO"), (TEXTS, "STRING")])
def test_the_tables_have_every_input(parts: Parts, kinds: tuple[Any, ...]) -> None:
    table, *types = kinds
    for node in GOOD:
        inputs = parts.host.node(node).define_schema().inputs
        assert [said.id for said in inputs if said.get_io_type() in types] == table.get(node, "").split(), node


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize(("node", "name"), of_every(NUMBERS))
def test_a_number_that_is_none_of_its_range(parts: Parts, node: str, name: str, odd: str) -> None:
    value = ODD[odd](said_of(parts, node, name))
    check_refused(parts, node, {name: value}, name, f"`{name}` is {value!r}; expected")


@pytest.mark.parametrize("odd", ODD_IN_WHOLE_NUMBERS)
@pytest.mark.parametrize(("node", "name"), [("InstaFlowSampler", "steps"), ("InstaFlowTriplets", "width")])
def test_a_number_that_is_not_whole(parts: Parts, node: str, name: str, odd: str) -> None:
    value = ODD_IN_WHOLE_NUMBERS[odd](said_of(parts, node, name))
    check_refused(parts, node, {name: value}, name, f"`{name}` is {value!r}; expected a whole number from")


@pytest.mark.parametrize("name", ["width", "height"])
def test_pixels_that_are_no_multiple_of_8(parts: Parts, name: str) -> None:
    check_refused(parts, "InstaFlowTriplets", {name: 68}, name, f"`{name}` is 68; expected a whole number from")


@pytest.mark.parametrize("word", ["magic", "", "../" * 9 + "etc/passwd"])
@pytest.mark.parametrize(("node", "name"), of_every(CHOICES))
def test_a_word_that_is_no_choice(parts: Parts, node: str, name: str, word: str) -> None:
    check_refused(parts, node, {name: word}, "checkpoint|set|" + name, repr(word))


@pytest.mark.parametrize(("node", "name"), of_every(CHOICES))
def test_a_number_in_place_of_a_choice(parts: Parts, node: str, name: str) -> None:
    of_files = said_of(parts, node, name).default is None
    check_refused(parts, node, {name: 1}, name, "is a int; expected a text" if of_files else "1; expected one of")


@pytest.mark.parametrize("value", [None, 1, ["a"]], ids=repr)
@pytest.mark.parametrize(("node", "name"), of_every(TEXTS))
def test_what_is_no_text(parts: Parts, node: str, name: str, value: Any) -> None:
    check_refused(parts, node, {name: value}, name, f"`{name}` is a {type(value).__name__}; expected a text")
