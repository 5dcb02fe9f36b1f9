"""The kernel of products with block-circulant matrices."""

from collections.abc import Mapping

from fxloom.backends.hls4ml.kernels.core import Kernel, constants, typedef
from fxloom.backends.hls4ml.kernels.matrix import MatrixSite, table
from fxloom.backends.hls4ml.weights import Weights
from fxloom.circulant_layout import blocks_reached, find_block, lay_out_circulant
from fxloom.sparse_layout import index_width


def render_circulant(of: MatrixSite) -> tuple[Mapping[str, Weights], Kernel]:
    """One value a class of every block, and nothing else."""
    matrix = of.matrix
    block = find_block(matrix.weights, matrix.taps)
    layout = lay_out_circulant(matrix.weights, matrix.taps, block, of.given.reuse)
    values = of.memory(1, layout.values, of.weight)
    reach = blocks_reached(layout.reuse, block)
    spans = f"spans{of.site.index}"
    lines = [
        *constants(lag=0, stored=layout.values.size, word=layout.lanes),
        *constants(n_spans=len(layout.ends), block=block, blocks=layout.blocks, reach=reach),
        *constants(tap_inputs=matrix.inputs // matrix.taps),
        *constants(tap_blocks=layout.blocks // matrix.taps),
        # Choosing one of the blocks that a lane reaches, or one of all: whichever are fewer.
        f"static const bool wired = {str(reach < layout.blocks).lower()};",
        typedef("n_t", f"fxloom::uint_t<{index_width(max(layout.blocks, block) + 1)}>"),
        typedef("product", of.product()),
        f"static int end(int s) {{ return {spans}_end[s]; }}",
        f"static int output(int s) {{ return {spans}_output[s]; }}",
        typedef("engine", f"fxloom::circulant_lanes<{of.site.config}>"),
    ]
    before = table(f"{spans}_end", layout.ends), table(f"{spans}_output", layout.outputs)
    return {"weight": values}, of.kernel(of.loops(), lines, [values.name], *before)
