"""A real ComfyUI server as a child process: started on a free port, always stopped."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from devhost import DevHost, make_base

START_LIMIT = 600.0  # seconds; a first start compiles every module, and the machine may be busy
STOP_LIMIT = 15.0


class ServerError(Exception):
    """The server did not come up or has died; the message ends with what it printed last."""


class ComfyServer:
    """The server of `host` on a private base directory; use it as a context manager.

    Args:
        host: the ComfyUI folder and its interpreter.
        base: base directory (models, custom_nodes, input, output, user); made if it is not there.
        cpu: run on the CPU. None: only where there is no GPU.
        port: the port to listen on. None: a free one.
        flags: more of the host's command line flags.
        environment: variables that only this process has.
    """

    def __init__(
        self,
        host: DevHost,
        base: Path,
        *,
        cpu: bool | None = None,
        port: int | None = None,
        flags: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.host = host
        self.base = base
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = base / "server.log"
        self._flags = flags + (("--cpu",) if (not has_gpu() if cpu is None else cpu) else ())
        self._environment = os.environ | dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process and wait until it answers.

        Raises:
            ServerError: it ended, or did not answer within START_LIMIT seconds.
        """
        make_base(self.base)
        command = [
            str(self.host.python),
            "main.py",
            *("--base-directory", str(self.base)),
            *("--listen", "127.0.0.1", "--port", str(self.port)),
            # No calls to the outside, no database file in the host's tree.
            *("--disable-auto-launch", "--disable-api-nodes", "--database-url", "sqlite:///:memory:"),
            *self._flags,
        ]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.host.comfyui,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process, by force if it does not end by itself. Safe to call twice."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def wait(self) -> int:
        """Wait until the server ends by itself; return its exit code."""
        assert self._process is not None, "start() comes first"
        return self._process.wait()

    @property
    def is_running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The id of the process."""
        assert self._process is not None, "start() comes first"
        return self._process.pid

    def log_tail(self, lines: int = 25) -> str:
        """The last lines the server printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline:
            if not self.is_running:
                raise ServerError(f"ComfyUI ended while starting. Its last lines ({self.log}):\n{self.log_tail()}")
            try:
                with urllib.request.urlopen(f"{self.url}/system_stats", timeout=5):
                    return
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(0.1)  # not listening yet
        raise ServerError(
            f"ComfyUI did not answer in {START_LIMIT:.0f} s. Its last lines ({self.log}):\n{self.log_tail()}"
        )


def free_port() -> int:
    """A TCP port on this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def has_gpu() -> bool:
    """Whether a GPU that ComfyUI can use is at hand (NVIDIA, ROCm, Apple), without importing torch."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    if Path("/dev/kfd").exists():
        return True
    smi = shutil.which("nvidia-smi")
    return smi is not None and subprocess.run([smi, "-L"], capture_output=True).stdout.startswith(b"GPU")
