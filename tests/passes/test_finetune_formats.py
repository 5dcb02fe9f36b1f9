"""Finetune with formats that change: learned binary points, widths that fall."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx

from fxloom.backends.simulator import simulate
from fxloom.data import Data
from fxloom.encodings import Encoding
from fxloom.errors import RecipeError
from fxloom.exact import exact_forward
from fxloom.fixed_point import FixedPoint
from fxloom.frontend import capture
from fxloom.graph import arguments, as_indices, origin
from fxloom.lowering import lower
from fxloom.passes import training
from fxloom.passes.chains import LAYERS
from fxloom.passes.finetune import Finetune
from fxloom.passes.learned_ranges import divided, multiplied
from fxloom.quantized_ops import LOOKUP, REQUANTIZE, REQUANTIZE_WEIGHTS
from tests.capturing import captured
from tests.models import make
from tests.passes.test_finetune import accuracy, assert_equal, circles, perceptron, quantized, state

X, Y = circles()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data() -> Data:
    return Data(X, Y)


def formats(graph: fx.GraphModule, *, biases: bool = False) -> dict[str, tuple[Any, ...]]:
    """width, integer and signed of every rounding, by name, and the rest of its arguments."""
    given = {arguments(n)[2] for n in graph.graph.nodes if n.target in LAYERS}
    return {
        node.name: arguments(node)[1:]
        for node in graph.graph.nodes
        if node.target in (REQUANTIZE, REQUANTIZE_WEIGHTS) and (biases or node not in given)
    }


def moved(graph: fx.GraphModule, node: str, bits: int) -> fx.GraphModule:
    """The graph with another binary point for the rounding of that name."""
    for each in graph.graph.nodes:
        if each.name == node:
            args = list(each.args)
            args[-4] += bits
            each.args = tuple(args)
    graph.recompile()
    return graph


def straight(x: Tensor) -> Tensor:
    """Rounded to even, with the gradient of the identity."""
    return x + (torch.round(x) - x).detach()


def learned(x: Tensor, point: Tensor, to: FixedPoint, shifts: list[int], encoding: str) -> Tensor:
    """x rounded with a range that has grown by 2**point."""
    levels = Encoding(encoding).levels(to.width) or (to.lo, to.hi)
    ends = (0.0, 0.0) if encoding == "binary" else (levels[0] * to.step, levels[-1] * to.step)
    kind = (to.width, to.integer, to.signed, "RND_CONV", "SAT")
    small = divided(x, point, *ends, shifts)
    return multiplied(REQUANTIZE_WEIGHTS(small, shifts, encoding, [], *kind), point)


@pytest.mark.parametrize("to", [FixedPoint(4, 1), FixedPoint(3, 2, False), FixedPoint(6, -1)])
@pytest.mark.parametrize("grown", [0.0, 0.3, -1.4])
def test_the_gradient_of_a_range_is_that_of_a_step_size(to: FixedPoint, grown: float) -> None:
    x = 3 * torch.randn(500, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(500, generator=torch.Generator().manual_seed(1))
    point = torch.tensor(grown, requires_grad=True)
    inputs = x.clone().requires_grad_()
    result = learned(inputs, point, to, [], "fixed")
    (result * weights).sum().backward()
    # Esser et al. 2019, equations 1 and 2, with a step of 2**bits: autograd does the rest.
    bits = torch.tensor(grown - to.fraction, requires_grad=True)
    other = x.clone().requires_grad_()
    step = torch.exp2(bits)
    wanted = straight((other / step).clamp(to.lo, to.hi)) * step
    (wanted * weights).sum().backward()
    assert torch.allclose(result, wanted, rtol=1e-5)
    assert point.grad is not None
    assert bits.grad is not None
    assert torch.allclose(point.grad, bits.grad, rtol=1e-3)
    assert inputs.grad is not None
    assert other.grad is not None
    assert torch.allclose(inputs.grad, other.grad, rtol=1e-5)


@pytest.mark.parametrize("encoding", list(Encoding))
def test_a_channel_has_a_gradient_of_its_own(encoding: Encoding) -> None:
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    x[1] /= 4
    to = FixedPoint(encoding.width(3), 1)
    point = torch.tensor([0.2, -0.3], requires_grad=True)
    learned(x, point, to, [0, 2], encoding).sum().backward()
    assert point.grad is not None
    for channel, shift in enumerate([0, 2]):
        alone = point.detach()[channel].clone().requires_grad_()
        own = FixedPoint(to.width, 1 - shift)
        learned(x[channel], alone, own, [], encoding).sum().backward()
        assert alone.grad is not None
        assert torch.allclose(point.grad[channel], alone.grad)
        assert alone.grad != 0


def test_a_weight_at_the_end_of_its_range_asks_for_more() -> None:
    x, point = torch.tensor([0.875, -1.0]), torch.zeros((), requires_grad=True)
    (learned(x, point, FixedPoint(4, 1), [], "fixed") * x).sum().backward()
    assert point.grad is not None
    assert point.grad > 0


def test_a_range_that_is_much_too_small_is_learned(data: Data) -> None:
    graph = quantized(perceptron(), data, activations=4)
    names = [n.name for n in graph.graph.nodes if n.target is REQUANTIZE and n.meta.get("twin")]
    hidden = names[1]
    spoilt = moved(graph, hidden, -4)
    before = formats(spoilt)
    options: dict[str, Any] = {"epochs": 40, "learning_rate": 0.02}
    result = Finetune(**options, ranges=True)(spoilt, data)
    assert formats(result.graph)[hidden][1] > before[hidden][1]
    ranges = result.summary["ranges"]
    assert isinstance(ranges, dict)
    assert len(ranges) >= 1
    fixed = Finetune(**options)(spoilt, data)
    assert formats(fixed.graph) == before == formats(spoilt)
    assert "ranges" not in fixed.summary
    better, worse = (r.summary["kept"]["loss"] for r in (result, fixed))  # type: ignore[index]
    assert better < worse
    assert accuracy(result.graph, X, Y) > 0.9


ENCODED: list[dict[str, Any]] = [
    {},
    {"weight_format": "ternary", "per_channel": True},
    {"per_channel": True},
    {"weight_format": "binary"},
    {"weight_format": "power_of_two"},
]
OTHERS = ["resnet avg 3", "layer used twice", "lstm, last step", "softmax", "separable"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("mlp", each) for each in ENCODED),
        *((name, ENCODED[i % 2]) for i, name in enumerate(OTHERS)),
    ],
)
def test_the_result_lowers_and_simulates_exactly(name: str, options: dict[str, Any]) -> None:
    model, inputs = make(name)
    with torch.no_grad():
        y = model(*inputs)
    samples = Data(inputs if len(inputs) > 1 else inputs[0], y + 0.5 * torch.randn_like(y))
    graph = quantized(captured(name), samples, **options)
    step = Finetune(epochs=4, learning_rate=0.3, batch=2, ranges=True, narrowing=2)
    result = step(graph, samples)
    before, after = formats(graph), formats(result.graph)
    assert before.keys() == after.keys()
    assert [n.name for n in graph.graph.nodes] == [n.name for n in result.graph.graph.nodes]
    assert not any("binary_point" in key for key in result.graph.state_dict())
    changed = sum(before[node] != after[node] for node in before)
    assert (changed > 0) == bool(result.summary["ranges"])
    assert changed
    widths = [[args[-5] for args in each.values()] for each in (before, after)]
    assert widths[0] == widths[1]
    want = exact_forward(result.graph, *as_indices(result.graph, inputs))
    got = simulate(lower(result.graph), tuple(x.numpy() for x in inputs))
    assert np.array_equal(np.asarray(got).reshape(want.shape), want.numpy())


@pytest.mark.parametrize("name", ["lstm, last step", "softmax", "tanh", "layer norm"])
def test_what_tables_and_recurrences_read_keeps_its_format(name: str) -> None:
    model, inputs = make(name)
    with torch.no_grad():
        y = model(*inputs)
    samples = Data(inputs if len(inputs) > 1 else inputs[0], y + 0.5 * torch.randn_like(y))
    graph = quantized(captured(name), samples)
    result = Finetune(epochs=2, learning_rate=0.5, batch=2, ranges=True)(graph, samples).graph
    after = formats(result)
    for node in graph.graph.nodes:
        if node.target is LOOKUP:
            source = arguments(node)[0]
            if source.name in after:
                assert after[source.name][:3] == arguments(node)[2:5]
        weight = node.target is REQUANTIZE and arguments(node)[0].op == "get_attr"
        if node.meta.get("tied") and node.name in after and not weight:
            assert after[node.name] == formats(graph)[node.name]


def test_frozen_layers_keep_their_formats(data: Data) -> None:
    graph = quantized(perceptron(), data)
    step = Finetune(epochs=3, learning_rate=0.5, ranges=True, freeze=("0",))
    result = step(graph, data).graph
    before, after = formats(graph), formats(result)
    names = {node.name: origin(node) for node in graph.graph.nodes}
    kept = [n for n in before if names[n] in ("0", "1")]  # the layer and its rectifier
    assert len(kept) == 2
    assert all(before[n] == after[n] for n in kept)
    assert any(before[n] != after[n] for n in before)


def test_widths_fall_to_those_of_the_graph(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = quantized(perceptron(), data, weight_format="ternary", activations=4)
    seen: list[dict[str, tuple[Any, ...]]] = []
    plain = training.Training._step

    def watched(self: training.Training, *args: Any) -> float:
        seen.append(formats(self.module))
        return plain(self, *args)

    monkeypatch.setattr(training.Training, "_step", watched)
    result = Finetune(epochs=6, batch=300, narrowing=4)(graph, data).graph
    narrow = [n for n, args in formats(graph).items() if args[-5] < 8]
    widths = [{formats_[n][-5] for n in narrow} for formats_ in seen]
    assert widths == [{8}, {7}, {5, 6}, {4, 5}, {2, 4}, {2, 4}]
    weights = [n for n in narrow if formats(graph)[n][-5] == 2]
    assert all(seen[0][n] != formats(graph)[n] for n in weights)
    assert seen[4] == formats(graph) == formats(result)


def test_no_state_of_wider_formats_is_kept(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([0.1, 0.1, 3.0, 2.0, 2.5, 2.5, 2.5, 2.5])
    monkeypatch.setattr(training.Training, "_validate", lambda *_: next(losses))
    step = Finetune(epochs=9, validation=0.1, patience=2, narrowing=2)
    result = step(quantized(perceptron(), data), data)
    assert result.summary["kept_epoch"] == 4
    assert result.summary["epochs"] == 6


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_it_resumes_bit_for_bit(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    graph = quantized(perceptron(), data, per_channel=True)
    keys: dict[str, Any] = {"epochs": 8, "learning_rate": 0.1, "validation": 0.2}
    keys |= {"ranges": True, "narrowing": 3}
    plain = training.Training._epoch

    def interrupted(self: training.Training, epoch: int, samples: training.Samples) -> float:
        if epoch == stop:
            raise KeyboardInterrupt
        return plain(self, epoch, samples)

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Finetune(**keys, checkpoint=str(tmp_path))(graph, data)
    resumed = Finetune(**keys, checkpoint=str(tmp_path))(graph, data)
    whole = Finetune(**keys)(graph, data)
    assert resumed.summary == whole.summary
    assert whole.summary["ranges"]
    assert formats(resumed.graph, biases=True) == formats(whole.graph, biases=True)
    assert_equal(state(resumed.graph), state(whole.graph))
    with pytest.raises(RecipeError, match="narrowing 3 there, 2 here"):
        Finetune(**keys | {"narrowing": 2}, checkpoint=str(tmp_path))(graph, data)


def test_binary_points_stay_in_the_second_half(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = quantized(perceptron(), data)
    seen: list[list[float]] = []
    plain = training.Training._epoch

    def watched(self: training.Training, *args: Any) -> float:
        value = plain(self, *args)
        seen.append([float(p.detach()) for p in self.formats.points.values()])
        return value

    monkeypatch.setattr(training.Training, "_epoch", watched)
    Finetune(epochs=6, ranges=True)(graph, data)
    assert seen[0] != seen[1] != seen[2]
    assert seen[2] == seen[3] == seen[5]


@pytest.mark.parametrize("keys", [{"ranges": True}, {"narrowing": 1}])
def test_a_float_graph_has_no_formats_to_change(data: Data, keys: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="required a quantized graph"):
        Finetune(epochs=2, **keys)(capture(perceptron(), X[:2]), data)


def test_both_graphs_have_the_same_tensors_wherever_they_were_moved(data: Data) -> None:
    graph, step = quantized(perceptron(), data), Finetune(epochs=4, ranges=True)
    want = state(step(graph, data).graph)
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # as some devices need it
    try:
        got = state(step(graph, data).graph)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    assert_equal(got, want)


def test_one_epoch_is_too_few_to_learn_ranges() -> None:
    with pytest.raises(RecipeError, match="ranges: required at least 2 epochs, got 1"):
        Finetune(epochs=1, ranges=True)


@pytest.mark.parametrize("narrowing", [-1, 5, 6])
def test_narrowing_ends_before_training_does(narrowing: int) -> None:
    with pytest.raises(RecipeError, match=f"narrowing: required 0 to 4.*got {narrowing}"):
        Finetune(epochs=5, narrowing=narrowing)
