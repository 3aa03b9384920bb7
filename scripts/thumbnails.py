"""Make the thumbnails of the workflows from real runs of them.

    python3 scripts/devhost.py scripts/thumbnails.py [NAME...]

A workflow's pictures stand side by side in its thumbnail, more than three of them in rows, wide ones one above another;
videos are left out. One that names weights which are not shipped is run on stand-ins, as a corner of it says.
"""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path

from comfy_client import ComfyClient
from comfy_server import ComfyServer
from devhost import HOST_FOLDER, ROOT, located
from PIL import Image, ImageDraw, ImageFont
from workflow import to_prompt

sys.path += [str(ROOT), str(ROOT / "tests" / "support")]

from stand_ins import stand_in

SIZE = 512  # the browser shows them as squares
GAP = 8
LABEL = 26  # pixels, of the words in a corner
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
            graph, words = stand_in(graph, server.base / "models")
            client.object_info()  # the host lists what was written
            result = client.run_prompt(graph, TIMEOUT)
            pictures = [Image.open(io.BytesIO(image)) for image in result.images + result.frames]
            thumbnail = side_by_side([p for p in pictures if not getattr(p, "is_animated", False)])
            if words:
                label(thumbnail, words)
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


def label(image: Image.Image, words: str) -> None:
    """Say in the lower right corner what the picture was made with."""
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(LABEL)
    left, top, right, bottom = draw.textbbox((SIZE - GAP, SIZE - GAP), words, font, anchor="rb")
    draw.rounded_rectangle((left - GAP, top - GAP, right + GAP, bottom + GAP), GAP, BACKGROUND)
    draw.text((SIZE - GAP, SIZE - GAP), words, TEXT, font, anchor="rb")


def save(image: Image.Image, path: Path) -> None:
    """Write a JPEG under a temporary name, then rename it."""
    part = path.with_suffix(".jpg.part")
    image.save(part, "JPEG", quality=82)
    part.replace(path)
    print(path)


if __name__ == "__main__":
    main()
