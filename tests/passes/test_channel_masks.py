"""A smaller graph equals the one whose removed channels are masked to zero."""

import collections
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from torch.fx import GraphModule

from examples.models import MODELS, inputs, model
from fxloom.frontend import capture
from fxloom.passes import PruneChannels
from fxloom.passes.channel_groups import Dependencies, dependencies
from fxloom.passes.channel_removal import without
from tests.channel_masks import (
    TOLERANCE,
    Between,
    Masked,
    check_model,
    difference,
    random_units,
    removed_outputs,
)
from tests.models import CASES, Fn, make
from tests.random_models import RandomModel, random_models


def compare(graph: GraphModule, x: tuple[Tensor, ...], seed: int) -> int:
    """Assert equality without some random channels; how many."""
    found = dependencies(graph)
    removed = random_units(found, random.Random(seed))
    smaller = without(found, removed)
    assert difference(graph, smaller, removed_outputs(found, removed), x) <= TOLERANCE
    return len(removed)


@pytest.mark.parametrize("name", MODELS)
def test_example_networks_equal_their_masked_selves(name: str) -> None:
    x = inputs(name, 2)
    graph = capture(model(name), x)
    assert all(compare(graph, (x,), seed) > 0 for seed in range(2))


@pytest.mark.parametrize("name", CASES)
def test_test_models_equal_their_masked_selves(name: str) -> None:
    module, x = make(name)
    x = tuple(t[:3] for t in x)
    if all(t.is_floating_point() for t in x) and name not in UNWRAPPED:
        module = Between(module, x).eval()
    graph = capture(module, x)
    for seed in range(2):
        compare(graph, x, seed)


UNWRAPPED = ("one number a sample", "einsum", "addmm")
"""Those that want their inputs as they are."""


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_models(10))
def test_random_models_equal_their_masked_selves(random_model: RandomModel) -> None:
    check_model(random_model, collections.Counter())


def test_mask_of_a_batch_norm_is_behind_its_shift() -> None:
    """An oracle by hand: channels zero wherever a layer reads them."""
    torch.manual_seed(0)
    first, norm, last = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 3, 3, padding=1)
    nn.init.uniform_(norm.bias)
    nn.init.uniform_(norm.running_mean)
    net = nn.Sequential(first, norm, nn.Sigmoid(), last).eval()
    x = torch.randn(4, 2, 7, 7)
    result = PruneChannels(sparsity=0.5)(capture(net, x)).graph
    norms = first.weight.abs().sum((1, 2, 3))
    mask = torch.zeros(6)
    mask[norms.topk(3).indices] = 1
    masked = last(net[:3](x) * mask[:, None, None])
    torch.testing.assert_close(result(x), masked, rtol=1e-5, atol=1e-5)


def analysed(function: Callable[..., Any], *shape: int, **modules: nn.Module) -> Dependencies:
    torch.manual_seed(0)
    return dependencies(capture(Fn(function, **modules).eval(), torch.randn(2, *shape)))


def test_the_comparison_notices_a_channel_that_was_not_masked() -> None:
    found = analysed(
        lambda m, x: m.b(torch.sigmoid(m.a(x))), 5, a=nn.Linear(5, 6), b=nn.Linear(6, 2)
    )
    graph, x = found.channels.module, torch.randn(3, 5)
    removed = set(found.groups[0].units[:2].tolist())
    smaller = without(found, removed)
    masked = removed_outputs(found, removed)
    assert masked["a"] == [0, 1]
    assert difference(graph, smaller, masked, (x,)) < TOLERANCE
    assert difference(graph, smaller, masked | {"a": [0, 2]}, (x,)) > TOLERANCE
    assert difference(graph, smaller, {}, (x,)) > TOLERANCE


def test_the_oracle_computes_the_graph_where_nothing_is_masked() -> None:
    module, x = make("resnet avg 3")
    graph = capture(module, x)
    with torch.no_grad():
        exact = Masked(graph, {}).run(*(t.double() for t in x))
        torch.testing.assert_close(exact.float(), graph(*x), rtol=1e-4, atol=1e-4)
