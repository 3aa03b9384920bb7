"""Pictures side by side with a label under each."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .style import INK, PAPER


def labelled_row(pictures: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    """Pictures of one size side by side with a label (its lines parted by a newline) under each.

    Pictures less than 384 pixels wide are enlarged by a whole number, without smoothing, so that labels have room.
    """
    width, height = pictures[0].size
    scale = -(-384 // width) if width < 384 else 1
    width, height = width * scale, height * scale
    gap = width // 32
    font = _fitting(labels, width)
    line = int(1.35 * font.size)
    band = line * max(len(label.splitlines()) for label in labels) + gap
    row = Image.new("RGB", (len(pictures) * (width + gap) + gap, height + band + 2 * gap), PAPER)
    draw = ImageDraw.Draw(row)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left = gap + i * (width + gap)
        row.paste(picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST), (left, gap))
        for n, text in enumerate(label.splitlines()):
            draw.text((left + width / 2, 2 * gap + height + n * line), text, INK, font, anchor="ma")
    return row


def _fitting(labels: Sequence[str], width: int) -> ImageFont.FreeTypeFont:
    """A font in which every line of the labels is at most `width` wide."""
    size = width // 14
    longest = max(ImageFont.load_default(size).getlength(line) for label in labels for line in label.splitlines())
    font = ImageFont.load_default(int(size * min(1.0, width / longest)))
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
