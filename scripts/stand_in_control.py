"""A ControlNet for the built-in one-step model, trained in minutes: it paints what outlines of rectangles enclose.

It stands in for the released ControlNets, which are made for Stable Diffusion 1.5, where a thumbnail is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from small_control import as_published
from torch import Tensor
from torch.nn.functional import max_pool2d, mse_loss
from tqdm import tqdm

from instaflow_core.shapes.captions import COLORS
from instaflow_core.shapes.making.anatomy import UNET_CONFIG
from instaflow_core.text import encode_prompts
from instaflow_core.weights.checkpoint import load
from instaflow_core.weights.modules import build_text_encoder, build_unet, build_vae

SCENES, ITERATIONS, BATCH = 384, 500, 16
SIZE = 64
# The host takes for granted that heads are 64 wide and each level's width is a multiple of the first's, which those of
# the built-in model are not: what this ControlNet says to its second level, the host drops with a line in its log.
CONFIG: dict[str, Any] = {
    "block_out_channels": (64, 64),
    **{name: UNET_CONFIG[name] for name in ("layers_per_block", "down_block_types", "cross_attention_dim")},
    "mid_block_type": "UNetMidBlock2D",
    "attention_head_dim": 1,  # diffusers' name for the number of heads
}
APPLIED = 3  # of what it says to the levels: the first convolution's, and the first level's two


def make(path: Path, iterations: int = ITERATIONS) -> None:
    """Train it and write it under the names of published ControlNets; the same file every time."""
    from diffusers import ControlNetModel

    checkpoint = load("built-in: shapes")
    unet, vae = build_unet(checkpoint).requires_grad_(False), build_vae(checkpoint)
    texts = {color: encode_prompts(build_text_encoder(checkpoint), [caption(color)]).detach() for color in COLORS}
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        control = ControlNetModel(**CONFIG)
    optimizer = torch.optim.AdamW(control.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, iterations)
    pictures, outlines, colors = scenes(generator)
    with torch.no_grad():
        wanted = torch.cat([vae.encode(some, return_dict=False)[0] for some in pictures.split(BATCH)])
    text = torch.cat([texts[color] for color in colors])
    for _ in tqdm(range(iterations), desc="training a stand-in ControlNet", disable=None):
        batch = torch.randint(SCENES, (BATCH,), generator=generator)
        noise = torch.randn(wanted[batch].shape, generator=generator)
        said, _ = control(noise, 1000.0, text[batch], controlnet_cond=outlines[batch], return_dict=False)
        down = (*said[:APPLIED], *(torch.zeros(()) for _ in said[APPLIED:]))
        kept: dict[str, Any] = {
            "down_block_additional_residuals": down,
            "mid_block_additional_residual": torch.zeros(()),
        }
        velocity = unet(noise, 1000.0, text[batch], **kept, return_dict=False)[0]
        loss = mse_loss(noise + velocity, wanted[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    # The names go by a UNet's rows, which know no middle without attention; that there is none is in the tensors.
    save_file(as_published(control, UNET_CONFIG | {"block_out_channels": CONFIG["block_out_channels"]}), path)


def caption(color: str) -> str:
    """What is said of a scene in this colour."""
    return f"a large {color} square in the center on a {'black' if color == 'white' else 'white'} background"


def scenes(generator: torch.Generator) -> tuple[Tensor, Tensor, list[str]]:
    """Pictures (N, 3, 64, 64) in -1 to 1 of one to three rectangles in one colour each, the outlines (N, 3, 64, 64) in
    0 or 1 of what is painted, and the colours' names."""
    painted = torch.zeros(SCENES, 1, SIZE, SIZE)
    colors = []
    for mask in painted:
        for _ in range(int(torch.randint(1, 4, (), generator=generator))):
            left, top = torch.randint(-8, 52, (2,), generator=generator).tolist()
            width, height = torch.randint(10, 56, (2,), generator=generator).tolist()
            mask[:, max(top, 0) : top + height, max(left, 0) : left + width] = 1
        colors.append(list(COLORS)[int(torch.randint(len(COLORS), (), generator=generator))])
    inside = -max_pool2d(-painted, 3, 1, 1)
    ink = torch.tensor([COLORS[color] for color in colors])[:, :, None, None] / 127.5 - 1
    paper = torch.tensor([COLORS["black" if color == "white" else "white"] for color in colors])[:, :, None, None]
    pictures = torch.where(painted.bool(), ink, paper / 127.5 - 1)
    return pictures, (painted - inside).expand(-1, 3, -1, -1), colors
