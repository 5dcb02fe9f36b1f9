"""Accuracy of factored networks against their dense ones, on the digits that scikit-learn carries.

    OMP_NUM_THREADS=1 python -m benchmarks.factorize --json factorize.json

Ranks by a budget of parameters over the whole network, without retraining. Networks, data and
training are those of `benchmarks.quantization`: ten seeds, another split, other weights and another
order of training for each. Differences are paired, dense minus factored on the same test samples; a
bar holds where their mean + 2 standard errors reaches it. Beside it the usual: every layer alone,
with the same share of its weights. --validation holds out a fifth of each training part and never
looks at the test samples: what settings were chosen on.
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
from torch import fx

import fxloom
from benchmarks.deep_compression import data_of, trained
from fxloom.passes import Factorize
from fxloom.passes.prunable import find_prunable

BARS = {"digits mlp": 0.8, "digits l300": 0.5, "digits lenet": 0.8, "digits cnn": None}
"""At half of the parameters, in points."""


def accuracy(graph: fx.GraphModule, data: fxloom.Data) -> float:
    """Of a float graph on the test samples, in percent."""
    with torch.no_grad():
        scores = graph(torch.as_tensor(data.x_test)).numpy()
    return 100 * float((scores.argmax(1) == np.asarray(data.y_test)).mean())


def kept(result: fxloom.recipe.PassResult) -> float:
    """Share of the parameters that are left."""
    summary: Any = result.summary
    return float(summary["kept"]["parameters"])


def uniform(graph: fx.GraphModule, share: float) -> fx.GraphModule:
    """Every layer with its share, by the nearest matrices of the rank that has as many weights."""
    ranks = {}
    for each in find_prunable(graph):
        outputs, inputs = len(each.values), each.values[0].numel()
        ranks[each.name] = max(int(share * each.size / (outputs + inputs)), 1)
    return Factorize(layers={name: {"rank": rank} for name, rank in ranks.items()})(graph).graph


def measure(
    names: list[str], seeds: int, budgets: list[float], held_out: bool, options: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """One record for every network and budget."""
    for name in names:
        for seed in range(seeds):
            trained(name, seed, held_out)
        for budget in budgets:
            began = time.perf_counter()
            dense, points, equal, shares = [], [], [], []
            for seed in range(seeds):
                model, data = trained(name, seed, held_out), data_of(name, seed, held_out)
                graph = fxloom.capture(model, torch.as_tensor(data.x_test[:2]))  # type: ignore[index]
                result = Factorize(budget=budget, **options)(graph, data)
                dense.append(accuracy(graph, data))
                points.append(dense[-1] - accuracy(result.graph, data))
                equal.append(dense[-1] - accuracy(uniform(graph, budget), data))
                shares.append(kept(result))
            yield {
                "network": name,
                "budget": budget,
                "kept": [min(shares), max(shares)],
                "dense": mean(dense),
                "lost": mean(points),
                "two_errors": 2 * stdev(points) / len(points) ** 0.5,
                "uniform_rank": mean(equal),
                "bar": BARS[name] if budget == 0.5 else None,
                "seconds": (time.perf_counter() - began) / seeds,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", action="append", choices=list(BARS), help="networks")
    parser.add_argument("--budget", action="append", type=float, help="share of the parameters")
    parser.add_argument("--validation", action="store_true", help="never look at test samples")
    parser.add_argument("--options", default="{}", help="JSON of further keys of the pass")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("network       budget  kept             dense %  points lost, + 2 errors   bar    "
          "uniform rank loses  s each")  # fmt: skip
    records = []
    keys = json.loads(options.options)
    names, budgets = options.only or list(BARS), options.budget or [0.5]
    for record in measure(names, options.seeds, budgets, options.validation, keys):
        records.append(record)
        bound, bar = record["lost"] + record["two_errors"], record["bar"]
        judged = "" if bar is None else f"{'<=' if bound <= bar else '> '} {bar:.1f}"
        low, high = record["kept"]
        print(
            f"{record['network']:13} {record['budget']:6.2f}  {low:.4f} to {high:.4f} "
            f"{record['dense']:7.2f} {record['lost']:8.2f} + {record['two_errors']:.2f} = "
            f"{bound:5.2f} {judged:7} {record['uniform_rank']:14.2f} {record['seconds']:13.2f}",
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
