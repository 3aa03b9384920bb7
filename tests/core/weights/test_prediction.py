"""What a UNet predicts: who says it, what nobody says, and that it stays said on the way through files and folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import small_checkpoint
from torch import Tensor

from instaflow_core import __main__ as cli
from instaflow_core.generate import GenerationRequest, generate
from instaflow_core.weights.checkpoint import Checkpoint, load
from instaflow_core.weights.conversion import convert
from instaflow_core.weights.files import FormatError
from instaflow_core.weights.saving import save, save_folder, single_file

SCHEDULER = {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "num_train_timesteps": 1000}
"""As in the published folder of Stable Diffusion 1.5, which says nothing of its prediction."""


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return small_checkpoint()


def plain_file(checkpoint: Checkpoint, path: Path, **metadata: str) -> Path:
    """One file that does not say what its UNet predicts, but for the metadata given."""
    parts = {"unet": checkpoint.unet_config, "text": checkpoint.text_config, "vae": checkpoint.vae_config}
    configs = {f"instaflow.{part}_config": json.dumps(config) for part, config in parts.items()}
    save_file(single_file(checkpoint), path, configs | {key.replace("__", "."): v for key, v in metadata.items()})
    return path


def plain_folder(
    checkpoint: Checkpoint, path: Path, pipeline: str | None = "StableDiffusionPipeline", scheduler: Any = None
) -> Path:
    """A folder of diffusers with nothing in it from this pack."""
    save_folder(checkpoint, path)
    unet = path / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(unet), unet, {"format": "pt"})
    (path / "scheduler" / "scheduler_config.json").unlink()
    (path / "model_index.json").unlink()
    if pipeline:
        (path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    if scheduler is not None:
        (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return path


def said(checkpoint: Checkpoint) -> tuple[str, str, bool]:
    return checkpoint.prediction, checkpoint.said_by, checkpoint.prediction_is_assumed


# --- folders ---


@pytest.mark.parametrize(
    "pipeline, scheduler, prediction, by",
    [
        ("StableDiffusionPipeline", SCHEDULER, "epsilon", "no prediction_type is epsilon"),
        (None, SCHEDULER, "epsilon", "no prediction_type is epsilon"),
        ("StableDiffusionPipeline", None, "epsilon", "names a StableDiffusionPipeline"),
        ("StableDiffusionImg2ImgPipeline", None, "epsilon", "names a StableDiffusionImg2ImgPipeline"),
        ("StableDiffusionPipeline", SCHEDULER | {"prediction_type": "epsilon"}, "epsilon", "prediction_type in"),
        ("StableDiffusionPipeline", SCHEDULER | {"prediction_type": "v_prediction"}, "v", "prediction_type in"),
        ("StableDiffusionPipeline", SCHEDULER | {"prediction_type": "velocity"}, "velocity", "prediction_type in"),
        ("RectifiedFlowPipeline", SCHEDULER, "velocity", "names a RectifiedFlowPipeline"),
    ],
)
def test_a_folder_says(
    pipeline: str | None, scheduler: Any, prediction: str, by: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    loaded = load(plain_folder(checkpoint, tmp_path / "model", pipeline, scheduler))
    assert loaded.prediction == prediction and by in loaded.said_by and not loaded.prediction_is_assumed
    assert loaded.stage == ("unknown" if prediction == "velocity" else "teacher")
    assert torch.equal(loaded.unet["conv_out.weight"], checkpoint.unet["conv_out.weight"])


@pytest.mark.parametrize(
    "scheduler", [{"prediction_type": "flow_prediction"}, {"_class_name": "FlowMatchEulerDiscreteScheduler"}]
)
def test_the_flows_of_diffusers_are_noise_minus_data(
    scheduler: dict[str, str], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    loaded = load(plain_folder(checkpoint, tmp_path / "model", scheduler=scheduler))
    assert loaded.prediction == "velocity" and not loaded.prediction_is_assumed
    for name, tensor in checkpoint.unet.items():
        assert torch.equal(loaded.unet[name], -tensor if name.startswith("conv_out.") else tensor)


def test_a_folder_that_says_nothing_is_assumed_to_be_a_flow(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = plain_folder(checkpoint, tmp_path / "model", pipeline=None)
    assert said(load(folder)) == ("velocity", "nobody; it is assumed", True)
    assert said(load(folder, "epsilon")) == ("epsilon", "the caller", False)


# --- files ---


@pytest.mark.parametrize(
    "marker, metadata, prediction, by",
    [
        ({}, {"instaflow__prediction": "velocity"}, "velocity", "instaflow.prediction in the file"),
        ({}, {"modelspec__prediction_type": "epsilon"}, "epsilon", "modelspec.prediction_type in the file"),
        ({}, {"modelspec__prediction_type": "v"}, "v", "modelspec.prediction_type in the file"),
        ({"v_pred": torch.zeros(0)}, {}, "v", "the v_pred marker in the file"),
        ({"alphas_cumprod": torch.zeros(9)}, {}, "epsilon", "the noise schedule (alphas_cumprod) in the file"),
        (
            {"betas": torch.zeros(9)},
            {"instaflow__prediction": "velocity"},
            "velocity",
            "instaflow.prediction in the file",
        ),
    ],
)
def test_a_file_says(
    marker: dict[str, Tensor],
    metadata: dict[str, str],
    prediction: str,
    by: str,
    checkpoint: Checkpoint,
    tmp_path: Path,
) -> None:
    path = plain_file(checkpoint, tmp_path / "model.safetensors", **metadata)
    header = {"instaflow.unet_config": json.dumps(checkpoint.unet_config)}
    header |= {"instaflow.text_config": json.dumps(checkpoint.text_config)}
    header |= {"instaflow.vae_config": json.dumps(checkpoint.vae_config)}
    header |= {key.replace("__", "."): value for key, value in metadata.items()}
    save_file(load_file(path) | marker, path, header)
    assert said(load(path)) == (prediction, by, False)


def test_a_file_may_say_something_nobody_knows(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = plain_file(checkpoint, tmp_path / "model.safetensors", modelspec__prediction_type="x_0")
    with pytest.raises(FormatError, match=r"modelspec\.prediction_type of model\.safetensors predicts 'x_0'"):
        load(path)
    assert load(path, "v").prediction == "v"
    with pytest.raises(ValueError, match="Unknown prediction 'x_0'; expected one of epsilon, v, velocity"):
        load(path, "x_0")


def test_an_assumption_stays_one_until_somebody_says(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = plain_file(checkpoint, tmp_path / "plain.safetensors")
    assert said(load(path)) == ("velocity", "nobody; it is assumed", True)
    convert(path, tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "again.safetensors")
    assert said(load(tmp_path / "again.safetensors")) == ("velocity", "nobody; it is assumed", True)
    convert(path, tmp_path / "told.safetensors", prediction="epsilon")
    assert said(load(tmp_path / "told.safetensors")) == ("epsilon", "instaflow.prediction in the file", False)
    assert load(tmp_path / "told.safetensors", "velocity").prediction == "velocity", "the caller has the last word"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_noise_minus_data_is_read_with_the_other_sign(
    dtype: torch.dtype, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    path = tmp_path / "flow.safetensors"
    save(checkpoint, path, dtype)
    before, loaded, other = path.read_bytes(), load(path), load(path, "noise-minus-data")
    assert said(other) == ("velocity", "the caller", False)
    for name in ("conv_out.weight", "conv_out.bias"):
        assert other.unet[name].dtype == dtype
        assert torch.equal(other.unet[name].float(), -loaded.unet[name].float())
    assert path.read_bytes() == before


def test_a_flow_of_the_other_sign_draws_the_same(checkpoint: Checkpoint, tmp_path: Path) -> None:
    negated = {name: -t if name.startswith("conv_out.") else t for name, t in checkpoint.unet.items()}
    path = plain_file(replace(checkpoint, unet=negated), tmp_path / "flow.safetensors")
    convert(path, tmp_path / "ours.safetensors", prediction="noise-minus-data")
    request = GenerationRequest("a red star", steps=2, guidance=1.0).settled(checkpoint)
    pictures = [generate(c, request) for c in (checkpoint, load(tmp_path / "ours.safetensors"))]
    assert torch.equal(*pictures)


@pytest.mark.parametrize(
    "scheduler, prediction, now",
    [({"prediction_type": "flow_prediction"}, None, "velocity"), (SCHEDULER, "v", "v"), (SCHEDULER, None, "epsilon")],
)
def test_a_folder_does_not_come_back_with_a_word_that_was_overruled(
    scheduler: dict[str, Any], prediction: str | None, now: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Other programs go by it, and would sample weights of the other sign."""
    convert(
        plain_folder(checkpoint, tmp_path / "model", scheduler=scheduler),
        tmp_path / "m.safetensors",
        None,
        False,
        prediction,
    )
    convert(tmp_path / "m.safetensors", tmp_path / "back")
    index = json.loads((tmp_path / "back" / "model_index.json").read_text())["_class_name"]
    back = json.loads((tmp_path / "back" / "scheduler" / "scheduler_config.json").read_text())
    assert (index == "RectifiedFlowPipeline") == (now == "velocity") == load(tmp_path / "back").is_flow
    expected = {"velocity": "epsilon", "v": "v_prediction", "epsilon": None}  # a flow's scheduler is never asked
    assert back.get("prediction_type") == expected[now]


# --- v ---


def test_v_stays_v(checkpoint: Checkpoint, tmp_path: Path) -> None:
    save(small_checkpoint("teacher", "v"), tmp_path / "v.safetensors")
    assert load_file(tmp_path / "v.safetensors")["v_pred"].shape == (0,)
    convert(tmp_path / "v.safetensors", tmp_path / "v")
    scheduler = json.loads((tmp_path / "v" / "scheduler" / "scheduler_config.json").read_text())
    index = json.loads((tmp_path / "v" / "model_index.json").read_text())
    assert (scheduler["prediction_type"], index["_class_name"]) == ("v_prediction", "StableDiffusionPipeline")
    for name in ("v.safetensors", "v"):
        loaded = load(tmp_path / name)
        assert (loaded.prediction, loaded.stage, loaded.is_flow) == ("v", "teacher", False)
    settled = GenerationRequest("a red star").settled(load(tmp_path / "v"))
    assert (settled.steps, settled.guidance) == (25, 5.0)


# --- the command line ---


def test_info_says_who_says_it(checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(plain_file(checkpoint, tmp_path / "plain.safetensors"))
    for arguments, expected in (
        ([], ("velocity", "nobody; it is assumed")),
        (["--prediction", "epsilon"], ("epsilon", "the caller")),
        (["--prediction", "noise-minus-data"], ("velocity", "the caller")),
    ):
        assert cli.main(["info", path, "--json", *arguments]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["prediction"], facts["prediction said by"]) == expected


def test_convert_and_generate_warn_of_an_assumption(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = str(plain_file(checkpoint, tmp_path / "plain.safetensors")), str(tmp_path / "out.png")
    for command in (
        ["convert", path, str(tmp_path / "x")],
        ["generate", "--checkpoint", path, "--prompt", "", "--out", out],
    ):
        assert cli.main(command) == 0
        assert "says what its UNet predicts; velocity is assumed" in capsys.readouterr().err
    command = ["convert", path, str(tmp_path / "epsilon"), "--prediction", "epsilon"]
    assert cli.main(command) == 0
    assert "assumed" not in capsys.readouterr().err and load(tmp_path / "epsilon").prediction == "epsilon"


# --- what else the metadata say ---


def test_the_size_a_model_was_trained_on_is_the_one_written(checkpoint: Checkpoint, tmp_path: Path) -> None:
    old = {"modelspec.resolution": "512x512", "modelspec.prediction_type": "epsilon"}
    trained = replace(checkpoint, metadata=checkpoint.metadata | old)
    save(trained, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    assert loaded.metadata["modelspec.resolution"] == "64x64"
    assert loaded.metadata["modelspec.prediction_type"] == "velocity"


def test_a_file_of_others_says_its_size(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = plain_file(checkpoint, tmp_path / "model.safetensors", modelspec__resolution="768x1024")
    assert load(path).native_size == 768


# --- the paper's steps ------------------------------------------------------------------------------------------------


def made_by(teacher: Path, tmp_path: Path, *more: str) -> dict[str, Any]:
    """What a set of two triplets says of its solver and guidance."""
    (tmp_path / "prompts.txt").write_text("a red star on a blue background")
    command = ["triplets", "--teacher", str(teacher), "--prompts", str(tmp_path / "prompts.txt"), "--count", "2"]
    assert cli.main([*command, "--steps", "2", "--device", "cpu", "--out", str(tmp_path / "set"), *more]) == 0
    return json.loads((tmp_path / "set" / "set.json").read_text())["source"]


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_a_plain_file_teaches_as_what_it_is_said_to_be(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], prediction: str
) -> None:
    source = made_by(plain_file(checkpoint, tmp_path / "sd.safetensors"), tmp_path, "--prediction", prediction)
    assert (source["solver"], source["guidance"]) == ("DPM-Solver++", 5.0)
    assert "assumed" not in capsys.readouterr().err


def test_a_plain_folder_of_stable_diffusion_teaches_as_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = made_by(plain_folder(checkpoint, tmp_path / "sd", scheduler=SCHEDULER), tmp_path)
    assert (source["solver"], source["guidance"]) == ("DPM-Solver++", 5.0)


def test_an_assumption_about_a_teacher_is_said(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made_by(plain_file(checkpoint, tmp_path / "x.safetensors"), tmp_path)["solver"] == "Euler"
    assert "velocity is assumed" in capsys.readouterr().err


@pytest.mark.slow
def test_what_is_trained_from_an_assumption_is_known(checkpoint: Checkpoint, tmp_path: Path) -> None:
    plain = plain_file(checkpoint, tmp_path / "sd.safetensors")
    made_by(plain, tmp_path, "--prediction", "epsilon")
    command = ["reflow", "--init", str(plain), "--triplets", str(tmp_path / "set"), "--iterations", "1"]
    out = tmp_path / "flow.safetensors"
    more = ["--batch-size", "2", "--sample-every", "0", "--device", "cpu", "--out", str(out)]
    assert cli.main([*command, *more]) == 0
    assert said(load(out)) == ("velocity", "instaflow.prediction in the file", False)
