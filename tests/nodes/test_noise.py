"""Seeded noise on the real host."""

from __future__ import annotations

from typing import Any

import pytest
import torch


def noise(host: Any, seed: int, draw: str) -> Any:
    return host.run("InstaFlowSeedNoise", seed=seed, draw=draw)[0]


@pytest.mark.parametrize("latent", [{}, {"batch_index": [3, 0]}])
@pytest.mark.parametrize("size", [8, 9])
def test_comfyuis_draw_is_random_noises(host: Any, latent: dict[str, Any], size: int) -> None:
    latent = latent | {"samples": torch.zeros(2, 4, size, size)}
    (stock,) = host.run("RandomNoise", noise_seed=7)
    ours = noise(host, 7, "comfyui")
    assert torch.equal(ours.generate_noise(latent), stock.generate_noise(latent))
    assert ours.seed == 7


@pytest.mark.parametrize(("draw", "dtype"), [("diffusers fp32", torch.float32), ("diffusers fp16", torch.float16)])
def test_diffusers_draw(host: Any, draw: str, dtype: torch.dtype) -> None:
    from diffusers.utils.torch_utils import randn_tensor

    latent = {"samples": torch.zeros(2, 4, 8, 8)}
    expected = randn_tensor((2, 4, 8, 8), generator=torch.Generator("cpu").manual_seed(7), dtype=dtype).float()
    assert torch.equal(noise(host, 7, draw).generate_noise(latent), expected)
    second = noise(host, 7, draw).generate_noise({"samples": torch.zeros(1, 4, 8, 8), "batch_index": [1]})
    assert torch.equal(second, expected[1:])


def test_unknown_draw(host: Any) -> None:
    with pytest.raises(ValueError, match=r"Unknown draw 'other'; expected one of comfyui"):
        noise(host, 0, "other")


# --- InstaFlowInterpolateNoise ---


def interpolated(host: Any, frames: int, latent: Any = None, **seeds: int) -> tuple[Any, Any]:
    seeds = {"seed_from": 7, "seed_to": 8} | seeds
    latent = latent or {"samples": torch.zeros(3, 4, 8, 9), "batch_index": [2, 5, 6]}
    return host.run("InstaFlowInterpolateNoise", frames=frames, latent_image=latent, **seeds)


def test_the_ends_are_the_seeds_own_noise(host: Any) -> None:
    noise, latent = interpolated(host, 5)
    frames = noise.generate_noise(latent)
    assert frames.shape == latent["samples"].shape == (5, 4, 8, 9)
    for seed, frame in ((7, frames[:1]), (8, frames[-1:])):
        (stock,) = host.run("RandomNoise", noise_seed=seed)
        assert torch.equal(frame, stock.generate_noise({"samples": torch.zeros(1, 4, 8, 9)}))
    norms = frames.flatten(1).norm(dim=1)
    assert (norms - norms[[0, -1]].mean()).abs().max() <= (norms[0] - norms[-1]).abs() / 2 + 0.05 * norms[0]
    assert noise.seed == 7


def test_a_frame_depends_on_its_fraction_alone(host: Any) -> None:
    coarse, fine = (interpolated(host, frames)[1]["samples"] for frames in (3, 9))
    assert torch.equal(coarse, fine[::4])
    assert torch.equal(interpolated(host, 1)[1]["samples"], fine[:1])


def test_frames_go_through_both_samplers(host: Any, shapes: Any) -> None:
    model, clip, _ = shapes
    (positive,) = host.run("CLIPTextEncode", clip=clip, text="a red star on a white background")
    (empty,) = host.run("EmptyLatentImage", width=64, height=64, batch_size=1)
    noise, latent = interpolated(host, 4, empty)
    common: dict[str, Any] = {"model": model, "positive": positive, "seed": 0, "steps": 1, "guidance": 1.0}
    (ours,) = host.run("InstaFlowSampler", latent_image=latent, noise=noise, denoise=1.0, **common)
    (custom, _) = host.run(
        "SamplerCustomAdvanced",
        noise=noise,
        guider=host.run("BasicGuider", model=model, conditioning=positive)[0],
        sampler=host.run("KSamplerSelect", sampler_name="euler")[0],
        sigmas=host.run("InstaFlowScheduler", model=model, steps=1, denoise=1.0)[0],
        latent_image=latent,
    )
    assert torch.equal(ours["samples"], custom["samples"])
    (first,) = host.run("InstaFlowSampler", latent_image=empty, denoise=1.0, **{**common, "seed": 7})
    assert torch.allclose(ours["samples"][:1], first["samples"], atol=1e-4)
    (third,) = host.run("LatentFromBatch", samples=latent, batch_index=2, length=1)
    (alone,) = host.run("InstaFlowSampler", latent_image=third, noise=noise, denoise=1.0, **common)
    assert torch.allclose(alone["samples"], ours["samples"][2:3], atol=1e-4)


@pytest.mark.parametrize("latent", [{"samples": torch.zeros(2, 4, 8, 9)}, {"samples": torch.zeros(4, 4, 8, 8)}])
def test_noise_for_another_batch(host: Any, latent: dict[str, Any]) -> None:
    noise, _ = interpolated(host, 4)
    with pytest.raises(ValueError, match=r"NOISE is for latents of the shape \(4, 4, 8, 9\).*came with the NOISE"):
        noise.generate_noise(latent)


def test_noise_for_a_frame_that_is_not_there(host: Any) -> None:
    noise, _ = interpolated(host, 4)
    with pytest.raises(ValueError, match="NOISE is for latents"):
        noise.generate_noise({"samples": torch.zeros(1, 4, 8, 9), "batch_index": [4]})


def test_noise_for_a_latent_that_stood_in_a_longer_batch(pack: Any) -> None:
    """Made for the third and the sixth of a batch, it goes with them, together or alone."""
    values = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 4, 8, 8)
    noise = pack.nodes.noise.FixedNoise(values, 0, [2, 5])
    assert torch.equal(noise.generate_noise(noise.latent()), values)
    assert torch.equal(noise.generate_noise({"samples": torch.zeros(2, 4, 8, 8)}), values)
    assert torch.equal(noise.generate_noise({"samples": torch.zeros(1, 4, 8, 8), "batch_index": [5]}), values[1:])
    with pytest.raises(ValueError, match="NOISE is for latents"):
        noise.generate_noise({"samples": torch.zeros(1, 4, 8, 8), "batch_index": [0]})


def test_angles_are_measured_in_full_precision(host: Any) -> None:
    """A host may keep its latents in half precision. Then the ends are the seeds' noises in it, and the frames between
    them no more than its rounding away from the great circle."""
    half = {"samples": torch.zeros(1, 4, 16, 16, dtype=torch.float16)}
    _, latent = interpolated(host, 9, half)
    frames = latent["samples"]
    assert frames.dtype == torch.float16
    ends = [host.run("RandomNoise", noise_seed=seed)[0].generate_noise(half)[0] for seed in (7, 8)]
    assert torch.equal(frames[0], ends[0]) and torch.equal(frames[-1], ends[1])
    a, b = (end.double() for end in ends)
    angle = torch.arccos((a * b).sum() / (a.norm() * b.norm()))
    between = (torch.sin(0.625 * angle) * a + torch.sin(0.375 * angle) * b) / torch.sin(angle)
    assert torch.allclose(frames[3].double(), between, rtol=2**-11, atol=1e-5)
