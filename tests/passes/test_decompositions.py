"""The mathematics of factored layers: exact at full rank, as near as the best known below."""

from collections.abc import Sequence
from itertools import pairwise, product
from math import prod, sqrt
from typing import Any

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import parafac, partial_tucker, tensor_train, tensor_train_matrix
from torch import Tensor
from torch.nn import functional

from fxloom.errors import RecipeError
from fxloom.passes import factorable, low_rank
from fxloom.passes import polyadic as polyadic_module
from fxloom.passes.decompositions import (
    METHODS,
    TWO_FACTORS,
    macs,
    parameters,
    parts,
    parts_on_basis,
    positions,
    ranks_by_energy,
    ranks_by_vbmf,
    spectra,
)
from fxloom.passes.factorable import Layer, Method, Ranks, outline, through, weight_of
from fxloom.passes.factors import Chain
from fxloom.passes.factors import macs as macs_of_chain
from fxloom.passes.low_rank import balanced, bases, energies
from fxloom.passes.polyadic import polyadic
from fxloom.passes.tensor_trains import TensorTrain, even_digits
from fxloom.passes.tucker import Tucker
from fxloom.passes.vbmf import rank_of, threshold


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decaying(*shape: int, seed: int = 0) -> Tensor:
    """Weights whose unfoldings have singular values that fall, as those of trained layers."""
    found = normal(*shape, seed=seed)
    for axis, size in enumerate(shape):
        mixing = normal(size, size, seed=seed + 1 + axis) * torch.arange(1, size + 1) ** -0.7
        found = torch.tensordot(mixing, found.movedim(axis, 0), 1).movedim(0, axis)
    return found


def run(chain: Chain, x: Tensor) -> Tensor:
    for each in chain:
        if each.is_linear:
            x = through(each, x)
        else:
            call: Any = functional.conv2d if each.weight.dim() == 4 else functional.conv1d
            x = call(x, each.weight, None, each.stride, each.padding, each.dilation, each.groups)
    return x


def distance(found: Tensor, wanted: Tensor) -> float:
    """Relative, in the norm."""
    return float((found - wanted).norm() / wanted.norm())


def error(method: Method, layer: Layer, ranks: Ranks) -> float:
    return distance(weight_of(layer, parts(method, layer, ranks)), layer.weight)


@st.composite
def layers(draw: st.DrawFn) -> tuple[Layer, tuple[int, ...]]:
    """A layer, and the sizes of its input but samples and channels."""
    size = st.integers(1, 6)
    seed = draw(st.integers(0, 1000))
    if draw(st.booleans()):
        return Layer(normal(draw(size), draw(size), seed=seed)), (2,)
    axes = draw(st.integers(1, 2))
    kernel, stride, padding, dilation = (
        tuple(draw(st.integers(least, most)) for _ in range(axes))
        for least, most in ((1, 4), (1, 2), (0, 2), (1, 2))
    )
    groups = draw(st.integers(1, 3))
    weight = normal(groups * draw(size), draw(size), *kernel, seed=seed)
    sizes = tuple(dilation[axis] * kernel[axis] + draw(size) for axis in range(axes))
    return Layer(weight, stride, padding, dilation, groups), sizes


# Full ranks ---------------------------------------------------------------------------------------


@given(layers())
@settings(max_examples=25)
def test_full_ranks_reproduce_the_layer_with_all_its_attributes(
    drawn: tuple[Layer, tuple[int, ...]],
) -> None:
    layer, sizes = drawn
    inputs = layer.n_in * layer.groups
    x = normal(2, *sizes, inputs) if layer.is_linear else normal(2, inputs, *sizes)
    wanted = run(layer.dense, x)
    for method in METHODS.values():
        if method.problem(layer):
            continue
        ranks = method.full(layer)
        chain = parts(method, layer, ranks)
        torch.testing.assert_close(run(chain, x), wanted, rtol=0, atol=1e-5 * float(wanted.norm()))
        assert distance(weight_of(layer, chain), layer.weight) < 1e-5
        for made, drawn_up in zip(chain, outline(method, layer, ranks), strict=True):
            assert made.weight.shape == drawn_up.weight.shape
        assert parameters(method, layer, ranks) == sum(each.weight.numel() for each in chain)
        assert macs(method, layer, ranks, sizes) == _counted(chain, x)


def _counted(chain: Chain, x: Tensor) -> int:
    """Multiply-adds of one sample, from the outputs that are there."""
    found = 0
    for each in chain:
        x, rows = run((each,), x), each.weight.shape[0]
        found += each.weight.numel() * (x[0].numel() // rows)
    return found


def test_float32_is_as_good_at_full_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factorable, "DOUBLE", 0)
    for weight in (decaying(24, 16, 3, 3), decaying(8, 40, 3, 3), decaying(48, 5, 3)):
        for method in METHODS.values():
            if not method.problem(layer := Layer(weight)):
                assert error(method, layer, method.full(layer)) < 1e-5, method.name


def test_weights_of_zero_become_parts_of_zero() -> None:
    layer = Layer(torch.zeros(6, 4, 3, 3))
    for method in METHODS.values():
        for ranks in ((1,) * len(method.full(layer)), method.full(layer)):
            chain = parts(method, layer, ranks)
            assert not weight_of(layer, chain).any(), method.name
            assert all(bool(each.weight.isfinite().all()) for each in chain)
        assert ranks_by_energy(method, layer, 1.0) == (1,) * len(method.full(layer))
        assert ranks_by_vbmf(method, layer) == (1,) * len(method.full(layer))


# Lower ranks, beside the best known ---------------------------------------------------------------


@pytest.mark.parametrize("weight", [normal(24, 12, 3, 3), decaying(24, 12, 3, 3), normal(30, 7)])
def test_one_matrix_in_two_is_as_near_as_numpy_comes(weight: Tensor) -> None:
    layer = Layer(weight)
    for method in TWO_FACTORS.values():
        if method.problem(layer):
            continue
        values = np.linalg.svd(method.matrix(layer)[0].numpy())[1]
        for rank in (1, 3, 6):
            best = sqrt((values[rank:] ** 2).sum() / (values**2).sum())
            assert error(method, layer, (rank,)) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize(
    ("weight", "ranks"),
    [
        *product([normal(16, 8, 3, 3), decaying(24, 16, 5)], [(2, 3), (4, 8), (6, 5)]),
        (normal(5, 5, 4, seed=45), (2, 2)),  # 2.4% farther from the leading bases alone
    ],
)
def test_tucker_is_as_near_as_the_best_of_tensorlys_restarts(weight: Tensor, ranks: Ranks) -> None:
    starts: list[dict[str, Any]] = [{}, *({"init": "random", "random_state": k} for k in range(4))]
    best = min(
        partial_tucker(weight.numpy(), rank=ranks[::-1], modes=[0, 1], tol=1e-7, **start)[1][-1]
        for start in starts
    )
    assert error(METHODS["tucker"], Layer(weight), ranks) <= 1.01 * best


@pytest.mark.parametrize("weight", [normal(10, 6, 3, 3), decaying(10, 6, 3, 3), normal(12, 8, 3)])
@pytest.mark.parametrize("rank", [1, 4, 10])
@pytest.mark.filterwarnings("ignore:Trying to compute SVD")
def test_terms_are_as_near_as_the_best_of_tensorlys_restarts(weight: Tensor, rank: int) -> None:
    options = {"n_iter_max": 300, "tol": 1e-7, "return_errors": True}
    best = min(
        parafac(weight.numpy(), rank, init=init, random_state=0, **options)[1][-1]
        for init in ("svd", "random", "random")
    )
    assert error(METHODS["cp"], Layer(weight), (rank,)) <= 1.01 * float(best)


@pytest.mark.parametrize("weight", [normal(16, 12, 3, 3), decaying(16, 12, 3, 3)])
@pytest.mark.parametrize("ranks", [(2, 4, 3), (4, 9, 6)])
def test_trains_of_convolutions_are_nearer_than_tensorlys(weight: Tensor, ranks: Ranks) -> None:
    tensor = weight.permute(1, 2, 3, 0).numpy()
    train = tensorly.tt_to_tensor(tensor_train(tensor, (1, *ranks, 1)))
    best = np.linalg.norm(train - tensor) / np.linalg.norm(tensor)
    assert error(METHODS["tt"], Layer(weight), ranks) <= 1.0001 * best


def test_trains_of_matrices_are_nearer_than_tensorlys() -> None:
    weight, inputs, outputs, ranks = normal(24, 30), (2, 3, 5), (4, 3, 2), (3, 4)
    tensor = weight.reshape(*outputs, *inputs).numpy()
    train = tensor_train_matrix(tensor, (1, *ranks, 1))
    best = np.linalg.norm(train.to_tensor() - tensor) / np.linalg.norm(tensor)
    found = error(TensorTrain(inputs, outputs), Layer(weight), ranks)
    assert 0.9 * best < found <= 1.0001 * best


def test_terms_that_would_cancel_each_other_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cost on their size terms 94 times as long as the tensor are found here."""
    tensor = normal(1, 5, 4, 3).double()

    def longest(share: float) -> tuple[float, float]:
        monkeypatch.setattr("fxloom.passes.polyadic.SHARE", share)
        terms = polyadic(tensor, 4, 0)
        model = torch.einsum("ir,jr,kr->ijk", *(each[0] for each in terms))
        lengths = [each[0].norm(dim=0) for each in terms]
        return float(prod(lengths[1:], start=lengths[0]).max()), distance(model, tensor[0])

    (free, best), (kept, found) = longest(0), longest(0.003)
    assert kept < free / 10
    assert found <= 1.002 * best


def test_large_tensors_are_sought_in_a_smaller_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = decaying(30, 20, 3, 3).double()
    whole = polyadic(weight.unsqueeze(0), 6, 0)
    monkeypatch.setattr("fxloom.passes.polyadic.WORK", 1e8)
    searched: list[tuple[int, ...]] = []

    def noted(tensor: Tensor, count: int, seed: int) -> tuple[Tensor, ...]:
        searched.append(tuple(tensor.shape[2:]))
        return found_by(tensor, count, seed)

    found_by = polyadic_module._searched
    monkeypatch.setattr(polyadic_module, "_searched", noted)
    fewer = polyadic(weight.unsqueeze(0), 6, 0)
    assert searched == [(9, 9, 3, 3)]
    lost = [
        distance(torch.einsum("ar,br,cr,dr->abcd", *(each[0] for each in terms)), weight)
        for terms in (whole, fewer)
    ]
    assert lost[1] <= 1.02 * lost[0]


def test_the_same_seed_gives_the_same_parts() -> None:
    layer = Layer(normal(6, 4, 3, 3))
    for method in METHODS.values():
        ranks = method.feasible(layer, (3,) * len(method.full(layer)))
        one, other = parts(method, layer, ranks), parts(method, layer, ranks)
        assert all(torch.equal(a.weight, b.weight) for a, b in zip(one, other, strict=True))
    cp = METHODS["cp"]
    assert not torch.equal(parts(cp, layer, (3,), 0)[0].weight, parts(cp, layer, (3,), 1)[0].weight)


# Bases of large matrices --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(200, 260), (260, 200)])
@pytest.mark.parametrize("kind", ["noise", "falling", "flat", "deficient"])
def test_krylov_spaces_hold_the_best_basis(
    shape: tuple[int, int], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_rank, "LARGE", 128)
    monkeypatch.setattr(low_rank, "BLOCK", 8)
    matrix, rank = normal(*shape), 16
    if kind != "noise":
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        place = torch.arange(1, 201)
        spectrum = {"falling": 1 / place, "flat": place**0, "deficient": (place < 10) / place}
        matrix = left * spectrum[kind] @ right
    values = torch.linalg.svdvals(matrix.double())
    basis = bases(matrix.unsqueeze(0), rank)[0]
    torch.testing.assert_close(basis.T @ basis, torch.eye(rank), atol=1e-5, rtol=0)
    left_over = float((matrix - basis @ (basis.T @ matrix)).norm())
    best = float(values[rank:].norm())
    assert left_over <= 1.01 * best + 1e-5 * float(values.norm())


def test_energies_of_large_matrices_are_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = decaying(60, 90).unsqueeze(0)
    exact = torch.linalg.svdvals(matrix.double()).square()
    torch.testing.assert_close(energies(matrix), exact)
    monkeypatch.setattr(low_rank, "DOUBLE", 0)
    torch.testing.assert_close(energies(matrix), exact, rtol=0, atol=1e-6 * float(exact.max()))


def test_factors_are_balanced_and_compute_the_same() -> None:
    layer = Layer(decaying(12, 8, 3, 3))
    for method in METHODS.values():
        chain = parts(method, layer, method.feasible(layer, (4,) * len(method.full(layer))))
        sizes = [float(each.weight.norm()) for each in chain]
        assert max(sizes) < 4 * min(sizes), method.name
    factors = normal(1, 4, 5) * 100, normal(1, 3, 4, 2), normal(1, 6, 3) / 100
    scaled = balanced(factors)
    for given_by, read_by in pairwise(scaled):
        lengths = given_by.flatten(2).norm(dim=2), read_by.transpose(1, 2).flatten(2).norm(dim=2)
        torch.testing.assert_close(*lengths, rtol=0.1, atol=0)
    products = (torch.einsum("gbi,gcbk,gdc->dik", *each) for each in (factors, scaled))
    torch.testing.assert_close(*products)


# A given basis ------------------------------------------------------------------------------------


def test_a_chain_can_project_onto_a_given_basis() -> None:
    layer = Layer(normal(12, 4, 3, 3), (2, 1), (1, 1), (1, 1), 2)
    basis = torch.linalg.qr(normal(2, 6, 3))[0]
    chain = parts_on_basis(TWO_FACTORS["svd"], layer, basis)
    wanted = basis @ (basis.mT @ layer.weight.reshape(2, 6, -1))
    torch.testing.assert_close(weight_of(layer, chain), wanted.reshape(layer.weight.shape))
    assert chain[0].stride == (2, 1)
    assert chain[1].stride == (1, 1)
    with pytest.raises(RecipeError, match=r"svd: required ranks of at most 6, got 7"):
        parts_on_basis(TWO_FACTORS["svd"], layer, normal(2, 6, 7))


def test_the_best_basis_gives_the_parts() -> None:
    layer = Layer(normal(9, 12))
    left = torch.linalg.svd(layer.weight)[0][:, :4]
    chain = parts_on_basis(TWO_FACTORS["svd"], layer, left)
    assert distance(weight_of(layer, chain), layer.weight) == pytest.approx(
        error(METHODS["svd"], layer, (4,)), rel=1e-5
    )


# Ranks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer", [Layer(decaying(12, 5, 3, 3)), Layer(normal(8, 3, 3, 3), groups=2)]
)
@pytest.mark.parametrize("energy", [0.5, 0.9, 1.0])
def test_energy_is_kept_and_one_rank_less_would_lose_it(layer: Layer, energy: float) -> None:
    for method in METHODS.values():
        ranks = ranks_by_energy(method, layer, energy)
        assert 1 - error(method, layer, ranks) ** 2 >= energy - 1e-6, method.name
        if method.name in TWO_FACTORS and ranks[0] > 1:
            assert 1 - error(method, layer, (ranks[0] - 1,)) ** 2 < energy


def test_tuckers_ranks_by_energy_have_the_fewest_weights() -> None:
    layer, tucker = Layer(decaying(10, 7, 3, 3)), Tucker()
    kept = tucker.kept(layer)
    flat = layer.weight.flatten(2)
    first = torch.linalg.svd(flat.transpose(0, 1).flatten(1))[0][:, :3]
    last = torch.linalg.svd(flat.flatten(1))[0][:, :4]
    core = torch.einsum("ock,op,cq->pqk", flat, last, first)
    assert float(kept[2, 3]) == pytest.approx(float(core.square().sum()), rel=1e-5)
    wanted = min(
        parameters(tucker, layer, (inputs, outputs))
        for inputs, outputs in product(range(1, 8), range(1, 11))
        if kept[inputs - 1, outputs - 1] >= 0.8 * kept[-1, -1]
    )
    assert parameters(tucker, layer, ranks_by_energy(tucker, layer, 0.8)) == wanted


def test_spectra_tell_what_a_rank_loses() -> None:
    layer = Layer(normal(12, 4, 3, 3), groups=2)
    (values,) = spectra(METHODS["svd"], layer)
    lost = float(values[2:].sum() / layer.weight.square().sum())
    assert lost == pytest.approx(error(METHODS["svd"], layer, (2,)) ** 2, rel=1e-5)


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.5, 1.0])
def test_what_counts_as_signal_is_above_all_that_noise_gives(ratio: float) -> None:
    """Above the edge of Marchenko and Pastur, at which a component could be seen at all."""
    assert (1 + sqrt(ratio)) ** 2 < threshold(ratio) < 1.25 * (1 + sqrt(ratio)) ** 2


def test_the_threshold_of_square_matrices_is_the_papers() -> None:
    tau = 2.5129
    assert threshold(1.0) == pytest.approx((1 + tau) * (1 + 1 / tau), abs=1e-3)


@pytest.mark.parametrize("shape", [(60, 60), (40, 200), (200, 40)])
@pytest.mark.parametrize("rank", [0, 1, 4, 9])
@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_planted_ranks_are_found_in_noise(shape: tuple[int, int], rank: int, scale: float) -> None:
    rows, columns = shape
    planted = normal(rows, rank, seed=1) @ normal(rank, columns, seed=2)
    matrix = scale * (planted + normal(*shape, seed=3))
    assert rank_of(energies(matrix.unsqueeze(0))[0], *shape) == rank


@pytest.mark.parametrize("ratio", [0.8, 1.25])
def test_a_component_counts_from_the_threshold_on(ratio: float) -> None:
    """Of a large matrix, what a component of the noise's own directions is made to be long."""
    rows, columns = 150, 300
    left, values, right = torch.linalg.svd(normal(rows, columns).double(), full_matrices=False)
    values[0] = sqrt(threshold(rows / columns) * columns) * ratio
    matrix = (left * values @ right).unsqueeze(0)
    assert rank_of(energies(matrix)[0], rows, columns) == int(ratio > 1)


def test_convolutions_get_both_ranks_from_their_unfoldings() -> None:
    core, first, last = normal(5, 3, 3, 3, seed=1), normal(16, 3, seed=2), normal(24, 5, seed=3)
    weight = torch.einsum("opij,cp,no->ncij", core, first, last) + 0.3 * normal(24, 16, 3, 3)
    layer = Layer(weight)
    assert ranks_by_vbmf(METHODS["tucker"], layer) == (3, 5)
    assert ranks_by_vbmf(METHODS["svd"], layer) == (5,)


# What is refused ----------------------------------------------------------------------------------

CONVOLUTION = Layer(normal(8, 4, 3, 3))
LINEAR = Layer(normal(12, 30))


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("spatial", LINEAR, "kernel of two axes, both longer than 1, got none: it is a linear"),
        ("spatial", Layer(normal(8, 4, 3, 1)), "both longer than 1, got 3x1"),
        ("tucker", LINEAR, "it is a linear layer.* Use svd"),
        ("tucker", Layer(normal(8, 4, 1, 1)), "it is a 1x1 convolution.* Use svd"),
        ("cp", Layer(normal(8, 4, 1)), "it is a 1x1 convolution.* Use svd"),
        ("tt", Layer(normal(8, 4, 1)), "it is a 1x1 convolution.* Use svd"),
        ("tt", Layer(normal(7, 13)), "neither its 13 inputs nor its 7 outputs are divided"),
        *(
            (name, Layer(normal(8, 1, 3, 3), groups=8), "1 inputs and 1 outputs.*Only spatial")
            for name in ("svd", "tucker", "cp", "tt")
        ),
        *((name, Layer(normal(4, 8, 3, 3), transposed=True), "transposed") for name in METHODS),
    ],
)
def test_layers_are_refused_by_name(name: str, layer: Layer, message: str) -> None:
    with pytest.raises(RecipeError, match=f"{name}: .*{message}"):
        parts(METHODS[name], layer, (1,))


@pytest.mark.parametrize(
    ("name", "layer", "ranks", "message"),
    [
        ("svd", LINEAR, (13,), "at most 12, got 13"),
        ("svd", CONVOLUTION, (9,), "at most 8, got 9"),
        ("spatial", CONVOLUTION, (13,), "at most 12, got 13"),
        ("tucker", CONVOLUTION, (5, 9), "at most 4, 8, got 5, 9"),
        ("tucker", Layer(normal(80, 9, 3, 3)), (2, 20), "got 2, 20.* below these are 2, 18"),
        ("tucker", CONVOLUTION, (4,), "required 2 ranks, got 1"),
        ("cp", CONVOLUTION, (37,), "at most 36, got 37"),
        ("tt", CONVOLUTION, (4, 12, 9), "at most 4, 12, 8, got 4, 12, 9"),
        ("tt", CONVOLUTION, (2, 9, 4), "got 2, 9, 4.* below these are 2, 6, 4"),
        ("tt", CONVOLUTION, (4, 10, 2), "got 4, 10, 2.* below these are 4, 6, 2"),
        ("svd", LINEAR, (0,), "at least 1, got 0"),
    ],
)
def test_ranks_are_refused_with_the_largest_possible(
    name: str, layer: Layer, ranks: Ranks, message: str
) -> None:
    with pytest.raises(RecipeError, match=f"{name}: .*{message}"):
        parts(METHODS[name], layer, ranks)


@pytest.mark.parametrize(
    ("digits", "message"),
    [
        (((5, 6), ()), ""),
        (((5, 7), (3, 4)), "inputs whose product is 30, got 5x7; for example 5x6"),
        (((5, 6), (3, 5)), "outputs whose product is 12, got 3x5; for example 3x4"),
        (((5, 6), (2, 2, 3)), "as many inputs as outputs, 2 or more, got 5x6 and 2x2x3"),
    ],
)
def test_digits_are_checked(digits: tuple[tuple[int, ...], tuple[int, ...]], message: str) -> None:
    problem = TensorTrain(*digits).problem(LINEAR)
    assert message in problem if message else not problem
    assert "inputs and outputs divide linear" in TensorTrain(*digits).problem(CONVOLUTION)


@pytest.mark.parametrize(
    ("size", "count", "wanted"),
    [(784, 2, (28, 28)), (300, 2, (15, 20)), (4096, 4, (8, 8, 8, 8)), (13, 2, (1, 13))],
)
def test_digits_are_about_equal(size: int, count: int, wanted: Sequence[int]) -> None:
    assert even_digits(size, count) == wanted


@pytest.mark.parametrize("energy", [-0.1, 1.5])
def test_energies_are_shares(energy: float) -> None:
    with pytest.raises(RecipeError, match="svd: required an energy from 0 to 1"):
        ranks_by_energy(METHODS["svd"], LINEAR, energy)


def test_positions_follow_strides_from_part_to_part() -> None:
    layer = Layer(normal(8, 4, 3, 3), (2, 2), (1, 1))
    chain = outline(METHODS["cp"], layer, (5,))
    assert positions(chain, (9, 12)) == (9 * 12, 5 * 12, 5 * 6, 5 * 6)
    assert macs_of_chain(chain, positions(chain, (9, 12))) == (
        20 * 108 + 15 * 60 + 15 * 30 + 40 * 30
    )
