"""Accuracy of networks of compact filters against their plain ones, on scikit-learn's digits.

    OMP_NUM_THREADS=1 python -m benchmarks.compact --json compact.json

Data and training of the plain networks are those of `benchmarks.quantization`: ten seeds, another
split, other weights and another order of training for each. Convolutions are replaced, then the
networks train again, then all is rounded to 8 bits and simulated. The first convolution reads one
channel, of which fire modules and separable pairs would leave one kernel: they leave it. Without a
replacement the same training is run as well ("none"). Differences are paired, plain minus compact
on the same test samples. Parameters and multiply-adds are those of the whole network.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

import fxloom
from benchmarks.quantization import data_of, trained
from fxloom.graph import BATCH, arguments
from fxloom.passes import Compact, Finetune, Quantize
from fxloom.passes.chains import LAYERS

NETWORKS = ("digits cnn", "digits lenet")
TRAINING = {"epochs": 40, "learning_rate": 3e-3}


@dataclass(frozen=True)
class Case:
    """keys: of the pass, None where nothing is replaced."""

    name: str
    keys: dict[str, Any] | None = field(default_factory=dict)


LATER: dict[str, Any] = {"exclude": ("0",)}
CASES = (
    Case("none", None),
    Case("separable", {"kind": "separable", **LATER}),
    Case("separable, 2 kernels", {"kind": "separable", "multiplier": 2, **LATER}),
    Case("separable, norm, relu", {"kind": "separable", "between": ("batchnorm", "relu"), **LATER}),
    Case("fire", {"kind": "fire", **LATER}),
    Case("fire, squeeze 0.5", {"kind": "fire", "squeeze": 0.5, **LATER}),
    Case("fire, no relu", {"kind": "fire", "between": (), **LATER}),
    Case("crelu, cosine -0.7", {"kind": "crelu", "threshold": -0.7}),
    Case("crelu, cosine -0.3", {"kind": "crelu", "threshold": -0.3}),
)


def sizes(graph: torch.fx.GraphModule) -> tuple[int, int]:
    """Parameters and multiply-adds of a sample."""
    macs = 0
    for node in graph.graph.nodes:
        if node.target in LAYERS:
            weight = arguments(node)[1].meta["val"]
            macs += weight[0].numel() * node.meta["val"].numel() // BATCH
    return sum(each.numel() for each in graph.parameters()), macs


def replaced(network: str, case: Case, seed: int) -> dict[str, float] | None:
    """One seed: accuracy in percent before, and points lost after the replacement, after training,
    and with 8 bits; None where there is nothing to replace."""
    model, data = trained(network, seed), data_of(network, seed)
    x, y = torch.as_tensor(data.x_test), np.asarray(data.y_test)

    def accuracy(scores: Any) -> float:
        return 100 * float((np.asarray(scores).argmax(1) == y).mean())

    graph = fxloom.capture(model, x[:2])
    first = graph
    if case.keys is not None:
        try:
            first = Compact(**case.keys)(graph, data).graph
        except fxloom.RecipeError as error:
            if "no layer is left" not in str(error):
                raise
            return None
    tuned = Finetune(seed=seed, **TRAINING)(first, data).graph
    program = fxloom.lower(Quantize()(tuned, data).graph)
    with torch.no_grad():
        plain, begun, ended = (accuracy(each(x)) for each in (graph, first, tuned))
    (parameters, macs), (kept, done) = sizes(graph), sizes(first)
    return {
        "plain": plain,
        "lost_before_training": plain - begun,
        "lost": plain - ended,
        "lost_at_8_bits": plain - accuracy(fxloom.simulate(program, data.x_test)),
        "parameters": kept,
        "of_parameters": parameters,
        "macs": done,
        "of_macs": macs,
    }


def measure(seeds: int, networks: list[str]) -> Iterator[dict[str, Any]]:
    """One record for every case."""
    for network in networks:
        for seed in range(seeds):
            trained(network, seed)
        for case in CASES:
            began = time.perf_counter()
            runs = [replaced(network, case, seed) for seed in range(seeds)]
            found = [each for each in runs if each is not None]
            record: dict[str, Any] = {"network": network, "case": case.name, "seeds": len(found)}
            for key in found[0] if found else ():
                values = [each[key] for each in found]
                record[key] = mean(values)
                if "lost" in key:
                    many = len(values) > 1
                    record[f"{key}_two_errors"] = (
                        2 * stdev(values) / len(values) ** 0.5 if many else 0.0
                    )
            yield {**record, "seconds": (time.perf_counter() - began) / seeds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", action="append", choices=NETWORKS, help="networks")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "network       replaced by            seeds  plain %  points lost at once, trained, with 8 "
        "bits (+ 2 errors)  parameters     multiply-adds  s each"
    )
    records = []
    for record in measure(options.seeds, options.only or list(NETWORKS)):
        records.append(record)
        print(line_of(record), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def line_of(record: dict[str, Any]) -> str:
    """One record for people."""
    start = f"{record['network']:13} {record['case']:22} {record['seeds']:5}"
    if not record["seeds"]:
        return f"{start}  nothing to replace"
    losses = "  ".join(
        f"{record[key]:6.2f} + {record[f'{key}_two_errors']:.2f}"
        for key in ("lost_before_training", "lost", "lost_at_8_bits")
    )
    return (
        f"{start} {record['plain']:8.2f}  {losses}  {record['parameters']:8,.0f} of "
        f"{record['of_parameters']:,.0f} {record['macs']:9,.0f} of {record['of_macs']:,.0f} "
        f"{record['seconds']:6.2f}"
    )


if __name__ == "__main__":
    main()
