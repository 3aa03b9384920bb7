"""LoRA files of diffusers and PEFT, brought under the names that ComfyUI's LoRA loader reads.

For a UNet of Stable Diffusion 1.5's shape the loader knows kohya's names and diffusers' oldest ones; what diffusers and
PEFT write today it leaves out, with a line in its log. The numbers stay as they are.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch

from .diffusers_folder import read_json
from .files import FormatError, Metadata, Weights, new_file, read_weights, write_weights

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
    if out.exists():  # it may be the source, and what is mapped of it could not be replaced on Windows
        renamed = {name: tensor.clone() for name, tensor in renamed.items()}
        tensors.clear()
    write_weights(renamed, out, {"format": "pt"} | metadata)


def under_kohya_names(tensors: Weights, scales: dict[str, float]) -> Weights:
    """A LoRA's tensors under kohya's names, each layer with its alpha; what is no LoRA's is left out.

    Args:
        scales: the strength it was trained for (lora_alpha), of "unet" and "te", as far as it is known.
    """
    renamed: Weights = {name: tensor for old, tensor in tensors.items() if (name := _kohya_name(old))}
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
    written = json.loads(metadata.get("lora_adapter_metadata", "{}"))
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
    return {model: config["lora_alpha"] for model, config in configs.items() if "lora_alpha" in config}
