"""Kernels of tables."""

from fxloom.backends.hls4ml.kernels.core import (
    Kernel,
    Rule,
    Site,
    argument_type,
    broadcast_index,
    call_of,
    constants,
    function,
    integer_type,
    signed_width,
    struct,
    typedef,
)


def _lookup(site: Site) -> Kernel:
    x, table = site.args
    lines = [
        *constants(n_out=site.result.size, n_table=table.size, lowest=site.op.source.lo),
        argument_type("a", x),
        argument_type("b", table),
        typedef("index_t", f"fxloom::int_t<{site.op.source.width + 2}>"),
    ]
    return Kernel(struct(site.config, lines), call_of(site, "lookup"))


def _normalise(site: Site) -> Kernel:
    (x,) = site.args
    lines = [
        *constants(n_out=site.result.size, width=site.op.source.width, step=site.op.step),
        argument_type("a", x),
        typedef("wide_t", integer_type(site.result.type)),
    ]
    return Kernel(struct(site.config, lines), call_of(site, "normalise"))


def _shift_like(site: Site) -> Kernel:
    a, b = site.args
    lines = [
        *constants(n_a=a.size, n_b=b.size, n_out=site.result.size),
        *constants(width=site.op.source.width, step=site.op.step),
        argument_type("a", a),
        argument_type("b", b),
        typedef("wide_t", f"fxloom::int_t<{signed_width(site.result.lo, site.result.hi)}>"),
        function("source_a", broadcast_index(a, site.result.shape)),
        function("source_b", broadcast_index(b, site.result.shape)),
    ]
    return Kernel(struct(site.config, lines), call_of(site, "shift_like"))


def _embedding(site: Site) -> Kernel:
    x, w = site.args
    lines = [
        *constants(n_in=x.size, n_table=w.size, n_columns=w.operand.shape[1]),
        *constants(n_out=site.result.size),
        argument_type("a", x),
        argument_type("w", w),
    ]
    return Kernel(struct(site.config, lines), call_of(site, "embedding"))


RULES: dict[str, Rule] = {
    "lookup": _lookup,
    "normalise": _normalise,
    "shift_like": _shift_like,
    "embedding": _embedding,
}
