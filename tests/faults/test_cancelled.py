"""Cancel at any moment of whatever takes long: when the host asks for it, or is told how far the work is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

PROMPTS = "a red circle on a blue background\na green star on a white background"


@pytest.fixture(scope="module")
def output(host: Any, models: Path) -> Path:
    """The host's output folder."""
    import folder_paths

    Path(folder_paths.get_temp_directory()).mkdir(parents=True, exist_ok=True)
    return Path(folder_paths.get_output_directory())


@contextmanager
def each_moment(happen: Callable[[int], None]) -> Iterator[list[int]]:
    """Call `happen` with 0, 1, ... at each moment of a prompt at which the host asks whether Cancel was pressed, or is
    told of progress; yields how many there were, in a list."""
    import comfy.model_management
    import comfy.utils

    count = [0]
    asks, told = comfy.model_management.throw_exception_if_processing_interrupted, comfy.utils.PROGRESS_BAR_HOOK

    def moment() -> None:
        count[0] += 1
        happen(count[0] - 1)

    def ask() -> None:
        moment()
        asks()

    def tell(*arguments: Any, **more: Any) -> None:
        moment()
        if told:
            told(*arguments, **more)
        asks()  # as a server's own hook does

    comfy.model_management.throw_exception_if_processing_interrupted = ask
    comfy.utils.set_progress_bar_global_hook(tell)
    try:
        yield count
    finally:
        comfy.model_management.throw_exception_if_processing_interrupted = asks
        comfy.utils.set_progress_bar_global_hook(told)


def cancelled(work: Callable[[], Any], at: int) -> None:
    """Run work that is cancelled at the moment of that number: the host's own exception must come out of it."""
    import comfy.model_management

    def press(moment: int) -> None:
        if moment == at:
            comfy.model_management.interrupt_current_processing()

    with each_moment(press), pytest.raises(comfy.model_management.InterruptProcessingException):
        work()
    # What its next prompt asks first is not answered by this one's Cancel.
    comfy.model_management.throw_exception_if_processing_interrupted()


def spread(count: int, most: int = 3) -> list[int]:
    """Some of that many moments, evenly, the first and the last among them."""
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def files(folder: Path) -> dict[str, str]:
    """A digest of every file under a folder but the host's own and the checkpoints to go on from."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "state.pt")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def inputs(host: Any, loaded: Any) -> dict[str, Any]:
    """A conditioning and a latent, by the names the nodes have for them."""
    (positive,) = host.run("CLIPTextEncode", clip=loaded[1], text="a red circle")
    (latent,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=1)
    return {"positive": positive, "latent_image": latent}


def answers(made: tuple[Any, ...]) -> list[torch.Tensor]:
    """What a node has made, as far as it is tensors."""
    samples = (one["samples"] if isinstance(one, dict) else one for one in made)
    return [one for one in samples if isinstance(one, torch.Tensor)]


WORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "sampler": ("InstaFlowSampler", {"steps": 4, "seed": 0, "guidance": 1.5, "denoise": 1.0}),
    "invert": ("InstaFlowInvert", {"steps": 2}),
    "control": ("InstaFlowControl", {"steps": 2, "iterations": 4}),
    "straightness": ("InstaFlowStraightness", {"seed": 0, "samples": 2, "steps": 4}),
    "compare": ("InstaFlowCompare", {"seed": 0, "teacher_steps": 3}),
    "evaluate": ("InstaFlowEvaluate", {"seed": 0, "count": 2, "width": 64, "height": 64, "prompts": "a red circle"}),
}


@pytest.mark.parametrize("name", WORKS)
def test_a_picture_that_is_cancelled_anywhere_is_made_by_the_next_prompt(
    host: Any, pack: Any, two_rf: Any, teacher: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(pack.nodes.comparison, "RUNS", 1)  # else how often Compare samples is a matter of time
    node, numbers = WORKS[name]
    model, clip, vae = two_rf
    more = numbers if name == "evaluate" else inputs(host, two_rf) | numbers
    latent = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))}
    more |= {
        "sampler": {"negative": more.get("positive")},
        "invert": {"latent_image": latent},
        "control": {"target": latent},
        "straightness": {},
        "compare": {"teacher": teacher[0], "negative": more.get("positive"), "vae": vae},
        "evaluate": {"clip": clip, "vae": vae},
    }[name]

    def work() -> tuple[Any, ...]:
        return host.run(node, model=model, **more)

    undisturbed = answers(work())
    with each_moment(lambda _: None) as count:  # the models are loaded by now, as they will be again
        work()
    for at in spread(count[0]):
        cancelled(work, at)
    again = answers(work())
    with_seconds = {"compare": slice(1), "evaluate": slice(-1, None)}.get(name, slice(0))  # pictures that show them
    del undisturbed[with_seconds], again[with_seconds]
    assert undisturbed and all(torch.equal(a, b) for a, b in zip(again, undisturbed, strict=True))


@pytest.mark.parametrize("name", ["triplets", "reflow", "distill"])
def test_a_set_or_training_that_is_cancelled_anywhere_goes_on_to_what_it_would_have_been(
    host: Any, pack: Any, output: Path, teacher: Any, two_rf: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from functools import partial
    from importlib import import_module

    writing = import_module(f"{pack.__name__}.instaflow_core.triplets.writing")
    monkeypatch.setattr(writing, "SetInfo", partial(writing.SetInfo, shard_size=3))  # several of few

    def triplets(called: str) -> Any:
        model, clip, _ = teacher
        numbers = {"count": 8, "steps": 2, "guidance": 3.0, "width": 64, "height": 64, "batch_size": 2, "seed": 1}
        return host.run("InstaFlowTriplets", model=model, clip=clip, prompts=PROMPTS, name=called, **numbers)[0]

    def train(node: str, model: Any, vae: Any, called: str, **more: Any) -> None:
        numbers = {"iterations": 4, "batch_size": 2, "learning_rate": 1e-3, "ema": 0.5, "seed": 0}
        names = {"method": "full", "resume": True, "name": called}
        host.run(node, model=model, triplets=made, vae=vae, **numbers, **names, **more)

    made = triplets("to-train-on") if name != "triplets" else None
    work: Callable[[str], Any] = {
        "triplets": triplets,
        "reflow": lambda called: train("InstaFlowReflow", teacher[0], teacher[2], called),
        "distill": lambda called: train("InstaFlowDistill", two_rf[0], two_rf[2], called, loss="huber"),
    }[name]

    def result(called: str) -> dict[str, str]:
        """Of its files, those of a set under their names, and those of a training in its folders."""
        return {key.replace(called, "NAME"): value for key, value in files(output).items() if called in key}

    with each_moment(lambda _: None) as count:
        work(f"whole-{name}")
    for at in spread(count[0]):
        called = f"cancelled-at-{at}-{name}"
        cancelled(lambda: work(called), at)  # noqa: B023  it is called here
        assert not [*output.rglob(".*.tmp")]
        if 0 < at < count[0] - 1:  # at the last one it was done
            cancelled(lambda: work(called), 0)  # noqa: B023
        work(called)
        assert result(called) == result(f"whole-{name}")


def test_a_file_that_is_saved_while_cancel_is_pressed_is_whole_or_not_there(
    host: Any, output: Path, one_step: Any
) -> None:
    model, clip, vae = one_step

    def save() -> None:
        host.run("InstaFlowSaveCheckpoint", model=model, clip=clip, vae=vae, filename_prefix="checkpoints/cancelled")

    with each_moment(lambda _: None) as count:
        save()
    assert count[0] == 0  # the host asks nothing while a file is written, and Cancel waits for its end
    assert [path.name for path in (output / "checkpoints").glob("cancelled_*")] == ["cancelled_00001_.safetensors"]
