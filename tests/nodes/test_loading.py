"""The loading nodes: checkpoints as the host's own MODEL, CLIP and VAE, next to diffusers and transformers."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import save_unet, small_checkpoint
from torch import Tensor

from instaflow_core.text import encode_prompts
from instaflow_core.weights.checkpoint import load
from instaflow_core.weights.modules import build_text_encoder, build_unet, build_vae
from instaflow_core.weights.saving import save, save_folder, single_file

PROMPT = "a red circle on a blue background"
pytestmark = pytest.mark.usefixtures("models")

DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def load_all(host: Any, name: str, weight_dtype: str = "fp32") -> tuple[Any, Any, Any]:
    return host.run("InstaFlowLoadCheckpoint", checkpoint=name, weight_dtype=weight_dtype)


def one_step(host: Any, model: Any, clip: Any, seed: int = 0) -> Tensor:
    (positive,) = host.run("CLIPTextEncode", clip=clip, text=PROMPT)
    (empty,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=1)
    inputs = {"seed": seed, "steps": 1, "guidance": 1.0, "denoise": 1.0}
    return host.run("InstaFlowSampler", model=model, positive=positive, latent_image=empty, **inputs)[0]["samples"]


def layer(model: Any) -> Tensor:
    """A convolution's weight inside a host MODEL's UNet."""
    return model.model.diffusion_model.input_blocks[1][0].in_layers[2].weight


# --- the same numbers as diffusers and transformers ---


@pytest.mark.parametrize("name", ["one-step.safetensors", "two-rf.safetensors"])
def test_the_parts_compute_what_the_libraries_compute(host: Any, name: str) -> None:
    model, clip, vae = load_all(host, name)
    checkpoint = load(host.base / "models" / "checkpoints" / name)
    with torch.no_grad():
        states = encode_prompts(build_text_encoder(checkpoint), [PROMPT])
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        latents = noise + build_unet(checkpoint)(noise, 1000.0, encoder_hidden_states=states).sample
        autoencoder = build_vae(checkpoint)
        scale = autoencoder.config.scaling_factor
        decoded = (autoencoder.decode(latents / scale).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)

    (conditioning,) = host.run("CLIPTextEncode", clip=clip, text=PROMPT)
    assert torch.allclose(conditioning[0][0], states, rtol=0, atol=1e-5)
    samples = one_step(host, model, clip)
    assert torch.allclose(samples * 0.18215, latents, rtol=0, atol=1e-5)
    (image,) = host.run("VAEDecode", samples={"samples": samples}, vae=vae)
    assert image.shape == (1, 64, 64, 3)
    assert torch.allclose(image, decoded, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["one-step.safetensors", "two-rf.safetensors"])
def test_vae_encode(host: Any, name: str) -> None:
    vae = load_all(host, name)[2]
    autoencoder = build_vae(load(host.base / "models" / "checkpoints" / name))
    pixels = torch.rand(1, 64, 48, 3, generator=torch.Generator().manual_seed(0))
    (latent,) = host.run("VAEEncode", pixels=pixels, vae=vae)
    with torch.no_grad():
        encoded = autoencoder.encode(pixels.permute(0, 3, 1, 2) * 2 - 1)
    expected = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    scaled = expected * autoencoder.config.scaling_factor
    assert torch.allclose(latent["samples"] * 0.18215, scaled, rtol=0, atol=1e-5)


def test_file_folder_and_bare_unet_give_the_same(host: Any) -> None:
    model, clip, _ = load_all(host, "one-step.safetensors")
    expected = one_step(host, model, clip)
    assert torch.equal(one_step(host, *load_all(host, "folder")[:2]), expected)
    for name in ("bare.safetensors", "folder/unet"):
        (unet,) = host.run("InstaFlowLoadUNet", unet_name=name, weight_dtype="fp32")
        assert torch.equal(one_step(host, unet, clip), expected), name


def test_loading_twice_gives_models_of_their_own(host: Any) -> None:
    first, second = (load_all(host, "one-step.safetensors") for _ in range(2))
    assert first[0].model is not second[0].model
    assert torch.equal(one_step(host, *first[:2]), one_step(host, *second[:2]))


def test_unequal_heads(host: Any, pack: Any) -> None:
    """As many channels a head on every level, as later models have it, in place of as many heads."""
    from diffusers import UNet2DConditionModel

    checkpoint = small_checkpoint()
    config = checkpoint.unet_config | {"block_out_channels": (64, 128), "attention_head_dim": (2, 4)}
    unet = UNet2DConditionModel.from_config(config).eval()
    checkpoint = dataclasses.replace(checkpoint, unet=unet.state_dict(), unet_config=config)
    save(checkpoint, host.base / "models" / "checkpoints" / "heads.safetensors")
    model, clip, _ = load_all(host, "heads.safetensors")
    (conditioning,) = host.run("CLIPTextEncode", clip=clip, text=PROMPT)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = noise + unet(noise, 1000.0, encoder_hidden_states=conditioning[0][0]).sample
    assert torch.allclose(one_step(host, model, clip) * 0.18215, expected, rtol=0, atol=1e-5)


# --- weight types ---


@pytest.mark.parametrize("weight_dtype", ["default", *DTYPES])
def test_weight_dtypes(host: Any, weight_dtype: str) -> None:
    model, clip, vae = load_all(host, "one-step.safetensors", weight_dtype)
    samples = one_step(host, model, clip)
    assert samples.isfinite().all()
    reference = one_step(host, *load_all(host, "one-step.safetensors")[:2])
    assert (samples - reference).std() < 0.2 * reference.std()
    if weight_dtype in DTYPES:
        assert layer(model).dtype == DTYPES[weight_dtype]
    if weight_dtype == "fp32":
        assert {p.dtype for p in clip.cond_stage_model.parameters()} == {torch.float32}
        assert vae.vae_dtype == torch.float32
    (unet,) = host.run("InstaFlowLoadUNet", unet_name="bare.safetensors", weight_dtype=weight_dtype)
    assert layer(unet).dtype == layer(model).dtype


def test_unknown_weight_dtype(host: Any) -> None:
    with pytest.raises(ValueError, match="Unknown weight_dtype 'fp4'; expected one of default, fp32"):
        load_all(host, "one-step.safetensors", "fp4")


# --- the host's own machinery ---


def test_the_host_can_load_every_part_again(host: Any) -> None:
    """LoRA training, hooks, compiling and several GPUs ask the patcher for a fresh copy through this."""
    model, clip, vae = load_all(host, "one-step.safetensors")
    for patcher in (model, clip.patcher, vae.patcher):
        loader, arguments = patcher.cached_patcher_init
        fresh = loader(*arguments, disable_dynamic=True)
        assert fresh.model is not patcher.model
        ours, again = patcher.model.state_dict(), fresh.model.state_dict()
        assert ours.keys() == again.keys()
        assert all(torch.equal(ours[key], again[key]) for key in ours)
    again = model.cached_patcher_init[0](*model.cached_patcher_init[1])
    assert torch.equal(one_step(host, again, clip), one_step(host, model, clip))


def test_the_teacher_is_an_ordinary_diffusion_model(host: Any) -> None:
    import comfy.model_sampling

    sampling = load_all(host, "teacher.safetensors")[0].get_model_object("model_sampling")
    assert isinstance(sampling, comfy.model_sampling.EPS)
    assert isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete)


def test_model_sampling_makes_a_flow_of_any_sd15(host: Any) -> None:
    """The same weights said to predict noise, sent through InstaFlowModelSampling, are the flow again."""
    checkpoint = small_checkpoint()
    metadata = checkpoint.metadata | {"instaflow.prediction": "epsilon"}
    path = host.base / "models" / "checkpoints" / "mislabelled.safetensors"
    save(dataclasses.replace(checkpoint, metadata=metadata), path)
    model, clip, _ = load_all(host, "mislabelled.safetensors")
    (flow,) = host.run("InstaFlowModelSampling", model=model)
    expected = one_step(host, *load_all(host, "one-step.safetensors")[:2])
    assert torch.equal(one_step(host, flow, clip), expected)


def test_model_sampling_refuses_other_architectures(host: Any) -> None:
    import comfy.model_patcher
    import comfy.supported_models

    model, _, _ = load_all(host, "one-step.safetensors")
    config = comfy.supported_models.SD20({**model.model.model_config.unet_config, "num_head_channels": 32})
    config.set_inference_dtype(torch.float32, None)
    device = torch.device("cpu")
    other = comfy.model_patcher.ModelPatcher(config.get_model({}, ""), load_device=device, offload_device=device)
    with pytest.raises(ValueError, match=r"`model` is a SD20; InstaFlow has the shape of Stable Diffusion 1.5"):
        host.run("InstaFlowModelSampling", model=other)


# --- errors ---


@pytest.mark.parametrize("name", ["../../one-step.safetensors", "/etc/passwd", "..", "absent.safetensors", ""])
def test_names_outside_the_choices(host: Any, name: str) -> None:
    with pytest.raises(ValueError, match=r"There is no checkpoint .* looked for in .*models/checkpoints.*choose it"):
        load_all(host, name)
    with pytest.raises(ValueError, match=r"looked for in the built-in models, models/diffusion_models"):
        host.run("InstaFlowLoadUNet", unet_name=name, weight_dtype="default")


def test_a_checkpoint_without_text_encoder_or_vae(host: Any) -> None:
    folder = host.base / "models" / "checkpoints"
    save_unet(small_checkpoint(), folder / "unet-only.safetensors")
    with pytest.raises(ValueError, match=r"has no text encoder.*InstaFlow Load UNet"):
        load_all(host, "unet-only.safetensors")
    save(dataclasses.replace(small_checkpoint(), vae=None, vae_config=None), folder / "no-vae.safetensors")
    with pytest.raises(ValueError, match=r"has no VAE.*InstaFlow Load UNet"):
        load_all(host, "no-vae.safetensors")


def test_a_vae_the_host_has_no_module_for(host: Any) -> None:
    """The host would log the missing tensors and go on with uninitialised memory."""
    from diffusers import AutoencoderKL

    checkpoint = small_checkpoint(vae="kl")
    config = checkpoint.vae_config | {"use_quant_conv": False}
    weights = AutoencoderKL.from_config(config).state_dict()
    path = host.base / "models" / "checkpoints" / "no-quant.safetensors"
    save(dataclasses.replace(checkpoint, vae=weights, vae_config=config), path)
    with pytest.raises(
        ValueError, match=r"The VAE has 0 tensors the host has no place for and lacks 2, such as quant_conv"
    ):
        load_all(host, "no-quant.safetensors")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (
            "unet_config",
            {"norm_eps": 1e-6},
            r"The UNet has norm_eps = 1e-06. Expected 1e-05, which is what ComfyUI has",
        ),
        ("unet_config", {"attention_head_dim": [2, 4]}, r"has \[2, 4\] attention heads on levels \[64, 96\] wide"),
        (
            "text_config",
            {"hidden_act": "relu"},
            r"The text encoder has hidden_act = 'relu'. Expected 'quick_gelu' or 'gelu'",
        ),
        ("vae_config", {"scaling_factor": 0.5}, r"The AutoencoderTiny has scaling_factor = 0.5"),
    ],
)
def test_what_the_host_has_no_modules_for(
    host: Any, pack: Any, part: str, change: dict[str, Any], message: str
) -> None:
    """The weights would fit, and the pictures be wrong."""
    checkpoint = small_checkpoint()
    changed = dataclasses.replace(checkpoint, **{part: {**getattr(checkpoint, part), **change}})
    build = {"unet_config": "build_model", "text_config": "build_clip", "vae_config": "build_vae"}[part]
    with pytest.raises(ValueError, match=message):
        getattr(pack.nodes.host.checkpoints, build)(changed, "default")


def test_choices(host: Any, pack: Any) -> None:
    choices = host.node("InstaFlowLoadCheckpoint").define_schema().inputs[0].options
    assert choices[:3] == ["built-in: shapes", "built-in: shapes-2rf", "built-in: shapes-teacher"]
    files = [name for name in choices if name.endswith(".safetensors")]
    assert choices.index("folder") > choices.index(files[-1]) > 2
    unets = host.node("InstaFlowLoadUNet").define_schema().inputs[0].options
    assert unets[:3] == choices[:3]
    assert unets.index("folder/unet") > unets.index("bare.safetensors") > 2


# --- what lies in the model folders ---


@pytest.fixture
def litter(models: Path) -> Iterator[Path]:
    """The models folder, to put things into that are gone afterwards."""
    before = set(models.glob("*/*"))
    yield models
    for path in set(models.glob("*/*")) - before:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
            shutil.rmtree(path)
        else:
            path.unlink()


@pytest.mark.parametrize(
    ("node", "name", "folder"),
    [("InstaFlowLoadCheckpoint", "checkpoint", "checkpoints"), ("InstaFlowLoadUNet", "unet_name", "diffusion_models")],
)
def test_a_link_to_nowhere_is_nobodys_trouble(host: Any, litter: Path, node: str, name: str, folder: str) -> None:
    (litter / folder / "gone.safetensors").symlink_to("/nowhere/gone.safetensors")
    choices = host.node(node).define_schema().inputs[0].options
    assert "built-in: shapes" in choices
    with pytest.raises(ValueError, match=r"gone.safetensors is listed .* no file behind it.*Bring it back"):
        host.run(node, **{name: "gone.safetensors"}, weight_dtype="fp32")
    assert host.run(node, **{name: "built-in: shapes"}, weight_dtype="fp32")


def test_folders_that_cannot_be_read_and_links_in_a_circle(host: Any, litter: Path) -> None:
    before = host.node("InstaFlowLoadCheckpoint").define_schema().inputs[0].options
    closed = litter / "diffusers" / "closed"
    closed.mkdir(mode=0o000)
    circle = litter / "diffusers" / "circle"
    circle.mkdir()
    for name in "abc":  # three links into it, three into each of those, ...: 3^40 folders
        (circle / name).symlink_to(circle)
    (litter / "diffusers" / "gone").symlink_to("/nowhere")
    assert host.node("InstaFlowLoadCheckpoint").define_schema().inputs[0].options == before


def test_a_repository_of_the_hub_goes_by_its_name(host: Any, litter: Path) -> None:
    """As `cache_dir` lays it out: a folder named after a commit, its files links to blobs."""
    repository = litter / "diffusers" / "models--some--Flow-0.9"
    snapshot = repository / "snapshots" / "0123abcd"
    for file in (litter / "diffusers" / "folder").rglob("*"):
        if file.is_file():
            blob = repository / "blobs" / str(len(list((repository / "blobs").glob("*"))))
            link = snapshot / file.relative_to(litter / "diffusers" / "folder")
            blob.parent.mkdir(parents=True, exist_ok=True)
            link.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, blob)
            link.symlink_to(blob)
    unfinished = litter / "diffusers" / ".cache" / "download" / "unet"
    unfinished.mkdir(parents=True)
    choices = host.node("InstaFlowLoadCheckpoint").define_schema().inputs[0].options
    assert "some/Flow-0.9" in choices
    assert not [choice for choice in choices if "snapshots" in choice or ".cache" in choice]
    expected = one_step(host, *load_all(host, "one-step.safetensors")[:2])
    for name in ("some/Flow-0.9", "models--some--Flow-0.9/snapshots/0123abcd"):
        assert torch.equal(one_step(host, *load_all(host, name)[:2]), expected)
    assert host.run("InstaFlowLoadUNet", unet_name="some/Flow-0.9/unet", weight_dtype="fp32")


def test_a_repository_of_a_unet_alone_is_a_unet(host: Any, litter: Path) -> None:
    folder = litter / "diffusers"
    shutil.copytree(folder / "folder" / "unet", folder / "someones" / "flow")
    for name, config in (("vae", '{"_class_name": "AutoencoderKL"}'), ("broken", "{")):
        shutil.copytree(folder / "folder" / "unet", folder / name)
        (folder / name / "config.json").write_text(config)
    choices = host.node("InstaFlowLoadUNet").define_schema().inputs[0].options
    assert {"someones/flow", "broken", "folder/unet"} <= set(choices) and "vae" not in choices
    assert "someones/flow" not in host.node("InstaFlowLoadCheckpoint").define_schema().inputs[0].options
    model, clip, _ = load_all(host, "one-step.safetensors")
    (unet,) = host.run("InstaFlowLoadUNet", unet_name="someones/flow", weight_dtype="fp32")
    assert torch.equal(one_step(host, unet, clip), one_step(host, model, clip))
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        host.run("InstaFlowLoadUNet", unet_name="broken", weight_dtype="fp32")


def test_a_download_without_a_folder_of_its_own(host: Any, litter: Path) -> None:
    """`hf download REPOSITORY --local-dir models/diffusers`: the models that were there are there still."""
    folder = litter / "diffusers"
    shutil.copytree(folder / "folder", folder, dirs_exist_ok=True)
    unfinished = folder / ".cache" / "huggingface" / "download" / "unet"
    shutil.copytree(folder / "folder" / "unet", unfinished)
    (folder / "folder" / ".cache" / "huggingface" / "download" / "unet").mkdir(parents=True)
    try:
        choices = host.node("InstaFlowLoadCheckpoint").define_schema().inputs[0].options
        unets = host.node("InstaFlowLoadUNet").define_schema().inputs[0].options
        assert {"diffusers", "folder"} <= set(choices) and {"diffusers/unet", "folder/unet"} <= set(unets)
        assert not [choice for choice in (*choices, *unets) if ".cache" in choice or choice in ("unet", "vae", ".")]
        expected = one_step(host, *load_all(host, "one-step.safetensors")[:2])
        assert torch.equal(one_step(host, *load_all(host, "diffusers")[:2]), expected)
        before = host.node("InstaFlowLoadCheckpoint").fingerprint_inputs(checkpoint="diffusers")
        assert not [file for file, *_ in before if "folder/" in file or ".cache" in file]
    finally:
        shutil.rmtree(folder / "folder" / ".cache")


@pytest.mark.parametrize("name", ["ein Modell [v1.5] 图.SAFETENSORS", "instaflow 0.9B (图).v2"])
def test_any_name_is_listed_and_loaded(host: Any, litter: Path, name: str) -> None:
    if name.endswith("SAFETENSORS"):
        shutil.copy(litter / "checkpoints" / "one-step.safetensors", litter / "checkpoints" / name)
    else:
        shutil.copytree(litter / "diffusers" / "folder", litter / "diffusers" / name)
    assert name in host.node("InstaFlowLoadCheckpoint").define_schema().inputs[0].options
    assert host.node("InstaFlowLoadCheckpoint").fingerprint_inputs(checkpoint=name)
    expected = one_step(host, *load_all(host, "one-step.safetensors")[:2])
    assert torch.equal(one_step(host, *load_all(host, name)[:2]), expected)


@pytest.mark.parametrize("source", ["written.safetensors", "written"])
def test_a_checkpoint_that_was_written_again_is_loaded_again(host: Any, litter: Path, source: str) -> None:
    """The host runs a node again where its fingerprint is another."""

    def write(seed: int) -> None:
        checkpoint = small_checkpoint(seed=seed)
        if source.endswith(".safetensors"):
            save(checkpoint, litter / "checkpoints" / source)
        else:
            save_folder(checkpoint, litter / "diffusers" / source)

    def fingerprint() -> Any:
        return host.node("InstaFlowLoadCheckpoint").fingerprint_inputs(checkpoint=source, weight_dtype="fp32")

    write(0)
    first = fingerprint()
    assert fingerprint() == first
    write(3)
    assert fingerprint() != first
    for node, name in (("InstaFlowLoadCheckpoint", "checkpoint"), ("InstaFlowLoadUNet", "unet_name")):
        kind = host.node(node)
        assert kind.fingerprint_inputs(**{name: "built-in: shapes"}) == kind.fingerprint_inputs(
            **{name: "built-in: shapes"}, weight_dtype="fp16"
        )
        assert kind.fingerprint_inputs(weight_dtype="fp32") == []  # another node gives the name


@pytest.mark.parametrize("source", ["again.safetensors", "again"])
def test_weights_are_looked_through_once_as_long_as_their_file_stays(
    host: Any, pack: Any, litter: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Also those in a file beside a single one, as the built-in models' text encoder and VAE are."""
    checkpoint = small_checkpoint("one-step")

    def write() -> None:
        if source.endswith(".safetensors"):
            save(checkpoint, litter / "checkpoints" / source)
        else:
            save_folder(checkpoint, litter / "diffusers" / source)

    write()
    load_all(host, source)
    load_all(host, "built-in: shapes")
    files = importlib.import_module(f"{pack.__name__}.instaflow_core.weights.files")
    looked: list[int] = []
    plain = files._is_finite
    monkeypatch.setattr(files, "_is_finite", lambda tensor: looked.append(tensor.numel()) or plain(tensor))
    load_all(host, source)
    load_all(host, "built-in: shapes")
    assert looked == []
    checkpoint.unet["conv_in.bias"][0] = torch.nan
    write()
    with pytest.raises(ValueError, match=r"holds numbers in conv_in\.bias that are NaN or infinite"):
        load_all(host, source)


def test_a_model_of_v_is_sampled_by_the_host_as_one_and_saved_as_one(host: Any, litter: Path, pack: Any) -> None:
    from comfy.model_sampling import V_PREDICTION

    save(small_checkpoint("teacher", "v"), litter / "checkpoints" / "v.safetensors")
    model, _, _ = load_all(host, "v.safetensors")
    assert type(model.get_model_object("model_sampling")).calculate_denoised is V_PREDICTION.calculate_denoised
    pack.nodes.host.saving.write_checkpoint(litter / "checkpoints" / "again.safetensors", model, None, None)
    assert load(litter / "checkpoints" / "again.safetensors").prediction == "v"


def test_what_was_assumed_of_a_model_is_in_the_log(host: Any, litter: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = small_checkpoint()
    configs = {"unet": plain.unet_config, "text": plain.text_config, "vae": plain.vae_config}
    metadata = {f"instaflow.{part}_config": json.dumps(config) for part, config in configs.items()}
    save_file(single_file(plain), litter / "checkpoints" / "plain.safetensors", metadata)
    load_all(host, "plain.safetensors")
    assert "nothing in plain.safetensors says what its UNet predicts; velocity" in caplog.text
    caplog.clear()
    load_all(host, "built-in: shapes")
    assert "predicts" not in caplog.text


# --- what a UNet predicts ---


@pytest.mark.parametrize("node", ["InstaFlowLoadCheckpoint", "InstaFlowLoadUNet"])
@pytest.mark.parametrize("prediction", ["auto", "velocity", "noise-minus-data", "epsilon", "v"])
def test_what_a_unet_predicts_can_be_said(host: Any, node: str, prediction: str) -> None:
    """Of a file that says nothing: the sign of its last layer, and what the host samples it as."""
    import comfy.model_sampling

    checkpoint = small_checkpoint()
    name = "silent.safetensors"
    for folder in ("checkpoints", "diffusion_models"):
        save(checkpoint, host.base / "models" / folder / name)
        tensors = load_file(host.base / "models" / folder / name)
        with safe_open(host.base / "models" / folder / name, "pt") as file:
            said = {key: value for key, value in file.metadata().items() if "prediction" not in key}
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, host.base / "models" / folder / name, said)
    named = {"checkpoint": name} if node == "InstaFlowLoadCheckpoint" else {"unet_name": name}
    model = host.run(node, **named, weight_dtype="fp32", prediction=prediction)[0]
    sampling = model.get_model_object("model_sampling")
    assert isinstance(sampling, comfy.model_sampling.CONST) == (prediction not in ("epsilon", "v"))
    assert isinstance(sampling, comfy.model_sampling.V_PREDICTION) == (prediction == "v")
    last = model.model.diffusion_model.out[2].weight
    sign = -1 if prediction == "noise-minus-data" else 1
    assert torch.equal(last, sign * checkpoint.unet["conv_out.weight"])


def test_a_prediction_that_is_unknown(host: Any) -> None:
    with pytest.raises(ValueError, match="Unknown prediction 'guess'; expected one of auto, epsilon"):
        host.run(
            "InstaFlowLoadCheckpoint", checkpoint="one-step.safetensors", weight_dtype="default", prediction="guess"
        )
