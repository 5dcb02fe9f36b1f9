"""Constant arrays of a project."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fxloom.backends.hls4ml.dialect import Dialect, ValueType
from fxloom.fixed_point import FixedPoint, IntArray


@dataclass(frozen=True, slots=True)
class Weights:
    """Constant mantissas of a layer. kind: their format; builtin: our kernels read integers;
    memory: the hardware reads one after another, so that their width matters."""

    name: str
    mantissas: IntArray
    kind: FixedPoint
    builtin: bool
    memory: bool = False

    def cpp(self, dialect: Dialect) -> str:
        """The C++ type of one element."""
        return dialect.integer(self.kind) if self.builtin else dialect.fixed(ValueType(self.kind))

    @property
    def values(self) -> npt.NDArray[np.generic]:
        """What hls4ml holds: real values for its layers, integers for ours."""
        if self.builtin:
            return self.mantissas
        return np.ldexp(self.mantissas.astype(np.float64), -self.kind.fraction)
