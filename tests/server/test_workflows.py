"""The shipped workflows: well-formed as the browser saves them, listed as templates, and run on the real server."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import requests
import small_perflow
import torch
from comfy_client import Graph, PromptResult
from devhost import PACK_NAME, ROOT
from PIL import Image, ImageSequence
from safetensors.torch import load_file
from small_control import install_pair, new_pair
from small_models import save_lora, small_checkpoint
from stand_ins import stand_in
from workflow import MUTED, to_prompt

from instaflow_core.shapes.captions import parse
from instaflow_core.shapes.judge import judge
from instaflow_core.weights.checkpoint import load
from instaflow_core.weights.released import RELEASED
from instaflow_core.weights.saving import save_folder

FOLDER = ROOT / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
TITLE_HEIGHT = 30  # of a node in the browser, above its position
NOTES = ("Note", "MarkdownNote")
# Files that workflows name and a fresh host lacks: their folders, and their licences. A note says where to get them.
NOT_SHIPPED = {
    "instaflow_0_9B_from_sd_1_5": ("diffusers", "CC-BY-NC-4.0"),
    "add_detail.safetensors": ("loras", "licence: see there"),
    "control_v11p_sd15_canny_fp16.safetensors": ("controlnet", "OpenRAIL"),
    "sd_xl_refiner_1.0.safetensors": ("checkpoints", "OpenRAIL++-M"),
    "DreamShaper_8_pruned.safetensors": ("checkpoints", "CreativeML OpenRAIL-M"),
    "diffusion_pytorch_model.v0-1.safetensors": ("diffusion_models", "CC-BY-NC-4.0"),
}

Box = tuple[float, float, float, float]  # left, top, right, bottom


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def run(server: Any, name: str) -> PromptResult:
    """Run a workflow as it is; no picture is so small that it would be a stamp in the browser."""
    result = server.run_prompt(to_prompt(read(name), server.object_info()))
    assert all(min(Image.open(io.BytesIO(image)).size) >= 256 for image in result.images)
    return result


def sets_made_by(workflow: dict[str, Any]) -> set[str]:
    """The names of the sets of triplets that the workflow itself makes."""
    return {node["widgets_values"][-1] for node in workflow["nodes"] if node["type"] == "InstaFlowTriplets"}


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def as_drawn(png: bytes) -> np.ndarray:
    """The 64x64 pixels that a built-in model drew, of a picture that was enlarged."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    return np.asarray(picture.resize((64, 64), Image.Resampling.BOX)).astype(float)


def box(node: dict[str, Any]) -> Box:
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_HEIGHT, x + width, y + height


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def test_all_are_here() -> None:
    assert NAMES == [
        "01_one_step_text_to_image",
        "02_instaflow_0.9B_text_to_image",
        "03_few_step_2_rectified_flow",
        "04_compare_with_stable_diffusion",
        "05_finetune_by_difference",
        "06_lora",
        "07_noise_interpolation",
        "08_invert_and_edit",
        "09_train_your_own_instaflow",
        "10_image_to_image_and_inpainting",
        "11_controlnet",
        "12_refine_and_upscale",
        "13_perflow",
        "14_live",
        "15_evaluate",
        "16_stock_nodes",
    ]


# --- the files ---


@pytest.mark.parametrize("name", NAMES)
def test_links_join_the_sockets_they_name(name: str) -> None:
    workflow = read(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert workflow["version"] == 0.4
    assert workflow["last_node_id"] == max(nodes)
    assert workflow["last_link_id"] == max(link[0] for link in workflow["links"])
    for link, source, out, target, into, kind in workflow["links"]:
        output, socket = nodes[source]["outputs"][out], nodes[target]["inputs"][into]
        assert link in output["links"]
        assert socket["link"] == link
        assert output["type"] == socket["type"] == kind
    named = {socket["link"] for node in nodes.values() for socket in node["inputs"]} - {None}
    assert named == {link[0] for link in workflow["links"]}


@pytest.mark.parametrize("name", NAMES)
def test_nodes_say_where_they_come_from(name: str) -> None:
    nodes = [node for node in read(name)["nodes"] if node["type"] not in NOTES]
    for node in nodes:
        assert node["properties"]["Node name for S&R"] == node["type"]
        assert node["properties"]["cnr_id"] == ("instaflow" if node["type"].startswith("InstaFlow") else "comfy-core")
        assert node["properties"]["ver"]


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_is_easy_to_read(name: str) -> None:
    """Nothing lies on anything else, every node that runs stands in a titled group, and a note explains."""
    workflow = read(name)
    for a, b in combinations(workflow["nodes"], 2):
        assert not overlap(box(a), box(b)), f"{a['type']} {a['id']} lies on {b['type']} {b['id']}"
    groups = [(left, top, left + w, top + h) for left, top, w, h in (g["bounding"] for g in workflow["groups"])]
    assert all(group["title"] for group in workflow["groups"])
    assert not any(overlap(a, b) for a, b in combinations(groups, 2))
    for node in workflow["nodes"]:
        left, top, right, bottom = box(node)
        inside = [g for g in groups if g[0] <= left and g[1] <= top and right <= g[2] and bottom <= g[3]]
        assert len(inside) == (node["type"] not in NOTES)
    assert any(node["type"] in NOTES for node in workflow["nodes"])


@pytest.mark.parametrize("name", NAMES)
def test_no_view_is_saved(name: str) -> None:
    """A page fits the graph into its own window then, whatever its size."""
    assert "ds" not in read(name)["extra"]


@pytest.mark.parametrize("name", [name for name in NAMES if "linearData" in read(name)["extra"]])
def test_an_app_shows_a_prompt_a_seed_and_a_picture(server: Any, name: str) -> None:
    workflow, info = read(name), server.object_info()
    extra, nodes = workflow["extra"], {node["id"]: node for node in workflow["nodes"]}
    assert extra["linearMode"] is True
    kinds = {number: nodes[number]["type"] for number, _ in extra["linearData"]["inputs"]}
    assert [widget for _, widget in extra["linearData"]["inputs"]] == ["text", "seed"]
    prompt, seed = (to_prompt(workflow, info)[str(number)]["inputs"] for number in kinds)
    assert isinstance(prompt["text"], str)
    assert isinstance(seed["seed"], int)
    assert "randomize" in nodes[list(kinds)[1]]["widgets_values"], "the next picture would be the same"
    (output,) = extra["linearData"]["outputs"]
    assert info[nodes[output]["type"]]["output_node"]


def test_some_workflows_are_apps() -> None:
    assert {"01", "04"} <= {name[:2] for name in NAMES if read(name)["extra"].get("linearMode")}


@pytest.mark.parametrize("name", NAMES)
def test_widget_values_are_the_servers(server: Any, name: str) -> None:
    """Every saved value is one the server's node takes, also of muted nodes, so nothing shows red on opening."""
    info, workflow = server.object_info(), read(name)
    lacking = NOT_SHIPPED.keys() | sets_made_by(workflow)
    for node in workflow["nodes"]:
        node["mode"] = 0
    for node in to_prompt(workflow, info).values():
        schema = info[node["class_type"]]["input"]
        kinds = {**schema.get("required", {}), **schema.get("optional", {})}
        assert set(node["inputs"]) <= set(kinds)
        for socket, value in node["inputs"].items():
            kind, options = kinds[socket][0], (kinds[socket][1:] or [{}])[0]
            choices = kind if isinstance(kind, list) else options.get("options")
            if choices is not None and value not in lacking:
                assert value in choices
            if kind in ("INT", "FLOAT") and not isinstance(value, list):
                assert options["min"] <= value <= options["max"]


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_not_shipped_are_explained(name: str) -> None:
    """The note names each of them, the folder it goes to and its licence, and the command that fetches the released
    weights, where they are only spoken of, too."""
    workflow = read(name)
    values = {v for node in workflow["nodes"] for v in node["widgets_values"] if isinstance(v, str)}
    text = " ".join(node["widgets_values"][0] for node in workflow["nodes"] if node["type"] in NOTES)
    for file in values & set(NOT_SHIPPED):
        assert file in text
        folder, licence = NOT_SHIPPED[file]
        assert f"`models/{folder}`" in text
        assert licence in text
        assert "https://huggingface.co/" in text
    if "XCLiu/" in text or "hansyan/" in text:
        assert "CC-BY-NC-4.0" in text
    for model, repository in RELEASED.items():
        if repository in text:
            assert f"python -m instaflow_core download {model}" in text


@pytest.mark.parametrize("name", NAMES)
def test_a_set_that_is_not_there_yet_waits_in_muted_nodes(name: str) -> None:
    """Other groups of the same workflow make it, so Run works at once; the note names it."""
    workflow = read(name)
    text = " ".join(node["widgets_values"][0] for node in workflow["nodes"] if node["type"] in NOTES)
    for node in workflow["nodes"]:
        if node["type"] == "InstaFlowLoadTriplets":
            assert node["mode"] == MUTED
            (made,) = node["widgets_values"]
            assert made in sets_made_by(workflow)
            assert f"`{made}`" in text


@pytest.mark.parametrize("name", NAMES)
def test_downloads_are_offered_for_what_a_loader_names(name: str) -> None:
    """The browser offers a download where the name is the widget's value, into the folder the note names."""
    for node in read(name)["nodes"]:
        for model in node["properties"].get("models", []):
            assert model["name"] in node["widgets_values"]
            assert model["directory"] == NOT_SHIPPED[model["name"]][0]
            assert model["url"].startswith("https://huggingface.co/")
            assert model["url"].endswith(f"/{model['name']}")


def test_some_workflows_offer_a_download() -> None:
    offering = {name for name in NAMES for node in read(name)["nodes"] if node["properties"].get("models")}
    assert {name[:2] for name in offering} == {"06", "11", "13"}


@pytest.mark.parametrize("name", NAMES)
def test_templates_with_thumbnails(server: Any, name: str) -> None:
    assert name in server.get_json("/api/workflow_templates")[PACK_NAME]
    answer = requests.get(f"{server.url}/api/workflow_templates/{PACK_NAME}/{quote(name)}.jpg", timeout=30)
    answer.raise_for_status()
    image = Image.open(io.BytesIO(answer.content))
    assert image.format == "JPEG"
    assert min(image.size) >= 256
    assert len(answer.content) < 60_000
    colors = np.asarray(image.convert("RGB")).astype(int)
    assert (np.ptp(colors, axis=-1) > 60).mean() > 0.02, "a card of words, or a curve, has no colours"


@pytest.mark.parametrize("name", NAMES)
def test_a_thumbnail_can_be_drawn_of_what_is_shipped(server: Any, name: str, tmp_path: Path) -> None:
    """Nothing that is not shipped is named any more, and only where something was is the graph another one."""
    trained = tmp_path / "controlnet" / "stand-in.safetensors"
    trained.parent.mkdir()
    trained.touch()  # one that is there is used; training it takes minutes
    graph = to_prompt(read(name), server.object_info())
    lacking = {v for node in graph.values() for v in node["inputs"].values() if isinstance(v, str)} & NOT_SHIPPED.keys()
    drawn, words = stand_in(graph, tmp_path)
    assert bool(words) == bool(lacking) == (drawn != graph)
    assert drawn.keys() == graph.keys()
    folders = {"lora_name": "loras", "control_net_name": "controlnet", "unet_name": "diffusion_models"}
    for node in drawn.values():
        assert not NOT_SHIPPED.keys() & {value for value in node["inputs"].values() if isinstance(value, str)}
        for socket in folders.keys() & node["inputs"].keys():
            file = node["inputs"][socket]
            assert file.startswith("built-in") or (tmp_path / folders[socket] / file).is_file()


# --- the pictures ---


def test_one_step(server: Any) -> None:
    (image,) = run(server, NAMES[0]).images
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    assert picture.size == (512, 512)
    assert judge(picture, parse("a yellow star on a purple background"))


def test_live(server: Any) -> None:
    """The same picture as of the first workflow, and no file."""
    result = run(server, "14_live")
    assert result.images == []
    (frame,) = result.frames
    assert judge(Image.open(io.BytesIO(frame)), parse("a yellow star on a purple background"))


def test_two_models_measured(server: Any) -> None:
    """Sixteen pictures and a chart of each, and a report that names what was measured against the teacher."""
    result = run(server, "15_evaluate")
    assert sorted(pixels(image).shape for image in result.images) == [(512, 512, 3)] * 2 + [(512, 768, 3)] * 2
    reports = [output["text"][0] for output in result.outputs.values() if "text" in output]
    assert len(reports) == 2
    for report in reports:
        figures = dict(line.split(": ", 1) for line in report.splitlines())
        assert float(figures["accuracy"].split()[0]) > 0.5
        assert float(figures["psnr"].split()[0]) > 0


def test_stock_merges_and_stock_sampling(server: Any) -> None:
    """What the stock nodes make of the difference and the Stable Diffusion is the one-step model's own picture."""
    (image,) = run(server, "16_stock_nodes").images
    one_step = pixels(run(server, NAMES[0]).images[0]).astype(float)  # the same prompt and seed
    assert np.abs(pixels(image) - one_step).max() <= 3


@pytest.fixture
def server_models(server: Any) -> Iterator[Path]:
    """The server's models, for what cannot be shipped. Gone after the test: other tests of this server look at what a
    page says where it is missing."""
    folder = Path(server.base) / "models"
    before = set(folder.rglob("*"))
    yield folder
    for path in set(folder.rglob("*")) - before:
        if path.is_file():  # folders stay: the host lists no node that has listed one which is gone
            path.unlink()


def test_released_layout(server: Any, server_models: Path) -> None:
    """The released checkpoint cannot be shipped: a small random one stands under its name."""
    save_folder(small_checkpoint(), server_models / "diffusers" / "instaflow_0_9B_from_sd_1_5")
    (image,) = run(server, NAMES[1]).images
    assert pixels(image).shape == (512, 512, 3)
    assert pixels(image).std() > 1


def test_few_steps_side_by_side(server: Any) -> None:
    """1, 2 and 4 steps from the same noise: pictures of the same thing, and not the same picture."""
    images = [as_drawn(image) for image in run(server, NAMES[2]).images]
    assert len(images) == 3
    for a, b in combinations(images, 2):
        assert np.abs(a - b).max() > 1
    # Neighbours in steps are more alike than pictures from two different noises could be.
    assert np.abs(images[1] - images[2]).mean() < 40


def test_one_step_beside_the_teacher(server: Any) -> None:
    """Both pictures are drawn and differ, one step is faster than 25 with guidance, and the flow is nearly straight."""
    result = run(server, "04_compare_with_stable_diffusion")
    comparison, curve = (pixels(image) for image in result.images)
    halves = comparison[20:380, 20:380], comparison[20:380, -380:-20]
    assert all(half.std() > 10 for half in halves)
    assert (halves[0] != halves[1]).any()
    shown = [result.outputs[node] for node in sorted(result.outputs, key=int)]
    speed_up, straightness = (float(output["text"][0]) for output in shown if "text" in output)
    assert speed_up > 1
    assert 0 < straightness < 0.1  # velocities have a mean square of about 2
    assert curve.std() > 10


def test_a_finetune_by_difference(server: Any) -> None:
    """The whole difference from the 2-rectified flow to the one-step model gives the one-step model's picture."""
    before, after = (pixels(image).astype(float) for image in run(server, "05_finetune_by_difference").images)
    finetune = pixels(run(server, NAMES[0]).images[0]).astype(float)  # the same prompt and seed
    assert np.abs(after - finetune).max() <= 3
    assert np.abs(before - finetune).max() > 20


def test_a_lora(server: Any, server_models: Path) -> None:
    """Neither the released checkpoint nor the LoRA can be shipped: small random ones stand under their names."""
    save_folder(small_checkpoint(), server_models / "diffusers" / "instaflow_0_9B_from_sd_1_5")
    save_lora(server_models / "loras" / "add_detail.safetensors")
    without, patched = (pixels(image).astype(float) for image in run(server, "06_lora").images)
    assert without.shape == patched.shape == (512, 512, 3)
    assert np.abs(without - patched).max() > 1  # a VAE that has learned nothing decodes to nearly one grey


def test_frames_between_two_noises(server: Any) -> None:
    """Neighbouring frames are more alike than the ends; the mixed prompt changes all of them."""
    images = run(server, "07_noise_interpolation").images
    videos = [video for video in map(Image.open, map(io.BytesIO, images)) if getattr(video, "is_animated", False)]
    frames = [pixels(image).astype(float) for image in images if image.startswith(b"\x89PNG")]
    same, mixed = ([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(v)] for v in videos)
    assert [frame.shape for frame in frames] == [(512, 512, 3)] * 9
    assert all(np.array_equal(a, b) for a, b in zip(frames, same, strict=True))
    changes = [np.abs(a - b).mean() for a, b in pairwise(frames)]
    assert max(changes) > 0.1
    assert np.mean(changes) < np.abs(frames[0] - frames[-1]).mean()
    assert all(np.abs(a - b).max() > 10 for a, b in zip(frames, mixed, strict=True))


def test_a_picture_given_back_and_edited(server: Any) -> None:
    images = run(server, "08_invert_and_edit").images
    before, again, after, sketch, steered = map(as_drawn, images)
    assert np.abs(before - again).mean() < np.abs(before - after).mean() / 3
    changed = np.abs(before - after).max(-1) > 60
    assert 0.02 < changed.mean() < 0.6
    assert after[changed][:, 2].mean() > before[changed][:, 2].mean()  # from red to blue
    assert after[changed][:, 0].mean() < before[changed][:, 0].mean()
    goal = middle_of_red(sketch)
    assert np.abs(middle_of_red(steered) - goal).max() < 6 < np.abs(middle_of_red(before) - goal).max()


def middle_of_red(picture: np.ndarray) -> np.ndarray:
    """Row and column of the middle of what is red, in pixels."""
    return np.argwhere(picture[..., 0] - picture[..., 2] > 60).mean(0)


def test_the_three_steps_in_one_queue(server: Any) -> None:
    """With fewer triplets and iterations than the file has: this is not about how good the model becomes."""
    workflow = read("09_train_your_own_instaflow")
    images = [pixels(image) for image in server.run_prompt(short(workflow, server)).images]
    assert sorted(image.shape for image in images) == [(512, 512, 3)] * 4 + [(512, 768, 3)] * 3
    checkpoints = Path(server.base) / "output" / "checkpoints"
    trained = load(checkpoints / "my-first-instaflow.safetensors")
    assert trained.stage == "one-step"
    assert trained.vae
    for node in workflow["nodes"]:
        node["mode"] = 0  # the sets of triplets are there now
    server.run_prompt(short(workflow, server))
    assert load(checkpoints / "my-second-instaflow.safetensors").stage == "one-step"


def short(workflow: dict[str, Any], server: Any) -> Graph:
    """The training with few triplets and iterations."""
    graph = to_prompt(workflow, server.object_info())
    for node in graph.values():
        if node["class_type"] == "InstaFlowTriplets":
            node["inputs"] |= {"count": 8, "steps": 2}
        if node["class_type"] in ("InstaFlowReflow", "InstaFlowDistill"):
            node["inputs"] |= {"iterations": 4, "batch_size": 4}
    return graph


def test_a_picture_changed_and_painted_in(server: Any) -> None:
    """Red becomes blue in the same place; inpainting changes nothing outside the mask, and something inside."""
    before, changed, painted = map(as_drawn, run(server, "10_image_to_image_and_inpainting").images)
    inside, near = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    inside[8:56, 8:56] = True
    near[4:60, 4:60] = True  # enlarging mixes a pixel with its neighbours
    assert np.array_equal(painted[~near], before[~near])
    assert np.abs(painted - before)[inside].max() > 60
    red = before[..., 0] - before[..., 2] > 60
    assert 0.05 < red.mean() < 0.7
    assert changed[red][:, 2].mean() > before[red][:, 2].mean() + 60
    assert changed[red][:, 0].mean() < before[red][:, 0].mean() - 60
    assert np.abs(changed - before)[~red].mean() < np.abs(changed - before)[red].mean() / 3


def test_controlnet(server: Any, server_models: Path) -> None:
    """Neither model can be shipped: small random ones stand under their names. The control changes the picture."""
    install_pair(server_models, *new_pair(), "instaflow_0_9B_from_sd_1_5", "control_v11p_sd15_canny_fp16.safetensors")
    graph = to_prompt(read("11_controlnet"), server.object_info())
    outlines, controlled = (pixels(image).astype(float) for image in server.run_prompt(graph).images)
    assert set(np.unique(outlines)) == {0, 255}
    assert 0.001 < (outlines > 0).mean() < 0.1
    next(node for node in graph.values() if node["class_type"] == "ControlNetApplyAdvanced")["inputs"]["strength"] = 0.0
    _, plain = (pixels(image).astype(float) for image in server.run_prompt(graph).images)
    assert controlled.shape == plain.shape == (512, 512, 3)
    assert np.abs(controlled - plain).max() > 5


def test_a_second_pass_then_larger(server: Any) -> None:
    """Still the same picture; the refiner's nodes, whose file is not shipped, stay muted."""
    draft, again = map(as_drawn, run(server, "12_refine_and_upscale").images)
    assert 0.5 < np.abs(again - draft).mean() < 40
    assert again.std() > 10


def test_perflow(server: Any, server_models: Path) -> None:
    """None of the files can be shipped: random ones stand under their names, as they are published. The latents are
    those of the published loop on the finetune's weights + the delta, but for the host's text states in half precision.
    """
    graph = to_prompt(read("13_perflow"), server.object_info())
    node = {node["class_type"]: node["inputs"] for node in graph.values()}
    node["EmptyLatentImage"] |= {"width": 64, "height": 64}
    samples = next(number for number, node in graph.items() if node["class_type"] == "SamplerCustom")
    save = {"samples": [samples, 0], "filename_prefix": "perflow"}
    graph["latents"] = {"class_type": "SaveLatent", "inputs": save}
    base, delta = small_perflow.new_base(), small_perflow.new_delta()
    names = node["CheckpointLoaderSimple"]["ckpt_name"], node["UNETLoader"]["unet_name"]
    small_perflow.install(server_models, base, names[0], delta, names[1])
    (image,) = server.run_prompt(graph, timeout=600).images
    assert pixels(image).shape == (64, 64, 3)
    assert pixels(image).std() > 1

    inputs = node["SamplerCustom"]
    prompts = [graph[inputs[name][0]]["inputs"]["text"] for name in ("positive", "negative")]
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(inputs["noise_seed"]))
    steps = node["InstaFlowPeRFlow"]["steps"]
    expected = small_perflow.published_loop(base, delta, prompts, inputs["cfg"], noise, steps)
    (saved,) = (Path(server.base) / "output").glob("perflow_*.latent")
    latents = load_file(saved)["latent_tensor"] * 0.18215
    assert (latents - expected).norm() < 0.02 * expected.norm()
