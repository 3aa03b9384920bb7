"""Charts: what is drawn lies where the numbers say."""

import math

import numpy as np
import pytest

from instaflow_core.pictures.charts import _ticks, draw_curve

BLUE, ORANGE = (31, 119, 180), (214, 96, 20)


def where(picture, color):
    """The (x, y) pixels of that colour, in order of x."""
    ys, xs = np.nonzero((np.asarray(picture) == color).all(-1))
    order = np.argsort(xs, kind="stable")
    return xs[order], ys[order]


def test_a_rising_line_rises_across_the_picture():
    picture = draw_curve({"loss": ([0, 1, 2], [0.0, 0.5, 1.0])}, "Loss", "step", "loss", size=(600, 400))
    assert picture.size == (600, 400)
    xs, ys = where(picture, BLUE)
    assert np.ptp(xs) > 400
    assert np.ptp(ys) > 250
    assert np.corrcoef(xs, ys)[0, 1] < -0.999  # pixels count downwards


def test_a_larger_picture_has_larger_letters():
    def ink(size):
        picture = np.asarray(draw_curve({"s": ([0, 1], [0, 1])}, "Straightness", "t", "s", size=size))
        return (picture == (40, 40, 40)).all(-1).sum()

    assert ink((1200, 800)) > 1.8 * ink((600, 400))


def test_two_lines_have_two_colours_and_a_legend():
    lines = {"teacher": ([0, 1], [3, 3]), "flow": ([0, 1], [1, 1])}
    picture = draw_curve(lines)
    assert np.median(where(picture, BLUE)[1]) < np.median(where(picture, ORANGE)[1])
    plain = draw_curve({"teacher": lines["teacher"]})
    corner = (slice(0, 150), slice(500, 760))
    ink = [(np.asarray(p)[corner] == (40, 40, 40)).all(-1).sum() for p in (picture, plain)]
    assert ink[0] > ink[1] + 50


def test_a_line_breaks_where_it_is_not_finite():
    picture = draw_curve({"loss": ([0, 1, 2, 3, 4], [1, 1, math.nan, 1, math.inf])}, size=(600, 400))
    xs, _ = where(picture, BLUE)
    assert np.diff(np.unique(xs)).max() > 100  # the gap from 1 to 3, where a dot stands alone
    assert np.ptp(xs) > 300


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.013, 0.047, [0.01, 0.02, 0.03, 0.04, 0.05]),
        (5, 5, [5, 6, 7, 8, 9, 10]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-300, 900, [-400, -200, 0, 200, 400, 600, 800, 1000]),
    ],
)
def test_ticks_are_round_and_hold_every_value(low, high, ticks):
    assert _ticks(low, high) == pytest.approx(ticks)


def test_an_axis_from_zero_shows_a_small_change_as_small():
    def height(**options):
        return np.ptp(where(draw_curve({"S": ([0, 1], [0.9, 1.0])}, size=(600, 400), **options), BLUE)[1])

    assert height(y_from=0) < 60
    assert height() > 200


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_curve({"loss": ([1, 2], [math.nan, math.inf])})


def test_a_line_with_a_number_missing():
    with pytest.raises(ValueError, match="'loss' has 2 abscissae and 1 ordinates"):
        draw_curve({"loss": ([1, 2], [1.0])})
