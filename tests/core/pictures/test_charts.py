"""Charts: what is drawn lies where the numbers say."""

import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instaflow_core.pictures.charts import draw_curve, smoothed
from instaflow_core.pictures.style import INK, LINES, PAPER
from instaflow_core.training.watching import draw_losses

ROOT = Path(__file__).parents[3]


def where(picture, color):
    """The (x, y) pixels of that colour, in order of x."""
    ys, xs = np.nonzero((np.asarray(picture) == color).all(-1))
    order = np.argsort(xs, kind="stable")
    return xs[order], ys[order]


def heights(values, **options):
    """The pixel row in which each value is drawn, each as a line of its own colour across the chart."""
    picture = draw_curve({str(v): ([0, 1], [v, v]) for v in values}, **options)
    rows = []
    for color in LINES[: len(values)]:
        _, ys = where(picture, color)
        rows.append(np.bincount(ys, minlength=picture.height).argmax())
        assert (ys == rows[-1]).sum() > picture.width / 2
    return np.array(rows)


def test_a_rising_line_rises_across_the_picture():
    picture = draw_curve({"loss": ([0, 1, 2], [0.0, 0.5, 1.0])}, "Loss", "step", "loss", size=(600, 400))
    assert picture.size == (600, 400)
    xs, ys = where(picture, LINES[0])
    assert np.ptp(xs) > 400
    assert np.ptp(ys) > 250
    assert np.corrcoef(xs, ys)[0, 1] < -0.999  # pixels count downwards


def test_a_value_is_drawn_at_its_height():
    """Equal differences are equally many pixels; on a logarithmic axis equal ratios are."""
    top, second, low = heights([4.0, 3.0, 1.0])
    assert second - top == pytest.approx((low - top) / 3, abs=1.5)
    top, second, low = heights([1000.0, 100.0, 1.0], log_y=True)
    assert second - top == pytest.approx((low - top) / 3, abs=1.5)


def test_a_logarithmic_axis_is_linear_where_a_value_is_not_positive():
    line = {"loss": ([0, 1, 2], [1.0, 100.0, 0.0])}
    assert draw_curve(line, log_y=True).tobytes() == draw_curve(line).tobytes()
    line = {"loss": ([0, 1, 2], [1.0, 100.0, 10.0])}
    assert draw_curve(line, log_y=True).tobytes() != draw_curve(line).tobytes()
    assert draw_curve(line, log_y=True, y_from=0).tobytes() == draw_curve(line, y_from=0).tobytes()


@pytest.mark.parametrize("size", [(600, 400), (768, 512), (333, 777), (1001, 401)])
def test_a_picture_has_the_size_asked_for(size):
    assert draw_curve({"s": ([0, 1], [0, 1])}, size=size).size == size


def test_a_larger_picture_has_larger_letters():
    def ink(size):
        picture = np.asarray(draw_curve({"s": ([0, 1], [0, 1])}, "Straightness", "t", "s", size=size))
        return (picture == INK).all(-1).sum()

    assert ink((1200, 800)) > 1.8 * ink((600, 400))


def test_two_lines_have_two_colours_and_a_legend():
    lines = {"teacher": ([0, 1], [3, 3]), "flow": ([0, 1], [1, 1])}
    picture = draw_curve(lines)
    assert np.median(where(picture, LINES[0])[1]) < np.median(where(picture, LINES[1])[1])
    other_names = draw_curve({"aaaaaaa": lines["teacher"], "bbbb": lines["flow"]})
    assert np.asarray(picture).tobytes() != np.asarray(other_names).tobytes()
    plain = draw_curve({"teacher": lines["teacher"]})
    assert plain.tobytes() == draw_curve({"aaaaaaa": lines["teacher"]}).tobytes()  # one line needs no legend


def test_a_line_breaks_where_it_is_not_finite():
    picture = draw_curve({"loss": ([0, 1, 2, 3, 4], [1, 1, math.nan, 1, math.inf])}, size=(600, 400))
    xs, _ = where(picture, LINES[0])
    assert np.diff(np.unique(xs)).max() > 100  # the gap from 1 to 3, where a dot stands alone
    assert np.ptp(xs) > 300


def test_an_axis_from_zero_shows_a_small_change_as_small():
    def height(**options):
        return np.ptp(where(draw_curve({"S": ([0, 1], [0.9, 1.0])}, size=(600, 400), **options), LINES[0])[1])

    assert height(y_from=0) < 60
    assert height() > 200


def test_lines_and_letters_stand_out_from_the_paper():
    def luminance(color):
        parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    for color in (INK, *LINES):
        assert (luminance(color) + 0.05) / (luminance(PAPER) + 0.05) > 7
    assert draw_curve({"s": ([0, 1], [0, 1])}).getpixel((0, 0)) == PAPER


# --- smoothing ---


def test_the_smoothed_line_is_a_weighted_mean_of_what_came_before():
    values = np.random.default_rng(0).normal(size=200)
    values[[3, 50]] = math.nan, math.inf
    decay, found = 1 - 1 / 4, smoothed(values)
    for i in (0, 1, 7, 199):
        before = [j for j in range(i + 1) if math.isfinite(values[j])]
        weights = [decay ** (len(before) - 1 - n) for n in range(len(before))]
        assert found[i] == pytest.approx(np.average(values[before], weights=weights))
    assert math.isnan(found[3])


def test_smoothing_draws_the_raw_line_faint_and_the_mean_over_it():
    x, y = np.arange(1000), 1 + 0.5 * np.random.default_rng(0).choice([-1, 1], 1000)
    picture = draw_curve({"loss": (x, y)}, smooth=True)
    strong = where(picture, LINES[0])[1]
    assert np.ptp(strong[-200:]) < 60
    faint = (np.asarray(picture).astype(int) - PAPER).sum(-1)
    assert (faint[:, 300:500] > 20).sum() > 10_000


def test_losses_are_drawn_on_a_logarithmic_axis():
    """A loss that falls by the same factor each time is a straight line."""
    xs, ys = where(draw_losses([0.5**i for i in range(20)], "reflow"), LINES[0])
    assert np.corrcoef(xs, ys)[0, 1] > 0.999


def test_a_long_run_is_drawn_soon_and_no_peak_is_lost():
    values = np.exp(np.random.default_rng(0).normal(0, 0.1, 100_000))
    draw_curve({"loss": ([0, 1], [0, 1])})  # what is loaded once
    start = time.perf_counter()
    without = draw_losses(values.tolist(), "reflow")
    assert time.perf_counter() - start < 5
    values[54_321] = 1000.0
    assert np.asarray(draw_losses(values.tolist(), "reflow")).tobytes() != np.asarray(without).tobytes()
    values[54_321] = 1.0
    xs, ys = where(draw_curve({"loss": (np.arange(100_000), np.where(np.arange(100_000) == 54_321, 9, 1))}), LINES[0])
    assert np.ptp(ys) > 250
    assert (xs[ys.argmin()] - xs.min()) / np.ptp(xs) == pytest.approx(0.54321, abs=0.005)


# --- nothing outside is changed or needed ---


def test_the_same_input_gives_the_same_picture_whatever_others_have_set():
    import matplotlib as mpl

    line = {"loss": ([0, 1, 2], [1.0, 3.0, 2.0])}
    before, kept = draw_curve(line, "a"), dict(mpl.rcParams)
    assert draw_curve(line, "a").tobytes() == before.tobytes()
    assert dict(mpl.rcParams) == kept
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 20, "axes.facecolor": "red"}):
        assert draw_curve(line, "a").tobytes() == before.tobytes()


def test_words_are_not_read_as_formulas():
    assert isinstance(draw_curve({"$\\x": ([0, 1], [0, 1]), "b$": ([0, 1], [1, 1])}, "$\\no", "$a$", "$b"), Image.Image)
    assert draw_curve({"s": ([0, 1], [0, 1])}, "$a$").tobytes() != draw_curve({"s": ([0, 1], [0, 1])}, "$b$").tobytes()


@pytest.mark.slow
def test_matplotlib_is_loaded_where_a_chart_is_drawn_and_pyplot_never():
    code = (
        "import sys, instaflow_core.pictures.charts as charts, instaflow_core.training.watching as watching\n"
        "assert 'matplotlib' not in sys.modules, 'imported with the module'\n"
        "watching.draw_losses([3.0, 2.0, 1.0], 'reflow')\n"
        "assert 'matplotlib' in sys.modules\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_curve({"loss": ([1, 2], [math.nan, math.inf])})
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_curve({})


def test_a_line_with_a_number_missing():
    with pytest.raises(ValueError, match="'loss' has 2 abscissae and 1 ordinates"):
        draw_curve({"loss": ([1, 2], [1.0])})
