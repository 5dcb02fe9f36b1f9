"""The search for a binary point at the size of VGG-16's first dense layer.

The search that stops early beside the one that adds up the errors of all candidates, in turn, in
one process. One thread, CPU time, median; memory: how much the peak of the process grows.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from time import process_time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it

import torch
from rich.table import Table

from fxloom.fixed_point import FixedPoint
from fxloom.passes.calibration import Errors, covering, least_error

WEIGHTS = 103_000_000
WIDTHS = (8, 4, 2)
CANDIDATES = (4, 16)
GATE_S = 0.32
"""For 16 candidates: twice the best that is known, one pass of compiled code."""


def measure_all(names: Sequence[str] | None, quick: bool) -> Iterator[dict[str, Any]]:
    """One record a width and number of candidates. names: widths."""
    torch.set_num_threads(1)
    x = 0.02 * torch.randn(WEIGHTS, generator=torch.Generator().manual_seed(0))
    low, high = (float(bound) for bound in torch.aminmax(x))
    for width in WIDTHS:
        widest = covering(low, high, width, True)
        for count in CANDIDATES:
            if names and str(width) not in names:
                continue
            shortlist = [FixedPoint(width, widest.integer - finer, True) for finer in range(count)]
            yield _measure(x, shortlist, 1 if quick else 5)


def _measure(x: torch.Tensor, shortlist: Sequence[FixedPoint], rounds: int) -> dict[str, Any]:
    def all_errors() -> FixedPoint:
        errors = Errors(shortlist)
        errors.see(x)
        return errors.best

    before = _peak()
    early, plain = [], []
    for _ in range(rounds):
        found, seconds = _timed(lambda: least_error(x, shortlist))
        early.append(seconds)
        wanted, seconds = _timed(all_errors)
        plain.append(seconds)
        assert found == wanted
    return {
        "width": shortlist[0].width,
        "candidates": len(shortlist),
        "chosen": str(found),
        "early_s": median(early),
        "all_s": median(plain),
        "all_over_early": median(plain) / median(early),
        "grown_mb": (_peak() - before) / 2**10,
    }


def _timed(search: Callable[[], FixedPoint]) -> tuple[FixedPoint, float]:
    begin = process_time()
    return search(), process_time() - begin


def _peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def table(records: Sequence[dict[str, Any]]) -> Table:
    """Figures with their gate."""
    shown = Table(title=f"Binary point of {WEIGHTS:,} weights: one thread, CPU time, median")
    for title in ("bits", "candidates", "stopping early", "all errors", "ratio", "peak grows by"):
        shown.add_column(title, justify="right")
    for record in records:
        gate = f" (<= {GATE_S:g})" if record["candidates"] == max(CANDIDATES) else ""
        shown.add_row(
            str(record["width"]),
            str(record["candidates"]),
            f"{record['early_s']:.2f} s{gate}",
            f"{record['all_s']:.2f} s",
            f"{record['all_over_early']:.1f}x",
            f"{record['grown_mb']:.1f} MB",
        )
    return shown
