"""What `--images` may be: a folder of pictures, or a dataset."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instaflow_core.evaluation.pictures import reference_pictures


def grey(level: int) -> Image.Image:
    return Image.fromarray(np.full((8, 8, 3), level, np.uint8))


@pytest.mark.slow
def test_a_dataset_that_was_downloaded_to_a_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    place = tmp_path / "photos"
    place.mkdir()
    rows = {"caption": ["a", "b", "c"], "image": [grey(level) for level in (10, 20, 30)]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).to_parquet(place / "train-00000.parquet")
    pictures = reference_pictures(str(place))
    assert len(pictures) == 3 and pictures.words.endswith("photos (3 pictures)")
    assert [picture.getpixel((0, 0)) for picture in pictures.read([2, 0])] == [(30, 30, 30), (10, 10, 10)]


@pytest.mark.slow
def test_a_dataset_without_pictures_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    place = tmp_path / "words"
    place.mkdir()
    datasets.Dataset.from_dict({"caption": ["a", "b"]}).to_parquet(place / "train-00000.parquet")
    with pytest.raises(ValueError, match="has the columns caption; none of them is an image"):
        reference_pictures(str(place))


def test_a_folder_is_read_by_name(tmp_path: Path) -> None:
    for level in (30, 10, 20):
        (tmp_path / f"{level // 20}").mkdir(exist_ok=True)
        grey(level).save(tmp_path / f"{level // 20}" / f"{level}.png")
    pictures = reference_pictures(str(tmp_path))
    assert [picture.getpixel((0, 0))[0] for picture in pictures.read(range(len(pictures)))] == [10, 20, 30]


def test_a_folder_without_pictures_and_a_broken_picture_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"There are no pictures in {tmp_path}"):
        reference_pictures(str(tmp_path))
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"no\.png is not a picture that can be read"):
        reference_pictures(str(tmp_path)).read([0])
