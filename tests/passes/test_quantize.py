"""Quantize: formats that are chosen, options that are honoured, inputs that are refused."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fxloom import ops
from fxloom.backends.simulator import simulate
from fxloom.data import Data
from fxloom.errors import DataError, RecipeError, UnsupportedLayer, VerifyError
from fxloom.exact import exact_forward
from fxloom.fixed_point import FixedPoint, Overflow, Rounding, fit, quantize_values, requantize
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes import calibration
from fxloom.passes.calibration import NEGLIGIBLE, covering
from fxloom.passes.quantize import Quantize
from fxloom.program import Program
from fxloom.quantized_ops import BLOCK, divide
from fxloom.quantized_ops import requantize as requantize_op
from fxloom.recipe import Recipe
from tests.capturing import capture_anything
from tests.models import Fn, make
from tests.strategies import formats, overflows, roundings


def program_of(model: nn.Module, x: torch.Tensor, **options: Any) -> Program:
    graph = capture(model.eval(), x[:2])
    return lower(Quantize(**options)(graph, Data(x_train=x)).graph)


def types(program: Program) -> dict[str, FixedPoint]:
    """Formats of rounded values by layer."""
    return {i.origin: i.result.type for i in program.instrs if i.op.name == "requantize"}


def test_values_after_a_rectifier_are_unsigned() -> None:
    model, x = make("mlp")
    chosen = types(program_of(model, x[0]))
    assert not chosen["1"].signed
    assert chosen["5"].signed


def test_widths_are_honoured_globally_and_by_layer() -> None:
    model, x = make("mlp")
    program = program_of(
        model, x[0], weights=6, activations=7, inputs=9, outputs=12,
        layers={"3": {"weights": 4}, "*": {"activations": 5}, "1": {"activations": 10}},
    )  # fmt: skip
    assert program.inputs[0].value.type.width == 5
    assert program.constants["0.weight"].value.type.width == 6
    assert program.constants["3.weight"].value.type.width == 4
    assert types(program)["1"].width == 10
    assert types(program)["4"].width == 5


def test_a_later_pattern_wins() -> None:
    assert (
        Quantize(layers={"a*": {"weights": 3}, "*": {"weights": 5}}).width("weights", ("ab",)) == 5
    )


def test_pattern_that_matches_nothing_is_refused_with_the_layers() -> None:
    model, x = make("mlp")
    with pytest.raises(RecipeError, match=r'layers."conv\*" matches no layer. Layers: .*0'):
        program_of(model, x[0], layers={"conv*": {"weights": 3}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": 0}, "weights: required 1 to 32 bits, got 0"),
        ({"activations": 33}, "activations: required 1 to 32 bits, got 33"),
        ({"layers": {"a": {"weight": 3}}}, r'layers."a".weight: unknown key'),
        ({"layers": {"a": {"weights": 40}}}, r'layers."a".weights: required 1 to 32'),
        ({"samples": 0}, "samples: required at least 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Quantize(**options)


def test_quantizing_twice_or_without_data_is_refused() -> None:
    model, x = make("mlp")
    graph = capture(model, x)
    with pytest.raises(RecipeError, match="required data to calibrate"):
        Quantize()(graph)
    once = Quantize()(graph, Data(x_train=x[0])).graph
    with pytest.raises(RecipeError, match="quantized already"):
        Quantize()(once, Data(x_train=x[0]))


def test_lowering_a_float_graph_says_what_to_do() -> None:
    model, x = make("mlp")
    with pytest.raises(UnsupportedLayer, match=r"input .*no fixed-point format. Run the quantize"):
        lower(capture(model, x))


def test_minmax_covers_the_largest_value_and_mse_may_clip_it() -> None:
    x = torch.cat([torch.randn(4000, 1) * 0.2, torch.tensor([[9.0]])])
    model = nn.Linear(1, 1)
    cover = program_of(model, x, method="minmax", activations=4, samples=9999).inputs[0].value.type
    clip = program_of(model, x, method="mse", activations=4, samples=9999).inputs[0].value.type
    assert cover.hi * cover.step >= 9 - cover.step / 2
    assert clip.hi * clip.step < 4


@given(st.floats(-100, 100), st.floats(0, 100), st.integers(1, 12), st.booleans())
def test_covering_is_the_finest_format_that_covers(
    low: float, length: float, width: int, signed: bool
) -> None:
    low, high = (low, low + length) if signed else (0.0, length)
    kind = covering(low, high, width, signed)
    if max(abs(low), abs(high)) < NEGLIGIBLE:
        return

    def covers(to: FixedPoint) -> bool:
        ends = [round(x * 2.0**to.fraction) for x in (low, high)]
        return to.lo <= ends[0] and ends[1] <= to.hi

    # A signed bit holds only -1 and 0, so no step covers a positive value: the search starts there.
    assert covers(kind) or (width == 1 and signed)
    assert not covers(FixedPoint(width, kind.integer - 1, signed))


def test_dead_and_constant_channels_and_zero_weights_are_fine() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1.0)
    x = torch.randn(20, 4)
    program = program_of(model, x)
    wanted = model(x).detach().numpy()
    np.testing.assert_allclose(simulate(program, x.numpy()), wanted, atol=0.01)


def test_huge_ranges_saturate_by_declaration_and_never_wrap() -> None:
    model = nn.Linear(3, 2)
    x = torch.randn(50, 3) * 2.0**40
    program = program_of(model, x)
    got = simulate(program, 1e6 * x.numpy())
    port = program.value(program.outputs[0].value)
    assert np.abs(got).max() <= 2.0**port.type.integer


def test_one_sample_is_enough() -> None:
    model, x = make("conv bn relu")
    program_of(model, x[0][:1])


def test_float_model_that_overflows_is_named() -> None:
    model = Fn(lambda m, x: m.fc(x * 1e30), fc=nn.Linear(3, 2))
    with pytest.raises(DataError, match="float model gives NaN or infinity"):
        program_of(model, torch.randn(8, 3) * 1e20)


def test_bias_correction_brings_the_mean_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))
    x = torch.randn(2000, 32) + 0.5
    wanted = model(x).detach().numpy().mean(0)
    shift = []
    for on in (True, False):
        program = program_of(model, x, weights=3, weight_rounding="nearest", bias_correction=on)
        shift.append(np.abs(simulate(program, x.numpy()).mean(0) - wanted).max())
    assert shift[0] < 0.25 * shift[1]


@pytest.mark.parametrize(
    "name", ["signals", "bn of a shared conv", "squeeze and excite", "softmax inside"]
)
def test_the_size_of_batches_does_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of floats in another order may differ in their last bit, and a bias by one step."""
    model, inputs = make(name)
    x = torch.randn(9, *inputs[0].shape[1:], generator=torch.Generator().manual_seed(5))
    whole = program_of(model, x)
    monkeypatch.setattr(calibration, "BATCH_ELEMENTS", 1)
    single = program_of(model, x)
    assert [i.op for i in single.instrs] == [i.op for i in whole.instrs]
    for key, constant in whole.constants.items():
        assert np.abs(single.constants[key].data.astype(np.int64) - constant.data).max() <= 1


def test_average_is_rounded_once() -> None:
    """The sum before a division stays exact: no requantize between pool and divide."""
    model, x = make("avg pool 3x3")
    assert [i.op.name for i in program_of(model, x[0]).instrs] == ["pool", "divide"]


def test_recipe_round_trip() -> None:
    recipe = Recipe(
        [Quantize(weights=5, rounding=Rounding.RND_CONV, layers={"head.*": {"weights": 12}})]
    )
    assert Recipe.parse(recipe.to_toml()).passes == recipe.passes


# The torch operators against the integer definition


@given(
    st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=20),
    st.integers(-4, 12),
    formats(max_width=14),
    roundings,
    overflows,
)
def test_torch_requantize_equals_the_definition(
    mantissas: list[int], fraction: int, to: FixedPoint, rounding: Rounding, overflow: Overflow
) -> None:
    array = np.array(mantissas)
    values = torch.tensor(np.ldexp(array.astype(float), -fraction))
    got = requantize_op(values, to.width, to.integer, to.signed, str(rounding), str(overflow))
    wanted = requantize(array, fraction, to, rounding, overflow)
    assert (got * 2.0**to.fraction).tolist() == wanted.tolist()


@pytest.mark.parametrize("rounding", Rounding)
def test_large_tensors_are_rounded_like_small_ones(rounding: Rounding) -> None:
    x = torch.randn(3, BLOCK // 2 + 5, generator=torch.Generator().manual_seed(0))
    modes = (6, 3, True, str(rounding), "SAT")
    for whole in (x, x.T):
        pieces = torch.stack([requantize_op(row, *modes) for row in whole[:200]])
        assert torch.equal(requantize_op(whole, *modes)[:200], pieces)


@given(
    st.lists(st.integers(-(2**20), 2**20), min_size=1, max_size=20),
    st.integers(1, 100),
    st.integers(-4, 12),
    formats(max_width=14),
    roundings,
    overflows,
)
def test_torch_divide_equals_the_definition(
    mantissas: list[int],
    divisor: int,
    fraction: int,
    to: FixedPoint,
    rounding: Rounding,
    overflow: Overflow,
) -> None:
    from fractions import Fraction

    from tests.oracle import fit_exactly, round_exactly

    values = torch.tensor(np.ldexp(np.array(mantissas, dtype=float), -fraction))
    modes = (to.width, to.integer, to.signed, str(rounding), str(overflow))
    got = divide(values, torch.tensor([divisor]), *modes)
    wanted = [
        fit_exactly(
            round_exactly(Fraction(m, divisor) * Fraction(2) ** (to.fraction - fraction), rounding),
            to,
            overflow,
        )
        for m in mantissas
    ]
    assert (got * 2.0**to.fraction).tolist() == wanted


def test_gradients_pass_straight_through_inside_the_range() -> None:
    x = torch.tensor([-9.0, -0.3, 0.2, 3.0, 9.0], requires_grad=True)
    requantize_op(x, 4, 3, True, "RND", "SAT").sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_quantized_graph_can_be_trained() -> None:
    model, x = make("resnet avg 3")
    graph = Quantize()(capture(model, x), Data(x_train=x[0])).graph
    graph(x[0]).square().mean().backward()
    gradients = {n: p.grad for n, p in graph.named_parameters() if p.grad is not None}
    assert any(float(g.abs().max()) > 0 for n, g in gradients.items() if n.endswith("weight"))


def test_formats_of_values_are_those_of_the_hardware() -> None:
    to = FixedPoint(4, 2)
    values = np.array([5.0, -5.0, 0.26])
    assert quantize_values(values, to, Rounding.RND, Overflow.SAT).tolist() == [7, -8, 1]
    assert fit(np.array([9]), to, Overflow.WRAP).tolist() == [-7]


def test_calibration_samples_are_spread_over_sorted_data() -> None:
    x = torch.linspace(0, 8, 4000).reshape(-1, 1)
    program = program_of(nn.Linear(1, 1), x, method="minmax", samples=10)
    assert program.inputs[0].value.type.integer == 3


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(5, 4), r"input input: required shape \['batch', 3\].*\[5, 4\]"),
        (torch.ones(5, 1), r"required shape \['batch', 3\].*\[5, 1\]"),
        (torch.ones(5, 2, 3), r"required shape \['batch', 3\].*\[5, 2, 3\]"),
        ((torch.ones(5, 3), torch.ones(5, 3)), "required 1 inputs"),
    ],
)
def test_data_that_does_not_fit_the_model_is_refused(x: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"calibration data: .*{message}"):
        Quantize()(capture(nn.Linear(3, 4), torch.ones(2, 3)), Data(x_train=x))


def test_data_that_does_not_fit_is_described_as_it_is_given() -> None:
    graph = capture(nn.Linear(3, 4), torch.ones(7, 2, 3), batch_axes=1)
    wanted = r"required shape \['batch', 7, 3\] of torch.float32, \[5, 6, 3\]"
    with pytest.raises(DataError, match=wanted):
        Quantize()(graph, Data(x_train=torch.ones(5, 6, 3)))


def test_a_float64_model_is_calibrated_in_float64() -> None:
    model, x = nn.Linear(3, 4).double(), torch.randn(40, 3, dtype=torch.float64)
    program = program_of(model, x, weights=16, activations=16)
    wanted = model(x).detach().numpy()
    np.testing.assert_allclose(simulate(program, x.numpy()), wanted, atol=1e-3)


def test_samples_are_the_first_axis_of_data_wherever_the_model_has_its_batch() -> None:
    model = Fn(lambda m, x: m.fc(x), fc=nn.Linear(5, 3))
    graph = capture(model, torch.randn(7, 2, 5), batch_axes=1)
    x = torch.rand(7, 7, 5) * 2 + 1
    x[0, 0] = -1
    x[3:] *= 1000  # later samples, not later steps
    summary = Quantize(samples=2, method="minmax")(graph, Data(x_train=x)).summary
    assert summary["formats"]["inputs_0"] == "fixed<8,13>"
    small = Quantize(samples=1, method="minmax")(graph, Data(x_train=x)).summary
    assert small["formats"]["inputs_0"] == "fixed<8,3>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "best"}, "method: required 'mse', 'minmax', 'percentile' or 'kl'"),
        ({"percentile": 101.0}, "percentile: required 50 to 100 percent, got 101"),
        ({"percentile": float("nan")}, "percentile: required 50 to 100 percent, got nan"),
        ({"layers": {"a": {"method": "best"}}}, "layers.\"a\".method: required 'mse', 'minmax'"),
        ({"weights": "8"}, "weights: required an integer"),
        ({"activations": 8.0}, "activations: required an integer"),
        ({"rounding": "UP"}, "rounding: required"),
        ({"layers": {"a": 3}}, "layers.a: required a table"),
    ],
)
def test_options_of_the_wrong_kind_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Quantize(**options)


def test_a_width_given_for_an_output_layer_counts_even_where_it_is_the_default() -> None:
    model, x = make("mlp")
    program = program_of(model, x[0], activations=8, layers={"5": {"activations": 8}})
    assert types(program)["5"].width == 8


def test_integer_constants_are_what_torch_makes_of_them() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor([1, 2**24 + 1]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    x = torch.randn(40, 2)
    quantized = Quantize(weights=32, outputs=32)(capture(Scaled(), x[:2]), Data(x_train=x)).graph
    y = simulate(lower(quantized), x.numpy())
    np.testing.assert_array_equal(y, exact_forward(quantized, x).numpy())


def test_values_beyond_float32_powers_of_two_are_calibrated() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False))
    x = torch.randn(40, 3) * 2.0**-100
    program = program_of(model, x, weights=16, activations=32, outputs=32)
    wanted = model(x).detach().numpy()
    np.testing.assert_allclose(simulate(program, x.numpy()), wanted, atol=1e-3 * wanted.max())


def test_a_bias_too_wide_for_its_accumulator_names_the_layer() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    with torch.no_grad():
        model[0].weight.mul_(2.0**-60)
        model[0].bias.mul_(2.0**40)
    with pytest.raises(VerifyError, match=r"0 \(aten.linear\): its bias"):
        program_of(model, torch.randn(40, 3))


def test_many_ways_through_a_graph_take_no_time() -> None:
    def braid(m: Any, x: torch.Tensor) -> torch.Tensor:
        for _ in range(40):
            x = x * 0.75 + x.transpose(1, 2) * 0.2
        return x

    program_of(Fn(braid), torch.rand(8, 3, 3), bias_correction=False)


def test_lowering_names_an_unused_input() -> None:
    x = torch.randn(40, 3)
    graph = capture_anything(Fn(lambda m, x, y: x * 0.3), (x, x))
    with pytest.raises(UnsupportedLayer, match=r"input inputs_1: nothing uses it. Leave it out"):
        lower(Quantize()(graph, Data(x_train=(x, x))).graph)


def test_a_graph_as_deep_as_python_is_not_is_quantized() -> None:
    pools = [nn.MaxPool2d(1) for _ in range(1100)]
    program_of(nn.Sequential(*pools, nn.Flatten(), nn.Linear(4, 2)), torch.randn(9, 1, 2, 2))


def test_rectifying_huge_values_does_not_widen_them() -> None:
    program = program_of(nn.ReLU(), torch.randn(40, 3) * 2.0**90)
    assert program.value(program.outputs[0].value).type.width <= 8


def test_a_bias_that_its_correction_makes_wide_is_read_as_it_was_kept() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 4, bias=False), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[0].weight.abs_()
    x = torch.rand(50, 64)
    step = Quantize(weights=16, activations=8, inputs=1)
    quantized = step(capture(model, x[:2]), Data(x_train=x)).graph
    layer = quantized.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)[0]
    assert layer.args[2].args[1] > 16  # bits of the corrected bias
    y, wanted = simulate(lower(quantized), x.numpy()), model(x).detach().numpy()
    assert np.abs(y.mean(0) - wanted.mean(0)).max() < 0.02 * np.abs(wanted).max()


def test_layers_round_and_overflow_as_they_are_told() -> None:
    model, x = make("mlp")
    graph = capture(model, x[0][:2])
    names = [name for name, _ in model.named_modules() if name]
    keys = {"rounding": "TRN", "overflow": "WRAP"}
    step = Quantize(layers={names[0]: keys, "*": {"overflow": "SAT_SYM"}, names[1]: keys})
    program = lower(step(graph, Data(x_train=x[0])).graph)
    modes = {
        instr.origin: (instr.op.rounding, instr.op.overflow)
        for instr in program.instrs
        if isinstance(instr.op, ops.Requantize)
    }
    assert (Rounding.TRN, Overflow.WRAP) in modes.values()
    assert (Rounding.RND, Overflow.SAT_SYM) in modes.values()
    assert Overflow.SAT not in {overflow for _, overflow in modes.values()}


@pytest.mark.parametrize(("key", "value"), [("rounding", "UP"), ("overflow", "CLAMP")])
def test_unknown_modes_of_a_layer_are_named(key: str, value: str) -> None:
    with pytest.raises(RecipeError, match=rf'layers\."fc"\.{key}: required .*{value}'):
        Quantize(layers={"fc": {key: value}})
