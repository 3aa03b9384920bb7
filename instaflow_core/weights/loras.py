"""LoRA files of diffusers and PEFT, brought under the names that ComfyUI's LoRA loader reads.

For a UNet of Stable Diffusion 1.5's shape the loader knows kohya's names and diffusers' oldest ones; what diffusers and
PEFT write today it leaves out, with a line in its log. The numbers stay as they are.
"""

import re
from pathlib import Path
from typing import Any

import torch

from .diffusers_folder import read_json
from .files import FormatError, Metadata, Weights, check_finite, new_file, read_weights, write_weights
from .metadata import json_entry

# What a name begins with, and kohya's beginning for the model it belongs to.
_STARTS = (
    (r"(?:base_model\.model\.)?(?:unet\.)?(?=down_blocks|up_blocks|mid_block|conv_in|conv_out|time_embedding)", "unet"),
    (r"(?:base_model\.model\.)?(?:text_encoder\.)?(?=text_model\.)", "te"),
    # transformers leaves `text_model.` out from version 5 on; kohya's names have it.
    (r"(?:base_model\.model\.)?(?:text_encoder\.)?(?=encoder\.layers\.)", "te_text_model"),
)
# How names end: PEFT's (its adapter's name may stand in them), diffusers' of three ages.
_ENDS = (
    (r"\.lora_A(\.\w+)?\.weight|[._]lora(_linear_layer)?\.down\.weight", "lora_down.weight"),
    (r"\.lora_B(\.\w+)?\.weight|[._]lora(_linear_layer)?\.up\.weight", "lora_up.weight"),
    (r"\.alpha", "alpha"),
)
_GET_AGAIN = "Get the LoRA again from where it came, with its adapter_config.json."
_EXPECTED = "a LoRA of a Stable Diffusion 1.5 as diffusers or PEFT writes it"


def is_diffusers_lora(path: Path) -> bool:
    """Whether the file's tensors are a LoRA's under diffusers' or PEFT's names."""
    return path.is_file() and any(_kohya_name(name) for name in read_weights(path)[0])


def convert_lora(source: Path, destination: str | Path, force: bool = False) -> None:
    """Write the LoRA in `source` under kohya's names.

    The strength it was trained for (lora_alpha) comes from the file, or from the adapter_config.json beside it where
    PEFT wrote both, and the file is called adapter_model.

    Raises:
        FormatError: a tensor has no place in a plain LoRA, or the strength differs from layer to layer.
        FileExistsError: `destination` exists and `force` is not set.
    """
    out = new_file(destination, force)
    tensors, metadata = read_weights(source)
    unknown = [name for name in tensors if not _kohya_name(name)]
    if unknown:
        raise FormatError(
            f"{source.name} holds {len(unknown)} tensors that no plain LoRA has, such as {unknown[0]}",
            _EXPECTED,
            "Use the LoRA as it is where ComfyUI's LoraLoader reads it, or merge it where it was made.",
        )
    renamed = under_kohya_names(tensors, _scales(source, metadata))
    _check_pairs(renamed, source.name)
    if out.exists():  # it may be the source, and what is mapped of it could not be replaced on Windows
        renamed = {name: tensor.clone() for name, tensor in renamed.items()}
        tensors.clear()
    write_weights(renamed, out, {"format": "pt"} | metadata)


def _check_pairs(tensors: Weights, name: str) -> None:
    """Raise FormatError unless each layer has its two matrices, which fit each other."""
    check_finite(tensors, name)
    layers = {key.rpartition(".lora_")[0] for key in tensors if not key.endswith(".alpha")}
    for layer in sorted(layers):
        down, up = (tensors.get(f"{layer}.lora_{half}.weight") for half in ("down", "up"))
        if down is None or up is None:
            raise FormatError(
                f"{name} has only one of the two matrices of {layer[:200]}", "both, lora_A and lora_B", _GET_AGAIN
            )
        shapes = tuple(down.shape), tuple(up.shape)
        if min(map(len, shapes)) < 2 or shapes[0][0] != shapes[1][1]:
            raise FormatError(
                f"{name} has matrices of {shapes[0]} and {shapes[1]} for {layer[:200]}",
                "two of one rank, (rank, in) and (out, rank)",
                _GET_AGAIN,
            )
    if not layers:
        raise FormatError(f"{name} holds not one layer of a LoRA", _EXPECTED, _GET_AGAIN)


def under_kohya_names(tensors: Weights, scales: dict[str, float]) -> Weights:
    """A LoRA's tensors under kohya's names, each layer with its alpha; what is no LoRA's is left out.

    Args:
        scales: the strength it was trained for (lora_alpha), of "unet" and "te", as far as it is known.
    """
    renamed: Weights = {}
    for old, tensor in tensors.items():
        name = _kohya_name(old)
        if name in renamed:
            raise FormatError(f"The LoRA holds {name} twice, such as under {old}", _EXPECTED, "Save one of the two.")
        if name:
            renamed[name] = tensor
    for name in [name for name in renamed if name.endswith(".lora_down.weight")]:
        layer = name.removesuffix(".lora_down.weight")
        alpha = scales.get("te" if layer.startswith("lora_te_") else "unet")
        if alpha is not None:
            renamed.setdefault(f"{layer}.alpha", torch.tensor(float(alpha)))
    return renamed


def _kohya_name(name: str) -> str | None:
    """unet.mid_block.attentions.0.proj_in.lora_A.weight -> lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"""
    for start, model in _STARTS:
        for end, ending in _ENDS:
            found = re.fullmatch(f"{start}(?P<layer>[\\w.]+?)(?:{end})", name)
            if found:
                layer = found["layer"].replace(".processor.", ".")
                layer += ".0" if layer.endswith(".to_out") else ""
                return f"lora_{model}_{layer.replace('.', '_')}.{ending}"
    return None


def _scales(source: Path, metadata: Metadata) -> dict[str, float]:
    """lora_alpha of "unet" and "te", as far as it is known."""
    written = json_entry(metadata, "lora_adapter_metadata", dict, source.name)
    configs: dict[str, dict[str, Any]] = {}
    for model, name in (("unet", "unet"), ("te", "text_encoder")):
        start = f"{name}."
        configs[model] = {key.removeprefix(start): written[key] for key in written if key.startswith(start)}
    beside = source.with_name("adapter_config.json")
    if source.stem == "adapter_model" and beside.is_file():  # beside another LoRA it is somebody else's
        config = read_json(beside)
        configs = {model: known or config for model, known in configs.items()}
    for config in configs.values():
        for option in ("use_rslora", "use_dora", "alpha_pattern"):
            if config.get(option):
                raise FormatError(
                    f"The LoRA {source.name} was made with {option}", _EXPECTED, "Merge it where it was made."
                )
    scales = {model: config["lora_alpha"] for model, config in configs.items() if "lora_alpha" in config}
    for alpha in scales.values():
        if not isinstance(alpha, int | float) or not 0 <= alpha <= 2**20:
            raise FormatError(f"The LoRA {source.name} says lora_alpha = {repr(alpha)[:40]}", "a number", _GET_AGAIN)
    return scales
