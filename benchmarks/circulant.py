"""Accuracy of networks of structured weights against their dense ones, on scikit-learn's digits.

    OMP_NUM_THREADS=1 python -m benchmarks.circulant --json circulant.json

Data and training of the dense networks are those of `benchmarks.quantization`: ten seeds, another
split, other weights and another order of training for each. All layers but the last become
block-circulant, or chains of Adaptive Fastfood or ACDC, and the numbers that are left train for as
many epochs as the dense network did; then all is rounded to 8 bits and simulated. Differences are
paired, dense minus structured on the same test samples; a bar holds where their mean + 2 standard
errors reaches it.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

import fxloom
from benchmarks.quantization import EPOCHS, data_of, trained
from fxloom.circulant_layout import find_block
from fxloom.passes import Circulant, Quantize, Structured
from fxloom.program import Program

LAST = {"digits l300": "5", "digits mlp": "7"}
"""The layer that stays as it is."""


@dataclass(frozen=True)
class Case:
    """bar: points that may be lost, None where none is asked for; block: of what must be found
    among the integers; training: keys of finetune."""

    network: str
    weights: str
    step: Callable[..., Any]
    bar: float | None = None
    block: int | None = None
    training: dict[str, Any] = field(default_factory=dict)


def circulant(network: str, block: int, bar: float | None) -> Case:
    """All layers in blocks of one size."""
    return Case(network, f"circulant {block}", partial(Circulant, block=block), bar, block)


def fastfood(network: str, depth: int) -> Case:
    """Chains of that many blocks, which want larger steps the fewer there are."""
    step = partial(Structured, kind="fastfood", depth=depth)
    rate = 1e-2 if depth == 1 else 3e-3
    return Case(network, f"fastfood {depth}", step, training={"learning_rate": rate})


CASES = (
    circulant("digits l300", 4, 1.0),
    circulant("digits l300", 8, 1.5),
    circulant("digits mlp", 4, 1.5),
    circulant("digits mlp", 8, None),
    fastfood("digits l300", 1),
    fastfood("digits l300", 2),
    Case(
        *("digits l300", "acdc 4", partial(Structured, kind="acdc", depth=4)),
        training={"learning_rate": 1e-2},
    ),
)


def lost(case: Case, seed: int) -> dict[str, float]:
    """Accuracy of the dense network in percent, points that the other one has less, in floating
    point and with 8 bits, and how many times fewer weights train, with those of the last layer."""
    model, data = trained(case.network, seed), data_of(case.network, seed)
    x, y = torch.as_tensor(data.x_test), np.asarray(data.y_test)
    graph = fxloom.capture(model, x[:2])
    training = {"epochs": EPOCHS, "learning_rate": 3e-3, **case.training, "seed": seed}
    result = case.step(exclude=(LAST[case.network],), finetune=training)(graph, data)
    program = fxloom.lower(Quantize()(result.graph, data).graph)
    if case.block is not None:
        require_blocks(program, case.block)
    with torch.no_grad():
        dense, other = (
            float((each(x).argmax(1).numpy() == y).mean()) for each in (graph, result.graph)
        )
    fixed = float((np.asarray(fxloom.simulate(program, data.x_test)).argmax(1) == y).mean())
    layers: Any = result.summary["layers"]
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    saved = sum(
        each["weights"] - each["stored" if "stored" in each else "trained"]
        for each in layers.values()
    )
    return {
        "dense": 100 * dense,
        "lost": 100 * (dense - other),
        "lost_at_8_bits": 100 * (dense - fixed),
        "fewer": weights / (weights - saved),
    }


def require_blocks(program: Program, block: int) -> None:
    """Raise AssertionError where the integers of a layer but the last are not block-circulant."""
    products = [i for i in program.instrs if i.op.name == "matmul"]
    found = [find_block(program.constants[i.args[1]].data) for i in products[:-1]]
    assert found == [block] * len(found), found


def measure(seeds: int, names: list[str] | None) -> Iterator[dict[str, Any]]:
    """One record for every case."""
    for case in CASES:
        if names is not None and case.network not in names:
            continue
        for seed in range(seeds):
            trained(case.network, seed)
        began = time.perf_counter()
        found = [lost(case, seed) for seed in range(seeds)]
        record: dict[str, Any] = {
            "network": case.network,
            "weights": case.weights,
            "bar": case.bar,
        }
        for key in found[0]:
            values = [each[key] for each in found]
            record |= {key: mean(values), f"{key}_two_errors": 2 * stdev(values) / seeds**0.5}
        yield {**record, "seconds": (time.perf_counter() - began) / seeds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", action="append", choices=list(LAST), help="networks")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "network     weights      fewer  dense %  points lost, + 2 errors  8 bits       bar  s each"
    )
    records = []
    for record in measure(options.seeds, options.only):
        records.append(record)
        bounds = [(record[key], record[f"{key}_two_errors"]) for key in ("lost", "lost_at_8_bits")]
        worst, bar = max(sum(bound) for bound in bounds), record["bar"]
        judged = "" if bar is None else f"{'<=' if worst <= bar else '> '} {bar:3.1f}"
        cells = "  ".join(
            f"{lost:5.2f} + {errors:.2f} = {lost + errors:5.2f}" for lost, errors in bounds
        )
        print(
            f"{record['network']:11} {record['weights']:11} {record['fewer']:5.2f}x "
            f"{record['dense']:8.2f}  {cells}  {judged:6} {record['seconds']:7.2f}",
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
