"""Accuracy of block-circulant networks against their dense ones, on the digits of scikit-learn.

    OMP_NUM_THREADS=1 python -m benchmarks.circulant --json circulant.json

Data and training of the dense networks are those of `benchmarks.quantization`: ten seeds, another
split, other weights and another order of training for each. All layers but the last become
block-circulant, and the numbers that are left train for as long as the dense network did; then all
is rounded to 8 bits and simulated. Differences are paired, dense minus circulant on the same test
samples; a bar holds where their mean + 2 standard errors reaches it.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

import fxloom
from benchmarks.quantization import EPOCHS, data_of, trained
from fxloom.circulant_layout import find_block
from fxloom.passes import Circulant, Quantize

BARS: dict[tuple[str, int], float] = {
    ("digits l300", 4): 1.0,
    ("digits l300", 8): 1.5,
    ("digits mlp", 4): 1.5,
    ("digits mlp", 8): float("nan"),
}
"""Points that may be lost, by network and block; none is asked for where it is not a number."""
LAST = {"digits l300": "5", "digits mlp": "7"}
TRAINING: dict[str, Any] = {"epochs": EPOCHS, "learning_rate": 3e-3}


def lost(name: str, block: int, seed: int, training: dict[str, Any]) -> dict[str, float]:
    """Accuracy of the dense network in percent, points that the circulant one has less, in floating
    point and with 8 bits, and how many times fewer weights there are, those of the last
    layer included."""
    model, data = trained(name, seed), data_of(name, seed)
    x, y = torch.as_tensor(data.x_test), np.asarray(data.y_test)
    graph = fxloom.capture(model, x[:2])
    step = Circulant(block=block, exclude=(LAST[name],), finetune={**training, "seed": seed})
    result = step(graph, data)
    program = fxloom.lower(Quantize()(result.graph, data).graph)
    products = [i for i in program.instrs if i.op.name == "matmul"]
    blocks = [find_block(program.constants[i.args[1]].data) for i in products]
    assert blocks[:-1] == [block] * (len(products) - 1), blocks
    with torch.no_grad():
        dense, circulant = (
            float((each(x).argmax(1).numpy() == y).mean()) for each in (graph, result.graph)
        )
    fixed = float((np.asarray(fxloom.simulate(program, data.x_test)).argmax(1) == y).mean())
    layers: Any = result.summary["layers"]
    all_of_them = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    saved = sum(each["weights"] - each["stored"] for each in layers.values())
    return {
        "dense": 100 * dense,
        "lost": 100 * (dense - circulant),
        "lost_at_8_bits": 100 * (dense - fixed),
        "fewer": all_of_them / (all_of_them - saved),
    }


def measure(
    seeds: int, names: list[str] | None, training: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """One record for every network and block."""
    for (name, block), bar in BARS.items():
        if names is not None and name not in names:
            continue
        for seed in range(seeds):
            trained(name, seed)
        began = time.perf_counter()
        found = [lost(name, block, seed, training) for seed in range(seeds)]
        record: dict[str, Any] = {"network": name, "block": block, "bar": bar}
        for key in found[0]:
            values = [each[key] for each in found]
            record |= {key: mean(values), f"{key}_two_errors": 2 * stdev(values) / seeds**0.5}
        yield {**record, "seconds": (time.perf_counter() - began) / seeds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", action="append", choices=list(LAST), help="networks")
    parser.add_argument("--options", default="{}", help="JSON of further keys of finetune")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "network      k  fewer  dense %  points lost, + 2 errors  with 8 bits           bar  s each"
    )
    records = []
    for record in measure(options.seeds, options.only, TRAINING | json.loads(options.options)):
        records.append(record)
        bounds = [(record[key], record[f"{key}_two_errors"]) for key in ("lost", "lost_at_8_bits")]
        worst = max(sum(bound) for bound in bounds)
        bar = record["bar"]
        judged = "" if bar != bar else f"{'<=' if worst <= bar else '> '} {bar:3.1f}"
        cells = "  ".join(
            f"{lost:6.2f} + {errors:.2f} = {lost + errors:5.2f}" for lost, errors in bounds
        )
        print(
            f"{record['network']:11} {record['block']:2}  {record['fewer']:4.2f}x "
            f"{record['dense']:8.2f}  {cells}  {judged:6} {record['seconds']:7.2f}",
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
