"""What differs between the vendors' tools that hls4ml writes projects for.

AMD's tools have ap_fixed, the others Algorithmic C's ac_fixed. Our kernels are written once for
both; hls4ml's own layers are used with ap_fixed only.
"""

from dataclasses import dataclass
from typing import Literal

from fxloom.fixed_point import FixedPoint, Overflow, Rounding


@dataclass(frozen=True, slots=True)
class ValueType:
    """A C++ fixed-point type: format and modes."""

    format: FixedPoint
    rounding: Rounding = Rounding.TRN
    overflow: Overflow = Overflow.WRAP


@dataclass(frozen=True, slots=True)
class Dialect:
    """A backend of hls4ml.

    name: as in Target.backend; vendor: who makes the parts that its project names; algorithmic_c:
    types are ac_fixed and ac_int; source: folder of the project that holds firmware/; includes:
    folders below the project that a C++ compiler needs, empty where no compiler but the vendor's
    can run the project; suffix: what makes a pointer of the name of an array.
    """

    name: str
    vendor: Literal["AMD", "Intel"]
    algorithmic_c: bool
    source: str = "."
    includes: tuple[str, ...] = ()
    suffix: str = ""

    @property
    def types(self) -> str:
        """The file of hw_templates with these types."""
        return "fxloom_types_ac.h" if self.algorithmic_c else "fxloom_types_ap.h"

    def held(self, kind: FixedPoint) -> FixedPoint:
        """The format that holds mantissas of another.

        hls4ml writes ac_fixed with at least two bits, for oneAPI has no narrower ones, and moves
        the binary point by that; a second bit in front leaves the binary point alone.
        """
        if self.algorithmic_c and kind.width == 1:
            return FixedPoint(2, kind.integer + 1, kind.signed)
        return kind

    def fixed(self, of: ValueType) -> str:
        """The fixed-point type as hls4ml writes it."""
        kind = self.held(of.format)
        if self.algorithmic_c:
            return f"ac_fixed<{kind.width},{kind.integer},{str(kind.signed).lower()}>"
        modes = ""
        if (of.rounding, of.overflow) != (Rounding.TRN, Overflow.WRAP):
            modes = f",AP_{of.rounding},AP_{of.overflow},0"
        return f"ap_{'' if kind.signed else 'u'}fixed<{kind.width},{kind.integer}{modes}>"

    def integer(self, kind: FixedPoint) -> str:
        """The type of a format's mantissas as hls4ml writes it."""
        if self.algorithmic_c:
            return f"ac_int<{kind.width}, {str(kind.signed).lower()}>"
        return f"ap_{'' if kind.signed else 'u'}int<{kind.width}>"


_AP = ("firmware/ap_types",)
_SIEMENS = tuple(f"firmware/{part}/include" for part in ("ac_types", "ac_math", "ac_simutils"))

VITIS = Dialect("Vitis", "AMD", False, includes=_AP)
DIALECTS = {
    dialect.name: dialect
    for dialect in (
        VITIS,
        Dialect("Vivado", "AMD", False, includes=_AP),
        Dialect("Quartus", "Intel", True, includes=("firmware/ac_types",)),
        Dialect("Catapult", "AMD", True, includes=(*_SIEMENS, "firmware/nnet_utils")),
        Dialect("oneAPI", "Intel", True, source="src", suffix=".data()"),
    )
}
"""By Target.backend."""
