"""The kernel of products with sparse matrices."""

from dataclasses import dataclass
from math import prod
from typing import Any

from fxloom.backends.hls4ml.kernels.core import (
    Kernel,
    Site,
    argument_type,
    constants,
    integer_type,
    struct,
    typedef,
)
from fxloom.backends.hls4ml.kernels.sums import window_constants, window_rows
from fxloom.fixed_point import FixedPoint
from fxloom.ops import Conv
from fxloom.sparse_layout import SparseLayout, index_width


@dataclass(frozen=True, slots=True)
class SparseSite:
    """Where the kernel is called, and what it does besides the product.

    site: of the product; its second argument is the dense matrix, which is not written. weights,
    indices, bias: names of C++ arrays, with the formats of weights and bias. shift, bias_shift:
    what the sum and the bias are shifted by to be added up; accumulator: the C++ type of that sum,
    sum: the format of its mantissas. powers: the weights are zero or powers of two.
    """

    site: Site
    layout: SparseLayout
    inputs: int
    weights: str
    weight: FixedPoint
    indices: str
    bias: str
    bias_type: FixedPoint
    shift: int
    bias_shift: int
    accumulator: str
    sum: FixedPoint
    powers: bool


def render_sparse(of: SparseSite, stream: bool) -> Kernel:
    """Declarations and call."""
    site, layout, op = of.site, of.layout, of.site.op
    x, w = site.args
    n_out = w.operand.shape[-1]
    product = "fxloom::any_product"
    if of.powers:
        width = x.type.width + of.weight.width + 2
        product = f"fxloom::shifted_product<{width}, {of.weight.width}>"
    # Choosing one of as many wires as there are steps, or one of all inputs: whichever are fewer
    # (benchmarks/sparse_operands).
    wired = layout.reuse < of.inputs
    stored = layout.lanes * layout.reuse
    spans = f"spans{site.index}"
    lines = [
        *constants(lanes=layout.lanes, reuse=layout.reuse, n_spans=len(layout.ends)),
        *constants(index_parts=stored if wired else layout.lanes),
        f"static const bool wired = {str(wired).lower()};",
        *constants(n_in=of.inputs, n_out=n_out, shift=of.shift, bias_shift=of.bias_shift),
        *_positions(op, site, stream, layout.reuse),
        argument_type("a", x),
        typedef("w_t", integer_type(of.weight)),
        typedef("i_t", f"fxloom::uint_t<{index_width(of.inputs)}>"),
        typedef("b_t", integer_type(of.bias_type)),
        typedef("sum_t", integer_type(of.sum)),
        typedef("accum_t", of.accumulator),
        typedef("product", product),
        f"static int end(int s) {{ return {spans}_end[s]; }}",
        f"static int output(int s) {{ return {spans}_output[s]; }}",
    ]
    declarations = [
        _table(f"{spans}_end", layout.ends),
        _table(f"{spans}_output", layout.outputs),
        struct(site.config, lines),
    ]
    name = f"sparse_{site.name}{'_stream' if stream else ''}"
    arguments = ", ".join([x.name, of.weights, of.indices, of.bias])
    call = f"fxloom::{name}<{site.config}>({arguments}, {site.result_name});"
    return Kernel("\n".join(declarations), call, prod(site.result.shape[:-1]))


def _positions(op: Any, site: Site, stream: bool, reuse: int) -> list[str]:
    if not isinstance(op, Conv):
        return constants(rows=prod(site.result.shape[:-1]))
    kernel = site.args[1].operand.shape[:2]
    held = window_rows(site) if stream else 0
    return [
        *window_constants(site, kernel, held),
        *constants(lines=held, taps_per_step=-(-prod(kernel) // reuse)),
    ]


def _table(name: str, numbers: tuple[int, ...]) -> str:
    rows = (numbers[start : start + 16] for start in range(0, len(numbers), 16))
    text = ",\n".join(", ".join(map(str, row)) for row in rows)
    return f"static const int {name}[{len(numbers)}] = {{\n{text}}};"
