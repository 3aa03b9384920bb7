"""What a checkpoint says of itself: the metadata keys of this pack, and what other programs' files say of theirs.

Weights do not show what a UNet predicts: those of an InstaFlow have the names and shapes of Stable Diffusion 1.5's.
`said_in_file` and `said_in_folder` find who says it; where nobody does, the reader assumes and writes down that it did.
"""

import math
import re
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bounded_json import Kind, parse
from .diffusers_folder import read_json
from .files import FormatError, Metadata

CONFIG_KEYS = {"unet": "instaflow.unet_config", "text_encoder": "instaflow.text_config", "vae": "instaflow.vae_config"}
ASSUMED_KEY = "instaflow.prediction_assumed"
"""Stands beside `instaflow.prediction` where that is an assumption and not what a source or a person said."""

ZERO_SNR_KEY = "instaflow.zero_terminal_snr"
"""Is "true" where the UNet was trained on a noise schedule rescaled to end in nothing but noise (Lin et al. 2024)."""

RULE_KEY = "instaflow.rule"
"""The row of `rules` that a few-step model is sampled by."""
RULE_ASSUMED_KEY = "instaflow.rule_assumed"
"""Stands beside it where only a name says so."""

RELEASED_LICENCE = "CC-BY-NC-4.0"
"""Of the weights that the authors of InstaFlow have released."""

PREDICTIONS = ("velocity", "epsilon", "v")
"""What a checkpoint's UNet predicts: data minus noise, the noise, or v (Salimans and Ho 2022)."""
NOISE_MINUS_DATA = "noise-minus-data"
"""A velocity with the other sign, as flow-matching trainers outside the paper define it; read as "velocity"."""
SAYABLE = ("epsilon", "v", "velocity", NOISE_MINUS_DATA)
"""What a person may say a source predicts."""

# Words for it in modelspec.prediction_type and in diffusers' schedulers, whose flow_prediction is noise minus data, and
# in PeRFlow's, whose windows are made of noise.
_WORDS = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v",
    "v_prediction": "v",
    "v-prediction": "v",
    "velocity": "velocity",
    "flow_prediction": NOISE_MINUS_DATA,
    "diff_eps": "epsilon",
    "ddim_eps": "epsilon",
    NOISE_MINUS_DATA: NOISE_MINUS_DATA,
}
LARGEST_SIDE = 16384
"""Of pictures, in pixels, that a checkpoint may say it was made for."""
_FLOW_PIPELINES = ("RectifiedFlowPipeline", "InstaFlowPipeline")
# Buffers of a diffusion model's noise schedule, which training code saves along with the weights.
_SCHEDULE_BUFFERS = ("alphas_cumprod", "betas")
# What the released models' repositories are called, the only trace of which of the two a folder is.
_STAGES_BY_NAME = (("2_rectified_flow", "2-rectified-flow"), ("instaflow", "one-step"))


@dataclass(frozen=True)
class Said:
    """What a UNet predicts, one of SAYABLE, and who says so, in words."""

    prediction: str
    by: str


def said_in_file(names: Container[str], metadata: Metadata, name: str) -> Said | None:
    """What a single file says its UNet predicts; None where nothing in it does.

    Args:
        names: of all its tensors.
        name: what messages call the file.

    Raises FormatError where it says something unknown.
    """
    if "instaflow.prediction" in metadata and ASSUMED_KEY not in metadata:
        return Said(metadata["instaflow.prediction"], "instaflow.prediction in the file")
    if "instaflow.prediction" in metadata:
        return None
    if "v_pred" in names:
        return Said("v", "the v_pred marker in the file")
    if "modelspec.prediction_type" in metadata:
        word = metadata["modelspec.prediction_type"]
        return Said(_known(word, f"modelspec.prediction_type of {name}"), "modelspec.prediction_type in the file")
    buffer = next((buffer for buffer in _SCHEDULE_BUFFERS if buffer in names), None)
    return Said("epsilon", f"the noise schedule ({buffer}) in the file") if buffer else None


def said_in_folder(root: Path, metadata: Metadata) -> Said | None:
    """What a diffusers folder says its UNet predicts; None where nothing in it does.

    Args:
        metadata: that of the UNet's file.

    Raises FormatError where it says something unknown.
    """
    said = said_in_file((), metadata, f"{root.name}/unet")
    if said or "instaflow.prediction" in metadata:
        return said
    pipeline = _pipeline(root)
    if pipeline in _FLOW_PIPELINES:
        return Said("velocity", f"model_index.json, which names a {pipeline}")
    scheduler = root / "scheduler" / "scheduler_config.json"
    config = read_json(scheduler) if scheduler.is_file() else None
    if config is not None:
        kind = config.get("_class_name", "")
        if isinstance(kind, str) and kind.startswith("FlowMatch"):
            return Said(NOISE_MINUS_DATA, f"scheduler_config.json, which names a {kind[:100]}")
        if "prediction_type" in config:
            word = config["prediction_type"]
            return Said(_known(word, f"The scheduler of {root.name}"), "prediction_type in scheduler_config.json")
        return Said("epsilon", "scheduler_config.json, where no prediction_type is epsilon")
    if pipeline.startswith("StableDiffusion"):
        return Said("epsilon", f"model_index.json, which names a {pipeline}")
    return None


def zero_snr_in_folder(root: Path) -> bool:
    """Whether a diffusers folder's scheduler says that its noise schedule is rescaled to zero terminal SNR."""
    scheduler = root / "scheduler" / "scheduler_config.json"
    return scheduler.is_file() and bool(read_json(scheduler).get("rescale_betas_zero_snr"))


def described_by_folder(root: Path) -> Metadata:
    """The stage and the licence of a released folder, which says nothing of itself but in its pipeline and name."""
    if _pipeline(root) not in _FLOW_PIPELINES:
        return {}
    described = {"instaflow.license": RELEASED_LICENCE}
    names = " ".join(names_of(root)).lower()
    stage = next((stage for name, stage in _STAGES_BY_NAME if name in names), None)
    return described | ({"instaflow.stage": stage} if stage else {})


def own_metadata(header: Metadata) -> Metadata:
    """The entries of a file's header that say what the model is, without those of other programs."""
    return {key: value for key, value in header.items() if key.startswith(("instaflow.", "modelspec."))}


def json_entry(metadata: Metadata, key: str, kind: type[Kind], name: str) -> Kind:
    """The JSON object or list in an entry of `name`'s metadata, empty where there is no such entry; FormatError where
    it is none."""
    text = metadata.get(key)
    if text is None:
        return kind()
    try:
        return parse(text, kind)
    except ValueError as error:
        kinds = {dict: "a JSON object", list: "a JSON list"}
        raise _damaged(name, key, f"{text[:40]!r}, which {error}", kinds[kind]) from error


def check_metadata(metadata: Metadata, name: str) -> None:
    """Raise FormatError where a value that is read later is not what it should be."""
    prediction = metadata.get("instaflow.prediction", "velocity")
    if prediction not in PREDICTIONS:
        raise _damaged(name, "instaflow.prediction", repr(prediction[:40]), "velocity, epsilon or v")
    size = metadata.get("instaflow.native_size", "512")
    if not re.fullmatch("[0-9]{1,5}", size) or not 8 <= int(size) <= LARGEST_SIDE:
        raise _damaged(
            name, "instaflow.native_size", repr(size[:40]), f"a number from 8 to {LARGEST_SIDE:,}, in pixels"
        )
    guidance = metadata.get("instaflow.guidance", "1")
    try:
        number = float(guidance)
    except ValueError:
        number = math.nan
    if not 0 <= number <= 1000:
        raise _damaged(name, "instaflow.guidance", repr(guidance[:40]), "a number from 0 to 1,000; 1 is none")


def _damaged(name: str, key: str, found: str, expected: str) -> FormatError:
    return FormatError(f"The metadata {key} of {name} is {found}", expected, "Get the file again.")


def _known(word: Any, where: str) -> str:
    if not isinstance(word, str) or word not in _WORDS:
        raise FormatError(
            f"{where} predicts {repr(word)[:60]}",
            "epsilon, v or velocity",
            "Where you know better, say what it predicts with --prediction; else load it with the host's own loader.",
        )
    return _WORDS[word]


def _pipeline(root: Path) -> str:
    index = root / "model_index.json"
    return str(read_json(index).get("_class_name", ""))[:100] if index.is_file() else ""


def names_of(root: Path) -> list[str]:
    """What a folder is called: by the path given, by where a link leads, and by the repository in a hub cache
    (models--OWNER--NAME/snapshots/HASH)."""
    paths = (root.absolute(), root.resolve())
    above = [path.parents[1] for path in paths if path.parent.name == "snapshots"]
    return [path.name for path in (*paths, *above)]
