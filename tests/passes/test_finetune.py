"""Finetune: what it recovers, what it leaves alone, how it resumes, what it refuses."""

import copy
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, fx, nn

from fxloom.backends.simulator import simulate
from fxloom.data import Data
from fxloom.errors import DataError, RecipeError
from fxloom.exact import exact_forward
from fxloom.frontend import capture
from fxloom.graph import arguments, as_indices, constant
from fxloom.lowering import lower
from fxloom.passes import training
from fxloom.passes.checkpoints import FILE
from fxloom.passes.finetune import Finetune
from fxloom.passes.fitting import bias_format
from fxloom.passes.quantize import Quantize
from fxloom.passes.training import batch_count
from fxloom.quantized_ops import REQUANTIZE
from fxloom.recipe import Recipe
from tests.capturing import captured
from tests.models import make

aten = torch.ops.aten


def circles(count: int = 240) -> tuple[Tensor, Tensor]:
    """Points in the plane; class 1 lies within a circle."""
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(1))
    return x, (x.norm(dim=1) < 1.1).long()


def perceptron(*, norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(2, 16), *([nn.BatchNorm1d(16)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)).eval()


def quantized(model: nn.Module | fx.GraphModule, data: Data, **options: Any) -> fx.GraphModule:
    keys = {"weights": 3, "activations": 4, "weight_rounding": "nearest", "samples": 64} | options
    graph = model if isinstance(model, fx.GraphModule) else capture(model, data.example(2))
    return Quantize(**keys)(graph, data).graph


def accuracy(graph: fx.GraphModule, x: Tensor, y: Tensor) -> float:
    scores = np.asarray(simulate(lower(graph), x.numpy()))
    return float((scores.argmax(1) == y.numpy()).mean())


def state(graph: fx.GraphModule) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in graph.state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data() -> Data:
    return Data(*circles())


def test_an_untrained_network_learns_in_few_bits(data: Data) -> None:
    x, y = circles()
    graph = quantized(perceptron(), data)
    before = accuracy(graph, x, y)
    result = Finetune(epochs=40, learning_rate=0.01)(graph, data)
    assert result.modified
    assert before < 0.7
    assert accuracy(result.graph, x, y) > 0.93
    first, kept = result.summary["first"], result.summary["kept"]
    assert isinstance(first, dict)
    assert isinstance(kept, dict)
    assert kept["loss"] < 0.7 * first["loss"]
    assert json.dumps(result.summary)


def test_quantization_that_broke_a_network_is_made_good(data: Data) -> None:
    x, y = circles()
    trained = Finetune(epochs=60, learning_rate=0.01)(capture(perceptron(), x[:2]), data).graph
    narrow = {"weights": 2, "activations": 4, "inputs": 6, "equalize": False, "method": "minmax"}
    graph = quantized(trained, data, bias_correction=False, **narrow)
    before = accuracy(graph, x, y)
    after = accuracy(Finetune(epochs=40, learning_rate=0.01)(graph, data).graph, x, y)
    assert before < 0.85
    assert after > 0.92


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(data: Data) -> None:
    graph = quantized(perceptron(), data)
    with torch.no_grad():  # which is the caller's affair
        runs = [state(Finetune(epochs=2, seed=seed)(graph, data).graph) for seed in (3, 3, 4)]
    assert_equal(runs[0], runs[1])
    assert any(not torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


@pytest.mark.parametrize("is_quantized", [False, True])
def test_the_input_and_the_model_and_the_random_state_stay_as_they_were(
    data: Data, is_quantized: bool
) -> None:
    model = perceptron(norm=True)
    kept = copy.deepcopy(model.state_dict())
    graph = quantized(model, data) if is_quantized else capture(model, circles()[0][:2])
    before, code = state(graph), str(graph.graph)
    places = {name: tensor.data_ptr() for name, tensor in graph.state_dict().items()}
    stream = torch.get_rng_state()
    result = Finetune(epochs=2)(graph, data).graph
    assert torch.equal(stream, torch.get_rng_state())
    assert str(graph.graph) == code
    assert_equal(before, state(graph))
    assert_equal(kept, dict(model.state_dict()))
    assert all(p.grad is None for p in [*graph.parameters(), *model.parameters()])
    assert not set(places.values()) & {t.data_ptr() for t in result.state_dict().values()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"per_channel": True},
        {"weight_rounding": "auto"},
        {"weight_format": "ternary", "per_channel": True},
        {"weight_format": "binary"},
        {"weight_format": "power_of_two"},
    ],
)
@pytest.mark.parametrize(
    "name", ["mlp", "resnet avg 3", "layer used twice", "lstm, last step", "softmax"]
)
def test_the_result_lowers_and_simulates_exactly(name: str, options: dict[str, Any]) -> None:
    model, inputs = make(name)
    with torch.no_grad():
        y = model(*inputs)
    samples = Data(inputs if len(inputs) > 1 else inputs[0], y + 0.5 * torch.randn_like(y))
    graph = quantized(captured(name), samples, **options)
    result = Finetune(epochs=2, learning_rate=0.01, batch=2)(graph, samples).graph
    changed = [n for n, t in state(graph).items() if not torch.equal(t, state(result)[n])]
    assert changed
    want = exact_forward(result, *as_indices(result, inputs))
    got = simulate(lower(result), tuple(x.numpy() for x in inputs))
    assert np.array_equal(np.asarray(got).reshape(want.shape), want.numpy())


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, rows: Tensor, x: Tensor) -> Tensor:
        return self.fc(self.embedding(rows) + x)


@pytest.mark.parametrize("is_quantized", [False, True])
def test_several_inputs_and_a_batch_in_the_middle(is_quantized: bool) -> None:
    torch.manual_seed(0)
    rows, x = torch.randint(7, (5, 60)), 0.1 * torch.randn(5, 60, 4)
    y = (rows.T[:, :, None] == torch.tensor([1, 2, 3])).float()  # [samples, steps, 3]
    model, given = Sequences(), Data((rows.T, x.transpose(0, 1).contiguous()), y)
    graph = capture(model, (rows[:, :2], x[:, :2]), batch_axes=1)
    if is_quantized:
        graph = quantized(graph, given, weights=8, activations=8)
    result = Finetune(epochs=30, learning_rate=0.02, batch=10)(graph, given).graph
    want = y.transpose(0, 1)
    assert (result(rows, x) - want).square().mean() < 0.3 * want.var()
    assert (graph(rows, x) - want).square().mean() > want.var()


def test_biases_that_outgrew_their_formats_have_new_ones(data: Data) -> None:
    x, y = circles()
    far = Data(x, (1000 * y + 3000).float()[:, None].expand(-1, 2).contiguous())
    graph = quantized(perceptron(), far)
    result = Finetune(epochs=3, learning_rate=100.0)(graph, far)
    grown = 0
    old = {node.name: node for node in graph.graph.nodes}
    for node in result.graph.graph.nodes:
        if node.target is aten.linear.default:
            rounding = arguments(node)[2]
            values = constant(result.graph, arguments(rounding)[0].target).detach()
            to = bias_format(node, values)
            assert arguments(rounding)[1:4] == (to.width, to.integer, to.signed)
            error = (REQUANTIZE(values, *arguments(rounding)[1:]) - values).abs().max()
            assert error <= to.step / 2 + 1e-6 * values.abs().max()
            grown += to.width > arguments(arguments(old[node.name])[2])[1]
    assert grown


@pytest.mark.parametrize(
    "options",
    [{}, {"per_channel": True}, {"weight_format": "binary"}, {"weight_format": "power_of_two"}],
)
def test_weights_stay_where_gradients_reach_them(data: Data, options: dict[str, Any]) -> None:
    graph = quantized(perceptron(), data, **options)
    result = Finetune(epochs=3, learning_rate=1.0)(graph, data).graph
    for node in result.graph.nodes:
        if node.target is aten.linear.default:
            rounding = arguments(node)[1]
            weights = constant(result, arguments(rounding)[0].target).detach().clone()
            weights.requires_grad_()
            rounding.target(weights, *arguments(rounding)[1:]).sum().backward()
            assert weights.grad is not None
            assert (weights.grad == 1).all()


def test_batch_norms_train_and_frozen_ones_do_not(data: Data) -> None:
    graph = capture(perceptron(norm=True), circles()[0][:2])
    result = Finetune(epochs=2)(graph, data).graph
    assert not torch.equal(result.state_dict()["1.running_mean"], state(graph)["1.running_mean"])
    x = circles()[0]
    assert torch.allclose(result(x)[:1], result(x[:1]), atol=1e-6)  # evaluation, not training
    frozen = Finetune(epochs=2, freeze=("0", "1"))(graph, data).graph
    for name, tensor in state(graph).items():
        kept = name.startswith(("0.", "1."))
        assert torch.equal(tensor, frozen.state_dict()[name]) == kept, name
    lower(quantized(result, data)).verify()


def test_a_norm_trains_with_its_batches_before_it_is_folded(data: Data) -> None:
    """Float training, folding, training in few bits: one recipe."""
    graph = capture(perceptron(norm=True), X[:2])
    few = Quantize(weights=3, activations=4, samples=64)
    steps = [Finetune(epochs=20, learning_rate=0.01), few, Finetune(epochs=20, learning_rate=0.01)]
    result = Recipe(steps).run(graph, data)
    floats = Recipe(steps[:1]).run(graph, data).graph
    for name in ("1.running_mean", "1.running_var"):
        assert not torch.equal(floats.state_dict()[name], state(graph)[name])
    assert not any(n.target is aten.batch_norm.default for n in result.graph.graph.nodes)
    assert np.array_equal(simulate(lower(result.graph), X.numpy()), exact_forward(result.graph, X))
    assert accuracy(result.graph, X, Y) > 0.95


def test_tied_weights_stay_tied() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    x = torch.randn(32, 4)
    samples = Data(x, torch.randn(32, 4))
    for graph in (capture(model, x[:2]), quantized(model, samples)):
        before = {t.data_ptr() for n, t in graph.state_dict().items() if n.endswith("weight")}
        result = Finetune(epochs=1)(graph, samples).graph
        weights = [t for n, t in result.state_dict().items() if n.endswith("weight")]
        assert len({t.data_ptr() for t in weights}) == len(before) == 1


def test_the_best_state_on_held_out_samples_is_kept(
    data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = quantized(perceptron(), data)
    losses = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    states: list[dict[str, Tensor]] = []

    def validate(self: training.Training, samples: training.Samples, epoch: int) -> float:
        assert len(samples) == 24
        states.append({name: t.detach().clone() for name, t in self.parameters.items()})
        return next(losses)

    monkeypatch.setattr(training.Training, "_validate", validate)
    result = Finetune(epochs=20, validation=0.1, patience=2)(graph, data)
    assert len(states) == 4  # two epochs in a row brought nothing
    assert result.summary["kept_epoch"] == 2
    assert_equal(dict(result.graph.named_parameters()), states[1])


CHILD = """
import sys, torch
from fxloom import Data, capture
from fxloom.passes import Finetune, checkpoints
from tests.passes.test_finetune import circles, perceptron, quantized, RESUMED
torch.set_num_threads(1)
plain = checkpoints.Checkpoint.save
def save(self, tensors, epochs):
    plain(self, tensors, epochs)
    print(len(epochs), flush=True)
checkpoints.Checkpoint.save = save
data = Data(*circles())
graph = quantized(perceptron(), data)
Finetune(**RESUMED, checkpoint=sys.argv[1])(graph, data)
"""
RESUMED: dict[str, Any] = {"epochs": 400, "validation": 0.2, "batch": 16}


def test_kill_9_loses_at_most_one_epoch_and_the_rest_is_the_same_bit_for_bit(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path / "new" / "folder")]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert child.stdout is not None
    done = 0
    while done < 3:
        done = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    done = max([done, *(int(line) for line in child.stdout)])
    assert child.wait() == -signal.SIGKILL
    with safe_open(tmp_path / "new" / "folder" / FILE, "pt") as file:
        saved = len(json.loads(file.metadata()["epochs"]))
    assert done <= saved <= done + 1
    assert saved < 40
    # To the end from there in few epochs: the same recipe, whose identity has all 400.
    monkeypatch.setattr(training.Training, "_is_stuck", lambda self: len(self.history) >= 40)
    graph = quantized(perceptron(), data)
    whole = Finetune(**RESUMED)(graph, data)
    epochs: list[int] = []
    plain = training.Training._epoch

    def counted(self: training.Training, epoch: int, samples: training.Samples) -> float:
        epochs.append(epoch)
        return plain(self, epoch, samples)

    monkeypatch.setattr(training.Training, "_epoch", counted)
    resumed = Finetune(**RESUMED, checkpoint=str(tmp_path / "new" / "folder"))(graph, data)
    assert epochs == list(range(saved, 40))
    assert resumed.summary == whole.summary
    assert_equal(state(resumed.graph), state(whole.graph))


def test_a_float_graph_resumes_with_its_norms(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = capture(perceptron(norm=True), circles()[0][:2])
    step = Finetune(epochs=6, checkpoint=str(tmp_path))
    plain = training.Training._epoch

    def interrupted(self: training.Training, epoch: int, samples: training.Samples) -> float:
        if epoch == 3:
            raise KeyboardInterrupt
        return plain(self, epoch, samples)

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            step(graph, data)
    resumed = step(graph, data)
    assert_equal(state(resumed.graph), state(Finetune(epochs=6)(graph, data).graph))
    again = step(graph, data)  # nothing is left to do
    assert again.summary == resumed.summary
    assert_equal(state(again.graph), state(resumed.graph))


def test_a_checkpoint_of_something_else_is_refused_by_name(data: Data, tmp_path: Path) -> None:
    graph = quantized(perceptron(), data)
    here = str(tmp_path)
    Finetune(epochs=1, checkpoint=here)(graph, data)
    with pytest.raises(RecipeError, match=r"learning_rate 0\.003 there, 0\.002 here"):
        Finetune(epochs=1, learning_rate=0.002, checkpoint=here)(graph, data)
    with pytest.raises(RecipeError, match="another training: another graph"):
        Finetune(epochs=1, checkpoint=here)(quantized(perceptron(), data, weights=4), data)
    with pytest.raises(RecipeError, match="another training: another data"):
        Finetune(epochs=1, checkpoint=here)(graph, Data(*(t[:-1] for t in circles())))
    file = tmp_path / FILE
    whole = file.read_bytes()
    for damaged in (b"", b"junk", whole[: len(whole) // 2], b"\0" * 100):
        file.write_bytes(damaged)
        with pytest.raises(RecipeError, match="damaged"):
            Finetune(epochs=1, checkpoint=here)(graph, data)
    file.unlink()
    file.mkdir()
    with pytest.raises(RecipeError, match=FILE):
        Finetune(epochs=1, checkpoint=here)(graph, data)


def test_a_checkpoint_that_cannot_be_written_is_an_error(data: Data, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RecipeError, match="cannot be written"):
        Finetune(epochs=1, checkpoint=str(blocked / "folder"))(quantized(perceptron(), data), data)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"epochs": 0}, "epochs: required at least 1, got 0"),
        ({"epochs": 2.5}, "epochs: required"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"batch": 0}, "batch"),
        ({"validation": 1.0}, "validation"),
        ({"patience": -1}, "patience"),
        ({"patience": 3}, "patience: required validation"),
        ({"seed": -1}, "seed"),
        ({"loss": "hinge"}, "loss"),
        ({"freeze": "0"}, "freeze"),
        ({"epoch": 3}, "Did you mean epochs"),
    ],
    ids=str,
)
def test_a_key_that_cannot_be_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Finetune(**keys)


def test_keys_survive_toml() -> None:
    recipe = Recipe([Finetune(freeze=("a*", "b"), checkpoint="folder", validation=0.1, patience=2)])
    assert Recipe.parse(recipe.to_toml()) == recipe
    assert Recipe.parse('[[pass]]\nname = "finetune"\n') == Recipe([Finetune()])


X, Y = circles()


@pytest.mark.parametrize(
    ("keys", "given", "error", "message"),
    [
        ({}, Data(X), DataError, "y_train"),
        ({}, Data(X, Y + 1), DataError, "0 to 1.*got 1 to 2"),
        ({}, Data(X, Y - 1), DataError, "0 to 1.*got -1 to 0"),
        ({}, Data(X, torch.stack([Y, Y], 1)), DataError, "1 labels a sample.*got 2"),
        ({}, Data(X, Y.float()), DataError, "2 labels a sample.*got 1"),
        ({"loss": "cross_entropy"}, Data(X, Y.float()), DataError, "class numbers"),
        ({}, Data(torch.cat([X, X], 1), Y), DataError, "training data.*required shape"),
        ({"freeze": ("*",)}, Data(X, Y), RecipeError, "no parameters to train"),
        ({"freeze": ("fc*",)}, Data(X, Y), RecipeError, "matches no layer.*Layers"),
        ({"device": "abacus"}, Data(X, Y), RecipeError, "abacus"),
        ({"validation": 0.9}, Data(X[:1], Y[:1]), DataError, "leave none to train on"),
        ({}, None, RecipeError, "required data"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_on_is_refused(
    keys: dict[str, Any], given: Data | None, error: type[Exception], message: str
) -> None:
    graph = quantized(perceptron(), Data(X, Y))
    with pytest.raises(error, match=message):
        Finetune(epochs=1, **keys)(graph, given)


def test_a_loss_that_is_not_finite_is_an_error(data: Data) -> None:
    graph = capture(perceptron(), X[:2])
    with pytest.raises(RecipeError, match=r"not finite in epoch 1.*learning_rate below 1e"):
        Finetune(epochs=3, learning_rate=1e30)(graph, data)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.two = nn.Linear(2, 16), nn.Linear(16, 3), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(x).relu()
        return self.one(hidden), self.two(hidden)


@pytest.mark.parametrize("is_quantized", [False, True])
def test_one_of_several_outputs_trains(data: Data, is_quantized: bool) -> None:
    torch.manual_seed(0)
    model = Heads()
    graph = quantized(model, data, weights=4) if is_quantized else capture(model, X[:2])
    result = Finetune(epochs=60, learning_rate=0.02, output="output_1")(graph, data).graph
    assert (result(X)[1].argmax(1) == Y).float().mean() > 0.85
    for name, tensor in state(graph).items():
        if "one" in name:
            assert torch.equal(tensor, result.state_dict()[name])
    with pytest.raises(RecipeError, match=r'one of output_0, output_1, which.*got "two"'):
        Finetune(output="two")(graph, data)
    if is_quantized:
        got, want = simulate(lower(result), X.numpy()), exact_forward(result, X)
        assert all(np.array_equal(a, b.numpy()) for a, b in zip(got, want, strict=True))


def test_several_outputs_and_outputs_without_gradients_are_refused(data: Data) -> None:
    model, inputs = make("two outputs")
    with pytest.raises(RecipeError, match=r"one of output_0, output_1, output_2.*got none"):
        Finetune()(capture(model, inputs), Data(inputs[0], torch.zeros(len(inputs[0]))))

    with pytest.raises(RecipeError, match=r"output is real, got torch\.int64"):
        Finetune()(capture(Ended(lambda y: y.argmax(1)), X[:2]), data)
    with pytest.raises(RecipeError, match="no gradient reaches"):
        Finetune(loss="mse")(capture(Ended(lambda y: (y > 0).float()[:, :1]), X[:2]), data)


class Ended(nn.Module):
    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.end = nn.Linear(2, 3), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.fc(x))


def test_one_sample_is_no_batch_for_a_batch_norm() -> None:
    graph = capture(perceptron(norm=True), X[:2])
    with pytest.raises(RecipeError, match="1: a batch norm needs batches of at least 2"):
        Finetune(batch=1)(graph, Data(X, Y))
    assert Finetune(batch=1, epochs=1, freeze=("1",))(graph, Data(X[:3], Y[:3])).modified
    result = Finetune(batch=2, epochs=1)(graph, Data(X[:5], Y[:5]))  # not 2 + 2 + 1
    assert all(bool(torch.isfinite(t).all()) for t in result.graph.state_dict().values())


@given(st.integers(1, 300), st.integers(1, 300))
def test_no_batch_is_much_larger_or_smaller_than_others(samples: int, size: int) -> None:
    parts = torch.tensor_split(torch.arange(samples), batch_count(samples, size))
    lengths = {len(part) for part in parts}
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= size + (size > 1)
    assert min(lengths) >= min(2, size, samples)


def test_people_see_how_far_it_is_and_files_do_not(
    data: Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    graph, told = quantized(perceptron(), data), list[str]()
    recipe = Recipe([Finetune(epochs=2)])
    recipe.run(graph, data, told.append)
    assert told == ["1/1 finetune"]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    recipe.run(graph, data, told.append)
    assert told[2].startswith("1/1 finetune: epoch 1 of 2, loss 0.")
    assert capsys.readouterr().err == ""
    recipe.run(graph, data)
    assert "finetune, loss" in capsys.readouterr().err


def test_probabilities_get_the_logarithm_that_logits_would(data: Data) -> None:
    model = nn.Sequential(*perceptron(), nn.Softmax(-1)).eval()
    graph = quantized(model, data, weights=6, activations=8, table_bits=8)
    result = Finetune(epochs=30, learning_rate=0.01)(graph, data)
    assert result.summary["loss"] == "nll"
    assert accuracy(result.graph, X, Y) > 0.9
