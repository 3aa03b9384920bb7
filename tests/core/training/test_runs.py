"""The paper's three steps through the command line, on a small random model and on the built-in teacher."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_models import small_checkpoint

from instaflow_core.__main__ import main
from instaflow_core.shapes.making.anatomy import new_vae
from instaflow_core.training.loop import LoopConfig
from instaflow_core.training.objectives import perceptual_loss
from instaflow_core.training.runs import StageConfig, equal_parts, train
from instaflow_core.triplets.format import SetInfo
from instaflow_core.triplets.prompts import read_prompts
from instaflow_core.triplets.storage import Storage
from instaflow_core.triplets.writing import SetWriter
from instaflow_core.weights.checkpoint import load
from instaflow_core.weights.modules import build_unet
from instaflow_core.weights.saving import save

ROOT = Path(__file__).resolve().parents[3]
PROMPTS = ["a red star on a blue background", "a green ring on a white background", "a black heart on a red background"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """teacher.safetensors and flow.safetensors (random), prompts.txt, and teacher-set, 10 triplets of the teacher."""
    place = tmp_path_factory.mktemp("runs")
    save(small_checkpoint("teacher", "epsilon"), place / "teacher.safetensors")
    save(small_checkpoint("2-rectified-flow", seed=1), place / "flow.safetensors")
    (place / "prompts.txt").write_text("\n".join([*PROMPTS, "", ""]))
    assert main(triplets(place, "teacher", "teacher-set")) == 0
    return place


def triplets(place: Path, teacher: str, out: str, *more: str) -> list[str]:
    sizes = ["--count", "10", "--steps", "2", "--batch-size", "3", "--seed", "7", "--device", "cpu"]
    names = ["--teacher", str(place / f"{teacher}.safetensors"), "--prompts", str(place / "prompts.txt")]
    return ["triplets", *names, *sizes, "--out", str(place / out), *more]


def training(stage: str, place: Path, init: str, out: str, *more: str) -> list[str]:
    names = ["--init", str(place / f"{init}.safetensors"), "--triplets", str(place / "teacher-set")]
    numbers = ["--iterations", "6", "--batch-size", "4", "--lr", "1e-3", "--warmup", "2", "--ema", "0.9"]
    rest = ["--checkpoint-every", "2", "--sample-every", "3", "--device", "cpu", "--out", str(place / out)]
    return [stage, *names, *numbers, *rest, *more]


def content(place: Path) -> dict[str, str]:
    """A digest of every result under a folder, by its name relative to it: of all files but the checkpoint."""
    files = (path for path in place.rglob("*") if path.is_file() and path.name != "state.pt")
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize(
    ("stage", "init", "is_now"), [("reflow", "teacher", "2-rectified-flow"), ("distill", "flow", "one-step")]
)
def test_a_training_ends_in_a_checkpoint_that_says_what_it_is(folder, capsys, stage, init, is_now):
    out = folder / f"{stage}.safetensors"
    assert main(training(stage, folder, init, out.name)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    trained = load(out)
    assert (trained.stage, trained.prediction, trained.native_size) == (is_now, "velocity", 64)
    record = json.loads(trained.metadata["instaflow.training"])
    assert record["stage"] == stage
    assert record["triplets"]["source"]["solver"] == "DPM-Solver++"
    before = load(folder / f"{init}.safetensors")
    assert any(not torch.equal(before.unet[name], tensor) for name, tensor in trained.unet.items())
    work = folder / f"{stage}.training"
    assert len((work / "loss.csv").read_text().splitlines()) == 7
    assert sorted(path.name for path in (work / "samples").iterdir()) == ["000003.png", "000006.png"]
    assert Image.open(work / "loss.png").size == (768, 512)
    picture = folder / "made.png"
    assert main(["generate", "--checkpoint", str(out), "--prompt", "x", "--device", "cpu", "--out", str(picture)]) == 0


def test_a_training_can_end_in_a_diffusers_folder(folder):
    left_by_kills = [folder / ".as-folder.abc.tmp" / "unet", folder / ".as-folder.abc.old" / "as-folder"]
    for left in left_by_kills:
        left.mkdir(parents=True)
        (left / "config.json").write_text("{")
    assert main(training("reflow", folder, "teacher", "as-folder")) == 0
    assert load(folder / "as-folder").stage == "2-rectified-flow"
    # Until the new folder is there, the one moved aside for it may be the only one.
    assert [left.exists() for left in left_by_kills] == [False, True]
    assert main(training("reflow", folder, "teacher", "as-folder", "--resume")) == 0
    assert not left_by_kills[1].exists()


def test_a_lora_is_written_beside_the_merged_checkpoint(folder):
    more = ("--method", "lora", "--rank", "4", "--save-dtype", "fp32")
    assert main(training("distill", folder, "flow", "lora.safetensors", *more)) == 0
    merged, before = load(folder / "lora.safetensors").unet, load(folder / "flow.safetensors").unet
    adapter = load_file(folder / "lora.training" / "lora.safetensors")
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    down, up, alpha = (
        adapter[f"lora_unet_{name.replace('.', '_')}.{end}"] for end in ("lora_down.weight", "lora_up.weight", "alpha")
    )
    assert down.shape[0] == alpha == 4
    torch.testing.assert_close(merged[f"{name}.weight"], before[f"{name}.weight"] + up @ down)
    assert torch.equal(merged["conv_in.weight"], before["conv_in.weight"])
    assert set(merged) == set(before)
    build_unet(load(folder / "lora.safetensors"))


def test_a_result_of_another_origin_is_not_replaced(folder, capsys):
    out = folder / "theirs.safetensors"
    out.write_bytes((folder / "flow.safetensors").read_bytes())
    command = [*training("reflow", folder, "teacher", out.name), "--resume"]
    assert main(command) == 2
    assert "not a result of this run" in capsys.readouterr().err
    assert out.read_bytes() == (folder / "flow.safetensors").read_bytes()
    out.unlink()
    assert main(command) == 0
    made = out.read_bytes()
    shutil.rmtree(folder / "theirs.training")
    assert main(command) == 0
    assert out.read_bytes() == made
    assert main([*command, "--seed", "3"]) == 2


def test_the_metadata_of_the_start_is_inherited_where_it_still_holds(folder):
    init = load(folder / "teacher.safetensors")
    init.metadata |= {"modelspec.resolution": "512x512", "instaflow.license": "CC-BY"}
    save(init, folder / "described.safetensors")
    assert main(training("reflow", folder, "described", "inherits.safetensors")) == 0
    metadata = load(folder / "inherits.safetensors").metadata
    assert (metadata["modelspec.resolution"], metadata["instaflow.license"]) == ("64x64", "CC-BY")


@pytest.mark.parametrize("name", ["stage", "method", "times", "loss"])
def test_an_unknown_choice_is_named(folder, name):
    config = replace(StageConfig("reflow", LoopConfig(1)), **{name: "new"})
    with pytest.raises(ValueError, match=f"Unknown {name} 'new'; expected one of"):
        train(load(folder / "teacher.safetensors"), Storage(str(folder / "teacher-set")), config, folder / "x")


def test_what_is_there_is_not_trained_over(folder, capsys):
    command = training("distill", folder, "flow", "twice.safetensors")
    assert main(command) == 0
    before = content(folder / "twice.training")
    assert main(command) == 2
    assert "Give another name, resume, or remove" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert content(folder / "twice.training") == before


def test_a_set_for_distillation_is_made_by_euler_steps_with_guidance(folder):
    assert main(triplets(folder, "flow", "flow-set")) == 0
    source = json.loads((folder / "flow-set" / "set.json").read_text())["source"]
    assert (source["solver"], source["guidance"]) == ("Euler", 1.5)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("--count", "0"), "count is 0"),
        (("--steps", "0"), "steps is 0"),
        (("--width", "65"), "multiples of 8"),
        (("--seed", "8"), "Choose another folder"),
        (("--prompts", "no-such-file.txt"), "neither a file nor a dataset"),
        (("--out", "nowhere://set"), "cannot be opened"),
    ],
)
def test_bad_input_for_triplets_is_one_clear_line(folder, capsys, command, message):
    before = content(folder / "teacher-set")
    assert main([*triplets(folder, "teacher", "teacher-set"), *command]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert content(folder / "teacher-set") == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("--iterations", "0"), "iterations is 0"),
        (("--batch-size", "0"), "batch_size is 0"),
        (("--accumulate", "3"), "multiple of 3"),
        (("--triplets", "no-such-set"), "no set of triplets"),
        (("--on-policy", "1.5"), "on_policy is 1.5. Give a share from 0 to 1."),
        (("--loss", "lpips"), "VGG16, and they could not be downloaded"),
        (("--out", "x.ckpt"), "x.ckpt is no name for a result"),
        (("--precision", "fp16"), "The CPU does not train in fp16"),
        (("--lr", "1e30", "--warmup", "0"), "The loss is nan at iteration"),
    ],
)
def test_bad_input_for_training_is_one_clear_line(folder, capsys, monkeypatch, tmp_path, command, message):
    # An empty cache, and a proxy that is not there: nothing can be downloaded, on any machine.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert main([*training("distill", folder, "flow", "bad.safetensors"), *command]) == 2
    error = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()[-1]
    assert message in error
    assert not (folder / "bad.safetensors").exists()


def test_one_gpu_of_several_is_not_chosen_by_its_number(folder):
    init, storage = load(folder / "teacher.safetensors"), Storage(str(folder / "teacher-set"))
    with pytest.raises(ValueError, match="Give cuda, and hide the others: CUDA_VISIBLE_DEVICES=1"):
        train(init, storage, StageConfig("reflow", LoopConfig(1)), folder / "x", device="cuda:1")


@pytest.mark.parametrize(("side", "parts"), [(8, 1), (64, 16), (128, 64)])
def test_a_batch_is_taken_in_parts_that_fit_a_gpu(tmp_path, side, parts):
    SetWriter(Storage(tmp_path), SetInfo(0, 0, (4, side, side)))
    assert equal_parts(64, Storage(tmp_path)) == parts


def test_prompts_come_from_any_column(tmp_path):
    (tmp_path / "data.csv").write_text("caption,other\none,1\ntwo,2\n")
    assert read_prompts(str(tmp_path / "data.csv"), 5) == ["one", "two"]
    assert read_prompts(str(tmp_path / "data.csv:other"), 1) == ["1"]
    with pytest.raises(ValueError, match="has the columns caption, other, and none is third"):
        read_prompts(str(tmp_path / "data.csv:third"), 1)
    with pytest.raises(ValueError, match="There is no file"):
        read_prompts(str(tmp_path / "none.csv:third"), 1)
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(str(tmp_path / "empty.txt"), 1)


def test_a_perceptual_loss_looks_at_decoded_pictures():
    """LPIPS itself, with untrained features: those of VGG are a download."""
    from lpips import LPIPS

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        distance = perceptual_loss(new_vae(0), LPIPS(net="alex", pnet_rand=True, verbose=False))
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    moved = (x + 0.1).requires_grad_(True)
    assert distance(x, x) == 0
    distance(moved, x).backward()
    assert moved.grad.abs().sum() > 0


def run(command: list[str], *, launcher: tuple[str, ...] = ("-m", "instaflow_core")) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *launcher, *command], env=environment, cwd=ROOT)


def test_killed_runs_end_as_undisturbed_ones(folder, tmp_path):
    """SIGKILL at random moments of all three commands, each started again until it is through."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # shown when the test fails
    moments = random.Random(seed)

    def commands(place: Path) -> list[tuple[list[str], int]]:
        made = triplets(folder, "teacher", "x", "--count", "700", "--steps", "4", "--out", str(place / "set"))
        many = ("--iterations", "60", "--checkpoint-every", "5", "--sample-every", "20", "--resume")
        over = ("--triplets", str(place / "set"))
        reflow = training("reflow", folder, "teacher", "x", *many, *over, "--out", str(place / "2rf.safetensors"))
        many += ("--on-policy", "0.5")
        distill = training("distill", place, "2rf", "x", *many, *over, "--out", str(place / "one.safetensors"))
        return [(made, 2), (reflow, 2), (distill, 2)]

    for command, _ in commands(tmp_path / "whole"):
        assert main(command) == 0
    (tmp_path / "killed").mkdir()
    for command, kills in commands(tmp_path / "killed"):
        for _ in range(kills):
            process = run(command)
            time.sleep(moments.uniform(4, 12))  # from before the first write to after the last, as the machine goes
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert run(command).wait() == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def losses(place: Path, name: str) -> torch.Tensor:
    lines = (place / f"{name}.training" / "loss.csv").read_text().splitlines()[1:]
    return torch.tensor([float(line.split(",")[1]) for line in lines])


def test_two_processes_give_what_one_gives(folder, tmp_path):
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1")
    launch += ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "instaflow_core")
    made = triplets(folder, "teacher", "shared-set", "--count", "600")
    assert main([*made, "--out", str(tmp_path / "one-set")]) == 0
    assert run([*made, "--out", str(tmp_path / "two-set")], launcher=launch).wait() == 0
    assert content(tmp_path / "one-set") == content(tmp_path / "two-set")
    for stage, init, more in (("reflow", "teacher", ()), ("distill", "flow", ("--on-policy", "0.5"))):
        command = training(stage, folder, init, "x", "--sample-every", "0", *more)
        assert main([*command, "--out", str(tmp_path / f"{stage}-1.safetensors")]) == 0
        assert run([*command, "--out", str(tmp_path / f"{stage}-2.safetensors")], launcher=launch).wait() == 0
        torch.testing.assert_close(losses(tmp_path, f"{stage}-2"), losses(tmp_path, f"{stage}-1"))
        one, two = (load(tmp_path / f"{stage}-{n}.safetensors").unet for n in (1, 2))
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, atol=2e-4, rtol=1e-3)


def test_ctrl_c_leaves_a_checkpoint_of_that_step(folder: Path) -> None:
    command: Any = training("reflow", folder, "teacher", "stopped.safetensors", "--iterations", "100000")
    process = run([*command, "--checkpoint-every", "100000", "--sample-every", "0"])
    time.sleep(15)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130
    state = torch.load(folder / "stopped.training" / "state.pt", weights_only=True)
    assert state["step"] == len(state["losses"]) > 0
