"""What operations of a program take in hardware, and how long: figures at both levels.

Rules that reproduced other people's syntheses row by row, fits (coefficients.toml), and counts of
logic with wide bounds where nothing was synthesised. Each figure says which of them it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, prod

from fxloom.coefficients import fit
from fxloom.logic import Bounds, Logic, scaled
from fxloom.report import RESOURCES, SEPARATOR, Figure, Provenance, Resources

DENSE_CYCLES = (1, -2, 1)
"""Cycles beyond the depth of the adder tree, and the interval around it: benchmarks/fit_latency."""

ELEMENTWISE_CYCLES = (0, 1)
"""Fewest and most cycles of 33 synthesised ReLU layers."""

CSYNTH = "C synthesis, before logic synthesis"
UNSEEN = "not yet compared with a synthesis"
RULE_1_KERNEL = (
    "rule: kernels of fxloom's own: the dense rule on their constants, one position at a time; "
    f"{UNSEEN}"
)
NO_MULTIPLIER = "rule: no multiplication"
NO_RULE = "unknown: no rule is known yet for these operations"
FIT_POOL = (
    "fitted: pools and sums: one window per cycle, then an adder tree as deep as a dense layer's; "
    f"{UNSEEN}"
)
FIT_ELEMENTWISE = "fitted: elementwise: 0 or 1 cycle, as 33 synthesised ReLU layers"
RULE_POSITIONS = "rule: one position after the other"
COUNTED_LOGIC = (
    "rule: counts of adders, choices, tables and conversions (conversions: 165 in yosys), all "
    "positions or the elements of one pack at once; the rest " + UNSEEN
)
REGISTERS = (
    "rule: registers of results, none where nothing is pipelined, twice what goes in and out at "
    "most; 33 synthesised ReLU layers had 0 to 34 bits an element where 24 go in and out"
)
SAME_FF = "rule: as C synthesis reports it; logic synthesis may remove most of them"
NO_URAM = "rule: nothing is bound to URAM"
NO_MEMORY = "rule: no memory"
WIRES = "rule: wires only"
WITH_PRODUCT = "rule: bias and rounding are part of the layer before them"
EVERY_CYCLE = "rule: pipelined: a sample every cycle"


@dataclass(frozen=True, slots=True)
class Cost:
    """Figures of one instruction, or of one layer."""

    csynth: Resources
    synthesis: Resources
    latency: Figure
    interval: Figure


def adder_tree_depth(n_in: int) -> int:
    """Levels of a binary tree of adders over n_in products and a bias."""
    return n_in.bit_length()


def rule(value: float, unit: str, source: str) -> Figure:
    """A number that is certain, as far as its rule is."""
    return Figure(ceil(value), unit, "rule", source)


def bounded(bounds: Bounds, unit: str, source: str, provenance: Provenance = "rule") -> Figure:
    """A number with bounds; without, where all three are the same."""
    likely, least, most = (ceil(each) for each in bounds)
    if likely == least == most:
        return Figure(likely, unit, provenance, source)
    return Figure(likely, unit, provenance, source, least, most)


def unknown(unit: str, why: str = NO_RULE) -> Figure:
    """No number."""
    return Figure(None, unit, "unknown", why)


def resources(**known: Figure) -> Resources:
    """With nothing of what is not given."""
    none = {
        "lut": rule(0, "LUT", WIRES),
        "ff": rule(0, "FF", WIRES),
        "dsp": rule(0, "DSP", NO_MULTIPLIER),
        "bram18": rule(0, "BRAM18", NO_MEMORY),
        "uram": rule(0, "URAM", NO_URAM),
    }
    return Resources(**(none | known))


NOTHING = resources()
NOW = rule(0, "cycles", WIRES)
ALWAYS = rule(1, "cycles", EVERY_CYCLE)
FREE = Cost(NOTHING, NOTHING, NOW, ALWAYS)
UNKNOWN_RESOURCES = Resources(*(unknown(unit) for unit in RESOURCES.values()))


def tree_cycles(inputs: int, positions: int, reuse: int, source: str) -> Figure:
    """One position every `reuse` cycles; the last one starts after all others, and goes through an
    adder tree."""
    constant, below, above = DENSE_CYCLES
    cycles = adder_tree_depth(inputs) + constant + (positions - 1) * reuse
    return Figure(cycles, "cycles", "fitted", source, max(cycles + below, 1), cycles + above)


def fewer(ff: Figure) -> Figure:
    if not ff.value:
        return ff
    return bounded((ff.value, 0, ff.bounds[1]), "FF", SAME_FF)


def logic_cost(
    each: Logic, elements: int, latency: Figure, interval: Figure, more: int = 0
) -> Cost:
    """Of an operation that makes so many elements at once.

    more: bits that are registered besides its results.
    """
    whole = each.times(elements)
    times = fit("logic_lut")
    ff = bounded((whole.bits + more, 0, 2 * (whole.bits + more) + 2 * whole.bits), "FF", REGISTERS)
    dsp = bounded(whole.dsp, "DSP", COUNTED_LOGIC)
    blocks = bounded(whole.bram18, "BRAM18", COUNTED_LOGIC)
    factor = times.terms["luts"]
    source = f"{COUNTED_LOGIC}; in C synthesis {factor} times as many, {times.source}"
    lut = bounded(scaled(whole.lut, factor), "LUT", source)
    csynth = resources(lut=lut, ff=ff, dsp=dsp, bram18=blocks)
    after = replace(csynth, lut=bounded(whole.lut, "LUT", COUNTED_LOGIC), ff=fewer(ff))
    return Cost(csynth, after, latency, interval)


def added(figures: Sequence[Figure], unit: str, source: str = "") -> Figure:
    """The sum; unknown where all that matter are, else the known part as a lower bound.

    source: instead of those of the figures.
    """
    value: float = 0
    low: float = 0
    high: float = 0
    missing: Figure | None = None
    counting: list[Figure] = []
    ranged = fitted = False
    for figure in figures:
        if figure.value is None:
            missing = missing or figure
            continue
        least, most = figure.bounds
        value, low, high = value + figure.value, low + least, high + most
        ranged |= figure.low is not None
        fitted |= figure.provenance == "fitted"
        if figure.value or most:
            counting.append(figure)
    if missing is not None and not counting:
        return missing
    if not source:
        if missing is None and len(counting) == 1:
            return counting[0]
        sources = [f.source for f in counting] or [f.source for f in figures]
        if missing is not None:
            sources.append("unknown: parts of a layer have no rule, so these are at least")
        source = SEPARATOR.join(dict.fromkeys(sources))
    kind: Provenance = "fitted" if fitted else "rule"
    return Figure(value, unit, kind, source, low if ranged else None, high if ranged else None)


def elements_of(shape: Sequence[int], stream: bool) -> int:
    """How many elements are made at once: all, or those of one pack."""
    return prod(shape[-1:] if stream else shape)
