"""The paper's three steps through the command line, on a small random model and on the built-in teacher."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small_runs import content, training, triplets

from instaflow_core.__main__ import main
from instaflow_core.shapes.making.anatomy import new_vae
from instaflow_core.training.config import LoopConfig, StageConfig
from instaflow_core.training.objectives import perceptual_loss
from instaflow_core.training.runs import equal_parts, train
from instaflow_core.triplets.format import SetInfo
from instaflow_core.triplets.storage import Storage
from instaflow_core.triplets.writing import SetWriter
from instaflow_core.weights.checkpoint import load
from instaflow_core.weights.modules import build_unet
from instaflow_core.weights.saving import save

# Each is a whole run or more.
pytestmark = pytest.mark.slow


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
    by_time = [(work / f"loss_by_time.{end}").exists() for end in ("csv", "png")]
    assert by_time == [stage == "reflow"] * 2  # a student is asked at t = 0 alone
    picture = folder / "made.png"
    assert main(["generate", "--checkpoint", str(out), "--prompt", "x", "--device", "cpu", "--out", str(picture)]) == 0


def test_two_sets_take_turns_and_the_result_names_both(folder, capsys):
    kept = folder / "kept-set"
    assert main(triplets(folder, "flow", kept.name, "--seed", "4")) == 0
    command = training("distill", folder, "flow", "both.safetensors", "--triplets", str(kept))
    assert main(command) == 0
    sets = json.loads(load(folder / "both.safetensors").metadata["instaflow.training"])["triplets"]["sets"]
    assert [one["seed"] for one in sets] == [7, 4]
    SetWriter(Storage(folder / "larger"), SetInfo(1, 0, (4, 16, 16))).write(["a"], lambda _, noise: noise, batch_size=1)
    command = training("distill", folder, "flow", "neither.safetensors", "--triplets", str(folder / "larger"))
    assert main(command) == 2
    assert "latents of different shapes: (4, 8, 8), (4, 16, 16)" in capsys.readouterr().err


def test_samples_are_drawn_from_prompts_that_are_named(folder):
    (folder / "wanted.txt").write_text("\n".join(f"a picture of {i}" for i in range(20)))
    sheets = []
    for name, more in (("of-the-set", ()), ("wanted", ("--validation-prompts", str(folder / "wanted.txt")))):
        assert main(training("distill", folder, "flow", f"{name}.safetensors", *more)) == 0
        sheets.append(Image.open(folder / f"{name}.training" / "samples" / "000006.png"))
    assert [sheet.size for sheet in sheets] == [(208, 72), (276, 140)]  # three pictures, and eight in two rows
    one, two = (load(folder / f"{name}.safetensors").unet for name in ("of-the-set", "wanted"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_a_training_can_end_in_a_diffusers_folder(folder):
    left_by_kills = [folder / ".as-folder.abc.tmp" / "unet", folder / ".as-folder.abc.old" / "as-folder"]
    for left in left_by_kills:
        left.mkdir(parents=True)
        (left / "config.json").write_text("{")
    assert main(training("reflow", folder, "teacher", "as-folder")) == 0
    assert load(folder / "as-folder").stage == "2-rectified-flow"
    assert [path.name for path in folder.iterdir() if path.name.startswith(".as-folder")] == []


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


def test_a_resumed_lora_is_the_undisturbed_one_bit_for_bit(folder):
    command = training("distill", folder, "flow", "x", "--method", "lora", "--rank", "4", "--resume", "--out")
    assert main([*command, str(folder / "lora-whole.safetensors")]) == 0
    assert main([*command, str(folder / "lora-parts.safetensors"), "--iterations", "3"]) == 0
    (folder / "lora-parts.safetensors").unlink()
    assert main([*command, str(folder / "lora-parts.safetensors")]) == 0
    for name in ("{}.safetensors", "{}.training/lora.safetensors"):
        whole, parts = (folder / name.format(run) for run in ("lora-whole", "lora-parts"))
        assert whole.read_bytes() == parts.read_bytes()


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
        train(load(folder / "teacher.safetensors"), [Storage(str(folder / "teacher-set"))], config, folder / "x")


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
        (("--width", "65"), "multiple of 8"),
        (("--seed", "8"), "Choose another folder"),
        (("--prompts", "no-such-file.txt"), "neither a file nor a dataset"),
        (("--out", "nowhere://set"), "cannot be opened"),
    ],
)
def test_bad_input_for_triplets_is_one_clear_line(folder, capsys, monkeypatch, command, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # it would try again and again
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
        train(init, [storage], StageConfig("reflow", LoopConfig(1)), folder / "x", device="cuda:1")


@pytest.mark.parametrize(
    ("side", "loss", "parts"), [(8, "l2", 1), (64, "huber", 16), (64, "lpips", 64), (128, "l2", 64)]
)
def test_a_batch_is_taken_in_parts_that_fit_a_gpu(tmp_path, side, loss, parts):
    SetWriter(Storage(tmp_path), SetInfo(1, 0, (4, side, side))).write(["a"], lambda _, noise: noise, batch_size=1)
    assert equal_parts(64, Storage(tmp_path), loss) == [n for n in (1, 2, 4, 8, 16, 32, 64) if n >= parts]


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
