"""Pruning: how many weights go, which ones, where they stay zero, and what is refused."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxloom.backends.simulator import simulate
from fxloom.data import Data
from fxloom.errors import DataError, RecipeError
from fxloom.exact import exact_forward
from fxloom.facts import kept_weights
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes import Finetune, Prune, Quantize
from fxloom.passes.prunable import find_prunable
from fxloom.recipe import Recipe


def mlp() -> tuple[GraphModule, Data]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(),
                          nn.Linear(16, 4))  # fmt: skip
    x = torch.randn(300, 12) @ torch.randn(12, 12)
    return capture(model, x[:2]), Data(x, (x[:, :4]).argmax(1))


def cnn() -> tuple[GraphModule, Data]:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32, 4)),
    ).eval()  # fmt: skip
    x = torch.randn(200, 2, 6, 6)
    return capture(model, x[:2]), Data(x, torch.randint(0, 4, (200,)))


def zeros(graph: GraphModule) -> dict[str, int]:
    return {each.name: each.size - int(each.is_nonzero().sum()) for each in find_prunable(graph)}


def weights(graph: GraphModule, name: str) -> Tensor:
    return dict(graph.named_parameters())[name].detach()


METHODS: list[dict[str, Any]] = [
    {},
    {"method": "obd"},
    {"method": "obs"},
    {"refit": True},
    {"method": "obd", "refit": True},
    {"scope": "sensitivity"},
    {"scope": "sensitivity", "method": "obs"},
]


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("keys", METHODS, ids=str)
def test_exactly_as_many_weights_go_as_asked(make: Any, keys: Mapping[str, Any]) -> None:
    graph, data = make()
    total = sum(each.size for each in find_prunable(graph))
    found = zeros(Prune(sparsity=0.37, **keys)(graph, data).graph)
    assert sum(found.values()) == round(0.37 * total)
    by_layer = Prune(sparsity=0.37, **{**keys, "scope": "layer"})
    for each in find_prunable(by_layer(graph, data).graph):
        assert each.size - int(each.is_nonzero().sum()) == round(0.37 * each.size)


def test_magnitude_removes_the_smallest_of_all_weights() -> None:
    graph, _ = mlp()
    pruned = Prune(sparsity=0.6)(graph).graph
    before = torch.cat([each.values.flatten().abs() for each in find_prunable(graph)])
    after = torch.cat([each.values.flatten() for each in find_prunable(pruned)])
    assert before[after == 0].max() < before[after != 0].min()
    biases = {name: p for name, p in graph.named_parameters() if name.endswith("bias")}
    for name, bias in biases.items():
        assert torch.equal(bias, dict(pruned.named_parameters())[name])


def test_what_is_not_pruned_shares_its_storage_and_the_input_is_untouched() -> None:
    graph, _ = mlp()
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in graph.named_parameters()}
    pruned = Prune(sparsity=0.5, exclude=("2",))(graph).graph
    for name, (pointer, values) in before.items():
        assert torch.equal(dict(graph.named_parameters())[name], values)
        is_shared = dict(pruned.named_parameters())[name].data_ptr() == pointer
        assert is_shared == (name not in ("0.weight", "4.weight"))


def test_names_choose_layers() -> None:
    graph, data = mlp()
    chosen = Prune(sparsity=0.5, include=("[02]",), exclude=("2",))
    assert zeros(chosen(graph).graph) == {"0": 96, "2": 0, "4": 0}
    own = Prune(sparsity=0.5, layers={"*": {"sparsity": 0.25}, "2": {"sparsity": 0}})
    for step in (own, Prune(**{**vars(own), "method": "obs"})):
        assert zeros(step(graph, data).graph) == {"0": 48, "2": 0, "4": 16}


def test_obd_spares_what_the_output_depends_on() -> None:
    model = nn.Sequential(nn.Linear(12, 4))
    with torch.no_grad():
        model[0].weight.fill_(1.0).mul_(1 + 0.1 * torch.rand(4, 12))
        model[0].weight[:, 3] = 2.0  # large, on an input that hardly moves
    x = torch.randn(200, 12)
    x[:, 3] *= 1e-3
    pruned = Prune(sparsity=4 / 48, method="obd")(capture(model, x[:2]), Data(x)).graph
    assert (weights(pruned, "0.weight") == 0).nonzero()[:, 1].tolist() == [3] * 4


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_the_surgeon_keeps_outputs_where_magnitude_loses_them(sparsity: float) -> None:
    for make in (mlp, cnn):
        graph, data = make()
        x = torch.as_tensor(data.example(200))
        steps = [{}, {"refit": True}, {"method": "obs"}]
        errors = []
        for keys in steps:
            pruned = Prune(sparsity=sparsity, scope="layer", **keys)(graph, data).graph  # type: ignore[arg-type]
            errors.append(float((pruned(x) - graph(x)).detach().square().mean()))
        assert errors[0] > 1.5 * errors[1] > 1.5 * errors[2]


def test_a_fitted_bias_keeps_the_mean() -> None:
    graph, data = mlp()
    x = torch.as_tensor(data.example(300))
    pruned = Prune(sparsity=0.6, method="obs", exclude=("4",))(graph, data).graph
    first = nn.functional.linear
    for name in ("0",):
        w, b = (weights(pruned, f"{name}.{part}") for part in ("weight", "bias"))
        v, a = (weights(graph, f"{name}.{part}") for part in ("weight", "bias"))
        torch.testing.assert_close(first(x, w, b).mean(0), first(x, v, a).mean(0))


def test_layers_without_a_bias_get_none() -> None:
    graph, data = cnn()
    pruned = Prune(sparsity=0.5, method="obs")(graph, data).graph
    assert [n.target for n in pruned.graph.nodes] == [n.target for n in graph.graph.nodes]
    assert dict(pruned.named_parameters()).keys() == dict(graph.named_parameters()).keys()


class Tied(nn.Module):
    """A layer used twice, another name for its weights, and their transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(torch.relu(self.a(x))) + self.b(x)) @ self.a.weight


@pytest.mark.parametrize("keys", METHODS, ids=str)
def test_tied_weights_are_pruned_once_for_all(keys: dict[str, Any]) -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 6)
    graph = capture(Tied(), x[:2])
    (before,) = find_prunable(graph)
    assert before.size == 36
    pruned = Prune(sparsity=0.5, **keys)(graph, Data(x)).graph
    (after,) = find_prunable(pruned)
    assert after.names == before.names
    assert after.size - int(after.is_nonzero().sum()) == 18
    for name in after.names:
        mask = kept_weights(pruned, name)
        assert mask is not None
        assert int(mask.sum()) == 18


def views(w: Tensor) -> tuple[Tensor, Tensor]:
    """Of the same numbers in part: they begin together and are as many."""
    return w[::2], w[:6]


VIEWS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], tuple[Tensor, ...]], list[int]]] = {
    "some rows and others": ((12, 8), views, [48, 48]),
    "some columns and others": ((6, 16), lambda w: (w[:, ::2], w[:, :8]), [48, 48]),
    "every other row": ((12, 8), lambda w: (w[::2],), [48]),
    "every other row twice": ((12, 8), lambda w: (w[::2], w[::2]), [48]),
    "one row for all": ((1, 8), lambda w: (w.expand(6, 8),), [48]),
    "one row for all and alone": ((1, 8), lambda w: (w.expand(6, 8), w), [48, 8]),
    "other rows of the same": ((6, 8), lambda w: (w, w.view(8, 6).view(6, 8)), [48]),
}


@pytest.mark.parametrize("keys", METHODS, ids=str)
@pytest.mark.parametrize("name", VIEWS)
def test_views_of_a_tensor_are_one_where_they_are_the_same_numbers(
    name: str, keys: dict[str, Any]
) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(shape))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([nn.functional.linear(x, w) for w in of(self.w)], 1)

    torch.manual_seed(0)
    shape, of, sizes = VIEWS[name]
    x = torch.randn(100, 8)
    graph = capture(Views(), x[:2])
    assert [each.size for each in find_prunable(graph)] == sizes
    same = Prune(sparsity=0.0)(graph, Data(x)).graph
    torch.testing.assert_close(same(x), graph(x))
    pruned = Prune(sparsity=0.5, **keys)(graph, Data(x)).graph
    assert sum(zeros(pruned).values()) == sum(sizes) // 2
    assert (pruned(x) - graph(x)).abs().max() < 20


@pytest.mark.parametrize(
    "keys", [{"pattern": "1:2"}, {"sparsity": 0.5, "layers": {"*": {"sparsity": 0.5}}}], ids=str
)
def test_where_layers_share_nothing_there_is_nothing_to_search(keys: dict[str, Any]) -> None:
    graph, data = mlp()
    result = Prune(scope="sensitivity", **keys)(graph, data)
    assert zeros(result.graph) == zeros(Prune(scope="layer", **keys)(graph, data).graph)
    if result.found is not None:
        again = Recipe.parse(Recipe([result.found]).to_toml()).passes[0]
        assert zeros(again(graph, data).graph) == zeros(result.graph)


def test_what_was_found_names_layers_that_look_like_patterns() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict({"a[0]": nn.Linear(8, 6), "a0": nn.Linear(6, 4)}))
    x = torch.randn(50, 8)
    graph, data = capture(model, x[:2]), Data(x)
    result = Prune(sparsity=0.5, scope="sensitivity")(graph, data)
    assert result.found is not None
    assert zeros(result.found(graph, data).graph) == zeros(result.graph)


def test_layers_of_zeros_are_refused_for_what_they_are() -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    nn.init.zeros_(model[0].weight)
    graph = capture(model, torch.randn(2, 8))
    with pytest.raises(RecipeError, match=r"prune: 0: all weights are zero already\. Exclude"):
        Prune(sparsity=0.1)(graph)
    assert zeros(Prune(sparsity=0.5, exclude=("0",))(graph).graph) == {"0": 48, "1": 12}


def test_zeros_stay_through_training_and_quantization() -> None:
    graph, data = mlp()
    prune = Prune(sparsity=0.6, method="obs")
    masks = {each.names[0]: each.is_nonzero() for each in find_prunable(prune(graph, data).graph)}
    recipe = Recipe([prune, Finetune(epochs=2), Quantize(weights=4, activations=6)])
    result = recipe.run(graph, data).graph
    for name, mask in masks.items():
        values = weights(result, name)
        assert not (values[~mask] != 0).any()
    x = np.asarray(data.example(50))
    program = lower(result)
    np.testing.assert_array_equal(
        simulate(program, x), exact_forward(result, torch.as_tensor(x)).numpy()
    )


@pytest.mark.parametrize("schedule", ["iterative", "gradual"])
@pytest.mark.parametrize("method", ["magnitude", "obs"])
def test_schedules_reach_the_target(schedule: Any, method: Any) -> None:
    graph, data = mlp()
    step = Prune(sparsity=0.8, method=method, schedule=schedule, steps=3, finetune={"epochs": 1})
    result = step(graph, data)
    reached = [each["sparsity"] for each in result.summary["steps"]]  # type: ignore[attr-defined]
    assert reached == sorted(reached)
    wanted = [0.8 * (1 - (1 - t / 3) ** 3) for t in (1, 2, 3)]
    if schedule == "iterative":
        wanted = [1 - 0.2 ** (t / 3) for t in (1, 2, 3)]
    assert reached == pytest.approx(wanted, abs=1e-2)
    total = sum(each.size for each in find_prunable(graph))
    assert sum(zeros(result.graph).values()) == round(0.8 * total)


def test_sparsity_found_by_sensitivity_can_be_written_down() -> None:
    graph, data = mlp()
    result = Prune(sparsity=0.5, scope="sensitivity")(graph, data)
    assert result.found is not None
    found = Recipe.parse(Recipe([result.found]).to_toml()).passes[0]
    assert found.scope == "layer"  # type: ignore[attr-defined]
    assert zeros(found(graph, data).graph) == zeros(result.graph)
    assert len(set(zeros(result.graph).values())) > 1


def test_zeros_that_were_there_count_and_stay() -> None:
    graph, data = mlp()
    once = Prune(sparsity=0.5)(graph).graph
    for keys in METHODS:
        twice = Prune(sparsity=0.7, **keys)(once, data).graph
        total = sum(each.size for each in find_prunable(graph))
        assert sum(zeros(twice).values()) == round(0.7 * total)
        for before, after in zip(find_prunable(once), find_prunable(twice), strict=True):
            assert not (after.is_nonzero() & ~before.is_nonzero()).any()
        less = Prune(sparsity=0.2, **keys)(once, data).graph
        assert zeros(less) == zeros(once)


@pytest.mark.parametrize("keys", METHODS, ids=str)
def test_the_same_again(keys: dict[str, Any]) -> None:
    graph, data = cnn()
    first, second = (Prune(sparsity=0.5, **keys)(graph, data).graph.state_dict() for _ in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "sparsity: required, but missing"),
        ({"sparsity": 1.0}, "sparsity: required a share from 0 to below 1, got 1"),
        ({"sparsity": -0.1}, "sparsity: required a share"),
        ({"sparsity": float("nan")}, "sparsity: required a share"),
        ({"sparsity": "much"}, "sparsity: required a number"),
        ({"sparsity": 0.5, "pattern": "2:4:8"}, 'pattern: required "free"'),
        ({"sparsity": 0.5, "pattern": "4:4"}, 'pattern: required "free"'),
        ({"sparsity": 0.6, "pattern": "2:4"}, 'sparsity: pattern = "2:4" makes it 0.5, got 0.6'),
        ({"sparsity": 0.5, "pattern": "slots"}, "reuse: required a factor"),
        ({"sparsity": 0.5, "reuse": 4}, "reuse: required a factor with pattern"),
        ({"sparsity": 0.5, "pattern": "slots", "reuse": 0}, "reuse: required at least 1"),
        ({"sparsity": 0.5, "layers": {"a": {"bits": 2}}}, 'layers."a".bits: unknown key'),
        ({"sparsity": 0.5, "layers": {"a": {"sparsity": 1.5}}}, 'layers."a".sparsity: required'),
        ({"sparsity": 0.5, "layers": {"a": {"reuse": 2}}}, 'layers."a".reuse: is for pattern'),
        ({"sparsity": 0.5, "method": "obs", "refit": False}, "refit: required true"),
        ({"sparsity": 0.5, "method": "obs", "embeddings": True}, "embeddings: required false"),
        ({"sparsity": 0.5, "steps": 3}, "steps: required at least 2, with schedule"),
        ({"sparsity": 0.5, "schedule": "gradual", "steps": 1}, "steps: required at least 2"),
        ({"sparsity": 0.5, "samples": 0}, "samples: required at least 1"),
        ({"sparsity": 0.5, "finetune": {"epoch": 1}}, "finetune.epoch: unknown key"),
        ({"sparsity": 0.5, "method": "best"}, "method: required"),
        ({"sparsity": 0.5, "sparse": 1}, "sparse: unknown key"),
    ],
)
def test_bad_keys_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Prune(**keys)


def test_what_cannot_be_pruned_is_refused_by_name() -> None:
    graph, data = mlp()
    for keys, message in [
        ({"include": ("conv*",)}, r'include: "conv\*" matches no layer. Layers with weights: 0, 2'),
        ({"exclude": ("5",)}, 'exclude: "5" matches no layer'),
        ({"layers": {"5": {"sparsity": 0.1}}}, 'layers: "5" matches no layer'),
        ({"exclude": ("*",)}, "include and exclude leave no layer"),
        ({"layers": {"4": {"sparsity": 0.999}}}, "4: no weight would be left"),
    ]:
        with pytest.raises(RecipeError, match=message):
            Prune(sparsity=0.5, **keys)(graph, data)  # type: ignore[arg-type]
    for keys in ({"method": "obs"}, {"method": "obd"}, {"refit": True}, {"scope": "sensitivity"},
                 {"finetune": {"epochs": 1}}):  # fmt: skip
        step = Prune(sparsity=0.5, **keys)  # type: ignore[arg-type]
        with pytest.raises(RecipeError, match="prune: required data"):
            step(graph)
        with pytest.raises(RecipeError, match=r"pass 1 \(prune\): required data"):
            Recipe([step]).require_data(None)
    Recipe([Prune(sparsity=0.5)]).require_data(None)
    with pytest.raises(RecipeError, match=r"quantized already\. Put prune before quantize"):
        Prune(sparsity=0.5)(Quantize()(graph, data).graph)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    graph = capture(model, torch.randn(2, 4))
    with torch.no_grad():
        dict(graph.named_parameters())["2.weight"][1, 2] = value
    with pytest.raises(RecipeError, match="prune: 2: weights are NaN or infinite"):
        Prune(sparsity=0.5)(graph)
    Prune(sparsity=0.5, exclude=("2",))(graph)


@pytest.mark.parametrize("keys", METHODS[1:], ids=str)
def test_data_beyond_what_the_model_can_do_are_refused(keys: dict[str, Any]) -> None:
    graph, data = mlp()
    x = torch.as_tensor(data.example(300)).clone()
    x[17] = 3e38
    with torch.no_grad():
        dict(graph.named_parameters())["0.weight"].fill_(10.0)
    with pytest.raises(DataError, match="gives NaN or infinity on the"):
        Prune(sparsity=0.5, **keys)(graph, Data(x))


def test_embeddings_are_weights_where_asked_for() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(8, 4), nn.Flatten(), nn.Linear(8, 3))
    x = torch.randint(0, 8, (50, 2))
    graph = capture(model, x[:2])
    assert list(zeros(Prune(sparsity=0.5)(graph).graph)) == ["2"]
    for keys in ({}, {"method": "obd"}, {"refit": True}):
        pruned = Prune(sparsity=0.5, scope="layer", embeddings=True, **keys)(graph, Data(x)).graph  # type: ignore[arg-type]
        assert int((weights(pruned, "0.weight") == 0).sum()) == 16
        assert int((weights(pruned, "2.weight") == 0).sum()) == 12


def test_the_summary_tells_of_every_layer() -> None:
    graph, data = mlp()
    summary: Any = Prune(sparsity=0.5, method="obs", scope="layer")(graph, data).summary
    assert list(summary["layers"]) == ["0", "2", "4"]
    first = summary["layers"]["0"]
    assert (first["weights"], first["kept"], first["sparsity"]) == (192, 96, 0.5)
    assert 0 < first["loss"] < 0.5
    assert summary["remarks"][0] == "256 of 512 weights of 3 layers are zero (50.0%)"
