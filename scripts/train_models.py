"""Make the built-in models again from nothing: `make models`. Stops and goes on; everything is in build/shapes.

python scripts/train_models.py [--note TEXT]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from instaflow_core.evaluation.drawing import Drawing  # noqa: E402
from instaflow_core.pictures.images import contact_sheet  # noqa: E402
from instaflow_core.shapes.captions import sample_captions  # noqa: E402
from instaflow_core.shapes.evaluate import accuracy, draw_pictures  # noqa: E402
from instaflow_core.shapes.making.anatomy import NATIVE_SIZE  # noqa: E402
from instaflow_core.shapes.making.recipe import Recipe  # noqa: E402
from instaflow_core.shapes.making.stages import Making  # noqa: E402
from instaflow_core.weights.checkpoint import MODELS, Checkpoint, load  # noqa: E402
from instaflow_core.weights.matching import with_text_prefix  # noqa: E402
from instaflow_core.weights.saving import save, save_part  # noqa: E402

WORK = ROOT / "build" / "shapes"
SHARED = ["shapes-text-encoder.safetensors", "shapes-vae.safetensors"]
# Stage of the making -> its file, what it predicts, the stage's name, and how it is judged: steps, guidance.
SHIPPED: dict[str, tuple[str, str, str, int, float]] = {
    "teacher": ("shapes-teacher", "epsilon", "teacher", 25, Recipe.teacher_guidance),
    "two_rectified_flow": ("shapes-2rf", "velocity", "2-rectified-flow", 4, Recipe.flow_guidance),
    "instaflow": ("shapes", "velocity", "one-step", 1, 1.0),
    # The comparison of `make table`: no name of its own, since nobody wants to use it.
    "direct": ("shapes-direct", "velocity", "one-step", 1, 1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--note", help="kept in the models' metadata, where the recipe does not tell the whole story")
    args = parser.parse_args()
    making = Making(WORK, Recipe())
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    for stage in SHIPPED:
        ship(making, stage, {"commit": commit.stdout.strip()} | ({"note": args.note} if args.note else {}))


def ship(making: Making, stage: str, record: dict[str, str]) -> None:
    """Make the stage, write it to models/ in float16, and judge what was written.

    record: what stands in the metadata beside the recipe.
    """
    name, prediction, stage_name, steps, guidance = SHIPPED[stage]
    unet, encoder, vae = (module.cpu() for module in (getattr(making, stage)(), making.text_encoder(), making.vae()))
    training = {"data": "rendered shapes, held-out combinations left out", **record, **asdict(making.recipe)}
    checkpoint = Checkpoint(
        unet=unet.state_dict(),
        unet_config=config_of(unet),
        text_encoder=with_text_prefix(encoder.state_dict()),
        text_config=encoder.config.to_dict(),
        vae=vae.state_dict(),
        vae_config=config_of(vae),
        metadata={
            "instaflow.prediction": prediction,
            "instaflow.stage": stage_name,
            "instaflow.native_size": str(NATIVE_SIZE),
            "instaflow.guidance": str(guidance),
            "instaflow.license": "GPL-3.0",
            "instaflow.training": json.dumps(training),
            "modelspec.title": f"InstaFlow shapes: {stage_name}",
        },
    )
    for part, file in zip(("text_encoder", "vae"), SHARED, strict=True):
        save_part(checkpoint, part, MODELS / file, torch.float16)
    path = MODELS / f"{name}.safetensors"
    save(checkpoint, path, torch.float16, SHARED)
    written = load(path)
    for part_name, held_out in (("seen", False), ("held out", True)):
        captions = sample_captions(400, 11, held_out)
        pictures = draw_pictures(Drawing(written), captions, 0, steps, guidance)
        print(f"{name}: {steps} steps, guidance {guidance}, {part_name} {accuracy(pictures, captions):.4f}", flush=True)
        contact_sheet(pictures[:64], 16).save(WORK / f"{name}-{part_name.replace(' ', '-')}.png")
    print(path)


def config_of(module: Any) -> dict[str, Any]:
    """A diffusers module's own configuration, as it is saved."""
    return json.loads(module.to_json_string())


if __name__ == "__main__":
    main()
