"""Estimates of what a program costs on a target, without a vendor's tool.

Rules that reproduced other people's syntheses row by row, a fit where there is no rule, and "?"
where there is neither. An estimate never decides what is computed.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import NamedTuple

import numpy as np

from fxloom.accumulators import accumulators
from fxloom.fixed_point import FixedPoint, IntArray
from fxloom.ops import (
    Add,
    Concat,
    Conv,
    Divide,
    Embedding,
    Lookup,
    MatMul,
    Mul,
    Pool,
    ReduceSum,
    Requantize,
    Sub,
)
from fxloom.program import Instr, Program
from fxloom.report import SEPARATOR, Figure, LayerReport, Report, Totals
from fxloom.requantize_cost import Luts, conversion_luts
from fxloom.target import LayerSettings, Strategy, Target

HARD_DIGITS = 3
"""A constant with fewer non-zero signed digits becomes one addition or none, not a multiplier."""

DENSE_CYCLES = (1, -2, 1)
"""Cycles beyond the depth of the adder tree, and the interval around it: benchmarks/fit_latency."""

ELEMENTWISE_CYCLES = (0, 1)
"""Fewest and most cycles of 33 synthesised ReLU layers."""

_CSYNTH = "C synthesis, before logic synthesis"
RULE_1 = (
    "rule: dense, Latency: distinct hard weights per input, capped by the multiplier limit; exact "
    f"on 57 of 57 8-bit dense layers of others ({_CSYNTH})"
)
RULE_1_CONV = (
    "rule: convolution, Latency: the dense rule on the kernel as a matrix, one pixel at a time, as "
    "hls4ml's partition loop has it; not yet compared with a synthesis of a convolution"
)
RULE_1_KERNEL = (
    "rule: kernels of fxloom's own: the dense rule on their constants, one position at a time; not "
    "yet compared with a synthesis"
)
RULE_2 = (
    f"rule: dense, Resource: inputs x outputs / reuse from 8-bit weights up, 0 up to 4 ({_CSYNTH})"
)
NO_MULTIPLIER = "rule: no multiplication"
NO_RULE = "unknown: no rule is known yet for these operations"
NO_RULE_BACKEND = "unknown: the rules are of projects for Vitis and Vivado"
FIT_LATENCY = (
    f"fitted: Latency strategy: depth of the adder tree + {DENSE_CYCLES[0]}, fitted on 9 dense "
    "layers; rough, and it knows nothing of the clock"
)
FIT_CONV = "fitted: one pixel per cycle, then as a dense layer of the Latency strategy"
FIT_POOL = (
    "fitted: pools and sums: one window per cycle, then an adder tree as deep as a dense layer's; "
    "not yet compared with a synthesis"
)
CONVERSIONS = (
    "fitted: rounding is an adder of the bits that are kept, saturation a LUT for every bit of the "
    "result; on 165 conversions in yosys (logic synthesis), all within the interval; a layer's at "
    "one position, a kernel's for all values or one pack"
)
FIT_ELEMENTWISE = "fitted: elementwise: 0 or 1 cycle, as 33 synthesised ReLU layers"
RULE_REUSE = (
    "fitted: Latency strategy, reuse > 1: about min(reuse, hard weights / limit + 4), within 4"
)
RULE_RESOURCE = "rule: Resource strategy: reuse + 1 (830 of 871 syntheses; the others reuse)"
WIRES = "rule: wires only"

SUM = "sum over the layers"

RULED_BACKENDS = ("Vitis", "Vivado")

KERNEL = "FxloomKernel"
"""The class of layers that are not hls4ml's own."""

MOST_SHIFTS = 16
"""Bits of a mantissa up to which choosing one of its shifts is taken for less than a product."""

_WIRING = ("reshape", "transpose", "concat", "shift", "pad", "gather")
_ELEMENTWISE = ("add", "sub", "max", "min", "requantize", "mul", "compare", "select")
_WEIGHTED = (MatMul, Conv, Add, Sub, Mul, Concat, Embedding)
_ACCUMULATING = (MatMul, Conv, Add, Sub, Mul, Pool, ReduceSum)


def csd_digits(weights: IntArray) -> IntArray:
    """Non-zero digits of the canonical signed digit (non-adjacent) form of every weight.

    NAF(n) has a digit wherever n and 3n differ in binary. Source: Reitwiesner 1960. weights: any
    shape, magnitudes below 2**61.
    """
    magnitude = np.abs(weights.astype(np.int64))
    differing = magnitude ^ (3 * magnitude)
    octets = np.ascontiguousarray(differing)[..., None].view(np.uint8)
    counts: IntArray = np.unpackbits(octets, axis=-1).sum(axis=-1, dtype=np.int64)
    return counts


def are_powers(mantissas: IntArray, width: int) -> bool:
    """Whether no multiplier is needed: all mantissas are zero or a power of two, with a sign."""
    if width > MOST_SHIFTS:
        return False
    flat = mantissas.reshape(-1)
    for start in range(0, flat.size, 1 << 20):
        magnitude = np.abs(flat[start : start + (1 << 20)].astype(np.int32))
        if np.any(magnitude & (magnitude - 1)):
            return False
    return True


def hard_multiplications(matrix: IntArray) -> int:
    """Over the rows (inputs) of a weight matrix, the number of distinct weights that need a
    multiplier: w and -w are two, a weight twice in a row is one.
    """
    lo, hi = int(matrix.min()), int(matrix.max())
    count = _hard_by_presence if hi - lo < matrix.shape[1] * 4 else _hard_by_order
    rows = max(1, (1 << 20) // max(matrix.shape[1], 1))
    return sum(
        count(matrix[start : start + rows].astype(np.int64), lo, hi)
        for start in range(0, matrix.shape[0], rows)
    )


def _hard_by_presence(rows: IntArray, lo: int, hi: int) -> int:
    """For few possible weights: mark those that occur in a row."""
    present = np.zeros((rows.shape[0], hi - lo + 1), dtype=bool)
    present[np.arange(rows.shape[0])[:, None], rows - lo] = True
    hard = csd_digits(np.arange(lo, hi + 1)) >= HARD_DIGITS
    return int(present[:, hard].sum())


def _hard_by_order(rows: IntArray, lo: int, hi: int) -> int:
    """For many possible weights: equal ones become neighbours."""
    ordered = np.sort(rows, axis=1)
    first = np.ones(ordered.shape, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return int((first & (csd_digits(ordered) >= HARD_DIGITS)).sum())


def multiplier_limit(size: int, zeros: int, reuse: int) -> int:
    """How many multipliers hls4ml allows a dense layer with this many weights."""
    return ceil(size / reuse) - zeros // reuse


def latency_dsp(hard: int, size: int, zeros: int, reuse: int) -> int:
    """DSP blocks of a dense layer with the Latency strategy (rule 1)."""
    return min(hard, multiplier_limit(size, zeros, reuse))


@dataclass(frozen=True, slots=True)
class Allotment:
    """What a layer gets of the strategy and reuse factor asked for; note: why it is something else,
    empty where it is not."""

    strategy: Strategy
    reuse: int
    note: str = ""


def allot(kind: str, n_in: int, n_out: int, wanted: LayerSettings, io: str) -> Allotment:
    """Strategy and reuse factor of a layer with a constant n_in x n_out matrix.

    kind: hls4ml's class, anything else being a kernel of fxloom. Used by the backend and by the
    estimate, so that they cannot disagree.
    """
    if wanted.strategy == "latency" or kind not in ("Dense", "Conv2D"):
        # One multiplier for all weights: more would only make the layer wait.
        reuse = min(wanted.reuse, n_in * n_out)
        notes = []
        if wanted.strategy != "latency":
            notes.append(f"resource asked for, latency given: there is no Resource {kind}")
        if reuse != wanted.reuse:
            notes.append(f"reuse {wanted.reuse} asked for, {reuse} is the largest")
        return Allotment("latency", reuse, "; ".join(notes))
    # hls4ml's Resource convolution for io_parallel runs beyond its window buffer with more.
    most = n_in if kind == "Conv2D" and io == "parallel" else None
    reuse = closest_reuse(n_in, n_out, wanted.reuse, most)
    note = "" if reuse == wanted.reuse else f"reuse {wanted.reuse} asked for, {reuse} is nearest"
    return Allotment("resource", reuse, note)


def closest_reuse(n_in: int, n_out: int, wanted: int, most: int | None = None) -> int:
    """The reuse factor that hls4ml makes of a wanted one for the Resource strategy.

    most: the largest that is possible.
    """
    valid = [reuse for reuse in _valid_reuse(n_in, n_out) if most is None or reuse <= most]
    position = bisect_left(valid, wanted)
    if position == 0:
        return valid[0]
    if position == len(valid):
        return valid[-1]
    before, after = valid[position - 1], valid[position]
    return after if after - wanted < wanted - before else before


def _valid_reuse(n_in: int, n_out: int) -> list[int]:
    """Divisors of n_in * n_out that are multiples of n_in, or below it and keep whole outputs.

    As in hls4ml 1.3, backends/fpga/fpga_backend.py, _validate_reuse_factor.
    """
    size = n_in * n_out
    small = [n for n in range(1, int(size**0.5) + 1) if size % n == 0]
    divisors = sorted({*small, *(size // n for n in small)})
    return [
        reuse
        for reuse in divisors
        if (reuse >= n_in and reuse % n_in == 0) or (reuse < n_in and size // reuse % n_out == 0)
    ]


def adder_tree_depth(n_in: int) -> int:
    """Levels of a binary tree of adders over n_in products and a bias."""
    return n_in.bit_length()


class _Cost(NamedTuple):
    """Figures of one instruction."""

    dsp: Figure
    latency: Figure


_FREE = _Cost(
    Figure(0, "DSP", "rule", NO_MULTIPLIER),
    Figure(0, "cycles", "rule", "rule: bias and rounding are part of the layer before them"),
)


@dataclass(frozen=True, slots=True)
class _Matrix:
    """The constant matrix of an instruction, and at how many positions it is applied."""

    weights: IntArray
    positions: int
    kind: str
    source: str

    @property
    def shape(self) -> tuple[int, int]:
        n_in, n_out = self.weights.shape
        return n_in, n_out

    @property
    def is_dense(self) -> bool:
        return self.kind == "Dense"

    @property
    def macs(self) -> int:
        return self.positions * self.weights.size


def estimate(program: Program, target: Target) -> Report:
    """Counts, DSP blocks and latency of every layer and of the whole.

    Raises TargetError for a pattern in target.layers that names no layer.
    """
    groups: dict[str, list[Instr]] = {}
    for instr in program.instrs:
        groups.setdefault(instr.origin, []).append(instr)
    target.require_layers(groups)
    layers, counted, sums = [], set[str](), accumulators(program)
    for name, instrs in groups.items():
        layer = _layer(program, name, instrs, target.resolve(name), target.io, counted, sums)
        if target.backend not in RULED_BACKENDS:
            dsp, latency = (Figure(None, u, "unknown", NO_RULE_BACKEND) for u in ("DSP", "cycles"))
            layer = replace(layer, dsp=dsp, latency=latency, rounding=None, rounding_saved=0)
        layers.append(layer)
    return Report(
        part=target.device.name,
        clock_ns=target.clock_ns,
        layers=tuple(layers),
        total=_total(layers, target),
        program=program.digest(),
    )


def _layer(
    program: Program,
    name: str,
    instrs: Sequence[Instr],
    settings: LayerSettings,
    io: str,
    counted: set[str],
    sums: Mapping[str, FixedPoint],
) -> LayerReport:
    """counted: constants of layers before this one; a shared one counts once. sums: formats of
    accumulators."""
    used = dict.fromkeys(arg for instr in instrs for arg in _weights_of(program, instr))
    constants = [program.constants[arg] for arg in used if arg not in counted]
    counted.update(used)
    looked_up = {i.args[1] for i in instrs if isinstance(i.op, Lookup)} - counted
    tables = [program.constants[arg] for arg in sorted(looked_up)]
    counted.update(looked_up)
    summed = [
        sums.get(i.result.name, i.result.type) for i in instrs if isinstance(i.op, _ACCUMULATING)
    ]
    has_matrix = any(_matrix(program, instr) is not None for instr in instrs)
    costs = [
        _FREE
        if has_matrix and _belongs_to_matrix(program, instr)
        else _cost(program, instr, settings, io)
        for instr in instrs
    ]
    rounding, saved = _rounding(program, instrs, _repeats(program, instrs, io))
    return LayerReport(
        name=name,
        ops=tuple(instr.op.name for instr in instrs),
        shape=instrs[-1].result.shape,
        result=str(instrs[-1].result.type),
        weights=tuple(str(program.value(arg).type) for arg in used),
        accumulator=str(max(summed, key=lambda kind: kind.width)) if summed else None,
        weight_count=sum(constant.value.size for constant in constants),
        nonzero=sum(int(np.count_nonzero(constant.data)) for constant in constants),
        stored_bits=sum(c.value.size * c.value.type.width for c in [*constants, *tables]),
        macs=sum(_macs(program, instr) for instr in instrs),
        dsp=_sum([cost.dsp for cost in costs], "DSP"),
        latency=_sum([cost.latency for cost in costs], "cycles"),
        rounding=rounding,
        rounding_saved=saved,
    )


def _repeats(program: Program, instrs: Sequence[Instr], io: str) -> int:
    """At how many positions, one after the other, the same logic rounds the results of a layer.

    hls4ml's layers do one position at a time; our kernels all of them at once, or one pack.
    """
    matrices = [m for m in (_matrix(program, instr) for instr in instrs) if m is not None]
    multiplied = any(isinstance(instr.op, Mul) for instr in instrs)  # between product and rounding
    if matrices and matrices[0].kind != KERNEL and not multiplied:
        return matrices[0].positions
    return prod(instrs[-1].result.shape[:-1]) if io == "stream" else 1


def _rounding(
    program: Program, instrs: Sequence[Instr], positions: int
) -> tuple[Figure | None, int]:
    """LUTs of what is rounded and saturated at one of the positions, None where nothing is; and
    how many it would have besides, if formats alone said what cannot overflow."""
    found: list[Luts] = []
    saved = 0
    for instr in instrs:
        if not isinstance(instr.op, Requantize):
            continue
        count = max(instr.result.size // positions, 1)
        source = program.value(instr.args[0]).type
        op = instr.op.without_idle_overflow(program.operand(instr.args[0]))
        parts = conversion_luts(source, op.to, op.rounding, op.overflow)
        declared = conversion_luts(source, op.to, op.rounding, instr.op.overflow)
        found += [Luts(*(count * n for n in part)) for part in parts]
        saved += count * sum(b.likely - a.likely for a, b in zip(parts, declared, strict=True))
    if not found:
        return None, 0
    likely, least, most = (sum(each) for each in zip(*found, strict=True))
    return Figure(likely, "LUT", "fitted", CONVERSIONS, least, most), saved


def _belongs_to_matrix(program: Program, instr: Instr) -> bool:
    """Whether hls4ml's layer does it in passing: the bias in the adder tree, rounding in a cast."""
    is_bias = isinstance(instr.op, Add) and any(a in program.constants for a in instr.args)
    return is_bias or isinstance(instr.op, Requantize)


def _weights_of(program: Program, instr: Instr) -> list[str]:
    """The constants of an instruction that are weights, not numbers such as the zero of a ReLU."""
    if not isinstance(instr.op, _WEIGHTED):
        return []
    constants = [arg for arg in instr.args if arg in program.constants]
    if _is_wiring(program, instr):
        return []
    is_matrix = isinstance(instr.op, MatMul | Conv)
    return [arg for arg in constants if is_matrix or program.value(arg).size > 1]


def _is_wiring(program: Program, instr: Instr) -> bool:
    """Whether an instruction multiplies by constant powers of two, such as binary points."""
    if not isinstance(instr.op, Mul):
        return False
    data = [program.constants[arg].data for arg in instr.args if arg in program.constants]
    return any(bool(((x > 0) & (x & (x - 1) == 0)).all()) for x in data)


def _matrix(program: Program, instr: Instr) -> _Matrix | None:
    if not isinstance(instr.op, MatMul | Conv) or instr.args[1] not in program.constants:
        return None
    weight = program.constants[instr.args[1]].data
    if isinstance(instr.op, MatMul):
        positions = prod(instr.result.shape[:-1])
        if positions > 1:
            return _Matrix(weight, positions, KERNEL, RULE_1_KERNEL)
        return _Matrix(weight, 1, "Dense", RULE_1)
    positions, groups = prod(instr.result.shape[:2]), instr.op.groups
    depthwise = groups > 1 and weight.shape[2] == 1 and weight.shape[3] == groups
    # One row an input of the unrolled product: kernel position and input channel.
    rows = weight.reshape(*weight.shape[:3], groups, weight.shape[3] // groups)
    matrix = rows.transpose(0, 1, 3, 2, 4).reshape(-1, weight.shape[3] // groups)
    if instr.op.dilation != (1, 1) or not (groups == 1 or depthwise):
        return _Matrix(matrix, positions, KERNEL, RULE_1_KERNEL)
    return _Matrix(matrix, positions, "DepthwiseConv2D" if depthwise else "Conv2D", RULE_1_CONV)


def _macs(program: Program, instr: Instr) -> int:
    matrix = _matrix(program, instr)
    if matrix is not None:
        return matrix.macs
    if isinstance(instr.op, MatMul):
        return instr.result.size * program.value(instr.args[0]).shape[-1]
    is_product = isinstance(instr.op, Mul) and not _is_wiring(program, instr)
    return instr.result.size if is_product else 0


def _cost(program: Program, instr: Instr, settings: LayerSettings, io: str) -> _Cost:
    matrix = _matrix(program, instr)
    if matrix is not None:
        width = program.value(instr.args[1]).type.width
        given = allot(matrix.kind, *matrix.shape, settings, io)
        if given.strategy == "resource":
            return _resource(matrix, width, given.reuse)
        return _latency(matrix, given.reuse)
    name = instr.op.name
    if name in _WIRING:
        return _Cost(_none("DSP"), Figure(0, "cycles", "rule", WIRES))
    dsp = _none("DSP")
    if isinstance(instr.op, Mul):
        constant = [program.constants[arg] for arg in instr.args if arg in program.constants]
        dsp = Figure(None, "DSP", "unknown", NO_RULE)
        if constant:
            spread = np.broadcast_to(constant[0].data, instr.result.shape)
            hard = int((csd_digits(spread) >= HARD_DIGITS).sum())
            dsp = Figure(hard, "DSP", "rule", RULE_1_KERNEL)
    elif isinstance(instr.op, Divide | MatMul):
        dsp = Figure(None, "DSP", "unknown", NO_RULE)
    if name in _ELEMENTWISE:
        low, high = ELEMENTWISE_CYCLES
        return _Cost(dsp, Figure(high, "cycles", "fitted", FIT_ELEMENTWISE, low, high))
    if isinstance(instr.op, Pool):
        return _Cost(dsp, _tree(prod(instr.op.kernel), prod(instr.result.shape[:2]), 1, FIT_POOL))
    if isinstance(instr.op, ReduceSum):
        added = program.value(instr.args[0]).size // instr.result.size
        return _Cost(dsp, _tree(added, 1, 1, FIT_POOL))
    return _Cost(dsp, Figure(None, "cycles", "unknown", NO_RULE))


def _tree(inputs: int, positions: int, reuse: int, source: str) -> Figure:
    """One position a cycle; the last one starts positions - 1 cycles after the first."""
    constant, below, above = DENSE_CYCLES
    cycles = adder_tree_depth(inputs) + constant + (positions - 1) * reuse
    return Figure(cycles, "cycles", "fitted", source, max(cycles + below, 1), cycles + above)


def _latency(matrix: _Matrix, reuse: int) -> _Cost:
    zeros = int(matrix.weights.size - np.count_nonzero(matrix.weights))
    hard = hard_multiplications(matrix.weights)
    dsp = Figure(latency_dsp(hard, matrix.weights.size, zeros, reuse), "DSP", "rule", matrix.source)
    source = FIT_LATENCY if matrix.is_dense else FIT_CONV
    latency = _tree(matrix.shape[0], matrix.positions, reuse, source)
    if reuse > 1:
        limit = max(multiplier_limit(matrix.weights.size, zeros, reuse), 1)
        interval = min(reuse, ceil(hard / limit) + 4)
        busy = interval * matrix.positions - 1
        if latency.value is not None and busy > latency.value:
            latency = Figure(busy, "cycles", "fitted", RULE_REUSE, max(busy - 4, 0), busy + 4)
    return _Cost(dsp, latency)


def _resource(matrix: _Matrix, width: int, reuse: int) -> _Cost:
    most = matrix.weights.size // reuse
    if are_powers(matrix.weights, width):
        dsp = _none("DSP")
    elif width >= 8:
        dsp = Figure(most, "DSP", "rule", RULE_2)
    elif width <= 4:
        dsp = Figure(0, "DSP", "rule", RULE_2)
    else:
        dsp = Figure(most, "DSP", "rule", f"{RULE_2}; in between unknown", 0, most)
    if reuse == 1 or not matrix.is_dense:
        return _Cost(dsp, Figure(None, "cycles", "unknown", NO_RULE))
    return _Cost(dsp, Figure(reuse + 1, "cycles", "rule", RULE_RESOURCE, reuse, reuse + 1))


def _none(unit: str) -> Figure:
    return Figure(0, unit, "rule", NO_MULTIPLIER)


def _sum(figures: Sequence[Figure], unit: str) -> Figure:
    """The sum; unknown where all that matter are, else the known part as a lower bound."""
    known = [f for f in figures if f.value is not None]
    unknown = len(known) < len(figures)
    counting = [f for f in known if f.value or f.high]
    if unknown and not counting:
        return next(f for f in figures if f.value is None)
    value = sum(f.value or 0 for f in known)
    low = sum((f.value if f.low is None else f.low) or 0 for f in known)
    high = sum((f.value if f.high is None else f.high) or 0 for f in known)
    ranged = any(f.low is not None for f in known)
    provenance = "fitted" if any(f.provenance == "fitted" for f in known) else "rule"
    sources = list(dict.fromkeys(f.source for f in counting or known))
    source = SEPARATOR.join(sources)
    if unknown:
        source = SEPARATOR.join(
            [*sources, "unknown: parts of a layer have no rule, so these are at least"]
        )
    first = Figure(value, unit, "fitted" if provenance == "fitted" else "rule", source)
    return replace(first, low=low, high=high) if ranged else first


def _grand_total(figures: Mapping[str, Figure], unit: str) -> Figure:
    open_ended = [name for name, f in figures.items() if f.value is None or "unknown:" in f.source]
    without = f"; at least, for {', '.join(open_ended)} is not all known" if open_ended else ""
    return replace(_sum(list(figures.values()), unit), source=f"{SUM}{without}")


def _total(layers: Sequence[LayerReport], target: Target) -> Totals:
    dsp = _grand_total({layer.name: layer.dsp for layer in layers}, "DSP")
    latency = _grand_total({layer.name: layer.latency for layer in layers}, "cycles")
    device = target.device
    rounding = [layer.rounding for layer in layers if layer.rounding is not None]
    percent = None if dsp.value is None else round(100 * dsp.value / device.dsp, 1)
    return Totals(
        weight_count=sum(layer.weight_count for layer in layers),
        nonzero=sum(layer.nonzero for layer in layers),
        stored_bits=sum(layer.stored_bits for layer in layers),
        macs=sum(layer.macs for layer in layers),
        dsp=dsp,
        dsp_percent=Figure(
            percent, "%", dsp.provenance, f"of {device.dsp} DSP blocks of {device.name}"
        ),
        latency=latency,
        rounding=replace(_sum(rounding, "LUT"), source=SUM) if rounding else None,
    )
