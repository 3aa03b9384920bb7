"""InstaFlow Evaluate on the real host: the command's figures, by the host's own objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from instaflow_core.__main__ import main
from instaflow_core.pictures.images import image_pictures
from instaflow_core.shapes.captions import sample_captions

CLOCKS = ("milliseconds", "memory")
FEATURES = "instaflow_core.shapes.features:picture_features"
PROMPTS = "\n".join(str(caption) for caption in sample_captions(5, 3))


def evaluated(host: Any, loaded: Any, **inputs: Any) -> tuple[torch.Tensor, torch.Tensor, str]:
    model, clip, vae = loaded
    inputs = {"prompts": PROMPTS, "count": 4, "seed": 5, "width": 64, "height": 64} | inputs
    return host.run("InstaFlowEvaluate", model=model, clip=clip, vae=vae, **inputs)


def figures(report: str) -> dict[str, float | str]:
    """Each metric's figure, or the reason why there is none."""
    found: dict[str, float | str] = {}
    for line in report.splitlines():
        name, said = line.split(": ", 1)
        found[name] = said if said.startswith("not computed. ") else float(said.split(" ", 1)[0])
    return found


def of_the_command(place: Path, *more: str) -> dict[str, dict[str, Any]]:
    (place / "captions.txt").write_text(PROMPTS, encoding="utf-8")
    said = ["--prompts", str(place / "captions.txt"), "--count", "4", "--seed", "5", "--batch-size", "1"]
    said += ["--extractor", FEATURES, "--extractor", "clip=clip:./nowhere", "--device", "cpu", "--out", str(place)]
    assert main(["evaluate", *said, *more]) == 0
    return json.loads((place / "results.json").read_text(encoding="utf-8"))[0]["metrics"]


def check_equal(report: str, expected: dict[str, dict[str, Any]]) -> None:
    found = figures(report)
    assert list(found) == list(expected)
    for name, figure in expected.items():
        if name in CLOCKS:
            assert isinstance(found[name], float)
        elif "not_computed" in figure:
            assert str(found[name]).startswith("not computed. ")
        else:
            # A pixel may round to its neighbour: the host adds up in another order.
            assert found[name] == pytest.approx(figure["value"], rel=0.02, abs=2e-3), name
            assert figure["recipe"] in report or name in ("fid", "kid", "cmmd")


@pytest.mark.slow
def test_the_figures_are_the_commands_on_the_built_in_model(host: Any, shapes: Any, tmp_path: Path) -> None:
    expected = of_the_command(tmp_path, "--checkpoint", "built-in: shapes")
    _, _, report = evaluated(host, shapes, width=0, height=0)
    check_equal(report, expected)
    said = figures(report)
    assert "accuracy" in said and "diversity" in said
    assert "learned no path" in str(said["straightness"]) and "`teacher`" in str(said["psnr"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flow", "teacher"])
def test_every_figure_of_a_small_model_is_the_commands(
    host: Any, models: Path, two_rf: Any, teacher: Any, tmp_path: Path, kind: str
) -> None:
    """Guided, beside itself at more steps and given pictures; of a flow and of a diffusion model."""
    name, loaded = {"flow": ("two-rf.safetensors", two_rf), "teacher": ("teacher.safetensors", teacher)}[kind]
    images = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    (tmp_path / "images").mkdir()
    for i, picture in enumerate(image_pictures(images)):
        picture.save(tmp_path / "images" / f"{i}.png")
    files = models / "checkpoints"
    more = ["--checkpoint", str(files / name), "--teacher", str(files / name)]
    more += ["--images", str(tmp_path / "images"), "--width", "64", "--height", "64"]
    more += ["--steps", "3", "--guidance", "1.5", "--teacher-steps", "4", "--teacher-guidance", "2"]
    numbers = {"steps": 3, "guidance": 1.5, "teacher_steps": 4, "teacher_guidance": 2.0}
    grid, chart, report = evaluated(host, loaded, teacher=loaded[0], images=images, **numbers)
    check_equal(report, of_the_command(tmp_path, *more))
    said = [name for name, figure in figures(report).items() if isinstance(figure, str)]
    assert said == ["clip"]
    assert grid.shape == (1, 72, 276, 3) and chart.shape == (1, 512, 768, 3)
    assert chart.min() < chart.max()


def test_the_same_inputs_give_the_same_figures_and_another_seed_others(host: Any, one_step: Any) -> None:
    def lasting(report: str) -> dict[str, Any]:
        return {name: said for name, said in figures(report).items() if name not in CLOCKS}

    grid, _, report = evaluated(host, one_step)
    again, _, same = evaluated(host, one_step)
    other, _, _ = evaluated(host, one_step, seed=6)
    assert torch.equal(grid, again) and lasting(report) == lasting(same)
    assert not torch.equal(grid, other)


def test_what_is_not_on_this_machine_is_named_and_nothing_is_fetched(
    host: Any, one_step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    images = torch.zeros(2, 64, 64, 3)
    _, _, report = evaluated(host, one_step, networks="as in papers", images=images)
    said = figures(report)
    for name, file in {
        "fid": "inception",
        "cmmd": "clip-vit-large",
        "clip": "clip-vit-base",
        "diversity": "alexnet",
    }.items():
        assert file in str(said[name]), name
    assert isinstance(said["milliseconds"], float)
    assert not list(tmp_path.rglob("*.pth"))


def test_nothing_stays_in_the_folder_of_temporary_files(host: Any, one_step: Any) -> None:
    import folder_paths

    evaluated(host, one_step)
    assert not [path for path in Path(folder_paths.get_temp_directory()).iterdir() if path.name.startswith("tmp")]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"guidance": 2.0}, "`model` is a one-step InstaFlow"),
        ({"images": torch.zeros(1, 8, 8, 3)}, "one picture to compare with"),
        ({"prompts": " \n"}, "There are no `prompts`"),
        ({"prompts": "embedding:x"}, "names an embedding"),
    ],
)
def test_what_does_not_fit_is_refused(host: Any, one_step: Any, inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        evaluated(host, one_step, **inputs)


@pytest.mark.slow
def test_a_few_step_model_is_measured_by_its_rule(host: Any, models: Path, tmp_path: Path) -> None:
    loaded = host.run(
        "InstaFlowLoadCheckpoint", checkpoint="teacher.safetensors", weight_dtype="fp32", prediction="auto", rule="dmd2"
    )
    teacher = str(models / "checkpoints" / "teacher.safetensors")
    more = ["--checkpoint", teacher, "--rule", "dmd2", "--width", "64", "--height", "64", "--guidance", "1"]
    _, _, report = evaluated(host, loaded, guidance=1.0)
    check_equal(report, of_the_command(tmp_path, *more))
