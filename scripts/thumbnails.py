"""Make the thumbnails of the workflows from real runs of them.

    python3 scripts/devhost.py scripts/thumbnails.py

A workflow's pictures stand side by side in its thumbnail. One whose checkpoint is not there gets a card with its name.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

from comfy_client import ComfyClient, PromptFailed, PromptRefused
from comfy_server import ComfyServer
from devhost import HOST_FOLDER, ROOT, located
from PIL import Image, ImageDraw, ImageFont
from workflow import to_prompt

SIZE = 512  # the browser shows them as squares
GAP = 8
BACKGROUND, TEXT = (28, 28, 32), (235, 235, 235)


def main() -> None:
    """Write workflows/NAME.jpg for every workflows/NAME.json."""
    with ComfyServer(located(), HOST_FOLDER / "base") as server:
        client = ComfyClient(server.url)
        for path in sorted((ROOT / "workflows").glob("*.json")):
            graph = to_prompt(json.loads(path.read_text(encoding="utf-8")), client.object_info())
            try:
                thumbnail = side_by_side([Image.open(io.BytesIO(png)) for png in client.run_prompt(graph).images])
            except (PromptRefused, PromptFailed) as error:
                print(f"{path.stem}: {error}")
                thumbnail = card(path.stem)
            save(thumbnail, path.with_suffix(".jpg"))


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    """Square pictures in a row, enlarged without smoothing, in the middle of a square."""
    side = (SIZE - GAP * (len(pictures) - 1)) // len(pictures)
    square = Image.new("RGB", (SIZE, SIZE), BACKGROUND)
    for i, picture in enumerate(pictures):
        sized = picture.convert("RGB").resize((side, side), Image.Resampling.NEAREST)
        square.paste(sized, (i * (side + GAP), (SIZE - side) // 2))
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
