"""The row a checkpoint is sampled by: who says it, what is found, what is refused, and that it stays said."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from authors import ONE, Ask, relative_distance
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import small_checkpoint

from instaflow_core import __main__ as cli
from instaflow_core.generate import GenerationRequest, generate
from instaflow_core.rules import RULES
from instaflow_core.text import encode_prompts
from instaflow_core.weights.checkpoint import Checkpoint, load
from instaflow_core.weights.conversion import convert
from instaflow_core.weights.files import FormatError, read_weights
from instaflow_core.weights.modules import build_text_encoder, build_unet, build_vae
from instaflow_core.weights.saving import save, save_folder, single_file

PROMPT = "a red star"
FEW_STEP = [name for name, rule in RULES.items() if rule.diffusion or rule.windows]
SCHEDULER = {"_class_name": "DDIMScheduler", "prediction_type": "epsilon"}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return small_checkpoint("teacher", "epsilon")


def configs(checkpoint: Checkpoint) -> dict[str, str]:
    parts = {"unet": checkpoint.unet_config, "text": checkpoint.text_config, "vae": checkpoint.vae_config}
    return {f"instaflow.{part}_config": json.dumps(config) for part, config in parts.items()}


def silent(checkpoint: Checkpoint, path: Path, **metadata: str) -> Path:
    """One file that says nothing of what it is, but for the metadata given."""
    more = {key.replace("__", "."): value for key, value in metadata.items()}
    save_file(single_file(checkpoint), path, configs(checkpoint) | more)
    return path


def folder(checkpoint: Checkpoint, path: Path, scheduler: dict[str, Any]) -> Path:
    """A folder of diffusers with this scheduler and nothing in it from this pack."""
    save_folder(checkpoint, path)
    unet = path / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(unet), unet, {"format": "pt"})
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return path


def row_of(checkpoint: Checkpoint) -> str | None:
    return checkpoint.rule and checkpoint.rule.name


# --- told ---


@pytest.mark.parametrize("name", RULES)
def test_a_row_is_told(name: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    rule, path = RULES[name], silent(checkpoint, tmp_path / "x.safetensors")
    loaded = load(path, rule=name)
    assert row_of(loaded) == (None if name == "noise-minus-data" else name)
    assert loaded.prediction == {"noise-minus-data": "velocity"}.get(rule.prediction, rule.prediction)
    assert (loaded.stage, loaded.guidance) == (rule.stage, rule.guidance)
    assert loaded.said_by == f"the caller, by the rule {name}" and not loaded.prediction_is_assumed
    sign = -1 if name == "noise-minus-data" else 1
    assert torch.equal(loaded.unet["conv_out.bias"], sign * checkpoint.unet["conv_out.bias"])


@pytest.mark.parametrize("name", RULES)
def test_a_converted_file_and_folder_keep_it(name: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = silent(checkpoint, tmp_path / "x.safetensors")
    expected = load(path, rule=name)
    convert(path, tmp_path / "one.safetensors", rule=name)
    convert(tmp_path / "one.safetensors", tmp_path / "back")
    convert(tmp_path / "back", tmp_path / "again.safetensors")
    for kept in ("one.safetensors", "back", "again.safetensors"):
        loaded = load(tmp_path / kept)
        facts = ("prediction", "stage", "guidance", "rule", "rule_is_assumed", "prediction_is_assumed")
        assert [getattr(loaded, fact) for fact in facts] == [getattr(expected, fact) for fact in facts]
        assert torch.equal(loaded.unet["conv_out.bias"], expected.unet["conv_out.bias"])


@pytest.mark.parametrize("name", ["lcm", "hyper-sd", "rectified-diffusion", "tcd"])
def test_a_folders_scheduler_samples_the_row_in_diffusers(name: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    import diffusers

    convert(silent(checkpoint, tmp_path / "x.safetensors"), tmp_path / "model", rule=name)
    config = json.loads((tmp_path / "model" / "scheduler" / "scheduler_config.json").read_text())
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    scheduler.set_timesteps(1)

    def ask(x: torch.Tensor, t: float) -> torch.Tensor:
        return torch.tanh(1.3 * x + t / 1000)

    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    (t,) = scheduler.timesteps
    assert relative_distance(scheduler.step(ask(noise, t.item()), t, noise).prev_sample, ONE[name](ask, noise)) < 1e-5


def test_a_row_is_taken_away_by_a_prediction(checkpoint: Checkpoint, tmp_path: Path) -> None:
    convert(silent(checkpoint, tmp_path / "x.safetensors"), tmp_path / "lcm.safetensors", rule="lcm")
    plain = load(tmp_path / "lcm.safetensors", "epsilon")
    assert (row_of(plain), plain.stage, plain.prediction, plain.sampled_as) == (None, "teacher", "epsilon", "epsilon")
    assert load(tmp_path / "lcm.safetensors").sampled_as == "lcm"


# --- found ---


@pytest.mark.parametrize(
    "scheduler, name",
    [
        ({"_class_name": "LCMScheduler"}, "lcm"),
        ({"_class_name": "LCMScheduler", "original_inference_steps": 50, "beta_schedule": "scaled_linear"}, "lcm"),
        ({"_class_name": "LCMScheduler", "original_inference_steps": 100}, None),
        ({"_class_name": "LCMScheduler", "beta_schedule": "linear"}, None),
        ({"_class_name": "LCMScheduler", "prediction_type": "v_prediction"}, None),
        ({"_class_name": "LCMScheduler", "rescale_betas_zero_snr": True}, None),
        ({"_class_name": "TCDScheduler"}, "tcd"),
        ({"_class_name": "PeRFlowScheduler", "prediction_type": "diff_eps"}, "perflow"),
        ({"_class_name": "PeRFlowScheduler", "prediction_type": "ddim_eps"}, None),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"}, None),
    ],
)
def test_a_scheduler_says_it(
    scheduler: dict[str, Any], name: str | None, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    loaded = load(folder(checkpoint, tmp_path / "model", scheduler))
    assert row_of(loaded) == name and not loaded.rule_is_assumed
    if name:
        assert (loaded.stage, loaded.guidance) == (RULES[name].stage, RULES[name].guidance)


@pytest.mark.parametrize(
    "called, name",
    [
        ("DMD2-dreamshaper-v1-5", "dmd2"),
        ("my_dmd2.fp16", "dmd2"),
        ("SiD_LSG-cfg4.5", "sid-lsg"),
        ("dmd2-and-sid-lsg", None),
        ("admd2x", None),
        ("dreamshaper-8-lcm", None),
        ("model", None),
    ],
)
def test_a_name_says_it_and_that_is_an_assumption(
    called: str, name: str | None, checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = silent(checkpoint, tmp_path / f"{called}.safetensors")
    for source in (file, folder(checkpoint, tmp_path / called, SCHEDULER)):
        loaded = load(source)
        assert (row_of(loaded), loaded.rule_is_assumed) == (name, name is not None)
        assert cli.main(["convert", str(source), str(tmp_path / "c.safetensors"), "--force"]) == 0
        assert (f"is taken for a model of the rule {name}, by" in capsys.readouterr().err) == (name is not None)
        assert load(tmp_path / "c.safetensors").rule_is_assumed == (name is not None), "an assumption stays one"
    assert not load(file, rule="dmd2").rule_is_assumed
    assert load(file, rule="tcd").rule is RULES["tcd"], "the caller has the last word"


def test_a_repository_in_the_hubs_cache_says_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    place = tmp_path / "models--tianweiy--DMD2" / "snapshots" / "0123" / "model" / "sdv1.5"
    place.mkdir(parents=True)
    assert row_of(load(silent(checkpoint, place / "pytorch_model.safetensors"))) == "dmd2"


def test_what_a_file_says_goes_before_its_name(checkpoint: Checkpoint, tmp_path: Path) -> None:
    said = silent(checkpoint, tmp_path / "dmd2-flow.safetensors", instaflow__prediction="velocity")
    assert (row_of(load(said)), load(said).prediction) == (None, "velocity")
    kept = tmp_path / "dmd2.safetensors"
    convert(silent(checkpoint, tmp_path / "x.safetensors"), kept, rule="tcd")
    assert (row_of(load(kept)), load(kept).rule_is_assumed) == ("tcd", False)


def test_a_flow_says_its_row_by_its_stage() -> None:
    assert row_of(load("built-in: shapes")) == "instaflow"
    assert row_of(load("built-in: shapes-2rf")) == "2-rectified flow"
    assert row_of(load("built-in: shapes-teacher")) is None


# --- refused ---


def test_words_that_are_unknown_or_contradict_each_other(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = silent(checkpoint, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="Unknown rule 'turbo'; expected one of instaflow, "):
        load(path, rule="turbo")
    with pytest.raises(ValueError, match=r"The rule lcm is for a UNet that predicts epsilon, and .* said to be v"):
        load(path, "v", "lcm")
    assert load(path, "epsilon", "lcm").rule is RULES["lcm"]


@pytest.mark.parametrize("name", FEW_STEP)
@pytest.mark.parametrize("prediction", ["velocity", "v"])
def test_a_row_for_another_prediction(name: str, prediction: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = silent(checkpoint, tmp_path / "x.safetensors", instaflow__prediction=prediction)
    with pytest.raises(FormatError, match=f"predicts {prediction} .*which the rule {name} is for.*Leave the rule out"):
        load(path, rule=name)
    assert load(path, "epsilon", name).rule is RULES[name], "the caller knows better"


@pytest.mark.parametrize(
    "source, rule, words",
    [
        ("built-in: shapes", "2-rectified flow", "says that it is a one-step model"),
        ("built-in: shapes-2rf", "instaflow", "says that it is a 2-rectified-flow model"),
        ("built-in: shapes", "noise-minus-data", "predicts velocity"),
        ("built-in: shapes-teacher", "instaflow", "predicts epsilon"),
    ],
)
def test_a_row_for_another_flow(source: str, rule: str, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        load(source, rule=rule)


def test_a_row_for_a_model_of_another(checkpoint: Checkpoint, tmp_path: Path) -> None:
    convert(silent(checkpoint, tmp_path / "x.safetensors"), tmp_path / "lcm.safetensors", rule="lcm")
    with pytest.raises(
        FormatError, match=r"lcm\.safetensors says that its rule is lcm. Expected a model of the rule tcd"
    ):
        load(tmp_path / "lcm.safetensors", rule="tcd")


def test_a_row_for_a_schedule_of_zero_terminal_snr(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = folder(checkpoint, tmp_path / "model", SCHEDULER | {"rescale_betas_zero_snr": True})
    for prediction in (None, "epsilon"):
        with pytest.raises(FormatError, match=r"ends in zero terminal SNR.*which the rule lcm is for"):
            load(path, prediction, "lcm")


@pytest.mark.parametrize(
    "rule, prediction, words",
    [
        ("turbo", "epsilon", "instaflow.rule of x.safetensors is 'turbo'. Expected dmd2, "),
        ("instaflow", "velocity", "instaflow.rule of x.safetensors is 'instaflow'"),
        ("lcm", "velocity", "instaflow.rule of x.safetensors is 'lcm', and its UNet predicts velocity"),
    ],
)
def test_metadata_that_no_pack_wrote(
    rule: str, prediction: str, words: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    more = {"instaflow__rule": rule, "instaflow__prediction": prediction}
    with pytest.raises(FormatError, match=re.escape(words)):
        load(silent(checkpoint, tmp_path / "x.safetensors", **more))


@pytest.mark.parametrize(
    "extra, words",
    [("add_embedding.linear_1.weight", "Stable Diffusion XL"), ("time_embedding.cond_proj.weight", "by the rule lcm")],
)
def test_a_row_does_not_make_another_model_one(extra: str, words: str, checkpoint: Checkpoint, tmp_path: Path) -> None:
    save_file(checkpoint.unet | {extra: torch.zeros(2, 2)}, tmp_path / "unet.safetensors", configs(checkpoint))
    with pytest.raises(FormatError, match=words):
        load(tmp_path / "unet.safetensors", rule="lcm")


# --- files as the authors publish them ---


@pytest.mark.parametrize("ending", ["bin", "ckpt", "pt"])
def test_a_state_dict_of_a_unet_alone(ending: str, tmp_path: Path) -> None:
    """As DMD2's pytorch_model.bin and Rectified Diffusion's rd.ckpt are, but small; read without running anything."""
    from sd15 import UNET, random_weights

    from instaflow_core.weights.matching import rows_of

    config = UNET | {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1}
    unet = random_weights(rows_of("unet", config))
    torch.save(unet, tmp_path / f"pytorch_model.{ending}")
    loaded = load(tmp_path / f"pytorch_model.{ending}", rule="dmd2")
    assert loaded.layout == "UNet alone, diffusers names" and loaded.rule is RULES["dmd2"]
    assert loaded.unet.keys() == unet.keys()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["pickle", "torch", "old torch"])
def test_a_whole_module_is_refused_with_the_way_to_its_state_dict(kind: str, tmp_path: Path) -> None:
    """And that way leads to a file that is read: what the message says is run as it stands."""
    module, path = torch.nn.Linear(2, 3), tmp_path / "batch512_cfg4.54.54.5_t625_8380_v2.pkl"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(module))
    else:
        torch.save(module, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(FormatError, match="holds Python objects or code; it was not run") as refusal:
        read_weights(path)
    words = str(refusal.value)
    assert "in a sandbox" in words and "\n" not in words
    opened = 'pickle.load(open(FILE, "rb"))' if kind == "pickle" else "torch.load(FILE, weights_only=False)"
    saved = re.search(r"safetensors\.torch\.save_file\(.*, NAME\)", words)
    assert opened in words and saved
    program = (
        f"import pickle, sys, torch, safetensors.torch; FILE, NAME = sys.argv[1:]; model = {opened}; {saved.group()}"
    )
    made = tmp_path / "module.safetensors"
    subprocess.run([sys.executable, "-c", program, str(path), str(made)], check=True)
    assert torch.equal(read_weights(made)[0]["weight"], module.weight)


# --- the commands ---


@pytest.fixture(scope="module")
def ask(checkpoint: Checkpoint) -> Ask:
    unet, states = build_unet(checkpoint), encode_prompts(build_text_encoder(checkpoint), [PROMPT])

    @torch.no_grad()
    def asked(x: torch.Tensor, t: float) -> torch.Tensor:
        return unet(x, float(t), encoder_hidden_states=states, return_dict=False)[0]

    return asked


@pytest.mark.parametrize("name", ["dmd2", "sid-lsg", "rectified-diffusion", "perflow"])
def test_generate_draws_the_authors_picture(name: str, checkpoint: Checkpoint, ask: Ask, tmp_path: Path) -> None:
    loaded = load(silent(checkpoint, tmp_path / "x.safetensors"), rule=name)
    request = GenerationRequest(PROMPT, seed=3).settled(loaded)
    assert (request.steps, request.guidance) == (RULES[name].steps, RULES[name].guidance)
    request = GenerationRequest(PROMPT, seed=3, guidance=1.0).settled(loaded)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    vae = build_vae(checkpoint)
    with torch.no_grad():
        decoded = vae.decode(ONE[name](ask, noise) / vae.config.scaling_factor, return_dict=False)[0]
    assert (generate(loaded, request) - (decoded / 2 + 0.5).clamp(0, 1)).abs().max() < 1e-4


def test_what_is_evaluated_are_the_authors_pictures(checkpoint: Checkpoint, ask: Ask, tmp_path: Path) -> None:
    from instaflow_core.evaluation.drawing import Drawing
    from instaflow_core.pictures.images import to_images

    drawing = Drawing(load(silent(checkpoint, tmp_path / "x.safetensors"), rule="sid-lsg"))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    (drawn,) = drawing.pictures([PROMPT], noise, 1, 1.0)
    vae = build_vae(checkpoint)
    with torch.no_grad():
        (expected,) = to_images(
            vae.decode(ONE["sid-lsg"](ask, noise) / vae.config.scaling_factor, return_dict=False)[0]
        )
    difference = torch.tensor([*drawn.tobytes()]).int() - torch.tensor([*expected.tobytes()]).int()
    assert difference.abs().max() <= 1


def test_the_commands_take_a_rule(checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = str(silent(checkpoint, tmp_path / "x.safetensors")), str(tmp_path / "out.png")
    assert cli.main(["info", path, "--json", "--rule", "2-rectified flow"]) == 0
    assert json.loads(capsys.readouterr().out)["rule"] == "2-rectified flow"
    assert cli.main(["info", path, "--json", "--rule", "sid-lsg"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rule"], facts["prediction"], facts["stage"]) == ("sid-lsg", "epsilon", "few-step")
    assert facts["licence"] == "unknown; the released weights are Apache-2.0"
    common = ["--checkpoint", path, "--prompt", PROMPT, "--device", "cpu", "--out", out]
    assert cli.main(["generate", *common, "--rule", "tcd", "--steps", "2"]) == 0
    assert cli.main(["generate", *common, "--rule", "tcd", "--steps", "51"]) == 2
    assert "Give 1 to 50" in capsys.readouterr().err
    assert cli.main(["generate", *common, "--rule", "tcd", "--prediction", "v"]) == 2
    assert "said to be v" in capsys.readouterr().err
    assert cli.main(["convert", path, str(tmp_path / "kept.safetensors"), "--rule", "hyper-sd"]) == 0
    with safe_open(tmp_path / "kept.safetensors", "pt") as file:
        assert file.metadata()["instaflow.rule"] == "hyper-sd"


def test_a_few_step_teacher_makes_triplets_by_its_rule(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = str(silent(checkpoint, tmp_path / "x.safetensors"))
    (tmp_path / "prompts.txt").write_text("a red star on a blue background")
    command = ["triplets", "--teacher", path, "--prompts", str(tmp_path / "prompts.txt"), "--count", "2"]
    more = ["--rule", "dmd2", "--steps", "1", "--device", "cpu", "--out", str(tmp_path / "set")]
    assert cli.main([*command, *more]) == 0
    source = json.loads((tmp_path / "set" / "set.json").read_text())["source"]
    assert (source["solver"], source["guidance"], source["stage"]) == ("dmd2", 1.0, "few-step")


def test_what_a_training_makes_of_a_few_step_model_is_a_flow(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from instaflow_core.training.results import result_of
    from instaflow_core.triplets.format import SetInfo

    init = load(silent(checkpoint, tmp_path / "dmd2.safetensors"))
    trained = result_of(init, build_unet(init), {"stage": "reflow"}, SetInfo(2, 0, (4, 8, 8)))
    save(trained, tmp_path / "flow.safetensors")
    loaded = load(tmp_path / "flow.safetensors")
    assert (row_of(loaded), loaded.rule_is_assumed, loaded.prediction) == ("2-rectified flow", False, "velocity")
