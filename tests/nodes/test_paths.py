"""Names that are taken, links that are the user's own, and that the pack has no routes. What is refused is in
tests/security/test_paths.py."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_models import small_checkpoint

from instaflow_core.triplets.format import SetInfo, format_info
from instaflow_core.weights.saving import save


@pytest.fixture
def elsewhere(models: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder on another disk, so to speak; links to it in the host's folders are gone after the test."""
    import folder_paths

    yield tmp_path
    for root in (models, Path(folder_paths.get_output_directory())):
        for path in root.rglob("*"):
            if path.is_symlink():
                path.unlink()


def choices(host: Any, node: str) -> list[str]:
    return host.node(node).define_schema().inputs[0].options


# --- names ---


@pytest.mark.parametrize(
    "name",
    ["my-triplets", "shapes v1.5", "deep/er/set", "Ärger (図) +1", "a.b", "console", "com10", "nullify/auxiliary"],
)
def test_plain_names_are_taken(pack: Any, name: str) -> None:
    training = pack.nodes.host.training
    assert training.set_folder(name).parts[-len(Path(name).parts) :] == Path(name).parts
    assert training.result_path(name).name == Path(name).name + ".safetensors"


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("InstaFlow", "InstaFlow_00001_.safetensors"),
        ("checkpoints/[v2] 'best' & last, 図", "checkpoints/[v2] 'best' & last, 図_00001_.safetensors"),
        ("of %width%/a%%b", "of 0/a%%b_00001_.safetensors"),
        ("ending/", "ending_00001_.safetensors"),
        ("..x/.hidden", "..x/.hidden_00001_.safetensors"),
    ],
)
def test_prefixes_are_numbered_as_the_host_numbers_them(host: Any, pack: Any, prefix: str, expected: str) -> None:
    import folder_paths

    output = Path(folder_paths.get_output_directory()).resolve()
    path = next(pack.nodes.host.paths.numbered_output_paths(prefix, ".safetensors"))
    assert path == output / expected
    path.touch()
    assert next(pack.nodes.host.paths.numbered_output_paths(prefix, ".safetensors")).name.endswith(
        "_00002_.safetensors"
    )
    path.unlink()


def test_a_link_that_a_date_stands_for_is_not_followed(host: Any, pack: Any, elsewhere: Path) -> None:
    """The host makes the folders as it puts the numbers in."""
    import folder_paths

    (Path(folder_paths.get_output_directory()) / "0").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="0/new is a link that leads out of ComfyUI's output folder"):
        pack.nodes.host.paths.numbered_output_paths("%width%/new/x", ".safetensors")
    assert not list(elsewhere.iterdir())


# --- links ---


def test_links_in_the_model_folders_are_the_users_own(host: Any, models: Path, elsewhere: Path) -> None:
    """A file, a folder, a diffusers folder on another disk, and a folder of extra_model_paths.yaml that is a link."""
    import folder_paths

    save(small_checkpoint(), elsewhere / "disk" / "far.safetensors")
    shutil.copytree(models / "diffusers" / "folder", elsewhere / "pipelines" / "far")
    (models / "checkpoints" / "one-link.safetensors").symlink_to(elsewhere / "disk" / "far.safetensors")
    (models / "checkpoints" / "disk").symlink_to(elsewhere / "disk")
    (models / "diffusers" / "pipelines").symlink_to(elsewhere / "pipelines")
    (elsewhere / "extra").symlink_to(elsewhere / "disk")
    folder_paths.add_model_folder_path("checkpoints", str(elsewhere / "extra"))
    try:
        names = ("one-link.safetensors", str(Path("disk", "far.safetensors")), "pipelines/far", "far.safetensors")
        assert set(names) <= set(choices(host, "InstaFlowLoadCheckpoint"))
        for name in names:
            assert len(host.run("InstaFlowLoadCheckpoint", checkpoint=name, weight_dtype="default")) == 3
        assert host.run("InstaFlowLoadUNet", unet_name="pipelines/far/unet", weight_dtype="default")
    finally:
        folder_paths.folder_names_and_paths["checkpoints"][0].remove(str(elsewhere / "extra"))


@pytest.mark.parametrize("what", ["set.json", "shard-000000.parquet", "state.pt"])
def test_a_folder_that_holds_links_out_is_not_read(host: Any, pack: Any, elsewhere: Path, what: str) -> None:
    """Of a set that came in an archive, say."""
    import folder_paths

    training = pack.nodes.host.training
    place = "training" if what == "state.pt" else "triplets"
    folder = Path(folder_paths.get_output_directory()) / "instaflow" / place / "linking"
    folder.mkdir(parents=True)
    for name in ("set.json", "shard-000000.parquet"):
        (folder / name).write_bytes(format_info(SetInfo(1, 0, (4, 8, 8))))
    (folder / what).unlink(missing_ok=True)
    (folder / what).symlink_to(elsewhere / "secret")
    (elsewhere / "secret").write_bytes(format_info(SetInfo(1, 0, (4, 8, 8))))
    opened = training.run_folder if place == "training" else training.whole_set
    with pytest.raises(ValueError, match=rf"linking/{what} is a link that leads out of ComfyUI's output folder"):
        opened("linking")
    shutil.rmtree(folder)


# --- routes ---


def test_b_and_e_no_route_is_the_packs(host: Any, pack: Any) -> None:
    """None that reads a path of the request, and none by which anybody makes, changes or deletes a file."""
    from server import PromptServer

    server = PromptServer.instance
    handlers = [route.handler for route in server.routes]
    assert len(handlers) > 20, "the host's own"
    of_the_pack = [handler for handler in handlers if handler.__module__.startswith(pack.__name__)]
    assert not of_the_pack, "a route needs tests of its own: of its path, of other sites, of other clients"
    assert not [handler for handler in server.on_prompt_handlers if handler.__module__.startswith(pack.__name__)]
