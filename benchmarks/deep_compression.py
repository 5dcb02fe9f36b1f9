"""Deep Compression of networks for the digits of scikit-learn: bits and accuracy.

    OMP_NUM_THREADS=1 python -m benchmarks.deep_compression --json deep_compression.json

Prune, share, quantize, finetune (Han et al. 2016, arXiv 1510.00149), then the integers of the
program are coded, decoded and compared. Networks, data and training are those of
`benchmarks.quantization`: ten seeds, another split, other weights and another order of training for
each. Accuracy is that of the simulated program; differences are paired, float minus compressed on
the same test samples, and a bar holds where their mean + 2 standard errors reaches it. The rate is
all parameters as float32 over all that is stored, counted by `stored_bits`.

Widths, sparsities and epochs are one set for each network, all seeds alike. They were chosen as
--validation does: it holds out a fifth of each training part, trains on the rest and never looks at
the test samples.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, fx, nn

import fxloom
from benchmarks import quantization
from benchmarks.quantization import BATCH, EPOCHS, TASKS, mlp, train
from fxloom import Data, Program, Recipe
from fxloom.coding import decode_weights, encode_weights
from fxloom.passes import Distill, Finetune, Prune, Quantize, ShareWeights

FORMAT_BITS = 16
"""Of a fixed-point format: 6 for its width, 9 for its binary point, 1 for its sign."""
TEMPERATURE, SOFT = 4.0, 0.7
"""Of distillation: of the softmax, and the share of the loss that is of the teacher's scores."""


@dataclass(frozen=True)
class Case:
    """What is done to a network.

    task: the network that is compressed, one of TASKS. rate, points: the bars. student: what it is
    distilled to first. sparsity, steps, epochs: of pruning, with as many epochs after each step.
    clusters: of the codebook of every layer. settling: epochs after all is rounded.
    """

    task: str
    rate: float
    points: float
    sparsity: float
    clusters: int
    student: Callable[[], nn.Module] | None = None
    steps: int = 10
    epochs: int = 40
    settling: int = 40

    def recipe(self, seed: int) -> Recipe:
        """The passes."""
        pruning = {"epochs": self.epochs, "learning_rate": 6e-3, "seed": seed}
        return Recipe(
            [
                Prune(
                    sparsity=self.sparsity,
                    method="obs",
                    schedule="gradual",
                    steps=self.steps,
                    finetune=pruning,
                ),
                ShareWeights(clusters=self.clusters),
                Quantize(biases=8),
                Finetune(epochs=self.settling, seed=seed),
            ]
        )


CASES = {
    "mlp": Case("digits mlp", 24, 1.0, 0.87, 8),
    "mlp distilled": Case("digits mlp", 35, 1.0, 0.82, 8, lambda: mlp(64, 48, 24, 10)),
    "lenet": Case("digits lenet", 35, 1.0, 0.91, 8, steps=5),
    "l300": Case("digits l300", 50, 1.0, 0.935, 8, steps=5, epochs=20),
}


def stored_bits(program: Program) -> dict[str, int]:
    """Bits of all that must be stored to have the program's numbers back, by what they are for.

    Weights and biases are encoded, whole bytes each, with their codebooks, run lengths and code
    tables, and decoded again.
    """
    found = {"weights": 0, "biases": 0}
    for constant in program.constants.values():
        coded = encode_weights(constant.data)
        decoded = decode_weights(coded)
        assert decoded.dtype == constant.data.dtype
        assert np.array_equal(decoded, constant.data), constant.value.name
        found["weights" if constant.data.ndim > 1 else "biases"] += coded.bits
    declared = sum(instr.op.name == "requantize" for instr in program.instrs)
    formats = len(program.inputs) + len(program.constants) + declared
    return {**found, "formats": formats * FORMAT_BITS}


@cache
def data_of(task: str, seed: int, held_out: bool) -> Data:
    """The data of a seed. held_out: a fifth of the training part instead of the test samples."""
    data = quantization.data_of(task, seed)
    if not held_out:
        return data
    x, y = np.asarray(data.x_train), np.asarray(data.y_train)
    parts = train_test_split(x, y, test_size=0.2, random_state=seed, stratify=y)
    return Data(parts[0], parts[2], parts[1], parts[3])


@cache
def trained(task: str, seed: int, held_out: bool) -> nn.Module:
    """The trained float network."""
    if not held_out:
        return quantization.trained(task, seed)
    torch.manual_seed(seed)
    model = TASKS[task].make()
    train(model, *_samples(data_of(task, seed, held_out)), seed)
    return model.eval()


def _samples(data: Data) -> tuple[Tensor, Tensor]:
    return torch.as_tensor(data.x_train), torch.as_tensor(data.y_train).long()


def distilled(teacher: nn.Module, student: nn.Module, data: Data, seed: int) -> fx.GraphModule:
    """The student, trained on the labels and on the scores of its teacher."""
    training = {"epochs": EPOCHS, "batch": BATCH, "learning_rate": 3e-3, "seed": seed}
    step = Distill(teacher=teacher, temperature=TEMPERATURE, soft=SOFT, finetune=training)
    return step(fxloom.capture(student, data.example(2)), data).graph


def compressed(case: Case, seed: int, held_out: bool) -> dict[str, Any]:
    """One seed: accuracies in percent, bits, and the weights that are kept."""
    model, data = trained(case.task, seed, held_out), data_of(case.task, seed, held_out)
    x, y = np.asarray(data.x_test), np.asarray(data.y_test)
    graph = fxloom.capture(model, torch.from_numpy(x[:2]))
    if case.student is not None:
        torch.manual_seed(seed)
        graph = distilled(model, case.student(), data, seed)
    program = fxloom.lower(case.recipe(seed).run(graph, data).graph)
    with torch.no_grad():
        exact, first = (
            float((net(torch.from_numpy(x)).argmax(1).numpy() == y).mean())
            for net in (model, graph)
        )
    fixed = float((np.asarray(fxloom.simulate(program, x)).argmax(1) == y).mean())
    bits = stored_bits(program)
    weights = [each.data for each in program.constants.values() if each.data.ndim > 1]
    return {
        "float": 100 * exact,
        "student": 100 * first,
        "lost": 100 * (exact - fixed),
        "rate": 32 * sum(p.numel() for p in model.parameters()) / sum(bits.values()),
        "bits": bits,
        "kept": sum(int(np.count_nonzero(w)) for w in weights) / sum(w.size for w in weights),
    }


def measure(cases: dict[str, Case], seeds: int, held_out: bool) -> Iterator[dict[str, Any]]:
    """One record for every network."""
    for name, case in cases.items():
        for seed in range(seeds):
            trained(case.task, seed, held_out)
        began = time.perf_counter()
        found = [compressed(case, seed, held_out) for seed in range(seeds)]
        points = [each["lost"] for each in found]
        settings = {key: value for key, value in asdict(case).items() if key != "student"}
        yield {
            "network": name,
            **settings,
            **{key: mean(each[key] for each in found) for key in ("float", "student", "kept")},
            "lost": mean(points),
            "two_errors": 2 * stdev(points) / len(points) ** 0.5 if len(points) > 1 else 0.0,
            "reached": mean(each["rate"] for each in found),
            "least": min(each["rate"] for each in found),
            "bits": {key: mean(each["bits"][key] for each in found) for key in found[0]["bits"]},
            "seconds": (time.perf_counter() - began) / seeds,
            "seeds": found,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--net", action="append", choices=list(CASES), help="networks")
    parser.add_argument("--quick", action="store_true", help="two seeds, few epochs")
    parser.add_argument("--validation", action="store_true", help="never look at test samples")
    parser.add_argument("--options", default="{}", help="JSON of other settings of the networks")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keys = json.loads(options.options)
    if options.quick:
        keys = {"steps": 3, "epochs": 5, "settling": 5} | keys
    cases = {name: _changed(CASES[name], keys) for name in options.net or CASES}
    seeds = 2 if options.quick else options.seeds
    print("network        float %  points lost, + 2 errors   bar  kept %   rate (least)    bar  "
          "bits: weights, biases, formats  s each")  # fmt: skip
    records = []
    for record in measure(cases, seeds, options.validation):
        records.append(record)
        print(_line(record), flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def _changed(case: Case, keys: dict[str, Any]) -> Case:
    return replace(case, **keys)


def _line(record: dict[str, Any]) -> str:
    bound = record["lost"] + record["two_errors"]
    return (
        f"{record['network']:14} {record['float']:7.2f} {record['lost']:7.2f} + "
        f"{record['two_errors']:.2f} = {bound:5.2f} {_judged(record['points'] - bound)} "
        f"{record['points']:3.1f} {100 * record['kept']:7.2f} {record['reached']:6.1f} "
        f"({record['least']:5.1f}) {_judged(record['least'] - record['rate'], '>=', '< ')} "
        f"{record['rate']:2.0f}  "
        + " ".join(f"{bits:8.0f}" for bits in record["bits"].values())
        + f" {record['seconds']:16.2f}"
    )


def _judged(slack: float, holds: str = "<=", fails: str = "> ") -> str:
    return holds if slack >= 0 else fails


if __name__ == "__main__":
    main()
