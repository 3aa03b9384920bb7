"""What a node that follows a flow begins with: a MODEL, its prompts and latents that fit it, and guidance."""

from typing import Any

from comfy_api.latest import io

from .host import fitting, model_sampling, rows


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


def conditions(
    model: Any,
    positive: Any,
    latent_image: dict[str, Any],
    guidance: float,
    negative: Any | None,
    any_row: bool = False,
) -> dict[str, Any]:
    """The conditionings the host's guider takes, of inputs with these names that fit each other.

    A negative goes along at any guidance: up to 1 the host leaves it out by itself, unless a patch on the MODEL asks
    for it.

    Args:
        any_row: whether a few-step MODEL of another row will do, too.

    Raises:
        ValueError: the MODEL is no InstaFlow, latents or prompts are not what it takes, or guidance is above 1 for a
            one-step model or without a negative.
    """
    sampling = rows.row_sampling(model) if any_row else model_sampling.instaflow_sampling(model)
    fitting.check_latent("latent_image", latent_image, model)
    prompts = {"positive": positive} if negative is None else {"positive": positive, "negative": negative}
    for name, prompt in prompts.items():
        fitting.check_prompt(name, prompt, model)
    if guidance > 1:
        check_guidance(sampling.stage, guidance)
        _check_negative(guidance, negative)
    return prompts


def check_guidance(stage: str, guidance: float) -> None:
    """Raise ValueError for guidance above 1 of a one-step model."""
    if stage == "one-step" and guidance > 1:
        raise ValueError(
            f"`guidance` is {guidance:g}, but `model` is a one-step InstaFlow: guidance is already distilled into it, "
            "and negative prompts have no effect. Set guidance to 1.0, or load a 2-rectified flow (1.0 to 2.0)."
        )


def _check_negative(guidance: float, negative: Any | None) -> None:
    if negative is None:
        raise ValueError(
            f"`guidance` is {guidance:g}, but nothing is connected to `negative`. Connect a CLIP Text Encode to it "
            "(an empty text will do), or set guidance to 1.0."
        )
