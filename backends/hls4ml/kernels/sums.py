"""Kernels that sum products, windows and axes."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from fxloom.backends.hls4ml.kernels.core import (
    Kernel,
    Rule,
    Site,
    argument_type,
    call_of,
    constants,
    function,
    index_text,
    integer_type,
    row_strides,
    struct,
    typedef,
)
from fxloom.ops import ReduceMax


def _matmul(site: Site) -> Kernel:
    x, w = site.args
    if not w.constant:
        return _matmul_computed(site)
    n_in, n_out = w.operand.shape
    rows = x.size // n_in
    lines = [
        *constants(rows=rows, n_in=n_in, n_out=n_out, reuse=site.reuse),
        argument_type("a", x),
        argument_type("w", w),
        typedef("sum_t", integer_type(site.result.type)),
    ]
    return Kernel(struct(site.config, lines), call_of(site, "matmul"), rows)


def _matmul_computed(site: Site) -> Kernel:
    a, b = site.args
    *leading, rows, n_in = a.operand.shape
    batch, n_out = prod(leading), b.operand.shape[-1]
    lines = [
        *constants(batch=batch, rows=rows, n_in=n_in, n_out=n_out, reuse=site.reuse),
        *constants(n_a=a.size, n_b=b.size, n_all=site.result.size),
        argument_type("a", a),
        argument_type("b", b),
        typedef("sum_t", integer_type(site.result.type)),
    ]
    return Kernel(struct(site.config, lines), call_of(site, "matmul_computed"), batch * rows)


def window_rows(site: Site) -> int:
    """Rows of the image that a window of a convolution or pool reaches over, or all it has."""
    kernel = site.op.kernel[0] if site.name == "pool" else site.args[1].operand.shape[0]
    reach: int = (kernel - 1) * site.op.dilation[0] + 1
    return min(reach, site.args[0].operand.shape[0])


def window_constants(site: Site, kernel: Sequence[int], lines: int) -> list[str]:
    """Sizes of image and windows; lines: how many rows of the image are held, 0 for all."""
    height, width, channels = site.args[0].operand.shape
    return [
        *constants(
            height=height,
            width=width,
            channels=channels,
            kernel_height=kernel[0],
            kernel_width=kernel[1],
            stride_height=site.op.stride[0],
            stride_width=site.op.stride[1],
            pad_top=site.op.padding[0][0],
            pad_left=site.op.padding[1][0],
            dilation_height=site.op.dilation[0],
            dilation_width=site.op.dilation[1],
            out_height=site.result.shape[0],
            out_width=site.result.shape[1],
        ),
        function("line", f"row % {lines}" if lines else "row", "int row"),
    ]


def _conv(site: Site) -> Kernel:
    x, w = site.args
    lines = [
        *window_constants(site, w.operand.shape[:2], site.lines),
        *constants(
            groups=site.op.groups,
            per_group=w.operand.shape[2],
            n_out=w.operand.shape[3],
            reuse=site.reuse,
        ),
        argument_type("a", x),
        argument_type("w", w),
        typedef("sum_t", integer_type(site.result.type)),
    ]
    return Kernel(struct(site.config, lines), call_of(site, "conv"), prod(site.result.shape[:2]))


def _pool(site: Site) -> Kernel:
    lines = [
        *window_constants(site, site.op.kernel, site.lines),
        argument_type("a", site.args[0]),
        typedef("sum_t", integer_type(site.result.type)),
        typedef("kind", f"fxloom::pool_{site.op.kind}"),
    ]
    return Kernel(struct(site.config, lines), call_of(site, "pool"), prod(site.result.shape[:2]))


def _reduce_sum(site: Site) -> Kernel:
    (x,) = site.args
    shape, strides, axes = x.operand.shape, row_strides(x.operand.shape), site.op.axes
    kept = index_text(
        "i", site.result.shape, [0 if a in axes else s for a, s in enumerate(strides)]
    )
    summed = index_text(
        "k", tuple(shape[a] for a in sorted(axes)), [strides[a] for a in sorted(axes)]
    )
    lines = [
        *constants(n_in=x.size, n_out=site.result.size, n_terms=prod(shape[axis] for axis in axes)),
        argument_type("a", x),
        typedef("sum_t", integer_type(site.result.type)),
        function("source", f"{kept} + {summed}", "int i, int k"),
    ]
    return Kernel(struct(site.config, lines), call_of(site, "reduce_sum"))


def _reduce_max(site: Site) -> Kernel:
    kernel = _reduce_sum(site)
    return replace(kernel, call=call_of(site, "reduce_max"))


def _argmax(site: Site) -> Kernel:
    along = replace(site, op=ReduceMax((site.op.axis,)))
    kernel = replace(_reduce_sum(along), call=call_of(site, "argmax"))
    index = typedef("index_t", f"fxloom::uint_t<{max(1, site.result.hi.bit_length())}>")
    return replace(
        kernel, declarations=kernel.declarations.removesuffix("};") + f"    {index}\n}};"
    )


RULES: dict[str, Rule] = {
    "matmul": _matmul,
    "conv": _conv,
    "pool": _pool,
    "reduce_sum": _reduce_sum,
    "reduce_max": _reduce_max,
    "argmax": _argmax,
}
