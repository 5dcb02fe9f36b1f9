"""What every pass promises, checked for every registered pass on models with every first op."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from fxloom.data import Data
from fxloom.errors import RecipeError
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes import REGISTRY, get
from fxloom.passes.quantize import Quantize
from fxloom.recipe import PassResult, Recipe
from tests.capturing import captured
from tests.models import make

MODELS = ["mlp", "resnet avg 3", "separable", "layer used twice", "constants", "two outputs"]


def snapshot(graph: GraphModule) -> tuple[str, dict[str, torch.Tensor], dict[str, int]]:
    state = {name: value.clone() for name, value in graph.state_dict().items()}
    return str(graph.graph), state, {k: v.data_ptr() for k, v in graph.state_dict().items()}


OPTIONS: dict[str, dict[str, Any]] = {
    "compact": {"samples": 16},
    "distill": {"finetune": {"epochs": 1, "loss": "mse"}},
    "factorize": {"budget": 0.8},
    "finetune": {"epochs": 1, "loss": "mse"},
    "mixed_precision": {"weight_bits": 6},
    "prune": {"sparsity": 0.5, "method": "obs"},
    "prune_channels": {"sparsity": 0.5},
    "structured": {"steps": 20},
    "share_weights": {"clusters": 4},
}
BEHIND_QUANTIZE = ("narrow_accumulators",)
REFUSED = [
    ("circulant", "constants"),
    *(("compact", name) for name in ("mlp", "layer used twice", "constants", "two outputs")),
    ("distill", "two outputs"),
    ("factorize", "constants"),
    ("finetune", "two outputs"),
    ("mixed_precision", "constants"),
    ("prune", "constants"),
    ("share_weights", "constants"),
    ("structured", "constants"),
]
"""Passes that cannot do anything with a model, and say so."""


def run(name: str, graph: GraphModule, data: Data) -> PassResult:
    step: Any = get(name)(**OPTIONS.get(name, {}))
    if name == "distill":
        step = replace(step, teacher=graph)
    result = step(graph, data)
    assert isinstance(result, PassResult)
    return result


@pytest.mark.parametrize("pass_name", REGISTRY)
@pytest.mark.parametrize("model_name", MODELS)
def test_pass_keeps_its_contract(pass_name: str, model_name: str) -> None:
    model, x = make(model_name)
    graph = captured(model_name)
    with torch.no_grad():
        y = model(*x)
    data = Data(x if len(x) > 1 else x[0], y[0] if isinstance(y, tuple) else y)
    if (pass_name, model_name) in REFUSED:
        with pytest.raises(RecipeError, match=f"{pass_name}|finetune"):
            run(pass_name, graph, data)
        return
    if pass_name in BEHIND_QUANTIZE:
        graph = Quantize()(graph, data).graph
    before = snapshot(graph)
    result = run(pass_name, graph, data)
    after = snapshot(graph)
    assert before[0] == after[0]
    assert before[2] == after[2]
    for key, value in before[1].items():
        assert torch.equal(value, after[1][key])
    result.graph.graph.lint()
    # What a caller runs is what the nodes say.
    assert result.graph.graph.python_code("self").src in result.graph.code
    again = run(pass_name, graph, data)
    assert str(again.graph.graph) == str(result.graph.graph)
    for (key, a), b in zip(
        result.graph.state_dict().items(), again.graph.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), key
    survived = result.graph
    if pass_name not in ("quantize", "mixed_precision", *BEHIND_QUANTIZE):
        survived = Quantize()(result.graph, data).graph
    lower(survived).verify()


@pytest.mark.parametrize("pass_name", ["fold_batchnorm", "legalize"])
@pytest.mark.parametrize("model_name", MODELS)
def test_rewriting_pass_computes_the_same(pass_name: str, model_name: str) -> None:
    _, x = make(model_name)
    graph = captured(model_name)
    result = run(pass_name, graph, Data(x_train=x[0])).graph
    wanted, got = graph(*x), result(*x)
    for a, b in zip(
        torch.utils._pytree.tree_leaves(wanted), torch.utils._pytree.tree_leaves(got), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_passes_share_the_tensors_they_do_not_change() -> None:
    model, x = make("resnet avg 3")
    graph = capture(model, x)
    quantized = run("quantize", graph, Data(x_train=x[0])).graph
    shared = {v.data_ptr() for v in graph.state_dict().values()}
    weight = dict(quantized.named_parameters())["0.weight"]
    assert weight.data_ptr() in shared


def test_the_users_model_is_untouched() -> None:
    model, x = make("resnet avg 3")
    before = copy.deepcopy(model.state_dict())
    Recipe([Quantize()]).run(capture(model, x), Data(x_train=x[0]))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
