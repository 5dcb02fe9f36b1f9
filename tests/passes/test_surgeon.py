"""The brain surgeon against brute force, and the exact selection of the smallest numbers."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fxloom.frontend import capture
from fxloom.passes import surgeon, thresholds
from fxloom.passes.fitting import input_rows, output_rows
from fxloom.passes.patterns import Pattern
from fxloom.passes.prunable import find_prunable
from fxloom.passes.second_order import Problem
from fxloom.passes.sparsity import allocate
from fxloom.passes.surgeon import (
    Curve,
    best,
    exact_curve,
    in_rounds,
    removal,
    removed,
    sweep,
)
from fxloom.passes.thresholds import smallest


def problem(groups: int, outputs: int, inputs: int, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 50, inputs, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(groups, inputs, inputs, generator=generator, dtype=torch.float64)
    target = torch.randn(groups, outputs, inputs, generator=generator, dtype=torch.float64)
    matrix = x.transpose(1, 2) @ x / 50 + 0.01 * torch.eye(inputs, dtype=torch.float64)
    return Problem(target, matrix)


def solved(target: Tensor, matrix: Tensor, kept: list[int]) -> tuple[float, Tensor]:
    """By definition: the least error of a row with these weights, and the weights."""
    part = matrix[kept][:, kept]
    values = torch.zeros_like(target)
    values[kept] = torch.linalg.solve(part, (matrix @ target)[kept])
    off = values - target
    return float(off @ matrix @ off), values


@pytest.mark.parametrize("seed", range(5))
def test_each_removal_is_the_cheapest_single_one_and_the_rest_is_refitted(seed: int) -> None:
    case = problem(2, 3, 6, seed)
    gone = torch.zeros(2, 3, 6, dtype=torch.bool)
    order, losses = removal(case, gone)
    for group in range(2):
        for row in range(3):
            target, matrix = case.target[group, row], case.matrix[group]
            kept, before = list(range(6)), 0.0
            for step in range(6):
                errors = {
                    weight: solved(target, matrix, [k for k in kept if k != weight])[0]
                    for weight in kept
                }
                chosen = int(order[group, row, step])
                assert errors[chosen] == pytest.approx(min(errors.values()))
                assert float(losses[group, row, step]) == pytest.approx(errors[chosen] - before)
                kept.remove(chosen)
                before = errors[chosen]
    dropped = removed(order, losses, gone, 17)
    weights = best(case, ~dropped)
    for group in range(2):
        for row in range(3):
            kept = (~dropped[group, row]).nonzero().flatten().tolist()
            _, wanted = solved(case.target[group, row], case.matrix[group], kept)
            torch.testing.assert_close(weights[group, row], wanted, rtol=1e-6, atol=1e-9)


def test_the_choice_is_near_the_best_of_all() -> None:
    for seed in range(10):
        case = problem(1, 1, 8, seed)
        gone = torch.zeros(1, 1, 8, dtype=torch.bool)
        dropped = removed(*removal(case, gone), gone, 4)
        found = float(case.errors(best(case, ~dropped)))
        every = [
            solved(case.target[0, 0], case.matrix[0], list(kept))[0]
            for kept in combinations(range(8), 4)
        ]
        assert found >= min(every) * (1 - 1e-9)
        assert sorted([*every, found]).index(found) < 12  # of 70


def test_what_is_gone_goes_first_and_costs_nothing_more() -> None:
    case = problem(1, 4, 7)
    gone = torch.zeros(1, 4, 7, dtype=torch.bool)
    gone[0, 1, 2:6] = gone[0, 3, 0] = True
    order, losses = removal(case, gone)
    assert torch.equal(removed(order, losses, gone, 5), gone)
    for count in range(5, 28):
        dropped = removed(order, losses, gone, count)
        assert int(dropped.sum()) == count
        assert not (gone & ~dropped).any()
    assert allocate([exact_curve(order, losses, gone)], 10) == [10]


def test_a_sweep_with_nothing_to_remove_changes_nothing_and_reaches_every_count() -> None:
    case = problem(2, 5, 300)
    gone = torch.zeros(2, 5, 300, dtype=torch.bool)
    torch.testing.assert_close(sweep(case, gone, 0)[0], case.target)
    gone[0, :, :130] = True
    for count in (700, 1501, 2999):
        weights, kept = sweep(case, gone, count)
        assert int((~kept).sum()) == count
        assert not weights[gone].any()
        assert not weights[~kept].any()


def test_long_rows_lose_more_than_short_ones_and_less_than_without_an_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = problem(1, 16, 40)
    case = Problem(case.target, case.matrix + 10 * torch.eye(40, dtype=torch.float64))
    gone = torch.zeros(1, 16, 40, dtype=torch.bool)
    exact = best(case, ~removed(*removal(case, gone), gone, 320))
    monkeypatch.setattr(surgeon, "MOST_EXACT", 0)
    rounds = best(case, ~in_rounds(case, gone, Pattern(), 320, 1)[0])
    swept, _ = sweep(case, gone, 320)
    plain = case.target.masked_fill(smallest([case.target], 320)[0], 0)
    errors = [float(case.errors(each).sum()) for each in (exact, rounds, swept, plain)]
    assert errors == sorted(errors)
    assert errors[1] < 2 * errors[0]
    assert errors[2] < 0.9 * errors[3]


@pytest.mark.parametrize(("text", "reuse"), [("2:4", 1), ("1:8", 1), ("slots", 6), ("words", 12)])
def test_rounds_keep_to_a_pattern_and_beat_what_looks_at_magnitude(text: str, reuse: int) -> None:
    case = problem(1, 6, 24)
    pattern = Pattern.parse(text)
    gone = torch.zeros(1, 6, 24, dtype=torch.bool)
    count = round((pattern.sparsity or 0.5) * 144)
    dropped, curve = in_rounds(case, gone, pattern, count, reuse)
    assert int(dropped.sum()) == count == int(curve.sizes.sum())
    if pattern.kind == "n:m":
        assert (dropped.reshape(-1, pattern.of).sum(1) == pattern.of - pattern.kept).all()
    else:
        blocks = pattern.blocks(dropped, reuse)
        assert torch.equal(blocks.all(1), blocks.any(1))
    plain = pattern.drop(case.target.square(), count, reuse)
    found, other = (float(case.errors(best(case, ~mask)).sum()) for mask in (dropped, plain))
    assert found < other


def test_slots_and_words_are_what_a_multiplier_and_a_cycle_read() -> None:
    rows = torch.arange(12).reshape(1, 3, 4)  # stored: 0, 1, 2, ... 11
    slots, words = (Pattern.parse(kind).blocks(rows, 3).tolist() for kind in ("slots", "words"))
    assert slots == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert words == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    for kind in ("slots", "words"):
        pattern = Pattern.parse(kind)
        blocks = pattern.blocks(rows, 3)
        chosen = torch.arange(len(blocks)) == 1
        spread = pattern.spread(chosen, rows.shape, 3)
        assert sorted(rows[spread].tolist()) == sorted(blocks[1].tolist())


@given(
    st.lists(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -3.0, 1e-30]), max_size=60),
             min_size=1, max_size=4),
    st.floats(0, 1),
)  # fmt: skip
def test_the_smallest_are_those_of_a_full_sort(parts: list[list[float]], share: float) -> None:
    tensors = [torch.tensor(part) for part in parts]
    total = sum(len(part) for part in parts)
    count = round(share * total)
    masks = smallest(tensors, count)
    values = torch.cat(tensors).abs().numpy()
    order = np.argsort(values, kind="stable")[:count]
    wanted = np.zeros(total, bool)
    wanted[order] = True
    np.testing.assert_array_equal(torch.cat(masks).numpy(), wanted)


DRAWS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {  # type: ignore[type-arg]
    "normal": lambda g, n: g.standard_normal(n),
    "many zeros": lambda g, n: g.standard_normal(n) * (g.random(n) < 0.3),
    "few values": lambda g, n: g.integers(-3, 4, n).astype(float),
    "one value": lambda g, n: np.ones(n),
    "sorted": lambda g, n: np.sort(g.standard_normal(n)),
    "far apart": lambda g, n: 10.0 ** g.uniform(-30, 30, n),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_threshold_of_many_numbers_is_exact(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(thresholds, "SAMPLE", 512)
    monkeypatch.setattr(thresholds, "BLOCK", 1000)
    generator = np.random.default_rng(0)
    x = torch.from_numpy(DRAWS[name](generator, 30_011)).to(dtype)
    tensors = [x[:7], x[7:7], x[7:20_000],
               x[20_000:]]  # fmt: skip
    values = np.abs(x.double().numpy())
    for count in (0, 1, 2, 1000, 9_003, 15_000, 21_007, 29_999, 30_010, 30_011):
        masks = torch.cat(smallest(tensors, count)).numpy()
        assert masks.sum() == count
        if 0 < count < len(values):
            limit = np.partition(values, count - 1)[count - 1]
            assert values[masks].max() == limit
            assert values[~masks].min() >= limit
            ties = np.flatnonzero(values == limit)
            assert masks[ties[: masks[ties].sum()]].all()  # the first of them


def test_a_bracket_that_misses_is_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "SAMPLE", 512)
    monkeypatch.setattr(thresholds, "DEVIATIONS", 0.0)
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    for count in (50, 33_333, 66_666, 99_990):
        mask = smallest([x], count)[0]
        assert int(mask.sum()) == count
        assert x[mask].abs().max() < x[~mask].abs().min()


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 5), (3, 6)),
    "conv": (nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2), (4, 7, 8)),
    "signal": (nn.Conv1d(4, 6, 3, 2, 1), (4, 9)),
    "transposed": (nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (1, 0), (1, 2), 2, dilation=(1, 2)),
                   (4, 5, 4)),
    "transposed, cut": (nn.ConvTranspose2d(2, 3, 3, 1, 3), (2, 8, 8)),
    "transposed signal": (nn.ConvTranspose1d(4, 6, 4, 3, 2, 1, 2), (4, 9)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_rows_of_weights_times_rows_of_data_are_the_outputs(name: str) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[name]
    x = torch.randn(5, *shape)
    graph = capture(layer.eval(), x[:2])
    (each,) = find_prunable(graph)
    (node,) = each.readers
    data = input_rows(node, x)
    data = data if each.columns is None else data[:, :, each.columns]
    rows = each.rows(each.values)
    assert torch.equal(each.from_rows(rows), each.values)
    bias = dict(graph.named_parameters())["bias"].detach().reshape(len(rows), 1, -1)
    wanted = output_rows(node, layer(x).detach())
    torch.testing.assert_close(data @ rows.transpose(1, 2) + bias, wanted, rtol=1e-4, atol=1e-5)


def test_allocation_takes_the_cheapest_and_leaves_every_layer_something() -> None:
    curves = [
        Curve(torch.tensor([2, 3]), torch.tensor([1.0, 5.0], dtype=torch.float64)),
        Curve(torch.tensor([4, 1]), torch.tensor([2.0, 3.0], dtype=torch.float64)),
    ]
    found = [allocate(curves, count) for count in range(11)]
    assert found[:8] == [[0, 0], [1, 0], [2, 0], [2, 1], [2, 2], [2, 3], [2, 4], [3, 4]]
    assert found[8:] == [[4, 4], [5, 4], [5, 5]]
