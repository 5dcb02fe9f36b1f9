"""Weights that are shared stay so: they train as one number a class, and are rounded alike."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from fxloom.backends.simulator import simulate
from fxloom.data import Data
from fxloom.editing import copy_graph
from fxloom.errors import RecipeError
from fxloom.exact import exact_forward
from fxloom.facts import check, keep_zeros, kept_weights, share, shared_weights
from fxloom.frontend import capture
from fxloom.graph import as_indices, constant
from fxloom.lowering import lower
from fxloom.passes import Finetune, MixedPrecision, Prune, Quantize, training
from fxloom.passes.by_class import ByClass
from fxloom.quantized_ops import REQUANTIZE, REQUANTIZE_WEIGHTS
from fxloom.sharing import (
    Circulant,
    Codebook,
    Hashed,
    Shared,
    classes_of,
    expanded,
    holds,
    means,
)

ROUNDINGS = (REQUANTIZE, REQUANTIZE_WEIGHTS)
SHAPES = {"0": (12, 6), "2": (12, 12), "4": (3, 12)}


def structure(name: str, shape: tuple[int, ...]) -> Shared:
    match name:
        case "codebook":
            return Codebook.of(torch.randint(0, 5, shape), 5)
        case "hashed":
            return Hashed(shape, 9, seed=3)
    return Circulant(shape, 4)


def net(name: str, share_of_zeros: float = 0.3) -> tuple[GraphModule, Data]:
    """Three layers of shared weights, some of them pruned before."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    )
    x = torch.randn(96, 6)
    graph = copy_graph(capture(model, x[:2]))
    for layer, shape in SHAPES.items():
        shared, kept = structure(name, shape), torch.rand(shape) >= share_of_zeros
        weight = constant(graph, f"{layer}.weight")
        numbers = 3 * means(shared, weight, kept).float()  # apart even in few bits
        weight.data.copy_(expanded(shared, numbers, kept))
        keep_zeros(graph, f"{layer}.weight", kept)
        share(graph, f"{layer}.weight", shared)
    return graph, Data(x, (x.sum(1) > 0).long() + (x[:, 0] > 0.5).long())


def by_hand(graph: GraphModule, data: Data, epochs: int) -> dict[str, Tensor]:
    """The weights after training numbers of classes, which torch looks up by indices."""
    numbers, look, biases = {}, {}, {}
    for layer in SHAPES:
        name = f"{layer}.weight"
        shared, kept = shared_weights(graph, name), kept_weights(graph, name)
        assert shared is not None
        assert kept is not None
        found = means(shared, constant(graph, name), kept).float()
        numbers[layer] = found.requires_grad_()
        signs = expanded(shared, torch.ones(shared.classes), kept)  # zero where pruned
        look[layer] = (classes_of(shared).long(), signs)
        biases[layer] = constant(graph, f"{layer}.bias").detach().clone().requires_grad_()
    optimizer = torch.optim.AdamW(
        [
            {"params": list(numbers.values()), "weight_decay": 1e-2},
            {"params": list(biases.values()), "weight_decay": 0.0},
        ]
    )
    ((x, y),) = ((as_indices(graph, x)[0], y) for x, y in data.pairs("train"))
    assert y is not None
    batches = training.batch_count(len(x), 64)
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(training._seed(0, epoch))
        order = torch.randperm(len(x), generator=generator)
        for index, rows in enumerate(torch.tensor_split(order, batches)):
            progress = torch.tensor((epoch + index / batches) / epochs)
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * (1 + float(torch.cos(torch.pi * progress))) / 2
            optimizer.zero_grad()
            value = x[rows]
            for layer in SHAPES:
                classes, signs = look[layer]
                value = functional.linear(value, numbers[layer][classes] * signs, biases[layer])
                value = value if layer == "4" else torch.relu(value)
            functional.cross_entropy(value, y[rows]).backward()
            optimizer.step()
    return {
        layer: (numbers[layer][classes] * signs).detach()
        for layer, (classes, signs) in look.items()
    }


@pytest.mark.parametrize("name", ["codebook", "hashed", "circulant"])
def test_numbers_train_as_if_looked_up_by_index(name: str) -> None:
    graph, data = net(name)
    wanted = by_hand(graph, data, 4)
    result = Finetune(epochs=4)(graph, data).graph
    assert check(graph, result) == {}
    for layer, weights in wanted.items():
        got = constant(result, f"{layer}.weight").detach()
        assert not torch.equal(got, constant(graph, f"{layer}.weight"))
        torch.testing.assert_close(got, weights, rtol=1e-4, atol=1e-5)


QUANTIZE: list[dict[str, Any]] = [
    {"weights": 8},
    {"weights": 3, "activations": 4, "equalize": True},
    {"weights": 4, "weight_rounding": "second_order", "per_channel": True},
    {"weights": 4, "weight_rounding": "adaround"},
]


@pytest.mark.parametrize("name", ["codebook", "hashed", "circulant"])
@pytest.mark.parametrize("keys", QUANTIZE, ids=lambda keys: "-".join(map(str, keys.values())))
def test_rounding_and_training_keep_classes(name: str, keys: dict[str, Any]) -> None:
    graph, data = net(name)
    result = Quantize(**keys)(graph, data)
    assert check(graph, result.graph) == {}
    (remark,) = result.summary["remarks"]  # type: ignore[misc]
    assert remark.startswith("0.weight, 2.weight, 4.weight: weights are shared: rounded to nearest")
    assert result.summary["equalized"] == {}
    trained = Finetune(epochs=3, ranges=True, narrowing=1)(result.graph, data)
    assert check(result.graph, trained.graph) == {}
    for each in (result.graph, trained.graph):
        assert_rounded_alike(each)
    program, x = lower(trained.graph), torch.randn(40, 6)
    assert np.array_equal(simulate(program, x.numpy()), exact_forward(trained.graph, x))
    matrices = [each.data for each in program.constants.values() if each.data.ndim == 2]
    for layer, shape in SHAPES.items():
        (integers,) = (each for each in matrices if each.shape in (shape, shape[::-1]))
        shared = shared_weights(trained.graph, f"{layer}.weight")
        assert shared is not None
        assert len(set(abs(integers[integers != 0]).tolist())) <= shared.classes


def assert_rounded_alike(graph: GraphModule) -> None:
    """What the layers multiply with is one number a class, up to signs."""
    for node in graph.graph.nodes:
        if node.target in ROUNDINGS and str(node.args[0].target).endswith(".weight"):
            name, *arguments = str(node.args[0].target), *node.args[1:]
            values = node.target(constant(graph, name), *arguments)
            shared, kept = shared_weights(graph, name), kept_weights(graph, name)
            assert shared is not None
            again = expanded(shared, means(shared, values, kept).float(), kept)
            assert torch.equal(again, values)
            assert bool(values.any())


def test_a_resumed_training_goes_on_by_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, data = net("codebook")
    graph = Quantize(weights=4)(graph, data).graph
    whole = Finetune(epochs=6)(graph, data).graph
    step = Finetune(epochs=6, checkpoint=str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "_is_stuck", lambda self: len(self.history) == 3)
        step(graph, data)
    resumed = step(graph, data).graph
    assert check(graph, resumed) == {}
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    # The same tensors with other classes are another training.
    other = copy_graph(graph)
    book = shared_weights(graph, "0.weight")
    assert isinstance(book, Codebook)
    share(other, "0.weight", Codebook.of(book.indices, 6))
    with pytest.raises(RecipeError, match="checkpoint"):
        step(other, data)


@pytest.mark.parametrize(
    ("name", "step", "message"),
    [
        ("codebook", Prune(sparsity=0.9), r"prune: 0, 2, 4: weights are shared.*before"),
        ("codebook", MixedPrecision(weight_bits=4.0), r'required "layer".*0\.weight, 2\.weight'),
        (
            "codebook",
            Quantize(layers={"0": {"weights": (8,) * 12}}),
            r"one fixed format.*codebook of 5.*bits by output channel",
        ),
        ("hashed", Quantize(weight_format="ternary"), r"one fixed format.*9 hash.*ternary"),
    ],
)
def test_what_would_part_classes_is_refused_by_name(name: str, step: Any, message: str) -> None:
    graph, data = net(name, share_of_zeros=0.0)
    with pytest.raises(RecipeError, match=message):
        step(graph, data)


def test_widths_by_layer_keep_classes() -> None:
    graph, data = net("codebook")
    result = MixedPrecision(weight_bits=4.0, granularity="layer", widths=(3, 4, 5))(graph, data)
    assert check(graph, result.graph) == {}
    assert_rounded_alike(result.graph)


def test_a_number_and_its_negative_round_to_opposites() -> None:
    """The least of two's complement has no counterpart."""
    torch.manual_seed(0)
    graph = copy_graph(capture(nn.Sequential(nn.Linear(8, 8)), torch.randn(2, 8)))
    shared = Hashed((8, 8), 2, seed=1)
    weight = constant(graph, "0.weight")
    weight.data.copy_(expanded(shared, torch.tensor([1.0, 0.25])))
    share(graph, "0.weight", shared)
    result = Quantize(weights=3, method="mse")(graph, Data(torch.randn(32, 8))).graph
    assert check(graph, result) == {}
    assert_rounded_alike(result)


def test_channels_that_are_small_get_no_format_of_their_own() -> None:
    torch.manual_seed(0)
    graph = copy_graph(capture(nn.Sequential(nn.Linear(8, 4)), torch.randn(2, 8)))
    weight, indices = constant(graph, "0.weight"), torch.randint(0, 2, (4, 8))
    indices[2] = 0  # as small as it gets, and a part of what other outputs have too
    shared = Codebook.of(indices, 2)
    weight.data.copy_(expanded(shared, torch.tensor([0.11, 1.3])))
    share(graph, "0.weight", shared)
    result = Quantize(weights=4, per_channel=True)(graph, Data(torch.randn(32, 8))).graph
    assert_rounded_alike(result)


def test_what_drifted_apart_is_one_number_again() -> None:
    shared, kept = Hashed((4, 5), 3, seed=0), torch.rand(4, 5) > 0.2
    tied = ByClass.of(shared, kept, torch.device("cpu"))
    weights = torch.randn(4, 5)
    tied.tie(weights)
    assert holds(shared, weights, kept)
    assert not bool(weights[~kept].any())
    low, high = tied.bounds(torch.tensor(-1.0), torch.tensor(0.875))
    assert (float(low), float(high)) == (-0.875, 0.875)


def test_numbers_of_both_signs_stay_within_what_both_can_hold() -> None:
    """Trained to the edge of their format, a number and its negative still round to opposites."""
    graph, data = net("hashed", share_of_zeros=0.0)
    graph = Quantize(weights=2)(graph, data).graph
    result = Finetune(epochs=4, learning_rate=0.3)(graph, data).graph
    assert check(graph, result) == {}
    assert_rounded_alike(result)
