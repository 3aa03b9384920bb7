"""How well pictures are inverted, and how often editing by inversion does what the words say.

    python3 scripts/devhost.py benchmarks/inversion.py --count 64

For each built-in flow: pictures of random captions that leave size and place open are made and inverted, and come back
or not. Then the noise is sampled with another colour in the caption. An edit counts where the judge accepts the new
picture and finds the shape where it was, among the pictures it had accepted before.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parent.parent))

from instaflow_core.evaluation.drawing import Drawing
from instaflow_core.flow.guidance import GuidedUNet
from instaflow_core.flow.inversion import invert, naive_reverse
from instaflow_core.flow.noise import indexed_noise
from instaflow_core.flow.solvers import VelocityField, euler, time_grid
from instaflow_core.pictures.images import image_pictures
from instaflow_core.shapes.captions import COLORS, Caption, all_captions
from instaflow_core.shapes.judge import look
from instaflow_core.text import encode_prompts
from instaflow_core.weights.checkpoint import load

FLOWS = {"built-in: shapes": 1, "built-in: shapes-2rf": 4}
SAME_PLACE, SAME_SIZE = 0.1, 0.15  # of the canvas


class Flow:
    """A built-in flow that draws captions from noise in a number of steps."""

    def __init__(self, name: str, steps: int) -> None:
        drawing = Drawing(load(name))
        self.encoder, self.unet, self.vae = drawing.text_encoder, drawing.unet, drawing.vae
        self.times = time_grid(steps)
        self.steps = steps

    def velocity(self, captions: Sequence[Caption]) -> VelocityField:
        return GuidedUNet(self.unet, encode_prompts(self.encoder, [str(caption) for caption in captions])).velocity

    def latents(self, captions: Sequence[Caption], noise: Tensor) -> Tensor:
        return euler(self.velocity(captions), noise, self.times)

    def pictures(self, latents: Tensor) -> Tensor:
        decoded = self.vae.decode(latents / self.vae.config.scaling_factor, return_dict=False)[0]
        return (decoded / 2 + 0.5).clamp(0, 1)


def recoloured(caption: Caption, chance: random.Random) -> Caption:
    """The caption with another colour, not the background's."""
    others = [color for color in COLORS if color not in (caption.color, caption.background)]
    return replace(caption, color=chance.choice(others))


def psnr(a: Tensor, b: Tensor) -> list[float]:
    """Peak signal to noise ratio of each picture in dB, at most 100."""
    return (-10 * (a - b).square().mean((1, 2, 3)).clamp(min=1e-10).log10()).tolist()


def edited_well(before: Image.Image, after: Image.Image, old: Caption, new: Caption) -> bool | None:
    """Whether the edit shows the new caption where the old shape was; None where the first picture was wrong."""
    first, second = look(before), look(after)
    if first is None or not first.matches(old):
        return None
    if second is None or not second.matches(new):
        return False
    moved = max(abs(first.x - second.x), abs(first.y - second.y))
    return bool(moved <= SAME_PLACE and abs(first.extent - second.extent) <= SAME_SIZE)


@torch.inference_mode()
def measure_flow(name: str, steps: int, count: int, batch_size: int = 16) -> dict[str, Any]:
    """PSNR of round trips and rate of edits, with our noise and with that of naively reversed steps."""
    flow, chance = Flow(name, steps), random.Random(0)
    captions = [c for c in all_captions(held_out=False) if c.size is None and c.place is None]
    chosen = chance.sample(captions, count)
    new = [recoloured(caption, chance) for caption in chosen]
    round_trips: dict[str, list[float]] = {"ours": [], "naive": []}
    edits: dict[str, list[bool | None]] = {"ours": [], "naive": []}
    for first in range(0, count, batch_size):
        part, changed = chosen[first : first + batch_size], new[first : first + batch_size]
        noise = torch.stack([indexed_noise(0, first + i, (4, 8, 8)) for i in range(len(part))])
        velocity, x_1 = flow.velocity(part), flow.latents(part, noise)
        made = flow.pictures(x_1)
        found = {"ours": invert(velocity, x_1, steps).noise, "naive": naive_reverse(velocity, x_1, flow.times)}
        for way, x_0 in found.items():
            round_trips[way] += psnr(flow.pictures(flow.latents(part, x_0)), made)
            after = image_pictures(flow.pictures(flow.latents(changed, x_0)).permute(0, 2, 3, 1))
            edits[way] += map(edited_well, image_pictures(made.permute(0, 2, 3, 1)), after, part, changed)
    return {
        way: {
            "psnr_mean": sum(round_trips[way]) / count,
            "psnr_least": min(round_trips[way]),
            "edits_tried": sum(edit is not None for edit in edits[way]),
            "edits_right": sum(edit is True for edit in edits[way]),
        }
        for way in round_trips
    }


def main() -> None:
    """Measure, print one line a flow and way, and the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=64, help="pictures a flow (default 64)")
    count = parser.parse_args().count
    results = {name: measure_flow(name, steps, count) for name, steps in FLOWS.items()}
    for name, ways in results.items():
        for way, found in ways.items():
            print(
                f"{name}, {FLOWS[name]} steps, {way}: round trip {found['psnr_mean']:.1f} dB on average, "
                f"{found['psnr_least']:.1f} dB at least; {found['edits_right']} of {found['edits_tried']} edits right"
            )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
