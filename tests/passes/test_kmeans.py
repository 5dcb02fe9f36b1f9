"""The best few numbers for many, against exhaustive search and against each other."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxloom.passes import kmeans
from fxloom.passes.kmeans import (
    Points,
    best_centroids,
    cluster,
    counts_of,
    least_errors,
    points_of,
)


def squared_error(points: Points, centroids: np.ndarray) -> float:
    far = np.abs(points.values[:, None] - centroids[None]).min(1)
    return float(points.counts @ far**2)


def exhaustive(points: Points, k: int) -> float:
    """The least error over all ways to cut the points into k intervals."""
    n, least = len(points.values), np.inf
    for cuts in combinations(range(1, n), min(k, n) - 1):
        error = 0.0
        for first, last in zip((0, *cuts), (*cuts, n), strict=True):
            x, c = points.values[first:last], points.counts[first:last]
            error += float(c @ (x - c @ x / c.sum()) ** 2)
        least = min(least, error)
    return least


@given(
    st.lists(st.integers(-30, 30), min_size=1, max_size=10, unique=True),
    st.data(),
    st.integers(1, 6),
)
def test_no_other_intervals_are_better(values: list[int], data: st.DataObject, k: int) -> None:
    counts = data.draw(st.lists(st.integers(1, 9), min_size=len(values), max_size=len(values)))
    points = Points(np.sort(np.array(values, float)), np.array(counts, float))
    centroids = best_centroids(points, k)
    assert len(centroids) <= k
    assert (np.diff(centroids) > 0).all()
    assert squared_error(points, centroids) == pytest.approx(exhaustive(points, k), abs=1e-9)
    errors = least_errors(points, k)
    assert len(errors) == min(k, len(values))
    assert errors[-1] == pytest.approx(exhaustive(points, k), abs=1e-9)
    nearest = np.abs(points.values[:, None] - centroids[None]).argmin(1)
    sizes = counts_of(points, centroids)
    assert sizes.sum() == sum(counts)
    off = np.abs(np.bincount(nearest, points.counts, len(centroids)) - sizes)
    middles = np.isin(points.values, (centroids[1:] + centroids[:-1]) / 2)
    assert off.sum() <= 2 * points.counts[middles].sum()  # halfway, either is nearest


def test_few_values_are_their_own_centroids_and_far_means_lose_no_digits() -> None:
    values = torch.tensor([1e6 + 0.25, 1e6 + 0.5, 1e6 + 0.25, 1e6 + 1.0], dtype=torch.float64)
    centroids, numbers = cluster(values, 4)
    assert centroids.tolist() == [1e6 + 0.25, 1e6 + 0.5, 1e6 + 1.0]
    assert numbers.tolist() == [0, 1, 0, 2]
    centroids, numbers = cluster(values, 2)
    assert centroids.tolist() == [pytest.approx(1e6 + 1 / 3, abs=1e-9), 1e6 + 1.0]
    assert cluster(torch.zeros(5), 3)[0].tolist() == [0.0]


@pytest.mark.parametrize("k", [2, 16, 256])
@pytest.mark.parametrize("name", ["normal", "heavy tails", "far from zero", "two values", "steps"])
def test_many_values_come_close_to_the_optimum(name: str, k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(300_000, generator=generator)
    values = {
        "normal": 0.02 * x,
        "heavy tails": x * torch.rand(len(x), generator=generator).pow(-0.25),
        "far from zero": 100 + x,
        "two values": torch.where(x > 0.5, 3.0, -1.0),
        "steps": torch.round(x * 40) / 40,
    }[name]
    centroids, numbers = cluster(values, k)
    assert len(centroids) <= k
    assert int(numbers.max()) < len(centroids)
    got = float((values.double() - centroids[numbers.long()]).square().sum())
    distinct, counts = np.unique(values.numpy().astype(np.float64), return_counts=True)
    exact = Points(distinct, counts.astype(float))
    settled = kmeans._settled(exact, centroids.numpy())
    least = min(squared_error_of_nearest(exact, settled), got)
    assert got <= 1.01 * least + 1e-9


def squared_error_of_nearest(points: Points, centroids: np.ndarray) -> float:
    middles = (centroids[1:] + centroids[:-1]) / 2
    off = points.values - centroids[np.searchsorted(middles, points.values)]
    return float(points.counts @ off**2)


@pytest.mark.parametrize("k", [16, 64])
def test_joining_points_costs_less_than_a_percent(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points, bins = points_of(torch.randn(200_000, generator=torch.Generator().manual_seed(0)))
    assert bins is not None
    quick = squared_error_of_nearest(points, best_centroids(points, k))
    monkeypatch.setattr(kmeans, "WORK", 1 << 40)
    assert quick <= 1.01 * squared_error_of_nearest(points, best_centroids(points, k))


def test_errors_of_joined_points_are_those_of_all_of_them() -> None:
    points, _ = points_of(torch.randn(100_000, generator=torch.Generator().manual_seed(1)))
    errors = least_errors(points, 64)
    assert (np.diff(errors) < 0).all()
    for k in (1, 2, 9, 64):
        got = squared_error_of_nearest(points, best_centroids(points, k))
        assert got == pytest.approx(errors[k - 1], rel=5e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_values_of_half_a_float_are_counted_as_finely(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmeans, "SAMPLE", 1000)
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    centroids, numbers = cluster(values, 64)
    distinct, counts = np.unique(values.double().numpy(), return_counts=True)
    exact = Points(distinct, counts.astype(float))
    least = squared_error_of_nearest(exact, best_centroids(exact, 64))
    assert float((values - centroids[numbers.long()]).square().sum()) <= 1.01 * least


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_many_equal_values_are_one_centroid(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmeans, "SAMPLE", 100)
    values = torch.full((1000,), 0.3, dtype=dtype)
    centroids, numbers = cluster(values, 4)
    assert centroids.tolist() == [float(values[0])]
    assert not numbers.any()


def test_an_outlier_takes_no_centroids_from_the_others() -> None:
    rng = np.random.default_rng(0)
    values = np.sort(rng.normal(size=20_000))
    alone, both = (Points(x, np.ones(len(x))) for x in (values, np.append(values, 1e6)))
    least = squared_error_of_nearest(alone, best_centroids(alone, 63))
    assert squared_error_of_nearest(both, best_centroids(both, 64)) <= 1.01 * least
