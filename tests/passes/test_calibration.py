"""Which ranges the methods of calibration choose."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxloom.data import Data
from fxloom.fixed_point import FixedPoint
from fxloom.frontend import capture
from fxloom.passes.calibration import Errors, covering, least_error, squared_error
from fxloom.passes.histograms import Histogram, entropy_format, percentile_format
from fxloom.passes.quantize import Quantize
from tests.models import make

OUTLIER = torch.tensor([2.0**40])


def counted(x: Tensor, batches: int = 1) -> Histogram:
    histogram = Histogram()
    for batch in x.chunk(batches):
        histogram.see(batch)
    return histogram


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60),
    st.sampled_from([50.0, 90.0, 99.0, 99.9, 100.0]),
)
def test_percentile_is_the_smallest_range_that_covers_the_share(
    values: list[float], share: float
) -> None:
    x = torch.tensor(values)
    low, high = min(0.0, float(x.min())), float(x.max())
    to = percentile_format(counted(x), share, low, high, 8, True)
    magnitudes = x.abs()[x != 0].double()
    widest = covering(low, high, 8, True)
    if not len(magnitudes) or float(magnitudes.max()) < 2.0**-126:
        assert to == widest
        return

    def share_below(integer: int) -> float:
        return 100 * float((magnitudes < 2.0 ** (integer - 1)).double().mean())

    assert to.integer <= widest.integer
    assert to == widest or share_below(to.integer) >= share - 1e-9
    assert share_below(to.integer - 1) < share or to.integer - 1 <= -126


def test_entropy_clips_outliers_and_keeps_what_is_evenly_spread() -> None:
    torch.manual_seed(0)
    normal = torch.randn(100_000)
    with_outlier = torch.cat([normal, OUTLIER])
    assert entropy_format(counted(with_outlier), -4.5, 2.0**40, 8, True).integer in (3, 4)
    even = torch.rand(100_000)
    assert entropy_format(counted(even), 0.0, 0.99, 8, False).integer == 0


def test_entropy_clips_more_the_fewer_levels_there_are() -> None:
    """Few levels are worth more near the many small values than far out at the few large ones."""
    torch.manual_seed(0)
    x = torch.randn(100_000).abs() ** 3
    found = [
        entropy_format(counted(x), 0.0, float(x.max()), width, False).integer
        for width in (2, 4, 6, 8)
    ]
    assert found == sorted(found)
    assert found[0] < found[-1]


def test_histograms_of_batches_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    x = torch.randn(1000) * torch.exp2(torch.randint(-60, 60, (1000,)).float())
    assert torch.equal(counted(x, 7).counts, counted(x).counts)
    assert int(counted(x).counts.sum()) == 1000
    assert counted(x).counts.shape == counted(x[:3]).counts.shape


@pytest.mark.parametrize("method", ["percentile", "kl"])
def test_rare_outliers_do_not_set_the_range(method: str) -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(4000, 1), OUTLIER[None] / 2**32])
    step = Quantize(method=method, samples=9999)  # type: ignore[arg-type]
    summary = step(capture(nn.Linear(1, 1), x[:2]), Data(x_train=x)).summary
    formats = summary["formats"]
    assert isinstance(formats, dict)
    assert formats["input"] in ("fixed<8,3>", "fixed<8,4>")
    cover = Quantize(method="minmax", samples=9999)
    everything = cover(capture(nn.Linear(1, 1), x[:2]), Data(x_train=x)).summary["formats"]
    assert isinstance(everything, dict)
    assert everything["input"] == "fixed<8,10>"


def test_zeros_take_no_part_in_percentiles() -> None:
    """A rectifier that is silent 999 times out of 1000 would else lose all that it says."""
    x = torch.zeros(10_000)
    x[:5] = 3.0
    assert percentile_format(counted(x), 99.9, 0.0, 3.0, 8, False).integer == 2


def test_a_method_of_one_layer_leaves_the_others() -> None:
    model, x = make("mlp")
    x = (torch.cat([x[0], 2.0**10 * x[0][:1]]),)
    graph = capture(model, x[0][:2])

    def formats(**options: object) -> dict[str, str]:
        found = Quantize(weight_rounding="nearest", **options)(  # type: ignore[arg-type]
            graph, Data(x_train=x[0])
        ).summary["formats"]
        assert isinstance(found, dict)
        return found

    cover, share = formats(method="minmax"), formats(method="percentile", percentile=95.0)
    mixed = formats(method="minmax", layers={"1": {"method": "percentile"}}, percentile=95.0)
    assert cover["1"] != share["1"]
    assert mixed["1"] == share["1"]
    assert mixed["3.weight"] == cover["3.weight"]
    assert mixed["input"] == cover["input"]


def test_weights_are_rounded_by_least_error_where_activations_go_by_percentiles() -> None:
    model, x = make("mlp")
    graph = capture(model, x[0][:2])
    found = []
    for method in ("mse", "percentile", "kl"):
        step = Quantize(method=method, percentile=60.0)  # type: ignore[arg-type]
        formats = step(graph, Data(x_train=x[0])).summary["formats"]
        assert isinstance(formats, dict)
        found.append({name: to for name, to in formats.items() if name.endswith("weight")})
    assert found[0] == found[1] == found[2]


@given(
    seed=st.integers(0, 2**20),
    width=st.integers(1, 12),
    tried=st.integers(1, 16),
    spread=st.sampled_from(["even", "normal", "outlier", "grows", "steps"]),
)
@settings(max_examples=40)
def test_stopping_early_chooses_what_all_errors_choose(
    seed: int, width: int, tried: int, spread: str
) -> None:
    """Ties and values whose first blocks mislead included."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(70 * 16, generator=generator)
    match spread:
        case "even":
            x = torch.rand(70 * 16, generator=generator) - 0.5
        case "outlier":
            x[-1] = 1e4
        case "grows":
            x *= torch.linspace(0.01, 4, len(x)) ** 3
        case "steps":
            x = torch.round(x)
    widest = covering(float(x.min()), float(x.max()), width, True)
    shortlist = [FixedPoint(width, widest.integer - finer, True) for finer in range(tried)]
    with mock.patch("fxloom.quantized_ops.BLOCK", 16):
        errors = Errors(shortlist)
        errors.see(x)
        with mock.patch("fxloom.passes.calibration.squared_error", wraps=squared_error) as counted:
            assert least_error(x, shortlist) == errors.best
    assert counted.call_count <= 70 * tried + 18 * tried


def test_most_candidates_stop_early() -> None:
    x = torch.randn(70 * 2**16, generator=torch.Generator().manual_seed(0))
    widest = covering(float(x.min()), float(x.max()), 8, True)
    shortlist = [FixedPoint(8, widest.integer - finer, True) for finer in range(16)]
    with mock.patch("fxloom.passes.calibration.squared_error", wraps=squared_error) as counted:
        least_error(x, shortlist)
    assert counted.call_count < 70 * 16 / 2
