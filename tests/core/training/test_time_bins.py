"""The loss of a flow by time: tenths of [0, 1], rows of a run, and their chart."""

import math

import numpy as np
import pytest
import torch

from instaflow_core.training.time_bins import BINS, NAMES, LossByTime, binned, draw_by_time, write_by_time


def test_each_loss_is_counted_in_the_tenth_of_its_time():
    t = torch.tensor([0.0, 0.05, 0.1, 0.55, 0.999, 1.0])
    sums, counts = binned(t, torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]))
    assert sums.tolist() == [3, 4, 0, 0, 0, 8, 0, 0, 0, 48]
    assert counts.tolist() == [2, 1, 0, 0, 0, 1, 0, 0, 0, 2]


def test_means_are_those_of_a_histogram():
    generator = torch.Generator().manual_seed(0)
    t, losses = torch.rand(2, 500, generator=generator)
    by_time = LossByTime(2)
    assert by_time.add(1, *binned(t[:200], losses[:200]).tolist()) is None
    done, means = by_time.add(2, *binned(t[200:], losses[200:]).tolist())
    sums, _ = np.histogram(t, BINS, (0, 1), weights=losses)
    counts, _ = np.histogram(t, BINS, (0, 1))
    assert done == 2
    np.testing.assert_allclose(means, sums / counts, rtol=1e-5)


def test_a_tenth_without_a_time_has_no_mean():
    _, means = LossByTime(1).add(1, *binned(torch.tensor([0.95]), torch.tensor([3.0])).tolist())
    assert means[-1] == 3
    assert all(math.isnan(mean) for mean in means[:-1])


def test_a_state_goes_on_where_it_was():
    whole, parts = LossByTime(4), LossByTime(4)
    for step in range(1, 9):
        numbers = binned(torch.tensor([0.1 * step]), torch.tensor([float(step)])).tolist()
        whole.add(step, *numbers)
        parts.add(step, *numbers)
        state, parts = parts.state_dict(), LossByTime(4)
        parts.load_state_dict(state)
    np.testing.assert_array_equal(parts.rows[1][1], whole.rows[1][1])
    assert [done for done, _ in parts.rows] == [4, 8]


def test_rows_are_a_table_of_ten_numbers_a_line(tmp_path):
    path = tmp_path / "loss_by_time.csv"
    write_by_time([(5, [0.1 * i for i in range(BINS)]), (10, [math.nan] * BINS)], path)
    table = np.genfromtxt(path, delimiter=",", names=True)
    assert len(table.dtype.names) == 1 + len(NAMES)
    assert [row[0] for row in table] == [5, 10]
    assert list(table[0])[1:] == [0.1 * i for i in range(BINS)]


def test_a_chart_of_them_is_a_picture():
    rows = [(10 * i, [1 / (i + 1 + bin) for bin in range(BINS)]) for i in range(1, 6)]
    assert draw_by_time(rows, "reflow").size == (768, 512)
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_by_time([], "reflow")
