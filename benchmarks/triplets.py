"""Triplets per second, beside diffusers' own pipeline on the same teacher: prompts read, noise solved to latents.

    python3 scripts/devhost.py benchmarks/triplets.py

Both sample the built-in teacher in as many steps of DPM-Solver++ at the same guidance; ours also writes its set.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))

from devhost import ROOT

sys.path.append(str(ROOT))

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
from measuring import in_turn
from rows import Row
from transformers import CLIPTokenizer

from instaflow_core.shapes.captions import sample_captions
from instaflow_core.text import TOKENIZER
from instaflow_core.triplets.storage import Storage
from instaflow_core.triplets.writing import SetConfig, SetWriter, describe_set, latent_maker
from instaflow_core.weights.checkpoint import load
from instaflow_core.weights.modules import build_text_encoder, build_unet

TEACHER = "built-in: shapes-teacher"
STEPS, GUIDANCE = 25, 2.0


def measure(count: int = 32, times: int = 3) -> list[Row]:
    """count: triplets a round, in one batch."""
    teacher = load(TEACHER)
    encoder, unet = build_text_encoder(teacher), build_unet(teacher)
    prompts = [str(caption) for caption in sample_captions(count, 0)]
    generate = latent_maker(encoder, unet, teacher.prediction, STEPS, GUIDANCE)
    pipeline = StableDiffusionPipeline(
        # Not asked for anything: the latents are taken before it.
        vae=AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * 4, block_out_channels=(8,) * 4, norm_num_groups=4),
        text_encoder=encoder,
        tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
        unet=unet,
        scheduler=DPMSolverMultistepScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", algorithm_type="dpmsolver++"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    side = teacher.native_size

    with tempfile.TemporaryDirectory() as folder:

        def ours(number: int) -> None:
            config = SetConfig(count, number, STEPS, GUIDANCE, batch_size=count)
            storage = Storage(str(Path(folder) / str(number)))
            SetWriter(storage, describe_set(teacher, config, prompts)).write(prompts, generate, count)

        def theirs(number: int) -> None:
            with torch.random.fork_rng(devices=[]):
                pipeline(
                    prompts,
                    height=side,
                    width=side,
                    num_inference_steps=STEPS,
                    guidance_scale=GUIDANCE,
                    generator=torch.Generator().manual_seed(number),
                    output_type="latent",
                )

        value, baseline = in_turn(ours, theirs, times)
    return [Row("triplets", count / value, "triplets/s", "StableDiffusionPipeline", count / baseline)]


if __name__ == "__main__":
    for row in measure():
        print(row.line())
