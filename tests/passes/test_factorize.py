"""The pass that factors layers: ranks given, by energy and by budget, fitted to data."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxloom
from fxloom.data import Data
from fxloom.errors import DataError, RecipeError
from fxloom.frontend import capture
from fxloom.passes import Factorize, Prune, Quantize
from fxloom.passes.reduced_rank import Regression
from fxloom.recipe import Recipe, count_parameters


class Net(nn.Module):
    """Convolutions with and without groups, a batch norm, linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2)
        self.mix = nn.Conv2d(12, 10, 1)
        self.hidden, self.head = nn.Linear(90, 40), nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.mix(torch.relu(self.grouped(x))))
        return self.head(torch.relu(self.hidden(x.flatten(1))))


class Tokens(nn.Module):
    """An embedding, a recurrence and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(30, 16), nn.GRU(16, 12, batch_first=True)
        self.twice, self.head = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(self.embed(x))
        y = torch.relu(self.twice(torch.relu(self.twice(y[:, -1]))))
        return self.head(y)


def made(samples: int = 64) -> tuple[GraphModule, Data]:
    torch.manual_seed(0)
    net = Net().eval()
    x = torch.randn(samples, 2, 6, 6)
    x[:, 1] += x[:, 0]
    return capture(net, x[:2]), Data(x, x.flatten(1)[:, :5].argmax(1))


def outputs(graph: GraphModule, data: Data) -> Tensor:
    with torch.no_grad():
        return graph(torch.as_tensor(data.x_train))


def off(graph: GraphModule, other: GraphModule, data: Data) -> float:
    a, b = outputs(graph, data), outputs(other, data)
    return float((a - b).square().mean() / a.var())


def layers_of(result: Any) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = result.summary["layers"]
    return found


# Maps of low rank ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [7, 60])
def test_few_rows_and_many_give_the_regression_of_the_normal_equations(rows: int) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(2, rows, 12), torch.randn(2, 5, 12)
    y = x @ w.transpose(1, 2) + 0.1 * torch.randn(2, rows, 5)
    ridge = 0.1
    problem = Regression.of(x, y, 0.5 * w, ridge, centred=True)
    fitted = problem.fitted()
    a, b = (each.double() - each.double().mean(1, keepdim=True) for each in (x, y))
    noise = ridge * a.square().mean((1, 2)) * rows
    system = a.transpose(1, 2) @ a + noise[:, None, None] * torch.eye(12).double()
    right = b.transpose(1, 2) @ a + noise[:, None, None] * 0.5 * w.double()
    wanted = torch.linalg.solve(system, right.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(fitted.weights(), wanted)
    torch.testing.assert_close(fitted.given(), a @ wanted.transpose(1, 2))
    torch.testing.assert_close(fitted.squares(), wanted @ wanted.transpose(1, 2))
    directions = torch.randn(2, 3, 5).double()
    torch.testing.assert_close(fitted.onto(directions), directions @ wanted)


def test_no_map_of_that_rank_comes_nearer_in_the_metric() -> None:
    """In the metric, and with the noise that stands for what data do not say."""
    torch.manual_seed(0)
    x, w = torch.randn(1, 50, 9).double(), torch.randn(1, 6, 9).double()
    problem = Regression.of(x, x @ w.transpose(1, 2), w, 1e-9, centred=False)
    root = torch.diag(torch.linspace(0.5, 3, 6)).double()[None]
    left, right = problem.reduced(2, (root, root.inverse()))

    def error(left: Tensor, right: Tensor) -> Tensor:
        return ((problem.y - x @ (left @ right).transpose(1, 2)) @ root).square().sum()

    found = error(left, right)
    wanted = torch.linalg.svdvals((x @ w.transpose(1, 2)) @ root)[0, 2:].square().sum()
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    lengths = left.norm(dim=1), right.norm(dim=2)
    torch.testing.assert_close(*lengths)


# Ranks that are given -----------------------------------------------------------------------------


def test_ranks_are_those_that_were_asked_for() -> None:
    graph, data = made()
    step = Factorize(rank=4, layers={"grouped": {"method": "spatial", "rank": [5]}})
    result = step(graph, data)
    layers = layers_of(result)
    assert {name: (each["method"], each["ranks"]) for name, each in layers.items()} == {
        "stem": ("svd", [4]),
        "grouped": ("spatial", [5]),
        "mix": ("svd", [4]),
        "hidden": ("svd", [4]),
        "head": ("svd", [4]),
    }
    assert result.summary["notes"] == {}
    names = dict(result.graph.named_parameters())
    assert names["hidden.weight_factor0"].shape == (4, 90)
    assert names["hidden.weight_factor1"].shape == (40, 4)
    assert result.graph(torch.as_tensor(data.x_train)).shape == (64, 5)


@pytest.mark.parametrize("method", ["svd", "spatial", "tucker", "tt"])
def test_chains_of_full_rank_compute_the_same_with_and_without_data(method: str) -> None:
    from fxloom.passes.decompositions import METHODS
    from fxloom.passes.factor_subjects import Subject
    from fxloom.passes.factoring import Factoring
    from fxloom.passes.prunable import find_prunable

    graph, data = made()
    subjects = [Subject.of(graph, each) for each in find_prunable(graph)]
    chosen = METHODS[method]
    plan = {
        each.name: (chosen, chosen.full(each.layer))
        for each in subjects
        if not chosen.problem(each.layer)
    }
    assert len(plan) >= 2
    for given in (None, data):
        factoring = Factoring.of(graph, subjects, given, 64, False, 0)
        again, _ = factoring.written(plan)
        torch.testing.assert_close(outputs(again, data), outputs(graph, data), rtol=1e-4, atol=1e-5)


def test_energy_and_noise_choose_ranks() -> None:
    graph, _ = made()
    with torch.no_grad():
        weight = graph.get_parameter("hidden.weight")
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        s = torch.cat([torch.tensor([9.0, 6.0, 3.0]), torch.full((37,), 0.05)])
        weight.copy_(u * s @ v)
    found = layers_of(Factorize(energy=0.99, include=("hidden",))(graph))
    assert found["hidden"]["ranks"] == [3]
    assert found["hidden"]["error"] == pytest.approx(37 * 0.05**2 / (126 + 37 * 0.05**2), rel=1e-2)
    assert layers_of(Factorize(energy=0.9, include=("hidden",))(graph))["hidden"]["ranks"] == [2]
    with torch.no_grad():
        noise = torch.randn(40, 90, generator=torch.Generator().manual_seed(1))
        weight.copy_((u[:, :2] * torch.tensor([9.0, 6.0])) @ v[:2] + 0.05 * noise)
    found = layers_of(Factorize(rank="vbmf", include=("hidden",))(graph))
    assert found["hidden"]["ranks"] == [2]


# Ranks by budget ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", ["parameters", "macs"])
@pytest.mark.parametrize("method", ["svd", "auto"])
def test_budget_is_met(cost: Any, method: Any) -> None:
    graph, data = made()
    result = Factorize(budget=0.5, cost=cost, method=method)(graph, data)
    kept: Any = result.summary["kept"]
    assert 0.49 <= kept[cost] <= 0.5
    if cost == "parameters":
        counts = [count_parameters(each)["parameters"] for each in (graph, result.graph)]
        assert kept[cost] == pytest.approx(counts[1] / counts[0], rel=1e-3)


@pytest.mark.parametrize(("cost", "share"), [("dsp", 0.6), ("lut", 0.5)])
def test_budget_of_hardware_is_met_by_the_estimate(cost: Any, share: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU())
    x = torch.randn(64, 24)
    graph, data = capture(net.eval(), x[:2]), Data(x)
    keys = {"weights": 7}
    step = Factorize(budget=share, cost=cost, target="xczu9eg", quantize=keys)
    needed = []
    for each in (graph, step(graph, data).graph):
        program = fxloom.lower(Quantize(weights=7)(each, data).graph)
        total = fxloom.estimate(program, fxloom.Target(part="xczu9eg")).total
        needed.append(getattr(total.csynth, cost).value)
    assert 0.98 * share <= needed[1] / needed[0] <= share
    with pytest.raises(RecipeError, match=f"of .* {cost} the smallest share that was found is"):
        replace(step, budget=0.01)(graph, data)


def test_budget_goes_where_the_outputs_need_it() -> None:
    """Nearer than the same share of every layer, with data and without; what is found can be had
    again without a search."""
    graph, data = made(256)
    found = Factorize(budget=0.6)(graph, data)
    with torch.no_grad():
        ranks = {
            name: {"rank": int(0.6 * size / sum(shape))}
            for name, shape, size in (
                ("stem", (8, 18), 144),
                ("hidden", (40, 90), 3600),
                ("head", (5, 40), 200),
            )
        }
    equal = Factorize(layers=ranks, include=tuple(ranks))
    best = off(graph, found.graph, data)
    assert best < 0.5 * off(graph, equal(graph, data).graph, data)
    assert off(graph, equal(graph, data).graph, data) < off(graph, equal(graph).graph, data)
    assert found.found is not None
    again = found.found(graph, data)
    assert again.found is None
    torch.testing.assert_close(outputs(again.graph, data), outputs(found.graph, data))
    recipe = Recipe([found.found])
    assert Recipe.parse(recipe.to_toml()) == recipe


def test_whole_budget_changes_nothing() -> None:
    graph, data = made()
    result = Factorize(budget=1.0)(graph, data)
    assert result.graph is graph
    assert not result.modified


def test_layers_of_tokens_and_recurrences_share_a_budget() -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 30, (40, 3))
    graph = capture(Tokens().eval(), x[:2])
    data = Data(x)
    result = Factorize(budget=0.7)(graph, data)
    kept: Any = result.summary["kept"]
    assert 0.68 <= kept["parameters"] <= 0.7
    assert off(graph, result.graph, data) < 0.5
    recipe = Recipe([Factorize(rank=3, include=("embed", "twice", "rnn*")), Quantize()])
    program = fxloom.lower(recipe.run(graph, data).graph)
    program.verify()
    with torch.no_grad():  # of whoever calls it
        wanted = recipe.run(graph, data).graph(x).numpy()
    np.testing.assert_array_equal(fxloom.simulate(program, x.numpy()), wanted)


def test_biases_make_the_means_right() -> None:
    graph, data = made()
    result = Factorize(rank=2, include=("hidden",))(graph, data)
    values = {}
    for name, each in (("before", graph), ("after", result.graph)):
        node = next(
            n
            for n in each.graph.nodes
            if n.meta.get("origin") in ("hidden", "hidden.factor1") and n.op == "call_function"
        )
        watch = torch.fx.Interpreter(each, garbage_collect_values=False)
        with torch.no_grad():
            watch.run(torch.as_tensor(data.x_train))
        values[name] = watch.env[node].mean(0)
    torch.testing.assert_close(values["after"], values["before"], rtol=1e-4, atol=1e-5)


def test_norms_between_and_training() -> None:
    graph, data = made()
    step = Factorize(budget=0.5, batchnorm=True, finetune={"epochs": 1})
    result = step(graph, data)
    assert any("norm0" in name for name in dict(result.graph.named_parameters()))
    assert result.summary["finetune"]
    fxloom.lower(Quantize()(result.graph, data).graph).verify()


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "required one of rank, energy, budget, got none"),
        ({"rank": 2, "budget": 0.5}, "got rank and budget"),
        ({"rank": 0}, "rank: required at least 1, got 0"),
        ({"energy": 1.5}, "energy: required a share between 0 and 1, got 1.5"),
        ({"budget": 1.5}, "budget: required a share above 0 and up to 1, got 1.5"),
        ({"method": "auto", "rank": 2}, 'method: "auto" is for a budget'),
        ({"rank": 2, "cost": "macs"}, "cost: is for a budget"),
        ({"budget": 0.5, "target": "xczu9eg"}, "target: is for a cost of dsp or lut"),
        ({"budget": 0.5, "cost": "dsp", "quantize": {"bits": 3}}, "quantize.bits: unknown key"),
        ({"rank": 2, "layers": {"fc": {"ranks": 3}}}, 'layers."fc".ranks: unknown key'),
        ({"rank": 2, "layers": {"fc": {"rank": 3, "energy": 0.5}}}, "got both"),
        ({"rank": 2, "finetune": {"epoch": 1}}, "finetune.epoch: unknown key"),
        ({"method": "qr", "rank": 2}, "method: required"),
        ({"rank": 2, "samples": 0}, "samples: required at least 1"),
    ],
)
def test_bad_keys(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Factorize(**keys)
    assert message in str(caught.value)


def test_budget_that_cannot_be_had_names_the_nearest() -> None:
    graph, data = made()
    with pytest.raises(RecipeError, match="cannot be had: the smallest share of") as caught:
        Factorize(budget=0.05)(graph, data)
    nearest = float(str(caught.value).split("parameters is ")[1].split(";")[0])
    assert Factorize(budget=nearest)(graph, data).modified
    with pytest.raises(RecipeError, match="cannot be had"):
        Factorize(budget=nearest - 1e-3)(graph, data)


def test_ranks_that_cannot_be_had_name_the_largest() -> None:
    graph, data = made()
    with pytest.raises(RecipeError, match=r"hidden: svd: required ranks of at most 40, got 41"):
        Factorize(layers={"hidden": {"rank": 41}}, include=("hidden",))(graph, data)
    with pytest.raises(RecipeError, match=r"hidden: svd of rank 30 has .* up to rank 27 it has"):
        Factorize(rank=30, include=("hidden",))(graph, data)
    assert Factorize(rank=27, include=("hidden",))(graph).modified
    with pytest.raises(RecipeError, match="no layer is left"):
        Factorize(rank=100)(graph, data)


def test_what_is_refused_is_named() -> None:
    graph, data = made()
    with pytest.raises(RecipeError, match="hidden: required a kernel of two axes"):
        Factorize(method="spatial", rank=2, include=("hidden",))(graph, data)
    with pytest.raises(RecipeError, match="budget: required data"):
        Factorize(budget=0.5)(graph)
    with pytest.raises(RecipeError, match="Put factorize before quantize"):
        Factorize(rank=2)(Quantize()(graph, data).graph, data)
    rows = capture(nn.Embedding(20, 8).eval(), torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(RecipeError, match="budget: the model has no macs"):
        Factorize(budget=0.5, cost="macs")(rows, Data(torch.zeros(4, 3, dtype=torch.int64)))
    buffers = copy.deepcopy(graph)
    weight = buffers.get_parameter("hidden.weight").detach()
    del buffers.hidden.weight  # type: ignore[union-attr]
    buffers.hidden.register_buffer("weight", weight)  # type: ignore[operator, union-attr]
    with pytest.raises(RecipeError, match="hidden: its weights are a buffer"):
        Factorize(rank=2, include=("hidden",))(buffers)
    pruned = Prune(sparsity=0.5, include=("hidden",))(graph).graph
    with pytest.raises(RecipeError, match="hidden: its weights were pruned"):
        Factorize(rank=2, include=("hidden",))(pruned)
    assert "hidden" in Factorize(budget=0.95)(pruned, data).summary["notes"]  # type: ignore[operator]


def test_data_that_are_no_numbers_and_dead_layers() -> None:
    graph, data = made()
    with pytest.raises(DataError, match="stem: the float model gives NaN or infinity"):
        Factorize(budget=0.5)(graph, Data(1e38 * torch.ones(4, 2, 6, 6)))
    with torch.no_grad():
        graph.get_parameter("mix.bias").fill_(-1e3)  # behind it all is zero
    result = Factorize(budget=0.5)(graph, data)
    assert bool(outputs(result.graph, data).isfinite().all())
