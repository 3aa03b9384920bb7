"""Labelled rows, and pictures as tensors and back."""

import numpy as np
import torch
from PIL import Image

from instaflow_core.pictures.images import image_pictures, image_tensor
from instaflow_core.pictures.labels import labelled_row


def test_there_and_back():
    pixels = torch.randint(0, 256, (2, 5, 7, 3), generator=torch.Generator().manual_seed(0)).float() / 255
    assert torch.equal(image_tensor(image_pictures(pixels)), pixels)


def test_values_outside_are_clipped():
    pixels = torch.tensor([-1.0, 0.5, 2.0]).expand(1, 2, 2, 3)
    assert image_pictures(pixels)[0].getpixel((0, 0)) == (0, 128, 255)


def test_a_row_keeps_the_pictures_and_adds_labels():
    red, blue = (Image.new("RGB", (64, 64), color) for color in ("red", "blue"))
    row = labelled_row(
        [red, blue], ["InstaFlow, 1 step\n0.09 s", "Stable Diffusion, 25 steps of dpmpp_2m_sde_gpu\n0.88 s"]
    )
    pixels = np.asarray(row)
    assert (pixels == (255, 0, 0)).all(-1).sum() == (pixels == (0, 0, 255)).all(-1).sum() == 384 * 384
    ys, xs = np.nonzero((pixels > 200).all(-1))  # the letters
    assert ys.min() > 384
    assert xs.min() > 0
    assert xs.max() < row.width - 1
    assert (xs < row.width // 2).any()


def test_large_pictures_keep_their_size():
    row = labelled_row([Image.new("RGB", (512, 512))] * 2, ["a", "b"])
    assert 1024 < row.width < 1100
    assert 512 < row.height < 650
