"""A real Chromium for the browser tests: the one on this machine, else installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Works as root and in a container without a GPU; no traffic of its own.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def executable() -> str | None:
    """Path of a Chromium; None means the one Playwright has installed for itself.

    Raises:
        subprocess.CalledProcessError: there was none and none could be installed.
    """
    if found := _on_path():
        return found
    if shutil.which("apt-get") and os.geteuid() == 0:
        print("no Chromium on PATH: installing the chromium package", flush=True)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]):
            subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        if found := _on_path():
            return found
    subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=True)
    return None


def _on_path() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)
