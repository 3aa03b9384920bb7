"""make demo, as a user runs it: its own server, one picture, nothing left running."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

from devhost import HOST_FOLDER, ROOT
from PIL import Image

from instaflow_core.shapes.captions import parse
from instaflow_core.shapes.judge import judge


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run what the Makefile's demo target runs, in this interpreter."""
    command = [sys.executable, ROOT / "scripts" / "demo.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def assert_server_is_gone() -> None:
    """Nothing listens where the demo's server did."""
    log = (HOST_FOLDER / "base" / "server.log").read_text()
    found = re.search(r"http://127\.0\.0\.1:(\d+)", log)
    assert found, log
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(found[1]))) != 0


def test_the_demo_draws_its_caption(tmp_path: Path) -> None:
    caption, out = "a yellow star on a purple background", tmp_path / "new" / "a.png"
    ran = run_demo(f"--prompt={caption}", "--seed=3", f"--out={out}")
    assert ran.returncode == 0, ran.stderr
    assert re.search(rf"{re.escape(str(out))} .*\d+\.\d\d s", ran.stdout)
    with Image.open(out) as picture:
        assert judge(picture.convert("RGB"), parse(caption))
    assert [path.name for path in out.parent.iterdir()] == ["a.png"]
    assert_server_is_gone()


def test_a_seed_the_node_refuses_ends_in_one_line(tmp_path: Path) -> None:
    ran = run_demo("--seed=-1", f"--out={tmp_path / 'a.png'}")
    assert ran.returncode == 1
    assert re.match(r"error: the server refused the prompt: .*InstaFlowSampler", ran.stderr)
    assert len(ran.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    assert_server_is_gone()
