"""The kernel of products with matrices of few different values."""

from collections.abc import Mapping

import numpy as np

from fxloom.backends.hls4ml.kernels.core import (
    Kernel,
    constants,
    integer_type,
    signed_width,
    struct,
    typedef,
)
from fxloom.backends.hls4ml.kernels.matrix import MatrixSite, table
from fxloom.backends.hls4ml.weights import Weights
from fxloom.codebook_layout import products_layout, sums_layout
from fxloom.fixed_point import FixedPoint
from fxloom.kernels.codebook import form_of, lag
from fxloom.sparse_layout import SparseLayout, index_width


def render_codebook(of: MatrixSite) -> tuple[Mapping[str, Weights], Kernel]:
    """Values and what they are multiplied by: sums of inputs, or single ones of which products are
    chosen."""
    return _sums(of) if of.given.form == "sums" else _products(of)


def _sums(of: MatrixSite) -> tuple[Mapping[str, Weights], Kernel]:
    layout = sums_layout(of.weights, of.groups, of.given.reuse)
    x, config = of.site.args[0], of.site.config
    most = int(np.bincount(_owners(layout.adding)).max())
    width = signed_width(min(most * x.operand.lo, 0), max(most * x.operand.hi, 0))
    product = of.product(width)
    sum_t = f"fxloom::int_t<{width}>"
    adding = [
        typedef("a_t", integer_type(x.type)),
        typedef("w_t", "int"),
        *_lanes(layout.adding, f"{config}_adding", of.matrix.inputs, layout.sums),
        typedef("sum_t", sum_t),
        typedef("product", "fxloom::only_input"),
    ]
    multiplying = [
        typedef("a_t", sum_t),
        typedef("w_t", integer_type(of.weight)),
        *_lanes(layout.multiplying, f"{config}_multiplying", layout.sums, of.outputs),
        typedef("product", product),
    ]
    before = []
    for part, name in ((layout.adding, "adding"), (layout.multiplying, "multiplying")):
        before += [
            table(f"{config}_{name}_indices", tuple(part.indices.reshape(-1).tolist())),
            table(f"{config}_{name}_ends", part.ends),
            table(f"{config}_{name}_outputs", part.outputs),
        ]
    before += [struct(f"{config}_adding", adding), struct(f"{config}_multiplying", multiplying)]
    values = of.memory(1, layout.multiplying.weights, of.weight)
    lines = [
        *constants(lag=lag(of.given)),
        *constants(stored=values.mantissas.size, word=layout.multiplying.lanes),
        typedef("adding", f"{config}_adding"),
        typedef("multiplying", f"{config}_multiplying"),
        typedef("engine", f"fxloom::codebook_sums<{config}>"),
    ]
    return {"values": values}, of.kernel(of.loops(), lines, [values.name], *before)


def _owners(layout: SparseLayout) -> np.ndarray:
    """Of every entry that a span of the layout has: the output that it adds to."""
    lengths = np.diff([-1, *layout.ends])
    owners: np.ndarray = np.repeat(layout.outputs, lengths)
    return owners


def _lanes(layout: SparseLayout, name: str, inputs: int, outputs: int) -> list[str]:
    """A configuration for fxloom::sparse_step, with its tables as constants."""
    return [
        *constants(reuse=layout.reuse, lanes=layout.lanes, n_in=inputs, n_out=outputs),
        *constants(n_spans=len(layout.ends)),
        "static const bool wired = true;",
        "static const bool implied = false;",
        "template <class W> static w_t weight(const W &word) { return word; }",
        typedef("i_t", f"fxloom::uint_t<{index_width(inputs)}>"),
        typedef("source", f"fxloom::stored_words<{name}>"),
        f"static const int *indices() {{ return {name}_indices; }}",
        f"static int end(int s) {{ return {name}_ends[s]; }}",
        f"static int output(int s) {{ return {name}_outputs[s]; }}",
    ]


def _products(of: MatrixSite) -> tuple[Mapping[str, Weights], Kernel]:
    books = form_of(of.matrix, of.given).books
    layout = products_layout(of.weights, books, of.given.reuse)
    x, config = of.site.args[0].operand, of.site.config
    values = layout.books.values
    ends = [end * int(value) for end in (x.lo, x.hi, 0) for value in (values.min(), values.max())]
    width = index_width(layout.books.symbols)
    indices = of.memory(1, layout.indices, FixedPoint(width, width, False))
    lines = [
        *constants(lag=0, wide=layout.wide, turns=layout.turns),
        *constants(codebooks=layout.books.books, n_values=layout.books.size),
        *constants(lanes_of_book=-(-layout.lanes // layout.books.books)),
        *constants(stored=indices.mantissas.size, word=layout.lanes * layout.wide),
        typedef("i_t", f"fxloom::uint_t<{width}>"),
        typedef("product_t", f"fxloom::int_t<{signed_width(min(ends), max(ends))}>"),
        typedef("product", of.product()),
        f"static long long value(int v) {{ return {config}_values[v]; }}",
        typedef("engine", f"fxloom::codebook_products<{config}>"),
    ]
    before = table(f"{config}_values", values.reshape(-1).tolist(), "long long")
    return {"indices": indices}, of.kernel(of.loops(), lines, [indices.name], before)
