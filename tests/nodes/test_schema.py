"""What every node says of itself: names, sockets, tooltips, help page, translations."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent

# id: (inputs in order, an optional one marked by ?; outputs)
SOCKETS = {
    "InstaFlowLoadCheckpoint": ("checkpoint weight_dtype prediction? rule?", "MODEL CLIP VAE"),
    "InstaFlowLoadUNet": ("unet_name weight_dtype prediction? rule?", "MODEL"),
    "InstaFlowModelSampling": ("model", "MODEL"),
    "InstaFlowSaveCheckpoint": ("model clip? vae? filename_prefix", ""),
    "InstaFlowMergeDelta": ("model finetuned base strength", "MODEL"),
    "InstaFlowPeRFlow": ("model steps windows prediction", "MODEL SIGMAS"),
    "InstaFlowAccelerate": ("model vae? mode decoder?", "MODEL VAE"),
    "InstaFlowSampler": (
        "model positive latent_image seed steps guidance denoise negative? noise?",
        "LATENT",
    ),
    "InstaFlowScheduler": ("model steps denoise", "SIGMAS"),
    "InstaFlowLivePreview": ("images", ""),
    "InstaFlowSeedNoise": ("seed draw", "NOISE"),
    "InstaFlowInterpolateNoise": ("seed_from seed_to frames latent_image", "NOISE LATENT"),
    "InstaFlowInvert": ("model positive latent_image steps guidance? negative?", "NOISE LATENT STRING"),
    "InstaFlowControl": (
        "model positive latent_image target mask? iterations learning_rate steps noise? guidance? negative?",
        "LATENT NOISE STRING",
    ),
    "InstaFlowStraightness": (
        "model positive latent_image seed samples steps guidance? negative?",
        "FLOAT IMAGE STRING",
    ),
    "InstaFlowCompare": (
        "model teacher positive negative latent_image vae seed teacher_steps teacher_guidance teacher_sampler "
        "steps? guidance? model_3? model_4? model_5? model_6? more_steps? more_guidance?",
        "IMAGE FLOAT IMAGE IMAGE",
    ),
    "InstaFlowEvaluate": (
        "model clip vae prompts count steps guidance seed width height networks teacher? images? teacher_steps? "
        "teacher_guidance?",
        "IMAGE IMAGE STRING",
    ),
    "InstaFlowTriplets": (
        "model clip prompts count steps guidance width height batch_size seed name empty_share?",
        "INSTAFLOW_TRIPLETS",
    ),
    "InstaFlowLoadTriplets": ("name clip", "INSTAFLOW_TRIPLETS"),
    "InstaFlowReflow": (
        "model triplets iterations batch_size learning_rate ema method resume seed name vae? "
        "times? schedule? warmup? rank? precision? evaluate_every?",
        "MODEL IMAGE LOSS_MAP",
    ),
    "InstaFlowDistill": (
        "model triplets loss iterations batch_size learning_rate ema method resume seed name vae? "
        "on_policy? schedule? warmup? rank? precision? evaluate_every?",
        "MODEL IMAGE LOSS_MAP",
    ),
}


def schema(host: Any, node_id: str) -> Any:
    return host.node(node_id).define_schema()


def test_the_list_is_complete(pack: Any) -> None:
    assert [node.define_schema().node_id for node in pack.nodes.NODE_CLASS_MAPPINGS.values()] == list(SOCKETS)


@pytest.mark.parametrize("node_id", SOCKETS)
def test_sockets(host: Any, node_id: str) -> None:
    inputs, outputs = SOCKETS[node_id]
    said = schema(host, node_id)
    assert " ".join(i.id + "?" * bool(i.optional) for i in said.inputs) == inputs
    assert " ".join(str(o.get_io_type()) for o in said.outputs) == outputs


@pytest.mark.parametrize("node_id", SOCKETS)
def test_every_node_explains_itself(host: Any, node_id: str) -> None:
    said = schema(host, node_id)
    assert said.category.startswith("InstaFlow/")
    assert said.display_name.startswith("InstaFlow ")
    assert len(said.description) > 40
    assert all(len(i.tooltip) > 20 for i in said.inputs), "an input has no tooltip"
    assert all(o.display_name and len(o.tooltip) > 10 for o in said.outputs)


def knows_aliases(said: Any) -> bool:
    return "search_aliases" in {field.name for field in dataclasses.fields(said)}


# What people type -> the nodes they look for.
WORDS = {
    "instaflow": tuple(SOCKETS),
    "one step": ("InstaFlowLoadCheckpoint", "InstaFlowSampler", "InstaFlowDistill"),
    "turbo": ("InstaFlowLoadCheckpoint", "InstaFlowSampler", "InstaFlowPeRFlow"),
    "lcm": ("InstaFlowLoadCheckpoint", "InstaFlowSampler", "InstaFlowPeRFlow"),
    "rectified flow": ("InstaFlowLoadCheckpoint", "InstaFlowSampler", "InstaFlowScheduler", "InstaFlowReflow"),
    "train": ("InstaFlowTriplets", "InstaFlowLoadTriplets", "InstaFlowReflow", "InstaFlowDistill"),
    "distill": ("InstaFlowTriplets", "InstaFlowReflow", "InstaFlowDistill"),
    "invert": ("InstaFlowInvert",),
    "ksampler": ("InstaFlowSampler",),
    "load model": ("InstaFlowLoadCheckpoint", "InstaFlowLoadUNet"),
    "slerp": ("InstaFlowInterpolateNoise",),
    "merge": ("InstaFlowMergeDelta", "InstaFlowSaveCheckpoint"),
}


@pytest.mark.parametrize("word", WORDS)
def test_nodes_are_found_by_what_people_type(host: Any, word: str) -> None:
    for node_id in WORDS[word]:
        said = schema(host, node_id)
        assert not knows_aliases(said) or word in said.search_aliases, node_id


@pytest.mark.parametrize("node_id", SOCKETS)
def test_widgets_start_inside_their_range_and_the_advanced_come_last(host: Any, node_id: str) -> None:
    inputs = schema(host, node_id).inputs
    for i in inputs:
        default, low, high = (getattr(i, name, None) for name in ("default", "min", "max"))
        if low is not None and high is not None:
            assert low <= default <= high, i.id
        if getattr(i, "options", None) and default is not None:
            assert default in i.options, i.id
    advanced = [bool(i.extra_dict.get("advanced")) for i in inputs]
    assert advanced == sorted(advanced)


@pytest.mark.parametrize("node_id", SOCKETS)
def test_help_page_shows_an_example_that_can_be_opened(host: Any, node_id: str) -> None:
    """The picture carries the graph where ComfyUI looks for one in a WebP."""
    page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
    assert "## Example" in page
    assert f"]({node_id}.webp)" in page
    path = ROOT / "web" / "docs" / f"{node_id}.webp"
    assert path.stat().st_size <= 40_000
    with Image.open(path) as picture:
        assert picture.width > 400
        kind, graph = picture.getexif()[0x010F].split(":", 1)
    assert kind == "workflow"
    nodes = json.loads(graph)["nodes"]
    assert node_id in {node["type"] for node in nodes}
    assert all(node["type"] in host.nodes.NODE_CLASS_MAPPINGS for node in nodes)


def parameters(node: Any) -> dict[str, inspect.Parameter]:
    """What `execute` takes by name; where it hands all it gets to a dataclass, that one's fields, in any order."""
    own = dict(inspect.signature(node.execute).parameters)
    if [parameter.kind for parameter in own.values()] != [inspect.Parameter.VAR_KEYWORD]:
        return own
    fields = inspect.signature(node.Inputs).parameters
    ids = [i.id for i in node.define_schema().inputs]
    return {name: fields[name] for name in sorted(fields, key=lambda name: ids.index(name))}


@pytest.mark.parametrize("node_id", SOCKETS)
def test_execute_takes_what_the_schema_says(host: Any, node_id: str) -> None:
    taken = parameters(host.node(node_id))
    said = schema(host, node_id)
    assert list(taken) == [i.id for i in said.inputs]
    for i in said.inputs:
        if i.optional:
            assert taken[i.id].default == getattr(i, "default", None)
        else:
            assert taken[i.id].default is not None


@pytest.mark.parametrize("node_id", SOCKETS)
def test_help_page_names_every_socket(host: Any, node_id: str) -> None:
    page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
    said = schema(host, node_id)
    for socket in [*(i.id for i in said.inputs), *(o.display_name for o in said.outputs)]:
        assert f"`{socket}`" in page, f"{socket} is not explained"


def test_schemas_look_at_no_file(host: Any, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host asks for all of them on every page load, and models may lie on a slow disk: names are enough."""
    for number in range(50):
        (models / "checkpoints" / f"{number}.safetensors").touch()
    for node_id in SOCKETS:
        schema(host, node_id)  # now the host has its lists
    looked: list[str] = []
    stat = os.stat

    def noting(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        looked.append(os.fspath(path) if isinstance(path, (str, os.PathLike)) else "")
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", noting)
    for node_id in SOCKETS:
        schema(host, node_id)
    monkeypatch.undo()
    for number in range(50):
        (models / "checkpoints" / f"{number}.safetensors").unlink()
    assert looked, "the host looks at its folders at least"
    assert not [path for path in looked if path.endswith(".safetensors")]
