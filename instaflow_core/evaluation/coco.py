"""MS COCO as papers on text to image use it: one caption of each picture, so many pictures, a size."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Preset:
    """A published recipe.

    count: pictures drawn; all of the set's are compared with.
    side: pixels that both are reduced and cut to for fid, kid and cmmd.
    images, captions: what the set's folder and file of captions are called, and where they come from.
    """

    count: int
    side: int
    images: str
    captions: str


_PLACE = "images.cocodataset.org"
PRESETS = {
    "coco2017-5k": Preset(
        5000,
        512,
        f"val2017 ({_PLACE}/zips/val2017.zip)",
        f"captions_val2017.json ({_PLACE}/annotations/annotations_trainval2017.zip)",
    ),
    "coco2014-30k": Preset(
        30000,
        256,
        f"val2014 ({_PLACE}/zips/val2014.zip)",
        f"captions_val2014.json ({_PLACE}/annotations/annotations_trainval2014.zip)",
    ),
}
"""The paper's two: 5,000 captions of 2017's validation set (section 4.2), and 30,000 of 2014's."""
CLIP = "clip:laion/CLIP-ViT-g-14-laion2B-s12B-b42K"
"""The CLIP of the paper's scores, ViT-g/14."""


def coco_captions(path: Path, count: int, seed: int = 0) -> list[str]:
    """The first caption of each of `count` pictures of an annotation file, in the order of the pictures' ids; of fewer
    than there are, a random choice. Papers choose theirs by lists of their own, so figures differ by chance.

    Raises:
        ValueError: the file is not COCO's captions, or has not so many pictures.
    """
    try:
        annotations = json.loads(path.read_text(encoding="utf-8"))["annotations"]
        rows = sorted((int(row["image_id"]), int(row["id"]), str(row["caption"])) for row in annotations)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold COCO's captions ({error!r}). Give its captions_val….json.") from error
    first = {image: caption.strip() for image, _, caption in reversed(rows)}
    images = sorted(first)
    if len(images) < count:
        raise ValueError(f"{path} has captions of {len(images)} pictures, and {count} are to be drawn. Give the whole.")
    if len(images) > count:
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count].tolist()
        images = [images[i] for i in sorted(chosen)]
    return [first[image] for image in images]
