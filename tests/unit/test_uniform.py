"""Uniform quantizers against fractions.Fraction, and lowered."""

from fractions import Fraction
from math import log2

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fxloom import capture, lower, simulate
from fxloom.fixed_point import FixedPoint, Rounding
from fxloom.given_constants import (
    MAX_CONSTANT_BITS,
    Constant,
    QuantizerRefused,
    addends,
    constant,
    reciprocal,
    rounded,
    significant,
)
from fxloom.uniform import (
    ROUNDINGS,
    Activation,
    Grid,
    grid,
    integers_of,
    limited,
    signs,
    ternary,
    weight,
)
from tests.oracle import round_exactly

positive = st.floats(2.0**-30, 2.0**30, allow_subnormal=False, width=32)
modes = st.sampled_from(sorted(ROUNDINGS))
numbers = st.integers(-(2**20), 2**20)


@st.composite
def grids(draw: st.DrawFn, scales: st.SearchStrategy[float]) -> Grid:
    bits, signed, narrow = draw(st.integers(2, 9)), draw(st.booleans()), draw(st.booleans())
    zero_point = draw(st.integers(-300, 300) | st.just(0))
    return grid(draw(scales), zero_point, bits, signed=signed, narrow=narrow, rounding=draw(modes))


def exactly(x: Fraction, to: Grid, ratio: Fraction) -> int:
    """The integer (q - zero_point) of x, ratio standing for one over the scale."""
    zero_point = int(to.zero_point)
    q = round_exactly(x * ratio + zero_point, to.rounding)
    return min(max(q, to.lo), to.hi) - zero_point


@given(st.fractions().filter(bool), st.integers(1, 30))
def test_significant_bits_are_the_nearest(number: Fraction, bits: int) -> None:
    result = significant(number, bits)
    exponent = 0
    while abs(number) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(number) < Fraction(2) ** exponent:
        exponent -= 1
    step = Fraction(2) ** (exponent - bits + 1)  # of the numbers of this magnitude
    assert (result / step).denominator == 1
    assert abs(result - number) <= step / 2


@given(grids(st.integers(-8, 8).map(lambda power: 2.0**power)), numbers, st.integers(-3, 14))
def test_powers_of_two_are_exact(to: Grid, mantissa: int, fraction: int) -> None:
    x = torch.tensor([mantissa * 2.0**-fraction], dtype=torch.float64)
    scale = Fraction(float(to.scale))
    expected = exactly(Fraction(float(x)), to, 1 / scale) * scale
    assert Fraction(float(Activation(to)(x))) == expected


@given(grids(positive), numbers, st.integers(4, 14))
def test_other_scales_are_two_products(to: Grid, mantissa: int, fraction: int) -> None:
    x = torch.tensor([float(to.scale) * 2.0**-fraction * mantissa]).double()
    scale = Fraction(float(to.scale))
    expected = exactly(Fraction(float(x)), to, significant(1 / scale)) * scale
    assert Fraction(float(Activation(to)(x))) == expected


def test_a_power_of_two_without_zero_point_is_one_rounding() -> None:
    assert Activation(grid(0.25, 0, 8)).fraction == 2
    assert Activation(grid(0.25, 3, 8, rounding="FLOOR")).fraction == 2
    # Adding an odd number moves the ties of rounding to even.
    assert Activation(grid(0.25, 2, 8)).fraction == 2
    assert Activation(grid(0.25, 3, 8)).fraction is None
    assert Activation(grid(0.25, 2, 8, rounding="ROUND_TO_ZERO")).fraction is None


@pytest.mark.parametrize("mode", ["CEIL", "UP", "stochastic_round", "LEARNED_ROUND"])
def test_other_roundings_are_refused_by_name(mode: str) -> None:
    with pytest.raises(QuantizerRefused, match=mode):
        grid(1.0, rounding=mode)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0.0,), "scales must be positive"),
        ((float("inf"),), "scales must be positive"),
        ((1.0, 0.5), "zero point must be integers"),
        ((1.0, 0, 7.5), "bits must be integers"),
        ((1.0, 0, 33), "33 bits"),
    ],
)
def test_what_is_no_grid_is_refused(arguments: tuple[float, ...], words: str) -> None:
    with pytest.raises(QuantizerRefused, match=words):
        grid(*arguments)


@given(st.lists(positive, min_size=1, max_size=5))
def test_constants_are_exact_in_their_format(values: list[float]) -> None:
    scales = np.array(values, np.float32)
    spread = log2(scales.max()) - log2(scales.min())
    for made, wanted in ((constant, scales), (reciprocal, 1 / scales.astype(np.float64))):
        try:
            result = made(scales)
        except QuantizerRefused as refused:
            assert spread > MAX_CONSTANT_BITS - 25
            assert "too far apart" in str(refused)  # noqa: PT017
            continue
        assert isinstance(result, Constant)
        np.testing.assert_array_equal(result().numpy(), result.value.numpy())
        np.testing.assert_allclose(result.value.numpy(), wanted, rtol=2.0**-24)


@given(st.lists(st.floats(-(2.0**20), 2.0**20, width=32), min_size=1, max_size=5))
def test_addends_are_rounded_where_the_largest_ends(values: list[float]) -> None:
    result = addends(values)
    np.testing.assert_array_equal(result().numpy(), result.value.numpy())
    assert result.format.width <= 25
    error = np.abs(result.value.numpy().astype(np.float64) - values)
    assert error.max() <= 2.0**-24 * np.abs(values).max()


@given(grids(positive), st.integers(0, 2**32 - 1))
def test_integers_of_weights_are_those_of_float32(to: Grid, seed: int) -> None:
    values = np.random.default_rng(seed).normal(0, 20 * float(to.scale), 9).astype(np.float32)
    result = integers_of(values, to)
    zero_point = np.float32(to.zero_point)
    quotients = values / np.float32(to.scale) + zero_point
    expected = [exactly(Fraction(float(q)) - int(zero_point), to, Fraction(1)) for q in quotients]
    assert result.tolist() == expected


@pytest.mark.parametrize("scale", [2.0**-3, [[0.25], [0.0625], [1.0]], 0.3, [[0.1], [0.7], [2.0]]])
def test_weights_in_their_format_times_the_scale(scale: float | list[list[float]]) -> None:
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    to = grid(np.float32(scale), bits=5, narrow=True)
    result = weight(values, to)
    np.testing.assert_array_equal(result.round(result.values), result.values)
    behind = 1.0 if result.scale is None else result.scale.reshape(-1, 1)
    expected = np.clip(np.rint(values.numpy() / np.float32(scale)), -15, 15) * np.float32(scale)
    np.testing.assert_array_equal(np.float32(result.values.numpy() * behind), expected)
    power_of_two = to.exponents is not None
    assert (result.scale is None) == power_of_two


def test_a_channel_of_zeros_takes_any_scale() -> None:
    values = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    result = weight(values, grid(np.array([[0.3], [1e-20]])))
    np.testing.assert_array_equal(result.scale, 0.3)


def test_scales_of_inputs_cannot_stand_behind_a_sum() -> None:
    with pytest.raises(QuantizerRefused, match="axis 0, the output channels, alone"):
        weight(torch.randn(2, 3), grid([[0.1, 0.2, 0.3]]))


class Layer(nn.Module):
    """A layer with rounded weights between two quantizers, and what compares with zero."""

    def __init__(self, before: Grid, weights: Grid, behind: Grid) -> None:
        super().__init__()
        self.made = weight(torch.randn(3, 6), weights)
        self.weight = nn.Parameter(self.made.values)
        self.scale = None if self.made.scale is None else constant(self.made.scale)
        self.before, self.behind = Activation(before), Activation(behind)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.before(rounded(x, FixedPoint(12, 4)))
        y = nn.functional.linear(x, self.made.round(self.weight))
        y = y if self.scale is None else y * self.scale()
        return self.behind(y), signs(x), ternary(x, 0.5)


@pytest.mark.parametrize("rounding", ["ROUND", "ROUND_TO_ZERO"])
@pytest.mark.parametrize(
    ("before", "weights", "behind"),
    [(0.5, 0.25, 0.5), (0.3, 0.25, 2.0), (0.5, [[0.25], [0.5], [2.0]], [0.5, 1.0, 0.25]),
     (0.5, [[0.3], [0.11], [0.7]], 0.125)],
)  # fmt: skip
def test_the_program_computes_it(
    before: float, weights: object, behind: object, rounding: str
) -> None:
    torch.manual_seed(2)
    layer = Layer(
        grid(before, 3, 4, signed=False, narrow=True, rounding=rounding),
        grid(np.array(weights), 0, 4),
        grid(np.array(behind), 1, 6, rounding=rounding),
    ).eval()
    x = torch.randn(32, 6) * 3
    program = lower(capture(layer, x[:2]))
    for result, expected in zip(simulate(program, x), layer.double()(x.double()), strict=True):
        np.testing.assert_array_equal(result, expected.detach().numpy())


def test_limits_that_no_format_has_are_clamped() -> None:
    x = torch.tensor([-9.0, -0.3, 0.2, 1.3, 9.0])
    assert limited(x, -2, 5, 2, Rounding.TRN).tolist() == [-0.5, -0.5, 0.0, 1.25, 1.25]
