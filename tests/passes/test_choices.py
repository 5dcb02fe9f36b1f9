"""Comparisons, choices and indices: exact, and nothing is rounded that was rounded before."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxloom.backends.simulator import simulate
from fxloom.data import Data
from fxloom.errors import CaptureError, DataError, UnsupportedLayer
from fxloom.exact import exact_forward
from fxloom.fixed_point import quantize_values
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes.quantize import Quantize
from fxloom.program import Program
from fxloom.quantized_ops import embedding
from tests.models import Buffers, Fn

RELATIONS = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}


def program_of(model: nn.Module, *x: Tensor, **options: Any) -> Program:
    graph = capture(model.eval(), tuple(t[:2] for t in x))
    return lower(Quantize(**options)(graph, Data(x_train=x if len(x) > 1 else x[0])).graph)


@pytest.mark.parametrize("name", RELATIONS)
def test_numbers_between_two_steps_compare_as_they_are(name: str) -> None:
    """Also numbers beyond the range, and infinite ones; as literals and as constants."""
    numbers = [0.0, 0.25, 0.3, -0.1, 0.1, -2.0, -2.25, 1.75, 1.9, 3.0, 1e30, -1e30, np.pi]
    relation = getattr(torch, name)
    x = torch.linspace(-2, 1.75, 64)[:, None].repeat(1, len(numbers))
    model = Buffers(
        lambda m, x: (
            relation(x, m.all),
            relation(m.all, x),
            relation(x, torch.inf),
            relation(x, 0.3),
        ),
        all=torch.tensor(numbers),
    )
    program = program_of(model, x, inputs=4, method="minmax")
    (port,) = program.inputs
    got = simulate(program, x.numpy())
    values = quantize_values(x.numpy(), port.value.type, port.rounding, port.overflow)
    values = values * port.value.type.step
    single = np.float32(numbers).astype(np.float64)
    compare = RELATIONS[name]
    wanted = [
        compare(values, single),
        compare(single, values),
        compare(values, np.inf),
        compare(values, 0.3),
    ]
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    widest = max(constant.value.type.width for constant in program.constants.values())
    assert widest <= port.value.type.width + 2


def test_what_is_only_chosen_is_never_rounded() -> None:
    def choose(m: Any, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        larger = torch.maximum(x, -y)
        return (
            torch.where(larger > 0.5, larger, x.abs() * (y > x)),
            x.masked_fill(y.sign() < 0, 0.25).amin(1),
            functional.hardshrink(torch.stack([x, y], 1)).argmax(2),
        )

    program = program_of(Fn(choose), torch.randn(64, 5), torch.randn(64, 5), activations=6)
    assert not [instr for instr in program.instrs if instr.op.name in ("requantize", "mul")]


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x, n: 1 / x.abs().clamp(min=n),
        lambda m, x, n: x / (x.abs().sum(1, keepdim=True) + n),
        lambda m, x, n: torch.maximum(x, m.number) * x,
        lambda m, x, n: torch.where(x > 0, x, n) * x,
        lambda m, x, n: (x - m.number) * x,
    ],
)
@pytest.mark.parametrize("number", [1e-12, 1e-30])
def test_an_epsilon_beside_values_makes_them_no_wider(
    function: Callable[..., Any], number: float
) -> None:
    x = torch.randn(64, 5) * 1000
    model = Buffers(lambda m, x: function(m, x, number), number=torch.tensor(number))
    program = program_of(model, x)
    assert max(instr.result.type.width for instr in program.instrs) <= 48
    got = simulate(program, x.numpy())
    assert isinstance(got, np.ndarray)
    wanted = model(x).numpy()
    assert np.median(np.abs(got - wanted)) < 0.02 * np.abs(wanted).max()


def test_a_prelu_is_rounded_once_with_its_layer() -> None:
    program = program_of(nn.Sequential(nn.Linear(5, 4), nn.PReLU(4)), torch.randn(64, 5))
    assert [instr.op.name for instr in program.instrs].count("requantize") == 1


def test_an_index_beyond_the_table_is_its_last_row() -> None:
    model = nn.Embedding(5, 2)
    graph = capture(model, torch.tensor([[1, 4]]))
    quantized = Quantize()(graph, Data(x_train=torch.tensor([[0, 1], [1, 2]]))).graph
    program = lower(quantized)
    assert str(program.inputs[0].value.type) == "ufixed<3,3>"  # all rows, though few were seen
    x = torch.tensor([[0, 4], [5, 7], [-3, 900]])
    got = simulate(program, x.numpy())
    np.testing.assert_array_equal(got, exact_forward(quantized, x).numpy())
    np.testing.assert_array_equal(got[1:, 1], got[[0, 0], 1])
    np.testing.assert_array_equal(got[2, 0], got[0, 0])
    np.testing.assert_array_equal(quantized(x).detach().numpy(), got)


def test_rows_that_were_asked_for_get_the_gradient() -> None:
    weight = torch.randn(4, 3, requires_grad=True)
    embedding(torch.tensor([[1.0, 1.0, 9.0]]), weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.sum(1).tolist() == [0, 6, 0, 3]


def test_quantized_choices_can_be_trained() -> None:
    def choose(m: Any, x: Tensor) -> Tensor:
        y = m.act(m.fc(x))
        return torch.where(y > 0.1, y, -y @ y.transpose(1, 2)) + torch.maximum(x, y).abs()

    x = torch.randn(32, 4, 4)
    graph = capture(Fn(choose, fc=nn.Linear(4, 4), act=nn.PReLU()), x[:2])
    quantized = Quantize()(graph, Data(x_train=x)).graph
    quantized(x).square().mean().backward()
    gradients = {name: p.grad for name, p in quantized.named_parameters()}
    assert len(gradients) == 3
    assert all(g is not None and torch.isfinite(g).all() and g.any() for g in gradients.values())


VECTOR = torch.randn(2, 5)
MATRIX = torch.randn(2, 4, 4)
INDICES = torch.tensor([[1, 2], [3, 0]])
REFUSED: dict[str, tuple[Callable[..., Any], Tensor, str]] = {
    "layer on integers": (lambda m, i: m.fc(i), INDICES, r"fc .*computes with torch.int64.*float"),
    "arithmetic on integers": (lambda m, x: x.argmax(1) + 1, VECTOR, "computes with torch.int64"),
    "arithmetic on indices": (
        lambda m, i: functional.embedding(i * 2, m.stack.reshape(24, 1)),
        INDICES,
        "mul.*computes indices with torch.int64.*before the model",
    ),
    "sum of conditions": (lambda m, x: (x > 0).sum(1), VECTOR, r"sum.*\.float\(\) first"),
    "floats to integers": (lambda m, x: x.long(), VECTOR, "drops fractions"),
    "infinite fill": (
        lambda m, x: x.masked_fill(x > 0, -torch.inf),
        VECTOR,
        "no format holds the mask -inf",
    ),
    "mask outside of softmax": (
        lambda m, x: torch.where(x > 0, x, -1e9).amax(1),
        VECTOR,
        r"where .*mask -1e\+09 beside other values",
    ),
    "constant mask outside of softmax": (
        lambda m, x: (x + m.mask).amax(1),
        VECTOR,
        r"add .*mask -1e\+09 beside other values",
    ),
    "added mask before a sigmoid": (
        lambda m, x: (x + (1 - (x > 0).float()) * -10000.0).sigmoid(),
        VECTOR,
        "add .*mask -10000 beside other values",
    ),
    "mask from an input": (
        lambda m, x: (x + (1 - x[:, :1]) * -10000.0).softmax(1),
        VECTOR,
        r"softmax.*something times -10000.*\(mask > 0.5\).float\(\) \* -10000.*torch\.where",
    ),
    "argmax of all": (lambda m, x: x.argmax(), VECTOR, "argmax.*holds the batch"),
    "argmax over the batch": (lambda m, x: x.argmax(0), VECTOR, "argmax.*holds the batch"),
    "fractional power": (lambda m, x: x**1.5, VECTOR, r"pow.*no lowering"),
    "power of a number": (lambda m, x: 2**x, VECTOR, r"pow.*no lowering"),
    "diagonal over the batch": (
        lambda m, x: x.transpose(0, 1).diagonal(),
        MATRIX,
        "diagonal.*holds the batch",
    ),
    "einsum over the batch": (lambda m, x: torch.einsum("bi,bj->ij", x, x), VECTOR, "einsum"),
    "product over the batch": (lambda m, x: x.T @ x, VECTOR, "matmul.*batch"),
    "some matrices": (
        lambda m, x: x.reshape(-1, 2, 1, 2, 4) @ m.stack,
        MATRIX,
        r"matmul.*constant of shape \[2, 3, 4, 1\] must have the leading dimensions",
    ),
    "bits of integers": (lambda m, i: i & 1, INDICES, "bitwise_and|__and__"),
    "max_norm": (lambda m, i: functional.embedding(i, m.fc.weight, max_norm=1.0), INDICES, "fc"),
    "computed table": (
        lambda m, x: functional.embedding(INDICES, x[0]),
        VECTOR,
        "select|embedding",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exact_is_refused_by_name(name: str) -> None:
    function, x, message = REFUSED[name]
    mask = torch.tensor([0, 0, -1e9, 0, 0])
    model = Buffers(function, stack=torch.randn(2, 3, 4, 1), mask=mask)
    model.fc = nn.Linear(2, 3)
    with pytest.raises((UnsupportedLayer, CaptureError), match=message):
        capture(model, x)


def test_data_of_indices_must_be_whole_numbers() -> None:
    graph = capture(nn.Embedding(5, 2), INDICES)
    with pytest.raises(DataError, match=r"required .*torch.int64.*float32"):
        Quantize()(graph, Data(x_train=np.array([[0.5, 1.0]])))


def test_a_constant_may_stand_anywhere_among_concatenated_parts() -> None:
    row = torch.linspace(-1, 1, 3)
    for order in set(itertools.permutations("cxcx")):

        def joined(m: Any, x: Tensor, order: tuple[str, ...] = order) -> Tensor:
            fixed = m.row.expand(x.shape[0], -1)
            return torch.cat([fixed if part == "c" else x for part in order], 1)

        model, x = Buffers(joined, row=row), torch.randn(8, 3)
        program = program_of(model, x, weights=16, inputs=16)
        np.testing.assert_allclose(simulate(program, x.numpy()), model(x), atol=1e-3)
