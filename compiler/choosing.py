"""Which kernel a product with a constant matrix gets.

The backend builds what is chosen here and the estimate counts it, so that they cannot disagree.
"""

from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from math import ceil

import numpy as np

from fxloom import features
from fxloom.allotment import Allotment, allot
from fxloom.coefficients import fit
from fxloom.errors import TargetError
from fxloom.kernels import KERNELS, Declined, Offer
from fxloom.logic import LUT_ROM_BITS
from fxloom.matrices import Matrix, matrix_of
from fxloom.multipliers import hard_multiplications, latency_dsp
from fxloom.program import Program
from fxloom.settings import unmatched
from fxloom.target import LayerSettings, Target


def choose(matrix: Matrix, wanted: LayerSettings, io: str) -> Allotment:
    """What a product with a constant matrix gets: the dense kernel, or another one where that
    has fewer multipliers and no more bits in memory, or as many and fewer (or bits that are worth
    a few more), and is not certain to cost more LUTs than that is worth; of several the one that
    saves most LUTs.

    Whatever was asked for by name is done. Raises TargetError where that is impossible.
    """
    dense = allot(matrix.kind, *matrix.shape, wanted, io)
    if wanted.kernel == "dense":
        return replace(dense, why="dense: asked for")
    if wanted.kernel != "auto":
        offer = KERNELS[wanted.kernel].offer(matrix, wanted)
        if isinstance(offer, Declined):
            raise TargetError(
                f'kernel = "{wanted.kernel}" requires {offer.required}, got {offer.got}'
            )
        return _taken(wanted.kernel, offer, f"asked for, {_compared(matrix, offer, dense)}")
    reasons, found = [], []
    for name, kernel in KERNELS.items():
        reason = kernel.dense_is_better(matrix, wanted, dense)
        if reason != "":
            reasons += [reason] if reason else []
            continue
        offer = kernel.offer(matrix, wanted)
        if isinstance(offer, Declined):
            continue
        costs = _compared(matrix, offer, dense)
        if not _is_cheaper(matrix, offer, dense):
            reasons.append(f"{name} would be {costs}")
        elif (dearer := _luts_more(matrix, offer, dense)) > 0:
            reasons.append(
                f"{name} would take {dearer:,} LUT more than the DSP blocks it saves are worth: "
                f"{costs}"
            )
        else:
            found.append((dearer, offer.bits, _taken(name, offer, costs)))
    if found:
        return min(found, key=lambda each: each[:2])[-1]
    return replace(dense, why=f"dense: {'; '.join(dict.fromkeys(reasons))}")


def _taken(name: str, offer: Offer, costs: str) -> Allotment:
    return Allotment(
        "resource",
        offer.reuse,
        offer.note,
        name,
        offer.lanes,
        offer.bits,
        offer.products,
        offer.form,
        f"{name}: {costs}",
    )


def _compared(matrix: Matrix, offer: Offer, dense: Allotment) -> str:
    """What a kernel has, and the dense one."""
    return (
        f"{offer.what} instead of {dense_multipliers(matrix, dense):,} at reuse {dense.reuse:,} "
        f"({matrix.weights.size * matrix.width:,} bits)"
    )


def _is_cheaper(matrix: Matrix, offer: Offer, dense: Allotment) -> bool:
    """Whether it has fewer multipliers or bits and no more of the other, but that the bits it saves
    may be worth a few multipliers more (as of blocks that are cut off)."""
    multipliers, bits = dense_multipliers(matrix, dense), matrix.weights.size * matrix.width
    fewer = (offer.multipliers, offer.bits) != (multipliers, bits)
    more = max(offer.multipliers - multipliers, 0)
    is_worth = more * features.LUTS_OF_DSP * LUT_ROM_BITS <= bits - offer.bits
    return fewer and is_worth


def _luts_more(matrix: Matrix, offer: Offer, dense: Allotment) -> int:
    """LUTs by which a kernel is dearer, at the least that the estimate has for it and beyond what
    the DSP blocks of the multipliers that it saves are worth."""
    (n_in, n_out), data = matrix.shape, matrix.data
    sums = matrix.sum_width
    if _has_constants(dense):
        nonzero = int(np.count_nonzero(matrix.weights))
        luts = fit("latency_lut").value(features.latency_lut(nonzero, sums, 0, 0))
    else:
        terms = features.resource_lut(n_in, n_out, dense.reuse, data, sums)
        luts = fit("resource_lut").value(terms)
    saved = dense_multipliers(matrix, dense) - offer.multipliers
    worth = features.LUTS_OF_DSP * saved if matrix.width > features.NO_DSP_BITS else 0
    return ceil(offer.luts - luts - worth)


def dense_multipliers(matrix: Matrix, dense: Allotment) -> int:
    """How many products the dense kernel forms at a time; of constants those that are hard."""
    if not _has_constants(dense):
        return matrix.weights.size // dense.reuse
    hard = hard_multiplications(matrix.weights)
    zeros = matrix.weights.size - int(np.count_nonzero(matrix.weights))
    return latency_dsp(hard, matrix.weights.size, zeros, dense.reuse)


def _has_constants(dense: Allotment) -> bool:
    """Whether weights are constants: without reuse with the Resource strategy too."""
    return dense.strategy == "latency" or dense.reuse == 1


def require_kernels(program: Program, target: Target) -> None:
    """Raise TargetError where a kernel of ours is asked for and no layer that a pattern names has
    weights, or one has that the kernel cannot compute."""
    choosing = [
        name for name, table in target.layers.items() if table.get("kernel", "auto") in KERNELS
    ]
    if not choosing and target.kernel not in KERNELS:
        return
    matrices = {i: m for i in program.instrs if (m := matrix_of(program, i, target)) is not None}
    problems = list(_without_weights(program, target, choosing, {i.origin for i in matrices}))
    for instr, matrix in matrices.items():
        wanted = target.resolve(instr.origin)
        if wanted.kernel in KERNELS:
            offer = KERNELS[wanted.kernel].offer(matrix, wanted)
            if isinstance(offer, Declined):
                problems.append(
                    f'{instr.origin}: kernel = "{wanted.kernel}" requires {offer.required}, got '
                    f'{offer.got}. Give such a layer another kernel in layers, "auto" for one'
                )
    if problems:
        raise TargetError("\n".join(problems))


def _without_weights(
    program: Program, target: Target, choosing: Iterable[str], with_weights: set[str]
) -> Iterable[str]:
    ops: dict[str, list[str]] = {}
    for instr in program.instrs:
        ops.setdefault(instr.origin, []).append(instr.op.name)
    for pattern in unmatched(list(choosing), with_weights):
        found = [f"{name} ({', '.join(ops[name])})" for name in ops if fnmatchcase(name, pattern)]
        known = ", ".join(sorted(with_weights)) or "none"
        yield (
            f'layers: {pattern}: kernel = "{target.layers[pattern]["kernel"]}" requires a linear '
            "layer or a convolution with constant weights, got "
            f"{', '.join(found) or 'no layer'}. Layers with weights: {known}"
        )
