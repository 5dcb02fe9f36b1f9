"""Widths of their own for layers and channels: found under a budget, exact in every reader."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxloom.backends.simulator import quantize_inputs, reference, simulate
from fxloom.data import Data
from fxloom.errors import FxloomError, RecipeError
from fxloom.exact import exact_forward
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes import Finetune, FoldBatchnorm, Legalize, MixedPrecision, Quantize
from fxloom.passes.allocation import cheapest
from fxloom.passes.distance import Distance
from fxloom.passes.hessian import traces
from fxloom.passes.sensitivity import all_weights, curvatures
from fxloom.recipe import Recipe

KERNELS = ("matmul", "conv")


def classes(seed: int = 0) -> tuple[nn.Module, Data]:
    """A small trained classifier of points around six centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(6, 10, generator=generator) * 2
    y = torch.arange(600) % 6
    x = centres[y] + torch.randn(600, 10, generator=generator)
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 6)
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), Data(x_train=x, y_train=y)


def image() -> tuple[nn.Module, Data]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=3)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(54, 4))
    return model.eval(), Data(x_train=torch.randn(64, 2, 7, 7))


def run(model: nn.Module, data: Data, step: Any) -> Any:
    return step(capture(model, data.example(2)), data)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_few_items_get_the_best_choices(data: st.DataObject) -> None:
    items, choices = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    harm, size = rng.random((items, choices)), rng.integers(1, 12, (items, choices))
    budget = data.draw(st.integers(1, 40))
    fitting = [
        sum(harm[i, c] for i, c in enumerate(chosen))
        for chosen in itertools.product(range(choices), repeat=items)
        if sum(size[i, c] for i, c in enumerate(chosen)) <= budget
    ]
    found = cheapest(harm, size, budget)
    if not fitting:
        assert found is None
        return
    assert found is not None
    assert sum(size[i, c] for i, c in enumerate(found)) <= budget
    assert sum(harm[i, c] for i, c in enumerate(found)) == pytest.approx(min(fitting))


def test_many_items_are_close_to_the_best() -> None:
    rng = np.random.default_rng(0)
    widths = np.arange(9)
    harm = np.exp(2 * rng.normal(size=(400, 1))) * 4.0**-widths
    size = rng.integers(10, 200, (400, 1)) * widths
    budget = int(size[:, 3].sum())
    found = cheapest(harm, size, budget)
    assert found is not None
    rows = np.arange(400)
    assert size[rows, found].sum() <= budget
    # A price of size gives a bound from below that no choice beats.
    bounds = [
        (harm + price * size).min(1).sum() - price * budget
        for price in 2.0 ** np.arange(-24, 4, 0.25)
    ]
    assert harm[rows, found].sum() <= 1.02 * max(bounds)


@pytest.mark.parametrize("make", [classes, image])
@pytest.mark.parametrize("kind", ["given", "chosen"])
def test_channels_of_their_own_widths_are_exact(make: Any, kind: str) -> None:
    model, data = make()
    if kind == "given":
        first = "0" if make is classes else "3"
        channels = dict(model.named_modules())[first].weight.shape[0]
        widths = [0, 1, 2, 9, 5, 3] * (channels // 6)
        step: Any = Quantize(weights=4, layers={first: {"weights": widths}})
    else:
        step = MixedPrecision(weight_bits=3, quantize={"activations": 6})
    graph = run(model, data, step).graph
    program = lower(graph)
    x = torch.as_tensor(data.example(64)) * 2
    fast = simulate(program, x.numpy(), raw=True)
    (slow,) = reference(program, quantize_inputs(program, x.numpy()))
    np.testing.assert_array_equal(fast, slow)
    np.testing.assert_array_equal(simulate(program, x.numpy()), exact_forward(graph, x).numpy())
    if kind == "given":
        (instr,) = [i for i in program.instrs if i.origin == first and i.op.name in KERNELS]
        kernel = program.constants[instr.args[1]].data
        by_channel = kernel.T if make is classes else np.moveaxis(kernel, -1, 0)
        for bits, mantissas in zip(widths, by_channel.reshape(channels, -1), strict=True):
            low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if bits else (0, 0)
            assert low <= mantissas.min() <= mantissas.max() <= high
            assert (bits == 0) == (not mantissas.any())


def test_a_list_of_widths_must_fit() -> None:
    model, data = classes()
    for layers, message in [
        (
            {"0": {"weights": [3, 3]}},
            r"0 \(aten.linear\): weights: .*got 2 of them; the layer has 24",
        ),
        ({"0": {"weights": [3] * 24, "weight_format": "binary"}}, "not binary ones"),
    ]:
        with pytest.raises(RecipeError, match=message):
            run(model, data, Quantize(layers=layers))
    for widths in ([], [0, 0], [3, -1], [33]):
        with pytest.raises(RecipeError, match="required 0 to 32 bits for every output channel"):
            Quantize(layers={"0": {"weights": widths}})
    with pytest.raises(RecipeError, match="activations"):
        Quantize(layers={"0": {"activations": [3, 4]}})
    message = r'layers."1" speaks of weights and matches no layer .* Those that have: 0, 2, 4$'
    with pytest.raises(RecipeError, match=message):
        run(model, data, Quantize(layers={"1": {"weights": 3}}))


def test_curvature_is_that_of_the_softmax() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3))
    x = torch.randn(4000, 4)
    graph = legal(model, x)
    batches = lambda: iter([(x,)])  # noqa: E731
    ((layer,),) = (each.nodes for each in all_weights(graph))
    found = curvatures(graph, [layer], batches, Distance.of(graph, batches))[layer]
    p = model(x).softmax(1)
    # The second derivative of the divergence by a score.
    torch.testing.assert_close(found, (p * (1 - p)).mean(0).double(), rtol=0.05, atol=0)


def test_traces_are_those_of_the_hessian() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(50, 5)
    graph = legal(model, x)
    batches = lambda: iter([(x,)] * 40)  # noqa: E731 (the more probes, the less noise)
    distance = Distance.of(graph, batches)
    found = traces(graph, all_weights(graph), batches, distance)
    wanted = [y.detach() for y in [model(x)]]

    def loss(w: torch.Tensor) -> torch.Tensor:
        got = torch.func.functional_call(model, {"0.weight": w}, x)
        return distance.between(wanted, [got]) / len(x)

    weight = model[0].weight.detach()
    exact = torch.func.hessian(loss)(weight).reshape(20, 20).diagonal().reshape(4, 5).sum(1)
    torch.testing.assert_close(found["0"], exact.double(), rtol=0.1, atol=0)


def legal(model: nn.Module, x: torch.Tensor) -> Any:
    return Legalize()(FoldBatchnorm()(capture(model.eval(), x[:2])).graph).graph


@pytest.mark.parametrize("make", [classes, image])
@pytest.mark.parametrize("method", ["sensitivity", "hessian", "learned"])
@pytest.mark.parametrize("granularity", ["channel", "layer"])
def test_the_budget_holds_and_the_recipe_reproduces(
    make: Any, method: Any, granularity: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Neither budget nor recipe depends on how far widths have learned.
    monkeypatch.setattr("fxloom.passes.learned_widths.STEPS", 100)
    model, data = make()
    step = MixedPrecision(weight_bits=3.3, method=method, granularity=granularity)
    result = run(model, data, step)
    assert 2.5 < result.summary["average_bits"] <= 3.3
    (again,) = Recipe.parse(Recipe([result.found]).to_toml()).passes
    assert isinstance(again, Quantize)
    assert lower(run(model, data, again).graph).digest() == lower(result.graph).digest()
    assert lower(run(model, data, step).graph).digest() == lower(result.graph).digest()


@pytest.mark.parametrize("name", ["MOST_INPUTS", "MOST_FITTED", "BLOCK"])
def test_large_layers_are_weighed_in_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = image()
    whole = run(model, data, MixedPrecision(weight_bits=3))
    monkeypatch.setattr(f"fxloom.passes.sensitivity.{name}", 20)
    pieces = run(model, data, MixedPrecision(weight_bits=3))
    assert pieces.summary["average_bits"] <= 3
    if name == "BLOCK":
        assert pieces.found == whole.found
    else:
        assert pieces.summary["error"] < 3 * whole.summary["error"]


def test_outputs_move_less_than_with_uniform_widths() -> None:
    model, data = classes()
    x = torch.as_tensor(data.example(600))
    graph = legal(model, x)
    distance = Distance.of(graph, lambda: iter([(x,)]))
    moved: dict[str, list[float]] = {}
    for bits in (2, 3, 4):
        for step in (
            MixedPrecision(weight_bits=bits, quantize={"activations": 12}),
            Quantize(weights=bits, activations=12),
            Quantize(weights=bits, activations=12, per_channel=True),
        ):
            with torch.no_grad():
                got = run(model, data, step).graph(x)
                moved.setdefault(type(step).__name__, []).append(
                    float(distance.between([model(x)], [got]))
                )
    mixed, uniform = moved["MixedPrecision"], np.reshape(moved["Quantize"], (3, 2)).min(1)
    assert mixed[0] > mixed[1] > mixed[2]
    assert all(mixed < uniform)


@pytest.mark.parametrize(("key", "limit"), [("error", 0.05), ("points", 1.0), ("dsp", 100)])
def test_bits_that_keep_to_a_limit(key: str, limit: float) -> None:
    model, data = classes()
    result = run(model, data, MixedPrecision(**{key: limit}))  # type: ignore[arg-type]
    tries = {each["weight_bits"]: each[key] for each in result.summary["tried"]}
    kept = [bits for bits, got in tries.items() if got <= limit]
    # The result is the trial itself: costs are mended from trial to trial.
    if key == "error":
        assert result.summary["error"] == pytest.approx(tries[min(kept)], abs=1e-6)
    if key == "dsp":
        assert min(kept) < result.summary["average_bits"] <= max(kept)
        assert all(got > limit for bits, got in tries.items() if bits > max(kept))
    else:
        assert result.summary["average_bits"] <= min(kept)
        assert all(got > limit for bits, got in tries.items() if bits < min(kept))


@pytest.mark.parametrize("method", ["sensitivity", "hessian", "learned"])
def test_bit_operations_are_those_of_the_products(method: Any) -> None:
    model, data = image()  # 25 positions of 18 x 6, 9 of 18 x 2 in 3 groups, 54 x 4
    keys = {"activations": 6, "inputs": 3, "layers": {"6": {"weights": 5}}}
    full = 25 * 18 * 6 * 3 + 9 * 18 * 6 * 6
    step = MixedPrecision(
        bit_operations=4 * full + 54 * 4 * 6 * 5, method=method, granularity="layer", quantize=keys
    )
    result = run(model, data, step)
    widths = {name: each["fewest"] for name, each in result.summary["widths"].items()}
    used = 25 * 18 * 6 * 3 * widths["0"] + 9 * 18 * 6 * 6 * widths["3"] + 54 * 4 * 6 * 5
    assert result.summary["bit_operations"] == used <= step.bit_operations
    with pytest.raises(RecipeError, match=f"the fewest are {2 * full + 54 * 4 * 6 * 5}; 6 keep"):
        run(model, data, replace(step, bit_operations=full))


def test_what_the_recipe_says_of_layers_stays() -> None:
    model, data = classes()
    keys = {"layers": {"0": {"weights": 8}, "2": {"weight_format": "ternary"}}}
    result = run(model, data, MixedPrecision(weight_bits=6, quantize=keys))
    assert list(result.summary["widths"]) == ["4"]
    assert result.summary["quantize"]["formats"]["2.weight"].startswith("ternary")
    assert result.found.layers["0"] == {"weights": 8}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "required one budget of weight_bits, bit_operations, error, points, dsp, got none"),
        ({"weight_bits": 3, "error": 0.1}, "got weight_bits, error"),
        ({"weight_bits": 0}, "weight_bits: required a number above 0, got 0"),
        ({"points": -1}, "points: required a number of at least 0, got -1"),
        ({"weight_bits": float("nan")}, "weight_bits: required a number above 0"),
        ({"weight_bits": 3, "widths": [33]}, "widths: required some of 0 to 32 bits"),
        ({"weight_bits": 3, "widths": []}, "widths: required some of 0 to 32 bits"),
        ({"weight_bits": 3, "target": "xc7z020"}, "target: is for the budget dsp"),
        ({"weight_bits": 3, "method": "best"}, "method: required"),
        ({"weight_bits": 3, "quantize": {"activation": 8}}, "quantize.activation: unknown key"),
        ({"weight_bits": 3, "bits": 3}, "bits: unknown key"),
    ],
)
def test_bad_keys_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        MixedPrecision(**keys)


def test_budgets_that_cannot_be_met_say_what_can() -> None:
    model, data = classes()
    graph = capture(model, data.example(2))
    for step, message in [
        (MixedPrecision(weight_bits=1.5, widths=(2, 3)), "the fewest are 2$"),
        (MixedPrecision(error=1e-6), r"error = 1e-06 cannot be had: with 8 bits a weight it is "),
        (
            MixedPrecision(weight_bits=2, quantize={"layers": {"*": {"weights": 3}}}),
            "no layer is left whose width could be chosen; layers with weights: 0, 2, 4",
        ),
    ]:
        with pytest.raises(RecipeError, match=message):
            step(graph, data)
    with pytest.raises(RecipeError, match="required data"):
        MixedPrecision(weight_bits=3)(graph)
    with pytest.raises(RecipeError, match="the graph is quantized already"):
        MixedPrecision(weight_bits=3)(Quantize()(graph, data).graph, data)


def test_something_comes_through_every_layer() -> None:
    torch.manual_seed(0)
    data = Data(x_train=torch.randn(40, 8))
    for sizes in ((8, 1), (8, 1, 1), (8, 4, 1)):
        model = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))
        least = 2 * sum(a for a, _ in itertools.pairwise(sizes))
        least /= sum(a * b for a, b in itertools.pairwise(sizes))
        with pytest.raises(RecipeError, match=f"weight_bits = 0.1 cannot .* are {least:.4g}"):
            run(model, data, MixedPrecision(weight_bits=0.1))
        for method in ("sensitivity", "learned"):
            step = MixedPrecision(weight_bits=least + 1e-4, method=method)  # type: ignore[arg-type]
            widths = run(model, data, step).summary["widths"]
            assert all(each["most"] == 2 for each in widths.values())


def test_huge_budgets_are_all_there_is() -> None:
    model, data = image()
    for step in (MixedPrecision(weight_bits=1e300), MixedPrecision(bit_operations=10**30)):
        widths = run(model, data, step).summary["widths"].values()
        assert all(each["fewest"] >= 6 for each in widths)


def test_weights_that_share_a_name_keep_the_recipes_width() -> None:
    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.LSTMCell(5, 4), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = c = torch.zeros(x.shape[0], 4)
            for step in range(3):
                h, c = self.cell(x[:, step], (h, c))
            return self.head(h)

    torch.manual_seed(0)
    data = Data(x_train=torch.randn(50, 3, 5))
    result = run(Cells().eval(), data, MixedPrecision(weight_bits=7.95, method="learned"))
    assert set(result.summary["widths"]) == {"head"}
    assert set(result.summary["given"].values()) == {8}
    assert result.summary["average_bits"] <= 7.95
    x = torch.as_tensor(data.example(20))
    program = lower(result.graph)
    np.testing.assert_array_equal(
        simulate(program, x.numpy()), exact_forward(result.graph, x).numpy()
    )


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (1, None, r"required one output of class scores, \[samples, classes\]"),
        (4, torch.full((60,), 9), "required class numbers 0 to 3, .* got 9 to 9"),
        (4, torch.zeros(60, 4), "required class numbers, got torch.float32"),
        (4, torch.zeros(60, 4, dtype=torch.int64), "required 1 labels a sample"),
    ],
)
def test_points_need_classes(outputs: int, labels: Any, message: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, outputs))
    with pytest.raises(FxloomError, match=message):
        run(model, Data(torch.randn(60, 6), labels), MixedPrecision(points=1))


def test_mixed_widths_train() -> None:
    model, data = classes()
    x = torch.as_tensor(data.example(600))
    mixed = MixedPrecision(weight_bits=1.5, quantize={"activations": 6})
    train = Finetune(epochs=6, narrowing=2, ranges=True, learning_rate=1e-2)
    before = run(model, data, mixed).graph
    graph = Recipe([mixed, train]).run(capture(model, x[:2]), data).graph
    program = lower(graph)
    np.testing.assert_array_equal(simulate(program, x.numpy()), exact_forward(graph, x).numpy())
    right = [float((g(x).argmax(1) == data.labels()).double().mean()) for g in (before, graph)]
    assert right[1] > right[0]
    widths = {n.name: n.args[3] for n in graph.graph.nodes if "requantize_weights" in str(n.target)}
    assert widths == {
        n.name: n.args[3] for n in before.graph.nodes if "requantize_weights" in str(n.target)
    }
