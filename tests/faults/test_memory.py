"""Memory that does not suffice: less at once where that gives the same, else an error that says what to lower."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import content, training, triplets
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from instaflow_core.__main__ import main
from instaflow_core.triplets.reading import SetReader
from instaflow_core.triplets.storage import Storage
from instaflow_core.weights.checkpoint import load

pytestmark = pytest.mark.slow

CUDA = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1 is free."


@contextmanager
def exhausted(kind: str, when: Callable[[int, int], bool]) -> Iterator[list[int]]:
    """Let the memory not suffice for a module of this class, or for "optimizer step", when(call from 0, rows of what it
    is given) says so; yields the rows of each call."""
    rows = list[int]()

    def tried(count: int) -> None:
        rows.append(count)
        if when(len(rows) - 1, count):
            raise torch.OutOfMemoryError(CUDA)

    def called(module: Any, inputs: tuple[Any, ...]) -> None:
        if type(module).__name__ == kind:
            tried(len(inputs[0]) if inputs else 0)

    if kind == "optimizer step":
        hook = register_optimizer_step_pre_hook(lambda *_: tried(0))
    else:
        hook = register_module_forward_pre_hook(called)
    try:
        yield rows
    finally:
        hook.remove()


def latents(place: Path | str) -> torch.Tensor:
    reader = SetReader(Storage(place))
    made = reader.read(range(len(reader)))
    return made.latents[torch.tensor(made.indices).argsort()].float()


# --- the command line ---


def test_a_set_is_made_of_fewer_at_once(begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*triplets(begun, "teacher", "x"), "--batch-size", "8", "--out", str(tmp_path / "set")]
    with exhausted("UNet2DConditionModel", lambda _, rows: rows > 4) as rows:
        assert main(command) == 0
    assert max(rows[1:]) == 8 and rows[-1] <= 4  # guided: two rows each
    torch.testing.assert_close(latents(tmp_path / "set"), latents(begun / "teacher-set"), atol=2e-3, rtol=1e-2)


WORKS = {
    "triplets": (lambda begun, out: [*triplets(begun, "teacher", "x"), "--out", str(out)], "--width and --height"),
    "reflow": (
        lambda begun, out: [*training("reflow", begun, "teacher", "x", "--resume"), "--out", str(out)],
        "a smaller --batch-size, a larger --accumulate, --precision bf16, --gradient-checkpointing, "
        "--optimizer adamw8bit, --method lora",
    ),
    "generate": (
        lambda begun, out: [
            *("generate", "--checkpoint", str(begun / "flow.safetensors"), "--prompt", "a", "--device", "cpu"),
            *("--out", str(out.with_suffix(".png"))),
        ],
        "a smaller --batch-size",
    ),
}


@pytest.fixture(scope="module")
def whole(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each of the works is done, in a folder of its name."""
    place = tmp_path_factory.mktemp("whole")
    for name, (command, _) in WORKS.items():
        assert main(command(begun, place / name / "it.safetensors")) == 0
    return place


@pytest.mark.parametrize(
    ("name", "kind", "call"),
    [
        ("triplets", "UNet2DConditionModel", 0),
        ("triplets", "CLIPTextModel", 0),
        ("reflow", "UNet2DConditionModel", 0),
        ("reflow", "optimizer step", 0),
        ("reflow", "optimizer step", 3),
        ("reflow", "CLIPTextModel", 0),
        ("reflow", "DecoderTiny", 0),
        ("generate", "UNet2DConditionModel", 0),
        ("generate", "DecoderTiny", 0),
    ],
)
def test_a_command_says_what_to_lower_and_goes_on_with_what_it_had(
    begun: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str, call: int
) -> None:
    command, lowers = WORKS[name]
    with exhausted(kind, lambda number, _: number >= call) as rows:
        ended = main(command(begun, tmp_path / "parts" / "it.safetensors"))
    assert rows
    said = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()
    assert ended == 2
    assert "error: the memory of cpu does not suffice (CUDA out of memory. Tried to allocate 20.00 GiB)." in said[-1]
    assert lowers in said[-1]
    assert ("--batch-size" in said[-1]) == (name != "triplets")  # which goes down to one by itself
    assert not [*tmp_path.rglob(".*.tmp")]
    assert main(command(begun, tmp_path / "parts" / "it.safetensors")) == 0
    assert content(tmp_path / "parts") == content(whole / name)


# --- the nodes ---


@pytest.fixture(scope="module")
def output(host: Any, models: Path) -> Path:
    """The host's output folder."""
    import folder_paths

    Path(folder_paths.get_temp_directory()).mkdir(parents=True, exist_ok=True)
    return Path(folder_paths.get_output_directory())


def oom(words: str) -> Any:
    """What the host unloads its models at, with these words in it."""
    import comfy.model_management

    return pytest.raises(comfy.model_management.OOM_EXCEPTION, match=words)


def make_set(host: Any, teacher: Any, name: str) -> Any:
    model, clip, _ = teacher
    numbers = {"count": 8, "steps": 2, "guidance": 1.0, "width": 64, "height": 64, "batch_size": 8, "seed": 1}
    return host.run("InstaFlowTriplets", model=model, clip=clip, prompts="a red circle", name=name, **numbers)[0]


def reflow(host: Any, teacher: Any, made: Any, name: str) -> Any:
    numbers = {"iterations": 3, "batch_size": 8, "learning_rate": 1e-3, "ema": 0.5, "seed": 0}
    names = {"method": "full", "resume": False, "name": name}
    return host.run("InstaFlowReflow", model=teacher[0], triplets=made, vae=teacher[2], **numbers, **names)[0]


def test_a_set_and_a_training_go_on_with_fewer_at_once(host: Any, output: Path, teacher: Any) -> None:
    """The training keeps its batch, in more parts."""
    whole = make_set(host, teacher, "memory-whole")
    with exhausted("UNet2DConditionModel", lambda _, rows: rows > 2):
        made = make_set(host, teacher, "memory-parts")
    torch.testing.assert_close(latents(made.folder), latents(whole.folder), atol=2e-3, rtol=1e-2)
    first = reflow(host, teacher, whole, "memory-whole")
    with exhausted("UNet2DConditionModel", lambda call, rows: call > 2 and rows > 2) as rows:
        second = reflow(host, teacher, whole, "memory-parts")
    assert 8 in rows and 2 in rows
    expected = first.model.diffusion_model.state_dict()
    for name, tensor in second.model.diffusion_model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], atol=2e-4, rtol=1e-3)
    record = load(output / "checkpoints" / "memory-parts.safetensors").metadata["instaflow.training"]
    assert '"batch_size": 8' in record


def test_where_one_at_a_time_is_too_much_the_nodes_say_what_to_lower(host: Any, output: Path, teacher: Any) -> None:
    whole = make_set(host, teacher, "memory-enough")
    with exhausted("UNet2DConditionModel", lambda *_: True) as rows, oom("make width and height smaller"):
        make_set(host, teacher, "memory-none")
    assert rows == [8, 4, 2, 1]
    with exhausted("UNet2DConditionModel", lambda *_: True) as rows, oom("train a LoRA .method., or on smaller pic"):
        reflow(host, teacher, whole, "memory-none")
    assert rows == [8, 4, 2, 1]
    made = make_set(host, teacher, "memory-none")
    assert torch.equal(latents(made.folder), latents(whole.folder))
    reflow(host, teacher, whole, "memory-none")


NODES: dict[str, dict[str, Any]] = {
    "InstaFlowSampler": {"steps": 2, "seed": 0, "guidance": 1.0, "denoise": 1.0},
    "InstaFlowInvert": {"steps": 1},
    "InstaFlowControl": {"steps": 1, "iterations": 2},
    "InstaFlowStraightness": {"seed": 0, "samples": 2, "steps": 2},
    "InstaFlowCompare": {"seed": 0, "teacher_steps": 2},
}


@pytest.mark.parametrize("call", [0, 1])
@pytest.mark.parametrize("node", NODES)
def test_a_node_says_what_to_lower_and_works_again(
    host: Any, one_step: Any, teacher: Any, node: str, call: int
) -> None:
    model, clip, vae = one_step
    (positive,) = host.run("CLIPTextEncode", clip=clip, text="a red circle")
    latent = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))}
    more: dict[str, Any] = {
        "InstaFlowControl": {"target": latent},
        "InstaFlowCompare": {"teacher": teacher[0], "negative": positive, "vae": vae},
    }.get(node, {})
    inputs = {"model": model, "positive": positive, "latent_image": latent} | more | NODES[node]
    words = "CUDA out of memory" if node == "InstaFlowSampler" else "Give `latent_image` fewer pictures at once, or sma"
    with exhausted("UNetModel", lambda number, _: number == call), oom(words):
        host.run(node, **inputs)
    host.run(node, **inputs)


def test_the_hosts_vae_decodes_in_tiles_what_is_too_much_at_once(host: Any, one_step: Any, two_rf: Any) -> None:
    vae = two_rf[2]
    latent = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))}
    (whole,) = host.run("VAEDecode", samples=latent, vae=vae)
    with exhausted("AutoencoderKL", lambda *_: False), exhausted("Decoder", lambda call, _: call == 0) as rows:
        (tiled,) = host.run("VAEDecode", samples=latent, vae=vae)
    assert len(rows) > 1
    assert tiled.shape == whole.shape
    torch.testing.assert_close(tiled, whole, atol=0.1, rtol=0)
