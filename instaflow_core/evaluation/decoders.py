"""What a tiny decoder is worth beside the VAE whose place it takes: how near its pictures are, and how much faster."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..training.tiny import FullVAE, Tiny
from .extractors import Networks, NotAvailable
from .figures import Figure, NotComputed, Result, mean_figure, median_figure
from .metrics import psnr_distance

_TIMED = 5


@torch.no_grad()
def measure_tiny(tiny: Tiny, full: FullVAE, latents: Sequence[Tensor], device: str) -> dict[str, Result]:
    """Figures of a tiny decoder, and of its encoder where there is one.

    psnr: of its pictures beside the VAE's, in dB; lpips: the same as LPIPS, where its weights are on this machine.
    latents: the root mean square of what the encoder makes of the VAE's pictures, less the latents they are of.
    milliseconds, milliseconds_full: for one picture.

    Args:
        latents: each (1, C, H, W), as the UNet makes them.
    """
    tiny.to(device).eval()
    psnr, perceptual, apart = list[Tensor](), list[Tensor](), list[Tensor]()
    lpips, missing = psnr_distance(), ""
    try:
        lpips = Networks(device, fetched=False).of("lpips")
    except NotAvailable as error:
        missing = str(error)
    for given in latents:
        x = given.to(device)
        shown = full.decode(x)
        pictures = _as_shown(tiny.decoder(x)), _as_shown(shown)
        psnr.append(psnr_distance().distance(*pictures).cpu())
        if not missing:
            perceptual.append(lpips.distance(*pictures).cpu())
        if tiny.encoder is not None:
            apart.append((tiny.encoder(shown) - x).square().mean().sqrt().cpu().view(1))
    where = f"{len(latents)} latents that were held out"
    results: dict[str, Result] = {"psnr": mean_figure(torch.cat(psnr), f"dB, beside the VAE's pictures of {where}")}
    if missing:
        results["lpips"] = NotComputed(missing)
    else:
        results["lpips"] = mean_figure(torch.cat(perceptual), f"{lpips.words}, beside the VAE's pictures of {where}")
    if apart:
        results["latents"] = mean_figure(
            torch.cat(apart), f"root mean square of the encoder's errors on the VAE's pictures of {where}"
        )
    return results | decode_times(tiny, full, latents, device)


@torch.no_grad()
def decode_times(tiny: Tiny, full: FullVAE, latents: Sequence[Tensor], device: str) -> dict[str, Figure]:
    """Milliseconds of both decoders for one of these latents (1, C, H, W), in turn, each once before it counts."""
    tiny.to(device).eval()
    x, taken = latents[0].to(device), (list[float](), list[float]())
    decoders: tuple[Callable[[Tensor], Tensor], ...] = (tiny.decoder, full.decode)
    for number in range(_TIMED + 1):
        for times, decode in zip(taken, decoders, strict=True):
            start = time.perf_counter()
            decode(x).cpu()  # where it ends, so nothing is still at work
            if number:
                times.append(1000 * (time.perf_counter() - start))
    name = torch.cuda.get_device_name() if device.startswith("cuda") else f"{device}, {torch.get_num_threads()} threads"
    size = " x ".join(str(8 * side) for side in reversed(x.shape[2:]))
    recipe = f"for a picture of {size} on {name}, median of {_TIMED}"
    return {
        "milliseconds": median_figure(taken[0], f"the tiny decoder {recipe}"),
        "milliseconds_full": median_figure(taken[1], f"the VAE's own {recipe}"),
    }


def _as_shown(pixels: Tensor) -> Tensor:
    """A decoder's picture in [-1, 1] as uint8."""
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
