"""Checkpoints as the host's own MODEL, CLIP and VAE."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from .compatibility import call_supported
from .configs import check_config, unet_config, vae_config
from .few_step import FewStepSampling
from .model_files import file_states
from .model_sampling import InstaFlowSampling
from .perflow import perflow_of

if TYPE_CHECKING:
    from ...instaflow_core.weights.checkpoint import Checkpoint
    from ...instaflow_core.weights.files import FormatError

_log = logging.getLogger(__name__)

WEIGHT_DTYPES = {
    "default": None,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
"""The choices of `weight_dtype` and the type the UNet's weights are kept in; None leaves it to the host."""

_MODEL_TYPES = {
    "velocity": comfy.model_base.ModelType.FLOW,
    "epsilon": comfy.model_base.ModelType.EPS,
    "v": comfy.model_base.ModelType.V_PREDICTION,
}
"""What the host samples a UNet as, by what it predicts."""

METADATA = "instaflow"
"""The attachment of our patchers that says what checkpoint they come from, as a saved one says it; clones keep it."""


def build_model(checkpoint: Checkpoint, weight_dtype: str, disable_dynamic: bool = False) -> Any:
    """A host MODEL from a checkpoint: a flow where it predicts velocity, else sampled by its row of `rules`, else an
    ordinary model of noise or of v.

    Args:
        weight_dtype: a key of WEIGHT_DTYPES.
        disable_dynamic: ask a newer host for a patcher without dynamic VRAM.

    Raises:
        FormatError: the weights do not fill the UNet their configuration describes.
    """
    from ...instaflow_core.weights.matching import rows_of, to_ldm
    from ...instaflow_core.weights.saving import described_part

    _check_finite(checkpoint, "unet")
    weights = to_ldm(checkpoint.unet, rows_of("unet", checkpoint.unet_config), "")
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    config = _SmallSD15(unet_config(checkpoint.unet_config))
    dtype = WEIGHT_DTYPES[weight_dtype] or comfy.model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights),
        supported_dtypes=config.supported_inference_dtypes,
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    manual_cast = comfy.model_management.unet_manual_cast(dtype, load_device, config.supported_inference_dtypes)
    call_supported(config.set_inference_dtype, dtype, manual_cast, device=load_device)
    config.model_kind = _MODEL_TYPES[checkpoint.prediction]
    if checkpoint.zero_snr:
        config.sampling_settings = config.sampling_settings | {"zsnr": True}

    model = config.get_model(weights, "").to(offload_device)
    if checkpoint.is_flow:
        model.model_sampling = InstaFlowSampling(checkpoint.stage)
    elif checkpoint.rule:
        rule = checkpoint.rule
        model.model_sampling = FewStepSampling(rule, rule.diffusion) if rule.diffusion else perflow_of(rule)
    _check_keys("UNet", weights, model.diffusion_model)
    patcher = _patcher_class(disable_dynamic)(model, load_device=load_device, offload_device=offload_device)
    assign = patcher.is_dynamic() if hasattr(patcher, "is_dynamic") else False
    call_supported(model.load_model_weights, weights, "", assign=assign)
    patcher.set_attachments(METADATA, described_part(checkpoint, "unet"))
    return patcher


def build_clip(checkpoint: Checkpoint, weight_dtype: str, disable_dynamic: bool = False) -> Any:
    """A host CLIP from a checkpoint's text encoder, on the host's own SD1 tokenizer.

    Only "fp32" reaches the text encoder; any other weight_dtype leaves its type to the host.

    Raises:
        FormatError: the checkpoint has no text encoder, or not the one its configuration describes.
    """
    from ...instaflow_core.weights.saving import described_part

    if checkpoint.text_encoder is None or checkpoint.text_config is None:
        raise _without("text encoder")
    check_config("text encoder", checkpoint.text_config)
    _check_finite(checkpoint, "text_encoder")
    width = checkpoint.text_config["hidden_size"]
    encoder = partial(
        comfy.sd1_clip.SDClipModel,
        # Checkpoints of SD1.5's time say 2 here; the tokenizer's end token is the last of its vocabulary.
        textmodel_json_config={**checkpoint.text_config, "eos_token_id": 49407},
        return_projected_pooled=False,
    )
    target = comfy.supported_models_base.ClipTarget(
        partial(comfy.sd1_clip.SD1Tokenizer, tokenizer=partial(comfy.sd1_clip.SDTokenizer, embedding_size=width)),
        partial(comfy.sd1_clip.SD1ClipModel, clip_model=encoder),
    )
    # SD1.5 has no projection; the host's module has one, which would stay uninitialised memory.
    weights = {k: v for k, v in checkpoint.text_encoder.items() if not k.endswith("position_ids")}
    weights["text_projection.weight"] = torch.eye(width)
    arguments: dict[str, Any] = {
        "embedding_directory": folder_paths.get_folder_paths("embeddings"),
        "parameters": comfy.utils.calculate_parameters(weights),
        "model_options": {"dtype": torch.float32} if weight_dtype == "fp32" else {},
    }
    if "state_dict" in inspect.signature(comfy.sd.CLIP).parameters:
        clip = comfy.sd.CLIP(target, state_dict=[weights], disable_dynamic=disable_dynamic, **arguments)
    else:
        clip = comfy.sd.CLIP(target, **arguments)
        clip.load_sd(weights)
    _check_keys("text encoder", weights, clip.cond_stage_model.clip_l.transformer)
    clip.patcher.set_attachments(METADATA, described_part(checkpoint, "text_encoder"))
    return clip


def build_vae(checkpoint: Checkpoint, weight_dtype: str) -> Any:
    """A host VAE from a checkpoint's AutoencoderKL or AutoencoderTiny. Only "fp32" reaches it, as in `build_clip`.

    Raises:
        FormatError: the checkpoint has no VAE, or not the one its configuration describes.
    """
    from ...instaflow_core.weights.layouts import LATENT_SCALE
    from ...instaflow_core.weights.matching import rows_of, to_ldm
    from ...instaflow_core.weights.saving import described_part

    if checkpoint.vae is None or checkpoint.vae_config is None:
        raise _without("VAE")
    _check_finite(checkpoint, "vae")
    weights = to_ldm(checkpoint.vae, rows_of("vae", checkpoint.vae_config), "")
    if checkpoint.vae_config["_class_name"] == "AutoencoderTiny":
        # Its latents are as the UNet takes them; the host hands a VAE latents divided by SD's scale.
        weights |= {"vae_scale": torch.tensor(LATENT_SCALE), "vae_shift": torch.tensor(0.0)}
    dtype = torch.float32 if weight_dtype == "fp32" else None
    vae = comfy.sd.VAE(sd=dict(weights), config=vae_config(checkpoint.vae_config), dtype=dtype)
    _check_keys("VAE", weights, vae.first_stage_model)
    vae.patcher.set_attachments(METADATA, described_part(checkpoint, "vae"))
    return vae


_finite: dict[tuple[Path, str], list[tuple[str, int, int]]] = {}
"""The parts of files and folders that were found finite, and how their files stood then."""


def _check_finite(checkpoint: Checkpoint, part: str) -> None:
    """Raise FormatError where a weight of a part is NaN or infinite.

    Reading them all takes up to a third of a load, so what lies in files that have not changed since is not read for it
    again.
    """
    from ...instaflow_core.weights.files import check_finite

    weights, home = getattr(checkpoint, part), checkpoint.homes.get(part)
    if home is None:
        return check_finite(weights, checkpoint.name)
    state = file_states(home)
    if _finite.get((home, part)) != state:
        check_finite(weights, checkpoint.name)
        _finite[home, part] = state


def predictions() -> tuple[str, ...]:
    """What a user may say that a UNet predicts, instead of what its file says."""
    from ...instaflow_core.weights.metadata import SAYABLE

    return SAYABLE


def rules() -> tuple[str, ...]:
    """The names of the rows that a user may say a model is sampled by."""
    from ...instaflow_core.rules import RULES

    return tuple(RULES)


def _read(source: str, prediction: str | None, rule: str | None) -> Checkpoint:
    """A checkpoint; where nothing in it says what its UNet predicts or what its rule is, the host's log says what was
    assumed."""
    from ...instaflow_core.weights.checkpoint import load

    checkpoint = load(source, prediction, rule)
    if checkpoint.rule_is_assumed and checkpoint.rule:
        _log.warning(
            "InstaFlow: %s is taken for a model of the rule %s, by what it is called. If it is another, say so at the "
            "loader's `rule`, or say at `prediction` what it predicts.",
            os.path.basename(source),
            checkpoint.rule.name,
        )
    if checkpoint.prediction_is_assumed:
        _log.warning(
            "InstaFlow: nothing in %s says what its UNet predicts; %s (data minus noise) is assumed. If it is another, "
            "say so at the loader's `prediction`: an ordinary Stable Diffusion predicts epsilon.",
            os.path.basename(source),
            checkpoint.prediction,
        )
    return checkpoint


def load_model(
    source: str,
    weight_dtype: str,
    prediction: str | None = None,
    rule: str | None = None,
    disable_dynamic: bool = False,
) -> Any:
    """Read a checkpoint and build its MODEL. The host calls it again where it needs a fresh copy of the weights.

    Args:
        prediction: one of `predictions`, whatever the checkpoint says itself; None takes its word.
        rule: one of `rules`; None takes what is found.
    """
    model = build_model(_read(source, prediction, rule), weight_dtype, disable_dynamic)
    return _reloadable(model, load_model, source, weight_dtype, prediction, rule)


def load_clip_patcher(source: str, weight_dtype: str, disable_dynamic: bool = False) -> Any:
    """The patcher of a checkpoint's CLIP, for a host that needs a fresh copy of its weights."""
    from ...instaflow_core.weights.checkpoint import load

    return build_clip(load(source), weight_dtype, disable_dynamic).patcher


def load_vae_patcher(source: str, weight_dtype: str, disable_dynamic: bool = False) -> Any:
    """The patcher of a checkpoint's VAE, for a host that needs a fresh copy of its weights."""
    from ...instaflow_core.weights.checkpoint import load

    return build_vae(load(source), weight_dtype).patcher


def load_all(
    source: str, weight_dtype: str, prediction: str | None = None, rule: str | None = None
) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of a checkpoint.

    Args:
        source: a built-in name, a file or a diffusers folder.
        prediction, rule: as in `load_model`.

    Raises:
        FormatError: the checkpoint cannot be used, or lacks its text encoder or VAE.
    """
    checkpoint = _read(source, prediction, rule)
    for part, words in (("text_encoder", "text encoder"), ("vae", "VAE")):
        if checkpoint.part(part) is None:
            raise _without(words)
    # The largest first, and each let go of before the next: what is read of a file counts as memory while it is mapped.
    model = _reloadable(build_model(checkpoint, weight_dtype), load_model, source, weight_dtype, prediction, rule)
    checkpoint.unet.clear()
    clip = build_clip(checkpoint, weight_dtype)
    _reloadable(clip.patcher, load_clip_patcher, source, weight_dtype)
    checkpoint.text_encoder = None
    vae = build_vae(checkpoint, weight_dtype)
    _reloadable(vae.patcher, load_vae_patcher, source, weight_dtype)
    return model, clip, vae


class _SmallSD15(comfy.supported_models.SD15):
    """Stable Diffusion 1.5's anatomy in any width and depth: the host's own entry names SD1.5's sizes."""

    unet_config: dict[str, Any] = {}  # noqa: RUF012 - the host reads it from the class
    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012
    model_kind = comfy.model_base.ModelType.EPS

    def model_type(self, state_dict: dict[str, Tensor], prefix: str = "") -> comfy.model_base.ModelType:
        return self.model_kind


def _check_keys(part: str, weights: dict[str, Tensor], module: torch.nn.Module) -> None:
    """Raise FormatError unless the weights and the host's module have the same tensors: the host would only log it."""
    from ...instaflow_core.weights.files import FormatError

    ours, hosts = set(weights), set(module.state_dict())
    if ours != hosts:
        example = min(ours ^ hosts)
        raise FormatError(
            f"The {part} has {len(ours - hosts)} tensors the host has no place for and lacks {len(hosts - ours)}, "
            f"such as {example}",
            f"a {part} of Stable Diffusion 1.5's anatomy",
            "Check that the checkpoint's configuration belongs to its weights.",
        )


def _without(part: str) -> FormatError:
    from ...instaflow_core.weights.files import FormatError

    return FormatError(
        f"The checkpoint has no {part}",
        "a UNet, a text encoder and a VAE",
        "Load the UNet alone with InstaFlow Load UNet (a file is to be moved to models/diffusion_models for that, a "
        "folder stays where it is), and CLIP and VAE of Stable Diffusion 1.5 with other loaders.",
    )


def _patcher_class(disable_dynamic: bool) -> Any:
    """What the host wraps a model in; newer hosts decide when they start whether it uses dynamic VRAM."""
    if disable_dynamic:
        return comfy.model_patcher.ModelPatcher
    return vars(comfy.model_patcher).get("CoreModelPatcher", comfy.model_patcher.ModelPatcher)


def _reloadable(patcher: Any, loader: Callable[..., Any], *arguments: Any) -> Any:
    """Tell the host how to load this patcher's weights once more; LoRA training, hooks and compiling need it."""
    patcher.cached_patcher_init = (loader, arguments)
    return patcher
