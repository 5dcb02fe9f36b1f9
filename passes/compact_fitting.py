"""Blocks fitted to what their layer gave: the data that say so, and training where rectifiers are.

Behind a rectifier the last weights are least squares for given first ones. The first ones come
from descent on the layer's outputs (Adam), and the best of start and end is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx
from torch.fx.node import Node
from torch.nn import functional

from fxloom.errors import DataError
from fxloom.graph import arguments
from fxloom.passes.calibration import Batch
from fxloom.passes.compact_blocks import Block, Head, Norm
from fxloom.passes.factors import Part
from fxloom.passes.fitting import LEAST_ROWS, drawn_rows
from fxloom.passes.layerwise import MOST_KEPT, bias_of
from fxloom.passes.part_running import run_part
from fxloom.passes.replay import Replay
from fxloom.passes.second_order import Moments, refit

aten = torch.ops.aten

LEARNING_RATE = 0.03
"""Of a tensor's root mean square, a step."""

BATCH_SIZE = 64

HARDLY = 1e-6
"""Share of the squares of values that is no variance worth the name."""
LEAST = 2.0**-126
"""Squares below float32's least normal number count as that."""

Pairs = Sequence[tuple[Tensor, Tensor]]
"""Inputs and wanted outputs, batch by batch, samples first."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What data say of a layer: sums over all samples, and as many samples as are kept."""

    moments: Moments
    pairs: Pairs


def look(
    module: fx.GraphModule,
    original: fx.GraphModule,
    readers: Sequence[Node],
    batches: Sequence[Batch],
) -> Seen:
    """What layers that read the same weights are given in a graph, and what they gave in the
    original one, biases taken off. Raises DataError where that is no number."""
    twins = {node.name: node for node in original.graph.nodes}
    moments, pairs, room = Moments(), [], MOST_KEPT
    for reader in readers:
        twin = twins[reader.name]
        given = Replay(module, batches, {reader: arguments(reader)[0]}, lambda node: False)
        wanted = Replay(original, batches, {twin: twin}, lambda node: False)
        bias = bias_of(original, twin)

        def without_bias(
            wanted: Replay = wanted, twin: Node = twin, bias: Tensor | None = bias
        ) -> Iterator[Tensor]:
            for y in wanted.values(twin):
                if bias is None:
                    yield y
                else:
                    yield y - (bias if twin.target is aten.linear.default else along(bias, y))

        inputs, outputs = given.values(reader), without_bias()
        for x, y in zip(inputs, outputs, strict=True):
            for rows, results in drawn_rows(reader, iter([x]), iter([y]), len(batches)):
                moments.see(rows, results)
            if room > 0:
                pairs.append((x, y))
                room -= x.numel() + y.numel()
    if not all(bool(torch.isfinite(total).all()) for total in moments.sums.values()):
        raise DataError(
            f"{readers[0].meta['origin']}: the float model gives NaN or infinity on the data. "
            "Check its weights and the data"
        )
    return Seen(moments, pairs)


def along(vector: Tensor, values: Tensor) -> Tensor:
    """[channels] as broadcast over values [samples, channels, ...]."""
    return vector.reshape(-1, *(1,) * (values.dim() - 2))


# Running a block ----------------------------------------------------------------------------------


def convolved(part: Part, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """A part's outputs."""
    if any(pad < 0 for pad in part.padding):
        x = functional.pad(x, crop(part))
        part = replace(part, padding=tuple(max(pad, 0) for pad in part.padding))
    return run_part(part, x, bias)


def crop(part: Part) -> list[int]:
    """What a pad of the input must take away, as torch writes it."""
    return [min(pad, 0) for pad in reversed(part.padding) for _ in range(2)]


def inner(block: Block, x: Tensor) -> Tensor:
    """What the heads of a block without a norm read."""
    z = convolved(block.first, x, block.offset)
    return torch.relu(z) if block.rectified else z


def computed(block: Block, x: Tensor) -> Tensor:
    """The outputs of a block without a norm, in the order of the original layer's."""
    z = inner(block, x)
    y = torch.cat([convolved(head.part, z) for head in block.heads], 1)
    y = y[:, torch.cat([head.outputs for head in block.heads]).argsort()]
    return y if block.shift is None else y + along(block.shift, y)


def error_of(block: Block, pairs: Pairs) -> float:
    """Squared error of the outputs, as `relative` has it."""
    off, square, count = 0.0, 0.0, 0
    total = torch.zeros(pairs[0][1].shape[1], dtype=torch.float64)
    for x, y in pairs:
        off += float((computed(block, x) - y).square().sum(dtype=torch.float64))
        total += y.double().transpose(0, 1).flatten(1).sum(1)
        square += float(y.square().sum(dtype=torch.float64))
        count += y.numel() // y.shape[1]
    return relative(off, square, square - float(total.square().sum()) / count)


def relative(off: float, square: float, variance: float) -> float:
    """An error relative to the variance of what it is an error of; to its squares where it hardly
    varies, as where all samples are alike."""
    return off / max(variance if variance > HARDLY * square else square, LEAST)


# Fitting ------------------------------------------------------------------------------------------


def lifted(block: Block, pairs: Pairs) -> Block:
    """A separable block with a rectifier that cuts nothing off the samples: what is added to the
    channels before it the head's bias takes away."""
    (head,) = block.heads
    lowest = torch.stack(
        [convolved(block.first, x).transpose(0, 1).flatten(1).amin(1) for x, _ in pairs]
    ).amin(0)
    offset = (-lowest).clamp(min=0)
    shift = -(head.part.weight.flatten(1) @ offset)
    return replace(block, offset=offset, rectified=True, shift=shift)


def shifted(block: Block, pairs: Pairs) -> Block:
    """A block without rectifier whose outputs have the means that are wanted."""
    off, count = torch.zeros(pairs[0][1].shape[1], dtype=torch.float64), 0
    for x, y in pairs:
        rest = (y - computed(block, x)).double().transpose(0, 1).flatten(1)
        off += rest.sum(1)
        count += rest.shape[1]
    return replace(block, shift=(off / count).to(block.first.weight.dtype))


def trained_block(block: Block, pairs: Pairs, steps: int, seed: int) -> Block:
    """A block with a rectifier, nearer to the outputs that are wanted."""
    block = block if block.offset is not None else block.with_zeros()
    start = solved_heads(block, pairs)
    x, y = (torch.cat(each) for each in zip(*pairs, strict=True))
    if not steps:
        return start
    spread = convolved(block.first, x[:BATCH_SIZE]).std()
    assert start.offset is not None
    assert start.shift is not None
    tensors = [start.first.weight, start.offset, *(h.part.weight for h in start.heads), start.shift]
    sizes = [tensors[0].square().mean().sqrt(), spread, *(
        each.square().mean().sqrt() for each in tensors[2:-1]
    ), y[:BATCH_SIZE].std()]  # fmt: skip
    leaves = [each.detach().clone().requires_grad_() for each in tensors]
    groups = [
        {"params": [leaf], "lr": LEARNING_RATE * float(size)}
        for leaf, size in zip(leaves, sizes, strict=True)
    ]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(len(x), (min(BATCH_SIZE, len(x)),), generator=generator)
            optimizer.zero_grad()
            loss = (computed(_with(start, leaves), x[rows]) - y[rows]).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    end = solved_heads(_with(start, [leaf.detach() for leaf in leaves]), pairs)
    return min(block, start, end, key=lambda each: error_of(each, pairs))


def solved_heads(block: Block, pairs: Pairs) -> Block:
    """The block with the best weights and biases behind its rectifier."""
    sums = [Moments() for _ in block.heads]
    generator = torch.Generator().manual_seed(0)
    for x, y in pairs:
        z = inner(block, x)
        for moments, head in zip(sums, block.heads, strict=True):
            rows, wanted = _rows(head.part, z), y[:, head.outputs]
            wanted = wanted.flatten(2).transpose(1, 2).flatten(0, 1)
            count = -(-max(LEAST_ROWS, 16 * rows.shape[1]) // len(pairs))
            if count < len(rows):
                drawn = torch.randperm(len(rows), generator=generator)[:count]
                rows, wanted = rows[drawn], wanted[drawn]
            moments.see(rows[None], wanted[None])
    heads = []
    assert block.shift is not None
    shift = torch.zeros_like(block.shift)
    for moments, head in zip(sums, block.heads, strict=True):
        problem = refit(head.part.weight.flatten(1)[None], moments)
        weight = problem.target[0]
        rest = moments.mean("y")[0] - weight @ moments.mean("x")[0]
        shift[head.outputs] = rest.to(shift.dtype)
        shaped = weight.reshape(head.part.weight.shape).to(head.part.weight.dtype)
        heads.append(Head(replace(head.part, weight=shaped), head.outputs))
    return replace(block, heads=tuple(heads), shift=shift)


def _with(block: Block, tensors: Sequence[Tensor]) -> Block:
    """The block with other numbers: first weight, offset, weights of the heads, shift."""
    heads = tuple(
        Head(replace(head.part, weight=weight), head.outputs)
        for head, weight in zip(block.heads, tensors[2:-1], strict=True)
    )
    first = replace(block.first, weight=tensors[0])
    return replace(block, first=first, offset=tensors[1], heads=heads, shift=tensors[-1])


def _rows(part: Part, z: Tensor) -> Tensor:
    """[samples * positions, inputs]: what every output of a part is computed from."""
    kernel, stride = part.weight.shape[2:], part.stride
    if any(pad < 0 for pad in part.padding):
        z = functional.pad(z, crop(part))
    padding = tuple(max(pad, 0) for pad in part.padding)
    dilation = part.dilation
    if len(kernel) == 1:  # one row of an image
        z, kernel = z[:, :, None], torch.Size([1, *kernel])
        stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
    columns = functional.unfold(z, tuple(kernel), dilation, padding, stride)
    return columns.transpose(1, 2).flatten(0, 1)


def normed(block: Block, pairs: Pairs, eps: float = 1e-5) -> Block:
    """The block with a batch norm behind its first layer, which for now changes nothing: statistics
    are those of the samples, scale and shift undo them."""
    values = torch.cat(
        [convolved(block.first, x).transpose(0, 1).flatten(1) for x, _ in pairs], 1
    ).double()
    variance, mean = torch.var_mean(values, 1, correction=0)
    bias = mean if block.offset is None else mean + block.offset
    vectors = ((variance + eps).sqrt(), bias, mean, variance)
    dtype = block.first.weight.dtype
    weight, shift, middle, power = (each.to(dtype) for each in vectors)
    return replace(block, offset=None, norm=Norm(weight, shift, middle, power, eps))
