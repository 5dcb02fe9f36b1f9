"""Which C++ kernel computes an operation, and the text that configures it.

One rule an operation, in the table RULES: from a Site (operation, arguments, result) to a Kernel
(declarations and a call). The kernels are in hw_templates/fxloom_kernels.h and fxloom_tables.h;
shifts, widths, indices and limits are computed here, so that the C++ has nothing to decide.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any

from fxloom.errors import FxloomError
from fxloom.fixed_point import FixedPoint, Overflow
from fxloom.ops import Operand, Pad, ReduceMax, Shape
from fxloom.program import Value

UNSUPPORTED: dict[str, str] = {}
"""Operations without a rule and why; the table and this dictionary together cover ops.OPS."""


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a kernel. name: its C++ array; constants are arrays of builtin integers."""

    name: str
    operand: Operand
    type: FixedPoint

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.operand.shape)

    @property
    def constant(self) -> bool:
        """Whether it is an array of its own instead of another layer's result."""
        return self.operand.data is not None


@dataclass(frozen=True, slots=True)
class Site:
    """One place where a kernel is called.

    result_name: the C++ array it fills; reuse: cycles from one position to the next, in which a
    multiplier can be used again.
    """

    index: int
    op: Any
    args: tuple[Argument, ...]
    result: Value
    result_name: str
    reuse: int = 1

    @property
    def name(self) -> str:
        """Name of the operation; without one the site copies its argument."""
        return "copy" if self.op is None else str(self.op.name)

    @property
    def config(self) -> str:
        """Name of the configuration struct."""
        return f"config{self.index}"


@dataclass(frozen=True, slots=True)
class Kernel:
    """C++ text: declarations for parameters.h, and the call. repeats: pipelined iterations."""

    declarations: str
    call: str
    repeats: int = 1


Rule = Callable[[Site], Kernel]


def integer_type(kind: FixedPoint) -> str:
    """The C++ type of a format's mantissas, in fxloom_types.h."""
    return f"fxloom::{'' if kind.signed else 'u'}int_t<{kind.width}>"


def _signed_width(lo: int, hi: int) -> int:
    """Bits of a signed integer that holds lo to hi."""
    below = (-lo - 1).bit_length() if lo < 0 else 0
    return 1 + max(below, hi.bit_length() if hi > 0 else 0)


def _strides(shape: Shape) -> list[int]:
    return [prod(shape[axis + 1 :]) for axis in range(len(shape))]


def index_text(variable: str, shape: Shape, strides: Sequence[int]) -> str:
    """C expression: where element number `variable` of shape (row-major) lies by these strides."""
    if all(s == own or n == 1 for s, own, n in zip(strides, _strides(shape), shape, strict=True)):
        return variable
    terms = []
    for axis, (n, stride) in enumerate(zip(shape, strides, strict=True)):
        if n == 1 or stride == 0:
            continue
        after = prod(shape[axis + 1 :])
        text = variable if after == 1 else f"{variable} / {after}"
        if prod(shape[:axis]) > 1:
            text = f"{text} % {n}"
        terms.append(text if stride == 1 else f"{text} * {stride}")
    return " + ".join(terms) or "0"


def _function(name: str, expression: str, parameters: str = "int i") -> str:
    return f"static int {name}({parameters}) {{ return {expression}; }}"


def _constants(**values: int) -> list[str]:
    return [f"static const int {name} = {value};" for name, value in values.items()]


def _struct(name: str, lines: Sequence[str]) -> str:
    return "\n".join([f"struct {name} {{", *(f"    {line}" for line in lines), "};"])


def _typedef(name: str, text: str) -> str:
    return f"typedef {text} {name};"


def _argument_type(letter: str, arg: Argument) -> str:
    return _typedef(f"{letter}_t", integer_type(arg.type))


def _call(site: Site, function: str) -> str:
    names = ", ".join([*(arg.name for arg in site.args), site.result_name])
    return f"fxloom::{function}<{site.config}>({names});"


def _broadcast_index(arg: Argument, result: Shape) -> str:
    """Index expression of an argument that broadcasts to result's shape."""
    shape = (1,) * (len(result) - len(arg.operand.shape)) + arg.operand.shape
    strides = [0 if n == 1 else s for n, s in zip(shape, _strides(shape), strict=True)]
    return index_text("i", result, strides)


def _elementwise(functor: str) -> Rule:
    def rule(site: Site) -> Kernel:
        fraction = max(arg.operand.fraction for arg in site.args)
        shifts = [fraction - arg.operand.fraction for arg in site.args]
        widths = [
            _signed_width(arg.operand.lo << shift, arg.operand.hi << shift)
            for arg, shift in zip(site.args, shifts, strict=True)
        ]
        widths.append(_signed_width(site.result.lo, site.result.hi))
        a, b = site.args
        lines = [
            *_constants(
                n_a=a.size, n_b=b.size, n_out=site.result.size, shift_a=shifts[0], shift_b=shifts[1]
            ),
            _argument_type("a", a),
            _argument_type("b", b),
            _typedef("wide_t", f"fxloom::int_t<{max(widths)}>"),
            _typedef("op", f"fxloom::{functor}"),
            _function("source_a", _broadcast_index(a, site.result.shape)),
            _function("source_b", _broadcast_index(b, site.result.shape)),
        ]
        return Kernel(_struct(site.config, lines), _call(site, "elementwise"))

    return rule


def _compare(site: Site) -> Kernel:
    return _elementwise(f"op_{site.op.kind}")(site)


def _multiply(site: Site) -> Kernel:
    a, b = site.args
    lines = [
        *_constants(n_a=a.size, n_b=b.size, n_out=site.result.size),
        _argument_type("a", a),
        _argument_type("b", b),
        _function("source_a", _broadcast_index(a, site.result.shape)),
        _function("source_b", _broadcast_index(b, site.result.shape)),
    ]
    return Kernel(_struct(site.config, lines), _call(site, "multiply"))


def _gather(site: Site, source: str) -> Kernel:
    (x,) = site.args
    lines = [
        *_constants(n_in=x.size, n_out=site.result.size),
        _argument_type("a", x),
        _function("source", source),
    ]
    return Kernel(_struct(site.config, lines), _call(site, "gather"))


def copy(site: Site) -> Kernel:
    """The same mantissas in another array: outputs, reshape and shift."""
    return _gather(site, "i")


def _transpose(site: Site) -> Kernel:
    strides = _strides(site.args[0].operand.shape)
    return _gather(site, index_text("i", site.result.shape, [strides[a] for a in site.op.axes]))


def _pad(site: Site) -> Kernel:
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
    return _gather(site, f"{' || '.join(outside)} ? -1 : {inside}" if outside else "i")


def _concat(site: Site) -> Kernel:
    fraction = max(arg.operand.fraction for arg in site.args)
    strides = _strides(site.result.shape)
    declarations, parameters, calls = [], [], []
    start = 0
    for number, arg in enumerate(site.args):
        shift = fraction - arg.operand.fraction
        width = _signed_width(arg.operand.lo << shift, arg.operand.hi << shift)
        config = f"{site.config}_{number}"
        target = index_text("i", arg.operand.shape, strides)
        lines = [
            *_constants(n_in=arg.size, n_out=site.result.size, shift=shift),
            _argument_type("a", arg),
            _typedef("wide_t", f"fxloom::int_t<{width}>"),
            _function("target", f"{start * strides[site.op.axis]} + {target}"),
        ]
        start += arg.operand.shape[site.op.axis]
        declarations.append(_struct(config, lines))
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


def _reduce_sum(site: Site) -> Kernel:
    (x,) = site.args
    shape, strides, axes = x.operand.shape, _strides(x.operand.shape), site.op.axes
    kept = index_text(
        "i", site.result.shape, [0 if a in axes else s for a, s in enumerate(strides)]
    )
    summed = index_text(
        "k", tuple(shape[a] for a in sorted(axes)), [strides[a] for a in sorted(axes)]
    )
    lines = [
        *_constants(
            n_in=x.size, n_out=site.result.size, n_terms=prod(shape[axis] for axis in axes)
        ),
        _argument_type("a", x),
        _typedef("sum_t", integer_type(site.result.type)),
        _function("source", f"{kept} + {summed}", "int i, int k"),
    ]
    return Kernel(_struct(site.config, lines), _call(site, "reduce_sum"))


def _reduce_max(site: Site) -> Kernel:
    kernel = _reduce_sum(site)
    return replace(kernel, call=_call(site, "reduce_max"))


def _lookup(site: Site) -> Kernel:
    x, table = site.args
    lines = [
        *_constants(n_out=site.result.size, n_table=table.size, lowest=site.op.source.lo),
        _argument_type("a", x),
        _argument_type("b", table),
        _typedef("index_t", f"fxloom::int_t<{site.op.source.width + 2}>"),
    ]
    return Kernel(_struct(site.config, lines), _call(site, "lookup"))


def _normalise(site: Site) -> Kernel:
    (x,) = site.args
    lines = [
        *_constants(n_out=site.result.size, width=site.op.source.width, step=site.op.step),
        _argument_type("a", x),
        _typedef("wide_t", integer_type(site.result.type)),
    ]
    return Kernel(_struct(site.config, lines), _call(site, "normalise"))


def _shift_like(site: Site) -> Kernel:
    a, b = site.args
    lines = [
        *_constants(n_a=a.size, n_b=b.size, n_out=site.result.size),
        *_constants(width=site.op.source.width, step=site.op.step),
        _argument_type("a", a),
        _argument_type("b", b),
        _typedef("wide_t", f"fxloom::int_t<{_signed_width(site.result.lo, site.result.hi)}>"),
        _function("source_a", _broadcast_index(a, site.result.shape)),
        _function("source_b", _broadcast_index(b, site.result.shape)),
    ]
    return Kernel(_struct(site.config, lines), _call(site, "shift_like"))


def _gather_along(site: Site) -> Kernel:
    """An index that rises evenly is computed, any other is looked up in a constant array."""
    shape, axis, indices = site.args[0].operand.shape, site.op.axis, site.op.indices
    strides = _strides(shape)
    others = index_text(
        "i", site.result.shape, [0 if a == axis else s for a, s in enumerate(strides)]
    )
    position = index_text("i", site.result.shape, [int(a == axis) for a in range(len(shape))])
    step = indices[1] - indices[0] if len(indices) > 1 else 0
    if all(b - a == step for a, b in pairwise(indices)):
        along = f"({indices[0]} + ({position}) * {step})"
        return _gather(site, f"{others} + {along} * {strides[axis]}")
    kernel = _gather(site, f"{others} + along({position}) * {strides[axis]}")
    name = f"indices{site.index}"
    entries = ", ".join(map(str, indices))
    array = f"static const int {name}[{len(indices)}] = {{{entries}}};\n"
    along = f"    static int along(int position) {{ return {name}[position]; }}\n}};"
    return replace(kernel, declarations=array + kernel.declarations.removesuffix("};") + along)


def _select(site: Site) -> Kernel:
    _, *choices = site.args
    fraction = max(arg.operand.fraction for arg in choices)
    shifts = [fraction - arg.operand.fraction for arg in choices]
    width = max(
        _signed_width(arg.operand.lo << shift, arg.operand.hi << shift)
        for arg, shift in zip(choices, shifts, strict=True)
    )
    lines = [_typedef("wide_t", f"fxloom::int_t<{width}>"), *_constants(n_out=site.result.size)]
    lines += _constants(shift_a=shifts[0], shift_b=shifts[1])
    for letter, arg in zip("cab", site.args, strict=True):
        lines += [
            *_constants(**{f"n_{letter}": arg.size}),
            _argument_type(letter, arg),
            _function(f"source_{letter}", _broadcast_index(arg, site.result.shape)),
        ]
    return Kernel(_struct(site.config, lines), _call(site, "select"))


def _argmax(site: Site) -> Kernel:
    along = replace(site, op=ReduceMax((site.op.axis,)))
    kernel = replace(_reduce_sum(along), call=_call(site, "argmax"))
    index = _typedef("index_t", f"fxloom::uint_t<{max(1, site.result.hi.bit_length())}>")
    return replace(
        kernel, declarations=kernel.declarations.removesuffix("};") + f"    {index}\n}};"
    )


def _embedding(site: Site) -> Kernel:
    x, w = site.args
    lines = [
        *_constants(n_in=x.size, n_table=w.size, n_columns=w.operand.shape[1]),
        *_constants(n_out=site.result.size),
        _argument_type("a", x),
        _argument_type("w", w),
    ]
    return Kernel(_struct(site.config, lines), _call(site, "embedding"))


def _matmul(site: Site) -> Kernel:
    x, w = site.args
    if not w.constant:
        return _matmul_computed(site)
    n_in, n_out = w.operand.shape
    rows = x.size // n_in
    lines = [
        *_constants(rows=rows, n_in=n_in, n_out=n_out, reuse=site.reuse),
        _argument_type("a", x),
        _argument_type("w", w),
        _typedef("sum_t", integer_type(site.result.type)),
    ]
    return Kernel(_struct(site.config, lines), _call(site, "matmul"), rows)


def _matmul_computed(site: Site) -> Kernel:
    a, b = site.args
    *leading, rows, n_in = a.operand.shape
    batch, n_out = prod(leading), b.operand.shape[-1]
    lines = [
        *_constants(batch=batch, rows=rows, n_in=n_in, n_out=n_out, reuse=site.reuse),
        *_constants(n_a=a.size, n_b=b.size, n_all=site.result.size),
        _argument_type("a", a),
        _argument_type("b", b),
        _typedef("sum_t", integer_type(site.result.type)),
    ]
    return Kernel(_struct(site.config, lines), _call(site, "matmul_computed"), batch * rows)


def _window_constants(site: Site, kernel: Sequence[int]) -> list[str]:
    height, width, channels = site.args[0].operand.shape
    return _constants(
        height=height,
        width=width,
        channels=channels,
        kernel_height=kernel[0],
        kernel_width=kernel[1],
        stride_height=site.op.stride[0],
        stride_width=site.op.stride[1],
        pad_top=site.op.padding[0][0],
        pad_left=site.op.padding[1][0],
        out_height=site.result.shape[0],
        out_width=site.result.shape[1],
    )


def _conv(site: Site) -> Kernel:
    x, w = site.args
    lines = [
        *_window_constants(site, w.operand.shape[:2]),
        *_constants(
            dilation_height=site.op.dilation[0],
            dilation_width=site.op.dilation[1],
            groups=site.op.groups,
            per_group=w.operand.shape[2],
            n_out=w.operand.shape[3],
            reuse=site.reuse,
        ),
        _argument_type("a", x),
        _argument_type("w", w),
        _typedef("sum_t", integer_type(site.result.type)),
    ]
    return Kernel(_struct(site.config, lines), _call(site, "conv"), prod(site.result.shape[:2]))


def _pool(site: Site) -> Kernel:
    lines = [
        *_window_constants(site, site.op.kernel),
        _argument_type("a", site.args[0]),
        _typedef("sum_t", integer_type(site.result.type)),
        _typedef("kind", f"fxloom::pool_{site.op.kind}"),
        *_constants(dilation_height=site.op.dilation[0], dilation_width=site.op.dilation[1]),
    ]
    return Kernel(_struct(site.config, lines), _call(site, "pool"), prod(site.result.shape[:2]))


def _fit_lines(to: FixedPoint, overflow: Overflow, rounding: str) -> list[str]:
    lowest = -to.hi if overflow is Overflow.SAT_SYM and to.signed else to.lo
    mode = {Overflow.WRAP: "WRAP", Overflow.SAT_ZERO: "ZERO"}.get(overflow, "CLAMP")
    return [
        _typedef("to_t", integer_type(to)),
        _typedef("limit_t", f"fxloom::int_t<{_signed_width(to.lo, to.hi)}>"),
        f"static const int rounding = fxloom::{rounding};",
        f"static const int overflow = fxloom::{mode};",
        f"static const long long lowest = {lowest}LL;",
        f"static const long long highest = {to.hi}LL;",
    ]


def _work_width(op: Any, needed: int) -> int:
    limits = 1 if op.overflow is Overflow.WRAP else _signed_width(op.to.lo, op.to.hi)
    return max(needed, limits)


def _requantize(site: Site) -> Kernel:
    (x,) = site.args
    finer = site.op.to.fraction - x.operand.fraction
    appended, dropped = max(finer, 0), max(-finer, 0)
    width = _signed_width(x.operand.lo << appended, x.operand.hi << appended)
    # Dropping more bits than there are changes nothing any more: all is below a half.
    lines = [
        *_constants(n_out=site.result.size, appended=appended, dropped=min(dropped, width + 1)),
        _argument_type("a", x),
        _typedef("work_t", f"fxloom::int_t<{_work_width(site.op, width + 2)}>"),
        *_fit_lines(site.op.to, site.op.overflow, site.op.rounding),
    ]
    return Kernel(_struct(site.config, lines), _call(site, "requantize"))


def _divide(site: Site) -> Kernel:
    x, d = site.args
    finer = site.op.to.fraction - x.operand.fraction
    appended, dropped = max(finer, 0), max(-finer, 0)
    width = max(
        _signed_width(x.operand.lo << appended, x.operand.hi << appended),
        _signed_width(0, d.operand.hi << dropped),
    )
    lines = [
        *_constants(n_out=site.result.size, n_b=d.size, appended=appended, dropped=dropped),
        _argument_type("a", x),
        _argument_type("b", d),
        _typedef("work_t", f"fxloom::int_t<{_work_width(site.op, width + 1)}>"),
        _function("source_b", _broadcast_index(d, site.result.shape)),
        *_fit_lines(site.op.to, site.op.overflow, site.op.rounding),
    ]
    return Kernel(_struct(site.config, lines), _call(site, "divide"))


def fork(site: Site, outputs: Sequence[str]) -> Kernel:
    """Every pack of a stream into several streams; into none where nothing reads the value."""
    (x,) = site.args
    names = [f"out{number}" for number in range(len(outputs))]
    streams = ["hls::stream<T> &in", *(f"hls::stream<T> &{name}" for name in names)]
    lines = [
        "template <class T>",
        f"void fork{site.index}({', '.join(streams)}) {{",
        f"    for (int row = 0; row < {_packs(x.operand.shape)}; row++) {{",
        "        #pragma HLS PIPELINE",
        "        const T pack = in.read();",
        *(f"        {name}.write(pack);" for name in names),
        "    }",
        "}",
    ]
    return Kernel("\n".join(lines), f"fork{site.index}({', '.join([x.name, *outputs])});")


def _packs(shape: Shape) -> int:
    """Packs of a tensor in a stream: one holds the last axis."""
    return prod(shape[:-1])


def _pad_stream(site: Site) -> Kernel:
    """Padding that leaves the packs as they are: zero packs between those that come in."""
    (x,) = site.args
    leading = replace(x, operand=x.operand._replace(shape=x.operand.shape[:-1]))
    result = replace(site.result, shape=site.result.shape[:-1])
    rows = replace(site, op=Pad(site.op.padding[:-1]), args=(leading,), result=result)
    return replace(_pad(rows), call=_call(site, "pad_stream"))


_ELEMENTWISE = {
    *("add", "sub", "mul", "max", "min", "requantize", "divide", "shift", "compare", "select"),
}


def _pack_by_pack(site: Site) -> bool:
    """Whether every pack of the result follows from one pack of each streamed argument."""
    name, shape = site.name, site.result.shape
    shapes = [arg.operand.shape for arg in site.args if not arg.constant]
    if name in _ELEMENTWISE:
        return all(each == shape for each in shapes)
    if name in ("concat", "gather"):
        return bool(site.op.axis == len(shape) - 1)
    if name == "reshape":
        return all(each[-1:] == shape[-1:] for each in shapes)
    return name == "copy" or (name == "matmul" and site.args[1].constant)


def _of_pack(arg: Argument, shape: Shape) -> Argument:
    """The part of an argument that belongs to pack number `row` of a result of that shape."""
    own = replace(arg, operand=arg.operand._replace(shape=arg.operand.shape[-1:]))
    if not arg.constant or not arg.operand.shape:
        return own
    full = (1,) * (len(shape) - len(arg.operand.shape)) + arg.operand.shape
    strides = [0 if n == 1 else s for n, s in zip(full, _strides(full), strict=True)]
    offset = index_text("row", shape[:-1], strides[:-1])
    return own if offset == "0" else replace(own, name=f"{arg.name} + {offset}")


def _one_pack(site: Site) -> Site:
    """The same operation on one pack."""
    shape = site.result.shape
    whole = site.args[1:] if site.name == "matmul" else ()  # the weights of every pack
    args = [arg if arg in whole else _of_pack(arg, shape) for arg in site.args]
    op = replace(site.op, axis=0) if site.name in ("concat", "gather") else site.op
    return replace(site, op=op, args=tuple(args), result=replace(site.result, shape=shape[-1:]))


def streamed(site: Site, rule: Rule) -> Kernel:
    """A kernel that reads and writes streams.

    Where packs do not depend on each other it works on one after another, else on the whole tensor,
    which it first collects: always right, and as large as the tensor.
    """
    if site.name == "pad" and site.op.padding[-1:] == ((0, 0),):
        return _pad_stream(site)
    ins = [number for number, arg in enumerate(site.args) if not arg.constant]
    local = [
        arg if arg.constant else replace(arg, name=f"a{number}")
        for number, arg in enumerate(site.args)
    ]
    inner, rows = replace(site, args=tuple(local), result_name="result"), 1
    if _pack_by_pack(site) and _packs(site.result.shape) > 1:
        inner, rows = _one_pack(inner), _packs(site.result.shape)
    kernel = rule(inner)
    buffers = [(f"a{n}", f"A{n}", inner.args[n].operand.shape) for n in ins]
    body = []
    for name, kind, shape in [*buffers, ("result", "R", inner.result.shape)]:
        # What comes in one pack is what is needed at a time.
        body += [
            f"typename {kind}::value_type {name}[{prod(shape)}];",
            f"#pragma HLS ARRAY_PARTITION variable={name} cyclic factor={(shape or (1,))[-1]}",
        ]
    body += [f"fxloom::receive(in{n}, a{n});" for n in ins]
    body += [kernel.call, "fxloom::send(result, out);"]
    if rows > 1:
        body = [
            f"for (int row = 0; row < {rows}; row++) {{",
            f"    #pragma HLS PIPELINE II={site.reuse}",
            *(f"    {line}" for line in body),
            "}",
        ]
    streams = [*(f"hls::stream<A{n}> &in{n}" for n in ins), "hls::stream<R> &out"]
    function = [
        kernel.declarations,
        f"template <{', '.join([*(f'class A{n}' for n in ins), 'class R'])}>",
        f"void stream{site.index}({', '.join(streams)}) {{",
        *(f"    {line}" for line in body),
        "}",
    ]
    names = [*(site.args[n].name for n in ins), site.result_name]
    call = f"stream{site.index}({', '.join(names)});"
    return Kernel("\n".join(function), call, rows * kernel.repeats)


RULES: dict[str, Rule] = {
    "matmul": _matmul,
    "conv": _conv,
    "add": _elementwise("op_add"),
    "sub": _elementwise("op_sub"),
    "mul": _multiply,
    "max": _elementwise("op_max"),
    "min": _elementwise("op_min"),
    "shift": copy,
    "pool": _pool,
    "reduce_sum": _reduce_sum,
    "reduce_max": _reduce_max,
    "lookup": _lookup,
    "normalise": _normalise,
    "shift_like": _shift_like,
    "reshape": copy,
    "transpose": _transpose,
    "concat": _concat,
    "pad": _pad,
    "gather": _gather_along,
    "compare": _compare,
    "select": _select,
    "argmax": _argmax,
    "embedding": _embedding,
    "requantize": _requantize,
    "divide": _divide,
}


def render(site: Site, origin: str, stream: bool) -> Kernel:
    """The kernel for a site; FxloomError, naming the layer, where the backend has no rule.

    stream: between streams instead of arrays. A site without an operation is a copy.
    """
    rule = copy if site.op is None else RULES.get(site.name)
    if rule is None:
        reason = UNSUPPORTED.get(site.name, "the backend has no rule for it")
        raise FxloomError(f"{origin} ({site.name}): not possible with hls4ml: {reason}")
    return streamed(site, rule) if stream else rule(site)
