"""`distill-decoder`: a tiny decoder in TAESD's shape for a VAE, from that VAE's own latents."""

import argparse
from pathlib import Path

from ..evaluation.decoders import measure_tiny
from ..evaluation.report import in_words
from ..pictures.sources import Folder
from ..training.decoder import STAGE, DecoderConfig, distill_decoder
from ..training.tiny import PICTURE_LOSSES
from ..triplets.storage import Storage
from ..weights.checkpoint import load
from .common import CHECKPOINT_HELP, COMPUTE_DTYPES, DTYPES, Commands, add
from .loop import add_loop, loop_config, progress_bar, stopping


def add_distill_decoder(commands: Commands) -> None:
    """Add the command."""
    parser = add(
        commands,
        STAGE,
        _distill_decoder,
        "Train a tiny decoder and encoder in a VAE's place, many times as fast: two files as TAESD's, which ComfyUI "
        "loads from models/vae_approx.",
        "python -m instaflow_core distill-decoder --checkpoint my-instaflow.safetensors --triplets sets/2rf "
        "--iterations 20000 --out ComfyUI/models/vae_approx/taesd_decoder.safetensors",
    )
    parser.add_argument("--checkpoint", required=True, metavar="NAME|PATH", help=f"whose VAE: {CHECKPOINT_HELP}")
    parser.add_argument("--triplets", metavar="FOLDER", help="whose latents to learn from: a set's folder or URL")
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="pictures for the VAE to encode; with --triplets, both in turn"
    )
    parser.add_argument(
        "--size",
        type=int,
        help="pixels along a side of what a step learns from (default: the checkpoint's native size)",
    )
    parser.add_argument(
        "--loss",
        choices=PICTURE_LOSSES,
        default=PICTURE_LOSSES[0],
        help=f"distance from the VAE's pictures; lpips is added to l1 (default {PICTURE_LOSSES[0]})",
    )
    parser.add_argument(
        "--decoder-only", action="store_true", help="no encoder: enough for previews, half the time to train"
    )
    add_loop(parser, batch_size=16, lr=1e-3, schedule="cosine", ema=0.99)
    parser.add_argument(
        "--save-dtype", choices=COMPUTE_DTYPES, default="fp32", help="of the saved weights (default fp32)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="NAME_decoder.safetensors; NAME_encoder.safetensors comes beside it. ComfyUI looks for the NAME taesd",
    )


def _distill_decoder(options: argparse.Namespace) -> None:
    config = DecoderConfig(
        loop_config(options),
        batch_size=options.batch_size,
        seed=options.seed,
        size=options.size,
        loss=options.loss,
        encoder=not options.decoder_only,
        dtype=DTYPES[options.save_dtype],
    )
    checkpoint = load(options.checkpoint)
    storage = Storage(options.triplets) if options.triplets else None
    pictures = Folder(options.images) if options.images else None
    with progress_bar(STAGE, options.iterations) as progress, stopping() as stop:
        trained = distill_decoder(
            checkpoint, config, options.out, storage, pictures, options.resume, options.device, progress, stop
        )
    if trained.is_main:
        results = measure_tiny(trained.tiny, trained.full, trained.held_out, options.device)
        print(in_words(results))
        for path in reversed(trained.paths):
            print(path)
