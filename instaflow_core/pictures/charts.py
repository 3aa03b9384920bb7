"""A line chart drawn with Pillow alone: hosts have no plotting library."""

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

Points = tuple[Sequence[float], Sequence[float]]
"""Abscissae and ordinates of one line, equally many."""

_COLORS = ((31, 119, 180), (214, 96, 20), (44, 140, 60), (148, 60, 160), (120, 90, 70))
_INK, _GRID, _PAPER = (40, 40, 40), (222, 222, 222), (255, 255, 255)


def draw_curve(
    series: Mapping[str, Points],
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    size: tuple[int, int] = (768, 512),
    y_from: float | None = None,
) -> Image.Image:
    """Lines over common axes, with ticks at round numbers and, for more than one line, a legend.

    Args:
        series: a name for each line and its points. A line breaks where an ordinate is not finite.
        size: width and height in pixels; letters grow with it.
        y_from: a value the vertical axis reaches down to at least; None lets it begin near the lowest point.

    Raises:
        ValueError: there is no finite point to draw, or a line's abscissae and ordinates differ in number.
    """
    lines = [(name, *_numbers(name, points)) for name, points in series.items()]
    finite = [(x, y) for _, xs, ys in lines for x, y in zip(xs, ys, strict=True) if math.isfinite(x + y)]
    if not finite:
        raise ValueError("There is nothing to draw: no line has a finite point. Give at least one.")
    all_x, all_y = zip(*finite, strict=True)
    lowest = min(all_y) if y_from is None else min(y_from, *all_y)
    x_ticks, y_ticks = _ticks(min(all_x), max(all_x)), _ticks(lowest, max(all_y))
    picture = Image.new("RGB", size, _PAPER)
    frame = _Frame(picture, x_ticks, y_ticks)
    frame.draw_axes(title, x_label, y_label)
    for i, (_, xs, ys) in enumerate(lines):
        frame.draw_line(xs, ys, _COLORS[i % len(_COLORS)])
    if len(lines) > 1:
        frame.draw_legend([name for name, _, _ in lines])
    return picture


def _numbers(name: str, points: Points) -> tuple[list[float], list[float]]:
    xs, ys = ([float(value) for value in values] for values in points)
    if len(xs) != len(ys):
        raise ValueError(f"The line {name!r} has {len(xs)} abscissae and {len(ys)} ordinates. Give one for each.")
    return xs, ys


def _ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from at or below `low` to at or above `high`."""
    if high == low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


class _Frame:
    """The axes: from values to pixels."""

    def __init__(self, picture: Image.Image, x_ticks: list[float], y_ticks: list[float]) -> None:
        width, height = picture.size
        self.picture, self.draw = picture, ImageDraw.Draw(picture)
        self.x_ticks, self.y_ticks = x_ticks, y_ticks
        self.em = max(10, min(width, height) // 28)
        self.font = ImageFont.load_default(self.em)
        widest = max(self.font.getlength(f"{tick:.4g}") for tick in y_ticks)
        self.left, self.right = widest + 3 * self.em, width - 1.5 * self.em
        self.top, self.bottom = 3 * self.em, height - 4 * self.em

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x_ticks[0]) / (self.x_ticks[-1] - self.x_ticks[0])
        up = (y - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)

    def draw_axes(self, title: str, x_label: str, y_label: str) -> None:
        em, middle = self.em, (self.left + self.right) / 2
        for tick in self.x_ticks:
            x, _ = self.at(tick, self.y_ticks[0])
            self.draw.line([(x, self.top), (x, self.bottom)], _GRID)
            self.draw.text((x, self.bottom + em / 2), f"{tick:.4g}", _INK, self.font, anchor="ma")
        for tick in self.y_ticks:
            _, y = self.at(self.x_ticks[0], tick)
            self.draw.line([(self.left, y), (self.right, y)], _GRID)
            self.draw.text((self.left - em / 2, y), f"{tick:.4g}", _INK, self.font, anchor="rm")
        self.draw.line([(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)], _INK)
        self.draw.text((middle, self.top - em), title, _INK, ImageFont.load_default(int(1.2 * em)), anchor="md")
        self.draw.text((middle, self.bottom + 2 * em), x_label, _INK, self.font, anchor="ma")
        self._draw_upwards(y_label)

    def _draw_upwards(self, text: str) -> None:
        """Text that runs upwards, beside the middle of the vertical axis."""
        length = int(self.font.getlength(text)) + 1
        label = Image.new("RGB", (length, int(1.5 * self.em)), _PAPER)
        ImageDraw.Draw(label).text((0, 0), text, _INK, self.font)
        turned = label.rotate(90, expand=True)
        self.picture.paste(turned, (self.em // 2, int((self.top + self.bottom - length) / 2)))

    def draw_line(self, xs: list[float], ys: list[float], color: tuple[int, int, int]) -> None:
        """Points joined by a line; a lone point between gaps is a dot."""
        run: list[tuple[float, float]] = []
        for x, y in [*zip(xs, ys, strict=True), (math.nan, math.nan)]:
            if math.isfinite(x + y):
                run.append(self.at(x, y))
                continue
            if len(run) == 1:
                self.draw.circle(run[0], self.em / 4, fill=color)
            elif run:
                self.draw.line(run, color, width=max(2, self.em // 6), joint="curve")
            run = []

    def draw_legend(self, names: list[str]) -> None:
        """The lines' names in the upper right corner."""
        for i, name in enumerate(names):
            y = self.top + (i + 0.8) * 1.4 * self.em
            start = self.right - self.font.getlength(name) - 3 * self.em
            color = _COLORS[i % len(_COLORS)]
            self.draw.line([(start, y), (start + 1.5 * self.em, y)], color, width=max(2, self.em // 6))
            self.draw.text((start + 2 * self.em, y), name, _INK, self.font, anchor="lm")
