"""make ui: the same ComfyUI as the demo's, to open in a browser, until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys

from comfy_server import ComfyServer, ServerError
from devhost import HOST_FOLDER, ROOT, SetupError, located


def main() -> None:
    """Start the server on the asked port and wait for its end."""
    parser = argparse.ArgumentParser(prog="make ui", description=__doc__)
    parser.add_argument("--port", type=int, default=8188)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    output = ROOT / "output"
    output.mkdir(exist_ok=True)
    flags = ("--output-directory", str(output))
    with ComfyServer(located(), HOST_FOLDER / "base", port=arguments.port, flags=flags) as server:
        print(f"ComfyUI is at {server.url}; its log is {server.log}. Ctrl-C stops it.", flush=True)
        code = server.wait()
    raise ServerError(f"ComfyUI ended with exit code {code}; see {server.log}.")


if __name__ == "__main__":
    try:
        main()
    except (SetupError, ServerError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print()
