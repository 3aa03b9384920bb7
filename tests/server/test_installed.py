"""The pack as a user gets it: the registry's zip in custom_nodes of a host that never had a pack, and pip.

comfy-test looks at what stands there, as its own CI does: from the environment of the server that it asks.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from clean_host import clean_host, packages
from comfy_client import ComfyClient
from comfy_server import ComfyServer
from devhost import PACK_NAME, ROOT, DevHost
from other_packages import KEPT, install, tools
from packed import pack, unpack
from PIL import Image
from workflow import to_prompt

from instaflow_core.shapes.captions import parse
from instaflow_core.shapes.judge import judge

TOOLS = Path(__file__).parent / "registry-tools.txt"
LEVELS = ("syntax", "coverage", "warnings", "hazards", "registration", "javascript", "instantiation")
"""Those of comfy-test.toml that need no browser; what runs in one has tests of its own in tests/browser."""


@dataclass(frozen=True)
class Installed:
    """A server with the pack, and the packages that its environment had before and has now."""

    server: ComfyServer
    pack: Path
    before: dict[str, str]
    after: dict[str, str]


@pytest.fixture(scope="module")
def installed(dev_host: DevHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    folder = tmp_path_factory.mktemp("installed")
    base = folder / "ComfyUI"
    node = unpack(pack(folder / "node.zip"), base / "custom_nodes" / PACK_NAME)
    host = clean_host(dev_host, folder / "environment")
    before = packages(host.python)
    install(host.python, node / "requirements.txt")
    with ComfyServer(host, base, cpu=True) as server:
        yield Installed(server, node, before, packages(host.python))


def test_the_hosts_packages_stay_as_they_were(installed: Installed) -> None:
    lines = (ROOT / "requirements.txt").read_text().lower().splitlines()
    asked = {line.partition(">")[0] for line in lines if line[0] != "#"}
    assert {"diffusers", "accelerate", "datasets", "peft"} <= asked - installed.before.keys(), "it was not clean"
    assert asked <= installed.after.keys()
    assert {name: installed.after[name] for name in KEPT} == {name: installed.before[name] for name in KEPT}
    agreed = subprocess.run([installed.server.host.python, "-m", "pip", "check"], capture_output=True, text=True)
    assert agreed.returncode == 0, agreed.stdout


def test_every_node_is_there_and_the_first_workflow_draws(installed: Installed) -> None:
    client = ComfyClient(installed.server.url)
    there = {name for name in client.object_info() if name.startswith("InstaFlow")}
    listed = set(re.findall(r'node_id="(\w+)"', "".join(p.read_text("utf-8") for p in (ROOT / "nodes").glob("*.py"))))
    assert there == listed and listed
    workflow = json.loads((installed.pack / "workflows" / "01_one_step_text_to_image.json").read_text(encoding="utf-8"))
    (image,) = client.run_prompt(to_prompt(workflow, client.object_info())).images
    assert judge(Image.open(io.BytesIO(image)).convert("RGB"), parse("a yellow star on a purple background"))
    assert "IMPORT FAILED" not in installed.server.log.read_text(encoding="utf-8", errors="replace")


def test_comfy_test_passes_its_levels(installed: Installed, tmp_path: Path) -> None:
    """Up to the last that needs no browser, by the configuration in the repository."""
    host, base = installed.server.host, installed.server.base
    for entry in host.comfyui.iterdir():  # it looks for ComfyUI's files around custom_nodes
        if not (base / entry.name).exists():
            (base / entry.name).symlink_to(entry)
    shutil.copy(ROOT / "comfy-test.toml", installed.pack)
    (site,) = tools(TOOLS).parents[1].glob("lib/python*/site-packages")
    (tmp_path / "server.log").symlink_to(installed.server.log)  # where it looks for failed imports
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(site), "COMFY_TEST_LOGS_DIR": str(tmp_path)}
    command = (host.python, "-m", "comfy_test", "run", "--server-url", installed.server.url, "--level", LEVELS[-1])
    ran = subprocess.run(command, cwd=installed.pack, env=os.environ | environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert [level for level in LEVELS if f"[{level.upper()}] PASSED" not in ran.stdout] == []
    assert not re.search(r"^=== [ABC] ", ran.stdout, re.MULTILINE), ran.stdout  # hazards that need no judgement
