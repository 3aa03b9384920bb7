"""Models from strangers whose weights are sound and whose words lie: refused in words, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hostile_adapters import DELTAS, LORAS
from hostile_models import MODELS, POISONED, Sound
from hostile_readings import harmless, refused
from safetensors.torch import load_file, save_file
from watched import watched

from instaflow_core.weights.checkpoint import load
from instaflow_core.weights.conversion import convert
from instaflow_core.weights.deltas import merge
from instaflow_core.weights.loras import convert_lora, is_diffusers_lora
from instaflow_core.weights.modules import build_text_encoder, build_unet


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    made = Sound.new(tmp_path_factory.mktemp("sound"))
    for path in (made.folder, made.file):
        build_unet(load(path))
    return made


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "hostile").mkdir()
    return tmp_path / "hostile"


def size_of(path: Path) -> int:
    return sum(file.lstat().st_size for file in [path, *path.rglob("*")])


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_lies_is_refused(name: str, sound: Sound, place: Path) -> None:
    make, says = MODELS[name]
    path = make(sound, place)
    with watched() as seen, pytest.raises(ValueError, match=says) as caught:
        load(path)
    refused(caught.value)
    harmless(seen, place, size_of(place))
    assert load(sound.folder).unet


@pytest.mark.parametrize("name", POISONED)
def test_weights_that_make_no_picture_are_refused(name: str, sound: Sound, place: Path) -> None:
    make, says = POISONED[name]
    checkpoint = load(make(sound, place))
    with pytest.raises(ValueError, match=says) as caught:
        build_unet(checkpoint)
    refused(caught.value, "model")
    assert build_unet(load(sound.folder))


@pytest.mark.parametrize("name", LORAS)
def test_a_lora_that_lies_is_refused(name: str, sound: Sound, place: Path) -> None:
    make, says = LORAS[name]
    path = make(sound, place)
    with watched() as seen, pytest.raises(ValueError, match=says) as caught:
        assert is_diffusers_lora(path)
        convert_lora(path, place / "out.safetensors")
    refused(caught.value)
    harmless(seen, place, size_of(place))
    assert not (place / "out.safetensors").exists()


@pytest.mark.parametrize("name", DELTAS)
def test_a_difference_that_lies_is_refused(name: str, sound: Sound, place: Path) -> None:
    make, says = DELTAS[name]
    path, before = make(sound, place), sound.file.read_bytes()
    with pytest.raises(ValueError, match=says) as caught:
        merge(sound.file, path, place / "out.safetensors")
    refused(caught.value, "delta.safetensors")
    assert [file.name for file in place.iterdir()] == ["delta.safetensors"] and sound.file.read_bytes() == before


@pytest.mark.parametrize(
    "texts",
    [
        {"tokenizer/../../../evil.txt": "x"},
        {"unet/..": "x"},
        {"tokenizer/..\\..\\evil.txt": "x"},
        {"/etc/evil.txt": "x"},
        {"tokenizer/evil.py": "x"},
        {"tokenizer/a.txt": 5},
        {"evil.txt": "x"},
    ],
)
def test_texts_that_a_file_keeps_stay_in_the_folder(texts: dict[str, object], sound: Sound, place: Path) -> None:
    """What `convert` kept of a folder is written where it came from, and nowhere else."""
    path = place / "model.safetensors"
    with_texts(sound, path, **{"instaflow.folder": json.dumps(texts)})
    with pytest.raises(ValueError, match=r"instaflow\.folder in model\.safetensors names the file"):
        convert(path, place / "out")
    assert [file.name for file in place.iterdir()] == ["model.safetensors"]
    assert sorted(file.name for file in place.parent.iterdir()) == ["hostile"]


@pytest.mark.parametrize("index", ["[]", "{", "5"])
def test_a_pipeline_that_a_file_keeps_is_an_object(index: str, sound: Sound, place: Path) -> None:
    path = place / "model.safetensors"
    with_texts(sound, path, **{"instaflow.folder": json.dumps({"model_index.json": index})})
    with pytest.raises(ValueError, match=r"model_index\.json"):
        convert(path, place / "out")
    assert [file.name for file in place.iterdir()] == ["model.safetensors"]


def test_texts_of_a_folder_are_not_fetched_from_elsewhere(sound: Sound, place: Path) -> None:
    """They are written into the new file, for whoever gets it to read."""
    folder = sound.copy(place)
    (place / "secret.txt").write_text("a secret")
    (folder / "tokenizer" / "added.txt").symlink_to(place / "secret.txt")
    with pytest.raises(ValueError, match=r"added\.txt is a link that leads out of its folder"):
        convert(folder, place / "out.safetensors")
    assert not (place / "out.safetensors").exists()


def with_texts(sound: Sound, path: Path, **metadata: str) -> None:
    from safetensors import safe_open

    with safe_open(sound.file, "pt") as file:
        save_file(load_file(sound.file), path, file.metadata() | metadata)


def test_a_config_does_not_name_code_to_fetch(sound: Sound, place: Path) -> None:
    """transformers would fetch an attention of this name from the hub and run it."""
    folder = sound.copy(place)
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps(config | {"_attn_implementation": "someone/kernel", "attn_implementation": "a/b"}))
    with watched() as seen:
        built = build_text_encoder(load(folder))
    assert built.config._attn_implementation != "someone/kernel"
    assert not [event for event in seen.events if event.startswith(("socket", "subprocess"))]
