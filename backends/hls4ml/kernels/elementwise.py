"""Kernels of pairs of values, and roundings."""

from typing import Any

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
from fxloom.fixed_point import FixedPoint, Overflow


def _elementwise(functor: str) -> Rule:
    def rule(site: Site) -> Kernel:
        fraction = max(arg.operand.fraction for arg in site.args)
        shifts = [fraction - arg.operand.fraction for arg in site.args]
        widths = [
            signed_width(arg.operand.lo << shift, arg.operand.hi << shift)
            for arg, shift in zip(site.args, shifts, strict=True)
        ]
        widths.append(signed_width(site.result.lo, site.result.hi))
        a, b = site.args
        lines = [
            *constants(
                n_a=a.size, n_b=b.size, n_out=site.result.size, shift_a=shifts[0], shift_b=shifts[1]
            ),
            argument_type("a", a),
            argument_type("b", b),
            typedef("wide_t", f"fxloom::int_t<{max(widths)}>"),
            typedef("op", f"fxloom::{functor}"),
            function("source_a", broadcast_index(a, site.result.shape)),
            function("source_b", broadcast_index(b, site.result.shape)),
        ]
        return Kernel(struct(site.config, lines), call_of(site, "elementwise"))

    return rule


def _compare(site: Site) -> Kernel:
    return _elementwise(f"op_{site.op.kind}")(site)


def _multiply(site: Site) -> Kernel:
    a, b = site.args
    lines = [
        *constants(n_a=a.size, n_b=b.size, n_out=site.result.size),
        argument_type("a", a),
        argument_type("b", b),
        function("source_a", broadcast_index(a, site.result.shape)),
        function("source_b", broadcast_index(b, site.result.shape)),
    ]
    return Kernel(struct(site.config, lines), call_of(site, "multiply"))


def _fit_lines(to: FixedPoint, overflow: Overflow, rounding: str) -> list[str]:
    lowest = -to.hi if overflow is Overflow.SAT_SYM and to.signed else to.lo
    mode = {Overflow.WRAP: "WRAP", Overflow.SAT_ZERO: "ZERO"}.get(overflow, "CLAMP")
    return [
        typedef("to_t", integer_type(to)),
        typedef("limit_t", f"fxloom::int_t<{signed_width(to.lo, to.hi)}>"),
        f"static const int rounding = fxloom::{rounding};",
        f"static const int overflow = fxloom::{mode};",
        f"static const long long lowest = {lowest}LL;",
        f"static const long long highest = {to.hi}LL;",
    ]


def _work_width(op: Any, needed: int) -> int:
    limits = 1 if op.overflow is Overflow.WRAP else signed_width(op.to.lo, op.to.hi)
    return max(needed, limits)


def _requantize(site: Site) -> Kernel:
    (x,) = site.args
    finer = site.op.to.fraction - x.operand.fraction
    appended, dropped = max(finer, 0), max(-finer, 0)
    width = signed_width(x.operand.lo << appended, x.operand.hi << appended)
    # Dropping more bits than there are changes nothing any more: all is below a half.
    lines = [
        *constants(n_out=site.result.size, appended=appended, dropped=min(dropped, width + 1)),
        argument_type("a", x),
        typedef("work_t", f"fxloom::int_t<{_work_width(site.op, width + 2)}>"),
        *_fit_lines(site.op.to, site.op.overflow, site.op.rounding),
    ]
    return Kernel(struct(site.config, lines), call_of(site, "requantize"))


def _divide(site: Site) -> Kernel:
    x, d = site.args
    finer = site.op.to.fraction - x.operand.fraction
    appended, dropped = max(finer, 0), max(-finer, 0)
    width = max(
        signed_width(x.operand.lo << appended, x.operand.hi << appended),
        signed_width(0, d.operand.hi << dropped),
    )
    lines = [
        *constants(n_out=site.result.size, n_b=d.size, appended=appended, dropped=dropped),
        argument_type("a", x),
        argument_type("b", d),
        typedef("work_t", f"fxloom::int_t<{_work_width(site.op, width + 1)}>"),
        function("source_b", broadcast_index(d, site.result.shape)),
        *_fit_lines(site.op.to, site.op.overflow, site.op.rounding),
    ]
    return Kernel(struct(site.config, lines), call_of(site, "divide"))


def _select(site: Site) -> Kernel:
    _, *choices = site.args
    fraction = max(arg.operand.fraction for arg in choices)
    shifts = [fraction - arg.operand.fraction for arg in choices]
    width = max(
        signed_width(arg.operand.lo << shift, arg.operand.hi << shift)
        for arg, shift in zip(choices, shifts, strict=True)
    )
    lines = [typedef("wide_t", f"fxloom::int_t<{width}>"), *constants(n_out=site.result.size)]
    lines += constants(shift_a=shifts[0], shift_b=shifts[1])
    for letter, arg in zip("cab", site.args, strict=True):
        lines += [
            *constants(**{f"n_{letter}": arg.size}),
            argument_type(letter, arg),
            function(f"source_{letter}", broadcast_index(arg, site.result.shape)),
        ]
    return Kernel(struct(site.config, lines), call_of(site, "select"))


RULES: dict[str, Rule] = {
    "add": _elementwise("op_add"),
    "sub": _elementwise("op_sub"),
    "mul": _multiply,
    "max": _elementwise("op_max"),
    "min": _elementwise("op_min"),
    "compare": _compare,
    "select": _select,
    "requantize": _requantize,
    "divide": _divide,
}
