"""Accuracy lost where a share of all hidden channels goes: `python -m benchmarks.channels`.

The digits networks of `benchmarks.quantization`, ten seeds, paired difference to the float model in
points, mean + 2 standard errors; without training, and after a number of epochs (`--epochs`).
"""

import argparse
from statistics import mean, stdev

import numpy as np
import torch
from torch import fx

import fxloom
from benchmarks.quantization import data_of, trained
from fxloom.data import Data
from fxloom.passes import Finetune, PruneChannels
from fxloom.recipe import Recipe

CRITERIA = ("l1", "l2", "geometric_median", "taylor", "reconstruction")
NETWORKS = ("digits mlp", "digits cnn")


def accuracy(graph: fx.GraphModule, data: Data) -> float:
    """Of a float graph on the test samples, in percent."""
    with torch.no_grad():
        scores = graph(torch.as_tensor(data.x_test)).numpy()
    return 100 * float((scores.argmax(1) == np.asarray(data.y_test)).mean())


def lost(network: str, seed: int, step: PruneChannels, epochs: int) -> float:
    """Points of accuracy."""
    data = data_of(network, seed)
    graph = fxloom.capture(trained(network, seed), torch.as_tensor(data.x_test[:2]))
    tuning = [Finetune(epochs=epochs, seed=seed)] if epochs else []
    smaller = Recipe([step, *tuning]).run(graph, data).graph
    return accuracy(graph, data) - accuracy(smaller, data)


def main() -> None:
    """Print one line for every network, share and criterion."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=0, help="of training after the removal")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for network in NETWORKS:
        for sparsity in (0.25, 0.5):
            for criterion in CRITERIA:
                step = PruneChannels(sparsity=sparsity, criterion=criterion)
                points = [
                    lost(network, seed, step, options.epochs) for seed in range(options.seeds)
                ]
                error = 2 * stdev(points) / len(points) ** 0.5
                what = f"{network:10}  {sparsity:.0%}  {criterion:16}"
                print(f"{what}  {mean(points):6.2f} + {error:.2f}", flush=True)


if __name__ == "__main__":
    main()
