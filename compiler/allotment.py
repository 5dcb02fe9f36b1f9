"""What a layer gets of the strategy, the reuse factor and the kernel that a target asks for.

The backend builds what is allotted here and the estimate counts it, so that they cannot disagree.
"""

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import ceil
from typing import Literal

import numpy as np

from fxloom import features
from fxloom.coefficients import fit
from fxloom.errors import TargetError
from fxloom.matrices import Matrix, matrix_of
from fxloom.multipliers import hard_multiplications, latency_dsp
from fxloom.program import Program
from fxloom.settings import unmatched
from fxloom.sparse_layout import lanes_for, sparse_bits
from fxloom.target import LayerSettings, Strategy, Target

LUTS_OF_DSP = 55
"""What a DSP block is worth in LUTs (Sun et al. 2024, arXiv 2405.00645)."""


@dataclass(frozen=True, slots=True)
class Allotment:
    """What a layer gets of what was asked for.

    note: why strategy or reuse factor are something else, empty where they are not; lanes:
    multipliers of the sparse kernel, 0 of a dense one; why: what speaks for the kernel.
    """

    strategy: Strategy
    reuse: int
    note: str = ""
    kernel: Literal["dense", "sparse"] = "dense"
    lanes: int = 0
    why: str = field(default="", compare=False)

    @property
    def is_sparse(self) -> bool:
        return self.kernel == "sparse"


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


def choose(matrix: Matrix, wanted: LayerSettings, io: str) -> Allotment:
    """What a product with a constant matrix gets: the dense kernel, or the sparse one where that
    has fewer multipliers and no more bits in memory, or as many and fewer, and is not certain to
    cost more LUTs than that is worth.

    With the Latency strategy, and without reuse, the dense one: it multiplies by constants, and
    products with zero are not there. Whatever was asked for by name is done.
    """
    dense = allot(matrix.kind, *matrix.shape, wanted, io)
    if wanted.kernel == "dense":
        return replace(dense, why="dense: asked for")
    if wanted.kernel == "auto" and wanted.strategy == "latency":
        return replace(dense, why="dense: the Latency strategy drops products with zero anyway")
    if wanted.kernel == "auto" and dense.reuse == 1:
        return replace(dense, why="dense: without reuse products with zero are dropped anyway")
    nonzero, size = int(np.count_nonzero(matrix.weights)), matrix.weights.size
    lanes, reuse = lanes_for(nonzero, wanted.reuse)
    bits = sparse_bits(lanes, reuse, matrix.width, matrix.inputs)
    dense_bits = size * matrix.width
    dense_multipliers = _multipliers(matrix, dense, size - nonzero)
    costs = (
        f"{nonzero:,} of {size:,} weights, {_count(lanes)} at reuse {reuse:,} "
        f"({bits:,} bits with indices) instead of {dense_multipliers:,} at reuse {dense.reuse:,} "
        f"({dense_bits:,} bits)"
    )
    cheaper = (lanes, bits) != (dense_multipliers, dense_bits) and (
        lanes <= dense_multipliers and bits <= dense_bits
    )
    if wanted.kernel == "auto" and not cheaper:
        return replace(dense, why=f"dense: sparse would be {costs}")
    dearer = _luts_more(matrix, dense, nonzero, dense_multipliers - lanes, lanes)
    if wanted.kernel == "auto" and dearer > 0:
        why = f"dense: sparse would take {dearer:,} LUT more than the DSP blocks it saves are worth"
        return replace(dense, why=f"{why}: {costs}")
    note = ""
    if reuse != wanted.reuse:
        note = f"reuse {wanted.reuse} asked for, {reuse} is enough for {_count(lanes)}"
    asked = "asked for, " if wanted.kernel == "sparse" else ""
    return Allotment("resource", reuse, note, "sparse", lanes, f"sparse: {asked}{costs}")


def _luts_more(matrix: Matrix, dense: Allotment, nonzero: int, saved: int, lanes: int) -> int:
    """LUTs by which the sparse kernel is dearer, at the least that the estimate has for it and
    beyond what the DSP blocks of the multipliers that it saves are worth."""
    (n_in, n_out), data = matrix.shape, matrix.data
    sums = data + matrix.width + (n_in - 1).bit_length()
    if dense.strategy == "latency":
        luts = fit("latency_lut").value(features.latency_lut(nonzero, sums, 0, 0))
    else:
        terms = features.resource_lut(n_in, n_out, dense.reuse, data, sums)
        luts = fit("resource_lut").value(terms)
    worth = LUTS_OF_DSP * saved if matrix.width > features.NO_DSP_BITS else 0
    least = features.SPARSE_BOUNDS[0] * features.sparse_lut(lanes, matrix.inputs, n_out, data, sums)
    return ceil(least - luts - worth)


def _count(multipliers: int) -> str:
    return f"{multipliers:,} multiplier{'s' if multipliers != 1 else ''}"


def _multipliers(matrix: Matrix, dense: Allotment, zeros: int) -> int:
    """How many products the dense kernel forms at a time."""
    if dense.strategy == "resource":
        return matrix.weights.size // dense.reuse
    hard = hard_multiplications(matrix.weights)
    return latency_dsp(hard, matrix.weights.size, zeros, dense.reuse)


def require_weights(program: Program, target: Target) -> None:
    """Raise TargetError for patterns that ask for the sparse kernel where no layer has weights."""
    choosing = [name for name, table in target.layers.items() if table.get("kernel") == "sparse"]
    if not choosing:
        return
    with_weights = {i.origin for i in program.instrs if matrix_of(program, i, target) is not None}
    ops: dict[str, list[str]] = {}
    for instr in program.instrs:
        ops.setdefault(instr.origin, []).append(instr.op.name)
    problems = []
    for pattern in unmatched(choosing, with_weights):
        found = [f"{name} ({', '.join(ops[name])})" for name in ops if fnmatchcase(name, pattern)]
        known = ", ".join(sorted(with_weights)) or "none"
        problems.append(
            f'layers: {pattern}: kernel = "sparse" requires a linear layer or a convolution with '
            f"constant weights, got {', '.join(found) or 'no layer'}. Layers with weights: {known}"
        )
    if problems:
        raise TargetError("\n".join(problems))
