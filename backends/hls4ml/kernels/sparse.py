"""The kernels of products with matrices of which every weight is a word in memory."""

from collections.abc import Mapping

import numpy as np

from fxloom.backends.hls4ml.kernels.core import Kernel, constants, typedef
from fxloom.backends.hls4ml.kernels.matrix import MatrixSite, table
from fxloom.backends.hls4ml.weights import Weights
from fxloom.fixed_point import FixedPoint, IntArray
from fxloom.kernels.indexed import Numbering
from fxloom.sparse_layout import SparseLayout, index_width, lay_out


def render_sparse(of: MatrixSite) -> tuple[Mapping[str, Weights], Kernel]:
    """Weights that are not zero and the numbers of the inputs that they meet."""
    layout = lay_out(of.weights, of.groups, of.given.reuse)
    words = of.memory(1, layout.weights, of.weight)
    weight = "static w_t weight(const w_t &word) { return word; }"
    return _rendered(of, layout, words, [weight])


def render_indexed(of: MatrixSite) -> tuple[Mapping[str, Weights], Kernel]:
    """The numbers of weights in a codebook."""
    numbering = Numbering.of(of.matrix)
    assert numbering is not None
    values, width = numbering.values, numbering.width
    layout = lay_out(of.weights, of.groups, of.given.reuse, numbering.implied)
    # Padding is zero, which may be no value, and is added up nowhere.
    kept = layout.weights if 0 in values else np.where(layout.weights, layout.weights, values[0])
    kind = FixedPoint(width, width, False)
    words = of.memory(1, np.searchsorted(values, kept), kind)
    centroids = f"centroids{of.site.index}"
    word = f"fxloom::uint_t<{width}>"
    weight = f"static w_t weight(const {word} &word) {{ return {centroids}[word.to_int()]; }}"
    before = table(centroids, values.tolist(), "long long")
    return _rendered(of, layout, words, [weight], before, implied=numbering.implied)


def _rendered(
    of: MatrixSite,
    layout: SparseLayout,
    words: Weights,
    weight: list[str],
    *before: str,
    implied: bool = False,
) -> tuple[Mapping[str, Weights], Kernel]:
    inputs = of.matrix.inputs
    width = index_width(inputs)
    indices: IntArray = layout.indices[:, 0] if implied else layout.indices
    memories = {
        "weight": words,
        "indices": of.memory(2, indices, FixedPoint(width, width, False)),
    }
    # Choosing one of as many wires as there are steps, or one of all inputs: whichever are fewer
    # (benchmarks/sparse_operands).
    wired = layout.reuse < inputs
    spans = f"spans{of.site.index}"
    lines = [
        *constants(n_spans=len(layout.ends), n_indices=indices.size),
        *constants(n_words=words.mantissas.size, word_parts=layout.lanes),
        *constants(index_parts=indices.size if wired else layout.lanes),
        f"static const bool wired = {str(wired).lower()};",
        f"static const bool implied = {str(implied).lower()};",
        typedef("i_t", f"fxloom::uint_t<{width}>"),
        typedef("product", of.product()),
        typedef("source", f"fxloom::stored_words<{of.site.config}>"),
        *weight,
        f"static int end(int s) {{ return {spans}_end[s]; }}",
        f"static int output(int s) {{ return {spans}_output[s]; }}",
    ]
    ends = table(f"{spans}_end", layout.ends), table(f"{spans}_output", layout.outputs)
    arrays = [held.name for held in memories.values()]
    return memories, of.kernel("sparse", lines, arrays, *before, *ends)
