"""The processes of a streamed project and the channels between them, from a Program and a Target.

The same layers as the backend plans, under the same numbers: inputs, a fork behind every value that
has not exactly one reader, the instructions, with bias and rounding taken into a product, the
padding in front of hls4ml's convolutions, and copies for outputs that are read inside as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from fxloom.allotment import Allotment, allot
from fxloom.choosing import choose
from fxloom.fusing import Fusion
from fxloom.matrices import KERNEL, Matrix, matrix_of
from fxloom.ops import Conv, MatMul, Pad, Pool, Shape
from fxloom.packs import pack_by_pack, packs_of, pads_packs
from fxloom.program import Instr, Program
from fxloom.target import Target

Kind = Literal[
    "input",
    "fork",
    "packs",  # a pack of the result for one of each argument
    "pad",
    "windows",  # our convolutions and pools: the rows of a window, then a row of results
    "tensor",  # all arguments, then the whole result
    "line buffer",  # hls4ml's convolutions: a window slides with every pack
    "lane packs",  # kernels for constant matrices: see fxloom.kernels
    "lane windows",
]


@dataclass(frozen=True, slots=True)
class StreamLayer:
    """One process.

    op: its first operation, None for an input, a fork or a copy; arguments: shapes of what it reads
    in streams; values: the program's values that it stands for; kernel: rows and columns of a
    window; index: as in the project's names; inputs, outputs: channels, by the names of the arrays
    in the C++.
    """

    kind: Kind
    origin: str
    op: Any
    arguments: tuple[Shape, ...]
    shape: Shape
    values: tuple[str, ...]
    kernel: tuple[int, int] = (1, 1)
    matrix: Matrix | None = None
    allotment: Allotment | None = None
    index: int = 0
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    @property
    def reuse(self) -> int:
        """Positions of a product follow each other in so many cycles."""
        return 1 if self.allotment is None else self.allotment.reuse


@dataclass(frozen=True, slots=True)
class StreamLayers:
    """All processes in order. ports: channels that come from outside or go there."""

    layers: tuple[StreamLayer, ...]
    ports: frozenset[str]


def stream_layers(program: Program, target: Target) -> StreamLayers:
    """The processes that compute a program where target.io is "stream"."""
    return _Streams(program, target).all()


class _Streams:
    def __init__(self, program: Program, target: Target) -> None:
        self.program = program
        self.target = target
        self.fusion = Fusion(program)
        self.layers: list[StreamLayer] = []
        self.sources: dict[str, list[str]] = {}
        self.filled: dict[str, StreamLayer] = {}

    def all(self) -> StreamLayers:
        values = [port.value for port in self.program.inputs]
        inputs = [
            self._add(StreamLayer("input", x.name, None, (), x.shape, (x.name,)), [])
            for x in values
        ]
        ports = {layer.outputs[0] for layer in inputs}
        for layer in inputs:
            self._publish(layer)
        done: set[str] = set()
        for instr in self.program.instrs:
            if instr.result.name not in done:
                layer = self._product(instr) or self._kernel(instr)
                done.update(layer.values)
                self._publish(layer)
        for output in self.program.outputs:
            ports.update(self._output(output.value, output.name).outputs)
        return StreamLayers(tuple(self.layers), frozenset(ports))

    def _add(
        self, layer: StreamLayer, args: Sequence[str], copies: int | None = None
    ) -> StreamLayer:
        """The layer with a number and channels: one for each value that it reads, one result or
        so many copies."""
        index = len(self.layers) + 1
        array = f"layer{index}_out"
        inputs = tuple(
            self.sources[arg].pop(0) for arg in args if arg not in self.program.constants
        )
        outputs = (array,) if copies is None else tuple(f"{array}_{n}" for n in range(copies))
        layer = replace(layer, index=index, inputs=inputs, outputs=outputs)
        self.layers.append(layer)
        return layer

    def _publish(self, layer: StreamLayer) -> None:
        """Make later layers read a value from this one, or from copies that a fork makes of it."""
        value, shape = layer.values[-1], layer.shape
        self.filled[value] = layer
        self.sources[value] = list(layer.outputs)
        readers = self.fusion.uses[value] + self.fusion.outputs[value]
        if readers != 1:
            fork = StreamLayer("fork", layer.origin, None, (shape,), shape, (value,))
            self.sources[value] = list(self._add(fork, [value], readers).outputs)

    def _output(self, value: str, port: str) -> StreamLayer:
        """What fills an output port: a copy where the value is read inside as well."""
        layer, shape = self.filled[value], self.filled[value].shape
        alone = self.fusion.outputs[value] == 1 and not self.fusion.uses[value]
        if alone and layer.kind != "input":
            return layer
        kind = _kind(None, [shape], [False], shape)
        return self._add(StreamLayer(kind, port, None, (shape,), shape, (value,)), [value])

    def _kernel(self, instr: Instr) -> StreamLayer:
        """A kernel of ours."""
        matrix, allotment = matrix_of(self.program, instr, self.target), None
        if isinstance(instr.op, MatMul | Conv):
            wanted = self.target.resolve(instr.origin)
            n_in, n_out = self.program.value(instr.args[1]).shape[-2:]
            allotment = allot(KERNEL, n_in, n_out, wanted, self.target.io)
            if matrix is not None:
                allotment = choose(matrix, wanted, self.target.io)
        shapes = [self.program.value(arg).shape for arg in instr.args]
        constant = [arg in self.program.constants for arg in instr.args]
        layer = StreamLayer(
            _kind(instr.op, shapes, constant, instr.result.shape),
            instr.origin,
            instr.op,
            tuple(shape for shape, fixed in zip(shapes, constant, strict=True) if not fixed),
            instr.result.shape,
            (instr.result.name,),
            self._window(instr),
            matrix,
            allotment,
        )
        return self._add(layer, instr.args)

    def _window(self, instr: Instr) -> tuple[int, int]:
        if isinstance(instr.op, Pool):
            return instr.op.kernel
        if isinstance(instr.op, Conv):
            rows, columns = self.program.value(instr.args[1]).shape[:2]
            return rows, columns
        return (1, 1)

    def _product(self, first: Instr) -> StreamLayer | None:
        """hls4ml's layer or a kernel of lanes, with what follows; None for all else."""
        matrix = matrix_of(self.program, first, self.target)
        if matrix is None:
            return None
        allotment = choose(matrix, self.target.resolve(first.origin), self.target.io)
        if matrix.kind == KERNEL and allotment.is_dense:
            return None
        chain = self.fusion.chain(first)
        shape = self.program.value(first.args[0]).shape
        kind: Kind = "tensor" if allotment.is_dense else "lane packs"
        if isinstance(first.op, Conv):
            kind = "line buffer" if allotment.is_dense else "lane windows"
            if kind == "line buffer" and first.op.padding != ((0, 0), (0, 0)):
                shape = self._padded(first, first.op)
        layer = StreamLayer(
            kind,
            first.origin,
            first.op,
            (shape,),
            chain[-1].result.shape,
            tuple(instr.result.name for instr in chain),
            self._window(first),
            matrix,
            allotment,
        )
        return self._add(layer, first.args)

    def _padded(self, first: Instr, op: Conv) -> Shape:
        """Put zeros around what a line buffer reads; the shape with them."""
        value, pad = first.args[0], Pad((*op.padding, (0, 0)))
        before = self.program.operand(value)
        shape = pad.infer([before]).shape
        layer = StreamLayer("pad", first.origin, pad, (before.shape,), shape, (value,))
        self.sources[value].insert(0, self._add(layer, [value]).outputs[0])
        return shape


def _kind(op: Any, arguments: Sequence[Shape], constant: Sequence[bool], result: Shape) -> Kind:
    """How a kernel of ours goes about its streams."""
    if pads_packs(op):
        return "pad"
    if isinstance(op, Conv | Pool):
        return "windows"
    independent = pack_by_pack(op, arguments, constant, result) and packs_of(result) > 1
    return "packs" if independent else "tensor"
