"""Exact evaluation of a quantized graph: the same integers as its Program, as real numbers.

float64 holds every value of a quantized graph exactly while its mantissa stays within 2**53; then
the order of additions does not matter and no operation rounds but those that say so.
"""

from typing import Any

import torch
from torch import Tensor, fx

from fxloom.errors import VerifyError
from fxloom.graph import Float64, check_inputs
from fxloom.lowering import legalized, lower
from fxloom.ops import Divide, Lookup, Normalise, ShiftLike, weight_sums
from fxloom.program import Instr, Program

EXACT = 2**53


def exact_forward(graph: fx.GraphModule, *inputs: Tensor) -> Any:
    """Outputs of a quantized graph in float64, exact.

    inputs: tensors in the user's layout and the model's own dtype. Returns what the graph returns,
    in float64. Raises VerifyError, naming the layers, where float64 could round.
    """
    graph = legalized(graph)
    verify_graph(graph)
    check_inputs(graph, inputs)
    with torch.inference_mode():
        return Float64(graph).run(*(x.to(torch.float64) for x in inputs))


def verify_graph(graph: fx.GraphModule) -> Program:
    """The program of a quantized graph, if float64 evaluates the graph exactly.

    Raises VerifyError listing the layers in which a value, a partial sum or a dividend may exceed
    2**53 steps.
    """
    program = lower(graph)
    require_exact(program)
    return program


def require_exact(program: Program) -> None:
    """Raise VerifyError, naming the layers, where float64 could not evaluate a program exactly."""
    wide = {
        instr.origin: bound
        for instr in program.instrs
        if (bound := _largest_intermediate(program, instr)) > EXACT
    }
    if wide:
        layers = ", ".join(f"{name} ({bound.bit_length()} bits)" for name, bound in wide.items())
        raise VerifyError(
            f"float64 cannot evaluate these layers exactly: {layers}. It holds 53 bits: use "
            "narrower weights or activations there, or simulate the lowered program, which is "
            "exact up to 63 bits"
        )


def _largest_intermediate(program: Program, instr: Instr) -> int:
    """Largest magnitude that evaluating an instruction can meet, in steps."""
    operands = program.operands(instr)
    magnitudes = [max(abs(o.lo), abs(o.hi)) for o in operands]
    result = max(abs(instr.result.lo), abs(instr.result.hi))
    weight = operands[1].data if instr.op.name in ("matmul", "conv") else None
    if weight is not None:
        axes = tuple(range(weight.ndim - 1))
        sums = weight_sums(weight, axes)
        return max(max(p - n for n, p in zip(*sums, strict=True)) * magnitudes[0], result)
    if isinstance(instr.op, Divide):
        finer = max(instr.op.to.fraction - operands[0].fraction, 0)
        return max(4 * (magnitudes[0] << finer), result)
    if instr.op.name in ("mul", "matmul") or isinstance(instr.op, Lookup | Normalise | ShiftLike):
        return max(*magnitudes, result)
    fractions = [o.fraction for o in operands]
    aligned = [m << (max(fractions) - f) for m, f in zip(magnitudes, fractions, strict=True)]
    return max(*aligned, result)
