"""make demo: the first workflow, run in a real ComfyUI server through its HTTP API, from a prompt to a PNG file."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

import workflow
from comfy_client import ComfyClient, Graph, PromptFailed, PromptRefused, PromptResult
from comfy_server import ComfyServer, ServerError
from devhost import HOST_FOLDER, ROOT, SetupError, located

# Last on the path: our nodes/ would shadow a host's module of that name.
sys.path.append(str(ROOT))

from instaflow_core.atomic import replacing

WORKFLOW = ROOT / "workflows" / "01_one_step_text_to_image.json"


def main() -> None:
    """Parse the command line, run the workflow once, write the picture, print where and how long it took."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--prompt", help="the caption; without it, the workflow's own")
    parser.add_argument("--seed", type=int, help="0 or more; without it, the workflow's own")
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "demo.png", help="the PNG file to write")
    arguments = parser.parse_args()
    # `kill` and a stopped job end the server too, not only Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    result = run_workflow(arguments.prompt, arguments.seed)
    with replacing(arguments.out) as temporary:
        temporary.write_bytes(result.images[0])
    print(f"{arguments.out}  ({result.seconds:.2f} s for the prompt)")


def run_workflow(prompt: str | None, seed: int | None) -> PromptResult:
    """Run WORKFLOW with this caption and seed on a server that is started for it and stopped after it."""
    with ComfyServer(located(), HOST_FOLDER / "base") as server:
        client = ComfyClient(server.url)
        graph: Graph = workflow.to_prompt(load_workflow(), client.object_info())
        if prompt is not None:
            workflow.set_text(graph, prompt)
        if seed is not None:
            workflow.set_seed(graph, seed)
        return client.run_prompt(graph)


def load_workflow() -> dict[str, Any]:
    """WORKFLOW, parsed."""
    return dict(json.loads(WORKFLOW.read_text(encoding="utf-8")))


if __name__ == "__main__":
    try:
        main()
    except (SetupError, ServerError, PromptRefused, PromptFailed, workflow.WorkflowError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
