"""The kernel of products with sparse matrices."""

from collections.abc import Mapping

from fxloom.backends.hls4ml.kernels.core import Kernel, constants, typedef
from fxloom.backends.hls4ml.kernels.matrix import MatrixSite, table
from fxloom.backends.hls4ml.weights import Weights
from fxloom.fixed_point import FixedPoint
from fxloom.sparse_layout import index_width, lay_out


def render_sparse(of: MatrixSite) -> tuple[Mapping[str, Weights], Kernel]:
    """Weights that are not zero and the numbers of the inputs that they meet."""
    layout = lay_out(of.weights, of.groups, of.given.reuse)
    inputs = of.matrix.inputs
    width = index_width(inputs)
    memories = {
        "weight": of.memory(1, layout.weights, of.weight),
        "indices": of.memory(2, layout.indices, FixedPoint(width, width, False)),
    }
    # Choosing one of as many wires as there are steps, or one of all inputs: whichever are fewer
    # (benchmarks/sparse_operands).
    wired = layout.reuse < inputs
    spans = f"spans{of.site.index}"
    lines = [
        *constants(n_spans=len(layout.ends)),
        *constants(index_parts=layout.lanes * layout.reuse if wired else layout.lanes),
        f"static const bool wired = {str(wired).lower()};",
        typedef("i_t", f"fxloom::uint_t<{width}>"),
        typedef("product", of.product()),
        f"static int end(int s) {{ return {spans}_end[s]; }}",
        f"static int output(int s) {{ return {spans}_output[s]; }}",
    ]
    before = table(f"{spans}_end", layout.ends), table(f"{spans}_output", layout.outputs)
    arrays = [held.name for held in memories.values()]
    return memories, of.kernel("sparse", lines, arrays, *before)
