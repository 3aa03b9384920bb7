"""What is fuzzed: readers of files of unknown origin, each given any bytes.

A target takes bytes and a folder of its own. It returns, or raises one of our errors: everything else is a finding.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from hostile_sets import SHAPE, new_set
from hostile_tensors import entry, file_of
from safetensors.torch import save
from small_models import small_checkpoint
from watched import watched

from instaflow_core.triplets.format import parse_info, read_info, read_shard
from instaflow_core.triplets.prompts import read_prompts
from instaflow_core.triplets.storage import Storage
from instaflow_core.weights.checkpoint import load
from instaflow_core.weights.errors import FormatError
from instaflow_core.weights.files import read_weights
from instaflow_core.weights.loras import convert_lora, is_diffusers_lora


class Finding(AssertionError):
    """Something no file may do."""


@dataclass(frozen=True)
class Target:
    """What is called with bytes and a folder, and bytes to begin with: whole files, from which others are made."""

    act: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]
    words: tuple[str, ...] = ()


def warm(name: str, folder: Path) -> None:
    """Read what a target begins with, unwatched: the first reading of a kind imports libraries."""
    for data in TARGETS[name].seeds():
        with suppress(ValueError):
            TARGETS[name].act(data, folder)


def check(name: str, data: bytes, folder: Path) -> bool:
    """Give these bytes to a target; whether it took them. Raises Finding where it does what none may do."""
    with watched(memory=False) as seen:
        try:
            TARGETS[name].act(data, folder)
            taken = True
        except Exception as error:
            if type(error) not in (FormatError, ValueError):
                raise Finding(f"{name}: {type(error).__name__}: {error}") from error
            taken = False
    written = [event for event in seen.events if str(folder) not in event]  # the target itself makes the files
    outside = seen.outside(folder)
    if written or outside:
        raise Finding(f"{name}: {written} {outside}")
    return taken


def _at(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# --- weights ---


def _tensors(data: bytes, folder: Path) -> object:
    return read_weights(_at(folder, "model.safetensors", data))


def _header(data: bytes, folder: Path) -> object:
    return read_weights(_at(folder, "model.safetensors", file_of(data, bytes(64))))


def _header_seeds() -> list[bytes]:
    some = {"__metadata__": {"format": "pt"}, "a": entry(), "b.weight": entry("F16", [2, 7], [4, 32])}
    some |= {"c": entry("I64", [4], [32, 64])}
    return [json.dumps(some).encode(), json.dumps({"a": entry(shape=[4, 4], offsets=[0, 64])}).encode(), b"{}"]


def _pickled(zipped: bool) -> Callable[[], list[bytes]]:
    def seeds() -> list[bytes]:
        buffer = io.BytesIO()
        content = {"state_dict": {"a": torch.arange(4.0), "b": torch.zeros(2, 2).half()}, "epoch": 5}
        torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
        return [buffer.getvalue()]

    return seeds


# --- what a file and a folder say of a model; their weights are a few tensors of the right names ---

_UNET = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3)}


def _metadata(data: bytes, folder: Path) -> object:
    """Lines of key=value."""
    pairs = (line.partition("=")[::2] for line in data.decode("utf-8", "replace").split("\n"))
    metadata = {key: value for key, value in pairs if key}
    return load(_at(folder, "model.safetensors", save(_UNET, metadata)))


def _metadata_seeds() -> list[bytes]:
    checkpoint = _checkpoint()
    said = {
        "instaflow.unet_config": json.dumps(checkpoint.unet_config),
        "instaflow.prediction": "velocity",
        "instaflow.native_size": "512",
        "instaflow.guidance": "1.5",
        "instaflow.shared": '["a.safetensors"]',
        "modelspec.prediction_type": "epsilon",
        "modelspec.resolution": "512x512",
    }
    lines = [f"{key}={value}" for key, value in said.items()]
    return ["\n".join(lines).encode(), *(line.encode() for line in lines)]


@lru_cache(maxsize=1)
def _checkpoint():  # type: ignore[no-untyped-def]
    return small_checkpoint()


def _in_folder(file: str) -> Callable[[bytes, Path], object]:
    """A folder whose one file has these bytes; where it has all others from a sound one."""

    def act(data: bytes, folder: Path) -> object:
        model = folder / "model"
        sound = _texts()
        if not model.exists():
            (model / "unet").mkdir(parents=True)
            (model / "scheduler").mkdir()
            _at(model / "unet", "diffusion_pytorch_model.safetensors", save({"down_blocks.x": torch.zeros(1)}))
        for name, content in sound.items():
            (model / name).write_bytes(data if name == file else content)
        from instaflow_core.weights.metadata import described_by_folder, said_in_folder, zero_snr_in_folder

        said_in_folder(model, {})
        described_by_folder(model)
        zero_snr_in_folder(model)
        return load(model)

    return act


@lru_cache(maxsize=1)
def _texts() -> dict[str, bytes]:
    return {
        "model_index.json": b'{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "A"]}',
        "unet/config.json": json.dumps(_checkpoint().unet_config).encode(),
        "scheduler/scheduler_config.json": b'{"prediction_type": "v_prediction", "rescale_betas_zero_snr": true}',
    }


def _text_seeds(file: str) -> Callable[[], list[bytes]]:
    return lambda: [_texts()[file], b"{}"]


# --- LoRAs ---


def _lora(data: bytes, folder: Path) -> object:
    """Names of tensors, a line each; the last line is the adapter's config."""
    *names, config = data.decode("utf-8", "replace").split("\n")
    tensors = {name: torch.zeros((2, 4) if "A" in name or "down" in name else (4, 2)) for name in names if name}
    path = _at(folder, "adapter_model.safetensors", save(tensors))
    _at(folder, "adapter_config.json", config.encode())
    out = folder / "out.safetensors"
    out.unlink(missing_ok=True)
    return is_diffusers_lora(path) and convert_lora(path, out)


def _lora_seeds() -> list[bytes]:
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    styles = (
        (f"unet.{layer}", ".lora_A.weight", ".lora_B.weight"),
        (f"base_model.model.{layer}", ".lora_A.default.weight", ".lora_B.default.weight"),
        (f"unet.{layer}.processor.to_out", "_lora.down.weight", "_lora.up.weight"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", ".lora_linear_layer.down.weight", ".lora.up.weight"),
        ("lora_unet_mid_block_attentions_0_proj_in", ".lora_down.weight", ".lora_up.weight"),
    )
    return [f"{name}{down}\n{name}{up}\n{{}}".encode() for name, down, up in styles] + [
        f'{styles[0][0]}.lora_A.weight\n{{"lora_alpha": 4, "use_dora": false}}'.encode()
    ]


# --- sets and prompts ---


def _set(data: bytes, folder: Path) -> object:
    _at(folder, "set.json", data)
    return read_info(Storage(folder))


@lru_cache(maxsize=1)
def _sound_set() -> dict[str, bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        new_set(Path(place))
        return {path.name: path.read_bytes() for path in Path(place).iterdir()}


def _shard(data: bytes, folder: Path) -> object:
    _at(folder, "shard-000000.parquet", data)
    triplets = read_shard(Storage(folder), parse_info(_sound_set()["set.json"]), 0)
    if triplets.latents.shape != (4, *SHAPE) or not all(isinstance(text, str) for text in triplets.texts):
        raise Finding(f"a shard was read as {triplets}")
    return triplets


def _prompts(ending: str) -> Callable[[bytes, Path], object]:
    def act(data: bytes, folder: Path) -> object:
        with redirect_stderr(io.StringIO()):  # which tells how many rows were left out
            prompts = read_prompts(str(_at(folder, f"prompts{ending}", data)), 10)
        if not prompts or not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
            raise Finding(f"{prompts!r:.200} were read as prompts")
        return prompts

    return act


def _tables() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = []
    for texts in (["a star", None, "a ring"], [["a", "b"], ["c"], []], [1, 2, 3]):
        buffer = io.BytesIO()
        pq.write_table(pa.table({"text": texts, "other": [1, 2, 3]}), buffer)
        made.append(buffer.getvalue())
    return made


_JSON = ("[", "]", "{", "}", ":", ",", '"', "null", "true", "-1", "1e999", "NaN", "9" * 30, "[" * 2000, "\\ud800")

FINDINGS = Path(__file__).parents[1] / "security" / "findings"
"""What fuzzing has found, each once: target-what-it-did."""

TARGETS: dict[str, Target] = {
    "tensors": Target(_tensors, lambda: [file_of(seed, bytes(64)) for seed in _header_seeds()], _JSON),
    "header": Target(_header, _header_seeds, (*_JSON, "data_offsets", "F6_E2M3", "F4", "C64", "18446744073709551615")),
    "pickle": Target(_tensors, _pickled(False), ("cos\nsystem\n", "tR", "cbuiltins\neval\n", "\x81", "\x93", "b")),
    "zip": Target(
        _tensors, _pickled(True), ("PK\x01\x02", "PK\x03\x04", "PK\x05\x06", "constants.pkl", "cos\nsystem\n")
    ),
    "metadata": Target(_metadata, _metadata_seeds, (*_JSON, "instaflow.", "layers_per_block", "=")),
    "config": Target(_in_folder("unet/config.json"), _text_seeds("unet/config.json"), _JSON),
    "pipeline": Target(_in_folder("model_index.json"), _text_seeds("model_index.json"), _JSON),
    "scheduler": Target(
        _in_folder("scheduler/scheduler_config.json"), _text_seeds("scheduler/scheduler_config.json"), _JSON
    ),
    "lora": Target(_lora, _lora_seeds, (*_JSON, "lora_A", "lora_B", ".alpha", "to_out", "text_model.", ".processor.")),
    "set": Target(_set, lambda: [_sound_set()["set.json"]], _JSON),
    "shard": Target(_shard, lambda: [_sound_set()["shard-000000.parquet"]], ("PAR1", "\xff\xff\xff\x7f")),
    "txt": Target(_prompts(".txt"), lambda: [b"a star\na ring\n", "\ufeffa\r\nb".encode(), "\xfc".encode("utf-16")]),
    "csv": Target(_prompts(".csv"), lambda: [b'id,text\n1,"a, star"\n2,\n'], (",", '"', "\n", "text", "\x00")),
    "json": Target(_prompts(".json"), lambda: [b'[{"text": "a star"}, {"text": ["a", "b"]}]'], (*_JSON, "text")),
    "jsonl": Target(_prompts(".jsonl"), lambda: [b'{"text": "a star"}\n{"caption": 5}\n'], (*_JSON, "text", "\n")),
    "parquet": Target(_prompts(".parquet"), _tables, ("PAR1", "ARROW:schema", "\xff\xff\xff\x7f")),
}
