"""Decompositions of large weights beside NumPy's and tensorly's, in turn, on the same weights.

One thread, CPU time, median; errors are over the best there is (svd) or the best of theirs (tucker,
cp, tt). "noise": normal weights, the hardest; "falling": unfoldings with singular values like
1 / sqrt(k), as trained layers have. Each case runs in a process of its own.
"""

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.alone import each_alone, timed

CASES = ["svd", "bases", "tucker", "tt", "cp"]
GATES = {
    "svd": {"faster": 8.0, "error": 1.01},
    "bases": {"faster": 4.0, "error": 1.01},
    "tucker": {"faster": 2.0, "error": 1.01},
    "tt": {"faster": 0.0, "error": 1.0001},
    "cp": {"faster": 1.0, "error": 1.01},
}
KINDS = ("noise", "falling")


def measure_all(names: Sequence[str] | None, quick: bool) -> Iterator[dict[str, Any]]:
    """One record a case and kind of weights."""
    for name in names or CASES:
        for kind in KINDS:
            yield from each_alone("low_rank_scale", [name], kind, "1" if quick else "3")


def weights(kind: str, *shape: int) -> Any:
    """Normal weights, or those whose unfoldings have falling singular values."""
    import torch

    torch.manual_seed(0)
    found = torch.randn(shape)
    if kind == "falling":
        for axis, size in enumerate(shape):
            mixing = torch.linalg.qr(torch.randn(size, size))[0]
            mixing = mixing * torch.arange(1, size + 1) ** -0.5
            found = torch.tensordot(mixing, found.movedim(axis, 0), 1).movedim(0, axis)
    return found


def measure(case: str, kind: str, rounds: int) -> dict[str, Any]:
    """Seconds of both, and the error over the best."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # tensorly's, of starts with fewer vectors than terms
    shape, ranks, ours, error, other, best = {
        "svd": _svd,
        "bases": _bases,
        "tucker": _tucker,
        "tt": _tt,
        "cp": _cp,
    }[case](kind)
    ours()  # what is loaded at its first use
    mine = [timed(ours) for _ in range(rounds)]
    theirs = [timed(other) for _ in range(rounds)]
    seconds, others = (median(s for _, s in each) for each in (mine, theirs))
    return {
        "case": case,
        "kind": kind,
        "shape": shape,
        "ranks": ranks,
        "seconds": seconds,
        "other_s": others,
        "faster": others / seconds,
        "error": error(mine[0][0]) / best(theirs[0][0]),
    }


Error = Callable[[Any], float]
Case = tuple[Sequence[int], Sequence[int], Callable[[], Any], Error, Callable[[], Any], Error]
"""Shape, ranks, our call and the error of what it gives, their call and the error of that, or the
best there is."""


def _ours(method: str, weight: Any, ranks: tuple[int, ...]) -> tuple[Callable[[], Any], Error]:
    from fxloom.passes.decompositions import METHODS, parts
    from fxloom.passes.factorable import Layer, weight_of

    layer = Layer(weight)

    def error(chain: Any) -> float:
        return float((weight_of(layer, chain) - weight).norm() / weight.norm())

    return lambda: parts(METHODS[method], layer, ranks), error


def _svd(kind: str) -> Case:
    """A linear layer at a tenth of its rank, beside all singular values and vectors."""
    import numpy as np

    weight, rank = weights(kind, 2048, 2048), 205

    def best(found: Any) -> float:
        squares = found[1].astype(np.float64) ** 2
        return float(np.sqrt(squares[rank:].sum() / squares.sum()))

    return (
        weight.shape,
        (rank,),
        *_ours("svd", weight, (rank,)),
        lambda: np.linalg.svd(weight.numpy(), full_matrices=False),
        best,
    )


def _bases(kind: str) -> Case:
    """Where the Tucker decomposition starts: bases of both unfoldings."""
    import numpy as np
    import torch

    from fxloom.passes.low_rank import bases

    weight, ranks = weights(kind, 512, 512, 3, 3), (128, 128)
    unfolded = weight.flatten(1), weight.transpose(0, 1).flatten(1)

    def missing(found: Any) -> float:
        last, first = found
        core = torch.einsum("ockl,op,cq->pqkl", weight, last, first)
        return float((1 - core.norm() ** 2 / weight.norm() ** 2) ** 0.5)

    def svds() -> list[Any]:
        found = (np.linalg.svd(each.numpy(), full_matrices=False)[0] for each in unfolded)
        return [torch.from_numpy(each[:, : ranks[0]]) for each in found]

    return (
        weight.shape,
        ranks,
        lambda: [bases(each.unsqueeze(0), ranks[0])[0] for each in unfolded],
        missing,
        svds,
        missing,
    )


def _tucker(kind: str) -> Case:
    from tensorly.decomposition import partial_tucker

    weight, ranks = weights(kind, 512, 512, 3, 3), (128, 128)
    return (
        weight.shape,
        ranks,
        *_ours("tucker", weight, ranks),
        lambda: partial_tucker(weight.numpy(), rank=ranks, modes=[0, 1]),
        lambda found: float(found[1][-1]),
    )


def _tt(kind: str) -> Case:
    import numpy as np
    from tensorly import tt_to_tensor
    from tensorly.decomposition import tensor_train

    weight, ranks = weights(kind, 256, 256, 3, 3), (64, 128, 64)
    tensor = weight.permute(1, 2, 3, 0).numpy()

    def missing(train: Any) -> float:
        return float(np.linalg.norm(tt_to_tensor(train) - tensor) / np.linalg.norm(tensor))

    return (
        weight.shape,
        ranks,
        *_ours("tt", weight, ranks),
        lambda: tensor_train(tensor, (1, *ranks, 1)),
        missing,
    )


def _cp(kind: str) -> Case:
    """Beside the best of three starts of 200 sweeps, the time being that of all."""
    from tensorly.decomposition import parafac

    weight, rank = weights(kind, 64, 64, 3, 3), 48

    def starts() -> list[float]:
        options = {"n_iter_max": 200, "tol": 1e-7, "return_errors": True}
        return [
            float(parafac(weight.numpy(), rank, init=init, random_state=seed, **options)[1][-1])
            for seed, init in enumerate(("svd", "random", "random"))
        ]

    return weight.shape, (rank,), *_ours("cp", weight, (rank,)), starts, min


def table(records: Sequence[dict[str, Any]]) -> Table:
    """Figures with their gates."""
    shown = Table(title="Decompositions of large weights: one thread")
    for title in ("case", "weights", "shape", "ranks"):
        shown.add_column(title)
    for title in ("seconds", "theirs", "faster", "error over the best"):
        shown.add_column(title, justify="right")
    for record in records:
        gates = GATES[record["case"]]
        shown.add_row(
            record["case"],
            record["kind"],
            *("x".join(map(str, record[key])) for key in ("shape", "ranks")),
            f"{record['seconds']:.2f}",
            f"{record['other_s']:.2f}",
            f"{record['faster']:.1f} (>= {gates['faster']:g})",
            f"{record['error']:.4f} (<= {gates['error']:g})",
        )
    return shown


if __name__ == "__main__":
    name, kind, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    print(json.dumps(measure(name, kind, rounds)))
