"""Accuracy of pruned networks against their dense ones, on the digits that scikit-learn carries.

    OMP_NUM_THREADS=1 python -m benchmarks.pruning --json pruning.json
    OMP_NUM_THREADS=1 python -m benchmarks.pruning --trained

Networks, data and training are those of `benchmarks.quantization`: ten seeds, another split, other
weights and another order of training for each. Differences are paired, dense minus pruned on the
same test samples; a bar holds where their mean + 2 standard errors reaches it.
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
from benchmarks.quantization import data_of, trained
from fxloom.passes import Prune

NAMES = ("digits mlp", "digits cnn")
BARS: dict[float, tuple[float | None, float | None]] = {
    0.5: (0.4, 0.4),
    0.7: (0.6, 1.2),
    0.8: (1.2, 3.0),
}
TRAINED_BARS: dict[float, tuple[float | None, float | None]] = {
    0.8: (0.7, 1.0),
    0.9: (1.9, 5.0),
    0.95: (5.3, None),
}
TRAINING: dict[str, Any] = {
    "schedule": "gradual",
    "steps": 5,
    "finetune": {"epochs": 20, "learning_rate": 6e-3},
}


def lost(name: str, seed: int, step: Prune) -> tuple[float, float, float]:
    """Accuracy of the dense network in percent, points that the pruned one has less, and the share
    of its weights that are zero."""
    model, data = trained(name, seed), data_of(name, seed)
    x, y = torch.as_tensor(data.x_test), np.asarray(data.y_test)
    graph = fxloom.capture(model, x[:2])
    result = step(graph, data)
    with torch.no_grad():
        dense, pruned = (
            float((each(x).argmax(1).numpy() == y).mean()) for each in (graph, result.graph)
        )
    layers: Any = result.summary["layers"]
    kept, weights = (sum(each[key] for each in layers.values()) for key in ("kept", "weights"))
    return 100 * dense, 100 * (dense - pruned), 1 - kept / weights


def measure(
    seeds: int, names: list[str], is_trained: bool, options: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """One record for every network and sparsity."""
    for name in names:
        for sparsity, bars in (TRAINED_BARS if is_trained else BARS).items():
            for seed in range(seeds):
                trained(name, seed)
            began = time.perf_counter()
            found = []
            for seed in range(seeds):
                keys = {"sparsity": sparsity, "method": "obs", **options}
                if is_trained:
                    training = TRAINING["finetune"] | {"seed": seed}
                    keys = TRAINING | {"finetune": training} | keys
                found.append(lost(name, seed, Prune(**keys)))
            points = [each[1] for each in found]
            yield {
                "network": name,
                "sparsity": sparsity,
                "reached": min(each[2] for each in found),
                "dense": mean(each[0] for each in found),
                "lost": mean(points),
                "two_errors": 2 * stdev(points) / len(points) ** 0.5,
                "bar": bars[NAMES.index(name)],
                "seconds": (time.perf_counter() - began) / seeds,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", action="append", choices=NAMES, help="networks")
    parser.add_argument("--trained", action="store_true", help="with finetune between the steps")
    parser.add_argument("--options", default="{}", help="JSON of further keys of the prune pass")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("network    sparsity (reached)  dense %  points lost, + 2 errors   bar   s each")
    records = []
    keys = json.loads(options.options)
    for record in measure(options.seeds, options.only or list(NAMES), options.trained, keys):
        records.append(record)
        bound, bar = record["lost"] + record["two_errors"], record["bar"]
        judged = "" if bar is None else f"{'<=' if bound <= bar else '> '} {bar:4.1f}"
        print(
            f"{record['network']:10} {record['sparsity']:8.2f} ({record['reached']:.4f})  "
            f"{record['dense']:7.2f} {record['lost']:7.2f} + {record['two_errors']:.2f} = "
            f"{bound:5.2f} {judged:7} {record['seconds']:7.2f}",
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
