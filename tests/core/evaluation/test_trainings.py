"""`--evaluate-every`: the figures of a model in training, as a table and as curves."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import pytest
from PIL import Image
from small_runs import PROMPTS, begin, content, start, start_two, training

from instaflow_core.__main__ import main
from instaflow_core.evaluation.drawing import Drawing
from instaflow_core.triplets.reading import SetReader
from instaflow_core.triplets.storage import Storage
from instaflow_core.weights.checkpoint import load

pytestmark = pytest.mark.slow
EVERY = ("--evaluate-every", "2", "--resume")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `begin` makes, with the prompts without the empty ones in clean.txt."""
    place = begin(tmp_path_factory.mktemp("runs"))
    (place / "clean.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    return place


def command(stage: str, folder: Path, out: Path, *more: str) -> list[str]:
    init = {"reflow": "teacher", "distill": "flow"}[stage]
    prompts = ("--validation-prompts", str(folder / "clean.txt"))
    return training(stage, folder, init, "x", *EVERY, *prompts, "--out", str(out / "made.safetensors"), *more)


def table(out: Path) -> list[dict[str, str]]:
    with (out / "made.training" / "evaluation.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def learned_from(init: Path, place: Path) -> Path:
    """A folder of the pictures that a run from `init` learns from, in the order in which it reads them."""
    reader = SetReader(Storage(str(init.parent / "teacher-set")))
    latents = reader.read(range(len(reader))).latents.float()
    place.mkdir()
    for number, picture in enumerate(Drawing(load(str(init))).decoded(latents)):
        picture.save(place / f"{number:02d}.png")
    return place


@pytest.mark.parametrize(("stage", "steps"), [("reflow", "4"), ("distill", "1")])
def test_the_last_figures_are_those_of_evaluate(folder: Path, tmp_path: Path, stage: str, steps: str) -> None:
    assert main(command(stage, folder, tmp_path)) == 0
    rows = table(tmp_path)
    assert [row["iteration"] for row in rows] == ["2", "4", "6"]
    names = ["accuracy", "fid", "kid", "cmmd", "lpips", "psnr", "diversity"]
    names += ["straightness"] if stage == "reflow" else []
    assert list(rows[0]) == ["iteration", *names]
    for name in ("fid", "psnr"):
        assert len({row[name] for row in rows}) == 3, name
    init = folder / f"{'teacher' if stage == 'reflow' else 'flow'}.safetensors"
    said = ["--checkpoint", str(tmp_path / "made.safetensors"), "--teacher", str(init), "--steps", steps]
    said += ["--prompts", str(folder / "clean.txt"), "--count", "16", "--seed", "20231126", "--batch-size", "4"]
    said += ["--images", str(learned_from(init, tmp_path / "learned"))]
    said += ["--extractor", "instaflow_core.shapes.features:picture_features", "--extractor", "clip=clip:./nowhere"]
    assert main(["evaluate", *said, "--device", "cpu", "--out", str(tmp_path / "bench")]) == 0
    (expected,) = json.loads((tmp_path / "bench" / "results.json").read_text(encoding="utf-8"))
    for name in names:
        assert float(rows[-1][name]) == pytest.approx(expected["metrics"][name]["value"], rel=1e-4, abs=1e-6), name
    with Image.open(tmp_path / "made.training" / "evaluation.png") as chart:
        assert chart.size == (768, 512)


def test_a_killed_run_ends_with_the_undisturbed_ones_curve(folder: Path, tmp_path: Path) -> None:
    """SIGKILL at the second evaluation's row, which is after the checkpoint of the second iteration."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    assert main(command("distill", folder, tmp_path / "whole")) == 0
    killed = tmp_path / "killed"
    process = start("-m", "instaflow_core", *command("distill", folder, killed, "--checkpoint-every", "3"))
    path = killed / "made.training" / "evaluation.csv"
    while not path.exists() or len(path.read_text(encoding="utf-8").splitlines()) < 3:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "made.safetensors").exists()
    assert main(command("distill", folder, killed)) == 0
    metadata = "made.safetensors"  # says how often checkpoints were written
    assert {k: v for k, v in content(killed).items() if k != metadata} == {
        k: v for k, v in content(tmp_path / "whole").items() if k != metadata
    }


def test_two_processes_give_the_curve_of_one(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert main(command("distill", folder, tmp_path / "one")) == 0
    assert start_two("-m", "instaflow_core", *command("distill", folder, tmp_path / "two")).wait() == 0
    one, two = table(tmp_path / "one"), table(tmp_path / "two")
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        # Two processes add a batch up in another order.
        assert {k: float(v) for k, v in a.items()} == pytest.approx(
            {k: float(v) for k, v in b.items()}, rel=1e-2, abs=1e-4
        )


def test_a_run_that_starts_again_forgets_the_curve_of_the_other(folder: Path, tmp_path: Path) -> None:
    work = tmp_path / "made.training"
    work.mkdir()
    (work / "evaluation.csv").write_text("iteration,psnr\n1,5.0\n", encoding="utf-8")
    assert main(command("distill", folder, tmp_path)) == 0
    assert [row["iteration"] for row in table(tmp_path)] == ["2", "4", "6"]
    assert not (work / "evaluation" / "now").exists()
