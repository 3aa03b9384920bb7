"""What the Comfy Registry is given, by the tools that it gives to publishers, and by comfy-import-guard.

The tools have an environment of their own. None of them asks anybody anything: tracking is refused, HOME is a folder of
the test's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import registry
from devhost import PACK_NAME, ROOT, DevHost
from other_packages import tools
from packed import listed, pack, unpack
from PIL import Image

TOOLS = Path(__file__).parent / "registry-tools.txt"
ADDRESS = "https://github.com/someone/ComfyUI-InstaFlow"
TORCH_BACKENDS = ("NVIDIA CUDA", "AMD ROCm", "Intel Arc", "Apple Metal")
READ = """
import dataclasses, json, sys
from comfy_cli.registry.config_parser import extract_node_configuration
print(json.dumps(dataclasses.asdict(extract_node_configuration(sys.argv[1]))))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of the tools."""
    return tools(TOOLS)


def run(program: Path, *arguments: object, folder: Path, home: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HOME": str(home), "DO_NOT_TRACK": "1", "NO_COLOR": "1", "COLUMNS": "200"}
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of its own with this checkout's files: `comfy node pack` writes where it is called."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in listed("--cached"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    commit(folder)
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The registry's zip."""
    return pack(tmp_path_factory.mktemp("zip") / "node.zip")


@pytest.fixture(scope="module")
def node(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The zip as it is installed, in a custom_nodes folder."""
    return unpack(archive, tmp_path_factory.mktemp("ComfyUI") / "custom_nodes" / PACK_NAME)


def commit(folder: Path) -> None:
    """Make a repository of the folder, with one commit of all that it holds."""
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for command in (["init", "--quiet"], ["add", "--all", "--force"], [*who, "commit", "--quiet", "--message", "all"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


# --- pyproject.toml ---


def test_it_reads_every_field(python: Path, tmp_path: Path) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(registry.addressed((ROOT / "pyproject.toml").read_text("utf-8"), ADDRESS, "main"), "utf-8")
    ran = run(python, "-c", READ, pyproject, folder=tmp_path, home=tmp_path)
    assert ran.returncode == 0, ran.stderr
    read = json.loads(ran.stdout)  # a warning would stand before it
    project, own = read["project"], read["tool_comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9._-]*", project["name"]) and "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["description"] and project["license"]["file"] == "LICENSE"
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert project["dependencies"] == [line for line in lines if line and not line.startswith("#")]
    assert project["supported_os"] == ["Microsoft :: Windows", "MacOS", "POSIX :: Linux"]
    assert project["supported_accelerators"] == [f"GPU :: {backend}" for backend in TORCH_BACKENDS]
    assert project["supported_comfyui_version"].startswith(">=")
    assert project["urls"]["repository"] == ADDRESS
    raw = "https://raw.githubusercontent.com/someone/ComfyUI-InstaFlow/main/"
    pictures = [own[field].removeprefix(raw) for field in ("icon", "banner_url")]
    assert pictures == ["docs/icon.png", "docs/banner.png"] and all((ROOT / name).is_file() for name in pictures)
    assert own["publisher_id"] == "instaflow" and own["display_name"] == "InstaFlow"


@pytest.mark.parametrize(
    "address", ["", "github.com/a/b", "https://github.com/a", "http://github.com/a/b", "https://x/a/b"]
)
def test_what_is_no_address_is_not_written(address: str) -> None:
    with pytest.raises(ValueError, match=r"is not https://github\.com/OWNER/NAME"):
        registry.addressed((ROOT / "pyproject.toml").read_text("utf-8"), address, "main")


def test_the_pictures_are_what_the_registry_takes() -> None:
    icon, banner = (Image.open(ROOT / "docs" / name) for name in ("icon.png", "banner.png"))
    assert icon.format == banner.format == "PNG"
    assert icon.width == icon.height <= 400
    assert banner.width * 9 == banner.height * 21
    assert all((ROOT / "docs" / name).stat().st_size < 150_000 for name in ("icon.png", "banner.png"))


# --- the zip ---


def comfy(python: Path, command: str, checkout: Path, home: Path) -> str:
    """What `comfy node COMMAND` prints."""
    options = ("--skip-prompt", "--no-enable-telemetry", "node", command)
    ran = run(python.parent / "comfy", *options, folder=checkout, home=home)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def test_comfy_node_validate_finds_nothing(python: Path, checkout: Path, tmp_path: Path) -> None:
    said = comfy(python, "validate", checkout, tmp_path)
    assert "All validation checks passed successfully" in said
    assert "arning" not in said


def test_comfy_node_validate_finds_what_is_there(python: Path, checkout: Path, tmp_path: Path) -> None:
    bad = checkout / "nodes" / "bad.py"
    bad.write_text("eval(input())\n")
    said = comfy(python, "validate", checkout, tmp_path)
    bad.unlink()
    assert "Security warnings found" in said and "S307" in said


def test_comfy_node_pack_makes_the_zip_that_the_tests_look_at(
    python: Path, checkout: Path, archive: Path, tmp_path: Path
) -> None:
    """The same names, each with the same content: that zip is scanned and installed elsewhere in these tests."""
    comfy(python, "pack", checkout, tmp_path)
    contents = []
    for path in (checkout / "node.zip", archive):
        with zipfile.ZipFile(path) as packed:
            contents.append({entry.filename: entry.CRC for entry in packed.infolist()})
    assert contents[0] == contents[1]


# --- what comfy-test reads without a server; its other levels are in test_installed.py ---


def test_comfy_test_finds_every_node_in_a_template(python: Path, node: Path, tmp_path: Path) -> None:
    ran = run(python.parent / "comfy-test", "coverage", "--json", folder=node, home=tmp_path)
    assert json.loads(ran.stdout)["untested"] == []


def test_comfy_test_has_nothing_to_say_about_the_page(python: Path, node: Path, tmp_path: Path) -> None:
    """Also no warning, about scripts that share a page with those of other packs."""
    ran = run(python.parent / "comfy-test", "lint", "--strict", "--json", folder=node, home=tmp_path)
    found = json.loads(ran.stdout)
    assert ran.returncode == 0 and found["passed"], found
    assert found["results"]["javascript"]["findings"] == []


# --- what it uses of the host ---


@pytest.fixture(scope="module")
def known_host(dev_host: DevHost, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ComfyUI under test as comfy-import-guard looks for it: the one commit of a repository in its cache."""
    cache = tmp_path_factory.mktemp("cache")
    for name in ("comfy", "comfy_api", "comfy_execution", "comfy_extras"):
        ignored = shutil.ignore_patterns("__pycache__", ".git")
        shutil.copytree(dev_host.comfyui / name, cache / "ComfyUI" / name, ignore=ignored)
    for file in dev_host.comfyui.glob("*.py"):
        shutil.copyfile(file, cache / "ComfyUI" / file.name)
    commit(cache / "ComfyUI")
    return cache


def guarded(python: Path, cache: Path, install: Path) -> tuple[int, dict[str, object]]:
    """Its exit code, and what it says about the one pack under custom_nodes of a folder."""
    options = ("--offline", "--json", "--cache-dir", cache, "check", "--comfy-dir", install, "--strict")
    program = python.parent / "comfy-import-guard"
    ran = run(program, *options, "--target", "HEAD", "--no-update", folder=install, home=install)
    assert ran.returncode in (0, 1), ran.stderr
    (found,) = json.loads(ran.stdout)["packs"]
    return ran.returncode, found


def test_comfy_import_guard_finds_nothing(python: Path, known_host: Path, node: Path) -> None:
    code, found = guarded(python, known_host, node.parents[1])
    assert (code, found["verdict"]) == (0, "SAFE"), found
    assert isinstance(found["references"], int) and found["references"] > 20


def test_comfy_import_guard_finds_what_a_host_lacks(python: Path, known_host: Path, tmp_path: Path) -> None:
    node = tmp_path / "custom_nodes" / "pack"
    node.mkdir(parents=True)
    (node / "__init__.py").write_text("from comfy.sd import never_there\n")
    code, found = guarded(python, known_host, tmp_path)
    assert (code, found["verdict"]) == (1, "WILL BREAK")
