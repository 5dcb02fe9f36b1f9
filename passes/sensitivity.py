"""What narrower weights cost: how far the outputs move for each width of each output channel.

No labels are needed: outputs are compared with the float model's. For small errors the distance is
quadratic in what a layer's outputs are off by, so that a channel's cost is the error of its output,
as fitted weights leave it, times the curvature of the distance there: the diagonal of the
generalised Gauss-Newton matrix (Schraudolph 2002), which for a softmax is Fisher's. Optimal brain
damage and surgeon use the same expansion. Errors of few bits are not small, so what the expansion
says of the widths that are chosen is compared with what injecting them does: see `Costs.corrected`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.encodings import Encoding
from fxloom.facts import kept_weights
from fxloom.fixed_point import FixedPoint
from fxloom.graph import arguments, constant, origin
from fxloom.passes.calibration import Batch
from fxloom.passes.chains import LAYERS
from fxloom.passes.distance import Distance, several
from fxloom.passes.fitting import MOST_INPUTS, input_rows, output_rows
from fxloom.passes.grid import Grid, step_candidates
from fxloom.passes.quantize import channel_axis
from fxloom.passes.second_order import Moments, Problem, best_steps, refit

Table = npt.NDArray[np.float64]
Batches = Callable[[], Iterator[Batch]]
Choice = Mapping[str, Sequence[int]]
"""For every layer, the place in the list of widths of each channel's."""

PROBES = 4
"""Random directions for the curvature at every sample."""

MOST_MOMENTS = 2**26
"""Entries of the covariances held at once: 0.5 GB in float64."""

MOST_FITTED = 2**20
"""Weights of a layer up to which their rounding is fitted; larger layers are rounded to nearest,
which makes all their widths more costly alike."""

BLOCK = 2**20
"""Weights that are rounded at once."""

TRUSTED = 1.5
"""How many times the expansion's distance may be measured before it is corrected."""


@dataclass(frozen=True, eq=False)
class Weights:
    """The weights of a layer, or of several that share them.

    name: of the first layer, or of the tensor where other weights go by that name as well. layers:
    their names. is_alone: whether these names mean no other weights.
    """

    name: str
    nodes: tuple[Node, ...]
    layers: tuple[str, ...]
    values: Tensor
    is_alone: bool

    @property
    def source(self) -> Node:
        """The tensor's node."""
        found: Node = arguments(self.nodes[0])[1]
        return found

    @property
    def channels(self) -> int:
        """Output channels."""
        return len(self.values)

    @property
    def inputs(self) -> int:
        """Weights of an output channel."""
        return prod(self.values.shape[1:])


def all_weights(module: fx.GraphModule) -> list[Weights]:
    """The constant weights of layers of a legalized float graph, in order."""
    readers: dict[Node, list[Node]] = {}
    for node in module.graph.nodes:
        if node.target in LAYERS:
            source = arguments(node)[1]
            if isinstance(source, Node) and source.op == "get_attr":
                readers.setdefault(source, []).append(node)
    layers = {
        source: tuple(dict.fromkeys(origin(node) for node in nodes))
        for source, nodes in readers.items()
    }
    counts = Counter(name for names in layers.values() for name in names)
    found = []
    for source, nodes in readers.items():
        names = layers[source]
        is_alone = all(counts[name] == 1 for name in names)
        name = names[0] if is_alone else str(source.target)
        values = constant(module, source.target).detach()
        found.append(Weights(name, tuple(nodes), names, values, is_alone))
    return found


class _Probed(fx.Interpreter):
    """Runs a graph so that gradients at the outputs of layers can be had."""

    def __init__(self, module: fx.GraphModule, watched: Sequence[Node]) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.zeros: dict[Node, Tensor] = {}
        self._watched = set(watched)

    def run_node(self, n: Node) -> Any:
        """The node's value, moved by a zero that has a gradient."""
        value = super().run_node(n)
        if n not in self._watched:
            return value
        self.zeros[n] = torch.zeros_like(value, requires_grad=True)
        return value + self.zeros[n]


def gradients(
    module: fx.GraphModule, watched: Sequence[Node], batches: Batches, distance: Distance
) -> Iterator[dict[Node, Tensor]]:
    """Gradients at nodes, sample by sample, whose squares have the curvature as their mean."""
    generator = torch.Generator().manual_seed(0)
    for batch in batches():
        for _ in range(PROBES):
            run = _Probed(module, watched)
            with torch.enable_grad():
                probe = distance.probe(several(run.run(*batch)), generator)
                probe.backward()  # type: ignore[no-untyped-call]
            found = {node: run.zeros[node].grad for node in watched}
            yield {
                node: torch.zeros_like(run.zeros[node]) if gradient is None else gradient
                for node, gradient in found.items()
            }


def curvatures(
    module: fx.GraphModule, layers: Sequence[Node], batches: Batches, distance: Distance
) -> dict[Node, Tensor]:
    """For every output channel of layers, the second derivative of the distance by an error that
    all positions of the channel share out: the mean over samples of the squared gradients."""
    totals = {node: torch.zeros((), dtype=torch.float64) for node in layers}
    count = 0
    for found in gradients(module, layers, batches, distance):
        for node, gradient in found.items():
            rows = output_rows(node, gradient).to(torch.float64)
            totals[node] = totals[node] + rows.square().sum(1).flatten()
        count += len(next(iter(found.values())))
    return {node: total / count for node, total in totals.items()}


@dataclass(frozen=True)
class Diagonal:
    """As Problem, of inputs that are taken as independent: where a covariance has no room.

    target: [1, outputs, inputs]. variances: [inputs].
    """

    target: Tensor
    variances: Tensor

    def errors(self, weights: Tensor) -> Tensor:
        """For every output [1, outputs]."""
        return (weights - self.target).square() @ self.variances


def problems(
    module: fx.GraphModule, weights: Sequence[Weights], batches: Batches
) -> Iterator[tuple[Weights, Problem | Diagonal, Tensor]]:
    """For every layer what its rounding is judged by, on float inputs, and the means of those
    [groups, 1, inputs]; few layers at a time."""
    group: list[Weights] = []
    size = 0
    for each in weights:
        more = each.inputs**2 if each.inputs <= MOST_INPUTS else each.inputs
        if group and size + more > MOST_MOMENTS:
            yield from _problems(module, group, batches)
            group, size = [], 0
        group.append(each)
        size += more
    yield from _problems(module, group, batches)


@dataclass
class _Spread:
    """Sums of the inputs of neurons that have many, and of their squares."""

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def see(self, x: Tensor, y: Tensor) -> None:
        rows = x.flatten(0, 1)
        self.count += len(rows)
        self.total = self.total + rows.sum(0, dtype=torch.float64)
        self.squares = self.squares + rows.square().sum(0, dtype=torch.float64)


class _Watching(fx.Interpreter):
    """Collects what layers get and give."""

    def __init__(self, module: fx.GraphModule, seeing: Mapping[Node, Moments | _Spread]) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self._seeing = seeing

    def run_node(self, n: Node) -> Any:
        """The node's value, seen."""
        value = super().run_node(n)
        if n in self._seeing:
            x = self.env[arguments(n)[0]]
            self._seeing[n].see(input_rows(n, x), output_rows(n, value))
        return value


def _problems(
    module: fx.GraphModule, group: Sequence[Weights], batches: Batches
) -> Iterator[tuple[Weights, Problem | Diagonal, Tensor]]:
    seen = {each: Moments() if each.inputs <= MOST_INPUTS else _Spread() for each in group}
    watching = _Watching(module, {node: seen[each] for each in group for node in each.nodes})
    with torch.inference_mode():
        for batch in batches():
            watching.run(*batch)
    for each in group:
        found = seen.pop(each)
        if isinstance(found, _Spread):
            mean = found.total / found.count
            spread = found.squares / found.count - mean.square()
            yield each, Diagonal(each.values.flatten(1)[None], spread), mean[None, None]
        else:
            groups = found.sums["x"].shape[0]
            weights = each.values.reshape(groups, each.channels // groups, -1)
            kept = kept_weights(module, str(each.source.target))
            kept = None if kept is None else kept.reshape(weights.shape)
            yield each, refit(weights, found, kept), found.mean("x")[:, None]


@dataclass(frozen=True)
class Rounded:
    """Weights in a width, every channel with its binary point.

    mantissas: [channels, inputs] in narrow integers. steps, errors, shifts: [channels]; the errors
    are the variance of what the channel's outputs are off by, the shifts its mean.
    """

    mantissas: Tensor
    steps: Tensor
    errors: Tensor
    shifts: Tensor


def rounded(each: Weights, problem: Problem | Diagonal, means: Tensor, width: int) -> Rounded:
    """The best weights of a width; 0 bits: none."""
    grid = Grid(FixedPoint(max(width, 1), max(width, 1), True), Encoding.FIXED)
    candidates = step_candidates(problem.target, grid, True)
    values = each.values.reshape(problem.target.shape)
    outputs = values.shape[1]
    # Several copies of a piece in float64 at once, not of a layer.
    size = max(BLOCK * outputs // values.numel(), 1)
    pieces = []
    for first in range(0, outputs, size):
        rows = slice(first, first + size)
        part = replace(problem, target=problem.target[:, rows].to(torch.float64))
        if width == 0:
            mantissas = torch.zeros_like(part.target)
            steps = torch.ones_like(mantissas[:, :, :1])
        else:
            mantissas, steps = _best(part, [steps[:, rows] for steps in candidates], grid, values)
        weights = mantissas * steps
        off = ((weights - values[:, rows].to(torch.float64)) * means).sum(2)
        kind = torch.int8 if width <= 8 else torch.int32
        pieces.append((mantissas.to(kind), steps[:, :, 0], part.errors(weights), off))
    whole = [torch.cat(parts, 1).flatten(0, 1) for parts in zip(*pieces, strict=True)]
    return Rounded(*whole)


def _best(
    problem: Problem | Diagonal, candidates: Sequence[Tensor], grid: Grid, layer: Tensor
) -> tuple[Tensor, Tensor]:
    """Mantissas and steps for some outputs of a layer."""
    if isinstance(problem, Problem) and layer.numel() <= MOST_FITTED:
        return best_steps(problem, candidates, grid.nearest, by_output=True)
    tried = [grid.nearest(problem.target / steps) for steps in candidates]
    errors = torch.stack(
        [problem.errors(m * steps) for m, steps in zip(tried, candidates, strict=True)]
    )
    choice = errors.argmin(0)[None, :, :, None]
    mantissas = torch.stack(tried).gather(0, choice.expand(1, *tried[0].shape))[0]
    return mantissas, torch.stack(list(candidates)).gather(0, choice)[0]


@dataclass(frozen=True)
class Replaced:
    """Other weights of a layer, and what their outputs are off by in the mean, which the bias makes
    good. shifts: [channels]."""

    weights: Tensor
    shifts: Tensor

    def only(self, channels: Tensor, values: Tensor) -> Replaced:
        """Some of the channels; the others have the values that they had."""
        chosen = channels.reshape(-1, *(1,) * (values.dim() - 1))
        return Replaced(torch.where(chosen, self.weights, values), self.shifts * channels)


@dataclass
class Costs:
    """What each width costs, layer by layer.

    tables: [channels, widths], how far the outputs move. rounded: the weights in every width, where
    they are known.
    """

    module: fx.GraphModule
    weights: Sequence[Weights]
    widths: Sequence[int]
    batches: Batches
    distance: Distance
    tables: dict[str, Table] = field(default_factory=dict)
    rounded: dict[str, list[Rounded]] = field(default_factory=dict)

    def distances(self, replaced: Sequence[Mapping[Weights, Replaced]]) -> list[float]:
        """How far the outputs move, per sample, with other weights; for each table of them."""
        totals, count = [0.0] * len(replaced), 0
        with torch.inference_mode():
            for batch in self.batches():
                wanted = several(self.module(*batch))
                count += len(wanted[0])
                for index, table in enumerate(replaced):
                    got = several(injected(self.module, table, batch))
                    totals[index] += float(self.distance.between(wanted, got))
        return [total / max(count, 1) for total in totals]

    def measured(self, choice: Choice) -> float:
        """How far the outputs move with the chosen widths."""
        chosen = {each: self._chosen(each, choice[each.name]) for each in self.weights}
        return self.distances([chosen])[0]

    def corrected(self, choice: Choice, together: float) -> bool:
        """Compare with what the chosen widths really do, and mend the tables where that is more.

        together: how far the outputs move with all of them. Returns whether anything was mended.
        Silenced channels are judged apart from narrow ones: no expansion tells how much a whole
        channel carries.
        """
        predicted = sum(
            float(self.tables[name][np.arange(len(places)), places].sum())
            for name, places in choice.items()
        )
        if together <= TRUSTED * predicted:
            return False
        parts: list[tuple[Weights, bool]] = []
        tried: list[dict[Weights, Replaced]] = []
        for each in self.weights:
            new = self._chosen(each, choice[each.name])
            silent = torch.tensor([self.widths[place] == 0 for place in choice[each.name]])
            for is_silent in (True, False):
                if bool((silent == is_silent).any()):
                    parts.append((each, is_silent))
                    tried.append({each: new.only(silent == is_silent, each.values)})
        mended = False
        for (each, is_silent), measured in zip(parts, self.distances(tried), strict=True):
            table, places = self.tables[each.name], np.asarray(choice[each.name])
            chosen = (np.asarray(self.widths)[places] == 0) == is_silent
            expected = float(table[np.arange(len(places)), places][chosen].sum())
            if measured <= TRUSTED * expected or measured == 0:
                continue
            columns = (np.asarray(self.widths) == 0) == is_silent
            rows = chosen if is_silent else np.ones(len(table), dtype=bool)
            # Where nothing was expected, all that was chosen shares what was found.
            floor = measured * 1e-6 / int(chosen.sum())
            factor = measured / max(expected, floor * int(chosen.sum()))
            table[np.ix_(rows, columns)] = np.maximum(table[np.ix_(rows, columns)], floor) * factor
            mended = True
        return mended

    def _chosen(self, each: Weights, places: Sequence[int]) -> Replaced:
        """Weights of the layer with every channel in its width."""
        choices, dtype = self.rounded[each.name], each.values.dtype
        channels = [
            choices[place].mantissas[channel] * choices[place].steps[channel].to(dtype)
            for channel, place in enumerate(places)
        ]
        shifts = [choices[place].shifts[channel] for channel, place in enumerate(places)]
        weights = torch.stack(channels).reshape(each.values.shape)
        return Replaced(weights, torch.stack(shifts).to(dtype))


def injected(module: fx.GraphModule, replaced: Mapping[Weights, Replaced], batch: Batch) -> Any:
    """The outputs of a graph with other weights in some layers."""
    layers = {node: new for each, new in replaced.items() for node in each.nodes}
    return _Injected(module, layers).run(*batch)


class _Injected(fx.Interpreter):
    """Runs a graph with other weights in some layers."""

    def __init__(self, module: fx.GraphModule, layers: Mapping[Node, Replaced]) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self._layers = layers

    def run_node(self, n: Node) -> Any:
        """The node's value."""
        if n not in self._layers:
            return super().run_node(n)
        new = self._layers[n]
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        assert callable(n.target)
        value = n.target(args[0], new.weights, *args[2:], **kwargs)
        behind = value.dim() - 1 - channel_axis(n)
        return value - new.shifts.reshape(-1, *(1,) * behind)


def costs_by_curvature(
    module: fx.GraphModule,
    weights: Sequence[Weights],
    widths: Sequence[int],
    batches: Batches,
    distance: Distance,
) -> list[Costs]:
    """Half the curvature at a channel's outputs times the error that its rounded weights leave.

    Where samples are certain of their classes, a second opinion: by the curvature of softer scores.
    """
    nodes = [node for each in weights for node in each.nodes]
    soft = distance.softened
    curves = [
        curvatures(module, nodes, batches, kind) for kind in (distance, soft) if kind is not None
    ]
    rounding = {
        each.name: [rounded(each, problem, means, width) for width in widths]
        for each, problem, means in problems(module, weights, batches)
    }
    found = []
    for curve in curves:
        costs = Costs(module, weights, widths, batches, distance, rounded=rounding)
        for each in weights:
            slope = torch.stack([curve[node] for node in each.nodes]).sum(0)
            columns = [slope * choice.errors / 2 for choice in rounding[each.name]]
            costs.tables[each.name] = torch.stack(columns, 1).numpy()
        found.append(costs)
    return found
