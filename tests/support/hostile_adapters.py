"""LoRAs and differences of weights that lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from hostile_models import DEEP, Make, Row, Sound
from safetensors.torch import load_file, save_file
from small_models import save_lora
from torch import Tensor


def _lora(change: Callable[[dict[str, Tensor]], dict[str, Tensor]], **metadata: str) -> Make:
    def make(sound: Sound, place: Path) -> Path:
        layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
        tensors = {f"{layer}.lora_A.weight": torch.ones(2, 96), f"{layer}.lora_B.weight": torch.ones(96, 2)}
        save_file(change(tensors), place / "lora.safetensors", metadata)
        return place / "lora.safetensors"

    return make


def _adapter(config: str) -> Make:
    def make(sound: Sound, place: Path) -> Path:
        _lora(dict)(sound, place).rename(place / "adapter_model.safetensors")
        (place / "adapter_config.json").write_text(config)
        return place / "adapter_model.safetensors"

    return make


def _halves(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {min(tensors): tensors[min(tensors)]}


def _ranks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {min(tensors): torch.ones(3, 96)}


def _flat(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.flatten() for name, tensor in tensors.items()}


def _twice(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {name.replace("mid_block.", "mid_block_"): tensor.clone() for name, tensor in tensors.items()}


def _foreign(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"os.system": torch.zeros(1)}


def _whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(torch.uint32) for name, tensor in tensors.items()}


LORAS: dict[str, Row] = {
    "half a pair": (_lora(_halves), "has only one of the two matrices"),
    "two ranks": (_lora(_ranks), r"\(3, 96\) and \(96, 2\)"),
    "matrices that are none": (_lora(_flat), r"\(192,\) and \(192,\)"),
    "NaN": (_lora(lambda tensors: {k: t * float("nan") for k, t in tensors.items()}), "NaN or infinite"),
    "numbers that are no weights": (
        _lora(_whole),
        "uint32",
    ),
    "one layer under two names": (_lora(_twice), "twice"),
    "a tensor of no LoRA": (_lora(_foreign), "tensors that no plain LoRA has, such as os.system"),
    "metadata that is no JSON": (_lora(dict, lora_adapter_metadata="{"), "lora_adapter_metadata of"),
    "metadata that is a list": (_lora(dict, lora_adapter_metadata="[]"), "holds a list"),
    "a strength in words": (_lora(dict, lora_adapter_metadata='{"unet.lora_alpha": "much"}'), "lora_alpha = 'much'"),
    "a strength of 10^30": (_lora(dict, lora_adapter_metadata='{"unet.lora_alpha": 1e30}'), "lora_alpha = 1e"),
    "a strength that is a list": (_lora(dict, lora_adapter_metadata='{"unet.lora_alpha": [1]}'), "lora_alpha = "),
    "a config that is no JSON": (_adapter("{"), r"adapter_config\.json is not JSON"),
    "a config that is a list": (_adapter("[]"), r"adapter_config\.json holds a list"),
    "a config nested deeply": (_adapter(DEEP), r"adapter_config\.json is nested too deeply"),
    "a config whose strength is a text": (_adapter('{"lora_alpha": "x"}'), "lora_alpha = 'x'"),
}
"""What `convert` refuses."""


def _delta(change: Callable[[dict[str, Tensor]], dict[str, Tensor]], **metadata: str) -> Make:
    def make(sound: Sound, place: Path) -> Path:
        from instaflow_core.weights.deltas import extract

        extract(sound.file, sound.file, place / "whole.safetensors")
        tensors = load_file(place / "whole.safetensors")
        (place / "whole.safetensors").unlink()
        said = {f"instaflow.{key}": value for key, value in metadata.items()}
        save_file(change(tensors), place / "delta.safetensors", said)
        return place / "delta.safetensors"

    return make


def _plain_lora(sound: Sound, place: Path) -> Path:
    save_lora(place / "delta.safetensors")
    return place / "delta.safetensors"


DELTAS: dict[str, Row] = {
    "a LoRA": (_plain_lora, "is not a difference of weights"),
    "another shape": (
        _delta(lambda tensors: tensors | {min(tensors): torch.zeros(1)}),
        "1 of different shapes",
    ),
    "a tensor too few": (_delta(lambda tensors: {k: tensors[k] for k in sorted(tensors)[1:]}), "1 only in"),
    "a tensor too many": (_delta(lambda tensors: tensors | {"diffusion_model.x.diff": torch.zeros(1)}), "1 only in"),
    "whole numbers": (_delta(lambda tensors: {k: t.int() for k, t in tensors.items()}), "types that cannot be added"),
    "NaN": (_delta(lambda tensors: {k: t * float("nan") for k, t in tensors.items()}), "NaN or infinite"),
    "metadata that is no JSON": (_delta(dict, delta="{"), "instaflow.delta of"),
    "metadata that is a list": (_delta(dict, delta="[]"), "holds a list"),
}
"""What `merge-delta` refuses."""
