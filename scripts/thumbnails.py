"""Make the thumbnails of the workflows from real runs of them.

    python3 scripts/devhost.py scripts/thumbnails.py [NAME...]

A workflow's pictures stand side by side in its thumbnail, more than three of them in rows, wide ones one above another;
videos are left out. One whose checkpoint is not there gets a card with its name.
"""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

from comfy_client import ComfyClient, PromptFailed, PromptRefused
from comfy_server import ComfyServer
from devhost import HOST_FOLDER, ROOT, located
from PIL import Image, ImageDraw, ImageFont
from workflow import to_prompt

SIZE = 512  # the browser shows them as squares
GAP = 8
WIDE = 1.25  # width over height from which two or three pictures are larger one above another
TIMEOUT = 3600  # seconds; workflow 09 trains
BACKGROUND, TEXT = (28, 28, 32), (235, 235, 235)


def main() -> None:
    """Write workflows/NAME.jpg for the named workflows/NAME.json, or for every one."""
    paths = [ROOT / "workflows" / f"{name}.json" for name in sys.argv[1:]]
    with ComfyServer(located(), HOST_FOLDER / "base") as server:
        client = ComfyClient(server.url)
        for path in paths or sorted((ROOT / "workflows").glob("*.json")):
            graph = to_prompt(json.loads(path.read_text(encoding="utf-8")), client.object_info())
            try:
                pictures = [Image.open(io.BytesIO(image)) for image in client.run_prompt(graph, TIMEOUT).images]
                thumbnail = side_by_side([p for p in pictures if not getattr(p, "is_animated", False)])
            except (PromptRefused, PromptFailed) as error:
                print(f"{path.stem}: {error}")
                thumbnail = card(path.stem)
            save(thumbnail, path.with_suffix(".jpg"))


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Pictures in equal cells of a square, as large as they fit without being stretched; small ones not smoothed."""
    if len(pictures) > 3:
        columns = math.ceil(math.sqrt(len(pictures)))
    else:
        columns = 1 if all(picture.width > WIDE * picture.height for picture in pictures) else len(pictures)
    rows = math.ceil(len(pictures) / columns)
    width = (SIZE - GAP * (columns - 1)) // columns
    height = min(width, (SIZE - GAP * (rows - 1)) // rows)
    top = (SIZE - rows * height - (rows - 1) * GAP) // 2
    square = Image.new("RGB", (SIZE, SIZE), BACKGROUND)
    for i, picture in enumerate(pictures):
        scale = min(width / picture.width, height / picture.height)
        how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        sized = picture.convert("RGB").resize((round(picture.width * scale), round(picture.height * scale)), how)
        left, above = i % columns * (width + GAP), top + i // columns * (height + GAP)
        square.paste(sized, (left + (width - sized.width) // 2, above + (height - sized.height) // 2))
    return square


def card(name: str) -> Image.Image:
    """The workflow's name on a plain card."""
    image = Image.new("RGB", (SIZE, SIZE), BACKGROUND)
    _, *words = name.split("_")
    text, font = "\n".join(words), ImageFont.load_default(60)
    ImageDraw.Draw(image).multiline_text((SIZE / 2, SIZE / 2), text, TEXT, font, anchor="mm", align="center")
    return image


def save(image: Image.Image, path: Path) -> None:
    """Write a JPEG under a temporary name, then rename it."""
    part = path.with_suffix(".jpg.part")
    image.save(part, "JPEG", quality=88)
    part.replace(path)
    print(path)


if __name__ == "__main__":
    main()
