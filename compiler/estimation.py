"""Estimates of what a program costs on a target, without a vendor's tool.

Rules that reproduced other people's syntheses row by row, a fit where there is no rule, and "?"
where there is neither. An estimate never decides what is computed.
"""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Literal, NamedTuple

import numpy as np

from fxloom.accumulators import accumulators
from fxloom.choosing import choose, require_kernels
from fxloom.costs import (
    ALWAYS,
    ELEMENTWISE_CYCLES,
    FIT_ELEMENTWISE,
    FIT_POOL,
    FREE,
    NOW,
    RULE_1_KERNEL,
    RULE_POSITIONS,
    UNKNOWN_RESOURCES,
    WITH_PRODUCT,
    Cost,
    added,
    elements_of,
    logic_cost,
    rule,
    tree_cycles,
    unknown,
)
from fxloom.errors import TargetError
from fxloom.fixed_point import FixedPoint
from fxloom.logic import Logic, buffer_bits, in_dsp, logic
from fxloom.matrices import KERNEL, RULED_BACKENDS, matrix_of
from fxloom.ops import (
    Add,
    ArgMax,
    Concat,
    Conv,
    Embedding,
    Lookup,
    MatMul,
    Mul,
    Pool,
    ReduceMax,
    ReduceSum,
    Requantize,
    Sub,
)
from fxloom.product_costs import Product, product_cost
from fxloom.program import Instr, Program, Value
from fxloom.report import (
    LEVELS,
    RESOURCES,
    Figure,
    LayerReport,
    Report,
    Resources,
    Totals,
    nanoseconds,
)
from fxloom.requantize_cost import Luts, conversion_luts
from fxloom.stream_schedule import SCHEDULED, StreamSchedule, has_schedule
from fxloom.target import LayerSettings, Part, Target

NO_RULE_BACKEND = "unknown: the rules are of projects for Vitis and Vivado"
FIT_COMPUTED = (
    "fitted: product of computed values: a row a cycle, then as a dense layer of the Latency "
    "strategy; not yet compared with a synthesis"
)
RULE_PIPELINES = (
    "rule: tables, as sigmoid layers synthesised by hls4ml's developers (2 to 4 cycles); shifts by "
    "computed numbers and divisions not yet compared with a synthesis"
)
CONVERSIONS = (
    "fitted: rounding is an adder of the bits that are kept, saturation a LUT for every bit of the "
    "result; on 165 conversions in yosys (logic synthesis), all within the interval; a layer's at "
    "one position, a kernel's for all values or one pack"
)
SUM = "sum over the layers"
NO_CYCLES = rule(0, "cycles", WITH_PRODUCT)

_WIRING = ("reshape", "transpose", "concat", "shift", "pad", "gather")
_ELEMENTWISE = ("add", "sub", "max", "min", "requantize", "mul", "compare", "select")
_WEIGHTED = (MatMul, Conv, Add, Sub, Mul, Concat, Embedding)
_IN_ORDER = (*_ELEMENTWISE, "shift", "lookup", "concat", "pad", "divide", "normalise", "shift_like")
"""Operations that a stream passes pack by pack."""
_PIPELINES = {
    "lookup": (2, 1, 4),
    "embedding": (2, 1, 4),
    "normalise": (1, 0, 3),
    "shift_like": (1, 0, 3),
    "divide": (4, 1, 40),
}
"""Cycles of pipelines: likely, least, most."""

_ACCUMULATING = (MatMul, Conv, Add, Sub, Mul, Pool, ReduceSum)


def estimate(program: Program, target: Target) -> Report:
    """Resources at two levels, latency and interval of every layer and of the whole.

    What does not depend on the target is kept as long as the program is, so that many targets for
    one program cost little. Raises TargetError for a pattern in target.layers that names no layer,
    and for a part that the target's backend is not for.
    """
    key = id(program)
    kept = _KEPT.get(key)
    if kept is None:
        kept = _KEPT[key] = Estimator(program)
        weakref.finalize(program, _KEPT.pop, key, None)
    return kept(target)


class Estimator:
    """Estimates of one program for any number of targets."""

    def __init__(self, program: Program) -> None:
        # Estimators are kept by their programs: a reference to it would keep both for ever.
        self._program = weakref.ref(program)
        self._digest = program.digest()
        self._sums = accumulators(program)
        self._groups: dict[str, list[Instr]] = {}
        for instr in program.instrs:
            self._groups.setdefault(instr.origin, []).append(instr)
        self._fresh = _first_uses(program, self._groups)
        self._layers: dict[tuple[str, LayerSettings, str, str], LayerReport] = {}

    def __call__(self, target: Target) -> Report:
        program = self._program()
        assert program is not None  # whoever calls has it
        device = target.device
        if target.backend in RULED_BACKENDS and device.vendor != "AMD":
            raise TargetError(
                f"part: {target.backend} is for parts of AMD, {device.name} is made by "
                f"{device.vendor}, whose resources are others"
            )
        target.require_layers(self._groups)
        require_kernels(program, target)
        layers = [self._layer(program, name, target) for name in self._groups]
        total = _total(layers, target)
        if has_schedule(target):
            schedule = StreamSchedule(program, target)
            layers = [_passed(layer, schedule) for layer in layers]
            total = replace(total, latency=schedule.latency, interval=schedule.interval)
        return Report(
            part=target.device.name,
            clock_ns=target.clock_ns,
            layers=tuple(layers),
            total=_timed(total, target),
            program=self._digest,
        )

    def _layer(self, program: Program, name: str, target: Target) -> LayerReport:
        key = name, target.resolve(name), target.io, target.backend
        found = self._layers.get(key)
        if found is None:
            instrs = self._groups[name]
            found = _layer(program, name, instrs, target, self._fresh[name], self._sums)
            if target.backend not in RULED_BACKENDS:
                found = _without_rules(found)
            self._layers[key] = found
        return found


_KEPT: dict[int, Estimator] = {}


class _Fresh(NamedTuple):
    """Constants that a layer is the first to use: weights, and tables."""

    weights: frozenset[str]
    tables: frozenset[str]


def _first_uses(program: Program, groups: Mapping[str, Sequence[Instr]]) -> dict[str, _Fresh]:
    """By layer. A constant that several share is counted once."""
    counted, found = set[str](), {}
    for name, instrs in groups.items():
        used = set(_weights_of(program, instrs)) - counted
        counted |= used
        looked_up = {i.args[1] for i in instrs if isinstance(i.op, Lookup)} - counted
        counted |= looked_up
        found[name] = _Fresh(frozenset(used), frozenset(looked_up))
    return found


def _without_rules(layer: LayerReport) -> LayerReport:
    """A layer of a backend for which there are no rules."""
    none = Resources(*(unknown(u, NO_RULE_BACKEND) for u in RESOURCES.values()))
    cycles = unknown("cycles", NO_RULE_BACKEND)
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
    fresh: _Fresh,
    sums: Mapping[str, FixedPoint],
) -> LayerReport:
    """fresh: what no layer before this one has; sums: formats of accumulators."""
    products = _products(program, name, instrs, target, sums)
    used = dict.fromkeys(_weights_of(program, instrs))
    constants = {arg: program.constants[arg] for arg in used if arg in fresh.weights}
    tables = [program.constants[arg].value for arg in fresh.tables]
    kept = {p.weight: p.given.bits for p in products.values() if not p.given.is_dense}
    summed = [
        sums.get(i.result.name, i.result.type) for i in instrs if isinstance(i.op, _ACCUMULATING)
    ]
    repeats = _repeats(instrs, products, target.io)
    stream = target.io == "stream"
    costs = [
        _in_passing(program, instr, repeats, stream)
        if products and _belongs_to_matrix(program, instr)
        else _cost(program, instr, products.get(instr.result.name), stream)
        for instr in instrs
    ]
    rounding, saved = _rounding(program, instrs, repeats)
    return LayerReport(
        name=name,
        ops=tuple(instr.op.name for instr in instrs),
        shape=instrs[-1].result.shape,
        result=str(instrs[-1].result.type),
        weights=tuple(str(program.value(arg).type) for arg in used),
        accumulator=str(max(summed, key=lambda kind: kind.width)) if summed else None,
        weight_count=sum(c.value.size for c in constants.values()),
        nonzero=sum(int(np.count_nonzero(c.data)) for c in constants.values()),
        stored_bits=sum(
            kept.get(arg, c.value.size * c.value.type.width) for arg, c in constants.items()
        )
        + sum(table.size * table.type.width for table in tables),
        macs=sum(_macs(program, instr, products.get(instr.result.name)) for instr in instrs),
        csynth=_side_by_side([cost.csynth for cost in costs]),
        synthesis=_side_by_side([cost.synthesis for cost in costs]),
        latency=added([cost.latency for cost in costs], "cycles"),
        interval=_slowest([cost.interval for cost in costs]),
        rounding=rounding,
        rounding_saved=saved,
        kernel=_reason(list(products.values()), target.resolve(name)),
    )


def _products(
    program: Program,
    name: str,
    instrs: Sequence[Instr],
    target: Target,
    sums: Mapping[str, FixedPoint],
) -> dict[str, Product]:
    """Products with constant matrices, by the names of their results."""
    wanted = target.resolve(name)
    found = {}
    for instr in instrs:
        matrix = matrix_of(program, instr, target)
        if matrix is not None:
            x = program.value(instr.args[0])
            found[instr.result.name] = Product(
                matrix,
                choose(matrix, wanted, target.io),
                x.lo,
                x.hi,
                sums.get(instr.result.name, instr.result.type).width,
                _line_luts(program, instr, x) if target.io == "stream" else None,
                instr.args[1],
            )
    return found


def _line_luts(program: Program, instr: Instr, x: Value) -> int:
    """Of the rows of a streamed image that are held until the last row of a window has come."""
    if not isinstance(instr.op, Conv):
        return 0
    rows = (program.value(instr.args[1]).shape[0] - 1) * instr.op.dilation[0]
    return rows * buffer_bits(x.shape[1], x.shape[2] * x.type.width)


def _reason(products: Sequence[Product], wanted: LayerSettings) -> str:
    """Why the first product has its kernel, where that is worth a line: somebody asked for a
    kernel, it is one of ours, or most weights are zero and it is dense."""
    if not products:
        return ""
    matrix, given = products[0].matrix, products[0].given
    pruned = 2 * int(np.count_nonzero(matrix.weights)) < matrix.weights.size
    return given.why if not given.is_dense or pruned or wanted.kernel != "auto" else ""


def _repeats(instrs: Sequence[Instr], products: Mapping[str, Product], io: str) -> int:
    """At how many positions, one after the other, the same logic rounds the results of a layer.

    hls4ml's layers and kernels with lanes do one position at a time; our other kernels all of them
    at once, or one pack.
    """
    multiplied = any(isinstance(instr.op, Mul) for instr in instrs)  # between product and rounding
    first = next(iter(products.values()), None)
    if (
        first is not None
        and not multiplied
        and (first.matrix.kind != KERNEL or not first.given.is_dense)
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


def _weights_of(program: Program, instrs: Sequence[Instr]) -> Iterator[str]:
    """The constants of a layer that are weights, not numbers such as the zero of a ReLU; of a layer
    with one output its bias is such a number as well."""
    products = {i.result.name for i in instrs if isinstance(i.op, MatMul | Conv)}
    for instr in instrs:
        if not isinstance(instr.op, _WEIGHTED) or _is_wiring(program, instr):
            continue
        adds_bias = isinstance(instr.op, Add) and not products.isdisjoint(instr.args)
        for arg in instr.args:
            if arg in program.constants and (
                adds_bias or isinstance(instr.op, MatMul | Conv) or program.value(arg).size > 1
            ):
                yield arg


def _is_wiring(program: Program, instr: Instr) -> bool:
    """Whether an instruction multiplies by constant powers of two, such as binary points."""
    if not isinstance(instr.op, Mul):
        return False
    data = [program.constants[arg].data for arg in instr.args if arg in program.constants]
    return any(bool(((x > 0) & (x & (x - 1) == 0)).all()) for x in data)


def _macs(program: Program, instr: Instr, product: Product | None) -> int:
    if product is not None:
        return product.macs
    if isinstance(instr.op, MatMul):
        return instr.result.size * program.value(instr.args[0]).shape[-1]
    is_product = isinstance(instr.op, Mul) and not _is_wiring(program, instr)
    return instr.result.size if is_product else 0


def _in_passing(program: Program, instr: Instr, repeats: int, stream: bool) -> Cost:
    """Of a bias or a conversion in the layer of a product: once for all positions."""
    found = logic(program, instr)
    if found is None:
        return FREE
    elements = max(instr.result.size // repeats, 1)
    cost = logic_cost(found._replace(bits=0), elements, NO_CYCLES, ALWAYS)
    if isinstance(instr.op, Requantize):
        return cost
    # C synthesis's fit was made on layers with biases.
    return replace(cost, csynth=FREE.csynth)


def _cost(program: Program, instr: Instr, product: Product | None, stream: bool) -> Cost:
    if product is not None:
        return product_cost(product)
    if instr.op.name in _WIRING:
        held = _held_bits(program, instr) if stream else 0
        packs = prod(instr.result.shape[:-1]) if stream else 1
        return logic_cost(Logic(), 0, NOW, rule(packs, "cycles", RULE_POSITIONS), held)
    found = logic(program, instr)
    latency, interval = _cycles(program, instr, stream)
    if found is None:
        return Cost(UNKNOWN_RESOURCES, UNKNOWN_RESOURCES, latency, interval)
    one_by_one = stream or isinstance(instr.op, MatMul | Pool)  # rows, windows
    elements = elements_of(instr.result.shape, one_by_one)
    held = _held_bits(program, instr) if stream else 0
    cost = logic_cost(found, elements, latency, interval, held)
    if isinstance(instr.op, Mul):
        constants = [program.constants[arg] for arg in instr.args if arg in program.constants]
        if constants:
            multiplied = np.broadcast_to(in_dsp(constants[0]), instr.result.shape)
            cost = _in_dsp(cost, int(multiplied.reshape(-1, elements).any(0).sum()))
    return cost


def _in_dsp(cost: Cost, count: int) -> Cost:
    """With so many products by constants in DSP blocks."""
    hard = rule(count, "DSP", RULE_1_KERNEL)
    return replace(
        cost, csynth=replace(cost.csynth, dsp=hard), synthesis=replace(cost.synthesis, dsp=hard)
    )


def _held_bits(program: Program, instr: Instr) -> int:
    """Of what a kernel keeps of its streams before it can begin: all of it, where it reads out of
    order, or rows of an image."""
    if instr.op.name in _IN_ORDER:
        return 0
    values = [program.value(arg) for arg in instr.args if arg not in program.constants]
    if isinstance(instr.op, Pool):
        (x,) = values
        rows = min(instr.op.kernel[0], x.shape[0])
        return rows * prod(x.shape[1:]) * x.type.width
    return sum(value.size * value.type.width for value in values)


def _cycles(program: Program, instr: Instr, stream: bool) -> tuple[Figure, Figure]:
    """Latency and interval."""
    packs = prod(instr.result.shape[:-1]) if stream else 1
    interval = rule(packs, "cycles", RULE_POSITIONS) if packs > 1 else ALWAYS
    if instr.op.name in _ELEMENTWISE:
        low, high = ELEMENTWISE_CYCLES
        last = packs - 1
        return Figure(high + last, "cycles", "fitted", FIT_ELEMENTWISE, low + last, high + last), (
            interval
        )
    if isinstance(instr.op, Pool):
        positions = prod(instr.result.shape[:2])
        latency = tree_cycles(prod(instr.op.kernel), positions, 1, FIT_POOL)
        return latency, rule(positions, "cycles", RULE_POSITIONS) if positions > 1 else ALWAYS
    if isinstance(instr.op, ReduceSum | ReduceMax | ArgMax):
        terms = program.value(instr.args[0]).size // instr.result.size
        return tree_cycles(terms, 1, 1, FIT_POOL), interval
    if isinstance(instr.op, MatMul):
        shape = program.value(instr.args[0]).shape
        rows = prod(instr.result.shape[:-1])
        interval = rule(rows, "cycles", RULE_POSITIONS) if rows > 1 else ALWAYS
        return tree_cycles(shape[-1], rows, 1, FIT_COMPUTED), interval
    bounds = _PIPELINES.get(instr.op.name)
    if bounds is not None:
        likely, least, most = (each + packs - 1 for each in bounds)
        return Figure(likely, "cycles", "rule", RULE_PIPELINES, least, most), interval
    return unknown("cycles"), interval


def _side_by_side(each: Sequence[Resources]) -> Resources:
    """What all of them take together."""
    return Resources(
        *(added([getattr(r, key) for r in each], unit) for key, unit in RESOURCES.items())
    )


def _slowest(figures: Sequence[Figure]) -> Figure:
    """Of what runs side by side; at least that, where others are unknown."""
    known = [f for f in figures if f.value is not None]
    if not known:
        return next(iter(figures), ALWAYS)
    slowest = max(known, key=lambda f: f.value or 0)
    low, high = (max(_end(f, end) for f in known) for end in ("low", "high"))
    if low == high == slowest.value:
        return slowest
    return replace(slowest, low=low, high=high)


def _end(figure: Figure, end: Literal["low", "high"]) -> float:
    """Of the interval; the value itself, where that is certain."""
    found: float | None = getattr(figure, end)
    return (figure.value or 0) if found is None else found


def _grand_total(figures: Mapping[str, Figure], unit: str) -> Figure:
    open_ended = [name for name, f in figures.items() if f.value is None or "unknown:" in f.source]
    without = f"; at least, for {', '.join(open_ended)} is not all known" if open_ended else ""
    return added(list(figures.values()), unit, f"{SUM}{without}")


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
        interval=_slowest([layer.interval for layer in layers]),
        rounding=added(rounding, "LUT", SUM) if rounding else None,
    )


def _passed(layer: LayerReport, schedule: StreamSchedule) -> LayerReport:
    """With the cycles in which the first sample is in the layer's processes, and the steps of the
    one that has most."""
    places = [n for n, each in enumerate(schedule.layers) if each.origin == layer.name]
    if not places:
        return layer
    found = [[passages[n] for n in places] for passages in schedule.bounds]
    waited = [max(each.end for each in own) - min(each.begin for each in own) for own in found]
    busy = [max(each.busy for each in own) for own in found]
    return replace(layer, latency=_one_of(waited), interval=_one_of(busy))


def _one_of(cycles: Sequence[int]) -> Figure:
    """The first of them, and an interval where others differ."""
    low, high = min(cycles), max(cycles)
    if low == high:
        return Figure(cycles[0], "cycles", "fitted", SCHEDULED)
    return Figure(cycles[0], "cycles", "fitted", SCHEDULED, low, high)


def _timed(total: Totals, target: Target) -> Totals:
    """With nanoseconds beside the cycles: last, so that they are of the same cycles."""
    latency, interval = (nanoseconds(f, target.clock_ns) for f in (total.latency, total.interval))
    return replace(total, latency_ns=latency, interval_ns=interval)


def _shares(taken: Resources, part: Part) -> Resources:
    """Percent of what the part has; of what it has none, as many times 100% as are taken."""
    return Resources(*(_share(figure, getattr(part, key), part) for key, figure in taken.items()))


def _share(figure: Figure, available: int, part: Part) -> Figure:
    of = max(available, 1)
    value, low, high = (
        None if each is None else round(100 * each / of, 1)
        for each in (figure.value, figure.low, figure.high)
    )
    source = f"of {available:,} {figure.unit} of {part.name}"
    return Figure(value, "%", figure.provenance, source, low, high)
