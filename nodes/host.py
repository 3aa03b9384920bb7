"""Everything that touches ComfyUI's internals: our checkpoints as the host's own MODEL, CLIP and VAE, and its sampling.

Hosts from 0.3.75 on are supported. What a newer one adds is looked up when it is needed, never at import. The core's
reading of checkpoints is imported when a checkpoint is read: the host imports this file each time it starts.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.cli_args import args
from comfy_api.latest import io
from torch import Tensor

from ..instaflow_core import flow
from ..instaflow_core.solvers import Velocity, time_grid
from .host_configs import check_config, unet_config, vae_config

if TYPE_CHECKING:
    from ..instaflow_core.checkpoints import Checkpoint
    from ..instaflow_core.formats import FormatError

WEIGHT_DTYPES = {
    "default": None,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
"""The choices of `weight_dtype` and the type the UNet's weights are kept in; None leaves it to the host."""

SAMPLERS: list[str] = comfy.samplers.KSampler.SAMPLERS
"""The names of the host's samplers."""


def schema(node_id: str, *, search_aliases: list[str], **fields: Any) -> io.Schema:
    """An `io.Schema` for old and new hosts: search aliases are left out where the host does not know them."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    aliases = {"search_aliases": search_aliases} if "search_aliases" in known else {}
    return io.Schema(node_id=node_id, **aliases, **fields)


# --- The flow as the host's model_sampling ---------------------------------------------------------------------------


class InstaFlowSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """InstaFlow as the host's `model_sampling`: noise levels sigma = 1 - t in [0, 1], the UNet asked at 1000 sigma.

    A host flow model predicts noise minus data; InstaFlow predicts the velocity, data minus noise, so only
    `calculate_denoised` differs from CONST.

    Attributes:
        stage: what the checkpoint says of itself, such as "one-step", or "unknown".
        sigmas: the 1000 levels 1/1000 .. 1 the host's schedulers choose from, float32.
    """

    def __init__(self, stage: str = "unknown") -> None:
        super().__init__()
        self.stage = stage
        self.sigmas = uniform_sigmas(1000).flip(0)[1:]

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Keep the schedule as a plain attribute: a host that saves and restores buffers leaks them to clones."""
        setattr(self, name, tensor)

    def timestep(self, sigma: Tensor) -> Tensor:
        """1000 sigma, as a float: unet_time(1 - sigma) without the rounding of 1 - sigma."""
        return flow.unet_time(0.0) * sigma

    def sigma(self, timestep: float | Tensor) -> float | Tensor:
        return flow.sigma_from_time(flow.time_from_unet(timestep))

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        return flow.denoised_from_velocity(model_input, model_output, sigma)

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        return flow.interpolate(noise, latent_image, flow.time_from_sigma(sigma))


def uniform_sigmas(steps: int) -> Tensor:
    """The exact grid 1 - i / steps, i = 0..steps, as (steps + 1,) float32 from 1.0 down to 0.0.

    Raises:
        ValueError: steps is below 1.
    """
    return torch.as_tensor(flow.sigma_from_time(time_grid(steps)), dtype=torch.float32)


def as_instaflow(model: Any) -> Any:
    """A clone of an SD1.5-shaped MODEL whose UNet's output is taken as InstaFlow's velocity.

    Raises:
        ValueError: the MODEL is of another architecture.
    """
    _check_sd15(model)
    patched = model.clone()
    patched.add_object_patch("model_sampling", InstaFlowSampling())
    return patched


def _check_sd15(model: Any) -> None:
    config = model.model.model_config
    if not isinstance(config, comfy.supported_models.SD15):
        raise ValueError(
            f"This MODEL is a {type(config).__name__}; InstaFlow has the shape of Stable Diffusion 1.5. "
            "Connect a Stable Diffusion 1.5 MODEL that holds InstaFlow's weights."
        )


def instaflow_sampling(model: Any) -> InstaFlowSampling:
    """The flow of an InstaFlow MODEL.

    Raises:
        ValueError: the MODEL is not an InstaFlow.
    """
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, InstaFlowSampling):
        kinds = " + ".join(kind.__name__ for kind in type(sampling).__bases__)
        raise ValueError(
            f"This MODEL is not an InstaFlow: the host samples it as {kinds}. Load an InstaFlow with InstaFlow Load "
            "Checkpoint, or send a MODEL that holds InstaFlow's weights through InstaFlow Model Sampling. "
            "An ordinary diffusion model, such as `built-in: shapes-teacher`, is sampled with KSampler."
        )
    return sampling


# --- Sampling --------------------------------------------------------------------------------------------------------


def host_noise(latent: dict[str, Any], seed: int) -> Tensor:
    """The noise KSampler draws for this latent and seed, leaving torch's own random state as it was."""
    with torch.random.fork_rng(devices=[]):
        return comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))


def check_latent(model: Any, latent: dict[str, Any]) -> None:
    """Raise ValueError unless the latent has the (B, 4, H, W) shape the model takes."""
    shape, channels = tuple(latent["samples"].shape), model.get_model_object("latent_format").latent_channels
    if len(shape) != 4 or shape[1] != channels:
        raise ValueError(
            f"This LATENT has the shape {shape}; InstaFlow takes (batch, {channels}, height / 8, width / 8). "
            "Make it with Empty Latent Image, or with VAE Encode and InstaFlow's own VAE."
        )


def with_samples(latent: dict[str, Any], samples: Tensor) -> dict[str, Any]:
    """The LATENT with other samples; a newer host's note on the scale of an empty latent no longer holds."""
    kept = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio_")}
    return {**kept, "samples": samples}


def sample_euler(
    model: Any,
    conditioning: dict[str, Any],
    guidance: float,
    latent: dict[str, Any],
    noise: Tensor,
    sigmas: Tensor,
    seed: int,
) -> Tensor:
    """The host's Euler sampler, with its previews, interrupt, masks and memory management.

    Args:
        conditioning: {"positive": ...} and, for guidance above 1, {"negative": ...}.
        noise: (B, 4, H, W), N(0, 1).
        sigmas: falling noise levels; none at all returns the latent as it is.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds(conditioning)
    guider.set_cfg(guidance)
    samples = guider.sample(
        noise,
        latent["samples"],
        comfy.samplers.sampler_object("euler"),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return samples.to(comfy.model_management.intermediate_device())


def sample_as_ksampler(
    model: Any, conditioning: dict[str, Any], cfg: float, noise: Tensor, steps: int, sampler: str, seed: int
) -> Tensor:
    """What KSampler makes of this noise (B, 4, H, W) with the scheduler "normal", whose timesteps are even.

    Args:
        conditioning: {"positive": ..., "negative": ...}.
        sampler: one of SAMPLERS.
    """
    return comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        sampler,
        "normal",
        conditioning["positive"],
        conditioning["negative"],
        torch.zeros_like(noise),
        callback=latent_preview.prepare_callback(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )


def with_velocity(model: Any, positive: Any, x: Tensor, work: Callable[[Velocity, Tensor], Any]) -> Any:
    """work(velocity, x), run where the host would run a sampler: with its memory management, patches and ControlNets.

    Args:
        x: (B, 4, H, W) latents as the UNet takes them; `work` gets them on the MODEL's device.
        work: gets the MODEL's flow for this conditioning as velocity(x, t), t in [0, 1) (the host's denoised says
            nothing of a velocity at t = 1). An interrupt is raised out of it.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    runner = _Work(work)
    guider.sample(x, torch.zeros_like(x), runner, uniform_sigmas(1), disable_pbar=True, seed=0)
    return runner.result


class _Work(comfy.samplers.Sampler):
    """A function of the velocity in the place of a sampler. result: what it returned."""

    def __init__(self, work: Callable[[Velocity, Tensor], Any]) -> None:
        self.work = work
        self.result: Any = None

    def sample(
        self, model_wrap: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor, *_: Any
    ) -> Tensor:
        def velocity(x: Tensor, t: float) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            levels = torch.full((len(x),), float(flow.sigma_from_time(t)), device=x.device)
            return flow.velocity_from_denoised(x, model_wrap(x, levels, **extra_args), levels)

        self.result = self.work(velocity, noise)
        return noise


def into_flow(model: Any, samples: Tensor) -> Tensor:
    """A LATENT's samples as the UNet takes them."""
    return model.get_model_object("latent_format").process_in(samples)


def out_of_flow(model: Any, x: Tensor) -> Tensor:
    """What the UNet's latents are in a LATENT, where the host keeps its latents between nodes."""
    return model.get_model_object("latent_format").process_out(x).to(comfy.model_management.intermediate_device())


def progress(total: int) -> Callable[[], None]:
    """A progress bar of the running node: call it once for each of `total` parts of the work."""
    bar = comfy.utils.ProgressBar(total)
    return lambda: bar.update(1)


# --- Checkpoints as host objects -------------------------------------------------------------------------------------


def build_model(checkpoint: Checkpoint, weight_dtype: str, disable_dynamic: bool = False) -> Any:
    """A host MODEL from a checkpoint: a flow where it predicts velocity, an ordinary SD model where it predicts noise.

    Args:
        weight_dtype: a key of WEIGHT_DTYPES.
        disable_dynamic: ask a newer host for a patcher without dynamic VRAM.

    Raises:
        FormatError: the weights do not fill the UNet their configuration describes.
    """
    from ..instaflow_core.checkpoints import described_part
    from ..instaflow_core.formats import table, to_ldm

    weights = to_ldm(checkpoint.unet, table("unet", checkpoint.unet_config), "")
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    config = _SmallSD15(unet_config(checkpoint.unet_config))
    dtype = WEIGHT_DTYPES[weight_dtype] or comfy.model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(weights),
        supported_dtypes=config.supported_inference_dtypes,
        weight_dtype=comfy.utils.weight_dtype(weights),
    )
    manual_cast = comfy.model_management.unet_manual_cast(dtype, load_device, config.supported_inference_dtypes)
    _call(config.set_inference_dtype, dtype, manual_cast, device=load_device)
    flows = checkpoint.prediction == "velocity"
    config.model_kind = comfy.model_base.ModelType.FLOW if flows else comfy.model_base.ModelType.EPS

    model = config.get_model(weights, "").to(offload_device)
    if flows:
        model.model_sampling = InstaFlowSampling(checkpoint.stage)
    _check_keys("UNet", weights, model.diffusion_model)
    patcher = _patcher_class(disable_dynamic)(model, load_device=load_device, offload_device=offload_device)
    assign = patcher.is_dynamic() if hasattr(patcher, "is_dynamic") else False
    _call(model.load_model_weights, weights, "", assign=assign)
    patcher.set_attachments(_METADATA, described_part(checkpoint, "unet"))
    return patcher


def build_clip(checkpoint: Checkpoint, weight_dtype: str, disable_dynamic: bool = False) -> Any:
    """A host CLIP from a checkpoint's text encoder, on the host's own SD1 tokenizer.

    Only "fp32" reaches the text encoder; any other weight_dtype leaves its type to the host.

    Raises:
        FormatError: the checkpoint has no text encoder, or not the one its configuration describes.
    """
    from ..instaflow_core.checkpoints import described_part

    if checkpoint.text_encoder is None or checkpoint.text_config is None:
        raise _without("text encoder")
    check_config("text encoder", checkpoint.text_config)
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
    clip.patcher.set_attachments(_METADATA, described_part(checkpoint, "text_encoder"))
    return clip


def build_vae(checkpoint: Checkpoint, weight_dtype: str) -> Any:
    """A host VAE from a checkpoint's AutoencoderKL or AutoencoderTiny. Only "fp32" reaches it, as in `build_clip`.

    Raises:
        FormatError: the checkpoint has no VAE, or not the one its configuration describes.
    """
    from ..instaflow_core.checkpoints import described_part
    from ..instaflow_core.formats import table, to_ldm

    if checkpoint.vae is None or checkpoint.vae_config is None:
        raise _without("VAE")
    weights = to_ldm(checkpoint.vae, table("vae", checkpoint.vae_config), "")
    if checkpoint.vae_config["_class_name"] == "AutoencoderTiny":
        # Its latents are as the UNet takes them; the host hands a VAE latents divided by SD's scale.
        weights |= {"vae_scale": torch.tensor(flow.LATENT_SCALE), "vae_shift": torch.tensor(0.0)}
    dtype = torch.float32 if weight_dtype == "fp32" else None
    vae = comfy.sd.VAE(sd=dict(weights), config=vae_config(checkpoint.vae_config), dtype=dtype)
    _check_keys("VAE", weights, vae.first_stage_model)
    vae.patcher.set_attachments(_METADATA, described_part(checkpoint, "vae"))
    return vae


def load_model(source: str, weight_dtype: str, disable_dynamic: bool = False) -> Any:
    """Read a checkpoint and build its MODEL. The host calls it again where it needs a fresh copy of the weights."""
    from ..instaflow_core.checkpoints import load

    return _reloadable(build_model(load(source), weight_dtype, disable_dynamic), load_model, source, weight_dtype)


def load_clip_patcher(source: str, weight_dtype: str, disable_dynamic: bool = False) -> Any:
    """The patcher of a checkpoint's CLIP, for a host that needs a fresh copy of its weights."""
    from ..instaflow_core.checkpoints import load

    return build_clip(load(source), weight_dtype, disable_dynamic).patcher


def load_vae_patcher(source: str, weight_dtype: str, disable_dynamic: bool = False) -> Any:
    """The patcher of a checkpoint's VAE, for a host that needs a fresh copy of its weights."""
    from ..instaflow_core.checkpoints import load

    return build_vae(load(source), weight_dtype).patcher


def load_all(source: str, weight_dtype: str) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of a checkpoint.

    Args:
        source: a built-in name, a file or a diffusers folder.

    Raises:
        FormatError: the checkpoint cannot be used, or lacks its text encoder or VAE.
    """
    from ..instaflow_core.checkpoints import load

    checkpoint = load(source)
    clip, vae = build_clip(checkpoint, weight_dtype), build_vae(checkpoint, weight_dtype)
    _reloadable(clip.patcher, load_clip_patcher, source, weight_dtype)
    _reloadable(vae.patcher, load_vae_patcher, source, weight_dtype)
    model = _reloadable(build_model(checkpoint, weight_dtype), load_model, source, weight_dtype)
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
    from ..instaflow_core.formats import FormatError

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
    from ..instaflow_core.formats import FormatError

    return FormatError(
        f"The checkpoint has no {part}",
        "a UNet, a text encoder and a VAE",
        "Load the UNet alone with InstaFlow Load UNet, and CLIP and VAE of Stable Diffusion 1.5 with other loaders.",
    )


def _patcher_class(disable_dynamic: bool) -> Any:
    """What the host wraps a model in; newer hosts decide when they start whether it uses dynamic VRAM."""
    if disable_dynamic:
        return comfy.model_patcher.ModelPatcher
    return getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)


def _reloadable(patcher: Any, loader: Callable[..., Any], source: str, weight_dtype: str) -> Any:
    """Tell the host how to load this patcher's weights once more; LoRA training, hooks and compiling need it."""
    patcher.cached_patcher_init = (loader, (source, weight_dtype))
    return patcher


def _call(function: Callable[..., Any], *args: Any, **newer: Any) -> Any:
    """Call a host function, leaving out the keywords that only newer hosts take."""
    known = inspect.signature(function).parameters
    return function(*args, **{name: value for name, value in newer.items() if name in known})


# --- Merging and saving ----------------------------------------------------------------------------------------------

_METADATA = "instaflow"
"""The attachment of our patchers that says what checkpoint they come from, as a saved one says it; clones keep it."""

_UNET = "diffusion_model."


def merge_delta(model: Any, finetuned: Any, base: Any, strength: float) -> Any:
    """W + strength (W_finetuned - W_base) as a clone of `model` with the host's own weight patches.

    No weight is copied: the host adds them up when it loads the clone, as it does for ModelMergeSubtract and
    ModelMergeAdd. Patches of the three, such as a LoRA's, take part.

    Raises:
        FormatError: the UNets do not have the same tensors.
    """
    from ..instaflow_core.deltas import check_same, combined_licence

    unets = {name: m.model_state_dict(_UNET) for name, m in (("base", base), ("model", model))}
    advice = "All three have to be of the same architecture: an InstaFlow, a finetune, and the model it was made from."
    for name, unet in unets.items():
        check_same(finetuned.model_state_dict(_UNET), unet, ("`finetuned`", f"`{name}`"), advice, dtypes=False)
    difference = finetuned.clone()
    difference.add_patches(base.get_key_patches(_UNET), -1.0, 1.0)
    merged = model.clone()
    merged.add_patches(difference.get_key_patches(_UNET), strength, 1.0)
    metadata = [_metadata(patcher) for patcher in (model, finetuned, base)]
    merged.set_attachments(_METADATA, metadata[0] | combined_licence(*metadata))
    return merged


def save_checkpoint(model: Any, clip: Any, vae: Any, filename_prefix: str, hidden: Any) -> Path:
    """Write MODEL, and CLIP and VAE where they are given, to one file in the host's output folder.

    Args:
        hidden: the running node's `hidden`, for the prompt and the workflow.

    Raises:
        ValueError: as `write_checkpoint`.
    """
    folder, name, counter, *_ = folder_paths.get_save_image_path(filename_prefix, folder_paths.get_output_directory())
    path = Path(folder) / f"{name}_{counter:05}_.safetensors"
    write_checkpoint(path, model, clip, vae, _prompt_metadata(hidden))
    return path


def write_checkpoint(path: Path, model: Any, clip: Any, vae: Any, more: dict[str, str] | None = None) -> None:
    """Write MODEL, and CLIP and VAE where they are given, to a file that InstaFlow Load Checkpoint can read.

    The host bakes all patches in. The file appears when it is whole and has been read back.

    Args:
        more: metadata beside what says what the model is.

    Raises:
        ValueError: they are not parts of an InstaFlow or of a Stable Diffusion 1.5.
    """
    from ..instaflow_core.atomic import replacing
    from ..instaflow_core.deltas import combined_licence
    from ..instaflow_core.sources import read_source

    _check_sd15(model)
    _check_parts(model, clip, vae)
    described = _described_model(model)
    beside = [_metadata(part.patcher) for part in (clip, vae) if part is not None]
    configs = {key: known[key] for known in beside for key in known if key.endswith("_config")}
    metadata = {"format": "pt"} | (more or {}) | configs | described | combined_licence(described, *beside)
    with replacing(path) as temporary:
        comfy.sd.save_checkpoint(str(temporary), model, clip, vae, metadata=metadata)
        read_source(temporary)


def _metadata(patcher: Any) -> dict[str, str]:
    """What is known of a patcher's checkpoint; nothing where another loader made it."""
    return patcher.get_attachment(_METADATA) or {}


def _described_model(model: Any) -> dict[str, str]:
    """The metadata of a MODEL's UNet: that of its checkpoint, as far as it is still sampled in the same way."""
    from ..instaflow_core.checkpoints import Checkpoint, describe
    from ..instaflow_core.configs import infer_unet_config

    known = _metadata(model)
    prediction = _prediction(model)
    if known.get("instaflow.prediction") == prediction:
        return known
    kept = {key: known[key] for key in known if "license" in key or key == "instaflow.native_size"}
    if "instaflow.unet_config" in known:
        config = json.loads(known["instaflow.unet_config"])
    else:
        weights = model.model_state_dict(_UNET)
        config = infer_unet_config({key.removeprefix(_UNET): tuple(w.shape) for key, w in weights.items()}, "ldm")
    return describe(Checkpoint({}, config, metadata=kept | {"instaflow.prediction": prediction}))


def _prediction(model: Any) -> str:
    sampling = model.get_model_object("model_sampling")
    if isinstance(sampling, InstaFlowSampling):
        return "velocity"
    # The host's other predictions are subclasses of this one with a calculation of their own.
    if getattr(type(sampling), "calculate_denoised", None) is comfy.model_sampling.EPS.calculate_denoised:
        return "epsilon"
    kinds = " + ".join(kind.__name__ for kind in type(sampling).__bases__)
    raise ValueError(
        f"This MODEL is sampled as {kinds}, which an InstaFlow checkpoint cannot say. Expected an InstaFlow or a "
        "Stable Diffusion 1.5 that predicts noise. Save it with ComfyUI's own Save Checkpoint."
    )


def _check_parts(model: Any, clip: Any, vae: Any) -> None:
    """Raise ValueError for a CLIP or a VAE that cannot be in one checkpoint with this MODEL."""
    advice = "Connect those the model came with, or Stable Diffusion 1.5's."
    if clip is not None:
        width = model.model.model_config.unet_config["context_dim"]
        weights = clip.cond_stage_model.state_dict()
        tokens = weights.get("clip_l.transformer.text_model.embeddings.token_embedding.weight", torch.empty(0, 0))
        if tokens.shape[1] != width or not all(key.startswith("clip_l.") for key in weights):
            raise ValueError(
                f"This CLIP is a {type(clip.cond_stage_model).__name__} {tokens.shape[1]} wide; the MODEL reads one "
                f"CLIP-L {width} wide. {advice}"
            )
    if vae is not None and vae.latent_channels != model.model.latent_format.latent_channels:
        raise ValueError(
            f"This VAE's latents have {vae.latent_channels} channels; the MODEL's have "
            f"{model.model.latent_format.latent_channels}. {advice}"
        )


def _prompt_metadata(hidden: Any) -> dict[str, str]:
    """What ran, as the host's own nodes save it; nothing under --disable-metadata."""
    if args.disable_metadata or hidden is None:
        return {}
    extra = hidden.extra_pnginfo or {}
    return {"prompt": json.dumps(hidden.prompt), **{key: json.dumps(value) for key, value in extra.items()}}


# --- Where checkpoints lie -------------------------------------------------------------------------------------------


def checkpoint_sources() -> dict[str, str]:
    """Choices of InstaFlowLoadCheckpoint and what each stands for: built-in names, files, diffusers folders."""
    from ..instaflow_core.checkpoints import BUILT_IN

    sources = {name: name for name in BUILT_IN}
    for name in folder_paths.get_filename_list("checkpoints"):
        sources.setdefault(name, folder_paths.get_full_path_or_raise("checkpoints", name))
    for name, path in _diffusers_folders().items():
        sources.setdefault(name, path)
    return sources


def unet_sources() -> dict[str, str]:
    """Choices of InstaFlowLoadUNet: files of models/diffusion_models, and the UNets of models/diffusers."""
    names = folder_paths.get_filename_list("diffusion_models")
    sources = {name: folder_paths.get_full_path_or_raise("diffusion_models", name) for name in names}
    for name, path in _diffusers_folders().items():
        if os.path.isdir(os.path.join(path, "unet")):
            sources.setdefault(f"{name}/unet", os.path.join(path, "unet"))
    return sources


def resolve(name: str, sources: dict[str, str], folders: str) -> str:
    """What a chosen name stands for. Hosts up to 0.3.75 do not check a choice, and prompts come over the network.

    Raises:
        ValueError: no such choice.
    """
    if name not in sources:
        raise ValueError(
            f"There is no checkpoint {name!r}. It was looked for in {folders}. "
            "Put it there, refresh the page (R) and choose it again."
        )
    return sources[name]


def _diffusers_folders() -> dict[str, str]:
    """Diffusers folders under models/diffusers, by their path there: those with a unet/ or a model_index.json."""
    found: dict[str, str] = {}
    for root in folder_paths.get_folder_paths("diffusers"):
        for path, folders, files in os.walk(root, followlinks=True):
            if path != root and ("unet" in folders or "model_index.json" in files):
                found.setdefault(os.path.relpath(path, root).replace(os.sep, "/"), path)
                folders.clear()  # what lies inside belongs to it
    return found
