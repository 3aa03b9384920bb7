"""Processes that end in the middle of their work: killed, or stopped by Ctrl-C or SIGTERM."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from small_runs import ROOT, content

pytestmark = pytest.mark.slow


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither fork nor these signals")
def test_what_a_signal_ended_anywhere_ends_as_if_undisturbed(begun: Path, tmp_path: Path) -> None:
    """Sets, trainings and every other command that writes, at events chosen by a fixed seed: fifty are killed, ten each
    are ended by Ctrl-C and by SIGTERM. Two that make the same at once make that, too."""
    folder = shutil.copytree(begun, tmp_path / "runs")
    support = os.pathsep.join([str(ROOT / "tests" / "support"), str(ROOT)])
    ran = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "support" / "forked_runs.py"), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": support},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    happened = json.loads(ran.stdout)
    ended = Counter(one["ended"] for one in happened)
    assert ended[-signal.SIGKILL] + ended[-signal.SIGXFSZ] == 50
    assert ended[130] == 20 == len(happened) - 50
    assert len({one["kind"] for one in happened}) >= 8
    whole, places = content(folder / "whole"), {one["place"] for one in happened}
    assert len(whole) > 50
    both = content(folder / "together")
    assert both == {name: whole[name] for name in both}
    assert {name.split("/")[0] for name in both} == {"set", "a-1.png", "a-2.png"}
    for place in places:
        assert content(folder / str(place)) == whole, [one for one in happened if one["place"] == place]
