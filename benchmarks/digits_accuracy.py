"""Accuracy of the fixed-point programs against their float models, on scikit-learn's digits.

    OMP_NUM_THREADS=1 python benchmarks/digits_accuracy.py --json digits_accuracy.json

For every seed: another split, other weights, another order of training. Both networks of the demo,
8-bit weights and activations. The difference is paired (float minus fixed, same network and
images); the claim "within 0.5 points" holds where mean + 2 standard errors stays below 0.5.
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory

import torch

from fxloom import Recipe, compile
from fxloom.compilation import tool_versions
from fxloom.demo import NETWORKS, Network, digits, train
from fxloom.passes import Quantize

BAR = 0.5  # points


def differences(network: Network, seeds: int, recipe: Recipe, out: Path) -> list[dict[str, float]]:
    """Float and fixed accuracy in percent, one record a seed."""
    records = []
    for seed in range(seeds):
        data = digits(seed)
        build = compile(train(network, data, seed), None, recipe, "xczu9eg", data, out / "build")
        accuracy = build.report.accuracy
        assert accuracy is not None
        assert accuracy.float_accuracy is not None
        assert accuracy.fixed_accuracy is not None
        records.append(
            {
                "seed": seed,
                "float": 100 * accuracy.float_accuracy,
                "fixed": 100 * accuracy.fixed_accuracy,
            }
        )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--weights", type=int, default=8)
    parser.add_argument("--activations", type=int, default=8)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = Recipe([Quantize(weights=options.weights, activations=options.activations)])
    print(f"{options.weights}-bit weights, {options.activations}-bit activations")
    print("network  float %  fixed %  lost points, mean + 2 standard errors  worst")
    results = {}
    with TemporaryDirectory() as folder:
        for network in NETWORKS:
            records = differences(network, options.seeds, recipe, Path(folder))
            lost = [record["float"] - record["fixed"] for record in records]
            error = stdev(lost) / len(lost) ** 0.5 if len(lost) > 1 else float("nan")
            bound = mean(lost) + 2 * error
            print(
                f"{network.name:7}  {mean(r['float'] for r in records):7.2f}  "
                f"{mean(r['fixed'] for r in records):7.2f}  {mean(lost):5.2f} + {2 * error:.2f} = "
                f"{bound:5.2f} {'<' if bound < BAR else '>='} {BAR:17}  {max(lost):5.2f}"
            )
            results[network.name] = {"records": records, "mean_lost": mean(lost), "bound": bound}
    if options.json is not None:
        document = {
            "recipe": recipe.to_toml(),
            "images": 540,
            "versions": tool_versions(),
            "networks": results,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
