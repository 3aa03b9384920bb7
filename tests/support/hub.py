"""A server that speaks the Hugging Face hub's API for one repository, as far as a download of it uses it.

The network service is stood in for, the library that talks to it is the real one. Large files (the weights) are kept as
Git LFS keeps them: their address leads to another, which answers requests for a part of the file.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """The repository and what the server shall do wrong.

    Attributes:
        files: contents by path.
        status: an HTTP status to answer everything with, instead of what was asked for.
        sizes: what is said of a file's size where that is not the truth.
        damaged: files whose content arrives with another last byte.
        cut: files whose connection is closed in the middle, the first time.
        stalled: files of which the first half is sent and then nothing, until `release` is set.
        asked: (file, first byte) of every request for a file's content.
    """

    repository: str
    files: dict[str, bytes]
    status: int | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    stalled: set[str] = field(default_factory=set)
    asked: list[tuple[str, int]] = field(default_factory=list)
    halfway: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def description(self) -> dict[str, Any]:
        """The answer to /api/models/REPOSITORY?blobs=True."""
        return {"id": self.repository, "sha": COMMIT, "siblings": [self._sibling(name) for name in self.files]}

    def _sibling(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        size = self.sizes.get(name, len(content))
        said: dict[str, Any] = {"rfilename": name, "size": size, "blobId": git_sha1(content)}
        if is_large(name):
            said["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}
        return said


def is_large(name: str) -> bool:
    """Whether Git LFS keeps it."""
    return name.endswith((".safetensors", ".bin"))


def git_sha1(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def files_of(folder: Path) -> dict[str, bytes]:
    """The contents of a folder by their paths in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Answer on a free port; `hub.url` is what HF_ENDPOINT is to say."""

    class Handler(_Handler):
        answering = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    answering: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub = self.answering
        address = self.path.partition("?")[0]
        content_at = f"/{hub.repository}/resolve/{COMMIT}/"
        if hub.status is not None:
            self._answer(hub.status, b"{}")
        elif address == f"/api/models/{hub.repository}":
            self._answer(200, json.dumps(hub.description()).encode())
        elif address.startswith("/lfs/"):
            self._send_file(address.removeprefix("/lfs/"))
        elif address.startswith(content_at):
            name = address.removeprefix(content_at)
            if is_large(name):
                self._answer(302, b"", {"Location": f"{hub.url}/lfs/{name}"})
            else:
                self._send_file(name)
        else:
            self._answer(404, b"{}")

    def _send_file(self, name: str) -> None:
        hub = self.answering
        content = hub.files[name]
        if name in hub.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        hub.asked.append((name, start))
        rest = content[start:]
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if wanted else {}
        halves = name in hub.cut or name in hub.stalled
        self._answer(206 if wanted else 200, rest, headers, len(rest) // 2 if halves else None)
        if name in hub.stalled:
            hub.halfway.set()
            hub.release.wait()
        if halves:
            hub.cut.discard(name)
            self.close_connection = True

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, sent: int | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[:sent])
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests look at what was asked for."""
