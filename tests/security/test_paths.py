"""No string of a prompt reaches a file outside the host's folders: every input that can name one, over a real server.

The tests go by the classes for which packs are held back from the registry: (a) a free STRING that reaches the disk,
(b) routes that read a path of the request, (c) folders told apart by how their names begin, (d) absolute paths, (e)
routes by which anybody may change files, (f) nodes that run code. (b), (e) and (f) are in test_routes_and_code.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from comfy_client import PromptFailed, PromptRefused
from devhost import PACK_NAME
from node_graphs import graph_of, text_inputs
from outside_files import Outside
from watched_server import WatchedServer


@dataclass(frozen=True)
class Input:
    """An input that names a file: of which node, in which folder of the base, with which ending."""

    node: str
    name: str
    folder: str
    ending: str = ""
    typed: bool = True  # by hand, and not chosen from a list

    def __str__(self) -> str:
        return f"{self.node}-{self.name}"

    def up_to(self, outside: Outside, folder: str) -> str:
        """The way from its folder to the canary in a folder of `around`."""
        return os.path.relpath(outside.around / folder / "canary", outside.base / self.folder) + self.ending


TYPED = [
    Input("InstaFlowTriplets", "prompts", "input", ".txt"),
    Input("InstaFlowEvaluate", "prompts", "input", ".txt"),
    Input("InstaFlowTriplets", "name", "output/instaflow/triplets"),
    Input("InstaFlowReflow", "name", "output/checkpoints"),
    Input("InstaFlowDistill", "name", "output/checkpoints"),
    Input("InstaFlowSaveCheckpoint", "filename_prefix", "output"),
]
CHOSEN = [
    Input("InstaFlowLoadTriplets", "name", "output/instaflow/triplets", typed=False),
    Input("InstaFlowLoadCheckpoint", "checkpoint", "models/checkpoints", ".safetensors", typed=False),
    Input("InstaFlowAccelerate", "decoder", "models/vae_approx", ".safetensors", typed=False),
    Input("InstaFlowLoadUNet", "unet_name", "models/diffusion_models", ".safetensors", typed=False),
]
INPUTS = [*TYPED, *CHOSEN]
PLAIN_CHOICES = {
    "weight_dtype",
    "prediction",
    "rule",
    "mode",
    "draw",
    "teacher_sampler",
    "method",
    "schedule",
    "precision",
    "times",
    "loss",
    "networks",
}

Way = Callable[[Input, Outside], str]

WAYS: dict[str, Way] = {
    "dots": lambda i, o: i.up_to(o, "outside"),
    "dots after a folder": lambda i, o: f"sub/../{i.up_to(o, 'outside')}",
    "dots of Windows": lambda i, o: i.up_to(o, "outside").replace("/", "\\"),
    "dots, then an annotation": lambda i, o: i.up_to(o, "outside") + " [output]",
    "dots, then its own annotation": lambda i, o: i.up_to(o, "outside") + f" [{i.folder.partition('/')[0]}]",
    "another folder's annotation": lambda i, o: f"../canary{i.ending} [temp]",
    "a linked file": lambda i, o: f"away-file{i.ending}" if i.folder != "output" else "away/new",
    "a linked folder": lambda i, o: f"away/canary{i.ending}",
    "under a linked folder": lambda i, o: f"away/new/deep{i.ending}",
    "a NUL byte": lambda i, o: f"canary\0{i.ending}",
    "half a character": lambda i, o: f"canary\ud800{i.ending}",
    "a device of Windows": lambda i, o: f"con{i.ending}",
    "another device": lambda i, o: f"sub/AUX.tar{i.ending}",
    "a port": lambda i, o: f"com1{i.ending}",
}
NO_FILES = {  # as prompts these are prompts: nothing is opened by them
    "a dot at the end": lambda i, o: f"canary{i.ending}.",
    "a space at the end": lambda i, o: f"sub /canary{i.ending} ",
    "a name too long": lambda i, o: "a" * 300 + i.ending,
    "folders too deep": lambda i, o: "a/" * 2500 + f"a{i.ending}",
    "nothing": lambda i, o: "",
    "a stream of Windows": lambda i, o: f"canary:stream{i.ending}",
}
ABSOLUTE: dict[str, Way] = {
    "absolute": lambda i, o: str(o.folders[0] / "canary") + i.ending,
    "absolute, one more slash": lambda i, o: f"/{o.folders[0]}/canary{i.ending}",
    "absolute in its own folder": lambda i, o: str(o.base / i.folder / "away" / "canary") + i.ending,
    "a drive": lambda i, o: f"C:\\outside\\canary{i.ending}",
    "a drive, slashes": lambda i, o: f"C:/outside/canary{i.ending}",
    "a drive's own folder": lambda i, o: f"C:canary{i.ending}",
    "a share": lambda i, o: f"\\\\host\\share\\canary{i.ending}",
    "a share, slashes": lambda i, o: f"//host/share/canary{i.ending}",
    "a raw device": lambda i, o: f"\\\\.\\C:\\canary{i.ending}",
    "home": lambda i, o: f"~/../../{i.up_to(o, 'outside')}",
}
NEXT_DOOR: dict[str, Way] = {
    "dots": lambda i, o: i.up_to(o, f"base/{i.folder.partition('/')[0]}-other"),
    "a link": lambda i, o: f"next-door/canary{i.ending}",
}


@cache
def schemas(server: WatchedServer) -> dict[str, Any]:
    return server.object_info()


@pytest.fixture
def untouched(watched: WatchedServer, outside: Outside) -> Iterator[None]:
    """During the test nobody reads a file outside, or writes, makes or removes one anywhere."""
    run_before(watched)
    listing, touched = outside.listing(), watched.watch.events()
    yield
    assert watched.watch.events() == touched
    assert not outside.looked_at()
    assert outside.listing() == listing


@cache
def run_before(server: WatchedServer) -> None:
    """What the nodes need before them is there: the small set."""
    server.run_prompt(graph_of("InstaFlowTriplets", schemas(server), name="small", prompts="a red circle", seed=0))


def refusal(server: WatchedServer, taken: Input, text: str) -> str:
    """What the server says of a prompt with this text, all of it."""
    graph = graph_of(taken.node, schemas(server), **{taken.name: text})
    with pytest.raises((PromptRefused, PromptFailed)) as error:
        server.run_prompt(graph)
    if isinstance(error.value, PromptRefused):
        (found,) = error.value.node_errors["node"]["errors"]
        assert found["extra_info"]["input_name"] == taken.name
        return json.dumps(error.value.node_errors)
    assert (error.value.node_type, error.value.exception_type) == (taken.node, "ValueError")
    said = error.value.exception_message
    start = repr(text)[:30].rstrip("'")
    assert start in said or "is a link that leads out" in said or f"The {taken.name} is" in said, said
    return f"{said}\n{error.value.traceback}"


def rows(inputs: list[Input], *tables: dict[str, Way]) -> Any:
    """Each input with each way; links in the model folders are their owner's own, see tests/nodes/test_paths.py."""
    pairs = [
        (taken, name, way)
        for taken in inputs
        for table in tables
        for name, way in table.items()
        if not ("link" in name and taken.folder.startswith("models"))
    ]
    return pytest.mark.parametrize(
        ("taken", "way"), [pytest.param(taken, way, id=f"{taken}-{name}") for taken, name, way in pairs]
    )


@rows(INPUTS, WAYS)
def test_a_no_string_reaches_a_file_outside(
    watched: WatchedServer, outside: Outside, untouched: None, taken: Input, way: Way
) -> None:
    assert outside.secret not in refusal(watched, taken, way(taken, outside))


@rows([taken for taken in INPUTS if taken.name != "prompts"], NO_FILES)
def test_a_no_string_becomes_a_name_that_cannot_be(
    watched: WatchedServer, outside: Outside, untouched: None, taken: Input, way: Way
) -> None:
    refusal(watched, taken, way(taken, outside))


@rows(INPUTS, NEXT_DOOR)
def test_c_a_folder_whose_name_begins_alike_is_another(
    watched: WatchedServer, outside: Outside, untouched: None, taken: Input, way: Way
) -> None:
    assert outside.secret not in refusal(watched, taken, way(taken, outside))


@rows(INPUTS, ABSOLUTE)
def test_d_absolute_paths_are_refused(
    watched: WatchedServer, outside: Outside, untouched: None, taken: Input, way: Way
) -> None:
    assert outside.secret not in refusal(watched, taken, way(taken, outside))


def test_every_input_that_takes_a_text_is_in_these_tables_or_a_list_of_words(
    watched: WatchedServer, outside: Outside, untouched: None
) -> None:
    """What is chosen from words is refused where it is none of them."""
    found = text_inputs(schemas(watched), PACK_NAME)
    named = {(taken.node, taken.name) for taken in INPUTS}
    assert named <= set(found)
    for node, name in set(found) - named:
        assert name in PLAIN_CHOICES, f"does {node}'s {name} name a file? It needs a row here"
        taken = Input(node, name, "output")
        for way in (WAYS["dots"], ABSOLUTE["absolute"]):
            assert outside.secret not in refusal(watched, taken, way(taken, outside))


def test_nothing_of_the_files_outside_is_said_anywhere(watched: WatchedServer, outside: Outside) -> None:
    """After all of the above: not in the history, the log, or what a picture of the same server says of itself."""
    graph = graph_of("InstaFlowSampler", schemas(watched), seed=os.getpid())
    graph["shown"] = {"class_type": "VAEDecode", "inputs": {"samples": ["node", 0], "vae": ["loader", 2]}}
    graph["saved"] = {"class_type": "SaveImage", "inputs": {"images": ["shown", 0], "filename_prefix": "picture"}}
    (png,) = watched.run_prompt(graph).images
    assert b"InstaFlowSampler" in png, "its metadata has the prompt"
    log = watched.process.log.read_text(encoding="utf-8", errors="replace")
    assert "Prompt executed" in log
    for text in (png.decode("latin-1"), log, json.dumps(watched.get_json("/history"))):
        assert outside.secret not in text


def test_the_watch_sees_what_is_read(watched: WatchedServer, outside: Outside) -> None:
    """A link that the user has laid into a model folder is followed when it is chosen, and that is on record."""
    seen = len(watched.watch.events())
    graph = graph_of("InstaFlowLoadCheckpoint", schemas(watched), checkpoint="away-file.safetensors")
    with pytest.raises(PromptFailed, match=r"away-file.safetensors is not a file of weights"):
        watched.run_prompt(graph)
    canary = outside.folders[0] / "canary.safetensors"
    assert ("open", os.path.realpath(canary)) in watched.watch.events()[seen:]
    assert outside.looked_at() == [canary]
    os.utime(canary, (0, 0))
