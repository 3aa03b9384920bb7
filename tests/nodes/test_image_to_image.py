"""From a picture instead of noise, under masks, in batches and at any size: our sampler and the host's two alike.

The expected latents come from the paper's equations on diffusers' UNet, written out below.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from samplers import WAYS, custom_advanced, instaflow
from small_models import small_checkpoint
from torch import Tensor

from instaflow_core.weights.modules import build_unet

PROMPT = "a red circle on a blue background"
VAE_SCALE = 0.18215
TOLERANCE = 1e-5  # of latents as the UNet takes them, whose deviation is about 1

every_way = pytest.mark.parametrize("sample", WAYS, ids=lambda way: way.__name__)


@pytest.fixture(scope="module")
def unet() -> Any:
    """The same UNet in diffusers."""
    return build_unet(small_checkpoint("2-rectified-flow", vae="kl", seed=1)).eval()


def encode(host: Any, clip: Any, text: str = PROMPT) -> Any:
    return host.run("CLIPTextEncode", clip=clip, text=text)[0]


def picture(batch: int = 1, height: int = 64, width: int = 64) -> dict[str, Tensor]:
    """A LATENT that is not empty; sizes in pixels."""
    shape = (batch, 4, height // 8, width // 8)
    return {"samples": torch.randn(shape, generator=torch.Generator().manual_seed(9)) / VAE_SCALE}


@torch.no_grad()
def by_the_equations(
    unet: Any,
    latent: dict[str, Tensor],
    seed: int,
    steps: int,
    denoise: float,
    text: Tensor,
    mask: Tensor | None = None,
    away: Tensor | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """Equal Euler steps from x_t = t x_1 + (1 - t) x_0, t = 1 - denoise, to t = 1.

    Args:
        mask: (h, w), 1 where the flow paints; elsewhere x_t stays on the line from the noise to the picture.
        away: the negative prompt's states.
    """
    x_1 = latent["samples"] * VAE_SCALE
    x_0 = torch.randn(x_1.shape, generator=torch.Generator().manual_seed(seed))
    paint = torch.ones(x_1.shape[2:]) if mask is None else mask
    t = 1 - denoise
    x = t * x_1 + (1 - t) * x_0
    for i in range(steps):
        asked = 1000 * denoise * (1 - i / steps)
        velocity = unet(x, asked, encoder_hidden_states=text.expand(len(x), -1, -1), return_dict=False)[0]
        if away is not None:
            negative = unet(x, asked, encoder_hidden_states=away.expand(len(x), -1, -1), return_dict=False)[0]
            velocity = negative + guidance * (velocity - negative)
        t = 1 - denoise * (1 - (i + 1) / steps)
        x = paint * (x + denoise / steps * velocity) + (1 - paint) * (t * x_1 + (1 - t) * x_0)
    return x / VAE_SCALE


def assert_alike(ours: Tensor, expected: Tensor) -> None:
    assert ours.shape == expected.shape
    assert torch.allclose(ours * VAE_SCALE, expected * VAE_SCALE, rtol=0, atol=TOLERANCE)


# --- from a picture ---


@every_way
@pytest.mark.parametrize(("steps", "denoise"), [(1, 0.5), (2, 0.5), (3, 0.75), (2, 0.2)])
def test_the_flows_own_noising(host: Any, two_rf: Any, unet: Any, sample: Any, steps: int, denoise: float) -> None:
    positive = encode(host, two_rf[1])
    ours = sample(host, two_rf[0], positive, picture(), seed=4, steps=steps, denoise=denoise)
    assert_alike(ours, by_the_equations(unet, picture(), 4, steps, denoise, positive[0][0]))


@pytest.mark.parametrize("sample", [instaflow, custom_advanced])
@pytest.mark.parametrize(("steps", "denoise"), [(1, 0.9), (1, 0.7), (2, 0.7), (3, 0.4)])
def test_our_grids_start_at_any_denoise(
    host: Any, two_rf: Any, unet: Any, sample: Any, steps: int, denoise: float
) -> None:
    """KSampler cuts a longer grid, which has only some of these levels."""
    positive = encode(host, two_rf[1])
    ours = sample(host, two_rf[0], positive, picture(), seed=4, steps=steps, denoise=denoise)
    assert_alike(ours, by_the_equations(unet, picture(), 4, steps, denoise, positive[0][0]))


@every_way
@pytest.mark.parametrize(("steps", "denoise"), [(2, 0.5), (1, 1.0)])
def test_with_guidance(host: Any, two_rf: Any, unet: Any, sample: Any, steps: int, denoise: float) -> None:
    positive, negative = encode(host, two_rf[1]), encode(host, two_rf[1], "blurry")
    settings = {"seed": 4, "steps": steps, "denoise": denoise, "guidance": 1.5}
    ours = sample(host, two_rf[0], positive, picture(), negative=negative, **settings)
    text, away = positive[0][0], negative[0][0]
    assert_alike(ours, by_the_equations(unet, picture(), text=text, away=away, **settings))


@every_way
def test_less_denoise_stays_closer(host: Any, two_rf: Any, sample: Any) -> None:
    positive, start = encode(host, two_rf[1]), picture()
    away = [sample(host, two_rf[0], positive, start, steps=1, denoise=d) - start["samples"] for d in (0.1, 0.5, 1.0)]
    distances = [change.std() for change in away]
    assert distances == sorted(distances)
    assert distances[0] < distances[2] / 3


# --- under a mask ---


@every_way
@pytest.mark.parametrize("denoise", [1.0, 0.5])
def test_inpainting(host: Any, two_rf: Any, unet: Any, sample: Any, denoise: float) -> None:
    """What is masked out stays on its own line from noise to picture, so it comes back, and the rest sees it there."""
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 24:] = 1
    (masked,) = host.run("SetLatentNoiseMask", samples=picture(), mask=mask)
    positive = encode(host, two_rf[1])
    ours = sample(host, two_rf[0], positive, masked, seed=4, steps=2, denoise=denoise)
    paint = mask[0, ::8, ::8]
    assert_alike(ours, by_the_equations(unet, picture(), 4, 2, denoise, positive[0][0], paint))
    assert_alike(ours[..., paint == 0], picture()["samples"][..., paint == 0])
    assert (ours - picture()["samples"])[..., paint == 1].abs().amax(1).min() > 1e-2


@every_way
@pytest.mark.parametrize("checkpoint", ["one-step.safetensors", "two-rf.safetensors"])  # AutoencoderTiny, AutoencoderKL
def test_vae_encode_for_inpaint(host: Any, models: Path, sample: Any, checkpoint: str) -> None:
    model, clip, vae = host.run("InstaFlowLoadCheckpoint", checkpoint=checkpoint, weight_dtype="fp32")
    image = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(1, 64, 96)
    mask[:, :, 48:] = 1  # and 6 pixels more, which the node adds
    (masked,) = host.run("VAEEncodeForInpaint", pixels=image.clone(), vae=vae, mask=mask, grow_mask_by=6)
    ours = sample(host, model, encode(host, clip), masked, steps=2)
    assert ours.shape == (1, 4, 8, 12)
    assert_alike(ours[..., :5], masked["samples"][..., :5])
    assert (ours - masked["samples"])[..., 6:].abs().amax(1).min() > 1e-2


# --- in batches ---


@every_way
def test_a_picture_is_the_same_without_its_batch(host: Any, two_rf: Any, sample: Any) -> None:
    positive, whole = encode(host, two_rf[1]), picture(4)
    together = sample(host, two_rf[0], positive, whole, seed=4, steps=2, denoise=0.5)
    assert (together[1:] - together[:-1]).abs().amax((1, 2, 3)).min() > 0.1
    for first, length in ((2, 1), (1, 2)):
        (some,) = host.run("LatentFromBatch", samples=whole, batch_index=first, length=length)
        assert_alike(
            sample(host, two_rf[0], positive, some, seed=4, steps=2, denoise=0.5), together[first : first + length]
        )


@every_way
def test_repeats_get_noise_of_their_own(host: Any, two_rf: Any, sample: Any) -> None:
    """Repeating the third of a batch gives the noises of the third and of those after it."""
    positive = encode(host, two_rf[1])
    (empty,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=4)
    together = sample(host, two_rf[0], positive, empty, seed=4)
    (third,) = host.run("LatentFromBatch", samples=empty, batch_index=2, length=1)
    (repeated,) = host.run("RepeatLatentBatch", samples=third, amount=2)
    assert_alike(sample(host, two_rf[0], positive, repeated, seed=4), together[2:])
    (first,) = host.run("LatentFromBatch", samples=empty, batch_index=0, length=1)
    (repeated,) = host.run("RepeatLatentBatch", samples=first, amount=4)
    assert_alike(sample(host, two_rf[0], positive, repeated, seed=4), together)


@every_way
def test_a_mask_for_each_picture(host: Any, two_rf: Any, sample: Any) -> None:
    masks = torch.zeros(2, 64, 64)
    masks[0, :32], masks[1, 32:] = 1, 1
    (masked,) = host.run("SetLatentNoiseMask", samples=picture(2), mask=masks)
    changed = (sample(host, two_rf[0], encode(host, two_rf[1]), masked, steps=2) - masked["samples"]).abs().amax(1)
    assert max(changed[0, 4:].max(), changed[1, :4].max()) * VAE_SCALE < TOLERANCE
    assert min(changed[0, :4].min(), changed[1, 4:].min()) > 1e-2
    (second,) = host.run("LatentFromBatch", samples=masked, batch_index=1, length=1)
    alone = (sample(host, two_rf[0], encode(host, two_rf[1]), second, steps=2) - second["samples"]).abs().amax(1)
    assert torch.allclose(alone[0], changed[1], rtol=0, atol=TOLERANCE / VAE_SCALE)


# --- at any size ---


@every_way
@pytest.mark.parametrize(("width", "height"), [(72, 104), (104, 72), (200, 16)])
def test_any_multiple_of_8(host: Any, two_rf: Any, unet: Any, sample: Any, width: int, height: int) -> None:
    model, clip, vae = two_rf
    positive = encode(host, clip)
    (empty,) = host.run("EmptyLatentImage", width=width, height=height, batch_size=2)
    ours = sample(host, model, positive, empty, seed=4, steps=2)
    assert_alike(ours, by_the_equations(unet, {"samples": empty["samples"].cpu()}, 4, 2, 1.0, positive[0][0]))
    (image,) = host.run("VAEDecode", samples={"samples": ours}, vae=vae)
    assert image.shape == (2, height, width, 3)
    (again,) = host.run("VAEEncode", pixels=image, vae=vae)
    assert again["samples"].shape == ours.shape
