"""requirements.txt says the truth: the pack works with the oldest packages it asks for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from other_packages import KEPT, OLDEST_TRANSFORMERS, what_pip_takes, with_packages
from packaging.requirements import Requirement
from packaging.version import Version
from safetensors.torch import load_file
from small_runs import run_each

ROOT = Path(__file__).resolve().parents[2]
LISTED = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
IMPORTED_AS = {"Pillow": "PIL"}


def lower_bounds() -> dict[str, str]:
    """The packages of requirements.txt, each with the version that its one bound names."""
    bounds = {}
    for requirement in (Requirement(line) for line in LISTED if line and not line.startswith("#")):
        (bound,) = requirement.specifier
        assert bound.operator == ">=", f"{requirement}: only lower bounds, newer packages come with hosts of their own"
        bounds[requirement.name] = bound.version
    return bounds


def test_what_the_registry_reads_is_the_same_list() -> None:
    """The registry and installers read pyproject.toml, users and ComfyUI-Manager requirements.txt."""
    static = re.search(r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text("utf-8"), re.M | re.S)
    assert static
    assert re.findall(r'"(.+)"', static[1]) == [line for line in LISTED if line and not line.startswith("#")]


@pytest.mark.slow
def test_every_command_runs_on_exactly_the_lower_bounds(tmp_path: Path) -> None:
    """Beside the transformers that is installed here, and beside the oldest that ComfyUI accepts."""
    bounds = lower_bounds()
    packages = what_pip_takes(tmp_path, [f"{name}=={version}" for name, version in bounds.items()], KEPT)
    for transformers in ((), OLDEST_TRANSFORMERS):
        environment = with_packages(tmp_path / "oldest", [*packages, *transformers])
        imported = run_every_command(environment, tmp_path / f"beside-{len(transformers)}", bounds)
        assert {name: Version(imported[name]) for name in bounds} == {n: Version(v) for n, v in bounds.items()}
        packages = []  # they are there


def run_every_command(environment: dict[str, str], folder: Path, packages: Iterable[str]) -> dict[str, str]:
    """Run generate, triplets, reflow and convert in the folder, and return the versions of these packages that were
    imported."""
    folder.mkdir()
    (folder / "prompts.csv").write_text("text\na red circle on a blue background\na star on a white background\n")
    teacher, on_cpu = "built-in: shapes-teacher", ["--device", "cpu", "--out"]
    making = ["--prompts", "prompts.csv", "--count", "4", "--steps", "2", "--guidance", "2"]
    # A LoRA and a sheet after the first step, so that every package has something to do.
    training = ["--iterations", "2", "--batch-size", "2", "--method", "lora", "--rank", "2", "--sample-every", "1"]
    commands = [
        ["generate", "--prompt", "a red circle on a blue background", *on_cpu, "picture.png"],
        ["triplets", "--teacher", teacher, *making, *on_cpu, "set"],
        ["reflow", "--init", teacher, "--triplets", "set", *training, *on_cpu, "flow.safetensors"],
        ["convert", "flow.safetensors", "folder"],
        ["convert", "folder", "again.safetensors"],
    ]
    names = {name: IMPORTED_AS.get(name, name) for name in packages}
    # A package of one kind of prompts alone, datasets of the Hub, has had nothing to do.
    versions = f"{{name: importlib.import_module(module).__version__ for name, module in {names}.items()}}"
    ask = f"import importlib; print(json.dumps({versions}))"
    said = run_each(commands, folder, environment, after=ask)
    before, after = load_file(folder / "flow.safetensors"), load_file(folder / "again.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(after[name], tensor) for name, tensor in before.items())
    return json.loads(said.splitlines()[-1])
