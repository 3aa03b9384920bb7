"""Nothing that others share with us is other than it was: not after the import, not after any node, however it ends."""

from __future__ import annotations

import importlib
import logging
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from dynamic_vram import use_dynamic_vram
from model_state import model_state
from process_state import differences, snapshot

PROMPTS = "a red circle on a blue background\na green star on a white background"

IMPORTING = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from devhost import PACK_NAME, located
from host_process import load_pack, open_host
from process_state import differences, snapshot
base = Path(sys.argv[1])
nodes = open_host(located(), base)
before = snapshot()
load_pack(nodes, base / "custom_nodes" / PACK_NAME)
assert sys.argv[2] in nodes.NODE_CLASS_MAPPINGS
print("changed:", *differences(before, snapshot()), sep="\\n")
"""


def test_importing_the_pack_changes_nothing(dev_host: Any, tmp_path: Any) -> None:
    """In a process of its own, where the host has loaded its nodes and no others."""
    paths = [os.path.dirname(sys.modules[name].__file__ or "") for name in ("devhost", "process_state")]
    environment = {**os.environ, "COMFYUI_PATH": str(dev_host.comfyui)}
    command = [sys.executable, "-c", IMPORTING, str(tmp_path), "InstaFlowSampler", *paths]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.partition("changed:\n")[2].split("\n") == [""]


def undone(read: Callable[[], Any], write: Callable[[Any], Any], value: Any) -> Callable[[ExitStack], None]:
    """A change that writes the value, and writes back afterwards what was read before."""

    def change(stack: ExitStack) -> None:
        stack.callback(write, read())
        write(value)

    return change


def replaced(module: str, path: str, value: Any) -> Callable[[ExitStack], None]:
    """A change of an attribute, as `unittest.mock` finds it."""
    return lambda stack: stack.enter_context(patch(f"{module}.{path}", value))


CHANGES: dict[str, Callable[[ExitStack], Any]] = {
    "torch: default dtype": undone(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "torch: default device": lambda stack: stack.enter_context(torch.device("meta")),
    "torch: threads": undone(torch.get_num_threads, torch.set_num_threads, torch.get_num_threads() + 1),
    "torch: grad": lambda stack: stack.enter_context(torch.set_grad_enabled(False)),
    "torch: deterministic": undone(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "torch: cudnn": lambda stack: stack.enter_context(torch.backends.cudnn.flags(benchmark=True)),
    "torch: sdp": undone(torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp, False),
    "torch: module hooks": lambda stack: stack.callback(
        torch.nn.modules.module.register_module_forward_hook(lambda *_: None).remove
    ),
    "random: python": undone(random.getstate, random.setstate, random.Random(1).getstate()),
    "random: numpy": undone(np.random.get_state, np.random.set_state, np.random.RandomState(1).get_state()),
    "random: torch": lambda stack: (stack.enter_context(torch.random.fork_rng([])), torch.rand(1)),
    "loggers: root": undone(lambda: logging.root.level, logging.root.setLevel, 7),
    "python: warnings": lambda stack: (stack.enter_context(warnings.catch_warnings()), warnings.simplefilter("error")),
    "python: sys.path": lambda stack: (sys.path.append("/elsewhere"), stack.callback(sys.path.remove, "/elsewhere")),
    "python: excepthook": replaced("sys", "excepthook", print),
    "system: umask": lambda stack: stack.callback(os.umask, os.umask(0o77)),
    "system: signal 2": lambda stack: stack.callback(signal.signal, 2, signal.signal(2, lambda *_: None)),
    "environment: A_NAME": lambda stack: stack.enter_context(patch.dict(os.environ, A_NAME="1")),
    "libraries: PIL": replaced("PIL.Image", "MAX_IMAGE_PIXELS", None),
    "libraries: matplotlib": lambda stack: stack.enter_context(
        importlib.import_module("matplotlib").rc_context({"lines.linewidth": 9})
    ),
    "libraries: diffusers verbosity": undone(
        lambda: importlib.import_module("diffusers").logging.get_verbosity(),
        lambda level: importlib.import_module("diffusers").logging.set_verbosity(level),
        10,
    ),
    "libraries: accelerate PartialState": lambda stack: stack.enter_context(
        patch.dict(importlib.import_module("accelerate.state").PartialState._shared_state, a=1)
    ),
    "host: comfy.sample.sample": replaced("comfy.sample", "sample", print),
    "host: comfy.model_patcher.ModelPatcher.clone": replaced("comfy.model_patcher", "ModelPatcher.clone", print),
    "host: nodes.MAX_RESOLUTION": replaced("nodes", "MAX_RESOLUTION", 1),
    "folders: checkpoints": lambda stack: stack.enter_context(
        patch.dict(importlib.import_module("folder_paths").folder_names_and_paths, checkpoints=([], set()))
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_others_would_notice_is_seen(world: World, name: str) -> None:
    """Without this the tests below could not fail."""
    before = snapshot()
    with ExitStack() as stack:
        CHANGES[name](stack)
        changed = differences(before, snapshot())
    assert name in changed and len(changed) < 4
    assert differences(before, snapshot()) == []


# --- each node ---


@dataclass(frozen=True)
class World:
    """What the nodes are given."""

    host: Any
    flow: Any  # MODEL, CLIP, VAE, as the others
    few_steps: Any
    teacher: Any
    positive: Any
    latent: Any
    triplets: Any

    def sampling(self, **more: Any) -> dict[str, Any]:
        return {"model": self.flow[0], "positive": self.positive, "latent_image": self.latent} | more

    def training(self, name: str, **more: Any) -> dict[str, Any]:
        numbers = {"iterations": 2, "batch_size": 2, "learning_rate": 1e-3, "ema": 0.5, "seed": 0, "resume": False}
        inputs = {"model": self.teacher[0], "triplets": self.triplets, "vae": self.teacher[2], "method": "full"}
        return inputs | numbers | {"name": f"neighbours/{name}"} | more


@dataclass(frozen=True)
class Case:
    """A node, what it is given, and in which ways it can end other than well.

    Attributes:
        bad: inputs that it refuses.
        long: it shows its progress, at which it can fail or be cancelled.
    """

    node: str
    inputs: Callable[[World], dict[str, Any]]
    bad: dict[str, Any] | None = None
    long: bool = False

    @property
    def endings(self) -> list[str]:
        return ["well", *["refused"] * (self.bad is not None), *["failed", "cancelled"] * self.long]


def loading(w: World) -> dict[str, Any]:
    return {"checkpoint": "one-step.safetensors", "weight_dtype": "fp32"}


def saving(w: World) -> dict[str, Any]:
    return {"model": w.flow[0], "clip": w.flow[1], "vae": w.flow[2], "filename_prefix": "neighbours/saved"}


def comparing(w: World) -> dict[str, Any]:
    others = {"teacher": w.teacher[0], "negative": w.positive, "vae": w.flow[2], "teacher_sampler": "dpmpp_2m"}
    return w.sampling(seed=3, teacher_steps=2, teacher_guidance=3.0, steps=1, guidance=1.0) | others


def evaluating(w: World) -> dict[str, Any]:
    parts = dict(zip(("model", "clip", "vae"), w.flow, strict=True))
    numbers = {"count": 2, "steps": 1, "seed": 3, "width": 64, "height": 64}
    return parts | numbers | {"prompts": PROMPTS, "teacher": w.teacher[0], "teacher_steps": 2}


def making_a_set(w: World) -> dict[str, Any]:
    numbers = {"count": 4, "steps": 2, "guidance": 3.0, "width": 64, "height": 64, "batch_size": 2, "seed": 2}
    return {"model": w.teacher[0], "clip": w.teacher[1], "prompts": PROMPTS, "name": "neighbours/new"} | numbers


def merging(w: World) -> dict[str, Any]:
    return {"model": w.flow[0], "finetuned": w.teacher[0], "base": w.few_steps[0], "strength": 0.5}


def perflow(w: World) -> dict[str, Any]:
    return {"model": w.teacher[0], "steps": 4, "windows": 4, "prediction": "diff_eps"}


def interpolating(w: World) -> dict[str, Any]:
    return {"seed_from": 1, "seed_to": 2, "frames": 3, "latent_image": w.latent}


CASES = (
    Case("InstaFlowLoadCheckpoint", loading, bad={"checkpoint": "broken.safetensors"}),
    Case("InstaFlowLoadUNet", lambda w: {"unet_name": "bare.safetensors", "weight_dtype": "fp32"}, {"unet_name": "no"}),
    Case("InstaFlowModelSampling", lambda w: {"model": w.teacher[0]}),
    Case("InstaFlowSaveCheckpoint", saving, bad={"filename_prefix": "../../outside"}),
    Case("InstaFlowMergeDelta", merging),
    Case("InstaFlowPeRFlow", perflow, bad={"steps": 3}),
    Case("InstaFlowAccelerate", lambda w: {"model": w.flow[0], "vae": w.flow[2], "mode": "exact"}, {"decoder": "none"}),
    Case("InstaFlowSampler", lambda w: w.sampling(seed=3, steps=2, guidance=1.0, denoise=1.0), {"guidance": 2.0}, True),
    Case("InstaFlowScheduler", lambda w: {"model": w.flow[0], "steps": 2, "denoise": 1.0}),
    Case("InstaFlowLivePreview", lambda w: {"images": [torch.zeros(1, 64, 64, 3)]}),
    Case("InstaFlowSeedNoise", lambda w: {"seed": 3, "draw": "diffusers fp16"}),
    Case("InstaFlowInterpolateNoise", interpolating),
    Case("InstaFlowInvert", lambda w: w.sampling(steps=1), long=True),
    Case(
        "InstaFlowControl", lambda w: w.sampling(target=w.latent, iterations=2, learning_rate=0.1, steps=2), long=True
    ),
    Case("InstaFlowStraightness", lambda w: w.sampling(seed=3, samples=1, steps=2), long=True),
    Case("InstaFlowCompare", comparing, long=True),
    Case("InstaFlowEvaluate", evaluating, bad={"prompts": ""}, long=True),
    Case("InstaFlowTriplets", making_a_set, bad={"name": "../outside"}, long=True),
    Case("InstaFlowLoadTriplets", lambda w: {"name": "neighbours/set", "clip": w.teacher[1]}, bad={"name": "none"}),
    Case("InstaFlowReflow", lambda w: w.training("reflow"), bad={"name": "../outside"}, long=True),
    Case("InstaFlowDistill", lambda w: w.training("distill", loss="huber", method="lora", rank=2), long=True),
)
"""Every node of the pack, see test_every_node_is_here."""
WITHOUT_MODEL = {
    *("InstaFlowLoadCheckpoint", "InstaFlowLoadUNet", "InstaFlowLoadTriplets"),
    *("InstaFlowSeedNoise", "InstaFlowInterpolateNoise", "InstaFlowLivePreview"),
}


@pytest.fixture(scope="module")
def world(host: Any, models: Any, one_step: Any, two_rf: Any, teacher: Any) -> World:
    """Small random models; a set of triplets. Libraries that somebody else in the process uses, too, are there: what
    importing one does to the process is its own (accelerate adds a filter of warnings for torch.optim.lr_scheduler)."""
    for library in ("accelerate.state", "datasets", "diffusers", "matplotlib.pyplot", "peft", "transformers"):
        importlib.import_module(library)
    folders = importlib.import_module("folder_paths")
    os.makedirs(folders.get_temp_directory(), exist_ok=True)
    (models / "checkpoints" / "broken.safetensors").write_bytes(b"\xff" * 64)
    (positive,) = host.run("CLIPTextEncode", clip=one_step[1], text=PROMPTS[:20])
    (latent,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=1)
    made = making_a_set(World(host, one_step, two_rf, teacher, positive, latent, None))
    (triplets,) = host.run("InstaFlowTriplets", **made | {"name": "neighbours/set"})
    return World(host, one_step, two_rf, teacher, positive, latent, triplets)


def test_every_node_is_here(pack: Any) -> None:
    assert {case.node for case in CASES} == {
        node.define_schema().node_id for node in pack.nodes.NODE_CLASS_MAPPINGS.values()
    }


ENDINGS = [pytest.param(case, ending, id=f"{case.node}-{ending}") for case in CASES for ending in case.endings]


@pytest.mark.parametrize(("case", "ending"), ENDINGS)
def test_a_node_leaves_everything_as_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch, case: Case, ending: str
) -> None:
    """The process, the models that came in, and the pictures they make."""
    management = importlib.import_module("comfy.model_management")
    errors = {"refused": Exception, "failed": ZeroDivisionError, "cancelled": management.InterruptProcessingException}
    inputs = case.inputs(world) | ((case.bad or {}) if ending == "refused" else {})
    if "name" in inputs and case.node != "InstaFlowLoadTriplets":
        inputs["name"] += f"-{ending}"

    def progressed(*_: Any, **__: Any) -> None:
        if ending == "cancelled":
            management.interrupt_current_processing()
            management.throw_exception_if_processing_interrupted()
        if ending == "failed":
            raise ZeroDivisionError("what shows the progress fails")

    expected = pytest.raises(errors[ending]) if ending in errors else nullcontext()
    models, shown = states(world), pictures(world)
    with monkeypatch.context() as host:
        host.setattr(importlib.import_module("comfy.utils"), "PROGRESS_BAR_HOOK", progressed)
        before = snapshot()
        with expected:
            world.host.run(case.node, **inputs)
        changed = differences(before, snapshot())
    assert changed == []
    assert states(world) == models
    assert torch.equal(pictures(world), shown)


def states(world: World) -> list[dict[str, Any]]:
    """Of each MODEL that nodes are given, while it is the one that is loaded of those that share its weights."""
    found = []
    for model, _, _ in (world.flow, world.few_steps, world.teacher):
        importlib.import_module("comfy.model_management").load_models_gpu([model])
        found.append(model_state(model))
    return found


def pictures(world: World) -> torch.Tensor:
    """A latent by each kind of MODEL."""
    flow = world.sampling(seed=3, steps=2, guidance=1.0, denoise=1.0)
    diffusion = world.sampling(model=world.teacher[0], negative=world.positive, seed=3, steps=2, cfg=2.0, denoise=1.0)
    settings = {"sampler_name": "euler", "scheduler": "normal"}
    made = world.host.run("InstaFlowSampler", **flow) + world.host.run("KSampler", **diffusion, **settings)
    return torch.cat([latent["samples"] for latent in made])


# --- dynamic VRAM ---


@pytest.mark.parametrize("case", [case for case in CASES if case.node not in WITHOUT_MODEL], ids=lambda case: case.node)
def test_a_model_under_dynamic_vram_stays_as_it_is(world: World, dynamic: World, case: Case) -> None:
    """All that it holds, and the pictures of it: those that it makes without dynamic VRAM."""
    inputs = case.inputs(dynamic)
    if "name" in inputs:
        inputs["name"] += "-dynamic"
    models, shown = states(dynamic), pictures(dynamic)
    dynamic.host.run(case.node, **inputs)
    assert states(dynamic) == models
    assert torch.equal(pictures(dynamic), shown)
    assert torch.allclose(shown, pictures(world), rtol=0, atol=1e-3 * float(shown.abs().max()))


@pytest.fixture(scope="module")
def dynamic(world: World) -> Iterator[World]:
    """The same models in the newest hosts' patcher of dynamic VRAM."""
    if not hasattr(importlib.import_module("comfy.model_patcher"), "ModelPatcherDynamic"):
        pytest.skip("this ComfyUI has no dynamic VRAM")
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_dynamic_vram(monkeypatch)
        names = ("one-step.safetensors", "two-rf.safetensors", "teacher.safetensors")
        load = partial(world.host.run, "InstaFlowLoadCheckpoint", weight_dtype="fp32")
        models = [load(checkpoint=name) for name in names]
        assert all(model.is_dynamic() for model, _, _ in models)
        yield replace(world, flow=models[0], few_steps=models[1], teacher=models[2])
