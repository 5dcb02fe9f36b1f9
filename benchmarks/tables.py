"""The table of the ratios, with PERFORMANCE gates beside them."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and NumPy read it

import torch
from rich.table import Table

from benchmarks.models import CASES
from benchmarks.ratios import measure

FIRST_ANSWER_S, PROJECT_S = 1.0, 3.0
"""Gates for ResNet-8."""


def measure_all(names: Sequence[str] | None, quick: bool) -> Iterator[dict[str, Any]]:
    """One record a case."""
    torch.set_num_threads(1)
    for case in CASES:
        if not names or case.name in names:
            yield measure(case, rounds=5 if quick else 15, stock=not quick)


def table(records: Sequence[dict[str, Any]]) -> Table:
    """Figures with their gates."""
    shown = Table(title="fxloom benchmarks: one thread, CPU time, median")
    titles = ("case", "simulate / torch", "with TRN", "simulate / stock C-sim", "first answer")
    for title in (*titles, "project"):
        shown.add_column(title, justify="left" if title == "case" else "right")
    cases = {case.name: case for case in CASES}
    for record in records:
        case = cases[record["case"]]
        stock = record.get("simulate_over_stock")
        gated = case.name == "resnet8"
        shown.add_row(
            case.name,
            f"{record['simulate_over_torch']:.2f}x (>= {case.gate_torch})",
            f"{record['trn']['simulate_over_torch']:.2f}x (>= {case.gate_torch})",
            "-" if stock is None else f"{stock:.0f}x{_gate(case.gate_stock, '>=')}",
            f"{record['first_answer_s']:.3f} s{_gate(FIRST_ANSWER_S if gated else None, '<=')}",
            f"{record['project_s']:.2f} s{_gate(PROJECT_S if gated else None, '<=')}",
        )
    return shown


def _gate(gate: float | None, sign: str) -> str:
    return "" if gate is None else f" ({sign} {gate:g})"
