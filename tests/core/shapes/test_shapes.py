"""The built-in domain: its language, its pictures, and a judge that must be right about both."""

import random

import numpy as np
import pytest
from PIL import Image, ImageFilter

from instaflow_core.shapes.captions import COLORS, SHAPES, Caption, all_captions, parse, sample_captions
from instaflow_core.shapes.judge import judge, look
from instaflow_core.shapes.making.intended import nearest_scene
from instaflow_core.shapes.render import Scene, render, sample_scene


def test_every_caption_reads_back():
    captions = all_captions(held_out=False) + all_captions(held_out=True)
    assert len(captions) == len({str(c) for c in captions}) == 8 * 8 * 7 * 3 * 6
    assert all(parse(str(c)) == c for c in captions)


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("a yellow star on a purple background", Caption("star", "yellow", "purple")),
        ("an orange ring on a blue background", Caption("ring", "orange", "blue")),
        (
            "a small red heart at the top left on an orange background",
            Caption("heart", "red", "orange", "small", "at the top left"),
        ),
        (
            "a large black cross in the center on a white background",
            Caption("cross", "black", "white", "large", "in the center"),
        ),
    ],
)
def test_captions_are_written_as_people_write_them(text: str, caption: Caption):
    assert parse(text) == caption
    assert str(caption) == text


@pytest.mark.parametrize("text", ["a cat", "a red star on a red background", "a red star", ""])
def test_other_words_are_an_error(text: str):
    with pytest.raises(ValueError, match="not a caption of the shapes domain"):
        parse(text)


def test_the_held_out_part_is_whole_combinations():
    held = {(c.shape, c.color, c.background) for c in all_captions(held_out=True)}
    seen = {(c.shape, c.color, c.background) for c in all_captions(held_out=False)}
    assert not held & seen
    assert Caption("star", "yellow", "purple").held_out == (("star", "yellow", "purple") in held)
    assert len(held) == 40
    assert {h[0] for h in held} == set(SHAPES)


def test_samples_repeat_for_a_seed():
    assert sample_captions(20, 1) == sample_captions(20, 1) != sample_captions(20, 2)


def picture(caption: Caption, seed: int = 0, size: int = 64) -> Image.Image:
    return render(sample_scene(caption, random.Random(seed)), size)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.slow
def test_the_judge_accepts_the_truth(size: int):
    captions = sample_captions(400, 1) + sample_captions(200, 2, held_out=True)
    wrong = [str(c) for i, c in enumerate(captions) if not judge(picture(c, i, size), c)]
    assert wrong == []


def test_the_judge_accepts_the_truth_with_a_generators_flaws():
    rng = np.random.default_rng(0)
    captions = sample_captions(200, 3)
    right = 0
    for i, caption in enumerate(captions):
        soft = np.asarray(picture(caption, i).filter(ImageFilter.GaussianBlur(0.6)), dtype=float)
        noisy = Image.fromarray(np.clip(soft + rng.normal(0, 8, soft.shape), 0, 255).astype(np.uint8))
        right += judge(noisy, caption)
    assert right >= 190


@pytest.mark.slow
def test_the_judge_rejects_every_wrong_attribute():
    rng = random.Random(5)
    for i, caption in enumerate(sample_captions(300, 4)):
        shown = picture(caption, i)
        others = {
            "shape": rng.choice([s for s in SHAPES if s != caption.shape]),
            "color": rng.choice([c for c in COLORS if c not in (caption.color, caption.background)]),
            "background": rng.choice([c for c in COLORS if c not in (caption.color, caption.background)]),
        }
        for name, value in others.items():
            asked = {**caption.__dict__, name: value}
            assert not judge(shown, Caption(**asked)), f"{caption} taken for {name} {value}"


def test_the_judge_rejects_the_wrong_size_and_place():
    shown = picture(Caption("star", "red", "white", "small", "at the top left"))
    assert not judge(shown, Caption("star", "red", "white", "large", "at the top left"))
    for place in ("at the top right", "at the bottom left", "at the bottom right", "in the center"):
        assert not judge(shown, Caption("star", "red", "white", "small", place))


def test_the_judge_rejects_swapped_colours():
    shown = picture(Caption("square", "red", "white", "large"))
    assert not judge(shown, Caption("square", "white", "red", "large"))


@pytest.mark.parametrize("kind", ["flat", "noise", "two shapes", "half"])
def test_the_judge_rejects_what_is_no_such_picture(kind: str):
    caption = Caption("circle", "red", "blue")
    pixels = np.full((64, 64, 3), COLORS["blue"], dtype=np.uint8)
    if kind == "noise":
        pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    elif kind == "two shapes":
        one = render(Scene(caption, 0.35, 0.2, 0.2))
        two = render(Scene(caption, 0.35, 0.75, 0.75))
        pixels = np.where((np.asarray(one) == COLORS["blue"]).all(-1, keepdims=True), np.asarray(two), np.asarray(one))
    elif kind == "half":
        pixels[:, 32:] = COLORS["red"]
    assert not judge(Image.fromarray(pixels), caption)


def test_what_the_judge_saw_is_where_it_was_drawn():
    seen = look(render(Scene(Caption("diamond", "green", "black"), 0.5, 0.4, 0.6), 128))
    assert seen is not None
    assert (seen.shape, seen.color, seen.background) == ("diamond", "green", "black")
    assert (seen.extent, seen.x, seen.y) == pytest.approx((0.5, 0.4, 0.6), abs=0.02)


def test_the_scene_that_was_meant_is_found_again():
    for i, caption in enumerate(sample_captions(40, 6)):
        meant = sample_scene(caption, random.Random(i))
        drawn = render(meant).filter(ImageFilter.GaussianBlur(1.2))
        fitted = nearest_scene(drawn, caption)
        assert fitted is not None
        scene, error = fitted
        assert (scene.extent, scene.x, scene.y) == pytest.approx((meant.extent, meant.x, meant.y), abs=0.02), caption
        assert error < 0.12


def test_a_picture_in_other_colours_meant_something_else():
    star = picture(Caption("star", "red", "white"))
    assert nearest_scene(star, Caption("star", "red", "black")) is None
    captions = [Caption(shape, color, "white") for shape, color in (("star", "red"), ("ring", "red"), ("star", "blue"))]
    fitted = [nearest_scene(star, caption) for caption in captions]
    right, ring, blue = (found[1] for found in fitted if found)
    assert right < 0.02 < 0.1 < min(ring, blue)


def test_a_ring_of_two_colours_meant_that_of_its_caption():
    purple, blue = (np.array(render(Scene(Caption("ring", c, "white"), 0.4, 0.5, 0.5), 64)) for c in ("purple", "blue"))
    purple[:40] = blue[:40]
    drawn = Image.fromarray(purple)
    seen = look(drawn)
    assert seen is not None
    assert seen.color == "blue"
    fitted = nearest_scene(drawn, Caption("ring", "purple", "white"))
    assert fitted is not None
    scene, error = fitted
    assert (scene.extent, scene.x, scene.y) == pytest.approx((0.4, 0.5, 0.5), abs=0.02)
    assert error < 0.12
