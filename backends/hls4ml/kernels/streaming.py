"""The same kernels between streams."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from fxloom.backends.hls4ml.kernels.core import (
    Argument,
    Kernel,
    Rule,
    Site,
    call_of,
    index_text,
    row_strides,
)
from fxloom.backends.hls4ml.kernels.moving import pad
from fxloom.backends.hls4ml.kernels.sums import window_rows
from fxloom.ops import Pad, Shape
from fxloom.packs import pack_by_pack, packs_of, pads_packs


def fork(site: Site, outputs: Sequence[str]) -> Kernel:
    """Every pack of a stream into several streams; into none where nothing reads the value."""
    (x,) = site.args
    names = [f"out{number}" for number in range(len(outputs))]
    streams = ["hls::stream<T> &in", *(f"hls::stream<T> &{name}" for name in names)]
    lines = [
        "template <class T>",
        f"void fork{site.index}({', '.join(streams)}) {{",
        f"    for (int row = 0; row < {packs_of(x.operand.shape)}; row++) {{",
        "        #pragma HLS PIPELINE",
        "        const T pack = in.read();",
        *(f"        {name}.write(pack);" for name in names),
        "    }",
        "}",
    ]
    return Kernel("\n".join(lines), f"fork{site.index}({', '.join([x.name, *outputs])});")


def _pad_stream(site: Site) -> Kernel:
    """Padding that leaves the packs as they are: zero packs between those that come in."""
    (x,) = site.args
    leading = replace(x, operand=x.operand._replace(shape=x.operand.shape[:-1]))
    result = replace(site.result, shape=site.result.shape[:-1])
    rows = replace(site, op=Pad(site.op.padding[:-1]), args=(leading,), result=result)
    return replace(pad(rows), call=call_of(site, "pad_stream"))


def _of_pack(arg: Argument, shape: Shape) -> Argument:
    """The part of an argument that belongs to pack number `row` of a result of that shape."""
    own = replace(arg, operand=arg.operand._replace(shape=arg.operand.shape[-1:]))
    if not arg.constant or not arg.operand.shape:
        return own
    full = (1,) * (len(shape) - len(arg.operand.shape)) + arg.operand.shape
    strides = [0 if n == 1 else s for n, s in zip(full, row_strides(full), strict=True)]
    offset = index_text("row", shape[:-1], strides[:-1])
    return own if offset == "0" else replace(own, name=f"{arg.name} + {offset}")


def _one_pack(site: Site) -> Site:
    """The same operation on one pack."""
    shape = site.result.shape
    whole = site.args[1:] if site.name == "matmul" else ()  # the weights of every pack
    args = [arg if arg in whole else _of_pack(arg, shape) for arg in site.args]
    op = replace(site.op, axis=0) if site.name in ("concat", "gather") else site.op
    return replace(site, op=op, args=tuple(args), result=replace(site.result, shape=shape[-1:]))


def _windows(site: Site, rule: Rule) -> Kernel:
    """A convolution or pool that holds only the rows its windows reach over."""
    x, *weights = site.args
    _, width, channels = x.operand.shape
    rows, columns, n_out = site.result.shape
    lines = window_rows(site)
    kernel = rule(replace(site, lines=lines))
    given = "".join(f", {weight.name}" for weight in weights)
    function = [
        kernel.declarations,
        "template <class A, class R>",
        f"void stream{site.index}(hls::stream<A> &in, hls::stream<R> &out) {{",
        f"    typename A::value_type lines[{lines * width * channels}];",
        f"    #pragma HLS ARRAY_PARTITION variable=lines cyclic factor={channels}",
        f"    typename R::value_type result[{n_out}];",
        "    #pragma HLS ARRAY_PARTITION variable=result complete",
        *(f"    #pragma HLS ARRAY_PARTITION variable={w.name} complete" for w in weights),
        "    int have = 0;",
        f"    for (int row = 0; row < {rows}; row++) {{",
        f"        have = fxloom::receive_rows<{site.config}>(in, lines, have, row);",
        f"        for (int column = 0; column < {columns}; column++) {{",
        f"            #pragma HLS PIPELINE II={site.reuse}",
        f"            fxloom::{site.name}_position<{site.config}>"
        f"(lines{given}, result, row, column);",
        "            fxloom::send(result, out);",
        "        }",
        "    }",
        f"    fxloom::drop_rows<{site.config}>(in, have);",
        "}",
    ]
    call = f"stream{site.index}({x.name}, {site.result_name});"
    return Kernel("\n".join(function), call, kernel.repeats)


def streamed(site: Site, rule: Rule) -> Kernel:
    """A kernel that reads and writes streams.

    Where packs do not depend on each other it works on one after another, on windows with as many
    rows as a window has, else on the whole tensor, which it first collects: always right, and as
    large as the tensor.
    """
    if pads_packs(site.op):
        return _pad_stream(site)
    if site.name in ("conv", "pool"):
        return _windows(site, rule)
    ins = [number for number, arg in enumerate(site.args) if not arg.constant]
    local = [
        arg if arg.constant else replace(arg, name=f"a{number}")
        for number, arg in enumerate(site.args)
    ]
    inner, rows = replace(site, args=tuple(local), result_name="result"), 1
    shapes = [arg.operand.shape for arg in site.args]
    constant = [arg.constant for arg in site.args]
    independent = pack_by_pack(site.op, shapes, constant, site.result.shape)
    if independent and packs_of(site.result.shape) > 1:
        inner, rows = _one_pack(inner), packs_of(site.result.shape)
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
