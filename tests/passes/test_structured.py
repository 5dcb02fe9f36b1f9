"""Chains of vectors and fixed transforms in the place of linear layers."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxloom
from fxloom.data import Data
from fxloom.errors import RecipeError
from fxloom.frontend import capture
from fxloom.multipliers import are_powers
from fxloom.passes import Finetune, Prune, Quantize, Structured
from fxloom.passes.transforms import Chain, Kind, chain_of, fit, numbers_of, size_of
from fxloom.recipe import Recipe

KINDS: tuple[Kind, ...] = ("acdc", "fastfood")


class Net(nn.Module):
    """A convolution, and linear layers behind its flattened image and on the rows of another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden = nn.Conv2d(2, 3, 3), nn.Linear(27, 20)
        self.rows, self.head = nn.Linear(20, 24, bias=False), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.hidden(self.conv(x).flatten(1)))
        rows = self.rows(torch.stack([y, torch.relu(y - 0.1)], 1))
        return self.head(torch.relu(rows.sum(1)))


def made() -> tuple[GraphModule, Data]:
    torch.manual_seed(0)
    x = torch.randn(64, 2, 5, 5)
    y = x.flatten(1)[:, :4].argmax(1)
    return capture(Net().eval(), x[:2]), Data(x, y, x[:32], y[:32])


def matrix(chain: Chain, n_in: int) -> Tensor:
    """[n_out, n_in]: what the chain computes."""
    return chain(torch.eye(n_in)).T


# The transforms -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_in", "n_out"), [(8, 8), (5, 12), (13, 3)])
def test_chains_are_what_the_papers_say(n_in: int, n_out: int) -> None:
    """ACDC with ones is the identity, fastfood's transforms are +-1 and orthogonal."""
    chain = chain_of("acdc", 1, n_in, n_out, 0)
    ones = Chain(chain.transforms, tuple(torch.ones_like(each) for each in chain.diagonals))
    torch.testing.assert_close(matrix(ones, n_in), torch.eye(n_out, n_in), atol=1e-5, rtol=0)
    size = size_of("fastfood", n_in, n_out)
    assert size == {8: 8, 12: 16, 13: 16}[max(n_in, n_out)]
    chain = chain_of("fastfood", 1, size, size, 0)
    for transform in chain.transforms:
        assert bool((transform.abs() == 1).all())
        assert torch.equal(transform @ transform.T, size * torch.eye(size))
    shuffled, plain = ({tuple(row) for row in each.tolist()} for each in chain.transforms)
    assert shuffled == plain
    assert not torch.equal(*chain.transforms)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [1, 3])
def test_numbers_are_counted(kind: Kind, depth: int) -> None:
    chain = chain_of(kind, depth, 6, 10, 0)
    assert chain.numbers == numbers_of(kind, depth, 6, 10)
    assert matrix(chain, 6).shape == (10, 6)
    again = chain_of(kind, depth, 6, 10, 0)
    assert all(map(torch.equal, chain.diagonals, again.diagonals))


@pytest.mark.parametrize("kind", KINDS)
def test_a_matrix_that_is_a_chain_is_found(kind: Kind) -> None:
    """From other vectors than its own, and at another scale."""
    chain = chain_of(kind, 1, 16, 16, 0)
    torch.manual_seed(0)
    near = tuple(each * (1 + 0.2 * torch.randn_like(each)) for each in chain.diagonals)
    wanted = 7 * matrix(Chain(chain.transforms, near), 16)
    found, error = fit(chain, wanted, 400, 0)
    assert error < 1e-6
    torch.testing.assert_close(matrix(found, 16), wanted, atol=1e-2, rtol=0)


# In graphs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_layers_become_chains_that_train_and_lower_exactly(kind: Kind) -> None:
    graph, data = made()
    recipe = Recipe(
        [Structured(kind=kind, exclude=("head",), steps=20), Finetune(epochs=2), Quantize()]
    )
    result = recipe.run(graph, data)
    summary = result.steps[0].summary
    assert list(summary["layers"]) == ["hidden", "rows"]  # type: ignore[call-overload]
    assert summary["notes"] == {"conv": "it is no linear layer"}
    names = dict(result.graph.named_parameters())
    assert {"hidden.weight_scale0", "hidden.weight_scale1"} <= names.keys()
    assert "hidden.weight" not in names
    assert sum(n.startswith("hidden.weight_scale") for n in names) == (2 if kind == "acdc" else 3)
    program = fxloom.lower(result.graph)
    program.verify()
    x = np.asarray(data.x_test)
    with torch.no_grad():
        y = result.graph(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(fxloom.simulate(program, x), y)


def test_transforms_stay_as_they_are_while_vectors_train() -> None:
    graph, data = made()
    first = Structured(include=("hidden",), steps=0)(graph)
    trained = Finetune(epochs=1)(first.graph, data).graph
    before, after = (each.state_dict() for each in (first.graph, trained))
    for key, tensor in before.items():
        is_fixed = "fastfood" in key
        assert torch.equal(tensor, after[key]) == is_fixed, key


def test_fixed_point_hadamard_transforms_need_no_multiplier_and_two_bits() -> None:
    graph, data = made()
    recipe = Recipe([Structured(include=("hidden",), steps=0), Quantize(weights=8)])
    program = fxloom.lower(recipe.run(graph, data).graph)
    transforms = [
        program.constants[instr.args[1]]
        for instr in program.instrs
        if instr.op.name == "matmul" and instr.origin == "hidden"
    ]
    assert len(transforms) == 2
    for each in transforms:
        assert each.value.type.width == 2
        assert set(np.unique(np.abs(each.data))) == {1}
        assert are_powers(each.data, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_chain_begins_with_the_error_that_the_summary_has(kind: Kind) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 32)
    graph = capture(nn.Sequential(layer), torch.randn(2, 24))
    result = Structured(kind=kind, depth=2)(graph)
    with torch.no_grad():
        got = result.graph(torch.eye(24)) - layer.bias
        wanted = layer.weight.T
        error = float((got - wanted).square().sum() / wanted.square().sum())
    found = result.summary["layers"]["0"]  # type: ignore[index]
    assert found["error"] == pytest.approx(error, rel=0.15)
    assert error < 1
    assert found["trained"] == numbers_of(kind, 2, 24, 32) < found["weights"] == 24 * 32


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "hadamard"}, "kind: required 'acdc' or 'fastfood'"),
        ({"depth": 0}, "depth: required at least 1, got 0"),
        ({"layers": {"fc": {"kind": 4}}}, r'layers\."fc"\.kind: unknown key; allowed: depth'),
        ({"steps": -1}, "steps: required a number from 0"),
        ({"finetune": {"epoch": 2}}, r"finetune\.epoch: unknown"),
    ],
)
def test_keys_are_checked(keys: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Structured(**keys)  # type: ignore[arg-type]


def test_layers_that_are_named_must_be_possible() -> None:
    graph, data = made()
    with pytest.raises(RecipeError, match="conv: it is no linear layer\nExclude what cannot be"):
        Structured(include=("conv", "hidden"))(graph)
    message = (
        "head: a chain of depth 2 has 124 numbers for 24 inputs and 4 outputs, and the matrix 96"
    )
    with pytest.raises(RecipeError, match=message):
        Structured(layers={"head": {"depth": 2}})(graph)
    with pytest.raises(RecipeError, match="no layer is left:\nconv: it is no linear layer"):
        Structured(exclude=("hidden", "rows", "head"))(graph)
    pruned = Prune(sparsity=0.5)(graph).graph
    with pytest.raises(RecipeError, match="hidden: its weights were pruned or shared"):
        Structured(include=("hidden",))(pruned)
    with pytest.raises(RecipeError, match="quantized already"):
        Structured()(Quantize()(graph, data).graph)
