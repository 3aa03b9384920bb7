"""A finetune's difference as weight patches, next to sums done by hand; and checkpoints saved from the host."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from graph_parts import save_wide
from safetensors import safe_open
from safetensors.torch import load_file
from sd15 import TEXT, VAE
from sd15 import UNET as SD15_UNET
from small_models import save_unet, small_checkpoint
from torch import Tensor

from instaflow_core.weights.checkpoint import Checkpoint, load
from instaflow_core.weights.deltas import extract, merge
from instaflow_core.weights.matching import rows_of
from instaflow_core.weights.saving import cast, save

PROMPT = "a red circle on a blue background"
FLOW, TUNED, BASE = "one-step.safetensors", "two-rf.safetensors", "teacher.safetensors"


@pytest.fixture(scope="module", autouse=True)
def checkpoints(models: Path) -> Path:
    """The host's models/checkpoints, with FLOW, TUNED and BASE in it: three random UNets of one architecture."""
    return models / "checkpoints"


def load_all(host: Any, name: str, weight_dtype: str = "fp32") -> tuple[Any, Any, Any]:
    return host.run("InstaFlowLoadCheckpoint", checkpoint=name, weight_dtype=weight_dtype)


def three(host: Any, weight_dtype: str = "fp32") -> tuple[Any, Any, Any]:
    """The MODELs of FLOW, TUNED and BASE."""
    model, tuned, base = (load_all(host, name, weight_dtype)[0] for name in (FLOW, TUNED, BASE))
    return model, tuned, base


def merged(host: Any, model: Any, finetuned: Any, base: Any, strength: float) -> Any:
    inputs = {"model": model, "finetuned": finetuned, "base": base, "strength": strength}
    return host.run("InstaFlowMergeDelta", **inputs)[0]


def sample(host: Any, model: Any, clip: Any) -> Tensor:
    (positive,) = host.run("CLIPTextEncode", clip=clip, text=PROMPT)
    (empty,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=1)
    inputs = {"seed": 0, "steps": 1, "guidance": 1.0, "denoise": 1.0}
    return host.run("InstaFlowSampler", model=model, positive=positive, latent_image=empty, **inputs)[0]["samples"]


def by_hand(checkpoints: Path, strength: float, dtype: torch.dtype = torch.float32, **change: Tensor) -> str:
    """A checkpoint file whose UNet is the sum, done in float32 and rounded once; its name.

    Args:
        change: added to the finetune's weights first, by diffusers name with __ for a dot.
    """
    flow, tuned, base = (load(checkpoints / name) for name in (FLOW, TUNED, BASE))
    weights = {name: tensor.float() for name, tensor in cast(tuned.unet, dtype).items()}
    for name, difference in change.items():
        weights[name.replace("__", ".")] = weights[name.replace("__", ".")] + difference
    first, last = cast(flow.unet, dtype), cast(base.unet, dtype)
    unet = {name: (first[name].float() + strength * (weights[name] - last[name].float())).to(dtype) for name in first}
    save(dataclasses.replace(flow, unet=unet), checkpoints / "by-hand.safetensors")
    return "by-hand.safetensors"


# --- the sum ---


@pytest.mark.parametrize("strength", [1.0, 0.35, -0.6, 0.0])
def test_merged_is_the_sum_by_hand(host: Any, checkpoints: Path, strength: float) -> None:
    """Bit for bit: the host adds in float32 and in this order."""
    clip = load_all(host, FLOW)[1]
    expected = sample(host, load_all(host, by_hand(checkpoints, strength))[0], clip)
    assert torch.equal(sample(host, merged(host, *three(host), strength), clip), expected)


def test_half_precision_is_rounded_once(host: Any, checkpoints: Path) -> None:
    """fp16 weights, the sum in float32, one rounding to fp16 at the end: within half a step of fp16 of the real sum."""
    clip = load_all(host, FLOW)[1]
    name = by_hand(checkpoints, 0.35, torch.float16)
    expected = sample(host, load_all(host, name, "fp16")[0], clip)
    assert torch.equal(sample(host, merged(host, *three(host, "fp16"), 0.35), clip), expected)


def test_a_finetune_with_a_lora(host: Any, checkpoints: Path) -> None:
    model, tuned, base = three(host)
    (patched,) = host.run("LoraLoaderModelOnly", model=tuned, lora_name="small.safetensors", strength_model=0.8)
    lora = load_file(host.base / "models" / "loras" / "small.safetensors")
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    difference = 0.8 * lora[f"{layer}.lora_up.weight"] @ lora[f"{layer}.lora_down.weight"]
    weight = "mid_block__attentions__0__transformer_blocks__0__attn1__to_q__weight"
    name = by_hand(checkpoints, 0.5, **{weight: difference})
    clip = load_all(host, FLOW)[1]
    samples = sample(host, merged(host, model, patched, base, 0.5), clip)
    assert torch.allclose(samples, sample(host, load_all(host, name)[0], clip), rtol=0, atol=1e-4)
    assert (samples - sample(host, merged(host, model, tuned, base, 0.5), clip)).abs().max() > 1e-2


def test_a_lora_on_the_merged_model(host: Any, checkpoints: Path) -> None:
    """Patches add up in the order the nodes stand in."""
    clip = load_all(host, FLOW)[1]
    lora = {"lora_name": "small.safetensors", "strength_model": 0.8}
    (patched,) = host.run("LoraLoaderModelOnly", model=merged(host, *three(host), 0.5), **lora)
    (expected,) = host.run("LoraLoaderModelOnly", model=load_all(host, by_hand(checkpoints, 0.5))[0], **lora)
    assert torch.equal(sample(host, patched, clip), sample(host, expected, clip))


def test_nothing_is_copied_and_no_input_touched(host: Any) -> None:
    inputs = three(host)
    clip = load_all(host, FLOW)[1]
    before = [sample(host, inputs[0], clip)]
    result = merged(host, *inputs, 0.5)
    assert result.model is inputs[0].model
    assert [model.patches for model in inputs] == [{}, {}, {}]
    for key, (patch,) in result.patches.items():
        (weight, _), (_, ((subtracted, _),), *_) = patch[1]
        for tensor, model in ((weight, inputs[1]), (subtracted, inputs[2])):
            assert tensor.data_ptr() == model.model.state_dict()[key].data_ptr()
    assert len(result.patches) == len(inputs[0].model.diffusion_model.state_dict())
    sample(host, result, clip)
    assert torch.equal(sample(host, inputs[0], clip), before[0])


def test_the_finetunes_clip_and_vae(host: Any, checkpoints: Path) -> None:
    """The node with the finetune's CLIP and VAE draws the picture of the checkpoint `merge-delta --clip-vae` writes."""
    extract(checkpoints / TUNED, checkpoints / BASE, checkpoints / "delta.safetensors", force=True)
    merge(
        checkpoints / FLOW,
        checkpoints / "delta.safetensors",
        checkpoints / "mixed.safetensors",
        0.5,
        checkpoints / TUNED,
        force=True,
    )
    pictures = []
    _, clip, vae = load_all(host, TUNED)
    for parts in ((merged(host, *three(host), 0.5), clip, vae), load_all(host, "mixed.safetensors")):
        samples = {"samples": sample(host, *parts[:2])}
        pictures.append(host.run("VAEDecode", samples=samples, vae=parts[2])[0])
    assert pictures[0].shape == (1, 64, 64, 3)
    assert torch.equal(*pictures)
    own = load_all(host, FLOW)
    other = host.run(
        "VAEDecode", samples={"samples": sample(host, merged(host, *three(host), 0.5), own[1])}, vae=own[2]
    )
    assert (other[0] - pictures[0]).abs().max() > 0.05


def test_the_stock_lora_loader_applies_a_delta(host: Any, checkpoints: Path) -> None:
    """The file `extract-delta` writes is what ComfyUI calls a full difference."""
    extract(checkpoints / TUNED, checkpoints / BASE, host.base / "models" / "loras" / "delta.safetensors", force=True)
    model, tuned, base = three(host)
    clip = load_all(host, FLOW)[1]
    (patched,) = host.run("LoraLoaderModelOnly", model=model, lora_name="delta.safetensors", strength_model=0.35)
    assert len(patched.patches) == len(model.model.diffusion_model.state_dict())
    assert torch.equal(sample(host, patched, clip), sample(host, merged(host, model, tuned, base, 0.35), clip))


def wide(checkpoints: Path) -> str:
    from diffusers import UNet2DConditionModel

    checkpoint = small_checkpoint()
    config = checkpoint.unet_config | {"block_out_channels": (64, 128)}
    unet = UNet2DConditionModel.from_config(config).state_dict()
    save(dataclasses.replace(checkpoint, unet=unet, unet_config=config), checkpoints / "wide.safetensors")
    return "wide.safetensors"


def test_models_that_do_not_fit(host: Any, checkpoints: Path) -> None:
    model, tuned, base = three(host)
    other = load_all(host, wide(checkpoints))[0]
    shapes = r"`finetuned` and `{}` differ in their tensors: \d+ of different shapes \(.*Connect three of the same"
    with pytest.raises(ValueError, match=shapes.format("base")):
        merged(host, model, tuned, other, 1.0)
    with pytest.raises(ValueError, match=shapes.format("model")):
        merged(host, other, tuned, base, 1.0)


# --- saving ---


def save_node(host: Any, hidden: dict[Any, Any] | None = None, **inputs: Any) -> Path:
    """Run InstaFlowSaveCheckpoint as the executor does; the file it wrote."""
    node = host.node("InstaFlowSaveCheckpoint").PREPARE_CLASS_CLONE(None)
    node.hidden = type(node.hidden).from_dict(hidden)
    with torch.inference_mode():
        output = node.EXECUTE_NORMALIZED(**inputs)
    return Path(output.ui["text"][0])


def move(path: Path, checkpoints: Path, name: str) -> str:
    """Put a saved file where the loader finds it."""
    path.replace(checkpoints / name)
    return name


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_saved_and_loaded_again(host: Any, checkpoints: Path) -> None:
    """A difference and a LoRA baked in: the same latents and pictures, bit for bit."""
    _, clip, vae = load_all(host, TUNED)
    model = merged(host, *three(host), 0.5)
    lora = {"lora_name": "small.safetensors", "strength_model": 0.7, "strength_clip": 0.9}
    model, clip = host.run("LoraLoader", model=model, clip=clip, **lora)
    expected = sample(host, model, clip)
    path = save_node(host, model=model, clip=clip, vae=vae, filename_prefix="checkpoints/kept")
    assert path.parent == host.base / "output" / "checkpoints"
    again = load_all(host, move(path, checkpoints, "kept.safetensors"))
    assert torch.equal(sample(host, *again[:2]), expected)
    pictures = [host.run("VAEDecode", samples={"samples": expected}, vae=v)[0] for v in (vae, again[2])]
    assert torch.equal(*pictures)
    assert not again[0].patches
    # The inputs go on as they were.
    assert torch.equal(sample(host, model, clip), expected)


@pytest.mark.parametrize("name", [FLOW, TUNED, BASE])
def test_what_the_checkpoint_said_is_kept(host: Any, checkpoints: Path, name: str) -> None:
    checkpoint = load(checkpoints / name)
    said = {"instaflow.license": "CC-BY-NC-4.0", "instaflow.guidance": "1.25", "instaflow.training": '{"steps": 7}'}
    save(dataclasses.replace(checkpoint, metadata=checkpoint.metadata | said), checkpoints / "said.safetensors")
    model, clip, vae = load_all(host, "said.safetensors")
    path = save_node(host, model=model, clip=clip, vae=vae, filename_prefix="checkpoints/kept")
    again, first = load(path), load(checkpoints / "said.safetensors")
    for fact in ("prediction", "stage", "guidance", "native_size", "unet_config", "text_config", "vae_config"):
        assert getattr(again, fact) == getattr(first, fact), fact
    assert said.items() <= again.metadata.items()
    for part in ("unet", "text_encoder", "vae"):
        ours, theirs = again.part(part), first.part(part)
        assert ours and theirs and ours[0].keys() >= theirs[0].keys()
        for key, tensor in theirs[0].items():
            assert torch.allclose(ours[0][key].float(), tensor, rtol=1e-3, atol=1e-3), key
    path.unlink()


def test_the_licences_of_all_parts(host: Any, checkpoints: Path) -> None:
    checkpoint = load(checkpoints / TUNED)
    metadata = checkpoint.metadata | {"instaflow.license": "CC-BY-NC-4.0"}
    save(dataclasses.replace(checkpoint, metadata=metadata), checkpoints / "licensed.safetensors")
    model, _, base = three(host)
    path = save_node(host, model=merged(host, model, load_all(host, "licensed.safetensors")[0], base, 1.0))
    assert header(path)["instaflow.license"] == header(path)["modelspec.license"] == "CC-BY-NC-4.0"
    path.unlink()
    clip = load_all(host, "licensed.safetensors")[1]
    path = save_node(host, model=model, clip=clip)
    assert load(path).metadata["instaflow.license"] == "CC-BY-NC-4.0"
    path.unlink()


def test_a_model_alone(host: Any) -> None:
    model, clip, _ = load_all(host, FLOW)
    expected = sample(host, model, clip)
    path = save_node(host, model=model, filename_prefix="diffusion_models/alone")
    path.replace(host.base / "models" / "diffusion_models" / "alone.safetensors")
    (again,) = host.run("InstaFlowLoadUNet", unet_name="alone.safetensors", weight_dtype="fp32")
    assert torch.equal(sample(host, again, clip), expected)


def test_the_prompt_and_the_workflow_are_kept(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ComfyUI's own save nodes do, and not under --disable-metadata."""
    from comfy.cli_args import args
    from comfy_api.latest import io

    model = load_all(host, FLOW)[0]
    hidden = {io.Hidden.prompt: {"1": "graph"}, io.Hidden.extra_pnginfo: {"workflow": {"nodes": []}}}
    path = save_node(host, hidden, model=model)
    assert json.loads(header(path)["prompt"]) == {"1": "graph"}
    assert json.loads(header(path)["workflow"]) == {"nodes": []}
    monkeypatch.setattr(args, "disable_metadata", True)
    second = save_node(host, hidden, model=model)
    assert second != path
    assert not {"prompt", "workflow"} & header(second).keys()
    assert load(second).stage == "one-step"
    assert {file.name for file in path.parent.iterdir()} >= {path.name, second.name}
    assert not list(path.parent.glob(".*"))
    path.unlink()
    second.unlink()


def test_a_teacher_taken_as_a_flow(host: Any, checkpoints: Path) -> None:
    """The file says how the MODEL is sampled now, and nothing that was true of it before."""
    model, _, _ = load_all(host, BASE)
    (flow,) = host.run("InstaFlowModelSampling", model=model)
    path = save_node(host, model=flow)
    again = load(path)
    assert (again.prediction, again.stage, again.guidance, again.native_size) == ("velocity", "unknown", 1.0, 64)
    assert again.unet_config == load(checkpoints / BASE).unet_config
    path.unlink()


def test_zero_terminal_snr_is_saved_and_loaded(host: Any, checkpoints: Path) -> None:
    """What another node has said of the MODEL, our loader says of its file."""
    model, clip, vae = load_all(host, BASE)
    (zero_snr,) = host.run("ModelSamplingDiscrete", model=model, sampling="v_prediction", zsnr=True)
    path = save_node(host, model=zero_snr, clip=clip, vae=vae)
    path = path.rename(checkpoints / "zero-snr.safetensors")
    assert load(path).zero_snr
    again, *_ = load_all(host, path.name)
    sampling, expected = (some.get_model_object("model_sampling") for some in (again, zero_snr))
    assert torch.equal(sampling.sigmas, expected.sigmas)
    assert sampling.zsnr
    second = save_node(host, model=again)
    assert load(second).zero_snr
    for some in (path, second):
        some.unlink()


def test_parts_that_do_not_belong_together(host: Any, checkpoints: Path) -> None:
    model, clip, _ = load_all(host, FLOW)
    (consistency,) = host.run("ModelSamplingDiscrete", model=load_all(host, BASE)[0], sampling="lcm", zsnr=False)
    with pytest.raises(ValueError, match=r"sampled as .*LCM, which an InstaFlow checkpoint cannot say"):
        save_node(host, model=consistency)
    (zero_snr,) = host.run("ModelSamplingDiscrete", model=load_all(host, BASE)[0], sampling="eps", zsnr=True)
    with pytest.raises(ValueError, match=r"EPS with zero terminal SNR, which an InstaFlow checkpoint cannot"):
        save_node(host, model=zero_snr)
    with pytest.raises(
        ValueError, match=r"`clip` reads texts with a SD1ClipModel 128 wide; `model` reads one CLIP-L 64 wide"
    ):
        save_node(host, model=model, clip=load_all(host, save_wide(checkpoints.parent))[1])
    sixteen = host.run("VAELoader", vae_name=wide_vae(host))[0]
    with pytest.raises(
        ValueError, match=r"`vae` makes latents of pictures with 16 channels; `model` makes those of pictures with 4"
    ):
        save_node(host, model=model, clip=clip, vae=sixteen)
    with pytest.raises(ValueError, match=r"`model` is a SD20"):
        save_node(host, model=another_architecture(model))
    assert not list((host.base / "output" / "checkpoints").glob(".*"))


def wide_vae(host: Any) -> str:
    """A tiny autoencoder with 16 latent channels, under the names the stock loader reads."""
    from safetensors.torch import save_file

    from instaflow_core.weights.matching import to_ldm

    rows = rows_of("vae", dict(small_checkpoint().vae_config or {}) | {"latent_channels": 16})
    tensors = to_ldm({row.diffusers: torch.zeros(row.shape) for row in rows}, rows, "")
    path = host.base / "models" / "vae" / "sixteen.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path.name


def another_architecture(model: Any) -> Any:
    import comfy.model_patcher
    import comfy.supported_models

    config = comfy.supported_models.SD20({**model.model.model_config.unet_config, "num_head_channels": 32})
    config.set_inference_dtype(torch.float32, None)
    device = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(config.get_model({}, ""), load_device=device, offload_device=device)


# --- the stock loader ---

# Few layers, but of the widths by which the host knows a Stable Diffusion 1.5.
UNET = SD15_UNET | {
    "block_out_channels": [320, 320],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2,
}


def filled(part: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """Half-precision weights that tell every tensor from the others."""
    rows = [row for row in rows_of(part, config) if not row.optional]
    return {
        row.diffusers: torch.full(row.shape, (1 + index / 2048) / math.prod(row.shape[1:]), dtype=torch.float16)
        for index, row in enumerate(rows)
    }


def state(model: Any, clip: Any, vae: Any) -> dict[str, Tensor]:
    """Every weight inside three host objects."""
    clip_weights = {k: v for k, v in clip.get_sd().items() if "text_projection" not in k and "logit_scale" not in k}
    return {**model.model_state_dict("diffusion_model."), **clip_weights, **vae.get_sd()}


def test_what_stock_nodes_loaded_is_saved_for_both_loaders(host: Any, checkpoints: Path) -> None:
    weights = filled("unet", UNET), UNET, filled("text_encoder", TEXT), TEXT, filled("vae", VAE), VAE
    save(Checkpoint(*weights), checkpoints / "sd15.safetensors")
    parts = host.run("CheckpointLoaderSimple", ckpt_name="sd15.safetensors")
    (flow,) = host.run("InstaFlowModelSampling", model=parts[0])
    expected = state(*parts)
    path = save_node(host, model=flow, clip=parts[1], vae=parts[2])
    name = move(path, checkpoints, "stock.safetensors")
    checkpoint = load(checkpoints / name)
    assert (checkpoint.prediction, checkpoint.stage, checkpoint.native_size) == ("velocity", "unknown", 512)
    assert checkpoint.unet_config["block_out_channels"] == [320, 320]
    for loaded in (host.run("CheckpointLoaderSimple", ckpt_name=name), load_all(host, name, "default")):
        again = state(*loaded)
        assert again.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(again[key].float(), tensor.float()), key
    (checkpoints / name).unlink()
    (checkpoints / "sd15.safetensors").unlink()


def test_a_bare_unet_comes_out_in_the_layout_of_checkpoints(host: Any) -> None:
    """Whatever names its tensors had on the way in."""
    save_unet(small_checkpoint(), host.base / "models" / "diffusion_models" / "bare.safetensors")
    (model,) = host.run("InstaFlowLoadUNet", unet_name="bare.safetensors", weight_dtype="fp32")
    path = save_node(host, model=model)
    assert load(path).layout == "UNet alone, ldm names"
    assert torch.equal(load(path).unet["conv_in.weight"], small_checkpoint().unet["conv_in.weight"])
    path.unlink()
