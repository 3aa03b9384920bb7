"""The stock LoRA loaders on an InstaFlow loaded in any way, in the key styles LoRAs come in: as merging by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_models import install, small_checkpoint
from torch import Tensor

from instaflow_core.weights.checkpoint import load
from instaflow_core.weights.layouts import unet_rows
from instaflow_core.weights.loras import convert_lora
from instaflow_core.weights.modules import build_unet
from instaflow_core.weights.saving import save, save_folder

PROMPT = "a red circle on a blue background"
RANK = 2
Factors = dict[str, tuple[Tensor, Tensor]]  # layer, in diffusers' words: lora_down (RANK, in, ...), lora_up (out, RANK)


@pytest.fixture(scope="module", autouse=True)
def models(host: Any) -> Path:
    """The host's models folder, with the same random InstaFlow in every layout."""
    install(host.base / "models")
    return host.base / "models"


def factors(weights: dict[str, Tensor], wanted: Callable[[str], bool], seed: int) -> Factors:
    """A random LoRA of RANK on every wanted weight that is a matrix or a 1x1 convolution."""
    generator = torch.Generator().manual_seed(seed)
    layers: Factors = {}
    for name, weight in weights.items():
        if name.endswith(".weight") and wanted(name) and weight.ndim in (2, 4) and weight.shape[2:] in ((), (1, 1)):
            down = torch.randn(RANK, *weight.shape[1:], generator=generator) / weight.shape[1] ** 0.5
            up = torch.randn(len(weight), RANK, *weight.shape[2:], generator=generator)
            layers[name.removesuffix(".weight")] = down, up * 0.3
    return layers


def added(weights: dict[str, Tensor], layers: Factors, scale: float) -> dict[str, Tensor]:
    """W + scale * up @ down by hand."""
    changed = dict(weights)
    for layer, (down, up) in layers.items():
        difference = (up.flatten(1) @ down.flatten(1)).reshape(weights[f"{layer}.weight"].shape)
        changed[f"{layer}.weight"] = weights[f"{layer}.weight"] + scale * difference
    return changed


def in_attention(name: str) -> bool:
    return "attentions" in name


def projections(name: str) -> bool:
    """The four projections of an attention, all that diffusers' oldest names know."""
    return ".attn" in name


def text_layers(name: str) -> bool:
    return ".layers." in name


# --- key styles: (UNet layers) x (text layers) -> tensors as a file has them ---


def kohya(unet: Factors, text: Factors) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for start, layers in (("lora_unet_", unet), ("lora_te_", text)):
        for layer, (down, up) in layers.items():
            name = start + layer.replace(".", "_")
            tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            tensors[f"{name}.alpha"] = torch.tensor(float(RANK))
    return tensors


def diffusers(unet: Factors, text: Factors) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for layer, (down, up) in unet.items():
        name = "unet." + layer.replace(".to_", ".processor.to_").removesuffix(".0")
        tensors |= {f"{name}_lora.down.weight": down, f"{name}_lora.up.weight": up}
    for layer, (down, up) in text.items():
        name = f"text_encoder.{layer}.lora_linear_layer"
        tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
    return tensors


def peft(unet: Factors, text: Factors) -> dict[str, Tensor]:
    """PEFT's names for the factors, on the host's names for the UNet's layers, as the host's own trainer saves them."""
    tensors: dict[str, Tensor] = {}
    host_names = {row.diffusers: row.ldm for row in unet_rows(small_checkpoint().unet_config)}
    layers = {"diffusion_model." + host_names[f"{name}.weight"].removesuffix(".weight"): f for name, f in unet.items()}
    layers |= {f"text_encoder.{name}": f for name, f in text.items()}
    for layer, (down, up) in layers.items():
        tensors |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    return tensors


STYLES = {"kohya": (kohya, in_attention), "diffusers": (diffusers, projections), "peft": (peft, in_attention)}

# --- ways to load ---


def from_checkpoint(host: Any, name: str = "one-step.safetensors") -> tuple[Any, Any]:
    return host.run("InstaFlowLoadCheckpoint", checkpoint=name, weight_dtype="fp32")[:2]


def from_folder(host: Any) -> tuple[Any, Any]:
    return from_checkpoint(host, "folder")


def from_bare_unet(host: Any, name: str = "bare.safetensors") -> tuple[Any, Any]:
    return host.run("InstaFlowLoadUNet", unet_name=name, weight_dtype="fp32")[0], from_checkpoint(host)[1]


def from_unet_folder(host: Any) -> tuple[Any, Any]:
    return from_bare_unet(host, "folder/unet")


def through_model_sampling(host: Any) -> tuple[Any, Any]:
    """The same weights under a name that says they predict noise, made a flow again."""
    checkpoint = small_checkpoint()
    metadata = checkpoint.metadata | {"instaflow.prediction": "epsilon"}
    path = host.base / "models" / "checkpoints" / "mislabelled.safetensors"
    save(dataclasses.replace(checkpoint, metadata=metadata), path)
    model, clip = from_checkpoint(host, path.name)
    return host.run("InstaFlowModelSampling", model=model)[0], clip


WAYS = [from_checkpoint, from_folder, from_bare_unet, from_unet_folder, through_model_sampling]


def sample(host: Any, model: Any, clip: Any) -> Tensor:
    (positive,) = host.run("CLIPTextEncode", clip=clip, text=PROMPT)
    (empty,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=1)
    inputs = {"seed": 0, "steps": 1, "guidance": 1.0, "denoise": 1.0}
    return host.run("InstaFlowSampler", model=model, positive=positive, latent_image=empty, **inputs)[0]["samples"]


def with_lora(host: Any, model: Any, clip: Any, name: str, on_model: float, on_clip: float) -> tuple[Any, Any]:
    strengths = {"strength_model": on_model, "strength_clip": on_clip}
    return host.run("LoraLoader", model=model, clip=clip, lora_name=name, **strengths)


@pytest.mark.parametrize("style", STYLES)
def test_stock_loader_is_merging_by_hand(host: Any, models: Path, style: str, caplog: pytest.LogCaptureFixture) -> None:
    """The LoRA at 0.7 on the UNet and 0.4 on the text encoder, on every way to load, next to merged weights."""
    named, wanted = STYLES[style]
    checkpoint = small_checkpoint()
    unet, text = checkpoint.unet, checkpoint.text_encoder or {}
    on_unet, on_text = factors(unet, wanted, seed=1), factors(text, text_layers, seed=2)
    assert len(on_unet) > 20 and len(on_text) > 10
    save_file(named(on_unet, on_text), models / "loras" / f"{style}.safetensors")
    by_hand = dataclasses.replace(checkpoint, unet=added(unet, on_unet, 0.7), text_encoder=added(text, on_text, 0.4))
    save(by_hand, models / "checkpoints" / "by-hand.safetensors")
    expected = sample(host, *from_checkpoint(host, "by-hand.safetensors"))
    plain = sample(host, *from_checkpoint(host))
    assert (expected - plain).abs().max() > 0.1
    for way in WAYS:
        model, clip = way(host)
        samples = sample(host, *with_lora(host, model, clip, f"{style}.safetensors", 0.7, 0.4))
        assert torch.allclose(samples, expected, rtol=0, atol=2e-4), way.__name__
        assert torch.equal(sample(host, model, clip), plain), f"{way.__name__}: the input was changed"
    assert "lora key not loaded" not in caplog.text


def test_model_only_and_negative_strength(host: Any, models: Path) -> None:
    checkpoint = small_checkpoint()
    layers = factors(checkpoint.unet, in_attention, seed=4)
    save_file(kohya(layers, {}), models / "loras" / "unet.safetensors")
    by_hand = dataclasses.replace(checkpoint, unet=added(checkpoint.unet, layers, -0.5))
    save(by_hand, models / "checkpoints" / "by-hand.safetensors")
    model, clip = from_checkpoint(host)
    (patched,) = host.run("LoraLoaderModelOnly", model=model, lora_name="unet.safetensors", strength_model=-0.5)
    expected = sample(host, *from_checkpoint(host, "by-hand.safetensors"))
    assert torch.allclose(sample(host, patched, clip), expected, rtol=0, atol=2e-4)


def test_two_loras_add_up(host: Any, models: Path) -> None:
    checkpoint = small_checkpoint()
    merged = checkpoint.unet
    model, clip = from_folder(host)
    for seed, strength in ((5, 0.6), (6, -0.3)):
        layers = factors(checkpoint.unet, in_attention, seed)
        save_file(kohya(layers, {}), models / "loras" / f"{seed}.safetensors")
        inputs = {"lora_name": f"{seed}.safetensors", "strength_model": strength}
        (model,) = host.run("LoraLoaderModelOnly", model=model, **inputs)
        merged = added(merged, layers, strength)
    save(dataclasses.replace(checkpoint, unet=merged), models / "checkpoints" / "by-hand.safetensors")
    expected = sample(host, *from_checkpoint(host, "by-hand.safetensors"))
    assert torch.allclose(sample(host, model, clip), expected, rtol=0, atol=2e-4)


def test_half_precision(host: Any, models: Path) -> None:
    """fp16 weights: the host adds in float32 and rounds once."""
    checkpoint = small_checkpoint()
    layers = factors(checkpoint.unet, in_attention, seed=7)
    save_file(kohya(layers, {}), models / "loras" / "unet.safetensors")
    halved = {name: tensor.half().float() for name, tensor in checkpoint.unet.items()}
    merged = {name: tensor.half() for name, tensor in added(halved, layers, 1.0).items()}
    save(dataclasses.replace(checkpoint, unet=merged), models / "checkpoints" / "by-hand.safetensors")
    clip = from_checkpoint(host)[1]
    half = {"weight_dtype": "fp16"}
    model = host.run("InstaFlowLoadCheckpoint", checkpoint="one-step.safetensors", **half)[0]
    expected = host.run("InstaFlowLoadCheckpoint", checkpoint="by-hand.safetensors", **half)[0]
    (patched,) = host.run("LoraLoaderModelOnly", model=model, lora_name="unet.safetensors", strength_model=1.0)
    # Two roundings to fp16 that fall to different sides are a step of 2^-11 apart.
    assert torch.allclose(sample(host, patched, clip), sample(host, expected, clip), rtol=0, atol=2e-2)


def test_what_peft_trains_after_convert(host: Any, models: Path) -> None:
    """A LoRA on diffusers' own UNet, saved by PEFT, converted, loaded by the host: the numbers diffusers computes."""
    from peft import LoraConfig, get_peft_model_state_dict

    checkpoint = load(models / "checkpoints" / "one-step.safetensors")
    unet = build_unet(checkpoint)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=1, target_modules=["to_q", "to_k", "to_v", "to_out.0", "proj_in"]))
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    tensors = {f"unet.{name}": tensor.contiguous() for name, tensor in get_peft_model_state_dict(unet).items()}
    trained = models / "loras" / "trained" / "pytorch_lora_weights.safetensors"
    trained.parent.mkdir(exist_ok=True)
    save_file(tensors, trained, {"lora_adapter_metadata": '{"unet.lora_alpha": 1, "unet.r": 2}'})
    convert_lora(trained, models / "loras" / "converted.safetensors")

    model, clip = from_checkpoint(host)
    (positive,) = host.run("CLIPTextEncode", clip=clip, text=PROMPT)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = noise + unet(noise, 1000.0, encoder_hidden_states=positive[0][0]).sample
        plain = noise + build_unet(checkpoint)(noise, 1000.0, encoder_hidden_states=positive[0][0]).sample
    (patched,) = host.run("LoraLoaderModelOnly", model=model, lora_name="converted.safetensors", strength_model=1.0)
    assert torch.allclose(sample(host, patched, clip) * 0.18215, expected, rtol=0, atol=1e-4)
    assert (plain - expected).abs().max() > 0.1


def test_a_folder_written_with_a_lora_in_it(host: Any, models: Path) -> None:
    """Saved by InstaFlowSaveCheckpoint, made a folder, loaded again: the LoRA stays in the weights."""
    checkpoint = small_checkpoint()
    save_file(kohya(factors(checkpoint.unet, in_attention, seed=9), {}), models / "loras" / "unet.safetensors")
    model, clip, vae = host.run("InstaFlowLoadCheckpoint", checkpoint="one-step.safetensors", weight_dtype="fp32")
    (patched,) = host.run("LoraLoaderModelOnly", model=model, lora_name="unet.safetensors", strength_model=1.0)
    expected = sample(host, patched, clip)
    inputs = {"model": patched, "clip": clip, "vae": vae, "filename_prefix": "checkpoints/lora"}
    host.run("InstaFlowSaveCheckpoint", **inputs)
    (path,) = (host.base / "output" / "checkpoints").glob("lora_*.safetensors")
    save_folder(load(path), models / "diffusers" / "baked")
    path.unlink()
    again = host.run("InstaFlowLoadCheckpoint", checkpoint="baked", weight_dtype="fp32")
    assert torch.equal(sample(host, again[0], clip), expected)
