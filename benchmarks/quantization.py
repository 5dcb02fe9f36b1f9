"""Accuracy of quantized networks against their float models, on data that scikit-learn carries.

    OMP_NUM_THREADS=1 python -m benchmarks.quantization --json quantization.json
    OMP_NUM_THREADS=1 python -m benchmarks.quantization --trained

For every seed: another stratified split (30% test), other weights, another order of training
(AdamW 3e-3, weight decay 1e-2, cosine, 120 epochs). Differences are paired, float minus fixed on
the same network and test samples; a bar holds where their mean + 2 standard errors reaches it.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fxloom
from fxloom import Data, Recipe
from fxloom.passes import Finetune, Quantize

EPOCHS, BATCH = 120, 64
TRAINING = {"epochs": 40, "learning_rate": 6e-3}
"""Of --trained: the recipe is Quantize, then Finetune with these."""


def mlp(*sizes: int) -> nn.Module:
    """Dense layers with ReLU between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Module:
    """Two convolutions with pools, one dense layer, for images of 8 x 8."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, 10)),
    )


def lenet() -> nn.Module:
    """The layers of LeNet-5, with ReLU and kernels of 3 x 3, for images of 8 x 8."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, 120), nn.ReLU()),
        *(nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


@dataclass(frozen=True)
class Task:
    """A network, where its data come from, and the bars: (weights, activations) -> points.

    trained_bars: those after training in few bits; a name is a weight format, scaled by channel.
    """

    make: Callable[[], nn.Module]
    load: Callable[..., Any]
    bars: dict[tuple[int, int], float]
    trained_bars: dict[tuple[int | str, int], float] = field(default_factory=dict)


DIGITS = [(8, 8), (6, 6), (5, 5), (4, 4), (3, 3), (2, 4)]
TASKS = {
    "digits mlp": Task(
        lambda: mlp(64, 64, 32, 32, 10),
        load_digits,
        dict(zip(DIGITS, (0.2, 0.4, 0.5, 0.9, 2.3, 1.7), strict=True)),
        {(4, 4): 0.5, (3, 3): 0.9, (2, 4): 0.6, ("ternary", 4): 0.8, ("binary", 4): 1.3},
    ),
    "digits cnn": Task(
        cnn,
        load_digits,
        dict(zip(DIGITS, (0.2, 0.3, 0.6, 0.9, 3.0, 2.2), strict=True)),
        {(4, 4): 0.5, (3, 3): 1.2, (2, 4): 1.6, ("ternary", 4): 2.0, ("binary", 4): 4.3},
    ),
    "digits l300": Task(lambda: mlp(64, 300, 100, 10), load_digits, {}),
    "digits lenet": Task(lenet, load_digits, {}),
    "breast_cancer": Task(lambda: mlp(30, 16, 8, 2), load_breast_cancer, {(4, 4): 1.0}),
    "wine": Task(lambda: mlp(13, 16, 8, 3), load_wine, {(8, 8): 1.0}),
    "iris": Task(lambda: mlp(4, 16, 8, 3), load_iris, {(8, 8): 1.0}),
}


@cache
def data_of(name: str, seed: int) -> Data:
    """Digits as images from 0 to 1; tables with the training set's mean and deviation removed."""
    task = TASKS[name]
    x, y = task.load(return_X_y=True)
    parts = train_test_split(x, y, test_size=0.3, random_state=seed, stratify=y)
    x_train, x_test, y_train, y_test = parts
    if task.load is load_digits:
        x_train, x_test = (part.reshape(-1, 1, 8, 8) / 16 for part in (x_train, x_test))
    else:
        middle, scale = x_train.mean(0), x_train.std(0)
        x_train, x_test = ((part - middle) / scale for part in (x_train, x_test))
    return Data(x_train.astype(np.float32), y_train, x_test.astype(np.float32), y_test)


@cache
def trained(name: str, seed: int) -> nn.Module:
    """The trained float network."""
    data = data_of(name, seed)
    torch.manual_seed(seed)
    model = TASKS[name].make()
    train(model, torch.as_tensor(data.x_train), torch.as_tensor(data.y_train).long(), seed)
    return model.eval()


def train(model: nn.Module, x: Tensor, y: Tensor, seed: int) -> None:
    """Train a network in place, on class numbers."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-2)
    steps = EPOCHS * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()


def lost(name: str, seed: int, recipe: Recipe) -> tuple[float, float]:
    """Float accuracy in percent, and how many points the fixed-point program has less."""
    model, data = trained(name, seed), data_of(name, seed)
    x, y = np.asarray(data.x_test), np.asarray(data.y_test)
    graph = fxloom.capture(model, torch.from_numpy(x[:2]))
    program = fxloom.lower(recipe.run(graph, data).graph)
    with torch.no_grad():
        exact = float((model(torch.from_numpy(x)).argmax(1).numpy() == y).mean())
    fixed = float((np.asarray(fxloom.simulate(program, x)).argmax(1) == y).mean())
    return 100 * exact, 100 * (exact - fixed)


def measure(
    seeds: int, names: list[str], options: dict[str, Any], training: dict[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """One record for every network and pair of widths. training: keys of Finetune, if it runs."""
    for name in names:
        bars = TASKS[name].bars if training is None else TASKS[name].trained_bars
        for (weights, activations), bar in bars.items():
            steps: list[Any] = [Quantize(activations=activations, **_weights(weights), **options)]
            for seed in range(seeds):
                trained(name, seed)
            began = time.perf_counter()
            pairs = []
            for seed in range(seeds):
                tuning = [] if training is None else [Finetune(seed=seed, **training)]
                pairs.append(lost(name, seed, Recipe([*steps, *tuning])))
            points = [pair[1] for pair in pairs]
            yield {
                "network": name,
                "weights": weights,
                "activations": activations,
                "float": mean(pair[0] for pair in pairs),
                "lost": mean(points),
                "two_errors": 2 * stdev(points) / len(points) ** 0.5,
                "bar": bar,
                "seconds": (time.perf_counter() - began) / seeds,
            }


def _weights(format: int | str) -> dict[str, Any]:
    if isinstance(format, int):
        return {"weights": format}
    return {"weight_format": format, "per_channel": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", action="append", choices=list(TASKS), help="networks")
    parser.add_argument("--nearest", action="store_true", help="by minima and maxima, no fitting")
    parser.add_argument("--method", choices=["mse", "minmax", "percentile", "kl"], default="mse")
    parser.add_argument("--trained", action="store_true", help="then trained in few bits")
    parser.add_argument("--ranges", action="store_true", help="trained: binary points as well")
    parser.add_argument("--narrowing", type=int, default=0, help="trained: epochs of falling width")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    plain = {
        "method": "minmax",
        "weight_rounding": "nearest",
        "equalize": False,
        "bias_correction": False,
    }
    print("network        bits   float %  points lost, + 2 errors   bar    s each")
    records = []
    for record in measure(
        options.seeds,
        options.only or list(TASKS),
        plain if options.nearest else {"method": options.method},
        TRAINING | {"ranges": options.ranges, "narrowing": options.narrowing}
        if options.trained
        else None,
    ):
        records.append(record)
        bound = record["lost"] + record["two_errors"]
        print(
            f"{record['network']:14} w{record['weights']}a{record['activations']} "
            f"{record['float']:8.2f} {record['lost']:7.2f} + {record['two_errors']:.2f} = "
            f"{bound:5.2f} {'<=' if bound <= record['bar'] else '> '} {record['bar']:4.1f} "
            f"{record['seconds']:7.2f}",
            flush=True,
        )
    if options.json is not None:
        options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
