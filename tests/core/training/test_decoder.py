"""A tiny decoder in a VAE's place: trained through the command line, killed, shared out, and refused."""

import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from small_models import small_checkpoint
from small_runs import content, start, start_two, wait_for

from instaflow_core.__main__ import main
from instaflow_core.pictures.sources import Folder
from instaflow_core.shapes.captions import sample_captions
from instaflow_core.shapes.render import render, sample_scene
from instaflow_core.training.batches import BatchPart
from instaflow_core.training.config import LoopConfig
from instaflow_core.training.decoder import DecoderConfig, distill_decoder
from instaflow_core.training.tiny import FullVAE, LatentBatches, PictureBatches, Tiny, squares, tiny_step
from instaflow_core.triplets.format import SetInfo
from instaflow_core.triplets.reading import SetReader
from instaflow_core.triplets.storage import Storage
from instaflow_core.triplets.writing import SetWriter
from instaflow_core.weights.checkpoint import load
from instaflow_core.weights.modules import build_vae
from instaflow_core.weights.saving import save
from instaflow_core.weights.taesd import taesd_config


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """kl.safetensors, a model with a random AutoencoderKL; set, 16 triplets of 6 x 8 latents; photos, 9 pictures."""
    place = tmp_path_factory.mktemp("decoder")
    save(small_checkpoint(vae="kl"), place / "kl.safetensors")
    SetWriter(Storage(place / "set"), SetInfo(16, 0, (4, 6, 8), shard_size=8)).write(["x"] * 16, lambda _, x: x, 8)
    (place / "photos" / "more").mkdir(parents=True)
    for number, caption in enumerate(sample_captions(9, 5)):
        picture = render(sample_scene(caption, random.Random(number))).resize((40 + number, 48))
        picture.save(place / "photos" / ("more" if number % 2 else ".") / f"{number}.png")
    return place


def distilling(place: Path, out: Path, *more: str) -> list[str]:
    """The command, for 4 iterations on both kinds of source."""
    sources = ["--triplets", str(place / "set"), "--images", str(place / "photos")]
    numbers = ["--iterations", "4", "--batch-size", "2", "--size", "32", "--warmup", "1", "--ema", "0.5"]
    rest = ["--checkpoint-every", "1", "--sample-every", "2", "--device", "cpu", "--out", str(out)]
    return ["distill-decoder", "--checkpoint", str(place / "kl.safetensors"), *sources, *numbers, *rest, *more]


def refused(capsys: pytest.CaptureFixture[str], command: list[str]) -> str:
    """What the command says that must end with exit code 2."""
    assert main(command) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


# --- what is learned ---


@torch.no_grad()
def test_the_loss_is_the_distance_from_what_the_vae_makes(place: Path) -> None:
    checkpoint = load(place / "kl.safetensors")
    full, vae, tiny = FullVAE(checkpoint), build_vae(checkpoint), Tiny(taesd_config(checkpoint), 1, encoder=True)
    pictures = squares(Folder(place / "photos").read([0, 3]), 32)
    latents = vae.encode(pictures).latent_dist.mean * 0.18215
    shown = vae.decode(latents / 0.18215).sample.clamp(-1, 1)
    step = tiny_step(full, torch.nn.functional.l1_loss)
    assert tiny.encoder is not None
    expected = (tiny.decoder(latents) - shown).abs().mean() + (tiny.encoder(pictures) - latents).square().mean()
    torch.testing.assert_close(step(tiny, {"pictures": pictures}), expected)
    expected = (tiny.decoder(latents) - shown).abs().mean() + (tiny.encoder(shown) - latents).square().mean()
    torch.testing.assert_close(step(tiny, {"latents": latents}), expected)
    tiny.encoder = None
    torch.testing.assert_close(step(tiny, {"latents": latents}), (tiny.decoder(latents) - shown).abs().mean())


def test_parts_of_a_batch_are_the_batch_and_a_step_has_its_own(place: Path) -> None:
    reader, photos = SetReader(Storage(place / "set"), 3, held_out=2), Folder(place / "photos")
    for batches in (LatentBatches(reader, 4, 5, 1), PictureBatches(photos, 8, 4, 4, 1)):
        whole = batches(2, BatchPart())
        parts = [batches(2, BatchPart(i, 2)) for i in range(2)]
        for name, tensor in whole.items():
            assert torch.equal(torch.cat([part[name] for part in parts]), tensor)
            assert not torch.equal(batches(3, BatchPart())[name], tensor)
            assert tensor.shape[2:] == ((5, 5) if name == "latents" else (32, 32))


def test_a_crop_is_a_part_of_its_latents_and_reaches_every_edge(place: Path) -> None:
    reader = SetReader(Storage(place / "set"), 3)
    batches, seen = LatentBatches(reader, 16, 5, 1), set[tuple[int, int]]()
    for step in range(8):
        whole = reader.read(range(16 * step, 16 * step + 16)).latents.float()
        for latents, cut in zip(whole, batches(step, BatchPart())["latents"], strict=True):
            places = [(y, x) for y in range(2) for x in range(4) if torch.equal(latents[:, y : y + 5, x : x + 5], cut)]
            assert len(places) == 1
            seen.update(places)
    assert seen == {(y, x) for y in range(2) for x in range(4)}


# --- a whole run ---


@pytest.mark.slow
def test_the_loss_falls_and_both_halves_come_nearer_to_the_vae(place: Path, tmp_path: Path) -> None:
    checkpoint = load(place / "kl.safetensors")
    loop = LoopConfig(iterations=40, learning_rate=1e-3, warmup=4, schedule="cosine", ema=0.8)
    config = DecoderConfig(loop, batch_size=2, size=32)
    out = tmp_path / "x_decoder.safetensors"
    made = distill_decoder(checkpoint, config, out, pictures=Folder(place / "photos"), device="cpu")
    assert sum(made.losses[-5:]) < 0.6 * sum(made.losses[:5])
    assert [latents.shape for latents in made.held_out] == [(1, 4, 4, 4)]
    (latents,), shown = made.held_out, made.full.decode(made.held_out[0])
    with torch.no_grad():
        made_of, made_before = (tiny(latents, shown) for tiny in (made.tiny, Tiny(taesd_config(checkpoint), 0, True)))
    for trained, untrained, wanted in zip(made_of, made_before, (shown, latents), strict=True):
        assert (trained - wanted).square().mean() < 0.5 * (untrained - wanted).square().mean()


@pytest.mark.slow
def test_the_command_leaves_two_files_sheets_and_figures(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = place / "taesd_decoder.safetensors"
    assert main(distilling(place, out)) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said[:-2]] == [
        "psnr",
        "lpips",
        "latents",
        "milliseconds",
        "milliseconds_full",
    ]
    assert "3 latents that were held out" in said[0]  # two of the set, one of the pictures
    assert said[-2:] == [str(place / "taesd_encoder.safetensors"), str(out)]
    work = place / "taesd_decoder.training"
    assert len((work / "loss.csv").read_text().splitlines()) == 5
    assert Image.open(work / "loss.png").size == (768, 512)
    # Two latents of the set, of 64 x 48 pixels, in two rows.
    sheets = {path.name: Image.open(path).size for path in (work / "samples").iterdir()}
    assert sheets == dict.fromkeys(("000002.png", "000004.png"), (140, 108))
    with safe_open(out, "pt") as file:
        assert '"stage": "distill-decoder"' in file.metadata()["instaflow.training"]


@pytest.mark.slow
def test_a_decoder_alone_in_half_precision(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = place / "alone_decoder.safetensors"
    assert main([*distilling(place, out), "--decoder-only", "--save-dtype", "fp16", "--loss", "l2"]) == 0
    assert "latents:" not in capsys.readouterr().out
    assert not (place / "alone_encoder.safetensors").exists()
    assert {tensor.dtype for tensor in load_file(out).values()} == {torch.float16}


@pytest.mark.slow
def test_killed_runs_end_as_undisturbed_ones(place: Path, tmp_path: Path) -> None:
    assert main(distilling(place, tmp_path / "whole" / "x_decoder.safetensors")) == 0
    command = distilling(place, tmp_path / "killed" / "x_decoder.safetensors", "--resume")
    losses = tmp_path / "killed" / "x_decoder.training" / "loss.csv"
    for step in (1, 3):
        process = start("-m", "instaflow_core", *command)
        wait_for(lambda step=step: losses.exists() and len(losses.read_text().splitlines()) > step, process, 900)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start("-m", "instaflow_core", *command).wait() == 0
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_give_what_one_gives(place: Path, tmp_path: Path) -> None:
    one, two = (tmp_path / f"{name}_decoder.safetensors" for name in ("one", "two"))
    # AdamW's first steps are as long as the rate, also where a gradient is rounding alone: a small one.
    assert main(distilling(place, one, "--lr", "1e-4")) == 0
    assert start_two("-m", "instaflow_core", *distilling(place, two, "--lr", "1e-4")).wait() == 0
    tables = [
        (tmp_path / f"{name}_decoder.training" / "loss.csv").read_text().splitlines()[1:] for name in ("one", "two")
    ]
    losses = [torch.tensor([float(line.split(",")[1]) for line in table]) for table in tables]
    torch.testing.assert_close(*losses)
    for half in ("encoder", "decoder"):
        alone, together = (load_file(tmp_path / f"{name}_{half}.safetensors") for name in ("one", "two"))
        for name, tensor in alone.items():
            torch.testing.assert_close(together[name], tensor, atol=2e-4, rtol=1e-3)


# --- what is refused ---


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--out", "decoder.safetensors"), "called decoder.safetensors. Expected NAME_decoder.safetensors"),
        (("--size", "30"), "The size is 30 pixels. Give a multiple of 8."),
        (("--iterations", "0"), "iterations is 0. Give 1 or more."),
        (("--images", "nowhere"), "There are no pictures in nowhere"),
        (("--triplets", "nowhere"), "holds no set.json"),
        (("--batch-size", "3", "--accumulate", "2"), "a multiple of 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_told_in_a_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], words: str
) -> None:
    assert words in refused(capsys, distilling(place, tmp_path / "x_decoder.safetensors", *more))
    assert not list(tmp_path.glob("*.safetensors"))


def test_with_nothing_to_learn_from_it_says_what_to_give(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["distill-decoder", "--checkpoint", str(place / "kl.safetensors"), "--iterations", "1"]
    said = refused(capsys, [*command, "--out", str(place / "none_decoder.safetensors")])
    assert "Give a set of triplets, a folder of pictures, or both." in said


def test_an_old_result_is_not_replaced(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("x_encoder", "x_decoder"):
        there = tmp_path / name / f"{name}.safetensors"
        there.parent.mkdir()
        there.write_bytes(b"mine")
        command = distilling(place, there.with_name("x_decoder.safetensors"))
        assert "is there already" in refused(capsys, command)
        assert "no run for it" in refused(capsys, [*command, "--resume"])
        assert there.read_bytes() == b"mine"


@pytest.mark.parametrize("change", ["scale", "channels", "no VAE", "loss"])
def test_a_vae_that_does_not_fit_is_refused(place: Path, tmp_path: Path, change: str) -> None:
    checkpoint: Any = load(place / "kl.safetensors")
    config = DecoderConfig(LoopConfig(1, warmup=0))
    if change == "scale":
        checkpoint = replace(checkpoint, vae_config=checkpoint.vae_config | {"block_out_channels": [32, 32, 64]})
        words = "The VAE makes 4 pixels of a latent"
    elif change == "channels":
        checkpoint = replace(checkpoint, vae_config=checkpoint.vae_config | {"latent_channels": 16})
        words = "the VAE has 16 channels"
    elif change == "no VAE":
        checkpoint, words = replace(checkpoint, vae=None, vae_config=None), "the VAE is needed"
    else:
        config, words = DecoderConfig(LoopConfig(1), loss="ssim"), "Unknown loss 'ssim'"
    with pytest.raises(ValueError, match=words):
        distill_decoder(checkpoint, config, tmp_path / "x_decoder.safetensors", Storage(place / "set"), device="cpu")
