"""A captured graph with some channels of its layers masked, an oracle for `prune_channels`.

It knows of the pass only which outputs of which layers are removed. Beside every value there is a
state, element by element: computed from constants alone, from masked channels (and constants)
alone, or from anything else. What a masked channel is padded with is masked. States go through the
graph as dense tensors, by PyTorch's own operations where values move. What is computed from masked
channels alone is zero, everywhere.

    python -m tests.channel_masks 500 [--seed S] [--length 10]

draws random models, removes random channels from each, and compares the smaller graph with the
masked one.
"""

import argparse
import collections
import random
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from torch import Tensor, fx, nn
from torch.fx.node import Node

from fxloom.composite_ops import MASKED_SOFTMAX
from fxloom.errors import FxloomError
from fxloom.frontend import capture
from fxloom.graph import Float64
from fxloom.moves import GATHER
from fxloom.passes.channel_groups import Dependencies, dependencies
from fxloom.passes.channel_removal import without
from tests.random_models import RandomModel, random_models

aten = torch.ops.aten

CONSTANT, MASKED, ALIVE = 0.0, 1.0, 2.0
TOLERANCE = 1e-5

MOVES = (
    aten.reshape.default, aten.view.default, aten.permute.default, aten.expand.default,
    aten.slice.Tensor, aten.select.int, aten.cat.default, aten.flip.default, aten.roll.default,
    aten.repeat.default, aten.repeat_interleave.self_int, aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default, aten.channel_shuffle.default, aten.index_select.default,
    aten.index.Tensor, GATHER,
)  # fmt: skip
SPATIAL = ("pool", "upsample", "instance_norm")
REDUCTIONS = ("mean", "sum", "amax", "amin", "argmax", "argmin", "var", "std", "logsumexp")


class Masked(Float64):
    """Runs a graph in float64 with masked channels. masked: by the name of a layer's node."""

    def __init__(self, module: fx.GraphModule, masked: Mapping[str, Sequence[int]]) -> None:
        super().__init__(module)
        self._masked = masked
        self._states: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n.op == "output" or not isinstance(value, Tensor):
            return value
        state = self._state(n, value)
        self._states[n] = state
        return torch.where(state == MASKED, torch.zeros_like(value), value)

    def _state(self, n: Node, value: Tensor) -> Tensor:
        if n.op != "call_function":
            fill = ALIVE if n.op == "placeholder" else CONSTANT
            return torch.full(value.shape, fill)
        args, kwargs = fx.node.map_arg((n.args, n.kwargs), lambda node: self._states[node])
        found = _state_of(n, args, kwargs, value)
        if n.name in self._masked:
            axis = 1 if n.target is aten.convolution.default else value.dim() - 1
            found = found.clone().movedim(axis, 0)
            found[list(self._masked[n.name])] = MASKED
            found = found.movedim(0, axis)
        return found


def _state_of(n: Node, args: Any, kwargs: Any, value: Tensor) -> Tensor:
    target, name = n.target, str(n.target)
    operands = [a for a in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
    if not operands:
        return torch.full(value.shape, CONSTANT)
    x = operands[0]
    if target in (aten.index.Tensor, aten.index_select.default):  # indices are no states
        return torch.full(value.shape, float(x.max()) and ALIVE)
    if target in MOVES:
        return target(*args, **kwargs)
    if target is aten.constant_pad_nd.default:
        return _padded(x, args[1])
    if target is aten.linear.default:
        return _mixed(x, -1, keepdim=True).expand(value.shape)
    if target is aten.convolution.default:
        groups = args[8]
        each = _mixed(x.reshape(len(x), groups, -1), 2)
        each = each.repeat_interleave(value.shape[1] // groups, 1)
        return each.reshape(*each.shape, *[1] * (value.dim() - 2)).expand(value.shape)
    if target is aten.embedding.default:
        return operands[1][..., None].expand(value.shape)
    if target in (aten.matmul.default, aten.bmm.default):
        left, right = operands
        left, right = left.double(), right.double()
        unmasked = (left != MASKED).double() @ (right != MASKED).double()
        alive = ((left == ALIVE).double() @ (right != MASKED).double() > 0) | (
            (left != MASKED).double() @ (right == ALIVE).double() > 0
        )
        others = torch.where(unmasked == 0, MASKED, CONSTANT)
        return torch.where(alive, ALIVE, others).expand(value.shape)
    if target is aten.scaled_dot_product_attention.default:
        values = _mixed(args[2], -2, keepdim=True)
        scores = torch.maximum(*(_mixed(part, (-2, -1), keepdim=True) for part in args[:2]))
        mixed = torch.where(values == MASKED, MASKED, torch.maximum(values, scores))
        return mixed.expand(value.shape)
    if target in (aten.batch_norm.default, aten.prelu.default):
        return x
    if any(word in name for word in SPATIAL):
        spatial = 1 if "1d" in name else 2 if "2d" in name else x.dim() - 2
        places = tuple(range(x.dim() - spatial, x.dim()))
        return _mixed(x, places, keepdim=True).expand(value.shape)
    if target is aten.group_norm.default:
        each = _mixed(x.reshape(len(x), args[1], -1), 2, keepdim=True)
        return each.expand(len(x), args[1], x[0].numel() // args[1]).reshape(value.shape)
    if target in (aten.layer_norm.default, aten.rms_norm.default):
        return _mixed(x, tuple(range(-len(args[1]), 0)), keepdim=True).expand(value.shape)
    if target in (aten.softmax.int, aten.log_softmax.int, aten.cumsum.default):
        return _mixed(x, args[1], keepdim=True).expand(value.shape)
    if target is aten.linalg_vector_norm.default:
        return _reduced(x, args[2], value)
    if target is aten.glu.default:
        return _product(*x.chunk(2, args[1]))
    if target is MASKED_SOFTMAX:
        mixed = torch.maximum(x, operands[-1])  # scores, and the mask where there is one
        return _mixed(mixed, args[2], keepdim=True).expand(value.shape)
    if name.split(".")[1] in REDUCTIONS:
        return _reduced(x, args[1] if len(args) > 1 else None, value)
    if target is aten.mul.Tensor and len(operands) == 2:
        return _product(*operands).expand(value.shape)
    largest = x
    for other in operands[1:]:
        largest = torch.maximum(largest, other)
    if target is aten.div.Tensor and isinstance(args[0], Tensor):
        largest = torch.where(args[0].expand_as(largest) == MASKED, MASKED, largest)
    if largest.shape != value.shape:
        return torch.full(value.shape, float(largest.max()))
    return largest


def _mixed(x: Tensor, dims: Any, keepdim: bool = False) -> Tensor:
    """The state of what all entries along these dimensions are mixed into."""
    highest, lowest = x.amax(dims, keepdim=keepdim), x.amin(dims, keepdim=keepdim)
    others = torch.where(lowest == MASKED, MASKED, CONSTANT)
    return torch.where(highest == ALIVE, ALIVE, others)


def _padded(x: Tensor, widths: Sequence[int]) -> Tensor:
    """What is put around a masked channel belongs to it."""
    for axis in range(len(widths) // 2):
        dim = x.dim() - 1 - axis
        pair = [0] * (2 * axis) + list(widths[2 * axis : 2 * axis + 2])
        padded = aten.constant_pad_nd.default(x, pair, -1.0)
        around = _mixed(x, dim, keepdim=True).expand(padded.shape)
        x = torch.where(padded >= 0, padded, torch.where(around == MASKED, MASKED, CONSTANT))
    return x


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Zero where one factor is."""
    masked = (left == MASKED) | (right == MASKED)
    return torch.where(masked, MASKED, torch.maximum(left, right))


def _reduced(x: Tensor, dims: Any, value: Tensor) -> Tensor:
    chosen = dims if dims not in (None, []) else list(range(x.dim()))
    kept = _mixed(x, chosen, keepdim=value.dim() == x.dim())
    return kept.expand(value.shape)


def removed_outputs(found: Dependencies, removed: set[int]) -> dict[str, list[int]]:
    """The outputs of every layer's node that go with these units."""
    masked = {}
    for layer in found.layers:
        value = found.channels.values[layer.node]
        ids = value[1 if layer.node.target is aten.convolution.default else -1]
        masked[layer.node.name] = [
            i for i, stays in enumerate(found.kept(ids, removed)) if not stays
        ]
    return masked


def random_units(found: Dependencies, chance: random.Random) -> set[int]:
    """Some units, without those that are the last of a dimension."""
    share = chance.choice([0.2, 0.5, 0.9])
    removed = {int(u) for group in found.groups for u in group.units if chance.random() < share}
    for units in found.occupied:
        if units <= removed:
            removed.discard(chance.choice(sorted(units)))
    return removed


def difference(
    graph: fx.GraphModule, smaller: fx.GraphModule, masked: Mapping[str, Sequence[int]], x: Any
) -> float:
    """The largest difference of two graphs' outputs, relative to those above one."""
    with torch.no_grad():
        doubled = [t.double() if t.is_floating_point() else t for t in x]
        wanted = torch.utils._pytree.tree_leaves(Masked(graph, masked).run(*doubled))
        got = torch.utils._pytree.tree_leaves(Float64(smaller).run(*doubled))
    worst = 0.0
    for a, b in zip(wanted, got, strict=True):
        assert a.shape == b.shape, (a.shape, b.shape)
        if not a.numel():
            continue
        scale = max(1.0, float(a.double().abs().max()))
        error = (a.double() - b.double()).abs()
        worst = max(worst, float(error.nan_to_num(nan=torch.inf).max()) / scale)
    return worst


class Between(nn.Module):
    """A model between layers of its own: its inputs and outputs have channels that may go."""

    def __init__(self, model: nn.Module, x: Sequence[Tensor]) -> None:
        super().__init__()
        self.model = model
        layers: dict[int, Callable[[int], nn.Module]] = {
            2: lambda n: nn.Linear(n, n),
            3: lambda n: nn.Conv1d(n, n, 1),
            4: lambda n: nn.Conv2d(n, n, 1),
        }
        self.enter = nn.ModuleList(layers[t.dim()](t.shape[1]) for t in x)
        with torch.no_grad():
            outputs = self._inside(x)
        self.leave = nn.ModuleList(
            nn.Linear(y[0].numel(), 2) if y.is_floating_point() else nn.Identity() for y in outputs
        )

    def _inside(self, x: Sequence[Tensor]) -> Sequence[Tensor]:
        y = self.model(*(layer(t) for layer, t in zip(self.enter, x, strict=True)))
        return y if isinstance(y, tuple) else (y,)

    def forward(self, *x: Tensor) -> tuple[Tensor, ...]:
        """A linear layer of every output."""
        pairs = zip(self.leave, self._inside(x), strict=True)
        return tuple(layer(y.flatten(1) if y.is_floating_point() else y) for layer, y in pairs)


def check_model(model: RandomModel, tally: collections.Counter[str]) -> None:
    """Remove random channels of a random model; assert that it equals the masked one."""
    module, inputs = model.build()
    x = inputs(3)
    tally["drawn"] += 1
    module = Between(module, x).eval()
    try:
        graph = capture(module, x)
    except FxloomError:
        return
    tally["captured"] += 1
    found = dependencies(graph)
    removed = random_units(found, random.Random(len(model.source)))
    if not removed:
        return
    smaller = without(found, removed)
    masked = removed_outputs(found, removed)
    worst = difference(graph, smaller, masked, x)
    assert worst <= TOLERANCE, f"{worst}: {masked}"
    tally["pruned"] += 1
    tally["units"] += len(removed)
    for node in graph.graph.nodes:
        if node.op == "call_function":
            tally[f"op {node.target}"] += 1


def main() -> int:
    """Compare until as many models as asked for have lost channels."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("count", type=int, help="models that lose channels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--length", type=int, default=10, help="statements of a model, at most")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    tally: collections.Counter[str] = collections.Counter()
    failing: list[str] = []
    began = time.perf_counter()
    number = 0
    while tally["pruned"] < options.count and not failing:

        @seeded(options.seed + number)
        @settings(
            max_examples=100, deadline=None, database=None,
            phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(random_models(options.length))
        def run(model: RandomModel) -> None:
            if tally["pruned"] >= options.count and not failing:
                return
            try:
                check_model(model, tally)
                if tally["drawn"] % 100 == 0:
                    print(_state(tally, began), flush=True)
            except Exception:
                if not failing:
                    print(f"failing; a smaller one is looked for\n{model.source}", flush=True)
                failing[:] = [model.source]
                raise

        try:
            run()
        except Exception as fault:
            print(f"FAILED: {fault!r}\n{failing[0]}")
            return 1
        number += 1
    print(_state(tally, began))
    return 0


def _state(tally: collections.Counter[str], began: float) -> str:
    return (
        f"{tally['drawn']} models drawn, {tally['captured']} captured, "
        f"{tally['pruned']} pruned and equal, {tally['units']} units removed, "
        f"{time.perf_counter() - began:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
