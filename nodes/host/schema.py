"""Node schemas that old and new hosts take."""

import dataclasses
from typing import Any

from comfy_api.latest import io

_EXAMPLE_PROMPTS = "\n".join(
    [
        "a red circle on a white background",
        "a yellow star on a blue background",
        "a large green heart on a black background",
    ]
)
"""What prompts are like that the built-in models draw."""


def schema(node_id: str, *, search_aliases: list[str], **fields: Any) -> io.Schema:
    """An `io.Schema` for old and new hosts: search aliases are left out where the host does not know them."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    aliases = {"search_aliases": search_aliases} if "search_aliases" in known else {}
    return io.Schema(node_id=node_id, **aliases, **fields)


def report_output(tooltip: str) -> Any:
    """The output of what a node has found, as text."""
    return io.String.Output(display_name="report", tooltip=tooltip)


def prompts_input() -> Any:
    """The input `prompts`, which `training.prompts` reads."""
    return io.String.Input(
        "prompts",
        multiline=True,
        default=_EXAMPLE_PROMPTS,
        tooltip="One prompt a line, used again as often as needed; or the name of a text file in the input folder.",
    )


def seed_input(name: str, tooltip: str, default: int = 0, control: bool | None = True) -> Any:
    """The input of a seed, 0 to 2^64 - 1.

    Args:
        control: whether the browser offers another seed after each run; None leaves it to the browser. False where
            another seed is another run, and queueing again should go on with this one.
    """
    return io.Int.Input(
        name, default=default, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=control, tooltip=tooltip
    )


def size_inputs(whose: str) -> list[Any]:
    """The inputs `width` and `height` of pictures, which may be left to `whose` own."""
    tooltip = f"Of the pictures in pixels; 0: the {whose}'s own."
    return [io.Int.Input(side, default=0, min=0, max=4096, step=8, tooltip=tooltip) for side in ("width", "height")]


def advanced(taken: io.Input) -> io.Input:
    """The same input, folded away by a browser that can: for those who know that they want it."""
    taken.extra_dict["advanced"] = True
    return taken
