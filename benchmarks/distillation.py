"""What distillation brings on scikit-learn's digits: small students, few labels, few bits, zeros.

    OMP_NUM_THREADS=1 python -m benchmarks.distillation --json distillation.json

Data and teachers are those of `benchmarks.quantization`: another split, other weights and another
order of training for each seed. Every student is trained twice by the same passes from the same
weights, for as many steps and with the same schedule: by `finetune` on labels alone ("alone"; where
there are none, it is not trained), and by `distill`. Differences are paired, on the same test
samples; the bar of what a student may lose against its teacher holds where the mean + 2 standard
errors reaches it, that of what distillation gains where the mean does and every single seed.

Settings are one set a case, all seeds alike. They were chosen as --validation does: it holds out a
fifth of each training part, trains on the rest and never looks at the test samples.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import fx, nn

import fxloom
from benchmarks.deep_compression import data_of, trained
from benchmarks.quantization import mlp
from fxloom import Data, Recipe
from fxloom.passes import Distill, Finetune, Prune, PruneChannels, Quantize

LABELS = 126
"""Samples that have labels: a tenth of the training part."""
TERNARY = {"weight_format": "ternary", "per_channel": True}
SMALL = (64, 48, 24, 10)
"""A student of 4,546 parameters, 11.1 times fewer than those of 64-300-100-10."""
LONG, SHORT = 1000, 100
"""Epochs on 126 samples and on all: equally many steps."""


@dataclass(frozen=True)
class Case:
    """What is compared.

    run: from a seed and whether test samples are held out to the accuracies of teacher, student
    alone and student that was distilled, in percent. seeds: how many. lost: points that the
    distilled student may have less than its teacher; gained: those that distillation must bring.
    """

    run: Callable[[int, bool], tuple[float, float, float]]
    seeds: int = 10
    lost: float | None = None
    gained: float | None = None


def accuracy(model: nn.Module, data: Data) -> float:
    """In percent, on the test samples."""
    with torch.no_grad():
        scores = model(torch.as_tensor(data.x_test)).numpy()
    return 100 * float((scores.argmax(1) == np.asarray(data.y_test)).mean())


def fixed_accuracy(graph: fx.GraphModule, data: Data) -> float:
    """The same of the program, simulated."""
    scores = np.asarray(fxloom.simulate(fxloom.lower(graph), np.asarray(data.x_test)))
    return 100 * float((scores.argmax(1) == np.asarray(data.y_test)).mean())


def small(seed: int, held_out: bool, shrink: bool) -> tuple[float, float, float]:
    """The labels of all samples. shrink: the student is its teacher, 64-300-100-10, without most of
    its neurons; else it begins with random weights."""
    data, teacher = data_of("digits l300", seed, held_out), trained("digits l300", seed, held_out)
    before: list[Any] = []
    start = teacher
    if shrink:
        sizes = {"1": {"keep": SMALL[1]}, "3": {"keep": SMALL[2]}}
        before = [PruneChannels(sparsity=0.5, criterion="reconstruction", exclude=("5",),
                                layers=sizes)]  # fmt: skip
    else:
        start = fresh(seed, *SMALL)
    keys = {"epochs": 120, "learning_rate": 6e-3, "seed": seed}
    steps = (Finetune(**keys), Distill(teacher=teacher, soft=1.0, finetune=keys))
    graph = fxloom.capture(start, data.example(2))
    alone, taught = (Recipe([*before, step]).run(graph, data).graph for step in steps)
    return accuracy(teacher, data), accuracy(alone, data), accuracy(taught, data)


def fresh(seed: int, *sizes: int) -> nn.Module:
    """A network with random weights."""
    torch.manual_seed(seed)
    return mlp(*sizes).eval()


@cache
def few(seed: int, held_out: bool) -> tuple[Data, fx.GraphModule, fx.GraphModule]:
    """Of each class a tenth of the training samples, with labels; a student with random weights,
    and what it becomes with those labels alone."""
    data = data_of("digits l300", seed, held_out)
    x, y = np.asarray(data.x_train), np.asarray(data.y_train)
    x, _, y, _ = train_test_split(x, y, train_size=LABELS, random_state=seed, stratify=y)
    labelled = Data(x, y, data.x_test, data.y_test)
    graph = fxloom.capture(fresh(seed, *SMALL), data.example(2))
    alone = Finetune(epochs=LONG, learning_rate=6e-3, seed=seed)
    return labelled, graph, alone(graph, labelled).graph


def few_labels(seed: int, held_out: bool, case: str) -> tuple[float, float, float]:
    """case: what teacher and student see. "same": the teacher was trained on all labels, the
    student sees the 126 samples and its scores. "rest": the same teacher, and the scores of all
    samples, as many steps. "own": of the teacher, too, only the 126 labels train, and the student
    sees its scores of all samples, so that no other label takes part in any way."""
    data = data_of("digits l300", seed, held_out)
    labelled, graph, alone = few(seed, held_out)
    teacher: nn.Module = trained("digits l300", seed, held_out)
    if case == "own":
        start = fxloom.capture(fresh(seed, 64, 300, 100, 10), data.example(2))
        teacher = Finetune(epochs=300, seed=seed)(start, labelled).graph
    seen = labelled if case == "same" else Data(data.x_train)
    keys = {"epochs": LONG if case == "same" else SHORT, "learning_rate": 6e-3, "seed": seed}
    taught = Distill(teacher=teacher, soft=1.0, temperature=8.0, finetune=keys)(graph, seen).graph
    return accuracy(teacher, data), accuracy(alone, data), accuracy(taught, data)


def few_bits(
    seed: int, held_out: bool, task: str, weights: Any, labels: bool
) -> tuple[float, float, float]:
    """Weights of two bits or three values, activations of four bits: the float network teaches.
    labels: whether there are some; without them there is nothing but the teacher to train on."""
    data, teacher = data_of(task, seed, held_out), trained(task, seed, held_out)
    graph = fxloom.capture(teacher, data.example(2))
    keys = {"epochs": 40, "learning_rate": 6e-3, "seed": seed}
    steps: list[list[Any]] = [[Finetune(**keys)], [Distill(soft=0.9, finetune=keys)]]
    if not labels:
        steps = [[], [Distill(soft=1.0, finetune=keys)]]
    recipes = [Recipe([Quantize(activations=4, **weights), *each]) for each in steps]
    found = [fixed_accuracy(recipe.run(graph, data).graph, data) for recipe in recipes]
    return accuracy(teacher, data), found[0], found[1]


def few_weights(
    seed: int, held_out: bool, task: str, sparsity: float
) -> tuple[float, float, float]:
    """Weights pruned step by step, trained after each, then trained longer: alone or with the
    dense network as teacher."""
    data, teacher = data_of(task, seed, held_out), trained(task, seed, held_out)
    graph = fxloom.capture(teacher, data.example(2))
    training = {"epochs": 20, "learning_rate": 6e-3, "seed": seed}
    pruned = Prune(sparsity=sparsity, method="obs", schedule="gradual", steps=5, finetune=training)(
        graph, data
    ).graph
    keys = {**training, "epochs": 40}
    steps = (Finetune(**keys), Distill(teacher=graph, soft=0.9, finetune=keys))
    found = [accuracy(step(pruned, data).graph, data) for step in steps]
    return accuracy(teacher, data), found[0], found[1]


def case(run: Callable[..., Any], *rest: Any, **bars: Any) -> Case:
    """A case of one of these functions."""
    return Case(lambda seed, held_out: run(seed, held_out, *rest), **bars)


CASES = {
    "11x fewer, pruned": case(small, True, lost=0.7),
    "11x fewer, random": case(small, False),
    "126 labels, same": case(few_labels, "same", seeds=6, gained=3.0),
    "126 labels, rest": case(few_labels, "rest", seeds=6, gained=3.0),
    "126 labels, own": case(few_labels, "own", seeds=6),
    "mlp w2a4": case(few_bits, "digits mlp", {"weights": 2}, True),
    "mlp w2a4, no labels": case(few_bits, "digits mlp", {"weights": 2}, False, seeds=5),
    "cnn ternary, no labels": case(few_bits, "digits cnn", TERNARY, False, seeds=5),
    "mlp 95% pruned": case(few_weights, "digits mlp", 0.95, seeds=4),
}


def measure(names: list[str], seeds: int | None, held_out: bool) -> Iterator[dict[str, Any]]:
    """One record for every case."""
    for name in names:
        one = CASES[name]
        began = time.perf_counter()
        count = one.seeds if seeds is None else seeds
        found = [one.run(seed, held_out) for seed in range(count)]
        teacher, alone, taught = zip(*found, strict=True)
        lost = [a - b for a, b in zip(teacher, taught, strict=True)]
        gained = [a - b for a, b in zip(taught, alone, strict=True)]
        yield {
            "case": name,
            "teacher": mean(teacher),
            "alone": mean(alone),
            "distilled": mean(taught),
            "lost": mean(lost),
            "lost_two_errors": two_errors(lost),
            "lost_bar": one.lost,
            "gained": mean(gained),
            "gained_two_errors": two_errors(gained),
            "gained_least": min(gained),
            "gained_bar": one.gained,
            "seeds": found,
            "seconds": (time.perf_counter() - began) / count,
        }


def two_errors(points: list[float]) -> float:
    """Two standard errors of the mean."""
    return 2 * stdev(points) / len(points) ** 0.5 if len(points) > 1 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--seeds", type=int, help="default: as many as the case asks for")
    parser.add_argument("--validation", action="store_true", help="never look at test samples")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("case                   teacher  alone  distilled  lost, + 2 errors     bar     "
          "gained, + or - 2 errors (least)  bar     s each")  # fmt: skip
    records = []
    for record in measure(options.case or list(CASES), options.seeds, options.validation):
        records.append(record)
        print(_line(record), flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def _line(record: dict[str, Any]) -> str:
    bound = record["lost"] + record["lost_two_errors"]
    bar, least = record["lost_bar"], record["gained_bar"]
    judged = "" if bar is None else f"{'<=' if bound <= bar else '> '} {bar:.1f}"
    worst = min(record["gained"], record["gained_least"])
    reached = "" if least is None else f"{'>=' if worst >= least else '< '} {least:.1f}"
    return (
        f"{record['case']:22} {record['teacher']:7.2f} {record['alone']:6.2f} "
        f"{record['distilled']:10.2f}  {record['lost']:5.2f} + {record['lost_two_errors']:.2f} = "
        f"{bound:5.2f}  {judged:6}  {record['gained']:+6.2f} +- {record['gained_two_errors']:.2f} "
        f"({record['gained_least']:+6.2f})            {reached:6}  {record['seconds']:6.1f}"
    )


if __name__ == "__main__":
    main()
