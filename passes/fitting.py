"""Layers fitted, one after the other, to what they give in the float model.

Each sees what the fitted layers before it give, so that errors are made good where it is possible
instead of adding up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor, fx
from torch.fx.node import Node
from torch.nn import functional

from fxloom.editing import release_tensor, tensor_node
from fxloom.encodings import Encoding
from fxloom.errors import VerifyError
from fxloom.facts import kept_weights
from fxloom.fixed_point import FixedPoint
from fxloom.graph import arguments, constant, describe, origin
from fxloom.passes.adaround import best_neighbours
from fxloom.passes.calibration import Batch, Means, covering
from fxloom.passes.chains import find_chains, fraction_of
from fxloom.passes.grid import FINER, Grid, step_candidates
from fxloom.passes.replay import Replay, is_rounded
from fxloom.passes.second_order import Moments, best_steps, refit
from fxloom.quantized_ops import REQUANTIZE, REQUANTIZE_WEIGHTS, times_power

aten = torch.ops.aten

MOST_INPUTS = 8192
"""Inputs of a neuron up to which their covariance is computed: 0.5 GB in float64."""

ROWS_PER_INPUT = 16
LEAST_ROWS = 8192
"""Rows of data for a covariance: patches of images are drawn where there are more."""
MOST_BITS = "most_bits"
"""In the meta of a rounded bias: how wide it may be at most, None where it may be of any width."""


@dataclass
class Fitting:
    """module: the quantized graph, changed in place. floats: the graph it was made from, with the
    same names. is_adaptive: whether weights go to neighbours of the float ones only (AdaRound).
    corrected: gets the largest change of every layer's bias; formats: of its weights.
    """

    module: fx.GraphModule
    floats: fx.GraphModule
    batches: Sequence[Batch]
    per_channel: bool
    is_adaptive: bool = False
    corrected: dict[str, float] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)

    def correct_biases(self, wanted: Mapping[Node, Means]) -> None:
        """Make the mean of every output channel what it is in the float model.

        wanted: for every layer, its means there.
        """
        replay = Replay(self.module, self.batches, {node: node for node in wanted}, is_rounded)
        for node, means in wanted.items():
            got = Means(means.axis)
            for value in replay.values(node):
                got.see(value)
            self._add_to_bias(node, means.mean - got.mean)
            replay.refresh(node)

    def fit_weights(self, layers: Sequence[Node]) -> None:
        """Second-order rounding of the weights of layers, in the order of the graph."""
        twins = {node.name: node for node in self.floats.graph.nodes}
        ends = {chain.end for chain in find_chains(self.floats.graph)}
        replay = Replay(
            self.module, self.batches, {node: arguments(node)[0] for node in layers}, is_rounded
        )
        floats = Replay(
            self.floats,
            self.batches,
            {twins[node.name]: twins[node.name] for node in layers},
            ends.__contains__,
        )
        for node in layers:
            twin = twins[node.name]
            weights = constant(self.floats, arguments(twin)[1].target).detach()
            moments = self._moments(node, replay.values(node), floats.values(twin))
            self._fit(node, weights, moments)
            replay.refresh(node)

    def _moments(self, node: Node, inputs: Iterator[Tensor], outputs: Iterator[Tensor]) -> Moments:
        moments = Moments()
        for rows, wanted in drawn_rows(node, inputs, outputs, len(self.batches)):
            moments.see(rows, wanted)
        return moments

    def _fit(self, node: Node, weights: Tensor, moments: Moments) -> None:
        typed = arguments(node)[1]
        width, _, signed = arguments(typed)[-5:-2]
        encoding, widths = encoding_of(typed), widths_of(typed)
        groups = moments.sums["x"].shape[0]
        shape = (groups, len(weights) // groups, -1)
        kept = kept_weights(self.module, str(arguments(typed)[0].target))
        kept = None if kept is None else kept.reshape(shape)
        problem = refit(weights.reshape(shape), moments, kept)
        grid = Grid.of(FixedPoint(width, width, signed), encoding, widths, groups)
        by_output = self.per_channel or bool(widths)
        tried = step_candidates(problem.target, grid, by_output)
        if self.is_adaptive:
            values = weights.reshape(problem.target.shape).to(torch.float64)
            mantissas, steps = best_neighbours(problem, values, tried, grid, by_output=by_output)
        else:
            mantissas, steps = best_steps(problem, tried, grid.nearest, by_output=by_output)
        fitted = mantissas * steps
        self._write(typed, fitted.reshape(weights.shape).to(weights.dtype), steps, grid.to)
        bias = moments.mean("y") - (fitted @ moments.mean("x")[:, :, None])[:, :, 0]
        old = constant(self.module, arguments(arguments(node)[2])[0].target).detach()
        self._add_to_bias(node, bias.flatten() - old.to(torch.float64))

    def _write(self, typed: Node, values: Tensor, steps: Tensor, to: FixedPoint) -> None:
        """The fitted weights, and their format."""
        fractions = -torch.log2(steps).flatten().to(torch.int64)
        least = int(fractions.min())
        kind = FixedPoint(to.width, to.width - least, to.signed)
        source = arguments(typed)[0]
        fresh = tensor_node(self.module, typed, release_tensor(self.module, source), values)
        shifts, encoding = (fractions - least).tolist(), encoding_of(typed)
        widths = widths_of(typed)
        set_weight(typed, fresh, kind, shifts, encoding, widths)
        self.formats[str(fresh.target)] = weight_label(kind, shifts, encoding, widths)

    def _add_to_bias(self, node: Node, shift: Tensor) -> None:
        typed = arguments(node)[2]
        assert isinstance(typed, Node)
        source = arguments(typed)[0]
        bias = constant(self.module, source.target).detach()
        corrected = (bias.to(torch.float64) + shift).to(bias.dtype)
        fresh = tensor_node(self.module, typed, release_tensor(self.module, source), corrected)
        to = bias_format(node, corrected, typed.meta.get(MOST_BITS))
        typed.args = (fresh, to.width, to.integer, to.signed, "RND_CONV", "SAT")
        self.corrected[origin(node)] = float(shift.abs().max())


def set_weight(
    typed: Node,
    source: Node,
    to: FixedPoint,
    shifts: Sequence[int],
    encoding: Encoding,
    widths: Sequence[int] = (),
) -> None:
    """Make a node round a weight into a format; shifts, widths: of every output channel."""
    modes = (to.width, to.integer, to.signed, "RND_CONV", "SAT")
    if any(shifts) or encoding is not Encoding.FIXED or widths:
        moved = list(shifts) if any(shifts) else []
        typed.target = REQUANTIZE_WEIGHTS
        typed.args = (source, moved, str(encoding), list(widths), *modes)
    else:
        typed.target, typed.args = REQUANTIZE, (source, *modes)


def encoding_of(typed: Node) -> Encoding:
    """Which mantissas a rounded weight has."""
    is_encoded = typed.target is REQUANTIZE_WEIGHTS
    return Encoding(arguments(typed)[2]) if is_encoded else Encoding.FIXED


def widths_of(typed: Node) -> tuple[int, ...]:
    """Bits of every output channel of a rounded weight; () where all have those of its format."""
    return tuple(arguments(typed)[3]) if typed.target is REQUANTIZE_WEIGHTS else ()


def weight_label(
    to: FixedPoint, shifts: Sequence[int], encoding: Encoding, widths: Sequence[int] = ()
) -> str:
    """ "ternary fixed<2,1> shifted by 0 to 3", "fixed<5,1> of 2 to 5 bits"."""
    name = "" if encoding is Encoding.FIXED else f"{encoding} "
    bits = f" of {min(widths)} to {max(widths)} bits" if widths else ""
    spread = f" shifted by 0 to {max(shifts)}" if any(shifts) else ""
    return f"{name}{to}{bits}{spread}"


def best_encoded(values: Tensor, encoding: Encoding, width: int) -> FixedPoint:
    """The binary point with the least squared error for weights of an encoding."""
    low, high = (float(x) for x in torch.aminmax(values))
    widest = covering(low, high, width, True)
    tried = [replace(widest, integer=widest.integer - finer) for finer in range(-1, FINER)]

    def error(to: FixedPoint) -> float:
        scaled = times_power(values, to.fraction)
        off = times_power(encoding.nearest(scaled, to) - scaled, -to.fraction)
        return float(off.square().sum(dtype=torch.float64))

    return min(tried, key=error)


def can_fit(node: Node) -> bool:
    """Whether the weights of a layer are its own, and few enough for their statistics."""
    typed = arguments(node)[1]
    own = len(typed.users) == 1 and len(arguments(typed)[0].users) == 1
    return own and not node.meta.get("tied") and prod(typed.meta["val"].shape[1:]) <= MOST_INPUTS


def bias_format(node: Node, values: Tensor, most: int | None = None) -> FixedPoint:
    """The format of a layer's bias: in steps of its products, no bit that matters is lost.

    most: bits, where they are limited; then in the finest steps with which the values fit.
    """
    fraction = fraction_of(arguments(node)[0]) + fraction_of(arguments(node)[1])
    try:
        while (to := _holding(values, fraction)).width > (to.width if most is None else most):
            fraction -= 1
    except VerifyError as error:
        raise VerifyError(f"{describe(node)}: its bias in steps of its products: {error}") from None
    return to


def _holding(values: Tensor, fraction: int) -> FixedPoint:
    """The narrowest format for values that are rounded to steps of 2**-fraction, and for zero."""
    scaled = torch.round(times_power(values.to(torch.float64), fraction))
    low, high = (int(x) for x in torch.aminmax(scaled))
    return FixedPoint.holding(min(low, 0), max(high, 0), fraction)


def drawn_rows(
    layer: Node, inputs: Iterator[Tensor], outputs: Iterator[Tensor], batches: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """`input_rows` and `output_rows` of every batch, so many that each input has enough of them.

    batches: how many there are. Where they have more rows, the same ones are drawn every time.
    """
    generator = torch.Generator().manual_seed(0)
    for x, y in zip(inputs, outputs, strict=True):
        rows, wanted = input_rows(layer, x), output_rows(layer, y)
        budget = max(LEAST_ROWS, ROWS_PER_INPUT * rows.shape[2])
        count = -(-budget // batches)
        if count < rows.shape[1]:
            drawn = torch.randperm(rows.shape[1], generator=generator)[:count]
            rows, wanted = rows[:, drawn], wanted[:, drawn]
        yield rows, wanted


def input_rows(layer: Node, x: Tensor) -> Tensor:
    """What every output of a layer is computed from [groups, rows, inputs].

    A transposed convolution counts as the convolution of the input with zeros between its pixels.
    """
    if layer.target is aten.linear.default:
        return x.reshape(1, -1, x.shape[-1])
    stride, padding, dilation, is_transposed, more, groups = arguments(layer)[3:9]
    kernel = list(arguments(layer)[1].meta["val"].shape[2:])
    if x.dim() == 3:  # one row of an image
        x, kernel = x[:, :, None], [1, *kernel]
        stride, padding, dilation, more = (
            [n, *sizes] for n, sizes in ((1, stride), (0, padding), (1, dilation), (0, more))
        )
    if is_transposed:
        x = _spread_out(x, stride, padding, dilation, more, kernel)
        stride, padding = [1] * len(stride), [0] * len(padding)
    columns = functional.unfold(x, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))
    size = columns.shape[1] // groups
    return columns.reshape(len(x), groups, size, -1).permute(1, 0, 3, 2).reshape(groups, -1, size)


def _spread_out(
    x: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    more: Sequence[int],
    kernel: Sequence[int],
) -> Tensor:
    """An image with zeros between its pixels and around them, over which the flipped kernel of a
    transposed convolution moves in steps of one."""
    height, width = ((n - 1) * step + 1 for n, step in zip(x.shape[2:], stride, strict=True))
    spread = x.new_zeros(*x.shape[:2], height, width)
    spread[:, :, :: stride[0], :: stride[1]] = x
    widths: list[int] = []
    for size, pad, step, extra in zip(kernel, padding, dilation, more, strict=True):
        edge = step * (size - 1) - pad
        widths = [edge, edge + extra, *widths]
    return functional.pad(spread, widths)


def output_rows(layer: Node, y: Tensor) -> Tensor:
    """The outputs of a layer [groups, rows, outputs], row by row of `input_rows`."""
    if layer.target is aten.linear.default:
        return y.reshape(1, -1, y.shape[-1])
    groups = arguments(layer)[8]
    size = y.shape[1] // groups
    return y.reshape(len(y), groups, size, -1).permute(1, 0, 3, 2).reshape(groups, -1, size)
