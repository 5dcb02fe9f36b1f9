"""Kernels that move values."""

from dataclasses import replace
from itertools import pairwise
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
    row_strides,
    signed_width,
    struct,
    typedef,
)


def gathered(site: Site, source: str) -> Kernel:
    (x,) = site.args
    lines = [
        *constants(n_in=x.size, n_out=site.result.size),
        argument_type("a", x),
        function("source", source),
    ]
    return Kernel(struct(site.config, lines), call_of(site, "gather"))


def copy(site: Site) -> Kernel:
    """The same mantissas in another array: outputs, reshape and shift."""
    return gathered(site, "i")


def _transpose(site: Site) -> Kernel:
    strides = row_strides(site.args[0].operand.shape)
    return gathered(site, index_text("i", site.result.shape, [strides[a] for a in site.op.axes]))


def pad(site: Site) -> Kernel:
    shape, result = site.args[0].operand.shape, site.result.shape
    outside, terms = [], []
    for axis, (n, (before, after)) in enumerate(zip(shape, site.op.padding, strict=True)):
        position = index_text("i", result, [int(other == axis) for other in range(len(result))])
        if before:
            outside.append(f"{position} < {before}")
        if after:
            outside.append(f"{position} >= {before + n}")
        terms.append(f"({position} - {before}) * {prod(shape[axis + 1 :])}")
    inside = " + ".join(terms) or "i"
    return gathered(site, f"{' || '.join(outside)} ? -1 : {inside}" if outside else "i")


def _concat(site: Site) -> Kernel:
    fraction = max(arg.operand.fraction for arg in site.args)
    strides = row_strides(site.result.shape)
    declarations, parameters, calls = [], [], []
    start = 0
    for number, arg in enumerate(site.args):
        shift = fraction - arg.operand.fraction
        width = signed_width(arg.operand.lo << shift, arg.operand.hi << shift)
        config = f"{site.config}_{number}"
        target = index_text("i", arg.operand.shape, strides)
        lines = [
            *constants(n_in=arg.size, n_out=site.result.size, shift=shift),
            argument_type("a", arg),
            typedef("wide_t", f"fxloom::int_t<{width}>"),
            function("target", f"{start * strides[site.op.axis]} + {target}"),
        ]
        start += arg.operand.shape[site.op.axis]
        declarations.append(struct(config, lines))
        parameters.append(f"const T{number} a{number}[{arg.size}]")
        calls.append(f"    fxloom::place<{config}>(a{number}, res);")
    # One function, so that the result has one producer where functions form a dataflow.
    templates = ", ".join(f"class T{number}" for number in range(len(site.args)))
    parameters.append(f"R res[{site.result.size}]")
    declarations += [
        f"template <{templates}, class R>",
        f"void concat{site.index}({', '.join(parameters)}) {{",
        "    #pragma HLS PIPELINE",
        *calls,
        "}",
    ]
    names = ", ".join([*(arg.name for arg in site.args), site.result_name])
    return Kernel("\n".join(declarations), f"concat{site.index}({names});")


def _gather_along(site: Site) -> Kernel:
    """An index that rises evenly is computed, any other is looked up in a constant array."""
    shape, axis, indices = site.args[0].operand.shape, site.op.axis, site.op.indices
    strides = row_strides(shape)
    others = index_text(
        "i", site.result.shape, [0 if a == axis else s for a, s in enumerate(strides)]
    )
    position = index_text("i", site.result.shape, [int(a == axis) for a in range(len(shape))])
    step = indices[1] - indices[0] if len(indices) > 1 else 0
    if all(b - a == step for a, b in pairwise(indices)):
        along = f"({indices[0]} + ({position}) * {step})"
        return gathered(site, f"{others} + {along} * {strides[axis]}")
    kernel = gathered(site, f"{others} + along({position}) * {strides[axis]}")
    name = f"indices{site.index}"
    entries = ", ".join(map(str, indices))
    array = f"static const int {name}[{len(indices)}] = {{{entries}}};\n"
    along = f"    static int along(int position) {{ return {name}[position]; }}\n}};"
    return replace(kernel, declarations=array + kernel.declarations.removesuffix("};") + along)


RULES: dict[str, Rule] = {
    "shift": copy,
    "reshape": copy,
    "transpose": _transpose,
    "concat": _concat,
    "pad": pad,
    "gather": _gather_along,
}
