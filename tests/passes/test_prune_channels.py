"""The pass: what goes by each criterion, figures of architectures, refusals."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from benchmarks.models import resnet50, vgg16
from fxloom.data import Data
from fxloom.errors import RecipeError
from fxloom.facts import keep_zeros, kept_weights
from fxloom.frontend import capture
from fxloom.layer_figures import layer_figures, total
from fxloom.passes import Finetune, PruneChannels, Quantize
from fxloom.recipe import Recipe
from tests.models import Fn

CRITERIA = ("l1", "l2", "batchnorm", "geometric_median", "taylor", "reconstruction")


def small() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6),
        nn.ReLU(), nn.Flatten(), nn.Linear(54, 4),
    )  # fmt: skip
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return net.eval()


def data(count: int = 64, labels: bool = True) -> Data:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 2, 7, 7, generator=generator)
    y = torch.randint(0, 4, (count,), generator=generator)
    return Data(x, y if labels else None)


def captured(net: nn.Module | None = None) -> GraphModule:
    return capture(net or small(), torch.randn(2, 2, 7, 7))


def sizes(graph: GraphModule) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in graph.named_parameters()}


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_makes_a_smaller_dense_model(criterion: str) -> None:
    graph = captured()
    result = PruneChannels(sparsity=0.5, criterion=criterion)(graph, data())  # type: ignore[arg-type]
    shapes = sizes(result.graph)
    assert shapes["0.weight"] == (4, 2, 3, 3)
    assert shapes["3.weight"] == (3, 4, 3, 3)
    assert shapes["7.weight"] == (4, 27)
    assert result.graph(torch.randn(3, 2, 7, 7)).shape == (3, 4)
    assert result.summary["channels"] == {"0": [8, 4], "3": [6, 3]}
    assert "output" in result.summary["left"]["7"]  # type: ignore[index]


def test_kept_filters_are_those_of_the_largest_norms() -> None:
    net = small()
    for criterion, order in (("l1", 1), ("l2", 2)):
        result = PruneChannels(sparsity=0.5, criterion=criterion)(captured(net)).graph
        kept = net[0].weight.flatten(1).norm(order, 1).topk(4).indices.sort()[0]
        assert torch.equal(result.get_parameter("0.weight"), net[0].weight[kept])


def test_slimming_goes_by_scales() -> None:
    net = small()
    result = PruneChannels(sparsity=0.5, criterion="batchnorm")(captured(net)).graph
    kept = net[1].weight.abs().topk(4).indices.sort()[0]
    assert torch.equal(result.get_parameter("1.weight"), net[1].weight[kept])


def test_geometric_median_removes_what_others_replace() -> None:
    net = small()
    with torch.no_grad():
        net[0].weight.copy_(torch.randn(8, 2, 3, 3) * 3)
        net[0].weight[5] = net[0].weight[[i for i in range(8) if i != 5]].mean(0)
    result = PruneChannels(layers={"0": {"keep": 7}}, criterion="geometric_median")(captured(net))
    kept = [i for i in range(8) if i != 5]
    assert torch.equal(result.graph.get_parameter("0.weight"), net[0].weight[kept])


@pytest.mark.parametrize("labels", [True, False])
def test_slopes_remove_what_nothing_reads(labels: bool) -> None:
    net = small()
    with torch.no_grad():
        net[3].weight[:, [1, 6]] = 0
        net[0].weight[[1, 6]] *= 10  # their norms say the opposite
    step = PruneChannels(layers={"0": {"keep": 6}}, criterion="taylor", samples=32)
    result = step(captured(net), data(labels=labels)).graph
    kept = [0, 2, 3, 4, 5, 7]
    assert torch.equal(result.get_parameter("0.weight"), net[0].weight[kept])


def test_reconstruction_finds_what_others_can_replace_and_fits_the_next_layer() -> None:
    net = small()
    with torch.no_grad():
        net[3].weight[:, 2] = 0
    graph = captured(net)
    x = data().example(64)
    fitted = PruneChannels(layers={"0": {"keep": 7}}, criterion="reconstruction")(graph, data())
    torch.testing.assert_close(fitted.graph(x), graph(x), rtol=0.2, atol=0.05)
    half = PruneChannels(layers={"0": {"keep": 4}}, criterion="reconstruction")(graph, data())
    plain = PruneChannels(layers={"0": {"keep": 4}}, criterion="l1")(graph)
    assert half.summary["fitted"] == ["3"]
    errors = [float((g.graph(x) - graph(x)).norm().detach()) for g in (half, plain)]
    assert errors[0] < 0.7 * errors[1]


def test_global_scope_takes_more_where_scores_are_low() -> None:
    net = small()
    with torch.no_grad():
        net[4].weight *= 0.01
    result = PruneChannels(sparsity=0.4, criterion="batchnorm", scope="global")(captured(net))
    assert result.summary["channels"] == {"0": [8, 7], "3": [6, 1]}


def test_counts_round_as_documented() -> None:
    graph = captured()
    step = PruneChannels(sparsity=0.3, layers={"3": {"keep": 3}})
    assert step(graph).summary["channels"] == {"0": [8, 5], "3": [6, 3]}
    step = PruneChannels(sparsity=0.7, multiple_of=4)
    assert step(graph).summary["channels"] == {"0": [8, 4], "3": [6, 4]}
    step = PruneChannels(sparsity=0.0)
    assert not step(graph).modified


def test_exclude_keeps_a_layer() -> None:
    result = PruneChannels(sparsity=0.5, exclude=("3",))(captured())
    assert "3 keeps its channels: exclude or include leaves it out" in result.summary["remarks"]
    assert result.summary["channels"] == {"0": [8, 4]}
    assert "leaves it out" in result.summary["left"]["3"]  # type: ignore[index]


def test_summary_has_figures_of_every_layer() -> None:
    graph = captured()
    result = PruneChannels(sparsity=0.5)(graph)
    layers: Any = result.summary["layers"]
    assert layers["3"] == {
        "parameters": [6 * 8 * 9 + 6, 3 * 4 * 9 + 3],
        "nonzero": [6 * 8 * 9 + 6, 3 * 4 * 9 + 3],
        "macs": [9 * 6 * 8 * 9, 9 * 3 * 4 * 9],
    }
    assert result.summary["parameters"] == [total(layer_figures(g)).parameters
                                            for g in (graph, result.graph)]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "keys", "figures"),
    [
        (
            vgg16,
            {str(n): {"sparsity": 0.5} for n in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)},
            ((138.358, 30.941), (131.453, 9.582)),
        ),
        (
            resnet50,
            {"*.body.0.0": {"sparsity": 0.3}, "*.body.2.0": {"sparsity": 0.3}},
            ((25.557, 7.716), (16.945, 4.880)),
        ),
    ],
)
def test_figures_of_architectures_are_exact(make: Any, keys: Any, figures: Any) -> None:
    """Millions of parameters and GFLOP, 2 per multiply-add, before and after."""
    torch.manual_seed(0)
    graph = capture(make().eval(), torch.randn(1, 3, 224, 224))
    result = PruneChannels(layers=keys).__call__(graph)
    for each, wanted in zip((graph, result.graph), figures, strict=True):
        sums = total(layer_figures(each))
        assert (round(sums.parameters / 1e6, 3), round(2 * sums.macs / 1e9, 3)) == wanted


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "sparsity: required, or layers"),
        ({"sparsity": 1.0}, "sparsity: required a share from 0 to below 1, got 1.0"),
        ({"sparsity": -0.1}, "sparsity: required a share"),
        ({"sparsity": float("nan")}, "sparsity"),
        ({"layers": {"0": {"sparsity": 1.5}}}, 'layers."0".sparsity: required a share'),
        ({"layers": {"0": {"keep": 0}}}, 'layers."0".keep: required a number of channels'),
        ({"layers": {"0": {"keep": 2.5}}}, 'layers."0".keep: required a number of channels'),
        ({"layers": {"0": {"ratio": 1}}}, "required sparsity or keep, got ratio"),
        ({"layers": {"0": {}}}, "required sparsity or keep"),
        ({"sparsity": 0.5, "criterion": "l3"}, "criterion: required"),
        ({"sparsity": 0.5, "multiple_of": 0}, "multiple_of: required at least 1"),
        ({"sparsity": 0.5, "samples": 0}, "samples: required at least 1"),
        ({"sparsity": 0.5, "sparsty": 1}, "Did you mean sparsity"),
        ({"sparsity": 0.5, "scope": "global", "criterion": "reconstruction"}, "scope: required"),
    ],
)
def test_bad_keys_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        PruneChannels(**keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sparsity": 0.5, "exclude": ("*",)}, "include and exclude leave no layer with channels"),
        ({"sparsity": 0.5, "include": ()}, "include and exclude leave no layer with channels"),
        ({"sparsity": 0.5, "exclude": ("conv9",)}, "conv9: matches no layer with channels. Layers"),
        ({"layers": {"conv9": {"keep": 1}}}, "conv9: matches no layer"),
        ({"layers": {"7": {"sparsity": 0.5}}}, "7: cannot lose channels: an output of the model"),
        ({"sparsity": 0.5, "include": ("7",)}, "7: cannot lose channels"),
        ({"sparsity": 0.9}, "0: required at least one channel that stays, but of 8 0 would"),
        ({"layers": {"0": {"keep": 9}}}, "0: required to keep at most its 8 channels, got 9"),
        ({"sparsity": 0.5, "criterion": "taylor"}, "criterion taylor: required data"),
        ({"sparsity": 0.5, "criterion": "reconstruction"}, "reconstruction: required data"),
    ],
)
def test_what_a_graph_cannot_do_is_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        PruneChannels(**keys)(captured())


def test_criterion_without_what_it_looks_at_is_named() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    graph = capture(net, torch.randn(2, 4))
    with pytest.raises(RecipeError, match="it has no batch norm"):
        PruneChannels(sparsity=0.5, criterion="batchnorm")(graph)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(bad: float) -> None:
    graph = captured()
    with torch.no_grad():
        graph.get_parameter("3.weight")[0, 0, 0, 0] = bad
    with pytest.raises(RecipeError, match=r"3 \(3.weight\): required finite weights"):
        PruneChannels(sparsity=0.5)(graph)


def test_layers_that_share_channels_must_agree() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.a(x) + self.b(x)))

    graph = capture(Net().eval(), torch.randn(2, 4))
    with pytest.raises(RecipeError, match=r"a, b: share their channels.* 4 of a, 2 of b"):
        PruneChannels(layers={"a": {"keep": 4}, "b": {"keep": 2}})(graph)
    with pytest.raises(RecipeError, match="a: cannot lose channels: it shares channels with b"):
        PruneChannels(sparsity=0.5, include=("a",))(graph)
    one_for_both = PruneChannels(layers={"a": {"keep": 4}})(graph)
    assert one_for_both.summary["channels"] == {"a": [8, 4], "b": [8, 4]}


def test_quantized_graph_is_refused() -> None:
    quantized = Quantize()(captured(), data()).graph
    with pytest.raises(RecipeError, match=r"is quantized already\. Put prune_channels before"):
        PruneChannels(sparsity=0.5)(quantized)


def test_recipe_survives_a_round_trip() -> None:
    recipe = Recipe([PruneChannels(layers={"conv*": {"sparsity": 0.5}}, criterion="l2")])
    assert Recipe.parse(recipe.to_toml()) == recipe


def test_keep_counts_channels_or_is_refused() -> None:
    class Taken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 20), nn.Linear(20, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.a(x)
            return self.b(torch.relu(y)), y[:, :5]

    graph = capture(Taken().eval(), torch.randn(2, 5))
    with pytest.raises(RecipeError, match="the 20 of this layer go as 15 units"):
        PruneChannels(layers={"a": {"keep": 12}})(graph)
    result = PruneChannels(layers={"a": {"sparsity": 0.2}})(graph).graph
    assert result.a.weight.shape == (17, 5)


def test_input_keeps_its_tensors_and_shares_those_that_stay() -> None:
    graph = captured()
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    result = PruneChannels(layers={"0": {"keep": 4}})(graph).graph
    for name, value in graph.state_dict().items():
        assert torch.equal(value, before[name])
    same = {"7.weight", "7.bias", "3.bias"}
    for name in same:
        assert result.get_parameter(name).data_ptr() == graph.get_parameter(name).data_ptr()


def test_finetune_and_quantize_follow() -> None:
    recipe = Recipe([PruneChannels(sparsity=0.5), Finetune(epochs=1), Quantize()])
    result = recipe.run(captured(), data())
    assert np.prod(sizes(result.graph)["3.weight"]) == 3 * 4 * 9


@pytest.mark.parametrize("criterion", ["l1", "reconstruction"])
def test_weights_that_are_zero_for_good_stay_so(criterion: str) -> None:
    graph = captured()
    with torch.no_grad():
        weight = graph.get_parameter("3.weight").clone()
        weight[:, :, 0] = 0
    graph.get_parameter("3.weight").data = weight
    keep_zeros(graph, "3.weight")
    recipe = Recipe([PruneChannels(sparsity=0.5, criterion=criterion), Finetune(epochs=1)])  # type: ignore[arg-type]
    result = recipe.run(graph, data()).graph
    smaller = result.get_parameter("3.weight")
    assert smaller.shape == (3, 4, 3, 3)
    assert not smaller[:, :, 0].any()
    assert kept_weights(result, "3.weight") is not None


def reconstructed(net: nn.Module, x: torch.Tensor) -> Any:
    step = PruneChannels(sparsity=0.5, criterion="reconstruction")
    return step(capture(net.eval(), x[:2]), Data(x))


def test_reconstruction_sees_layers_behind_a_merged_batch() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True)
    result = reconstructed(
        nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 2)), torch.randn(8, 4, 8)
    )
    assert set(result.summary["fitted"]) == {"0.self_attn.linear_1", "0.linear2"}


def test_reconstruction_shifts_every_bias_of_a_shared_weight() -> None:
    torch.manual_seed(0)
    b, other = nn.Linear(8, 3), nn.Linear(8, 3)
    other.weight = b.weight
    net = Fn(
        lambda m, x: (m.b(h := m.a(x).relu()), m.other(h)), a=nn.Linear(6, 8), b=b, other=other
    )
    result = reconstructed(net, torch.randn(64, 6) + 2)
    first, second = result.graph(torch.randn(9, 6))
    assert result.summary["fitted"] == ["b", "other"]
    torch.testing.assert_close(first - b.bias, second - other.bias)


def test_reconstruction_says_whose_weights_others_read_too() -> None:
    torch.manual_seed(0)
    net = Fn(lambda m, x: m.b(m.a(x).relu()) * m.b.bias, a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    assert "others read too" in reconstructed(net, torch.randn(64, 6)).summary["not_fitted"]["b"]


def test_reconstruction_takes_any_channel_where_none_varies() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.ones(8, 6)
    torch.testing.assert_close(reconstructed(net, x).graph(x), net(x))


def test_channels_that_go_all_together_do_not_stop_the_others() -> None:
    net = Fn(
        lambda m, x: m.c(m.b(m.a(x)).reshape(-1, 8, 15)).flatten(1),
        a=nn.Conv2d(2, 8, 1), b=nn.Conv2d(8, 6, 1), c=nn.Linear(15, 2),
    )  # fmt: skip
    graph = capture(net.eval(), torch.randn(2, 2, 4, 5))
    result = PruneChannels(sparsity=0.5)(graph)
    left: Any = result.summary["left"]
    assert result.summary["channels"] == {"a": [8, 4]}
    assert left["b"] == "its channels can only go all together"
    with pytest.raises(RecipeError, match="b: cannot lose channels: its channels can only go"):
        PruneChannels(layers={"b": {"sparsity": 0.5}})(graph)
