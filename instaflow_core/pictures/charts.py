"""Line charts, by matplotlib's object interface: no pyplot, and no setting that outlives a chart."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .style import GRID, INK, LINES, PAPER, Color

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = tuple[Sequence[float], Sequence[float]]
"""Abscissae and ordinates of one line, equally many."""

_Numbers = NDArray[np.float64]
_FAINT = 0.35
"""The opacity of a line that lies under its smoothed one."""


def draw_curve(
    series: Mapping[str, Points],
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    size: tuple[int, int] = (768, 512),
    y_from: float | None = None,
    log_y: bool = False,
    smooth: bool = False,
) -> Image.Image:
    """Lines over common axes; for more than one line, a legend. The same input gives the same picture.

    Args:
        series: a name for each line and its points, in the order they are joined. A line breaks where a point is not
            finite; a point alone between two gaps is a dot.
        size: width and height in pixels; letters grow with it.
        y_from: a value the vertical axis reaches down to at least; None lets it begin near the lowest point.
        log_y: a logarithmic vertical axis, unless a value (or y_from) is not positive: then it is linear.
        smooth: draw each line faint and its `smoothed` one over it.

    Raises:
        ValueError: there is no finite point to draw, or a line's abscissae and ordinates differ in number.
    """
    with _own_settings():
        return _drawn(_figure(series, title, x_label, y_label, size, y_from, log_y, smooth))


def _canvas(size: tuple[int, int]) -> "Figure":
    """An empty chart of so many pixels; letters grow with it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dpi = 100 * min(size[0] / 768, size[1] / 512)
    # A hair more than the size: the canvas cuts a fraction of a pixel off.
    figure = Figure(figsize=((size[0] + 1e-6) / dpi, (size[1] + 1e-6) / dpi), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _drawn(figure: "Figure") -> Image.Image:
    figure.canvas.draw()
    pixels: Any = figure.canvas
    return Image.fromarray(np.array(pixels.buffer_rgba())[..., :3])


def _figure(
    series: Mapping[str, Points],
    title: str,
    x_label: str,
    y_label: str,
    size: tuple[int, int],
    y_from: float | None,
    log_y: bool,
    smooth: bool,
) -> "Figure":
    """The chart of `draw_curve`, not drawn yet."""
    lines = {name: _numbers(name, points) for name, points in series.items()}
    values = np.concatenate([y[np.isfinite(y)] for _, y in lines.values()]) if lines else np.empty(0)
    if not len(values):
        raise ValueError("There is nothing to draw: no line has a finite point. Give at least one.")
    figure = _canvas(size)
    axes = figure.add_subplot()
    for i, (name, (x, y)) in enumerate(lines.items()):
        color, short = _hex(LINES[i % len(LINES)]), _thinned(x, y, 2 * size[0])
        axes.plot(*short, color=color, label=name, alpha=_FAINT if smooth else 1, linewidth=0.8 if smooth else 2)
        axes.plot(*_alone(x, y), ".", color=color)
        if smooth:
            axes.plot(*_thinned(x, smoothed(y), 2 * size[0]), color=color, linewidth=2, zorder=3)
    if log_y and min(values.min(), values.min() if y_from is None else y_from) > 0:
        axes.set_yscale("log")
    if y_from is not None:
        axes.set_ylim(bottom=min(y_from, values.min()))
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    words = [axes.title, axes.xaxis.label, axes.yaxis.label]
    if len(lines) > 1:
        legend = axes.legend(axes.get_lines()[:: 3 if smooth else 2], list(lines))
        for line in legend.get_lines():
            line.set(alpha=1, linewidth=2)
        words += legend.get_texts()
    for text in words:
        text.set_parse_math(False)  # a dollar in the name of a run begins no formula
    return figure


Interval = tuple[float, float, float]
"""A value, and the lowest and the highest it may be."""


def draw_intervals(figures: Mapping[str, Interval], title: str = "", size: tuple[int, int] = (768, 512)) -> Image.Image:
    """Each value as a dot on its interval, each on an axis of its own: their units differ.

    Raises:
        ValueError: there are none, or one is not finite.
    """
    if not figures or not np.isfinite(list(figures.values())).all():
        raise ValueError(f"There is nothing to draw: the figures are {dict(figures)}. Give finite ones.")
    with _own_settings():
        figure = _canvas(size)
        figure.suptitle(title, parse_math=False)
        rows = np.atleast_1d(figure.subplots(len(figures)))
        for i, (axes, (name, (value, low, high))) in enumerate(zip(rows, figures.items(), strict=True)):
            color = _hex(LINES[i % len(LINES)])
            axes.plot([low, high], [0, 0], color=color, linewidth=3)
            axes.plot([value], [0], "o", color=color)
            axes.set_yticks([0], [name], parse_math=False)
            axes.margins(x=0.2)
        return _drawn(figure)


def draw_panels(
    series: Mapping[str, Points], title: str = "", x_label: str = "", size: tuple[int, int] = (768, 512)
) -> Image.Image:
    """Each line on axes of its own, in two columns: their units differ.

    Raises:
        ValueError: there are none, or a line's abscissae and ordinates differ in number.
    """
    if not series:
        raise ValueError("There is nothing to draw: there are no lines. Give at least one.")
    with _own_settings():
        figure, rows = _canvas(size), -(-len(series) // 2)
        figure.suptitle(title, parse_math=False)
        for i, (name, points) in enumerate(series.items()):
            axes = figure.add_subplot(rows, min(2, len(series)), i + 1)
            axes.plot(*_numbers(name, points), ".-", color=_hex(LINES[i % len(LINES)]))
            axes.set_title(name, parse_math=False)
            if i + 2 >= len(series):  # the lowest of its column
                axes.set_xlabel(x_label, parse_math=False)
        return _drawn(figure)


def smoothed(values: _Numbers) -> _Numbers:
    """The exponential moving average of all finite values so far, each weighing 1 - 1/n of the next, n a fiftieth of
    their number: m_i = (sum_j<=i b^(i-j) v_j) / (sum_j<=i b^(i-j)), b = 1 - 1/n. So it starts at the first value
    and not at 0. Values that are not finite stay as they are and count for nothing.
    """
    decay = 1 - 1 / max(1, len(values) // 50)
    result, total, weight = values.copy(), 0.0, 0.0
    for i in np.flatnonzero(np.isfinite(values)):
        total, weight = decay * total + float(values[i]), decay * weight + 1
        result[i] = total / weight
    return result


def _numbers(name: str, points: Points) -> tuple[_Numbers, _Numbers]:
    """A line's abscissae and ordinates; the ordinate of a point that is not finite is NaN."""
    x, y = (np.asarray(values, dtype=np.float64) for values in points)
    if len(x) != len(y):
        raise ValueError(f"The line {name!r} has {len(x)} abscissae and {len(y)} ordinates. Give one for each.")
    return x, np.where(np.isfinite(x + y), y, np.nan)


def _thinned(x: _Numbers, y: _Numbers, most: int) -> tuple[_Numbers, _Numbers]:
    """The line with about `most` points or fewer: of each stretch its lowest and its highest, in their order.

    Where a stretch is narrower than a pixel they cover what all of its points would. A stretch with a gap keeps one.
    """
    stretch = -(-2 * len(y) // most)
    if stretch <= 2:
        return x, y
    kept = []
    for start in range(0, len(y), stretch):
        part = y[start : start + stretch]
        gap = np.isnan(part)
        extremes = {int(part.argmin()), int(part.argmax())} if not gap.any() else {int(gap.argmax())}
        if gap.any() and not gap.all():
            extremes |= {int(np.nanargmin(part)), int(np.nanargmax(part))}
        kept += [start + i for i in sorted(extremes)]
    return x[kept], y[kept]


def _alone(x: _Numbers, y: _Numbers) -> tuple[_Numbers, _Numbers]:
    """The points that no line reaches: those with a gap, or the line's end, on both sides."""
    drawn = np.pad(~np.isnan(y), 1)
    alone = drawn[1:-1] & ~drawn[:-2] & ~drawn[2:]
    return x[alone], y[alone]


def _hex(color: Color) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


@contextmanager
def _own_settings() -> Iterator[None]:
    """matplotlib's defaults and our colours, whatever a user's file or another extension has set, and theirs again."""
    import matplotlib.style

    ink, paper, grid = _hex(INK), _hex(PAPER), _hex(GRID)
    settings = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "legend.facecolor"), paper),
        **{"axes.grid": True, "axes.axisbelow": True, "grid.color": grid, "legend.edgecolor": grid},
        **{"axes.spines.top": False, "axes.spines.right": False},
    }
    with matplotlib.style.context(["default", settings]):
        yield
