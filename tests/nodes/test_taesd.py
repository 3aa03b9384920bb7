"""What `distill-decoder` writes, opened by the host as a TAESD: by its VAE loader and by its previews."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from host_here import OpenHost
from small_models import small_checkpoint

from instaflow_core.training.config import LoopConfig
from instaflow_core.training.decoder import DecoderConfig, TinyResult, distill_decoder
from instaflow_core.triplets.format import SetInfo
from instaflow_core.triplets.storage import Storage
from instaflow_core.triplets.writing import SetWriter


@pytest.fixture(scope="module")
def made(host: OpenHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyResult]:
    """A TAESD after a few steps, its files where the host looks for them."""
    storage = Storage(tmp_path_factory.mktemp("set"))
    SetWriter(storage, SetInfo(16, 0, (4, 8, 8), shard_size=8)).write(["x"] * 16, lambda _, noise: noise, 8)
    folder: Path = host.base / "models" / "vae_approx"
    with torch.inference_mode(False):
        config = DecoderConfig(LoopConfig(4, learning_rate=1e-3, warmup=0, ema=0.5), batch_size=2)
        result = distill_decoder(
            small_checkpoint(vae="kl"), config, folder / "taesd_decoder.safetensors", storage, device="cpu"
        )
    yield result
    for path in result.paths:
        path.unlink()


@torch.no_grad()
def test_the_hosts_vae_loader_lists_it_and_draws_what_was_trained(host: OpenHost, made: TinyResult) -> None:
    assert "taesd" in host.node("VAELoader").INPUT_TYPES()["required"]["vae_name"][0]
    (vae,) = host.run("VAELoader", vae_name="taesd")
    latents = torch.randn(2, 4, 8, 6, generator=torch.Generator().manual_seed(1))
    # The host's latents are the UNet's, less their scale.
    (drawn,) = host.run("VAEDecode", vae=vae, samples={"samples": latents / 0.18215})
    expected = ((made.tiny.decoder(latents) + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1)
    assert expected.std() > 1e-3
    torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)
    (encoded,) = host.run("VAEEncode", vae=vae, pixels=drawn)
    assert made.tiny.encoder is not None
    own = made.tiny.encoder(expected.permute(0, 3, 1, 2) * 2 - 1)
    torch.testing.assert_close(encoded["samples"] * 0.18215, own, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_hosts_previews_are_its_pictures(host: OpenHost, made: TinyResult, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.cli_args
    import comfy.latent_formats
    import latent_preview
    import numpy as np

    monkeypatch.setattr(comfy.cli_args.args, "preview_method", comfy.cli_args.LatentPreviewMethod.TAESD)
    previewer = latent_preview.get_previewer(torch.device("cpu"), comfy.latent_formats.SD15())
    assert type(previewer).__name__ == "TAESDPreviewerImpl"
    latents = torch.randn(1, 4, 8, 6, generator=torch.Generator().manual_seed(2))
    shown = np.asarray(previewer.decode_latent_to_preview(latents), dtype=np.float32)
    expected = ((made.tiny.decoder(latents)[0] + 1) / 2).clamp(0, 1).permute(1, 2, 0) * 255
    assert np.abs(shown - expected.numpy()).max() <= 1
