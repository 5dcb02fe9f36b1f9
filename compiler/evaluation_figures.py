"""What a graph takes: bits as they are and coded, multiply-adds, cycles.

Every figure is of the graph as it is, float or quantized, so that what is counted before a pass and
after it is the same. Cycles of a float graph are those of it quantized by `Quantize()` as it is
when nobody says more, to nearest: a float graph has no hardware, and one that is the same in every
stage shows what the pass did.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node, map_arg

from fxloom.data import Data
from fxloom.errors import FxloomError
from fxloom.estimation import estimate
from fxloom.evaluation_report import Numbers
from fxloom.graph import arguments, constant
from fxloom.layer_figures import multiply_adds
from fxloom.lowering import lower
from fxloom.ops import Divide, Requantize
from fxloom.passes.code_weights import CodeWeights
from fxloom.passes.quantize import Quantize
from fxloom.program import Program
from fxloom.quantized_ops import LOOKUP, brings_formats, is_quantized
from fxloom.report import Figure
from fxloom.rewriting import is_constant
from fxloom.stages import fitting, quick
from fxloom.storage_table import FLOAT_BITS
from fxloom.target import Target
from fxloom.weight_entries import Written
from fxloom.weight_entries import coded as as_coded
from fxloom.weight_file import write_weights
from fxloom.weights import weights_of

FORMAT_BITS = 16
"""Of a fixed-point format: 6 for its width, 9 for its binary point, 1 for its sign."""
STRUCTURE_BITS = 128
"""Of what says that weights are hashed, circulant or in codewords: four sizes and a seed."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What the numbers of a graph take, as in `Stage`. declared_bits: the part of coded_bits that
    no tensor of a file has: formats, further binary points, sizes of structures."""

    parameters: int
    nonzero: int
    plain_bits: int
    coded_bits: int
    table_bits: int
    declared_bits: int


def stored(graph: fx.GraphModule, program: Program | None) -> Stored:
    """program: of a quantized graph, None for a float one."""
    names, looked_up = dict(graph.named_parameters(remove_duplicate=False)), _tables(graph)
    parameters = nonzero = plain = coded = tables = declared = 0
    for weights in weights_of(graph):
        values: Any = weights.tensor if weights.integers is None else weights.integers
        plain += _width(weights.tensor) * weights.tensor.numel()
        if any(name in names for name in weights.names):
            parameters += weights.tensor.numel()
            nonzero += int((values != 0).sum())
        written = as_coded(weights)
        bits = 8 * written.nbytes
        coded += bits
        tables += bits if looked_up.intersection(weights.names) else 0
        declared += FORMAT_BITS * max(len(weights.steps) - 1, 0)
        if written.entry.shared is not None and written.entry.shared.kind != "codebook":
            declared += STRUCTURE_BITS
    if program is not None:
        formats = FORMAT_BITS * _formats(program)
        declared += formats
        plain = formats + sum(
            each.value.size * each.value.type.width for each in program.constants.values()
        )
    return Stored(parameters, nonzero, plain, coded + declared, tables, declared)


def file_bytes(graph: fx.GraphModule, coder: CodeWeights | None) -> int:
    """Bytes of a file of the weights, with their names, shapes and checksums.

    coder: which of them are coded, and how; None for the defaults.
    """
    written = map(as_coded, weights_of(graph)) if coder is None else coder.coded(graph)
    found: list[Written] = [replace(each, patterns={}) for each in written]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        write_weights(path, found)
        return path.stat().st_size


def work(graph: fx.GraphModule) -> tuple[int, int]:
    """Multiply-adds of one sample, and those whose weight is not zero.

    Every weight is multiplied as often as any other of its tensor. Products of computed values
    count in full.
    """
    whole = busy = 0
    for node in graph.graph.nodes:
        count = multiply_adds(node) if node.op == "call_function" else 0
        if not count:
            continue
        whole += count
        values = _weights(graph, node)
        if values is not None and values.numel():
            count = count * int(values.count_nonzero()) // values.numel()
        busy += count
    return whole, busy


def cycles(program: Program, target: Target) -> tuple[Figure, Figure]:
    """Estimated latency and interval; in streams those of the schedule of every pack."""
    total = estimate(program, target).total
    return total.latency, total.interval


def known_to(target: Target, program: Program) -> Target:
    """The target without settings of layers that a program does not have."""
    names = {instr.origin for instr in program.instrs}
    return replace(target, layers=fitting(target.layers, names))


def numbers_of(graph: fx.GraphModule) -> Numbers:
    """What a graph computes with: a model's own roundings are part of its floats."""
    return "integers" if is_quantized(graph) and not brings_formats(graph) else "float32"


def quantized_for_estimate(graph: fx.GraphModule, data: Data) -> Program:
    """The program of a float graph whose cycles are estimated."""
    return lower(quick(Quantize())(graph, data).graph)


def no_cycles(fault: FxloomError) -> Figure:
    """The reason instead of a number."""
    return Figure(None, "cycles", "unknown", f"not estimated: {str(fault).splitlines()[0]}")


def _tables(graph: fx.GraphModule) -> set[str]:
    """Names of the tensors in which lookups look."""
    lookups = graph.graph.find_nodes(op="call_function", target=LOOKUP)
    pending = [source for node in lookups for source in node.all_input_nodes if is_constant(source)]
    found = set()
    while pending:
        source = pending.pop()
        pending += source.all_input_nodes
        if source.op == "get_attr":
            found.add(str(source.target))
    return found


def _width(tensor: Tensor) -> int:
    """Bits of a number that is written as it is. Whatever floats compute in, rates are of 32 bits
    for each."""
    return FLOAT_BITS if tensor.is_floating_point() else 8 * tensor.element_size()


def _formats(program: Program) -> int:
    """How many formats a program declares; those of other values follow from them."""
    declared = sum(isinstance(each.op, Requantize | Divide) for each in program.instrs)
    return len(program.inputs) + len(program.constants) + declared


def _weights(graph: fx.GraphModule, node: Node) -> Tensor | None:
    """What a node multiplies by where it is known before any input, as it will be multiplied."""
    if node.target == torch.ops.aten.scaled_dot_product_attention.default:
        return None  # two products, and the second is of what the first one gave
    for argument in (arguments(node)[1], arguments(node)[0]):
        if isinstance(argument, Node) and is_constant(argument):
            with torch.no_grad():
                values = _evaluated(graph, argument, {})
            assert isinstance(values, Tensor)
            return values
    return None


def _evaluated(graph: fx.GraphModule, node: Node, known: dict[Node, Any]) -> Any:
    if node not in known:
        if node.op == "get_attr":
            known[node] = constant(graph, node.target)
        else:
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: _evaluated(graph, n, known))
            assert callable(node.target)
            known[node] = node.target(*args, **kwargs)
    return known[node]
