"""Verilog of adder graphs: one instance of an adder for every node, and a testbench.

The ports are packed, input 0 in the lowest bits, every value as wide as its interval needs.
Nothing is registered: registers between the levels would change no LUT.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from fxloom.adder_graph import AdderGraph
from fxloom.adder_trees import ZERO, widths
from fxloom.fixed_point import Int64Array

TOP = "fxloom_product"
ADDER, TESTBENCH = "fxloom_adder.v", "testbench.v"
PRODUCT, PORTS, INPUTS, EXPECTED = "product.v", "ports.vh", "inputs.hex", "expected.hex"


@dataclass(frozen=True)
class Packing:
    """Values side by side in one vector. width, offset: of each; signed: whether it is."""

    width: Int64Array
    signed: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

    @classmethod
    def of(cls, lo: Int64Array, hi: Int64Array) -> "Packing":
        """One bit at least for each, which a constant 0 has as well."""
        return cls(np.maximum(widths(lo, hi), 1), lo < 0)

    @property
    def bits(self) -> int:
        """Of the whole vector."""
        return int(self.width.sum())

    @property
    def offset(self) -> Int64Array:
        """Lowest bits."""
        offset: Int64Array = np.cumsum(self.width) - self.width
        return offset

    def pack(self, values: Int64Array) -> Iterator[str]:
        """Hexadecimal digits of each row. values: [N, values]."""
        digits = -(-self.bits // 4)
        for row in values.tolist():
            word = 0
            for value, width, offset in zip(row, self.width, self.offset, strict=True):
                word |= (value & ((1 << int(width)) - 1)) << int(offset)
            yield f"{word:0{digits}x}"

    def unpack(self, word: int) -> list[int]:
        """The values of one vector."""
        found = []
        for width, offset, signed in zip(self.width, self.offset, self.signed, strict=True):
            value = word >> int(offset) & ((1 << int(width)) - 1)
            found.append(value - (1 << int(width)) if signed and value >> int(width) - 1 else value)
        return found


def ports(graph: AdderGraph) -> tuple[Packing, Packing]:
    """How inputs and outputs are packed."""
    inputs = Packing.of(graph.lo[: graph.inputs], graph.hi[: graph.inputs])
    # A missing output is the constant 0.
    there, node = graph.outputs != ZERO, np.maximum(graph.outputs, 0)
    ends = (np.where(there, end[node] << graph.output_shift, 0) for end in (graph.lo, graph.hi))
    return inputs, Packing.of(*ends)


def template(name: str) -> str:
    """Text of a file of the templates."""
    return files("fxloom.hw_templates").joinpath("rtl", name).read_text(encoding="ascii")


def verilog(graph: AdderGraph, title: str) -> str:
    """The module that computes the graph; needs fxloom_adder.v. title: what its comment says."""
    return "".join(f"{line}\n" for line in _lines(graph, title))


def _lines(graph: AdderGraph, title: str) -> Iterator[str]:
    x, y = ports(graph)
    nodes = Packing.of(graph.lo, graph.hi)
    width, signed, low = nodes.width.tolist(), nodes.signed.astype(int).tolist(), graph.wires
    yield f"// {title.encode('unicode_escape').decode('ascii')}"
    yield f"// {graph.inputs} inputs, {len(graph.outputs)} outputs, {len(graph.first)} nodes."
    yield f"module {TOP} ("
    yield f"    input [{x.bits - 1}:0] x,"
    yield f"    output [{y.bits - 1}:0] y"
    yield ");"
    for node, offset in enumerate(x.offset.tolist()):
        yield f"    wire [{width[node] - 1}:0] v{node} = x[{offset} +: {width[node]}];"
    columns = (graph.first, graph.second, graph.first_shift, graph.second_shift, graph.subtracts)
    rows = zip(*(column.tolist() for column in columns), low.tolist(), strict=True)
    for node, (a, b, a_shift, b_shift, subtracts, wires) in enumerate(rows, graph.inputs):
        a_width, a_signed = (1, 0) if a == ZERO else (width[a], signed[a])
        # Of a value that is always 0 not even the low bits are wire.
        settings = {
            "A": a_width, "A_SIGNED": a_signed, "A_SHIFT": a_shift,
            "B": width[b], "B_SIGNED": signed[b], "B_SHIFT": b_shift,
            "SUBTRACT": int(subtracts), "LOW": min(wires, width[node] - 1), "WIDTH": width[node],
        }  # fmt: skip
        given = ", ".join(f".{key}({value})" for key, value in settings.items())
        operand = "1'b0" if a == ZERO else f"v{a}"
        yield f"    wire [{width[node] - 1}:0] v{node};"
        yield f"    fxloom_adder #({given}) n{node} (.a({operand}), .b(v{b}), .y(v{node}));"
    outputs = zip(graph.outputs, graph.output_shift, y.offset, y.width, strict=True)
    for node, shift, offset, bits in outputs:
        value = f"{bits}'d0" if node == ZERO else f"v{node}"
        if shift and node != ZERO:
            value = f"{{v{node}, {shift}'d0}}"
        yield f"    assign y[{offset} +: {bits}] = {value};"
    yield "endmodule"


def write(
    folder: Path, graph: AdderGraph, title: str, inputs: Int64Array, expected: Int64Array
) -> None:
    """All files of a simulation. inputs: [N, inputs]; expected: [N, outputs]."""
    x, y = ports(graph)
    sizes = {"X_BITS": x.bits, "Y_BITS": y.bits, "SAMPLES": len(inputs), "TOP": TOP}
    texts = {
        ADDER: template(ADDER),
        TESTBENCH: template(TESTBENCH),
        PRODUCT: verilog(graph, title),
        PORTS: "".join(f"`define FXLOOM_{name} {size}\n" for name, size in sizes.items()),
        INPUTS: "".join(f"{word}\n" for word in x.pack(inputs)),
        EXPECTED: "".join(f"{word}\n" for word in y.pack(expected)),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="ascii")
