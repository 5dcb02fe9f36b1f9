"""Estimates of what a program costs on a target, without a vendor's tool.

Rules that reproduced other people's syntheses row by row, a fit where there is no rule, and "?"
where there is neither. An estimate never decides what is computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import NamedTuple

import numpy as np

from fxloom.accumulators import accumulators
from fxloom.allotment import Allotment, choose, require_weights
from fxloom.fixed_point import FixedPoint
from fxloom.matrices import KERNEL, RULED_BACKENDS, Matrix, matrix_of
from fxloom.multipliers import (
    HARD_DIGITS,
    are_powers,
    csd_digits,
    hard_multiplications,
    latency_dsp,
    multiplier_limit,
)
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
from fxloom.report import (
    LEVELS,
    RESOURCES,
    SEPARATOR,
    Figure,
    LayerReport,
    Report,
    Resources,
    Totals,
)
from fxloom.requantize_cost import Luts, conversion_luts
from fxloom.sparse_layout import sparse_bits
from fxloom.target import LayerSettings, Part, Target

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
RULE_SPARSE = (
    "rule: sparse kernel: a multiplier a lane, (weights that are not 0) / reuse lanes, DSP as of "
    "dense Resource layers; not yet compared with a synthesis"
)
SPARSE_CYCLES = (
    "rule: sparse kernel: its reuse factor in cycles, for every position and at the beginning of "
    "every row of windows",
    "unknown: cycles in which the pipeline of a sparse kernel fills, so these are at least",
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

_LATENCY_RULES = {"Dense": RULE_1, KERNEL: RULE_1_KERNEL}

SUM = "sum over the layers"

_WIRING = ("reshape", "transpose", "concat", "shift", "pad", "gather")
_ELEMENTWISE = ("add", "sub", "max", "min", "requantize", "mul", "compare", "select")
_WEIGHTED = (MatMul, Conv, Add, Sub, Mul, Concat, Embedding)
_ACCUMULATING = (MatMul, Conv, Add, Sub, Mul, Pool, ReduceSum)


def adder_tree_depth(n_in: int) -> int:
    """Levels of a binary tree of adders over n_in products and a bias."""
    return n_in.bit_length()


ONE = Figure(1, "cycles", "rule", "rule: pipelined: a sample every cycle")


class _Cost(NamedTuple):
    """Figures of one instruction."""

    dsp: Figure
    latency: Figure
    interval: Figure = ONE


@dataclass(frozen=True, slots=True)
class _Product:
    """A product with a constant matrix, what it was allotted, and the name of its weights."""

    matrix: Matrix
    given: Allotment
    weight: str

    @property
    def sparse_bits(self) -> int:
        matrix, given = self.matrix, self.given
        return sparse_bits(given.lanes, given.reuse, matrix.width, matrix.inputs)

    @property
    def macs(self) -> int:
        """What is multiplied for one sample; by the sparse kernel padding as well."""
        if self.given.is_sparse:
            return self.matrix.positions * self.given.lanes * self.given.reuse
        return self.matrix.macs


_FREE = _Cost(
    Figure(0, "DSP", "rule", NO_MULTIPLIER),
    Figure(0, "cycles", "rule", "rule: bias and rounding are part of the layer before them"),
)


def estimate(program: Program, target: Target) -> Report:
    """Counts, DSP blocks and latency of every layer and of the whole.

    Raises TargetError for a pattern in target.layers that names no layer.
    """
    groups: dict[str, list[Instr]] = {}
    for instr in program.instrs:
        groups.setdefault(instr.origin, []).append(instr)
    target.require_layers(groups)
    require_weights(program, target)
    layers, counted, sums = [], set[str](), accumulators(program)
    for name, instrs in groups.items():
        layer = _layer(program, name, instrs, target, counted, sums)
        if target.backend not in RULED_BACKENDS:
            layer = _without_rules(layer)
        layers.append(layer)
    return Report(
        part=target.device.name,
        clock_ns=target.clock_ns,
        layers=tuple(layers),
        total=_total(layers, target),
        program=program.digest(),
    )


def _without_rules(layer: LayerReport) -> LayerReport:
    """A layer of a backend for which there are no rules."""
    none = Resources(*(Figure(None, u, "unknown", NO_RULE_BACKEND) for u in RESOURCES.values()))
    cycles = Figure(None, "cycles", "unknown", NO_RULE_BACKEND)
    return replace(
        layer,
        csynth=none,
        synthesis=none,
        latency=cycles,
        interval=cycles,
        rounding=None,
        rounding_saved=0,
    )


def _layer(
    program: Program,
    name: str,
    instrs: Sequence[Instr],
    target: Target,
    counted: set[str],
    sums: Mapping[str, FixedPoint],
) -> LayerReport:
    """counted: constants of layers before this one; a shared one counts once. sums: formats of
    accumulators."""
    products = _products(program, name, instrs, target)
    used = dict.fromkeys(arg for instr in instrs for arg in _weights_of(program, instr))
    fresh = [arg for arg in used if arg not in counted]
    constants = [program.constants[arg] for arg in fresh]
    bits = {arg: program.value(arg).size * program.value(arg).type.width for arg in fresh}
    sparse = {p.weight: p.sparse_bits for p in products.values() if p.given.is_sparse}
    counted.update(used)
    looked_up = {i.args[1] for i in instrs if isinstance(i.op, Lookup)} - counted
    tables = [program.constants[arg] for arg in sorted(looked_up)]
    counted.update(looked_up)
    summed = [
        sums.get(i.result.name, i.result.type) for i in instrs if isinstance(i.op, _ACCUMULATING)
    ]
    costs = [
        _FREE
        if products and _belongs_to_matrix(program, instr)
        else _cost(program, instr, products.get(instr.result.name))
        for instr in instrs
    ]
    rounding, saved = _rounding(program, instrs, _repeats(instrs, products, target.io))
    return LayerReport(
        name=name,
        ops=tuple(instr.op.name for instr in instrs),
        shape=instrs[-1].result.shape,
        result=str(instrs[-1].result.type),
        weights=tuple(str(program.value(arg).type) for arg in used),
        accumulator=str(max(summed, key=lambda kind: kind.width)) if summed else None,
        weight_count=sum(constant.value.size for constant in constants),
        nonzero=sum(int(np.count_nonzero(constant.data)) for constant in constants),
        stored_bits=sum(sparse.get(arg, count) for arg, count in bits.items())
        + sum(c.value.size * c.value.type.width for c in tables),
        macs=sum(_macs(program, instr, products.get(instr.result.name)) for instr in instrs),
        csynth=_resources([cost.dsp for cost in costs]),
        synthesis=_resources([cost.dsp for cost in costs]),
        latency=_sum([cost.latency for cost in costs], "cycles"),
        interval=_largest([cost.interval for cost in costs]),
        rounding=rounding,
        rounding_saved=saved,
        kernel=_reason(list(products.values()), target.resolve(name)),
    )


def _products(
    program: Program, name: str, instrs: Sequence[Instr], target: Target
) -> dict[str, _Product]:
    """Products with constant matrices, by the names of their results."""
    wanted = target.resolve(name)
    found = {}
    for instr in instrs:
        matrix = matrix_of(program, instr, target)
        if matrix is not None:
            given = choose(matrix, wanted, target.io)
            found[instr.result.name] = _Product(matrix, given, instr.args[1])
    return found


def _reason(products: Sequence[_Product], wanted: LayerSettings) -> str:
    """Why the first product has its kernel, where that is worth a line: somebody asked for a
    kernel, it is sparse, or most weights are zero and it is not."""
    if not products:
        return ""
    matrix, given = products[0].matrix, products[0].given
    pruned = 2 * int(np.count_nonzero(matrix.weights)) < matrix.weights.size
    return given.why if given.is_sparse or pruned or wanted.kernel != "auto" else ""


def _repeats(instrs: Sequence[Instr], products: Mapping[str, _Product], io: str) -> int:
    """At how many positions, one after the other, the same logic rounds the results of a layer.

    hls4ml's layers and the sparse kernel do one position at a time; our other kernels all of them
    at once, or one pack.
    """
    multiplied = any(isinstance(instr.op, Mul) for instr in instrs)  # between product and rounding
    first = next(iter(products.values()), None)
    if (
        first is not None
        and not multiplied
        and (first.matrix.kind != KERNEL or first.given.is_sparse)
    ):
        return first.matrix.positions
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


def _macs(program: Program, instr: Instr, product: _Product | None) -> int:
    if product is not None:
        return product.macs
    if isinstance(instr.op, MatMul):
        return instr.result.size * program.value(instr.args[0]).shape[-1]
    is_product = isinstance(instr.op, Mul) and not _is_wiring(program, instr)
    return instr.result.size if is_product else 0


def _cost(program: Program, instr: Instr, product: _Product | None) -> _Cost:
    if product is not None:
        matrix, given = product.matrix, product.given
        if given.is_sparse:
            return _sparse(matrix, given)
        if given.strategy == "resource":
            return _resource(matrix, given.reuse)
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


def _latency(matrix: Matrix, reuse: int) -> _Cost:
    zeros = int(matrix.weights.size - np.count_nonzero(matrix.weights))
    hard = hard_multiplications(matrix.weights)
    count = latency_dsp(hard, matrix.weights.size, zeros, reuse)
    dsp = Figure(count, "DSP", "rule", _LATENCY_RULES.get(matrix.kind, RULE_1_CONV))
    source = FIT_LATENCY if matrix.kind == "Dense" else FIT_CONV
    latency = _tree(matrix.shape[0], matrix.positions, reuse, source)
    if reuse > 1:
        limit = max(multiplier_limit(matrix.weights.size, zeros, reuse), 1)
        interval = min(reuse, ceil(hard / limit) + 4)
        busy = interval * matrix.positions - 1
        if latency.value is not None and busy > latency.value:
            latency = Figure(busy, "cycles", "fitted", RULE_REUSE, max(busy - 4, 0), busy + 4)
    return _Cost(dsp, latency)


def _resource(matrix: Matrix, reuse: int) -> _Cost:
    dsp = _shared_dsp(matrix, matrix.weights.size // reuse, RULE_2)
    if reuse == 1 or matrix.kind != "Dense":
        return _Cost(dsp, Figure(None, "cycles", "unknown", NO_RULE))
    return _Cost(dsp, Figure(reuse + 1, "cycles", "rule", RULE_RESOURCE, reuse, reuse + 1))


def _sparse(matrix: Matrix, given: Allotment) -> _Cost:
    dsp = _shared_dsp(matrix, given.lanes, RULE_SPARSE)
    cycles = (matrix.positions + matrix.rows) * given.reuse
    return _Cost(dsp, Figure(cycles, "cycles", "rule", SEPARATOR.join(SPARSE_CYCLES)))


def _shared_dsp(matrix: Matrix, multipliers: int, rule: str) -> Figure:
    """DSP blocks of multipliers by weights that change from step to step."""
    if are_powers(matrix.weights, matrix.width):
        return _none("DSP")
    if matrix.width >= 8:
        return Figure(multipliers, "DSP", "rule", rule)
    if matrix.width <= 4:
        return Figure(0, "DSP", "rule", rule)
    return Figure(multipliers, "DSP", "rule", f"{rule}; in between unknown", 0, multipliers)


def _resources(blocks: Sequence[Figure]) -> Resources:
    unknown = {key: Figure(None, unit, "unknown", NO_RULE) for key, unit in RESOURCES.items()}
    return Resources(**(unknown | {"dsp": _sum(blocks, "DSP")}))


def _largest(figures: Sequence[Figure]) -> Figure:
    """Of what runs side by side, the slowest; at least that, where others are unknown."""
    known = [f for f in figures if f.value is not None]
    return max(known, key=lambda f: f.value or 0) if known else figures[0]


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
    sums = {
        level: Resources(
            *(
                _grand_total({x.name: getattr(getattr(x, level), key) for x in layers}, unit)
                for key, unit in RESOURCES.items()
            )
        )
        for level in LEVELS
    }
    rounding = [layer.rounding for layer in layers if layer.rounding is not None]
    return Totals(
        weight_count=sum(layer.weight_count for layer in layers),
        nonzero=sum(layer.nonzero for layer in layers),
        stored_bits=sum(layer.stored_bits for layer in layers),
        macs=sum(layer.macs for layer in layers),
        csynth=sums["csynth"],
        synthesis=sums["synthesis"],
        csynth_percent=_shares(sums["csynth"], target.device),
        synthesis_percent=_shares(sums["synthesis"], target.device),
        latency=_grand_total({layer.name: layer.latency for layer in layers}, "cycles"),
        interval=_largest([layer.interval for layer in layers]),
        rounding=replace(_sum(rounding, "LUT"), source=SUM) if rounding else None,
    )


def _shares(taken: Resources, part: Part) -> Resources:
    """Percent of what the part has; of what it has none, as many times 100% as are taken."""
    return Resources(*(_share(figure, getattr(part, key), part) for key, figure in taken.items()))


def _share(figure: Figure, available: int, part: Part) -> Figure:
    of = max(available, 1)
    value, low, high = (
        None if each is None else round(100 * each / of, 1)
        for each in (figure.value, figure.low, figure.high)
    )
    source = f"of {available} {figure.unit} of {part.name}"
    return Figure(value, "%", figure.provenance, source, low, high)
