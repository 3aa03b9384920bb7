"""The command line: generate, info and convert on real files, and bad input answered in one line."""

from __future__ import annotations

import _thread
import json
import shutil
import signal
import subprocess
import sys
import threading
from argparse import ArgumentTypeError
from dataclasses import asdict
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import save_lora, small_checkpoint

from instaflow_core import __main__ as cli
from instaflow_core.commands import generating
from instaflow_core.commands.common import device
from instaflow_core.commands.memory import memory_advice
from instaflow_core.flow.diffusion import dpm_solver
from instaflow_core.flow.guidance import GuidedUNet
from instaflow_core.flow.noise import draw_noise
from instaflow_core.generate import GenerationRequest, generate, save_pictures
from instaflow_core.text import encode_prompts
from instaflow_core.triplets.format import read_info, read_shard
from instaflow_core.triplets.storage import Storage
from instaflow_core.weights.checkpoint import Checkpoint, load
from instaflow_core.weights.modules import build_text_encoder, build_unet, build_vae
from instaflow_core.weights.saving import save, save_folder

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small models: one-step (tiny autoencoder), two-rf (AutoencoderKL) and teacher."""
    folder = tmp_path_factory.mktemp("models")
    training = {"instaflow.training": '{"seed": 7, "iterations": 100}', "instaflow.license": "GPL-3.0"}
    one_step = small_checkpoint()
    save(Checkpoint(**vars(one_step) | {"metadata": one_step.metadata | training}), folder / "one-step.safetensors")
    save(small_checkpoint("2-rectified-flow", vae="kl", seed=1), folder / "two-rf.safetensors")
    save(small_checkpoint("teacher", "epsilon", seed=2), folder / "teacher.safetensors")
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command that must end with exit code 2 says, in its last line."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse's own way
        code = stop.code
    said = capsys.readouterr()
    assert code == 2 and said.out == ""
    assert "Traceback" not in said.err
    return said.err.strip().splitlines()[-1]


# --- generate ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 3])
def test_a_picture_is_the_euler_loop_of_the_paper(steps: int, models: Path) -> None:
    checkpoint = load(models / "one-step.safetensors")
    request = GenerationRequest("a red circle", seed=5, steps=steps, batch_size=2).settled(checkpoint)
    unet, vae = build_unet(checkpoint), build_vae(checkpoint)
    text = encode_prompts(build_text_encoder(checkpoint), ["a red circle"]).expand(2, -1, -1)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    for i in range(steps):
        x = x + unet(x, 1000 * (1 - i / steps), encoder_hidden_states=text).sample / steps
    expected = (vae.decode(x).sample / 2 + 0.5).clamp(0, 1)  # this autoencoder's latents are scaled already
    assert torch.allclose(generate(checkpoint, request), expected, atol=1e-5)


@torch.no_grad()
def test_guidance_and_the_latents_of_a_full_autoencoder(models: Path) -> None:
    checkpoint = load(models / "two-rf.safetensors")
    request = GenerationRequest("a red circle", negative="blue", seed=1, steps=2, width=96).settled(checkpoint)
    assert request.guidance == 1.5, "what a 2-rectified flow wants"
    unet, vae, text_encoder = build_unet(checkpoint), build_vae(checkpoint), build_text_encoder(checkpoint)
    text, negative = (encode_prompts(text_encoder, [prompt]) for prompt in ("a red circle", "blue"))
    x = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    for time in (1000.0, 500.0):
        v_text = unet(x, time, encoder_hidden_states=text).sample
        v_negative = unet(x, time, encoder_hidden_states=negative).sample
        x = x + (v_negative + 1.5 * (v_text - v_negative)) / 2
    expected = (vae.decode(x / 0.18215).sample / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(generate(checkpoint, request), expected, atol=1e-4)


@torch.no_grad()
def test_a_teacher_is_sampled_as_a_diffusion_model(models: Path) -> None:
    checkpoint = load(models / "teacher.safetensors")
    request = GenerationRequest("a red circle", seed=2).settled(checkpoint)
    assert (request.steps, request.guidance) == (25, 5.0)
    text, negative = (encode_prompts(build_text_encoder(checkpoint), [prompt]) for prompt in ("a red circle", ""))
    noise = draw_noise(2, (1, 4, 8, 8))
    latents = dpm_solver(GuidedUNet(build_unet(checkpoint), text, negative, 5.0), noise, 25)
    expected = (build_vae(checkpoint).decode(latents).sample / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(generate(checkpoint, request), expected, atol=1e-5)


ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}


@pytest.fixture(scope="module")
def zero_snr(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A teacher trained to zero terminal SNR as diffusers and as other trainers keep it: a folder whose scheduler says
    so, and a file of the same weights with the markers."""
    place = tmp_path_factory.mktemp("zero-snr")
    teacher = small_checkpoint("teacher", "v", seed=4)
    save_folder(teacher, place / "folder")
    scheduler = place / "folder" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | ZERO_SNR | {"_class_name": "DDIMScheduler"}))
    save(teacher, place / "file.safetensors")
    with safe_open(place / "file.safetensors", "pt") as file:
        header = file.metadata()
    markers = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    configs = {name: text for name, text in header.items() if name.endswith("_config")}
    save_file(load_file(place / "file.safetensors") | markers, place / "file.safetensors", configs)
    return place / "folder", place / "file.safetensors"


@torch.no_grad()
def test_a_teacher_with_zero_terminal_snr(zero_snr: tuple[Path, Path], tmp_path: Path) -> None:
    """Sampled as diffusers samples that folder, also from a file with the markers, also when saved again."""
    scheduler = DPMSolverMultistepScheduler.from_pretrained(zero_snr[0] / "scheduler")
    scheduler.set_timesteps(6)
    checkpoint = load(zero_snr[0])
    text, negative = (encode_prompts(build_text_encoder(checkpoint), [prompt]) for prompt in ("a red circle", ""))
    guided, x = GuidedUNet(build_unet(checkpoint), text, negative, 3.0), draw_noise(2, (1, 4, 8, 8))
    for timestep in scheduler.timesteps:
        x = scheduler.step(guided(x, timestep), timestep, x).prev_sample
    expected = (build_vae(checkpoint).decode(x).sample / 2 + 0.5).clamp(0, 1)
    save(checkpoint, tmp_path / "again.safetensors")
    assert "ztsnr" in load_file(tmp_path / "again.safetensors")
    save_folder(load(zero_snr[1]), tmp_path / "again")
    assert json.loads((tmp_path / "again" / "model_index.json").read_text())["scheduler"][1] == "DDIMScheduler"
    kept = DDIMScheduler.from_pretrained(tmp_path / "again" / "scheduler").config
    assert {name: kept[name] for name in ZERO_SNR} == ZERO_SNR
    for source in (*zero_snr, tmp_path / "again.safetensors", tmp_path / "again"):
        made = load(source)
        request = GenerationRequest("a red circle", seed=2, steps=6, guidance=3.0).settled(made)
        assert torch.allclose(generate(made, request), expected, atol=1e-5)


def test_triplets_of_a_teacher_with_zero_terminal_snr(
    zero_snr: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `generate` samples it; the set says so, and another schedule would be another set."""
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    numbers = ["--count", "1", "--steps", "3", "--guidance", "1", "--seed", "5", "--device", "cpu"]
    names = ["--teacher", str(zero_snr[1]), "--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "set")]
    assert cli.main(["triplets", *names, *numbers]) == 0
    storage = Storage(tmp_path / "set")
    info = read_info(storage)
    assert info.source["solver"] == "DPM-Solver++ from zero SNR"
    checkpoint = load(zero_snr[1])
    text = encode_prompts(build_text_encoder(checkpoint), ["a red circle"])
    with torch.no_grad():
        latents = dpm_solver(GuidedUNet(build_unet(checkpoint), text), info.noise([0]), 3, None, "v", True)
    torch.testing.assert_close(read_shard(storage, info, 0).latents.float(), latents, rtol=1e-2, atol=1e-2)
    capsys.readouterr()


def test_zero_terminal_snr_with_a_prediction_of_the_noise_is_refused(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    save_folder(load(models / "teacher.safetensors"), folder)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"rescale_betas_zero_snr": True}))
    (tmp_path / "prompts.txt").write_text("x\n")
    said = refused(capsys, "generate", "--checkpoint", folder, "--prompt", "x", "--out", tmp_path / "a.png")
    assert "zero terminal SNR, and predicts epsilon" in said and "Say --prediction v if" in said
    named = ["--prompts", tmp_path / "prompts.txt", "--count", 1, "--out", tmp_path / "set"]
    assert "zero terminal SNR" in refused(capsys, "triplets", "--teacher", folder, *named)
    assert not (tmp_path / "set").exists()
    assert cli.main(["generate", "--checkpoint", str(folder), "--prediction", "v", "--prompt", "x", "--steps", "1",
                     "--out", str(tmp_path / "a.png")]) == 0  # fmt: skip
    capsys.readouterr()
    assert "zero terminal SNR" in refused(capsys, "evaluate", "--checkpoint", folder)


def test_generate_writes_a_png_that_says_how_it_was_made(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "a.png"
    checkpoint = models / "one-step.safetensors"
    prompt = "a yellow star — on purple"
    arguments = ["--checkpoint", checkpoint, "--prompt", prompt, "--seed", 3, "--draw", "diffusers fp16", "--out", out]
    assert cli.main(["generate", *map(str, arguments)]) == 0
    assert capsys.readouterr().out.split() == [str(out)]
    image = Image.open(out)
    assert image.size == (64, 64) and image.mode == "RGB"
    parameters = json.loads(image.text["parameters"])  # type: ignore[attr-defined]
    expected = GenerationRequest(prompt, seed=3, draw="diffusers fp16").settled(load(checkpoint))
    assert parameters == asdict(expected) | {"checkpoint": str(checkpoint), "dtype": "fp32"}
    pixels = generate(load(checkpoint), expected)[0].permute(1, 2, 0) * 255
    assert np.array_equal(np.asarray(image), pixels.round().to(torch.uint8).numpy())
    assert list(out.parent.iterdir()) == [out]


def test_a_batch_is_numbered(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--checkpoint", models / "one-step.safetensors", "--prompt", "x", "--batch-size", 2]
    arguments += ["--width", 72, "--dtype", "bf16", "--device", "cpu", "--out", tmp_path / "a.png"]
    assert cli.main(["generate", *map(str, arguments)]) == 0
    paths = [tmp_path / "a-1.png", tmp_path / "a-2.png"]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    assert [Image.open(path).size for path in paths] == [(72, 64)] * 2


def test_pictures_that_cannot_be_written_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OSError):
        save_pictures(torch.zeros(1, 3, 8, 8), tmp_path / "a.png", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "options, said",
    [
        (["--steps", 0], "steps is 0. Give 1 or more."),
        (["--batch-size", 0], "batch-size is 0. Give 1 or more."),
        (["--width", 60], "width 60 does not fit this autoencoder. Give a multiple of 8, 8 or more"),
        (["--height", -8], "height -8 does not fit"),
        (["--width", 0], "width 0 does not fit"),
        (["--guidance", 2], "guidance is 2.0, and a one-step InstaFlow was trained without guidance"),
        (["--seed", -1], "the seed is -1"),
        (["--seed", "x"], "argument --seed: invalid"),
        (["--device", "tpu"], "this machine has no device 'tpu'; it has cpu"),
        (["--device", "cpu:1"], "this machine has no device 'cpu:1'; it has cpu"),
        (["--draw", "torch"], "argument --draw: invalid choice"),
        (["--out", "a.jpg"], "--out a.jpg is not a PNG"),
        (["--checkpoint", "built-in: cats"], "No built-in model is called 'built-in: cats'"),
        (["--checkpoint", "nothing.safetensors"], "There is nothing at nothing.safetensors"),
    ],
)
def test_generate_refuses(
    options: list[object], said: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["generate", "--checkpoint", models / "one-step.safetensors", "--prompt", "x", "--out", tmp_path / "a.png"]
    assert said in refused(capsys, *start, *options)
    assert list(tmp_path.iterdir()) == []


def test_devices_are_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of two cards."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    names = ("auto", "cpu", "cuda", "cuda:0", "cuda:1")
    assert [device(name) for name in names] == ["cuda", "cpu", "cuda", "cuda:0", "cuda:1"]
    for name in ("cuda:7", "cuda:2", "cuda:x", "cuda:", "mps", ""):
        with pytest.raises(ArgumentTypeError, match=f"no device '{name}'; it has cpu, cuda:0, cuda:1$"):
            device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device("auto") == "mps"
    with pytest.raises(ArgumentTypeError, match=r"no device 'cuda'; it has cpu, mps$"):
        device("cuda")


# --- memory that does not suffice -------------------------------------------------------------------------------------


def test_more_pictures_than_memory_holds(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A petabyte of noise, more than a process can address."""
    more = ["--batch-size", 10**12, "--device", "cpu", "--out", tmp_path / "a.png"]
    said = refused(capsys, "generate", "--checkpoint", models / "one-step.safetensors", "--prompt", "x", *more)
    assert said.startswith("python -m instaflow_core generate: error: the memory of cpu does not suffice (")
    assert "1024000000000000 bytes" in said
    assert "give a smaller --batch-size, a smaller --width and --height, --dtype bf16; or end other programs" in said
    assert list(tmp_path.iterdir()) == []


CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.12 GiB is "
    "free. Including non-PyTorch memory, this process has 22.51 GiB memory in use."
)
MPS = (
    "MPS backend out of memory (MPS allocated: 17.95 GB, other allocations: 1.00 KB, max allowed: 18.13 GB). Tried to "
    "allocate 256.00 MB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for memory "
    "allocations (may cause system failure)."
)
WINDOWS = (
    "[enforce fail at alloc_cpu.cpp:116] data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."
)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.cuda.OutOfMemoryError(CUDA), "(CUDA out of memory. Tried to allocate 20.00 GiB)"),
        (RuntimeError(MPS), "(MPS backend out of memory"),
        (RuntimeError(WINDOWS), "not enough memory: you tried to allocate 8 bytes)"),
        (MemoryError(), "(nothing is left)"),
    ],
)
def test_out_of_memory_is_one_line_on_every_device(
    error: Exception, words: str, models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: Any) -> None:
        raise error

    monkeypatch.setattr(generating, "generate", exhausted)
    said = refused(capsys, "generate", "--checkpoint", models / "one-step.safetensors", "--prompt", "x")
    assert words in said and "give a smaller --batch-size" in said and "PYTORCH_MPS" not in said


def test_a_training_out_of_memory_is_told_what_lowers_its_need() -> None:
    asked = ["reflow", "--init", "a", "--triplets", "b", "--iterations", "1", "--out", "c", "--device", "cpu"]
    said = memory_advice(torch.cuda.OutOfMemoryError(CUDA), cli._parser().parse_args(asked))
    for option in ("--accumulate", "--precision bf16", "--gradient-checkpointing", "--method lora", "adamw8bit"):
        assert option in said
    said = memory_advice(MemoryError(), cli._parser().parse_args(["info", "a"]))
    assert said.endswith("To have more, end other programs there.")


def test_another_error_keeps_its_traceback(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(generating, "generate", broken)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        cli.main(["generate", "--checkpoint", str(models / "one-step.safetensors"), "--prompt", "x"])


def test_generate_needs_the_whole_model(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = load(models / "one-step.safetensors")
    save(Checkpoint(whole.unet, whole.unet_config), tmp_path / "unet.safetensors")
    said = refused(capsys, "generate", "--checkpoint", tmp_path / "unet.safetensors", "--prompt", "x")
    assert "holds a UNet only, and the text encoder is needed" in said


# --- info -------------------------------------------------------------------------------------------------------------


def test_info_says_what_a_checkpoint_is(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(models / "one-step.safetensors")
    assert cli.main(["info", path, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    unet = load(path).unet
    expected: dict[str, Any] = {
        "checkpoint": path,
        "layout": "single file, ldm names",
        "stage": "one-step",
        "prediction": "velocity",
        "guidance": 1.0,
        "native size": 64,
        "licence": "GPL-3.0",
        "training": {"seed": 7, "iterations": 100},
        "unet": {
            "class": "UNet2DConditionModel",
            "parameters": sum(tensor.numel() for tensor in unet.values()),
            "dtype": "float32",
        },
    }
    assert {key: facts[key] for key in expected} == expected
    assert facts["text encoder"]["class"] == "CLIPTextModel" and facts["vae"]["class"] == "AutoencoderTiny"
    assert cli.main(["info", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == list(facts)
    assert 'training:           {"seed": 7, "iterations": 100}' in lines


def test_info_of_a_unet_alone(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = load(models / "teacher.safetensors")
    save(Checkpoint(teacher.unet, teacher.unet_config, metadata=teacher.metadata), tmp_path / "unet.safetensors")
    assert cli.main(["info", str(tmp_path / "unet.safetensors"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["vae"], facts["text encoder"], facts["training"], facts["licence"]) == (
        "none",
        "none",
        "no record",
        "unknown",
    )
    assert (facts["prediction"], facts["stage"], facts["layout"]) == ("epsilon", "teacher", "UNet alone, ldm names")


def test_info_refuses_a_lora_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_lora(tmp_path / "small.safetensors")
    said = refused(capsys, "info", tmp_path / "small.safetensors")
    assert said.startswith("python -m instaflow_core info: error: small.safetensors is a LoRA (kohya's layout)")


# --- convert ----------------------------------------------------------------------------------------------------------


def test_convert_there_and_back(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folder, back = models / "two-rf.safetensors", tmp_path / "folder", tmp_path / "back.safetensors"
    for arguments in ([path, folder], [folder, back], [folder, tmp_path / "half.safetensors", "--dtype", "fp16"]):
        assert cli.main(["convert", *map(str, arguments)]) == 0
        assert capsys.readouterr() == (f"{arguments[1]}\n", "")
    before, after = load_file(path), load_file(back)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert {tensor.dtype for tensor in load_file(tmp_path / "half.safetensors").values()} == {torch.float16}
    assert "exists already. Give another name, or --force" in refused(capsys, "convert", folder, back)
    assert cli.main(["convert", "--force", str(folder), str(back)]) == 0


def test_convert_repeats_the_licence(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", str(models / "one-step.safetensors"), str(tmp_path / "folder")]) == 0
    assert capsys.readouterr().err == "These weights are GPL-3.0; the licence holds for the converted ones too.\n"


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["generate", "info", "convert"])
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "example:" in said and f"python -m instaflow_core {command} " in said.split("example:")[1]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_name_the_console_cannot_show_is_escaped(
    encoding: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(models / "one-step.safetensors")
    for command in (
        ["generate", "--checkpoint", source, "--prompt", "x", "--out", str(tmp_path / "图.png")],
        ["convert", source, str(tmp_path / "模型.safetensors")],
        ["convert", str(tmp_path / "模型.safetensors"), str(tmp_path / "模型")],
        ["info", str(tmp_path / "模型")],
    ):
        console = TextIOWrapper(BytesIO(), encoding)  # as PYTHONIOENCODING makes it
        monkeypatch.setattr(sys, "stdout", console)
        monkeypatch.setattr(sys, "stderr", console)
        assert cli.main(command) == 0
        console.flush()
        assert command[-1].encode("ascii", "backslashreplace") in console.buffer.getvalue()  # type: ignore[attr-defined]
    assert {path.name for path in tmp_path.iterdir()} == {"图.png", "模型.safetensors", "模型"}


def test_a_tilde_is_the_home_folder_also_where_no_shell_said_so(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(work)
    shutil.copytree(models, home / "models")
    (home / "prompts.txt").write_text("a red circle")
    names = [f"unet.mid_block.attentions.0.proj_in.lora_{half}.weight" for half in "AB"]
    save_file({name: torch.ones(2, 2) for name in names}, home / "peft.safetensors")
    one, two = "~/models/one-step.safetensors", "~/models/teacher.safetensors"
    for command in (
        ["info", one],
        ["convert", one, "~/folder"],
        ["convert", "~/peft.safetensors", "~/kohya.safetensors"],
        ["generate", "--checkpoint", one, "--prompt", "x", "--out", "~/a.png"],
        ["extract-delta", two, one, "~/delta.safetensors"],
        ["merge-delta", one, "~/delta.safetensors", "~/merged.safetensors"],
        ["triplets", "--teacher", one, "--prompts", "~/prompts.txt", "--count", "2", "--steps", "1", "--out", "~/set"],
        ["reflow", "--init", one, "--triplets", "~/set", "--iterations", "1", "--batch-size", "2", "--out", "~/2rf"],
    ):
        assert cli.main(command) == 0, capsys.readouterr().err
    assert list(work.iterdir()) == []
    made = {"folder", "kohya.safetensors", "a.png", "delta.safetensors", "merged.safetensors", "set", "2rf"}
    assert made <= {path.name for path in home.iterdir()}


def test_no_command_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert "COMMAND" in refused(capsys)


def test_an_interrupt_ends_quietly(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--checkpoint", models / "one-step.safetensors", "--prompt", "x", "--steps", 1_000_000]
    ctrl_c = threading.Timer(1.0, _thread.interrupt_main)
    # A process started in the background ignores Ctrl-C, and so would this one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    ctrl_c.start()
    try:
        code = cli.main(["generate", *map(str, arguments), "--out", str(tmp_path / "a.png")])
    finally:
        ctrl_c.join()
        signal.signal(signal.SIGINT, before)
    assert code == 130 and capsys.readouterr().err.endswith("interrupted\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_it_runs_as_a_program(tmp_path: Path) -> None:
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html>")
    command = [sys.executable, "-m", "instaflow_core", "info", str(tmp_path / "page.safetensors")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.strip().splitlines()) == 1 and "page.safetensors is a web page" in done.stderr
