"""Differences of weights: taken from two models and added to a third, next to the same sums done by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import save_unet, small_checkpoint
from torch import Tensor

from instaflow_core import __main__ as cli
from instaflow_core.weights import deltas
from instaflow_core.weights.checkpoint import Checkpoint, load
from instaflow_core.weights.deltas import extract, merge
from instaflow_core.weights.files import FormatError, read_weights, stream_weights
from instaflow_core.weights.identify import identify
from instaflow_core.weights.layouts import unet_rows
from instaflow_core.weights.modules import build_unet
from instaflow_core.weights.saving import save, save_folder

# Each writes and reads whole models.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]


def finetune(base: Checkpoint, seed: int = 5, **metadata: str) -> Checkpoint:
    """A checkpoint whose UNet is another random one, with a text encoder and a VAE of its own."""
    other = small_checkpoint("teacher", "epsilon", seed=seed)
    return replace(other, metadata=other.metadata | metadata)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """flow.safetensors, and tuned.safetensors, which was "finetuned" from base.safetensors; all float32."""
    folder = tmp_path_factory.mktemp("models")
    save(small_checkpoint(seed=0), folder / "flow.safetensors")
    save(small_checkpoint("teacher", "epsilon", seed=1), folder / "base.safetensors")
    save(finetune(small_checkpoint(seed=1)), folder / "tuned.safetensors")
    return folder


@pytest.fixture(scope="module")
def delta(models: Path) -> Path:
    """tuned - base."""
    extract(models / "tuned.safetensors", models / "base.safetensors", models / "delta.safetensors")
    return models / "delta.safetensors"


def unets(models: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    return tuple(load(models / f"{name}.safetensors").unet for name in ("flow", "tuned", "base"))  # type: ignore[return-value]


# --- the sum ---


@pytest.mark.parametrize("strength", [1.0, 0.3, -0.7, 0.0])
def test_merged_is_the_sum_by_hand(models: Path, delta: Path, tmp_path: Path, strength: float) -> None:
    merge(models / "flow.safetensors", delta, tmp_path / "merged.safetensors", strength)
    merged = load(tmp_path / "merged.safetensors")
    flow, tuned, base = unets(models)
    assert merged.unet.keys() == flow.keys()
    for name, weight in flow.items():
        assert torch.equal(merged.unet[name], weight + strength * (tuned[name] - base[name])), name
    own = load(models / "flow.safetensors")
    for part in ("text_encoder", "vae"):
        ours, theirs = merged.part(part), own.part(part)
        assert ours and theirs and ours[1] == theirs[1]
        assert all(torch.equal(ours[0][name], theirs[0][name]) for name in theirs[0])


def test_the_sum_computes(models: Path, delta: Path, tmp_path: Path) -> None:
    """A diffusers UNet given the sum of the weights."""
    merge(models / "flow.safetensors", delta, tmp_path / "merged.safetensors", 0.5)
    unet = build_unet(load(models / "flow.safetensors"))
    flow, tuned, base = unets(models)
    unet.load_state_dict({name: flow[name] + 0.5 * (tuned[name] - base[name]) for name in flow})
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.randn(1, 77, unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = unet(latents, 1000.0, encoder_hidden_states=text).sample
        merged = build_unet(load(tmp_path / "merged.safetensors"))(latents, 1000.0, encoder_hidden_states=text).sample
    assert torch.equal(merged, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_float32_and_kept_in_the_models_type(models: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """The difference of two half-precision models is exact in float32; the result is rounded once."""
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("flow", "tuned", "base", "delta", "merged")}
    for name in ("flow", "tuned", "base"):
        save(load(models / f"{name}.safetensors"), paths[name], dtype)
    extract(paths["tuned"], paths["base"], paths["delta"])
    merge(paths["flow"], paths["delta"], paths["merged"], 0.3)
    flow, tuned, base = unets(tmp_path)
    for name, weight in load(paths["merged"]).unet.items():
        by_hand = flow[name].double() + 0.3 * (tuned[name].double() - base[name].double())
        assert weight.dtype == dtype
        assert torch.equal(weight, by_hand.float().to(dtype)) or (weight.double() - by_hand).abs().max() < 1e-2, name
        expected = flow[name].float() + 0.3 * (tuned[name].float() - base[name].float())
        assert torch.equal(weight, expected.to(dtype)), name


def test_a_delta_kept_in_half_precision(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    extract(models / "tuned.safetensors", models / "base.safetensors", path, torch.float16)
    _, tuned, base = unets(models)
    tensors = load_file(path)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    expected = (tuned["conv_in.weight"] - base["conv_in.weight"]).half()
    assert torch.equal(tensors["diffusion_model.input_blocks.0.0.diff"], expected)


def test_every_layout_gives_the_same(models: Path, delta: Path, tmp_path: Path) -> None:
    """A file, a diffusers folder, its unet/ and a bare UNet, in every place a model is named."""
    for name in ("flow", "tuned", "base"):
        save_folder(load(models / f"{name}.safetensors"), tmp_path / name)
        save_unet(load(models / f"{name}.safetensors"), tmp_path / f"{name}-unet.safetensors")
    merge(models / "flow.safetensors", delta, tmp_path / "expected.safetensors")
    expected = load(tmp_path / "expected.safetensors")
    for number, form in enumerate(("{}", "{}/unet", "{}-unet.safetensors")):
        first, second, third = (tmp_path / form.format(name) for name in ("flow", "tuned", "base"))
        found, merged = tmp_path / f"delta-{number}.safetensors", tmp_path / f"merged-{number}.safetensors"
        extract(second, third, found)
        assert load_file(found).keys() == load_file(delta).keys()
        merge(first, found, merged)
        again = load(merged)
        assert again.unet_config == expected.unet_config
        assert all(torch.equal(again.unet[name], expected.unet[name]) for name in expected.unet), form
        assert (again.text_encoder is None) == (number > 0)


def test_text_encoder_and_vae_of_the_finetune(models: Path, delta: Path, tmp_path: Path) -> None:
    arguments = (models / "flow.safetensors", delta, tmp_path / "merged.safetensors")
    merge(*arguments, clip_vae=models / "tuned.safetensors")
    merged, tuned = load(arguments[2]), load(models / "tuned.safetensors")
    for part in ("text_encoder", "vae"):
        ours, theirs = merged.part(part), tuned.part(part)
        assert ours and theirs and all(torch.equal(ours[0][name], theirs[0][name]) for name in theirs[0])
    assert (merged.prediction, merged.stage) == ("velocity", "one-step")


# --- what the files say ---


def test_metadata_tells_what_was_merged(models: Path, delta: Path, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.safetensors", tmp_path / "twice.safetensors"
    merge(models / "flow.safetensors", delta, once, 0.5)
    merge(once, delta, twice, 0.25)
    record = {"delta": "delta.safetensors", "finetuned": "tuned.safetensors", "base": "base.safetensors"}
    metadata = load(twice).metadata
    assert json.loads(metadata["instaflow.merged"]) == [record | {"strength": 0.5}, record | {"strength": 0.25}]
    flow = load(models / "flow.safetensors")
    assert (load(twice).stage, load(twice).native_size) == (flow.stage, flow.native_size)
    assert json.loads(read_weights(delta)[1]["instaflow.delta"]) == {
        "finetuned": "tuned.safetensors",
        "base": "base.safetensors",
    }


@pytest.mark.parametrize(
    ("model", "tuned", "expected"),
    [
        ({"instaflow.license": "CC-BY-NC-4.0"}, {}, "CC-BY-NC-4.0"),
        ({}, {"modelspec.license": "CC-BY-NC-4.0"}, "CC-BY-NC-4.0"),
        (
            {"instaflow.license": "GPL-3.0"},
            {"modelspec.license": "CC-BY-NC-4.0", "instaflow.license": ""},
            "CC-BY-NC-4.0 AND GPL-3.0",
        ),
        ({"instaflow.license": "CC-BY-NC-4.0"}, {"modelspec.license": "CC-BY-NC-4.0"}, "CC-BY-NC-4.0"),
        ({}, {}, None),
    ],
)
def test_licences_are_carried_over(
    models: Path, tmp_path: Path, model: dict[str, str], tuned: dict[str, str], expected: str | None
) -> None:
    flow, path = small_checkpoint(seed=0), tmp_path / "merged.safetensors"
    save(replace(flow, metadata=flow.metadata | model), tmp_path / "flow.safetensors")
    save(finetune(flow, **tuned), tmp_path / "tuned.safetensors")
    extract(tmp_path / "tuned.safetensors", models / "base.safetensors", tmp_path / "delta.safetensors")
    merge(tmp_path / "flow.safetensors", tmp_path / "delta.safetensors", path)
    metadata = load(path).metadata
    assert metadata.get("instaflow.license") == metadata.get("modelspec.license") == expected


def test_a_delta_is_no_model(delta: Path) -> None:
    with pytest.raises(FormatError, match=r"is a difference of weights: it holds .*LoraLoaderModelOnly.*merge-delta"):
        identify(delta)


# --- what does not fit ---


def broken(models: Path, source: str, path: Path, change: Any) -> Path:
    """A copy of a weight file with its tensors changed."""
    tensors, metadata = read_weights(models / source)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, path, metadata)
    return path


def test_models_of_another_architecture(models: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    checkpoint = small_checkpoint()
    config = checkpoint.unet_config | {"block_out_channels": (64, 128)}
    unet = UNet2DConditionModel.from_config(config).state_dict()
    save(replace(checkpoint, unet=unet, unet_config=config), tmp_path / "wide.safetensors")
    with pytest.raises(FormatError, match=r"wide.safetensors and base.safetensors .* of different shapes \(.*: \("):
        extract(tmp_path / "wide.safetensors", models / "base.safetensors", tmp_path / "delta.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["wide.safetensors"]


@pytest.mark.parametrize("kept", [torch.float32, torch.float16])
def test_models_of_other_types(kept: torch.dtype, models: Path, tmp_path: Path) -> None:
    tuned, base = load(models / "tuned.safetensors").unet, load(models / "base.safetensors").unet
    save(load(models / "tuned.safetensors"), tmp_path / "half.safetensors", torch.float16)
    types = extract(tmp_path / "half.safetensors", models / "base.safetensors", tmp_path / "delta.safetensors", kept)
    assert types == ("float16", "float32")
    difference = load_file(tmp_path / "delta.safetensors")["diffusion_model.out.2.diff"]
    expected = tuned["conv_out.weight"].half().float() - base["conv_out.weight"]
    assert difference.dtype == kept and torch.equal(difference, expected.to(kept))


def test_the_command_says_in_what_type_a_difference_of_two_types_is(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = tmp_path / "half.safetensors"
    save(load(models / "tuned.safetensors"), half, torch.float16)
    delta = str(tmp_path / "delta.safetensors")
    assert cli.main(["extract-delta", str(half), str(models / "base.safetensors"), delta]) == 0
    said = capsys.readouterr()
    assert said.out == f"{delta}\n"
    assert "The finetune is in float16, its base in float32; the difference is in float32.\n" in said.err


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors["diffusion_model.input_blocks.0.0.diff_b"]


def add(tensors: dict[str, Tensor]) -> None:
    tensors["diffusion_model.input_blocks.99.0.diff"] = torch.zeros(1)


def rename(tensors: dict[str, Tensor]) -> None:
    tensors["lora_unet_input_blocks_0_0.lora_up.weight"] = tensors.pop("diffusion_model.input_blocks.0.0.diff")


def reshape(tensors: dict[str, Tensor]) -> None:
    """A shape that would broadcast."""
    tensors["diffusion_model.input_blocks.0.0.diff_b"] = torch.zeros(1)


def integers(tensors: dict[str, Tensor]) -> None:
    name = "diffusion_model.input_blocks.0.0.diff_b"
    tensors[name] = tensors[name].to(torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"1 only in flow.safetensors \(input_blocks.0.0.bias\)"),
        (add, r"1 only in broken.safetensors \(input_blocks.99.0.weight\)"),
        (rename, r"1 only in broken.safetensors \(lora_unet_input_blocks_0_0.lora_up.weight\)"),
        (reshape, r"1 of different shapes \(input_blocks.0.0.bias: \(1,\) float32 and \(64,\) float32\)"),
        (integers, r"1 of types that cannot be added \(input_blocks.0.0.bias: \(64,\) int32 and \(64,\) float32\)"),
    ],
)
def test_a_delta_that_does_not_fit(models: Path, delta: Path, tmp_path: Path, change: Any, message: str) -> None:
    path = broken(models, delta.name, tmp_path / "broken.safetensors", change)
    with pytest.raises(FormatError, match=message + r".*Expected the same names and shapes in both"):
        merge(models / "flow.safetensors", path, tmp_path / "merged.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["broken.safetensors"]


def test_a_model_in_place_of_a_delta(models: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FormatError, match=r"tuned.safetensors is not a difference of weights .*extract-delta FINETUNED"
    ):
        merge(models / "flow.safetensors", models / "tuned.safetensors", tmp_path / "merged.safetensors")


def test_clip_and_vae_that_do_not_fit(models: Path, delta: Path, tmp_path: Path) -> None:
    save_unet(small_checkpoint(), tmp_path / "bare.safetensors")
    arguments = (models / "flow.safetensors", delta, tmp_path / "merged.safetensors", 1.0)
    with pytest.raises(FormatError, match=r"bare.safetensors has no text encoder. .*leave the option out"):
        merge(*arguments, tmp_path / "bare.safetensors")
    from transformers import CLIPTextConfig, CLIPTextModel

    checkpoint = small_checkpoint()
    config = dict(checkpoint.text_config or {}) | {"hidden_size": 128}
    weights = CLIPTextModel(CLIPTextConfig.from_dict(config)).state_dict()
    text = {name if name.startswith("text_model.") else f"text_model.{name}": w for name, w in weights.items()}
    save(replace(checkpoint, text_encoder=text, text_config=config), tmp_path / "wide.safetensors")
    with pytest.raises(FormatError, match=r"text encoder of wide.safetensors is 128 wide. Expected 64"):
        merge(*arguments, tmp_path / "wide.safetensors")


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_strength(models: Path, delta: Path, tmp_path: Path, strength: float) -> None:
    with pytest.raises(ValueError, match=r"strength is (nan|inf). Give a finite number"):
        merge(models / "flow.safetensors", delta, tmp_path / "merged.safetensors", strength)


def test_destinations(models: Path, delta: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"called merged.ckpt. Expected a name ending in .safetensors"):
        merge(models / "flow.safetensors", delta, tmp_path / "merged.ckpt")
    path = tmp_path / "merged.safetensors"
    path.write_bytes(b"something")
    with pytest.raises(FileExistsError, match=r"exists already. Give another name, or --force"):
        merge(models / "flow.safetensors", delta, path)
    merge(models / "flow.safetensors", delta, path, force=True)
    assert load(path).stage == "one-step"


# --- writing a tensor at a time ---


def test_streamed_files_are_what_the_library_writes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        str(dtype): torch.randn(3, 5, generator=generator).to(dtype)
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.uint8)
    } | {"scalar": torch.tensor(0.18215), "empty": torch.zeros(0, 4), "turned": torch.randn(3, 5).T}
    path = tmp_path / "streamed.safetensors"
    stream_weights(tensors, iter(tensors.items()), path, {"a": "ä"})
    read, metadata = read_weights(path)
    assert metadata == {"a": "ä"}
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name].float(), tensor.float())


def test_a_stream_that_leaves_its_layout(tmp_path: Path) -> None:
    layout = {"a": torch.zeros(2), "b": torch.zeros(3)}
    path = tmp_path / "streamed.safetensors"
    for tensors in (
        [("b", torch.zeros(3)), ("a", torch.zeros(2))],
        [("a", torch.zeros(2).half()), ("b", torch.zeros(3))],
    ):
        with pytest.raises(
            ValueError, match=r"was to go on with a \(2,\) torch.float32.*Give the tensors in the order"
        ):
            stream_weights(layout, tensors, path, {})
    with pytest.raises(ValueError, match="shorter"):
        stream_weights(layout, [("a", torch.zeros(2))], path, {})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_merge_leaves_nothing(models: Path, delta: Path, tmp_path: Path) -> None:
    def interrupt(size: int, total: int) -> None:
        assert 0 < size < total
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(models / "flow.safetensors", delta, tmp_path / "merged.safetensors", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_several_chunks_give_the_same(
    models: Path, delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once, chunked = tmp_path / "once.safetensors", tmp_path / "chunked.safetensors"
    merge(models / "flow.safetensors", delta, once)
    monkeypatch.setattr(deltas, "CHUNK_BYTES", 10**6)
    done: list[int] = []
    merge(models / "flow.safetensors", delta, chunked, progress=lambda size, total: done.append(size))
    assert chunked.read_bytes() == once.read_bytes()
    assert 0 < chunked.stat().st_size - sum(done) < 200_000  # the header


WIDE = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [128, 288, 544],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3,
    "up_block_types": ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}

MEASURE = """
import re, sys
from pathlib import Path
from instaflow_core.__main__ import main
def memory(): return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
before = memory()
code = main(sys.argv[1:])
print(code, memory() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_memory_stays_far_below_the_files(tmp_path: Path) -> None:
    """Three files of 300 MB: what a process needs beyond its imports is about two chunks of CHUNK_BYTES."""
    names = [(row.ldm, row.ldm_shape) for row in unet_rows(WIDE)]
    layout = {f"model.diffusion_model.{name}": torch.empty(shape, device="meta") for name, shape in names}
    size = sum(tensor.numel() * 4 for tensor in layout.values())
    assert 280e6 < size < 400e6
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("flow", "tuned", "base", "delta", "merged")}
    for name, value in {"flow": 2.5, "tuned": 3.0, "base": 1.0}.items():
        tensors = ((key, torch.full(tensor.shape, value)) for key, tensor in layout.items())
        stream_weights(layout, tensors, paths[name], {})
    for command in (["extract-delta", "tuned", "base", "delta"], ["merge-delta", "flow", "delta", "merged"]):
        arguments = [command[0], *(str(paths[name]) for name in command[1:])]
        run = subprocess.run(
            [sys.executable, "-c", MEASURE, *arguments], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ)
        )
        code, peak = map(int, run.stdout.split()[-2:])
        assert code == 0, run.stderr
        assert peak < 1.5 * size, f"{command[0]} needed {peak / 1e6:.0f} MB for files of {size / 1e6:.0f} MB each"
    tensors, _ = read_weights(paths["merged"])
    assert all(tensor.min() == tensor.max() == 4.5 for tensor in list(tensors.values())[::50])


# --- the commands ---


def test_commands(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    delta, merged = str(tmp_path / "delta.safetensors"), str(tmp_path / "merged.safetensors")
    tuned, base, flow = (str(models / f"{name}.safetensors") for name in ("tuned", "base", "flow"))
    assert cli.main(["extract-delta", tuned, base, delta]) == 0
    assert capsys.readouterr().out.split() == [delta]
    assert cli.main(["merge-delta", flow, delta, merged, "--strength", "-0.5", "--clip-vae", tuned]) == 0
    assert capsys.readouterr().out.split() == [merged]
    result = load(merged)
    first, second, third = unets(models)
    name = "conv_out.weight"
    assert torch.equal(result.unet[name], first[name] - 0.5 * (second[name] - third[name]))
    assert cli.main(["info", merged]) == 0
    assert '"finetuned": "tuned.safetensors", "base": "base.safetensors", "strength": -0.5' in capsys.readouterr().out
    assert cli.main(["merge-delta", flow, delta, merged]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("Give another name, or --force to replace it.")


def test_the_command_says_the_licence(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flow = small_checkpoint()
    path = tmp_path / "flow.safetensors"
    save(replace(flow, metadata=flow.metadata | {"instaflow.license": "CC-BY-NC-4.0"}), path)
    extract(models / "tuned.safetensors", models / "base.safetensors", tmp_path / "delta.safetensors")
    arguments = [path, tmp_path / "delta.safetensors", tmp_path / "merged.safetensors"]
    assert cli.main(["merge-delta", *map(str, arguments)]) == 0
    assert "CC-BY-NC-4.0" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["extract-delta", "merge-delta"])
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    assert f"example:\n  python -m instaflow_core {command} " in capsys.readouterr().out


def test_bad_input_is_one_line(models: Path, delta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(models / "flow.safetensors"), str(models / "tuned.safetensors"), str(tmp_path / "m.safetensors")]
    assert cli.main(["merge-delta", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert error.startswith("python -m instaflow_core merge-delta: error: tuned.safetensors is not a difference")
