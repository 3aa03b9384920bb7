"""LoRA files of diffusers and PEFT under the names ComfyUI reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import save_lora, small_checkpoint
from torch import Tensor

from instaflow_core import __main__ as cli
from instaflow_core.weights.files import FormatError
from instaflow_core.weights.loras import convert_lora, is_diffusers_lora
from instaflow_core.weights.saving import save

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


def pair(name: str, down: str, up: str) -> dict[str, Tensor]:
    return {name + down: torch.ones(2, 4), name + up: torch.full((6, 2), 2.0)}


@pytest.mark.parametrize(
    ("name", "down", "up"),
    [
        (f"unet.{LAYER}.to_out.0", ".lora_A.weight", ".lora_B.weight"),
        (f"base_model.model.{LAYER}.to_out.0", ".lora_A.weight", ".lora_B.weight"),
        (f"{LAYER}.to_out.0", ".lora_A.default.weight", ".lora_B.default.weight"),
        (f"unet.{LAYER}.to_out.0", ".lora.down.weight", ".lora.up.weight"),
        (f"unet.{LAYER}.processor.to_out", "_lora.down.weight", "_lora.up.weight"),
    ],
)
def test_every_style_of_a_unets_names(tmp_path: Path, name: str, down: str, up: str) -> None:
    save_file(pair(name, down, up), tmp_path / "lora.safetensors", {"kept": "1"})
    assert is_diffusers_lora(tmp_path / "lora.safetensors")
    convert_lora(tmp_path / "lora.safetensors", tmp_path / "out.safetensors")
    expected = f"lora_unet_{LAYER.replace('.', '_')}_to_out_0"
    tensors = load_file(tmp_path / "out.safetensors")
    assert tensors.keys() == {f"{expected}.lora_down.weight", f"{expected}.lora_up.weight"}
    assert torch.equal(tensors[f"{expected}.lora_down.weight"], torch.ones(2, 4))


def test_text_encoder_names(tmp_path: Path) -> None:
    names = (
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "base_model.model.text_model.encoder.layers.1.mlp.fc1",
    )
    tensors = pair(names[0], ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")
    tensors |= pair(names[1], ".lora_A.weight", ".lora_B.weight")
    save_file(tensors, tmp_path / "lora.safetensors")
    convert_lora(tmp_path / "lora.safetensors", tmp_path / "out.safetensors")
    assert load_file(tmp_path / "out.safetensors").keys() == {
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight",
        "lora_te_text_model_encoder_layers_1_mlp_fc1.lora_down.weight",
        "lora_te_text_model_encoder_layers_1_mlp_fc1.lora_up.weight",
    }


def test_alpha(tmp_path: Path) -> None:
    """From the tensors, else from the header, else from the adapter_config.json PEFT writes beside the file."""
    path, out = tmp_path / "adapter_model.safetensors", tmp_path / "out.safetensors"
    name, expected = f"unet.{LAYER}.to_q", f"lora_unet_{LAYER.replace('.', '_')}_to_q.alpha"
    tensors = pair(name, ".lora_A.weight", ".lora_B.weight")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 5, "r": 2}))
    save_file(tensors, path)
    convert_lora(path, out, force=True)
    assert load_file(out)[expected] == 5
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 7, "unet.r": 2})})
    convert_lora(path, out, force=True)
    assert load_file(out)[expected] == 7
    save_file(tensors | {f"{name}.alpha": torch.tensor(3.0)}, path)
    convert_lora(path, out, force=True)
    assert load_file(out)[expected] == 3


@pytest.mark.parametrize(
    "name", ["mine.safetensors", "adapter_model_v2.safetensors", "pytorch_lora_weights.safetensors"]
)
def test_a_config_beside_another_lora_is_not_its_own(name: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 5, "r": 2, "use_rslora": True}))
    save_file(pair(f"{LAYER}.to_q", ".lora_A.weight", ".lora_B.weight"), tmp_path / name)
    convert_lora(tmp_path / name, tmp_path / "out.safetensors")
    assert not [key for key in load_file(tmp_path / "out.safetensors") if key.endswith(".alpha")]


@pytest.mark.parametrize("option", [{"use_rslora": True}, {"use_dora": True}, {"alpha_pattern": {"to_q": 4}}])
def test_strengths_that_names_cannot_say(tmp_path: Path, option: dict[str, object]) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 5, "r": 2} | option))
    save_file(pair(f"{LAYER}.to_q", ".lora_A.weight", ".lora_B.weight"), tmp_path / "adapter_model.safetensors")
    with pytest.raises(FormatError, match=f"was made with {next(iter(option))}"):
        convert_lora(tmp_path / "adapter_model.safetensors", tmp_path / "out.safetensors")


def test_tensors_of_another_kind(tmp_path: Path) -> None:
    tensors = pair(f"unet.{LAYER}.to_q", ".lora_A.weight", ".lora_B.weight")
    tensors[f"unet.{LAYER}.to_q.lora_magnitude_vector"] = torch.ones(6)
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(FormatError, match=r"holds 1 tensors that no plain LoRA has, such as .*lora_magnitude_vector"):
        convert_lora(tmp_path / "lora.safetensors", tmp_path / "out.safetensors")


def test_what_is_no_such_lora(tmp_path: Path) -> None:
    save_lora(tmp_path / "kohya.safetensors")
    save(small_checkpoint(), tmp_path / "model.safetensors")
    assert not is_diffusers_lora(tmp_path / "kohya.safetensors")
    assert not is_diffusers_lora(tmp_path / "model.safetensors")
    assert not is_diffusers_lora(tmp_path)


def test_the_convert_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = str(tmp_path / "lora.safetensors"), str(tmp_path / "out.safetensors")
    save_file(pair(f"unet.{LAYER}.to_q", ".lora_A.weight", ".lora_B.weight"), source)
    assert cli.main(["convert", source, out]) == 0
    assert capsys.readouterr().out.split() == [out]
    assert len(load_file(out)) == 2
    assert cli.main(["convert", source, out]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("start", ["text_encoder.text_model.", "text_encoder.", "base_model.model."])
def test_a_text_encoder_has_kohyas_names_whatever_transformers_calls_it(start: str, tmp_path: Path) -> None:
    names = [f"{start}encoder.layers.0.self_attn.q_proj.lora_{half}.weight" for half in "AB"]
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "peft.safetensors")
    convert_lora(tmp_path / "peft.safetensors", tmp_path / "kohya.safetensors")
    layer = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    assert load_file(tmp_path / "kohya.safetensors").keys() == {f"{layer}.lora_down.weight", f"{layer}.lora_up.weight"}
