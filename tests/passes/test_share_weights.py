"""Few numbers for many weights: how good they are, what stays true of them, what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.fx import GraphModule

from fxloom.backends.simulator import simulate
from fxloom.data import Data
from fxloom.errors import RecipeError
from fxloom.exact import exact_forward
from fxloom.facts import kept_weights, shared_weights, sharing
from fxloom.fixed_point import FixedPoint
from fxloom.frontend import capture
from fxloom.graph import constant
from fxloom.lowering import lower
from fxloom.passes import Finetune, Prune, Quantize, ShareWeights
from fxloom.passes.codebooks import Weights, in_fixed_point
from fxloom.passes.product_codes import product_indices
from fxloom.recipe import Recipe
from fxloom.sharing import Codebook, Hashed, Products, classes_of, holds

LAYERS = ("0", "3", "7")


def net() -> tuple[GraphModule, Data]:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.ConvTranspose2d(8, 4, 2, stride=2), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten()),
        nn.Linear(64, 5),
    )
    model[1].running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    x = torch.randn(64, 2, 4, 4)
    return capture(model.eval(), x[:2]), Data(x, torch.randint(0, 5, (64,)))


def weight(graph: GraphModule, layer: str) -> Tensor:
    return constant(graph, f"{layer}.weight").detach()


def distinct(values: Tensor) -> int:
    return len(values[values != 0].unique())


METHODS: list[dict[str, Any]] = [
    {"clusters": 6},
    {"bits": 3, "groups": 2, "exclude": ("3",), "centroid_bits": 6},
    {"error": 0.02, "centroid_bits": 8},
    {"budget": 6.0, "centroid_bits": 8},
    {"method": "hashed", "ratio": 4, "exclude": ("3",)},
    {"method": "products", "clusters": 3, "dim": 4, "exclude": ("3",)},
]


@pytest.mark.parametrize("keys", METHODS, ids=lambda keys: "-".join(map(str, keys)))
def test_a_whole_recipe_keeps_zeros_and_classes(keys: dict[str, Any]) -> None:
    graph, data = net()
    train = {"epochs": 2, "batch": 32}
    steps = [
        Prune(sparsity=0.5, scope="layer"),
        ShareWeights(**keys, finetune=train),
        Quantize(weights=8, per_channel=True, equalize=True),
        Finetune(**train),
    ]
    run = Recipe(steps).run(graph, data)
    summary = run.steps[1].summary
    assert summary["folded"] == ["1"]
    layers: Any = summary["layers"]
    assert set(layers) == set(LAYERS) - set(keys.get("exclude", ()))
    for step in run.steps:
        assert not {"sharing_gone", "pruned_tensors_gone"} & step.summary.keys()
    program, x = lower(run.graph), torch.randn(20, 2, 4, 4)
    assert np.array_equal(simulate(program, x.numpy()), exact_forward(run.graph, x))
    for name, figures in layers.items():
        kept = kept_weights(run.graph, f"{name}.weight")
        shared = shared_weights(run.graph, f"{name}.weight")
        assert kept is not None
        assert shared is not None
        assert figures["kept"] == int(kept.sum()) == figures["weights"] // 2
        assert holds(shared, weight(run.graph, name), kept)
        assert shared.classes == figures["numbers"]
        if keys.get("bits"):
            assert isinstance(shared, Codebook)
            assert (shared.books, figures["clusters"]) == (2, shared.size)
            assert shared.size <= 8
    found = {each.data.shape: each.data for each in program.constants.values()}
    integers = found[5, 64] if (5, 64) in found else found[64, 5]
    signs = 2 if keys.get("method") == "hashed" else 1
    assert len(set(integers[integers != 0].tolist())) <= signs * layers["7"]["numbers"]
    assert int((integers != 0).sum()) <= layers["7"]["kept"]


def test_a_codebook_is_the_best_of_its_size_and_says_what_it_costs() -> None:
    graph, _ = net()
    result = ShareWeights(clusters=4, include=("7",))(graph)
    before, after = weight(graph, "7"), weight(result.graph, "7")
    assert distinct(after) == 4
    figures: Any = result.summary["layers"]["7"]  # type: ignore[index]
    error = float((after - before).double().square().sum() / before.double().square().sum())
    assert figures["error"] == pytest.approx(error, rel=1e-5)
    assert figures["bits"] == pytest.approx(2 + 4 * 32 / 320, rel=1e-5)
    # Lloyd's conditions: nothing nearer, nothing more in the middle.
    centroids = after.unique()
    assert torch.equal(centroids[(before[..., None] - centroids).abs().argmin(-1)], after)
    means = torch.stack([before[after == each].double().mean() for each in centroids])
    torch.testing.assert_close(means.float(), centroids)
    assert torch.equal(weight(result.graph, "3"), weight(graph, "3"))
    text = result.summary["remarks"]
    assert text == ["320 weights of 1 layers are 4 numbers: 2.40 bits a weight, indices and "
                    "numbers, where floats have 32"]  # fmt: skip


def test_trained_centroids_are_in_fixed_point_again() -> None:
    graph, data = net()
    result = ShareWeights(clusters=5, centroid_bits=4, finetune={"epochs": 2})(graph, data).graph
    for name in LAYERS:
        values = weight(result, name).unique()
        assert 1 < len(values) <= 5
        scaled = [values * 2.0**fraction for fraction in range(12)]
        assert any(torch.equal(x, x.round()) and x.abs().max() < 8 for x in scaled)


def test_an_error_is_kept_to_with_no_more_numbers_than_it_takes() -> None:
    graph, _ = net()
    for bits in (None, 6):
        result = ShareWeights(error=0.01, centroid_bits=bits)(graph)
        layers: Any = result.summary["layers"]
        assert all(each["error"] <= 0.01 for each in layers.values())
        again = result.found
        assert isinstance(again, ShareWeights)
        assert again.error is None
        same = again(graph)
        assert same.summary == result.summary
        for name in LAYERS:
            assert torch.equal(weight(same.graph, name), weight(result.graph, name))
    some: Any = ShareWeights(error=0.01)(graph).summary["layers"]
    fewer: Any = ShareWeights(
        clusters=8,
        layers={name: {"clusters": each["clusters"] - 1} for name, each in some.items()},
    )(graph).summary["layers"]
    assert all(each["error"] > 0.01 for each in fewer.values())


def test_a_budget_is_kept_to_and_goes_where_it_helps() -> None:
    graph, _ = net()
    errors = []
    for budget in (2.5, 4.0, 6.0):
        result = ShareWeights(budget=budget, centroid_bits=8)(graph)
        layers: Any = result.summary["layers"]
        total = sum(each["weights"] for each in layers.values())
        assert sum(x["bits"] * x["weights"] for x in layers.values()) <= budget * total + 0.01
        errors.append(sum(each["error"] for each in layers.values()))
    assert errors == sorted(errors, reverse=True)
    equal: Any = ShareWeights(bits=4, centroid_bits=8)(graph).summary["layers"]
    bits = sum(each["bits"] * each["weights"] for each in equal.values()) / total
    best: Any = ShareWeights(budget=bits + 1e-6, centroid_bits=8)(graph).summary["layers"]
    assert sum(x["error"] for x in best.values()) <= sum(x["error"] for x in equal.values())


@given(
    st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=9, unique=True),
    st.integers(2, 10),
    st.data(),
)
def test_centroids_are_rounded_into_the_best_format(
    numbers: list[float], bits: int, data: st.DataObject
) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=len(numbers), max_size=len(numbers)))
    values, often = np.array(numbers), np.array(sizes, float)
    got = in_fixed_point(values, often, bits)
    scales = [f for f in range(-3, 160) if np.array_equal(got * 2.0**f, np.round(got * 2.0**f))]
    assert any(np.abs(got * 2.0**f).max() < 2 ** (bits - 1) for f in scales)
    off = often @ (got - values) ** 2
    for integer in range(1, 4):
        to = FixedPoint(bits, integer, signed=True)
        most = to.hi * to.step
        other = np.clip(np.round(values / to.step) * to.step, -most, most)
        if np.abs(values).max() <= 2.0 ** (integer - 1):
            assert off <= often @ (other - values) ** 2 + 1e-12


def test_pruned_weights_have_no_part_in_codewords() -> None:
    torch.manual_seed(0)
    words = torch.tensor([[1.0, 2.0, 3.0], [-3.0, 1.0, -1.0]])
    wanted = torch.randint(0, 2, (40, 4))
    rows = words[wanted].reshape(40, 12)[:, :11]
    kept = torch.rand(40, 11) > 0.3
    got = product_indices(rows * kept, kept, 2, 3, seed=0)
    for piece in range(4):
        sure = kept[:, piece * 3 : piece * 3 + 3].all(1)
        pairs = set(zip(wanted[sure, piece].tolist(), got[sure, piece].tolist(), strict=True))
        assert len(pairs) == 2
    held = Weights(rows * kept, kept, None)
    assert held.error(held.by_products(2, 3, seed=0)) < 1e-12


def test_each_layer_has_hashes_of_its_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    graph = capture(model, torch.randn(2, 8))
    result = ShareWeights(method="hashed", ratio=8)(graph)
    first, second = sharing(result.graph).values()
    assert isinstance(first, Hashed)
    assert first.buckets == 8
    assert not torch.equal(classes_of(first), classes_of(second))
    assert "train them" in str(result.summary["remarks"])
    pieces = ShareWeights(method="products", bits=2, dim=2)(graph)
    assert all(isinstance(each, Products) for each in sharing(pieces.graph).values())


class Back(nn.Module):
    """A layer whose weights another one reads transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = nn.Linear(6, 4), nn.Linear(4, 6)
        self.back.weight.data = self.there.weight.data.t()

    def forward(self, x: Tensor) -> Tensor:
        return self.back(torch.relu(self.there(x)))  # type: ignore[no-any-return]


def test_weights_that_are_read_transposed_are_the_same_numbers() -> None:
    torch.manual_seed(0)
    net = Back()
    net.there.weight.data[0, :3] = 0
    x = torch.randn(32, 6)
    graph = capture(net, x[:2])
    result = ShareWeights(clusters=3)(graph).graph
    first, second = (weight(result, name) for name in ("there", "back"))
    assert torch.equal(first, second.t())
    assert distinct(first) == 3
    assert sorted(sharing(result)) == ["back.weight", "there.weight"]
    run = Recipe([Quantize(weights=4, per_channel=True)]).run(result, Data(x))
    assert "sharing_gone" not in run.steps[0].summary
    with pytest.raises(RecipeError, match=r"there: another layer reads these weights transposed"):
        ShareWeights(method="hashed", ratio=2)(graph)


def test_weights_of_several_layers_are_shared_once() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    graph = capture(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(2, 4))
    result = ShareWeights(clusters=3)(graph)
    assert len(result.summary["layers"]) == 1  # type: ignore[arg-type]
    assert {distinct(t) for n, t in result.graph.state_dict().items() if n.endswith("t")} == {3}


REFUSED = [
    ({"clusters": 4, "bits": 2}, r"required one of clusters, bits, error, budget.*clusters, bits"),
    ({}, r"required one of clusters"),
    ({"method": "hashed", "clusters": 4}, r"required one of ratio"),
    ({"method": "hashed", "ratio": 4, "dim": 2}, r'dim: is not for method = "hashed"'),
    ({"method": "hashed", "ratio": 0.5}, r"ratio: required a number of at least 1, got 0.5"),
    ({"method": "products", "clusters": 4}, r"dim: required"),
    ({"clusters": 0}, r"clusters: required an integer from 1"),
    ({"bits": 17}, r"bits: required an integer from 1 to 16"),
    ({"error": 1.0}, r"error: required a number between 0 and 1"),
    ({"clusters": 4, "centroid_bits": 1}, r"centroid_bits: required 2 to 32"),
    ({"clusters": 4, "layers": {"0": {"ratio": 2}}}, r'layers\."0"\.ratio: unknown key'),
    ({"clusters": 4, "layers": {"0": {"bits": 2.5}}}, r'layers\."0"\.bits: required an integer'),
    ({"clusters": 4, "layers": {"0": {"bits": 2, "error": 0.1}}}, r"at most one of"),
    ({"clusters": 4, "finetune": {"epoch": 2}}, r"finetune.*epoch"),
]


@pytest.mark.parametrize(("keys", "message"), REFUSED)
def test_a_key_that_cannot_be_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ShareWeights(**keys)


IN_VAIN: list[tuple[dict[str, Any], str]] = [
    ({"clusters": 4, "include": ("x",)}, r'share_weights: include: "x" matches no layer'),
    ({"method": "hashed", "ratio": 4}, r"3: a transposed convolution.*kmeans"),
    ({"clusters": 4, "groups": 9, "exclude": ("3",)}, r"0: 9 groups of 8 outputs\n7: 9 groups of"),
    ({"budget": 1.0}, r"budget: required at least \d\.\d+ bits a weight"),
    ({"error": 1e-7, "centroid_bits": 4}, r"0: no codebook of up to 1024 numbers"),
    ({"clusters": 4, "finetune": {"epochs": 1}}, r"required data for finetune"),
]


@pytest.mark.parametrize(("keys", "message"), IN_VAIN)
def test_what_cannot_be_shared_is_refused_by_name(keys: dict[str, Any], message: str) -> None:
    graph, _ = net()
    with pytest.raises(RecipeError, match=message):
        ShareWeights(**keys)(graph)


def test_what_is_shared_or_quantized_already_is_refused() -> None:
    graph, data = net()
    shared = ShareWeights(clusters=4)(graph).graph
    with pytest.raises(RecipeError, match=r"0: its weights are shared already: a codebook of 4"):
        ShareWeights(clusters=2)(shared)
    with pytest.raises(RecipeError, match=r"quantized already"):
        ShareWeights(clusters=2)(Quantize()(shared, data).graph)


def test_keys_survive_toml() -> None:
    step = ShareWeights(
        budget=3.5, centroid_bits=8, layers={"0": {"bits": 8}}, finetune={"epochs": 3}
    )
    assert Recipe.parse(Recipe([step]).to_toml()) == Recipe([step])
