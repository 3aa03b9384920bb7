"""Models whose weights are sound and whose words lie: configs, indexes, schedulers, metadata, LoRAs, differences."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from small_models import small_checkpoint
from torch import Tensor

from instaflow_core.weights.saving import save, save_folder

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_INDEX = f"{_WEIGHTS}.index.json"


@dataclass(frozen=True)
class Sound:
    """Models that load, from which those that lie are made: one in a folder, the same in a file."""

    folder: Path
    file: Path

    @classmethod
    def new(cls, place: Path) -> Sound:
        checkpoint = small_checkpoint()
        save_folder(checkpoint, place / "sound")
        # As it is downloaded: only the pipeline and the scheduler speak for it.
        save_file(checkpoint.unet, place / "sound" / "unet" / _WEIGHTS, {"format": "pt"})
        save(checkpoint, place / "sound.safetensors")
        return cls(place / "sound", place / "sound.safetensors")

    def copy(self, place: Path) -> Path:
        """The folder once more, its weights as links to the same bytes: replace a file, never write into it."""
        return Path(shutil.copytree(self.folder, place / "model", copy_function=os.link))

    def unet(self) -> dict[str, Tensor]:
        """The tensors of the UNet."""
        return load_file(self.folder / "unet" / _WEIGHTS)


Make = Callable[[Sound, Path], Path]
"""Makes a model that lies in a folder; what to load."""
Row = tuple[Make, str]


def _replace(path: Path, content: str | bytes) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _changed(file: str, **values: Any) -> Make:
    """The folder with other values in a JSON file of it."""

    def make(sound: Sound, place: Path) -> Path:
        folder = sound.copy(place)
        _replace(folder / file, json.dumps(json.loads((folder / file).read_text()) | values))
        return folder

    return make


def _replaced(file: str, content: str | bytes) -> Make:
    def make(sound: Sound, place: Path) -> Path:
        folder = sound.copy(place)
        _replace(folder / file, content)
        return folder

    return make


def _unet(**values: Any) -> Make:
    return _changed("unet/config.json", **values)


def _described(**metadata: str) -> Make:
    """The UNet in a file with these entries of metadata; a name's first _ stands for a dot."""

    def make(sound: Sound, place: Path) -> Path:
        tensors, config = sound.unet(), (sound.folder / "unet" / "config.json").read_text()
        said = {key.replace("_", ".", 1): value for key, value in metadata.items()}
        save_file(tensors, place / "model.safetensors", {"instaflow.unet_config": config} | said)
        return place / "model.safetensors"

    return make


def _weights(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Make:
    """The folder with other tensors in its UNet."""

    def make(sound: Sound, place: Path) -> Path:
        folder = sound.copy(place)
        (folder / "unet" / _WEIGHTS).unlink()
        save_file(change(sound.unet()), folder / "unet" / _WEIGHTS)
        return folder

    return make


def _sharded(name: Callable[[Path], str], change: Callable[[Path], object] = lambda shard: None) -> Make:
    """The folder with its UNet in one shard and an index that names it so."""

    def make(sound: Sound, place: Path) -> Path:
        folder = sound.copy(place)
        shard = folder / "unet" / "shard.safetensors"
        (folder / "unet" / _WEIGHTS).rename(shard)
        change(shard)
        weight_map = dict.fromkeys(sound.unet(), name(shard))
        _replace(folder / "unet" / _INDEX, json.dumps({"weight_map": weight_map}))
        return folder

    return make


def _moved_out(shard: Path) -> None:
    outside = shard.parents[2] / "outside.safetensors"
    shard.rename(outside)
    shard.symlink_to(outside)


def _two_shards(first: Callable[[dict[str, str]], None]) -> Make:
    """The folder with its UNet in two shards and an index that is changed."""

    def make(sound: Sound, place: Path) -> Path:
        folder, tensors = sound.copy(place), sound.unet()
        names = sorted(tensors)
        (folder / "unet" / _WEIGHTS).unlink()
        weight_map = {}
        for shard, some in (("a.safetensors", names[:9]), ("b.safetensors", names[9:])):
            save_file({name: tensors[name] for name in some}, folder / "unet" / shard)
            weight_map |= dict.fromkeys(some, shard)
        first(weight_map)
        _replace(folder / "unet" / _INDEX, json.dumps({"weight_map": weight_map}))
        return folder

    return make


def _other_shard(weight_map: dict[str, str]) -> None:
    weight_map[min(weight_map)] = "b.safetensors"


def _missing_shard(weight_map: dict[str, str]) -> None:
    weight_map[min(weight_map)] = "c.safetensors"


def _missing_tensor(weight_map: dict[str, str]) -> None:
    weight_map["another.weight"] = "a.safetensors"


def _fifo_config(sound: Sound, place: Path) -> Path:
    folder = sound.copy(place)
    (folder / "unet" / "config.json").unlink()
    os.mkfifo(folder / "unet" / "config.json")
    return folder


def _with(value: float, key: str = "conv_in.weight") -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors[key].view(-1)[-1] = value
        return tensors

    return change


def _typed(dtype: torch.dtype) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: tensors | {"conv_in.weight": tensors["conv_in.weight"].to(dtype)}


DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
_HUGE = '{"a": [' + "[]," * 2_000_000 + "[]]}"


def _scheduler(predicts: Any, after: str = "") -> Make:
    """An ordinary Stable Diffusion whose scheduler says that it predicts this."""

    def make(sound: Sound, place: Path) -> Path:
        folder = _changed("model_index.json", _class_name="StableDiffusionPipeline")(sound, place)
        _replace(folder / "scheduler" / "scheduler_config.json", json.dumps({"prediction_type": predicts}) + after)
        return folder

    return make


MODELS: dict[str, Row] = {
    "a config that is empty": (_replaced("unet/config.json", ""), r"config\.json is not JSON"),
    "a config that is a list": (_replaced("unet/config.json", "[]"), r"config\.json holds a list"),
    "a config that is a number": (_replaced("unet/config.json", "1e400"), r"config\.json is not JSON"),
    "a config that is a page": (_replaced("unet/config.json", "<!DOCTYPE html>"), r"config\.json is not JSON"),
    "a config in Latin-1": (_replaced("unet/config.json", b'{"a": "\xe9"}'), r"config\.json is not JSON"),
    "a config nested 100,000 deep": (_replaced("unet/config.json", DEEP), r"config\.json is nested too deeply"),
    "a config of two million lists": (_replaced("unet/config.json", _HUGE), r"config\.json is too large"),
    "a config of 17 MB": (_replaced("unet/config.json", b" " * 2**24 + b"{}"), r"config\.json has 16,777,218 bytes"),
    "a config with NaN": (_replaced("unet/config.json", '{"in_channels": NaN}'), r"config\.json is not JSON \(NaN"),
    "a config with infinity": (_replaced("unet/config.json", '{"in_channels": 1e999}'), r"config\.json is not JSON"),
    "a number of 10,000 digits": (_replaced("unet/config.json", '{"a":' + "9" * 10_000 + "}"), r"config\.json is not"),
    "a config that is a pipe": (_fifo_config, r"unet has no config\.json"),
    "a billion layers": (_unet(layers_per_block=10**9), "layers_per_block = 1000000000. Expected a whole number"),
    "a billion layers in a list": (_unet(layers_per_block=[10**9] * 3), "layers_per_block = .*1000000000"),
    "minus one layer": (_unet(layers_per_block=-1), "layers_per_block = -1"),
    "no layer": (_unet(layers_per_block=0), "layers_per_block = 0"),
    "half a layer": (_unet(layers_per_block=1.5), r"layers_per_block = 1\.5"),
    "a true layer": (_unet(layers_per_block=True), "layers_per_block = True"),
    "layers in a text": (_unet(layers_per_block="2"), "layers_per_block = '2'"),
    "layers that are an object": (_unet(layers_per_block={"a": 1}), "layers_per_block = {'a': 1}"),
    "a million levels": (_unet(block_out_channels=[32] * 10**5), r"block_out_channels = .*\(100,000 of them\)"),
    "no levels": (_unet(block_out_channels=[]), r"block_out_channels = \[\]"),
    "widths in texts": (_unet(block_out_channels=["32", "64", "96"]), "block_out_channels = .*'32'"),
    "a width of 10^30": (_unet(block_out_channels=[10**30]), "block_out_channels = "),
    "a negative width": (_unet(in_channels=-4), "in_channels = -4"),
    "a text width that is a list": (_unet(cross_attention_dim=[64]), "cross_attention_dim"),
    "a million transformers": (_unet(transformer_layers_per_block=10**6), "transformer_layers_per_block = 1000000"),
    "blocks that are a text": (_unet(down_block_types="DownBlock2D"), "down_block_types = 'Dow'"),
    "blocks of an unknown kind": (_unet(down_block_types=["os.system"] * 3), "incomplete or of another kind"),
    "blocks that are lists": (_unet(down_block_types=[[], [], []]), "incomplete or of another kind"),
    "heads that no width divides into": (_unet(attention_head_dim=7), "7 heads for"),
    "heads of texts that do not divide": (
        _changed("text_encoder/config.json", num_attention_heads=7),
        "7 heads for 64",
    ),
    "no heads": (_unet(attention_head_dim=0), "attention_head_dim = 0"),
    "pictures of a million pixels": (_unet(sample_size=10**6), "sample_size = 1000000"),
    "pictures of 131,072 pixels": (_unet(sample_size=16384), "pixels wide. Expected 8 to 16,384"),
    "another kind of UNet": (_unet(class_embed_type="timestep"), "class_embed_type = 'timestep'"),
    "a list for a kind": (_unet(time_embedding_type=["x"] * 10**5), "time_embedding_type = "),
    "a VAE of an unknown class": (_changed("vae/config.json", _class_name="os.system"), "class os.system"),
    "a VAE whose class is a list": (_changed("vae/config.json", _class_name=["A"]), "of the class"),
    "a VAE of a billion blocks": (_changed("vae/config.json", num_encoder_blocks=[10**9] * 4), "num_encoder_blocks"),
    "a text encoder of a billion layers": (
        _changed("text_encoder/config.json", num_hidden_layers=10**9),
        "num_hidden_layers = 1000000000",
    ),
    "a text encoder without a width": (_changed("text_encoder/config.json", hidden_size=None), "text encoder config"),
    "a pipeline that is a list": (_replaced("model_index.json", "[]"), r"model_index\.json holds a list"),
    "a pipeline nested 100,000 deep": (_replaced("model_index.json", DEEP), r"model_index\.json is nested too deeply"),
    "a scheduler that predicts the weather": (_scheduler("weather"), "predicts 'weather'"),
    "a scheduler that predicts a list": (_scheduler(["epsilon"]), r"predicts \['epsilon'\]"),
    "a scheduler that predicts an object": (_scheduler({}), r"predicts {}"),
    "a scheduler that is no JSON": (_scheduler("weather", "}"), r"scheduler_config\.json is not JSON"),
    "an index that is no JSON": (_sharded(lambda shard: "x", lambda shard: None), "x|There is no file"),
    "an index with an absolute path": (_sharded(str), "names the file '.*shard"),
    "an index with ..": (_sharded(lambda shard: "../unet/shard.safetensors"), "names the file"),
    "an index with another system's ..": (_sharded(lambda shard: "..\\unet\\shard.safetensors"), "names the file"),
    "an index with a drive": (_sharded(lambda shard: "C:shard.safetensors"), "names the file|There is no file"),
    "an index with a link out": (_sharded(lambda shard: shard.name, _moved_out), "a link that leads out of its folder"),
    "an index of itself": (_sharded(lambda shard: _INDEX), "a JSON file, not weights"),
    "an index of its folder": (_sharded(lambda shard: "."), "names the file"),
    "an index of another shard": (_two_shards(_other_shard), "which .*index.json says is in"),
    "an index of a shard that is not there": (_two_shards(_missing_shard), "There is no file|says is in"),
    "an index of a tensor that is not there": (_two_shards(_missing_tensor), "lists 1 tensors that are not there"),
    "weights that are whole numbers": (_weights(_typed(torch.int64)), "conv_in.weight is int64"),
    "weights that are true or false": (_weights(_typed(torch.bool)), "conv_in.weight is bool"),
    "weights that are complex": (_weights(_typed(torch.complex64)), "conv_in.weight is complex64"),
    "a weight of another shape": (
        _weights(lambda tensors: tensors | {"conv_in.weight": torch.zeros(1)}),
        r"conv_in\.weight has shape \(1,\)",
    ),
    "a weight without a shape": (
        _weights(lambda tensors: tensors | {"conv_in.weight": torch.zeros(())}),
        r"conv_in\.weight has shape \(\)",
    ),
    "a weight too few": (_weights(lambda tensors: {k: tensors[k] for k in sorted(tensors)[1:]}), "1 missing"),
    "a weight too many": (_weights(lambda tensors: tensors | {"evil": torch.zeros(1)}), "1 not part of such a model"),
    "metadata: a config that is no JSON": (_described(instaflow_unet_config="{"), "which is not JSON"),
    "metadata: a config that is a list": (_described(instaflow_unet_config="[]"), "holds a list"),
    "metadata: a config nested deeply": (
        _described(instaflow_unet_config="[" * 10_000 + "]" * 10_000),
        "nested too deeply",
    ),
    "metadata: a config of 300,000 lists": (_described(instaflow_unet_config=_HUGE[:900_000] + "[]]}"), "is too large"),
    "metadata: a billion layers": (
        _described(instaflow_unet_config='{"layers_per_block": 1000000000}'),
        "layers_per_block = 1000000000",
    ),
    "metadata: pictures of 10^30 pixels": (_described(instaflow_native_size="1" + "0" * 30), "native_size of"),
    "metadata: pictures of no pixels": (_described(instaflow_native_size="0"), "native_size of"),
    "metadata: a size in another script": (_described(instaflow_native_size="٥١٢"), "native_size of"),
    "metadata: a guidance that is no number": (_described(instaflow_guidance="nan"), "guidance of"),
    "metadata: a guidance without an end": (_described(instaflow_guidance="inf"), "guidance of"),
    "metadata: a negative guidance": (_described(instaflow_guidance="-1"), "guidance of"),
    "metadata: a prediction nobody knows": (_described(instaflow_prediction="x" * 10**5), "prediction of"),
    "metadata: another program's prediction": (
        _described(modelspec_prediction_type="os.system"),
        "predicts 'os.system'",
    ),
    "metadata: shared with an absolute path": (_described(instaflow_shared='["/etc/hostname"]'), "names the file"),
    "metadata: shared with ..": (_described(instaflow_shared='["../sound.safetensors"]'), "names the file"),
    "metadata: shared with a number": (_described(instaflow_shared="[5]"), "is no list of files"),
    "metadata: shared with a thousand": (
        _described(instaflow_shared=json.dumps(["model.safetensors"] * 1000)),
        "is no list of files",
    ),
    "metadata: shared that is an object": (_described(instaflow_shared="{}"), "holds a dict"),
}
"""What `load` refuses before any weight is used."""

POISONED: dict[str, Row] = {
    "a weight that is NaN": (_weights(_with(float("nan"))), "conv_in.weight that are NaN or infinite"),
    "a weight that is infinite": (_weights(_with(float("inf"))), "conv_in.weight that are NaN or infinite"),
    "a weight that is minus infinity": (_weights(_with(float("-inf"))), "conv_in.weight that are NaN or infinite"),
    "a weight of 10^39 in half precision": (
        _weights(lambda tensors: {name: _with(1e30)(tensors)[name].half() for name in tensors}),
        "conv_in.weight that are NaN or infinite",
    ),
}
"""What is refused when a module is made of it."""
