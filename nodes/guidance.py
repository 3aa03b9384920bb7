"""Guidance and negative prompts as nodes take them."""

from typing import Any

from comfy_api.latest import io


def guidance_inputs(why: str) -> list[Any]:
    """Optional inputs `guidance` and `negative`, for a node whose paths may be guided. why: what guidance does here."""
    return [
        io.Float.Input(
            "guidance",
            optional=True,
            default=1.0,
            min=0.0,
            max=30.0,
            step=0.1,
            round=0.01,
            tooltip=f"{why} Acts above 1 only. 1.0 for InstaFlow, 1.0 to 2.0 for a 2-rectified flow.",
        ),
        io.Conditioning.Input(
            "negative", optional=True, tooltip="What the guidance pushes away from. Needed for guidance above 1."
        ),
    ]


def conditions(stage: str, guidance: float, positive: Any, negative: Any | None) -> dict[str, Any]:
    """The conditionings the host's guider takes.

    A negative goes along at any guidance: up to 1 the host leaves it out by itself, unless a patch on the MODEL asks
    for it.

    Raises:
        ValueError: guidance above 1 for a one-step model, or without a negative.
    """
    if guidance > 1:
        _check_guidance(stage, guidance, negative)
    return {"positive": positive} if negative is None else {"positive": positive, "negative": negative}


def _check_guidance(stage: str, guidance: float, negative: Any | None) -> None:
    if stage == "one-step":
        raise ValueError(
            f"Guidance is {guidance:g}, but this MODEL is a one-step InstaFlow: guidance is already distilled into it, "
            "and negative prompts have no effect. Set guidance to 1.0, or load a 2-rectified flow (1.0 to 2.0)."
        )
    if negative is None:
        raise ValueError(
            f"Guidance is {guidance:g}, but nothing is connected to `negative`. Connect a CLIP Text Encode to it "
            "(an empty text will do), or set guidance to 1.0."
        )
