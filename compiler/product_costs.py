"""What products with a constant matrix take: hls4ml's strategies, and kernels of ours."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor

import numpy as np

from fxloom import features
from fxloom.adder_graph import adder_cost
from fxloom.allotment import Allotment
from fxloom.coefficients import fit
from fxloom.costs import (
    CSYNTH,
    DENSE_CYCLES,
    EVERY_CYCLE,
    NO_MULTIPLIER,
    RULE_1_KERNEL,
    RULE_POSITIONS,
    UNSEEN,
    Cost,
    bounded,
    fewer,
    resources,
    rule,
    tree_cycles,
)
from fxloom.kernels import KERNELS
from fxloom.logic import multiplier_dsp, rom_blocks, scaled
from fxloom.matrices import KERNEL, Matrix
from fxloom.multipliers import (
    HARD_DIGITS,
    are_powers,
    csd_digits,
    hard_multiplications,
    latency_dsp,
    multiplier_limit,
)
from fxloom.report import SEPARATOR, Figure, Resources

EXACT_WEIGHTS = 20_000
"""Matrices up to here are unrolled into adders; of larger ones C synthesis's figure is halved."""

RULE_1 = (
    "rule: dense, Latency: distinct hard weights per input, capped by the multiplier limit; exact "
    f"on 57 of 57 8-bit dense layers of others ({CSYNTH})"
)
RULE_1_CONV = (
    "rule: convolution, Latency: the dense rule on the kernel as a matrix, one pixel at a time, as "
    f"hls4ml's partition loop has it; {UNSEEN} of a convolution"
)
RULE_NARROW = (
    f"rule: Latency: none for weights of at most {features.NO_DSP_BITS} bits, as of 36 dense "
    "layers with 2 to 6 bits"
)
RULE_2 = (
    f"rule: dense, Resource: inputs x outputs / reuse from 8-bit weights up, 0 up to 4 ({CSYNTH})"
)
RULE_SPARSE = (
    "rule: sparse kernel: a multiplier a lane, (weights that are not 0) / reuse lanes, DSP as of "
    f"dense Resource layers; {UNSEEN}"
)
SPARSE_CYCLES = (
    "rule: sparse kernel: its reuse factor in cycles, for every position and at the beginning of "
    "every row of windows",
    "unknown: cycles in which the pipeline of a sparse kernel fills, so these are at least",
)
FIT_LATENCY = (
    f"fitted: Latency strategy: depth of the adder tree + {DENSE_CYCLES[0]}, fitted on 9 dense "
    "layers at 5 ns; it knows nothing of the clock, and of 27 layers on a U250 all took 0 or 1"
)
FIT_CONV = "fitted: one pixel per cycle, then as a dense layer of the Latency strategy"
RULE_REUSE = (
    "fitted: Latency strategy, reuse > 1: about min(reuse, hard weights / limit + 4), within 4"
)
RULE_RESOURCE = "rule: Resource strategy: reuse + 1 (830 of 871 syntheses; the others reuse)"
RULE_INTERVAL = "rule: Resource strategy: an inference every reuse cycles (871 of 871 syntheses)"
RULE_ONCE = (
    "rule: Resource strategy, reuse 1: done in the cycle where at most 32 inputs meet weights of "
    "at most 4 bits (an inference a cycle), else 1 more (one every 2 cycles); 34 of 35 syntheses"
)
RULE_CONSTANTS = (
    "rule: Resource strategy, reuse 1: constants, as with the Latency strategy; 27 of 27 syntheses "
    "of both have the same DSP blocks"
)
RULE_ROM = (
    "rule: a memory of reuse words with all weights of a step, in blocks of 18 Kb, and one block "
    "for the outputs' numbers from 512 words up; exact on 744 of 871 syntheses, one off on 125"
)
ADDERS_BOUNDS = (0.7, 1.5)
"""Around what yosys makes of the adder graph: a vendor's tool makes another graph of hls4ml's C++.
A judgement, for no such project was synthesised."""

ADDERS = (
    "adders of the unrolled product (adder graph), those of products in DSP blocks left out; from "
    f"{ADDERS_BOUNDS[0]} to {ADDERS_BOUNDS[1]} of it, for the vendor's tool makes another graph of "
    "hls4ml's C++"
)
HALF = (
    "fitted: half of C synthesis's LUTs: 245,466 became 123,948 in the one design known (CNN for "
    "SVHN); a third to all of them"
)
LEAST_DATA = 8
"""Bits of inputs in the syntheses that the rules were found on, the fit of LUTs with Latency on
no others; some rules on 16 as well."""
NARROW_DATA = (
    f"none where a tool builds products of inputs below {LEAST_DATA} bits from LUTs; {UNSEEN}"
)
WIDE_PRODUCTS = f"several for each product, beyond 27 x 18 bits; {UNSEEN}"
WIDE_DATA_LUTS = 1.5
WIDE_DATA = (
    "wider inputs than in any of them: 15 layers on a U250 with 16 bits, and 8 bits of weights or "
    "more, took 7 to 46% more"
)
SAME_DSP = "as C synthesis binds them"
LATENCY_RULES = {"Dense": RULE_1, KERNEL: RULE_1_KERNEL}


@dataclass(frozen=True, slots=True)
class Product:
    """A product with a constant matrix.

    given: what it was allotted; lo, hi: interval of an input's mantissas;
    accumulator: bits of a sum; lines: LUTs that hold rows of a streamed image, None where all of
    it is there at once; weight: name of the constant.
    """

    matrix: Matrix
    given: Allotment
    lo: int
    hi: int
    accumulator: int
    lines: int | None = None
    weight: str = ""

    @property
    def data(self) -> int:
        """Bits of an input."""
        return self.matrix.data

    @property
    def macs(self) -> int:
        """What is multiplied for one sample; by a kernel of lanes padding as well."""
        if self.given.is_dense:
            return self.matrix.macs
        return self.matrix.positions * self.given.products


def product_cost(product: Product) -> Cost:
    """Of the kernel and strategy that the product was allotted."""
    if not product.given.is_dense:
        return KERNELS[product.given.kernel].cost(product)
    if product.given.strategy == "latency":
        return _latency(product)
    return _once(product) if product.given.reuse == 1 else _resource(product)


def _dsp_of_constants(product: Product, hard: int, zeros: int) -> Figure:
    """Distinct hard weights of every input (rule 1)."""
    matrix = product.matrix
    if matrix.width <= features.NO_DSP_BITS:
        return rule(0, "DSP", RULE_NARROW)
    count = latency_dsp(hard, matrix.weights.size, zeros, product.given.reuse)
    return _blocks(product, count, LATENCY_RULES.get(matrix.kind, RULE_1_CONV))


def _blocks(product: Product, count: int, source: str) -> Figure:
    """DSP blocks of so many multipliers: one each, where inputs and weights are as in the layers
    that the rules were found on."""
    data, width = product.data, product.matrix.width
    if data < LEAST_DATA and count:
        return Figure(count, "DSP", "rule", f"{source}; {NARROW_DATA}", 0, count)
    each = max(int(multiplier_dsp(data, width)[0]), 1)
    if each == 1 or not count:
        return rule(count, "DSP", source)
    return Figure(each * count, "DSP", "rule", f"{source}; {WIDE_PRODUCTS}", count, each * count)


def _latency(product: Product) -> Cost:
    matrix, reuse = product.matrix, product.given.reuse
    hard = hard_multiplications(matrix.weights)
    zeros = int(matrix.weights.size - np.count_nonzero(matrix.weights))
    dsp = _dsp_of_constants(product, hard, zeros)
    in_luts = hard if not dsp.value else 0
    note = "" if matrix.kind == "Dense" else "; for one position of the dense layers it was made on"
    nonzero = matrix.weights.size - zeros
    sums = product.accumulator
    lut = fit("latency_lut").figure(
        features.latency_lut(nonzero, sums, in_luts, product.data * matrix.width), "LUT", note
    )
    if product.data > LEAST_DATA and lut.value is not None:
        most = ceil(WIDE_DATA_LUTS * lut.value)
        lut = replace(lut, high=most, source=f"{lut.source}; {WIDE_DATA}")
    ff = fit("latency_ff").figure(
        features.latency_ff(nonzero, matrix.shape[1], sums, reuse), "FF", note
    )
    if nonzero <= matrix.shape[1] and ff.high is not None:  # no sums, but maybe a pipeline
        ff = replace(ff, high=max(ff.high, matrix.shape[1] * sums))
    lut = _with_windows(product, lut)
    source = FIT_LATENCY if matrix.kind == "Dense" else FIT_CONV
    latency = tree_cycles(matrix.shape[0], matrix.positions, reuse, source)
    interval = rule(
        matrix.positions * reuse, "cycles", EVERY_CYCLE if matrix.positions == 1 else RULE_POSITIONS
    )
    if reuse > 1:
        limit = max(multiplier_limit(matrix.weights.size, zeros, reuse), 1)
        cycles = min(reuse, ceil(hard / limit) + 4) * matrix.positions
        busy = cycles - 1
        interval = Figure(cycles, "cycles", "fitted", RULE_REUSE, max(cycles - 4, 1), cycles + 4)
        if latency.value is not None and busy > latency.value:
            latency = Figure(busy, "cycles", "fitted", RULE_REUSE, max(busy - 4, 0), busy + 4)
    csynth = resources(lut=lut, ff=ff, dsp=dsp)
    return Cost(csynth, _after_synthesis(product, csynth), latency, interval)


def _with_windows(product: Product, lut: Figure) -> Figure:
    """And what chooses the window of a convolution, among all positions, or in line buffers."""
    matrix = product.matrix
    if matrix.positions == 1 or lut.value is None or lut.low is None or lut.high is None:
        return lut
    bits = matrix.inputs * product.data
    if product.lines is None:  # one of four in a LUT and a half
        likely, most = bits * matrix.positions / 4, float(bits * matrix.positions)
    else:
        likely, most = product.lines + bits / 2, 2.0 * product.lines + 2 * bits
    return replace(
        lut,
        value=lut.value + ceil(likely),
        high=lut.high + ceil(most),
        source=f"{lut.source}; and a choice of each window, {UNSEEN}",
    )


def _after_synthesis(product: Product, csynth: Resources) -> Resources:
    """LUTs from the adders that there are; blocks as C synthesis bound them."""
    matrix = product.matrix
    lut = _half(csynth.lut)
    summed = matrix.rows == 0 or matrix.kind == "Conv2D"  # each output over all inputs
    if product.given.reuse == 1 and matrix.weights.size <= EXACT_WEIGHTS and summed:
        lut = _with_windows(product, _adder_luts(product, bool(csynth.dsp.value)))
    return replace(csynth, lut=lut, ff=fewer(csynth.ff), dsp=replace(csynth.dsp, source=SAME_DSP))


def _adder_luts(product: Product, in_dsp: bool) -> Figure:
    """Of the unrolled product; hard products come out of DSP blocks where in_dsp."""
    matrix, lo, hi = product.matrix.weights.astype(np.int64), product.lo, product.hi
    if in_dsp:
        matrix, ends = _behind_multipliers(matrix, lo, hi)
        cost = adder_cost(matrix, *ends)
    else:
        cost = adder_cost(matrix, lo, hi)
    found = fit("adder_graph").figure({"luts": cost.luts}, "LUT", f"; {ADDERS}")
    low, high = ADDERS_BOUNDS
    return replace(found, low=floor(cost.luts * low), high=ceil(cost.luts * high))


def _behind_multipliers(
    matrix: np.ndarray, lo: int, hi: int
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The matrix that is left when every distinct hard product of an input is an input."""
    hard = csd_digits(matrix) >= HARD_DIGITS
    row, column = np.nonzero(hard)
    keys = np.stack([row, matrix[row, column]])
    distinct, number = np.unique(keys, axis=1, return_inverse=True)
    n_in, n_out = matrix.shape
    rest = np.zeros((n_in + distinct.shape[1], n_out), np.int64)
    rest[:n_in] = np.where(hard, 0, matrix)
    rest[n_in + number.reshape(-1), column] = 1
    ends = np.stack([lo * distinct[1], hi * distinct[1]])
    low = np.concatenate([np.full(n_in, lo), ends.min(0)])
    high = np.concatenate([np.full(n_in, hi), ends.max(0)])
    return rest, (low, high)


def _half(lut: Figure) -> Figure:
    """LUTs that logic synthesis leaves of C synthesis's."""
    if lut.value is None:
        return lut
    least, most = lut.bounds
    return bounded((lut.value / 2, least / 3, most), "LUT", HALF, "fitted")


def _once(product: Product) -> Cost:
    """Resource strategy with reuse 1: hls4ml's loop is unrolled, so that weights are constants."""
    cost = _latency(product)
    matrix = product.matrix
    quick = matrix.shape[0] <= 32 and matrix.width <= 4
    dsp = cost.csynth.dsp
    if dsp.value:
        dsp = replace(dsp, source=RULE_CONSTANTS)
    csynth = replace(cost.csynth, dsp=dsp)
    if matrix.kind != "Dense":
        return replace(cost, csynth=csynth)
    latency = Figure(0 if quick else 1, "cycles", "rule", RULE_ONCE, 0, 1)
    interval = Figure(1 if quick else 2, "cycles", "rule", RULE_ONCE, 1, 2)
    return replace(cost, csynth=csynth, latency=latency, interval=interval)


def _resource(product: Product) -> Cost:
    matrix, reuse = product.matrix, product.given.reuse
    n_in, n_out = matrix.shape
    multipliers = ceil(n_in * n_out / reuse)
    seen = features.is_seen(n_in, n_out, reuse)
    note = "" if seen else f"; this one is none such, so that the interval is wide: {UNSEEN}"
    lut = fit("resource_lut").figure(
        features.resource_lut(n_in, n_out, reuse, product.data, product.accumulator), "LUT", note
    )
    ff = fit("resource_ff").figure(
        features.resource_ff(n_in, n_out, reuse, matrix.width, product.accumulator), "FF", note
    )
    lut, ff = (each if seen else _wider(each) for each in (lut, ff))
    blocks = rom_blocks(reuse, multipliers * matrix.width) + (reuse >= 512)
    csynth = resources(
        lut=_with_windows(product, lut),
        ff=ff,
        dsp=_shared_dsp(product, multipliers, RULE_2),
        bram18=Figure(blocks, "BRAM18", "rule", RULE_ROM, max(blocks - 1, 0), blocks + 1),
    )
    after = replace(csynth, lut=_half(csynth.lut), ff=fewer(ff))
    cycles = matrix.positions * reuse
    if matrix.positions == 1:
        latency = Figure(reuse + 1, "cycles", "rule", RULE_RESOURCE, reuse, reuse + 1)
        return Cost(csynth, after, latency, rule(reuse, "cycles", RULE_INTERVAL))
    latency = Figure(cycles + 1, "cycles", "fitted", RULE_POSITIONS, cycles, 2 * cycles)
    return Cost(csynth, after, latency, rule(cycles, "cycles", RULE_POSITIONS))


def _wider(figure: Figure) -> Figure:
    """An interval for what lies outside of what was fitted."""
    if figure.low is None or figure.high is None:
        return figure
    return replace(figure, low=ceil(figure.low / 2), high=3 * figure.high)


def lane_cost(
    product: Product,
    luts: float,
    registers: float,
    multipliers: int,
    word: int,
    source: str,
    cycles_source: Sequence[str],
    cycles: int = 0,
) -> Cost:
    """Of a kernel of ours that takes `reuse` steps a position, which nobody has synthesised.

    luts, registers: in C synthesis, counted; word: bits that are read from memory in a step;
    cycles: for all positions, where that is more than their steps and a position more for every row
    of windows.
    """
    matrix, given = product.matrix, product.given
    least, most = features.SPARSE_BOUNDS
    csynth = resources(
        lut=bounded(scaled((1, least, most), luts), "LUT", source),
        ff=bounded(scaled((1, 0.3, 3), registers), "FF", source),
        dsp=_shared_dsp(product, multipliers, source),
        bram18=bounded(scaled((1, 0, 1), rom_blocks(given.reuse, word)), "BRAM18", source),
    )
    after = replace(csynth, lut=_half(csynth.lut), ff=fewer(csynth.ff))
    cycles = max(cycles, (matrix.positions + matrix.rows) * given.reuse)
    latency = Figure(cycles, "cycles", "rule", SEPARATOR.join(cycles_source))
    return Cost(csynth, after, latency, rule(cycles, "cycles", cycles_source[0]))


def _shared_dsp(product: Product, multipliers: int, source: str) -> Figure:
    """DSP blocks of multipliers by weights that change from step to step."""
    matrix = product.matrix
    if are_powers(matrix.weights, matrix.width):
        return rule(0, "DSP", NO_MULTIPLIER)
    if matrix.width >= 8:
        return _blocks(product, multipliers, source)
    if matrix.width <= 4:
        return rule(0, "DSP", source)
    return Figure(multipliers, "DSP", "rule", f"{source}; in between unknown", 0, multipliers)
