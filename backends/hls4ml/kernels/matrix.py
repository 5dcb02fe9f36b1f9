"""What kernels for products with a constant matrix have in common in C++."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from fxloom.allotment import Allotment
from fxloom.backends.hls4ml.kernels.core import (
    Kernel,
    Site,
    argument_type,
    constants,
    integer_type,
    struct,
    typedef,
)
from fxloom.backends.hls4ml.kernels.sums import window_constants, window_rows
from fxloom.backends.hls4ml.weights import Weights
from fxloom.fixed_point import FixedPoint, IntArray
from fxloom.matrices import Matrix
from fxloom.multipliers import are_powers
from fxloom.ops import Conv


@dataclass(frozen=True, slots=True)
class MatrixSite:
    """Where a kernel is called, and what it does besides the product.

    site: of the product; its second argument is the dense matrix, which is not written. given: the
    kernel, its reuse factor and its lanes. shift, bias_shift: what the sum and the bias are shifted
    by to be added up; accumulator: the C++ type of that sum, sum: the format of its mantissas;
    stream: between streams.
    """

    site: Site
    matrix: Matrix
    given: Allotment
    bias: Weights
    shift: int
    bias_shift: int
    accumulator: str
    sum: FixedPoint
    stream: bool

    @property
    def weights(self) -> IntArray:
        """The matrix as the program has it: [n_in, n_out], or [rows, columns, channels of a group,
        n_out] of a convolution."""
        data = self.site.args[1].operand.data
        assert data is not None
        return data

    @property
    def weight(self) -> FixedPoint:
        """The format of a weight's mantissas."""
        return self.site.args[1].type

    @property
    def groups(self) -> int:
        """Of a convolution, into which inputs and outputs are divided."""
        return self.site.op.groups if isinstance(self.site.op, Conv) else 1

    def memory(self, number: int, mantissas: IntArray, kind: FixedPoint) -> Weights:
        """An array that the hardware reads word after word, by its number in the call."""
        return Weights(f"c{self.site.index}_{number}", mantissas, kind, True, True)

    def common(self) -> list[str]:
        """Lines of the configuration: sizes, types, how sums end."""
        site = self.site
        return [
            *constants(reuse=self.given.reuse, lanes=self.given.lanes, n_in=self.matrix.inputs),
            *constants(n_out=self.outputs, shift=self.shift, bias_shift=self.bias_shift),
            *self._positions(),
            argument_type("a", site.args[0]),
            typedef("w_t", integer_type(self.weight)),
            typedef("b_t", integer_type(self.bias.kind)),
            typedef("sum_t", integer_type(self.sum)),
            typedef("accum_t", self.accumulator),
        ]

    @property
    def outputs(self) -> int:
        """Of one position."""
        return self.site.result.shape[-1]

    def product(self, width: int | None = None) -> str:
        """The C++ class that multiplies an input, or what has so many bits, by a weight: without a
        multiplier where all weights are powers of two."""
        if not are_powers(self.matrix.weights, self.matrix.width):
            return "fxloom::any_product"
        bits = (width or self.site.args[0].type.width) + self.weight.width + 2
        return f"fxloom::shifted_product<{bits}, {self.weight.width}>"

    def _positions(self) -> list[str]:
        op, site = self.site.op, self.site
        if not isinstance(op, Conv):
            return constants(rows=prod(site.result.shape[:-1]))
        kernel = site.args[1].operand.shape[:2]
        held = window_rows(site) if self.stream else 0
        return [
            *window_constants(site, kernel, held),
            *constants(lines=held, taps_per_step=-(-prod(kernel) // self.given.reuse)),
        ]

    def loops(self) -> str:
        """What the functions of fxloom_engines.h begin with: those of linear layers in one step, of
        one position, have no loops."""
        once = self.matrix.rows == 0 and self.matrix.positions == self.given.reuse == 1
        return "engine_once" if once else "engine"

    def kernel(self, name: str, lines: list[str], arrays: list[str], *before: str) -> Kernel:
        """The call of NAME_matmul, NAME_conv or one of these with _stream.

        lines: of the configuration, beside the common ones; arrays: names of memories, which come
        between the input and the bias; before: declarations in front of the configuration.
        """
        site = self.site
        declarations = [*before, struct(site.config, [*self.common(), *lines])]
        function = f"{name}_{site.name}{'_stream' if self.stream else ''}"
        arguments = ", ".join([site.args[0].name, *arrays, self.bias.name, site.result_name])
        call = f"fxloom::{function}<{site.config}>({arguments});"
        return Kernel("\n".join(declarations), call, prod(site.result.shape[:-1]))


Renderer = Callable[[MatrixSite], tuple[Mapping[str, Weights], Kernel]]
"""Arrays that the kernel reads, and its text."""


def table(name: str, numbers: Sequence[int], kind: str = "int") -> str:
    """A C++ array of numbers."""
    rows = (numbers[start : start + 16] for start in range(0, len(numbers), 16))
    text = ",\n".join(", ".join(map(str, row)) for row in rows)
    return f"static const {kind} {name}[{len(numbers)}] = {{\n{text}}};"
