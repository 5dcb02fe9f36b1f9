"""Models that bring formats along: fxloom.requantize in their forward."""

import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxloom import capture, lower, simulate
from fxloom.errors import CaptureError, UnsupportedLayer, VerifyError
from fxloom.exact import exact_forward
from tests.given_nets import Rounded, Weighted, random_net, rounded


class Scaled(nn.Module):
    """A layer whose weights, bias, scale and output have formats of their own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = Weighted(nn.Linear(inputs, outputs, bias=False))
        self.bias = nn.Parameter(torch.randn(outputs) / 3)
        self.scale = nn.Parameter(torch.rand(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x) * rounded(self.scale, 16, 1) + rounded(self.bias, 6, 1)
        return rounded(torch.relu(y), 6, 0, False)


class Residual(nn.Module):
    """Several readers of a value, a sum and a concatenation; several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Weighted(nn.Linear(9, 9)), Weighted(nn.Linear(9, 9))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = rounded(x, 8, 2)
        y = rounded(torch.relu(self.first(x)), 6, 2, False)
        z = self.second(y) + x
        return rounded(z, 6, 3), rounded(z, 4, 2, True, "TRN WRAP"), torch.cat([y, z, x], 1)


class SeveralRoundings(nn.Module):
    """An input that is rounded in several ways."""

    def __init__(self, modes: str) -> None:
        super().__init__()
        self.modes = modes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        wide, narrow = rounded(x, 8, 2, True, self.modes), rounded(x, 5, 2, True, self.modes)
        return wide + narrow, rounded(x.flatten(1), 4, 1, False, self.modes)


class MovedInput(nn.Module):
    """An input that is moved before it is rounded, twice into the same format."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.permute(0, 2, 1)
        return rounded(x, 8, 2).flatten(1), rounded(functional.pad(x, (1, 1)), 8, 2)


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.Embedding(11, 4), Weighted(nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.embedding(x, rounded(self.rows.weight, 6, 2)).flatten(1))


class Slopes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.slopes = Weighted(nn.Linear(9, 4)), nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return functional.prelu(self.layer(rounded(x, 8, 2)), rounded(self.slopes, 6, 0))


def in_order(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(Rounded(8, 3), *layers)


def image(*layers: nn.Module) -> nn.Module:
    return in_order(Weighted(nn.Conv2d(3, 4, 3, padding=1)), *layers)


NARROW = Rounded(6, 2, False)


def make(seed: int = 0) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Every case with the shape of its samples."""
    torch.manual_seed(seed)
    head = (nn.Flatten(), Weighted(nn.Linear(36, 5)), Rounded(9, 4))
    two = (2, 1, True)
    return {
        "layers with scales": (in_order(Scaled(9, 5), Scaled(5, 3)), (9,)),
        "convolution": (image(nn.ReLU(), NARROW, nn.MaxPool2d(2), *head), (3, 6, 6)),
        "average and relu": (
            image(nn.AvgPool2d(3, padding=1), nn.ReLU(), nn.Flatten(), NARROW),
            (3, 7, 7),
        ),
        "average of what is there": (
            image(nn.AvgPool2d(3, 1, 1, False, False), Rounded(6, 2, modes="TRN WRAP")),
            (3, 7, 7),
        ),
        "average of what is there and relu": (
            image(nn.AvgPool2d(3, padding=1, count_include_pad=False), nn.ReLU(), NARROW),
            (3, 7, 7),
        ),
        "uneven windows": (
            image(nn.AdaptiveAvgPool2d(5), Rounded(7, 2, modes="RND SAT_SYM")),
            (3, 8, 8),
        ),
        "mean": (in_order(nn.AdaptiveAvgPool2d(1), nn.Flatten(), Rounded(7, 2)), (3, 7, 7)),
        "mean of a power of two": (in_order(nn.AdaptiveAvgPool2d(1), nn.Flatten()), (3, 8, 8)),
        "binary points by channel": (
            in_order(Weighted(nn.Conv2d(4, 8, 3, groups=4), shifts=[0, 1, 2, 3, 0, 1, 2, 0])),
            (4, 6, 6),
        ),
        "bits by channel": (in_order(Weighted(nn.Linear(9, 3), widths=[2, 6, 4])), (9,)),
        "transposed": (
            in_order(Weighted(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)), NARROW),
            (4, 5, 5),
        ),
        "transposed with binary points": (
            in_order(Weighted(nn.ConvTranspose2d(4, 6, 3, 2, 1), shifts=[0, 1, 2, 1]), NARROW),
            (4, 5, 5),
        ),
        "transposed and binary": (
            in_order(Weighted(nn.ConvTranspose1d(4, 6, 3, 2, 1), two, encoding="binary"), NARROW),
            (4, 5),
        ),
        "binary": (
            in_order(Weighted(nn.Linear(9, 3), two, shifts=[0, 1, 0], encoding="binary")),
            (9,),
        ),
        "ternary": (in_order(Weighted(nn.Linear(9, 3), two, encoding="ternary")), (9,)),
        "powers of two": (
            in_order(Weighted(nn.Linear(9, 3), (8, 1, True), encoding="power_of_two")),
            (9,),
        ),
        "residual": (Residual(), (9,)),
        "rounded down in several ways": (SeveralRoundings("TRN SAT"), (9, 1)),
        "rounded in several ways": (SeveralRoundings("RND SAT_SYM"), (9, 1)),
        "moved input": (MovedInput(), (4, 3)),
        "slopes": (Slopes(), (9,)),
        "bounds": (in_order(Scaled(9, 5), nn.Hardtanh(-1, 1 - 2**-7), nn.LeakyReLU(0.125)), (9,)),
    }  # fmt: skip


@pytest.mark.parametrize("name", make())
def test_its_own_formats_are_what_is_computed(name: str) -> None:
    net, shape = make()[name]
    x = torch.randn(64, *shape)
    graph = capture(net.eval(), x[:2])
    wanted = net.double()(x.double())
    program = lower(graph)
    for result in (simulate(program, x.numpy()), exact_forward(graph, x)):
        pairs = zip(each(wanted), each(result), strict=True)
        assert all(np.array_equal(np.asarray(a.detach()), np.asarray(b)) for a, b in pairs)


def each(result: object) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)  # type: ignore[return-value]


def test_rows_of_a_table_have_its_format_and_indices_that_of_its_length() -> None:
    net, x = Rows().eval(), torch.randint(0, 11, (16, 2))
    program = lower(capture(net, x[:2]))
    np.testing.assert_array_equal(simulate(program, x.numpy()), net(x).detach().numpy())
    assert str(program.inputs[0].value.type) == "ufixed<4,4>"


REFUSED = {
    "no rounding of the input": (
        nn.Sequential(Weighted(nn.Linear(9, 5))),
        (9,),
        r"input input: it has no fixed-point format. Run the quantize pass",
    ),
    "input read twice": (
        SeveralRoundings("RND_CONV SAT"),
        (9, 1),
        r"input x: several roundings read it, .* Round it once in front of all",
    ),
    "mean without an end": (
        in_order(nn.AdaptiveAvgPool2d(1)),
        (3, 3, 3),
        r"1 .*: a quotient by 9 has no end in binary, and nothing rounds it. Round it",
    ),
    "weights without a format": (
        in_order(nn.Linear(9, 5)),
        (9,),
        r"1.weight has no fixed-point format. Run the quantize pass",
    ),
    "batch norm": (
        in_order(Weighted(nn.Linear(9, 5)), nn.BatchNorm1d(5)),
        (9,),
        r"2.scale has no fixed-point format",
    ),
    "softmax": (in_order(nn.Softmax(1)), (9,), r"1 .*softmax.*Run the quantize pass"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_format_is_refused_by_name(name: str) -> None:
    net, shape, message = REFUSED[name]
    graph = capture(net.eval(), torch.randn(2, *shape))
    with pytest.raises(UnsupportedLayer, match=message):
        lower(graph)


def test_products_that_are_too_wide_name_their_layer() -> None:
    wide = (32, 2, True)
    net = in_order(*(Weighted(nn.Linear(4, 4, bias=False), wide) for _ in range(2)))
    graph = capture(net.eval(), torch.randn(2, 4))
    with pytest.raises(VerifyError, match=re.escape("2.linear (matmul): fixed-point width")):
        lower(graph)


def test_a_norm_with_rounded_weights_is_refused_by_name() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            norm = self.norm
            weight = rounded(norm.weight, 6, 2)
            return functional.batch_norm(x, norm.running_mean, norm.running_var, weight, norm.bias)

    with pytest.raises(UnsupportedLayer, match="multiply by the rounded one behind it"):
        capture(Net().eval(), torch.randn(2, 4))


class Ties(nn.Module):
    """A sum whose order decides ties in float32."""

    def __init__(self, faulty: bool = False) -> None:
        super().__init__()
        self.layer, self.faulty = nn.Linear(400, 40), faulty

    def forward(self, x: Tensor) -> Tensor:
        x = rounded(x, 18, 3)
        y = rounded(self.layer(x), 24, 4)
        if self.faulty and torch.compiler.is_compiling():
            y = y + 2.0**-20
        return y


def test_what_float32_makes_of_ties_is_no_fault_and_the_last_bit_is_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 400)
    capture(Ties().eval(), x)
    with pytest.raises(CaptureError, match="graph and model disagree at batch size 1"):
        capture(Ties(faulty=True).eval(), x)


class Narrow(nn.Module):
    """What names its own type cannot run in another."""

    def forward(self, x: Tensor) -> Tensor:
        return rounded(functional.linear(x.float(), torch.ones(3, 4)), 8, 3)


def test_a_model_that_names_its_type_is_compared_in_that() -> None:
    torch.manual_seed(0)
    net, x = Narrow().eval(), torch.randn(8, 4)
    assert torch.equal(capture(net, x)(x), net(x))


def test_an_exported_program_brings_its_formats_along() -> None:
    torch.manual_seed(0)
    net, x = in_order(Scaled(9, 5)).eval(), torch.randn(8, 9)
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (x,), dynamic_shapes=dynamic, strict=False)
    graph = capture(program, x)
    np.testing.assert_array_equal(simulate(lower(graph), x.numpy()), net(x).detach().numpy())


@pytest.mark.parametrize("seed", range(10))
def test_random_models_are_computed_to_the_bit(seed: int) -> None:
    net, shape = random_net(seed)
    x = 4 * torch.randn(32, *shape)
    graph = capture(net, x[:2])
    wanted = net.double()(x.double()).detach().numpy()
    np.testing.assert_array_equal(simulate(lower(graph), x.numpy()), wanted)
    np.testing.assert_array_equal(exact_forward(graph, x).numpy(), wanted)
