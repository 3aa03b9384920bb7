"""Whatever lies in the model folders and among the sets, /object_info of a real server lists every node, and a chosen
model that works still does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import object_info
import pytest
from devhost import PACK_NAME, ROOT, DevHost
from node_graphs import graph_of, text_inputs
from watched_server import Watch, WatchedServer, watched_process

WEIGHTS = "diffusion_pytorch_model.safetensors"
CLOSED = (
    "models/checkpoints/closed",
    "models/diffusers/closed",
    "models/diffusers/half-closed/unet",
    "models/diffusion_models/closed",
    "output/instaflow/triplets/closed",
)
VANISHING = "models/diffusers/vanishing/config.json"
NODES = {path.stem for path in (ROOT / "web" / "docs").glob("*.md")}
GOOD = {
    ("InstaFlowLoadCheckpoint", "checkpoint"): "pipeline-1",
    ("InstaFlowLoadUNet", "unet_name"): "pipeline-1/unet",
    ("InstaFlowLoadTriplets", "name"): "good",
}
NOWHERE = "/nowhere/at/all"


@pytest.fixture(scope="module")
def server(dev_host: DevHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedServer]:
    """A server with models of every kind, though empty ones, and a set."""
    base = tmp_path_factory.mktemp("faults")
    object_info.fill(base / "models", 500)
    add(base / "output/instaflow/triplets/good/set.json")
    watch = Watch(base / "user" / "record", closed=tuple(base / path for path in CLOSED), gone=(base / VANISHING,))
    with watched_process(dev_host, base, watch) as process:
        yield WatchedServer(process, watch)


def add(path: Path, content: bytes = b"{}") -> Path:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def unet(base: Path, name: str, config: bytes = b"{}") -> Path:
    """A folder of models/diffusers that may be a UNet's own, if its config says so: the path of that config."""
    add(base / "models" / "diffusers" / name / WEIGHTS)
    return add(base / "models" / "diffusers" / name / "config.json", config)


def fifty_thousand_files(server: WatchedServer) -> None:
    """In as many folders again; a clock has them in benchmarks/object_info.py."""
    object_info.fill(server.base / "models" / "more", 50_000)
    for kind in ("checkpoints", "diffusers", "diffusion_models"):
        (server.base / "models" / "more" / kind).rename(server.base / "models" / kind / "more")


def a_drive_that_is_unplugged(server: WatchedServer) -> None:
    """The host has listed what was on it, and no folder that it can reach has changed since."""
    drive = server.base / "drive"
    for folder in ("models/checkpoints", "models/diffusion_models", "models/diffusers"):
        add(drive / folder / "unet" / "deep.safetensors")
        (server.base / folder / "drive").symlink_to(drive / folder)
    before = text_inputs(server.object_info(), PACK_NAME)
    assert str(Path("drive/unet/deep.safetensors")) in (before["InstaFlowLoadCheckpoint", "checkpoint"] or [])
    shutil.rmtree(drive)


def links_to_nowhere(server: WatchedServer) -> None:
    for folder in ("models/checkpoints", "models/diffusion_models", "models/diffusers", "output/instaflow/triplets"):
        for name in ("gone", "gone.safetensors"):
            (server.base / folder / name).symlink_to(NOWHERE)
    unet(server.base, "gone-config").unlink()
    (server.base / "models/diffusers/gone-config/config.json").symlink_to(NOWHERE)
    (server.base / "models/diffusers/gone-parts").mkdir()
    (server.base / "models/diffusers/gone-parts/unet").symlink_to(NOWHERE)
    (server.base / "models/diffusers/gone-parts/model_index.json").symlink_to(NOWHERE)


def folders_that_cannot_be_read(server: WatchedServer) -> None:
    for path in CLOSED:
        (server.base / path).mkdir(parents=True)
    add(server.base / "models/diffusers/half-closed/model_index.json")


def links_in_a_circle(server: WatchedServer) -> None:
    """One a folder: the host's own loaders walk three in 3^40 ways. Ours are asked in tests/nodes/test_loading.py."""
    circle = server.base / "models/diffusers/circle"
    circle.mkdir()
    (circle / "round").symlink_to(circle)
    (circle / "itself").symlink_to(circle / "itself")
    (server.base / "models/checkpoints/circle").symlink_to(server.base / "models/checkpoints/itself")
    (server.base / "models/checkpoints/itself").symlink_to(server.base / "models/checkpoints/circle")
    (server.base / "models/diffusion_models/circle").mkdir()
    (server.base / "models/diffusion_models/circle/round").symlink_to(server.base / "models/diffusion_models/circle")
    (server.base / "output/instaflow/triplets/circle").symlink_to(server.base / "output")


def files_for_folders_and_folders_for_files(server: WatchedServer) -> None:
    (server.base / "models/checkpoints/folder.safetensors").mkdir()
    unet(server.base, "folder-config").unlink()
    (server.base / "models/diffusers/folder-config/config.json").mkdir()
    add(server.base / "models/diffusers/file-unet/unet")
    add(server.base / "models/diffusers/file-unet/model_index.json")
    (server.base / "output/instaflow/triplets/folder/set.json").mkdir(parents=True)


def no_folder_of_models_and_no_folder_of_sets(server: WatchedServer) -> None:
    for folder in ("models/diffusers", "models/diffusion_models", "output/instaflow/triplets"):
        shutil.move(server.base / folder, server.base / f"{folder}-aside")
        (server.base / folder).write_bytes(b"")


def broken_configs(server: WatchedServer) -> None:
    for name, config in {
        "no-json": b"{",
        "no-text": b"\xff\xfe\x00",
        "a-list": b"[1]",
        "a-number": b"1" * 10_000,
        "nested": b"[" * 200_000,
        "nested-objects": b'{"a":' * 200_000,
        "empty": b"",
        "wrong-type": b'{"_class_name": {"_class_name": 3}}',
    }.items():
        unet(server.base, name, config)
        add(server.base / f"models/diffusers/{name}-index/model_index.json", config)
        add(server.base / f"models/diffusers/{name}-part/unet/config.json", config)


def a_config_of_gigabytes(server: WatchedServer) -> None:
    os.truncate(unet(server.base, "gigabytes"), 20 << 30)


def pipes_and_devices(server: WatchedServer) -> None:
    """What never ends, or never answers."""
    for name in ("pipe", "zeros"):
        unet(server.base, name).unlink()
    os.mkfifo(server.base / "models/diffusers/pipe/config.json")
    (server.base / "models/diffusers/zeros/config.json").symlink_to("/dev/zero")
    os.mkfifo(server.base / "models/checkpoints/pipe.safetensors")
    (server.base / "output/instaflow/triplets/pipe").mkdir()
    os.mkfifo(server.base / "output/instaflow/triplets/pipe/set.json")


def a_file_that_vanishes_between_listing_and_opening(server: WatchedServer) -> None:
    unet(server.base, "vanishing")


def names_that_are_no_text(server: WatchedServer) -> None:
    for folder in ("models/checkpoints", "models/diffusion_models", "output/instaflow/triplets/\N{SNOWMAN}"):
        path = os.fsencode(server.base / folder)
        os.makedirs(path, exist_ok=True)
        for name in (b"\xff\xfe.safetensors", b"line\nbreak.safetensors", b"<b>&'\".safetensors"):
            with open(os.path.join(path, name), "wb"):
                pass
    for name in (b"\xff", b"line\nbreak", b"<b>"):
        for inside in (b"models/diffusers/%s/unet", b"output/instaflow/triplets/%s"):
            os.makedirs(os.path.join(os.fsencode(server.base), inside % name))
        add(Path(os.fsdecode(os.path.join(os.fsencode(server.base), b"output/instaflow/triplets", name, b"set.json"))))


@pytest.fixture
def tidy(server: WatchedServer) -> Iterator[None]:
    """After the test the folders are as they were."""
    roots = [server.base / name for name in ("models", "output")]
    before = {path for root in roots for path in root.rglob("*")}
    yield
    for root in roots:
        for aside in list(root.rglob("*-aside")):
            path = aside.with_name(aside.name.removesuffix("-aside"))
            path.unlink()
            aside.rename(path)
        for path in sorted(set(root.rglob("*")) - before, reverse=True):
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()


@pytest.mark.parametrize(
    "happens",
    [
        fifty_thousand_files,
        a_drive_that_is_unplugged,
        links_to_nowhere,
        folders_that_cannot_be_read,
        links_in_a_circle,
        files_for_folders_and_folders_for_files,
        no_folder_of_models_and_no_folder_of_sets,
        broken_configs,
        a_config_of_gigabytes,
        pipes_and_devices,
        a_file_that_vanishes_between_listing_and_opening,
        names_that_are_no_text,
    ],
)
def test_every_node_is_listed(server: WatchedServer, tidy: None, happens: Callable[[WatchedServer], None]) -> None:
    happens(server)
    nodes = {name: node for name, node in server.object_info().items() if PACK_NAME in node["python_module"]}
    assert set(nodes) == NODES
    assert server.run_prompt(graph_of("InstaFlowLoadCheckpoint", nodes, checkpoint="built-in: shapes")).outputs
    if happens is not no_folder_of_models_and_no_folder_of_sets:
        choices = text_inputs(nodes, PACK_NAME)
        for (node, name), choice in GOOD.items():
            assert choice in choices[node, name]
