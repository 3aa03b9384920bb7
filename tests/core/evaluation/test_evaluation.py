"""`evaluate` on small models and on the built-in ones, without a download."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import colours, write_random_inception
from PIL import Image
from small_models import small_checkpoint
from small_runs import ROOT, start, start_two

from instaflow_core.__main__ import main
from instaflow_core.shapes.captions import sample_captions
from instaflow_core.shapes.render import render, sample_scene
from instaflow_core.weights.saving import save

pytestmark = pytest.mark.slow

SUPPORT = ROOT / "tests" / "support"
# A name no hub has: what cannot be had is said at once, without asking the network for what it has.
NO_CLIP = ("--extractor", "clip=clip:./nowhere")
COLOURS = ("--extractor", "networks:colours", "--extractor", "clip=networks:colours_and_words")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one.safetensors, flow.safetensors and teacher.safetensors (random), captions.txt (20), images/ (30 rendered)."""
    folder = tmp_path_factory.mktemp("evaluate")
    save(small_checkpoint("one-step", seed=2), folder / "one.safetensors")
    save(small_checkpoint("2-rectified-flow", seed=1), folder / "flow.safetensors")
    save(small_checkpoint("teacher", "epsilon"), folder / "teacher.safetensors")
    (folder / "captions.txt").write_text("\n".join(str(caption) for caption in sample_captions(20, 5)))
    (folder / "images").mkdir()
    rng = random.Random(0)
    for i, caption in enumerate(sample_captions(30, 9)):
        render(sample_scene(caption, rng)).save(folder / "images" / f"{i}.png")
    return folder


def command(place: Path, out: str, *more: str, checkpoint: str = "one") -> list[str]:
    model = str(place / f"{checkpoint}.safetensors")
    names = ["--checkpoint", model, "--prompts", str(place / "captions.txt"), "--images", str(place / "images")]
    return ["evaluate", *names, "--batch-size", "4", "--device", "cpu", "--out", str(place / out), *more]


def results(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def lasting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what a clock says."""
    clocks = ("milliseconds", "memory")
    return [row | {"metrics": {k: v for k, v in row["metrics"].items() if k not in clocks}} for row in rows]


def test_every_metric_has_its_figure_and_the_same_figure_again(place: Path, capsys: Any) -> None:
    more = (*COLOURS, "--teacher", str(place / "teacher.safetensors"), "--teacher-steps", "2", "--steps", "1", "2")
    for out in ("first", "again"):
        assert main(command(place, out, *more, "--count", "6", checkpoint="flow")) == 0
    rows = results(place / "first")
    assert lasting(results(place / "again")) == lasting(rows)
    assert [(row["steps"], row["count"], row["stage"]) for row in rows] == [(n, 6, "2-rectified-flow") for n in (1, 2)]
    names = ["accuracy", "fid", "kid", "cmmd", "clip", "lpips", "psnr", "diversity", "straightness"]
    for row in rows:
        assert list(row["metrics"]) == [*names, "milliseconds", "memory"]
        for name, figure in row["metrics"].items():
            assert figure["low"] <= figure["value"] <= figure["high"], name
            assert figure["recipe"], name
    assert rows[0]["metrics"]["fid"] != rows[1]["metrics"]["fid"]
    assert "30 pictures" in rows[0]["metrics"]["fid"]["recipe"] and "uncut" in rows[0]["metrics"]["fid"]["recipe"]
    table = (place / "first" / "results.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out and table.count("flow.safetensors") == 2
    with Image.open(place / "first" / "flow-1-steps" / "grid.png") as grid:
        assert grid.size == (4 * 68 + 4, 2 * 68 + 4)


def test_what_cannot_be_had_is_named_and_the_rest_is_computed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    import torch_fidelity.feature_extractor_inceptionv3 as inception
    import torchvision

    monkeypatch.setattr(inception, "load_state_dict_from_url", no_network)
    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", no_network)
    assert main(command(place, "bare", *NO_CLIP, "--extractor", "cmmd=clip:./nowhere", "--count", "6")) == 0
    (row,) = results(place / "bare")
    said = {name: figure["not_computed"] for name, figure in row["metrics"].items() if "not_computed" in figure}
    assert list(said) == ["fid", "kid", "cmmd", "clip", "lpips", "psnr", "diversity", "straightness"]
    for name in ("fid", "kid"):
        assert re.search(r"weights-inception-2015-12-05-6726825d\.pth .* Put it into .*checkpoints", said[name])
    assert "alexnet" in said["diversity"] and "nowhere" in said["clip"] and "`teacher`" in said["psnr"]
    assert {"accuracy", "milliseconds"} <= set(row["metrics"])


def test_a_torchscript_file_takes_a_networks_place(place: Path) -> None:
    torch.jit.trace(colours, torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).save(str(place / "colours.pt"))
    for out, network in (("script", str(place / "colours.pt")), ("function", "networks:colours")):
        assert main(command(place, out, *NO_CLIP, "--extractor", network, "--resize", "32")) == 0
    rows = [lasting(results(place / out))[0]["metrics"] for out in ("script", "function")]
    for name in ("fid", "kid", "cmmd", "diversity"):
        assert rows[0][name]["value"] == rows[1][name]["value"]
        assert rows[0][name]["recipe"] != rows[1][name]["recipe"]


def test_fid_and_kid_are_those_of_torch_fidelitys_own_command(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = place / "inception.pth"
    write_random_inception(weights)
    monkeypatch.setenv("INCEPTION_WEIGHTS", str(weights))
    assert main(command(place, "fidelity", *NO_CLIP, "--extractor", "networks:first_inception_layers")) == 0
    ours = results(place / "fidelity")[0]["metrics"]
    folders = ("--input1", str(place / "fidelity" / "one-1-steps" / "pictures"), "--input2", str(place / "images"))
    layers = (
        "--feature-layer-fid",
        "64",
        "--feature-layer-kid",
        "64",
        "--feature-extractor-weights-path",
        str(weights),
    )
    options = ("--fid", "--kid", "--kid-subset-size", "20", "--cpu", "--json", "--silent", "--no-cache")
    code = "from torch_fidelity.fidelity import main; main()"
    ran = subprocess.run([sys.executable, "-c", code, *folders, *layers, *options], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    theirs = json.loads(ran.stdout)
    assert ours["fid"]["value"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["kid"]["value"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3, abs=1e-6)


def files(folder: Path) -> dict[str, bytes]:
    """Every picture and column."""
    found = (path for path in folder.rglob("*") if path.suffix in (".png", ".npy"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_killed_and_shared_out_it_comes_to_the_same(place: Path) -> None:
    more = (*COLOURS, "--teacher", str(place / "teacher.safetensors"), "--teacher-steps", "2")
    assert main(command(place, "whole", *more)) == 0
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(SUPPORT), *sys.path])}

    process = start("-m", "instaflow_core", *command(place, "killed", *more), **path)
    while not (place / "killed" / "one-1-steps" / "pictures" / "000005.png").exists():
        assert process.poll() is None, "it ended before it drew anything"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (place / "killed" / "results.json").exists()
    assert main(command(place, "killed", *more)) == 0

    assert start_two("-m", "instaflow_core", *command(place, "two", *more), **path).wait() == 0
    whole = files(place / "whole")
    for out in ("killed", "two"):
        assert files(place / out) == whole, out
        assert lasting(results(place / out)) == lasting(results(place / "whole")), out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--count", "1"), "count is 1. Give 2 or more"),
        (("--resize", "0"), "resize is 0. Give 1 pixel or more"),
        (("--prompts", "/nothing.txt"), "neither a file nor a dataset"),
        (("--rule", "dmd2"), "Expected a UNet that predicts epsilon, which the rule dmd2 is for"),
        (("--extractor", "speed=x:y"), "No metric 'speed' looks through a network"),
        (("--extractor", "networks:nothing"), "networks:nothing cannot be imported"),
        (("--extractor", "nothing.pt"), "There is no file nothing.pt"),
        (("--extractor", "fid=inception:/nothing.pth"), "/nothing.pth"),
        (("--preset", "coco2017-5k"), "captions.txt does not hold COCO's captions"),
        (("--images", "/nothing/here"), "neither a folder nor a dataset"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_said_in_one_line(place: Path, capsys: Any, more: tuple[str, ...], said: str) -> None:
    assert main(command(place, "wrong", *NO_CLIP, *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error


@pytest.mark.parametrize("prompts", [True, False])
def test_a_count_of_nothing_is_refused(place: Path, capsys: Any, prompts: bool) -> None:
    said = command(place, "none", "--count", "0") if prompts else ["evaluate", "--count", "0"]
    assert main(said) == 2
    assert "count is 0. Give 2 or more" in capsys.readouterr().err


def test_a_folder_of_another_evaluation_is_refused(place: Path, capsys: Any) -> None:
    assert main(command(place, "taken", *COLOURS, "--count", "4")) == 0
    assert main(command(place, "taken", *COLOURS, "--count", "4", "--seed", "1")) == 2
    assert "holds an evaluation with seed 0. Choose another folder." in capsys.readouterr().err


def test_cocos_captions_are_one_of_each_picture(place: Path, capsys: Any) -> None:
    rows = [{"image_id": 7 - i % 4, "id": i, "caption": f"caption {i}\n"} for i in range(12)]
    (place / "coco.json").write_text(json.dumps({"annotations": rows}))
    from instaflow_core.evaluation.coco import coco_captions

    assert coco_captions(place / "coco.json", 4) == ["caption 3", "caption 2", "caption 1", "caption 0"]
    chosen = coco_captions(place / "coco.json", 2)
    assert chosen == coco_captions(place / "coco.json", 2) and len(set(chosen)) == 2
    with pytest.raises(ValueError, match="captions of 4 pictures, and 5 are to be drawn"):
        coco_captions(place / "coco.json", 5)
    assert main(["evaluate", "--preset", "coco2014-30k", "--out", str(place / "coco")]) == 2
    assert "needs --images val2014 (images.cocodataset.org/zips/val2014.zip)" in capsys.readouterr().err
