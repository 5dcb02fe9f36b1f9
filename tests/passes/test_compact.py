"""Convolutions replaced by fire modules, separable pairs and concatenated rectifiers."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

import fxloom
from fxloom.data import Data
from fxloom.errors import RecipeError
from fxloom.frontend import capture
from fxloom.graph import BATCH, arguments
from fxloom.moves import GATHER
from fxloom.passes import Compact, Finetune, FoldBatchnorm, Prune, PruneChannels, Quantize
from fxloom.passes.chains import LAYERS
from fxloom.passes.compact_blocks import Window, fire, separable
from fxloom.passes.compact_fitting import computed
from fxloom.passes.paired_filters import halve, opposite
from fxloom.recipe import Recipe
from tests.models import fn

aten = torch.ops.aten


# Blocks -------------------------------------------------------------------------------------------

WINDOWS = {
    "plain": Window((3, 3), (1, 1), (1, 1), (1, 1)),
    "no padding": Window((3, 3), (1, 1), (0, 0), (1, 1)),
    "uneven": Window((5, 3), (2, 1), (1, 2), (1, 2)),
    "wide padding": Window((3, 3), (2, 2), (2, 3), (1, 1)),
    "signal": Window((3,), (2,), (0,), (2,)),
}


def metric_of(size: int, kind: str) -> Tensor:
    """The identity, or a covariance in which inputs go together."""
    if kind == "weights":
        return torch.eye(size, dtype=torch.float64)
    factor = torch.randn(size, size, generator=torch.Generator().manual_seed(5)).double()
    return factor @ factor.T / size + 0.1 * torch.eye(size)


def plain(window: Window, weight: Tensor, x: Tensor) -> Tensor:
    """What the whole kernel gives. weight: [outputs, channels, positions]."""
    kernel = weight.reshape(*weight.shape[:2], *window.kernel)
    run: Any = functional.conv1d if len(window.kernel) == 1 else functional.conv2d
    return run(x, kernel, None, window.stride, window.padding, window.dilation)


def image(window: Window, channels: int) -> Tensor:
    return torch.randn(3, channels, *(11, 12)[: len(window.kernel)]).double()


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("metric", ["weights", "data"])
def test_what_a_separable_pair_can_be_it_is(name: str, metric: str) -> None:
    torch.manual_seed(0)
    window = WINDOWS[name]
    kernels, points = torch.randn(4, 2, window.size).double(), torch.randn(6, 4, 2).double()
    target = torch.einsum("oci,cik->ock", points, kernels)
    block, error = separable(target, metric_of(4 * window.size, metric), window, 2)
    assert error < 1e-9
    x = image(window, 4)
    torch.testing.assert_close(computed(block, x), plain(window, target, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("rectified", [False, True])
def test_what_a_fire_module_can_be_it_is(name: str, rectified: bool) -> None:
    """With a rectifier behind opposite pairs of channels."""
    torch.manual_seed(0)
    window = WINDOWS[name]
    squeeze = torch.randn(2, 5).double()
    target = torch.zeros(7, 5, window.size).double()
    whole, points = [0, 3, 4, 6], [1, 2, 5]
    target[whole] = torch.einsum("oik,ic->ock", torch.randn(4, 2, window.size).double(), squeeze)
    target[points, :, window.middle] = torch.randn(3, 2).double() @ squeeze
    block, error = fire(
        target, metric_of(5 * window.size, "data"), window, 4 if rectified else 2, 3,
        rectified=rectified,
    )  # fmt: skip
    assert block.heads[0].outputs.tolist() == points
    assert error < 1e-9
    x = image(window, 5)
    torch.testing.assert_close(computed(block, x), plain(window, target, x), rtol=0, atol=1e-5)


def test_a_kernel_for_every_position_makes_a_separable_pair_any_convolution() -> None:
    torch.manual_seed(0)
    target = torch.randn(12, 3, 9).double()
    errors = [
        separable(target, metric_of(27, "weights"), WINDOWS["plain"], count)[1]
        for count in range(1, 10)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] < 1e-9


def test_separable_pairs_are_least_squares() -> None:
    """Of weights: what is left are the lesser singular values. In the metric of data they lose
    less there than the pair that is nearest in weights."""
    torch.manual_seed(0)
    target = torch.randn(6, 3, 9).double()
    _, error = separable(target, metric_of(27, "weights"), WINDOWS["plain"], 2)
    values = torch.linalg.svdvals(target.transpose(0, 1)).square()
    assert error == pytest.approx(float(values[:, 2:].sum() / values.sum()), rel=1e-6)
    metric = metric_of(27, "data")

    def lost(given: Tensor) -> float:
        block, _ = separable(target, given, WINDOWS["plain"], 2)
        kernels = block.first.weight.reshape(3, 2, 9)
        points = block.heads[0].part.weight.reshape(6, 3, 2)
        off = (torch.einsum("oci,cik->ock", points, kernels) - target).flatten(1)
        return float(((off @ metric) * off).sum())

    assert lost(metric) < 0.9 * lost(metric_of(27, "weights"))


def test_opposite_filters_are_paired_the_most_opposite_first() -> None:
    filters = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [-2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert opposite(filters, -0.9) == [(0, 2)]
    assert opposite(filters, -0.99) == [(0, 2)]
    assert opposite(filters[[0, 1, 3]], -1.0) == []


@pytest.mark.parametrize("biased", [False, True])
def test_the_filter_for_a_pair_is_the_nearest(biased: bool) -> None:
    """No other direction, and no other length, is nearer to both."""
    torch.manual_seed(0)
    rows = torch.randn(3, 5).double()
    rows[2] = -0.5 * rows[0] + 0.2 * rows[2]
    bias = torch.tensor([0.3, 1.0, -0.2]).double() if biased else None
    metric = metric_of(6 if biased else 5, "data")
    found = halve(rows, bias, metric, [(0, 2)])
    assert found.order.tolist() == [0, 1, 2]
    kept = found.rows[0] if found.bias is None else torch.cat([found.rows[0], found.bias[:1]])
    vectors = rows if bias is None else torch.cat([rows, bias[:, None]], 1)

    def lost(kept: Tensor, ratio: float) -> float:
        off = torch.stack([kept - vectors[0], -ratio * kept - vectors[2]])
        return float(((off @ metric) * off).sum())

    least = lost(kept, float(found.ratios))
    assert least == pytest.approx(found.error)
    for _ in range(20):
        moved = kept + 0.02 * torch.randn_like(kept)
        assert lost(moved, float(found.ratios)) > least
        assert lost(kept, float(found.ratios) * float(1 + 0.1 * torch.randn(()))) > least


# In graphs ----------------------------------------------------------------------------------------


class Net(nn.Module):
    """Convolutions with and without norms, one called twice, and a linear layer behind an image."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.last = nn.Conv2d(8, 12, 3, stride=2)
        self.head = nn.Linear(12 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.max_pool2d(torch.relu(self.norm(self.first(x))), 2)
        y = torch.relu(self.twice(torch.relu(self.twice(y))))
        return self.head(torch.relu(self.last(y)).flatten(1))


@cache
def made() -> tuple[GraphModule, Data]:
    torch.manual_seed(0)
    net = Net().eval()
    net.norm.running_var.uniform_(0.3, 1)
    net.norm.weight.data.uniform_(0.5, 1.5)
    x = torch.randn(64, 2, 10, 10)
    y = x.flatten(1)[:, :4].argmax(1)
    return capture(net, x[:2]), Data(x, y, x[:32], y[:32])


def counted(graph: GraphModule) -> tuple[int, int]:
    """Parameters and multiply-adds, from the graph."""
    macs = 0
    for node in graph.graph.nodes:
        if node.target in LAYERS:
            weight = arguments(node)[1].meta["val"]
            macs += weight[0].numel() * node.meta["val"].numel() // BATCH
    return sum(each.numel() for each in graph.parameters()), macs


KINDS: dict[str, dict[str, Any]] = {
    "separable": {},
    "separable, kernels": {"kind": "separable", "multiplier": 2, "include": ("twice", "last")},
    "separable, relu": {"between": ("relu",), "steps": 5},
    "separable, norm, relu": {"between": ("batchnorm", "relu"), "steps": 5},
    "fire": {"kind": "fire", "steps": 5},
    "fire, norm": {"kind": "fire", "between": ("batchnorm",)},
    "fire, wide": {
        "kind": "fire",
        "expand": 0.0,
        "steps": 5,
        "layers": {"last": {"squeeze": 0.1}},
    },
}


@pytest.mark.parametrize("name", KINDS)
def test_blocks_save_what_the_summary_says_and_lower_exactly(name: str) -> None:
    graph, data = made()
    first = Compact(**KINDS[name])(graph, data)
    summary: Any = first.summary
    compact = first.graph
    rounding = {"weight_rounding": "nearest", "bias_correction": False, "equalize": False}
    result = Recipe([Finetune(epochs=1), Quantize(**rounding)]).run(compact, data)
    before, after = counted(graph), counted(compact)
    for key, had, has in zip(("parameters", "macs"), before, after, strict=True):
        saved = sum(
            int(each[key]) - int(each[f"{key}_after"]) for each in summary["layers"].values()
        )
        assert had - has == saved > 0, key
    few = "kernels" in name or "wide" in name
    assert set(summary["layers"]) == {"twice", "last"} | (set() if few else {"first"})
    assert summary["fitted"] == ["head"]
    norms = [node for node in compact.graph.nodes if node.target is aten.batch_norm.default]
    heads = 2 if "fire" in name and "wide" not in name else 1
    assert len(norms) == heads + (4 if "norm" in name else 0)
    assert FoldBatchnorm()(compact).summary["affine"] == []
    program = fxloom.lower(result.graph)
    program.verify()
    x = np.asarray(data.x_test)
    with torch.no_grad():
        y = result.graph(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(fxloom.simulate(program, x), y)


def test_what_takes_a_layers_place_has_names_that_targets_may_use() -> None:
    graph, _ = made()
    compact = Compact(kind="fire")(graph).graph
    names = [node.meta["origin"] for node in compact.graph.nodes if node.target in LAYERS]
    parts = ["squeeze", "expand1x1", "expand"]
    wanted = [f"{name}.{part}" for name in ("first", "twice", "twice_1", "last") for part in parts]
    assert names == [*wanted, "head"]
    assert set(parts) <= set(Compact.endings)


def test_a_norm_between_changes_nothing_at_first() -> None:
    graph, data = made()
    with torch.no_grad():
        x = torch.as_tensor(data.x_test)
        without, with_norms = (
            Compact(kind="separable", between=between)(graph, data).graph(x)
            for between in ((), ("batchnorm",))
        )
    torch.testing.assert_close(without, with_norms, rtol=1e-3, atol=1e-4)


def test_a_layer_that_is_a_block_is_reproduced_in_its_graph() -> None:
    """Stride, padding, dilation and bias, an order that later layers take over, and one put back
    where something else reads the outputs, or what lies between knows channels."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, stride=2, padding=2, dilation=2)
    with torch.no_grad():
        conv.weight[1::2, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
        conv.weight[:] = torch.einsum("oihw,ic->ochw", conv.weight[:, :2], torch.randn(2, 4))
    x = torch.randn(4, 4, 9, 9)

    def back(m: Any, x: Tensor) -> Tensor:
        y = torch.relu(m.conv(x))
        return m.head(y) + y[:, :1]

    rewired = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 3))
    head = nn.Conv2d(8, 3, 1)
    put_back = fn(back, conv=lambda: conv, head=lambda: head)()
    slopes = nn.PReLU(8)
    slopes.weight.data = torch.linspace(-1, 2, 8)
    curved = nn.Sequential(conv, slopes, nn.Conv2d(8, 3, 1))
    for model, gathers in ((rewired, 0), (put_back, 1), (curved, 1)):
        graph = capture(model.eval(), x)
        for keys in ({"between": ()}, {"squeeze": 0.5}):
            pattern = "conv" if model is put_back else "0"
            result = Compact(kind="fire", include=(pattern,), **keys)(graph)  # type: ignore[arg-type]
            with torch.no_grad():
                torch.testing.assert_close(result.graph(x), model(x), rtol=1e-4, atol=1e-5)
            found = result.graph.graph.find_nodes(op="call_function", target=GATHER)
            assert len(found) == gathers
            layer: Any = result.summary["layers"][pattern]  # type: ignore[index]
            assert layer["error"] < 1e-9
            assert layer.get("put back in order", 0) == gathers


@pytest.mark.parametrize("keys", [{}, {"kind": "fire", "steps": 3}])
@pytest.mark.parametrize("with_data", [False, True])
def test_calls_keep_biases_of_their_own(keys: dict[str, Any], with_data: bool) -> None:
    """One weight that is read three times, with two biases and with none."""
    torch.manual_seed(0)

    def run(m: Any, x: Tensor) -> Tensor:
        one, two, three = (
            functional.conv2d(x, m.c.weight, bias, padding=1) for bias in (m.c.bias, m.d.bias, None)
        )
        return torch.relu(one) + 2 * torch.relu(two) + torch.relu(three)

    model = fn(run, c=lambda: nn.Conv2d(4, 6, 3), d=lambda: nn.Conv2d(1, 6, 1))().eval()
    with torch.no_grad():
        block, _ = separable(
            model.c.weight.double().reshape(6, 4, 9), metric_of(36, "weights"), WINDOWS["plain"], 1
        )
        kernels, points = block.first.weight.reshape(4, 9), block.heads[0].part.weight.reshape(6, 4)
        if not keys:
            model.c.weight[:] = torch.einsum("oc,ck->ock", points, kernels).reshape(6, 4, 3, 3)
        else:
            model.c.weight[3:] = 0
            model.c.weight[3:, :, 1, 1] = model.c.weight[2:3, :, 1, 1]
            model.c.weight[:3] = model.c.weight[2:3, :, :1, :1]
        model.c.bias[:], model.d.bias[:] = torch.arange(6), -torch.arange(6)
    x = torch.randn(40, 4, 5, 5)
    graph = capture(model, x[:2])
    data = Data(x, x) if with_data else None
    result = Compact(**keys, layers={"*": {"squeeze": 0.7} if keys else {}})(graph, data)
    with torch.no_grad():
        wanted, got = model(x), result.graph(x)
    if keys and with_data:  # descent stops near the best
        assert float((got - wanted).square().mean() / wanted.var()) < 0.02
    else:
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


def paired(conv: bool) -> nn.Module:
    """A layer whose outputs are opposites of each other, but for the middle one."""
    layer = nn.Conv2d(3, 7, 2) if conv else nn.Linear(27, 7)
    with torch.no_grad():
        for tensor in (layer.weight, layer.bias):
            tensor[4:] = (
                -torch.tensor([2.0, 0.5, 1.0]).reshape(-1, *[1] * (tensor.dim() - 1))
                * (tensor[[2, 0, 1]])
            )
    return layer


REST: dict[str, tuple[Callable[[], nn.Module], bool, int]] = {
    "convolution": (lambda: nn.Sequential(nn.MaxPool2d(2, 1), nn.Conv2d(7, 2, 1)), True, 0),
    "flattened": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(28, 2)), True, 0),
    "linear": (lambda: nn.Linear(7, 2), False, 0),
    "rows": (lambda: nn.Linear(7, 2), False, 0),
    "read by others": (lambda: nn.Sigmoid(), True, 1),
    "in groups": (lambda: nn.Conv2d(7, 7, 2, groups=7), True, 1),
}


@pytest.mark.parametrize("name", REST)
@pytest.mark.parametrize("with_data", [False, True])
def test_opposite_filters_are_computed_once_and_nothing_changes(name: str, with_data: bool) -> None:
    rest, is_convolution, gathers = REST[name]
    torch.manual_seed(0)
    model = nn.Sequential(paired(is_convolution), nn.ReLU(), rest()).eval()
    sizes = {"rows": (3, 27), "linear": (27,)}
    x = torch.randn(40, *sizes.get(name, (3, 3, 3)))
    graph = capture(model, x[:2])
    data = Data(x, x) if with_data else None
    result = Compact(kind="crelu", threshold=-0.99, include=("0",))(graph, data)
    with torch.no_grad():
        torch.testing.assert_close(result.graph(x), model(x), rtol=1e-3, atol=1e-4)
    layer: Any = result.summary["layers"]["0"]  # type: ignore[index]
    assert layer["pairs"] == 3
    assert layer["error"] < 1e-9
    before, after = counted(graph), counted(result.graph)
    assert before[0] - after[0] == layer["parameters"] - layer["parameters_after"]
    lengths = [name for name, _ in result.graph.named_parameters() if name.endswith("lengths")]
    found = result.graph.graph.find_nodes(op="call_function", target=GATHER)
    assert (len(found), len(lengths)) == (gathers, gathers)


def test_filters_that_are_nearly_opposite_are_made_good_for_behind_them() -> None:
    graph, data = made()
    x = torch.as_tensor(data.x_train)

    def off(data: Data | None) -> float:
        result = Compact(kind="crelu", threshold=-0.1, include=("last", "first"))(graph, data)
        with torch.no_grad():
            wanted = graph(x)
            return float((result.graph(x) - wanted).square().mean() / wanted.var())

    assert off(data) < 0.7 * off(None)


def test_other_passes_go_on_from_there() -> None:
    graph, data = made()
    steps = [
        Compact(kind="fire", steps=0),
        Prune(sparsity=0.3),
        Quantize(),
    ]
    program = fxloom.lower(Recipe(steps).run(graph, data).graph)
    program.verify()
    smaller = PruneChannels(sparsity=0.3)(Compact(kind="crelu", threshold=-0.1)(graph).graph)
    fxloom.lower(Quantize()(smaller.graph, data).graph).verify()


# What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "fires"}, "kind: required 'fire', 'separable' or 'crelu'"),
        ({"squeeze": 0}, r"squeeze: required a share above 0, at most 1, got 0"),
        ({"expand": 1.0}, "expand: required a share from 0 to below 1, got 1.0"),
        ({"multiplier": 0}, "multiplier: required a whole number, at least 1, got 0"),
        ({"threshold": 0.5}, "threshold: required a cosine from -1 to below 0, got 0.5"),
        ({"layers": {"c": {"squeeze": 1}}}, r'layers\."c"\.squeeze: unknown key; allowed: multi'),
        (
            {"layers": {"c": {"multiplier": 1.5}}},
            r'layers\."c"\.multiplier: required a whole number, at least 1, got 1.5',
        ),
        ({"between": ("relu", "batchnorm")}, r"between: required \[\]"),
        ({"kind": "crelu", "between": ("relu",)}, "crelu has no layers to put it between"),
        ({"samples": 0}, "samples: required at least 1, got 0"),
        ({"finetune": {"epoch": 2}}, r"finetune\.epoch: unknown"),
    ],
)
def test_keys_are_checked(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Compact(**keys)


LEFT: dict[str, tuple[str, str]] = {
    "point": ("separable", "its kernel is 1x1"),
    "even": ("fire", "needs a kernel with a middle, and this one is 2x2"),
    "small": ("fire", "it would have [0-9,]+ parameters instead of"),
    "grouped": ("fire", "it is a convolution with 2 groups"),
    "back": ("separable", "it is a transposed convolution"),
    "head": ("fire", "it is no convolution"),
    "grouped ": ("crelu", "it is a convolution with 2 groups"),
    "point ": ("crelu", "no relu alone reads its outputs"),
    "even ": ("crelu", "no two filters have a cosine of at most -0.99"),
}


@pytest.mark.parametrize(("between", "most"), [((), 4), (None, 8)])
def test_a_squeeze_has_no_more_channels_than_tell_all(
    between: tuple[str, ...] | None, most: int
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 32, 5), nn.ReLU()).eval()
    x = torch.randn(8, 4, 6, 6)
    keys: dict[str, Any] = {"kind": "fire", "squeeze": 0.5, "expand": 0.9, "between": between}
    result = Compact(**keys)(fxloom.capture(model, x[:2]))
    layer = result.summary["layers"]["0"]
    assert layer["channels between"] == most
    assert layer["parameters_after"] == sum(p.numel() for p in result.graph.parameters())


@pytest.mark.parametrize("value", [0.0, 1e-20, 1.0])
@pytest.mark.parametrize(
    "keys", [{}, {"kind": "fire", "squeeze": 0.5}, {"kind": "crelu", "threshold": -0.05}]
)
def test_errors_are_shares_also_where_all_samples_are_alike(
    value: float, keys: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)).eval()
    x = torch.full((8, 4, 4, 4), value)
    result = Compact(include=("0",), steps=5, **keys)(fxloom.capture(model, x[:2]), Data(x))
    assert 0 <= result.summary["layers"]["0"]["error"] < 1


def test_what_cannot_be_replaced_stays_or_is_an_error_where_it_is_named() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, 8)

    def run(m: Any, x: Tensor) -> Tensor:
        y = torch.relu(m.even(m.point(x)))
        y = torch.relu(m.back(m.grouped(y))) + m.small(x)
        return m.head(y.mean((2, 3)))

    model = fn(
        run,
        point=lambda: nn.Conv2d(4, 4, 1), even=lambda: nn.Conv2d(4, 4, 2),
        small=lambda: nn.Conv2d(4, 1, (1, 3), padding=(0, 1)),
        grouped=lambda: nn.Conv2d(4, 4, 2, groups=2),
        back=lambda: nn.ConvTranspose2d(4, 4, 3), head=lambda: nn.Linear(4, 4),
    )()  # fmt: skip
    graph = capture(model.eval(), x)
    for name, (kind, why) in LEFT.items():
        layer = name.strip()
        step = {"kind": kind, "include": (layer,), "threshold": -0.99, "squeeze": 1.0}
        with pytest.raises(RecipeError, match=f"{layer}: .*{why}.*\nExclude what cannot be"):
            Compact(**step)(graph)  # type: ignore[arg-type]
    result = Compact(kind="separable", exclude=("small",))(graph)
    assert set(result.summary["layers"]) == {"even"}  # type: ignore[call-overload]
    notes: Any = result.summary["notes"]
    assert set(notes) == {"point", "grouped", "back", "head"}
    with pytest.raises(RecipeError, match="no layer is left:\npoint: its kernel is 1x1"):
        Compact(exclude=("even", "small"))(graph)


def test_graphs_and_data_that_do_not_fit_are_refused() -> None:
    graph, data = made()

    def apart(m: Any, x: Tensor) -> Tensor:
        one, two = (functional.conv2d(x, m.c.weight, padding=p).sum((2, 3)) for p in (0, 1))
        return one + two

    twice = capture(fn(apart, c=lambda: nn.Conv2d(4, 6, 3))(), torch.randn(2, 4, 5, 5))
    with pytest.raises(RecipeError, match="its calls have different strides, paddings or dil"):
        Compact()(twice)
    with pytest.raises(RecipeError, match="first: its weights were pruned or shared"):
        Compact(include=("first",))(Prune(sparsity=0.5)(graph).graph)
    with pytest.raises(RecipeError, match="quantized already"):
        Compact()(Quantize()(graph, data).graph)
    with pytest.raises(RecipeError, match="required data to finetune on, got none"):
        Compact(finetune={"epochs": 1})(graph)
    with pytest.raises(RecipeError, match=r"between = \['relu'\] of separable .* required data"):
        Compact(between=("relu",))(graph)
