"""Figures and their intervals, against torch-fidelity's functions and what is known in closed form."""

import pytest
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from instaflow_core.evaluation.figures import (
    frechet_distance,
    frechet_figure,
    kernel_figure,
    mean_figure,
    median_figure,
    moments,
)


def features(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Numbers that depend on each other, far from 0, (count, 16) float32."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(16, 16, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, 16, generator=generator) @ mixing + 50 + shift


def test_the_frechet_distance_is_torch_fidelitys_however_its_features_are_cut():
    a, b = features(300, 0), features(200, 1, 0.3)
    statistics = [fid_features_to_statistics(x.double()) for x in (a, b)]
    wanted = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    for size in (300, 64, 7):
        found = frechet_distance(moments(a.split(size)), moments(b.split(size)))
        assert found == pytest.approx(wanted, rel=1e-9)


def test_the_kernel_distance_is_torch_fidelitys():
    a, b = features(300, 0), features(1200, 1, 0.3)
    wanted = kid_features_to_metric(a, b, kid_subset_size=300, verbose=False)
    assert kernel_figure(a, b, "").value == wanted["kernel_inception_distance_mean"]


def test_an_interval_holds_the_truth_as_often_as_it_says():
    """Of 100 draws, about 95: fewer than 88 are as unlikely as 1 in 300, and 100 as 1 in 170."""
    held = 0
    for seed in range(100):
        values = torch.randn(60, generator=torch.Generator().manual_seed(seed)).square()
        found = mean_figure(values, "")
        assert found.low < found.value < found.high
        held += found.low <= 1 <= found.high
    assert 86 <= held <= 99


@pytest.mark.parametrize("distance", ["frechet", "kernel"])
def test_a_distances_interval_is_as_wide_as_its_draws_vary(distance: str):
    def figure(seed: int):
        a, b = features(400, 2 * seed), features(400, 2 * seed + 1, 0.5)
        if distance == "kernel":
            return kernel_figure(a, b, "")
        return frechet_figure(lambda: a.split(50), lambda: b.split(50), "")

    figures = [figure(seed) for seed in range(30)]
    varies = 2 * 1.96 * float(torch.tensor([found.value for found in figures]).std())
    width = sum(found.high - found.low for found in figures) / len(figures)
    assert width == pytest.approx(varies, rel=0.5)


def test_a_figure_is_the_same_each_time():
    a, b = features(80, 0), features(90, 1)
    assert frechet_figure(lambda: [a], lambda: [b], "r") == frechet_figure(lambda: [a], lambda: [b], "r")
    assert kernel_figure(a, b, "r") == kernel_figure(a, b, "r")
    assert mean_figure(a[:, 0], "r") == mean_figure(a[:, 0], "r")


def test_a_few_measurements_have_a_median_and_a_range():
    found = median_figure([3.0, 1.0, 2.0], "ms")
    assert (found.value, found.low, found.high) == (2, 1, 3)


def test_one_picture_has_no_distribution():
    with pytest.raises(ValueError, match="Give two or more"):
        moments([features(1, 0)])
