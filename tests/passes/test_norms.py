"""Norms, masks, roots and quotients: errors within their bounds, and what must hold exactly."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxloom.backends.simulator import quantize_inputs, simulate
from fxloom.data import Data
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes.quantize import Quantize
from fxloom.program import Program
from tests.models import Buffers, Fn

WIDE = 20


def compiled(model: nn.Module, *x: Tensor, **options: object) -> tuple[Program, float]:
    """The program with wide outputs, and the bound of its one written-out operation's error."""
    step = Quantize(**{"outputs": WIDE, "method": "minmax"} | options)  # type: ignore[arg-type]
    data = Data(x_train=x if len(x) > 1 else x[0])
    result = step(capture(model.eval(), tuple(t[:2] for t in x)), data)
    errors = result.summary["table_errors"]
    assert isinstance(errors, dict)
    return lower(result.graph), next(iter(errors.values()))["bound"]


def seen(program: Program, *x: Tensor) -> list[Tensor]:
    """The inputs as the program rounds them, in float64."""
    mantissas = quantize_inputs(program, [t.numpy() for t in x])
    return [
        torch.from_numpy(m * port.value.type.step).permute(
            0, *(a + 1 for a in np.argsort(port.axes))
        )
        for m, port in zip(mantissas, program.inputs, strict=True)
    ]


def rows(scale: float, count: int = 12) -> Tensor:
    """Rows of every kind: zero, constant, one value alone, nearly constant, normal."""
    torch.manual_seed(0)
    x = torch.randn(40, count) * scale
    x[0], x[1], x[2], x[2, 0] = 0, scale, 0, scale
    x[3:6] = scale + x[3:6] / 64
    return x


MODELS: dict[str, nn.Module] = {
    "layer norm": nn.LayerNorm(12, elementwise_affine=False),
    "layer norm, large eps": nn.LayerNorm(12, 0.5, elementwise_affine=False),
    "rms norm": nn.RMSNorm(12, 1e-5, elementwise_affine=False),
    "normalize": Fn(lambda m, x: nn.functional.normalize(x)),
    "sqrt": Fn(lambda m, x: torch.relu(x).sqrt()),
    "log softmax": nn.LogSoftmax(1),
    "logsumexp": Fn(lambda m, x: x.logsumexp(1)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scale", [2.0**-9, 2.0**9])
@pytest.mark.parametrize(("bits", "table_bits"), [(6, 9), (14, 11)])
def test_error_stays_within_its_bound(name: str, scale: float, bits: int, table_bits: int) -> None:
    if "log" in name:
        scale = min(scale, 4.0)
    x, model = rows(scale), MODELS[name]
    program, bound = compiled(model, x, inputs=bits, table_bits=table_bits)
    wanted = model(seen(program, x)[0]).numpy()
    assert np.abs(simulate(program, x.numpy()) - wanted).max() <= bound
    assert bound < 0.1 * max(np.abs(wanted).max(), 1.0)


def test_a_constant_row_becomes_the_bias() -> None:
    model = nn.LayerNorm(12)
    nn.init.uniform_(model.bias)
    x = rows(3.0)
    program, _ = compiled(model, x, activations=8)
    y = simulate(program, x.numpy())[:2]
    np.testing.assert_allclose(y, np.tile(model.bias.detach().numpy(), (2, 1)), atol=2.0**-15)


def test_masked_scores_are_zero_and_count_for_nothing() -> None:
    keep = torch.eye(4) + torch.ones(4, 4).tril() > 0
    model = Buffers(lambda m, x: x.masked_fill(~m.keep, -torch.inf).softmax(-1), keep=keep)
    x = torch.randn(50, 4, 4) * 3
    program, _ = compiled(model, x)
    y = simulate(program, x.numpy())
    other = torch.where(keep, x, 3 * torch.randn(50, 4, 4))
    assert (y[:, ~keep.numpy()] == 0).all()
    np.testing.assert_array_equal(y, simulate(program, other.numpy()))


def test_a_computed_mask_hides_scores_and_all_of_a_row_alike() -> None:
    model = Fn(lambda m, x, y: x.masked_fill(y < 0, -1e9).softmax(-1))
    x, y = torch.randn(2, 60, 4, 4)
    y[:30, :, 0], y[30:] = 1, -1
    program, _ = compiled(model, x, y)
    got = simulate(program, [x.numpy(), y.numpy()])
    hidden = (seen(program, x, y)[1] < 0).numpy()
    other = torch.where(y < 0, 3 * torch.randn(60, 4, 4), x)
    assert (got[:30][hidden[:30]] == 0).all()
    assert (got[30:] == got[30, 0, 0]).all()
    np.testing.assert_array_equal(got, simulate(program, [other.numpy(), y.numpy()]))


def test_what_lies_outside_of_a_domain_counts_as_its_first_value() -> None:
    x = torch.linspace(-1, 1, 80).reshape(40, 2)
    for function in (torch.log, torch.rsqrt, torch.log2):
        model = Fn(lambda m, x, f=function: f(x))
        # The float model has no values there: calibrate where it has.
        program, _ = compiled(model, x.abs() + 0.01)
        step = program.inputs[0].value.type.step
        got = simulate(program, np.array([[-1.0, 0.0], [step, step]], dtype=np.float32))
        assert len(np.unique(got)) == 1


def test_gradients_go_through_norms_and_attention() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 12, dropout=0, batch_first=True).eval()
    x = torch.randn(64, 3, 8)
    step = Quantize(weights=14, activations=14, table_bits=14)
    graph = step(capture(model, x[:2]), Data(x_train=x)).graph
    (graph(x) ** 3).mean().backward()
    (model(x) ** 3).mean().backward()
    got = dict(graph.named_parameters())
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and parameter.dim() > 1:
            pair = (got[name].grad.flatten(), parameter.grad.flatten())
            assert torch.nn.functional.cosine_similarity(*pair, dim=0) > 0.98, name


def test_a_root_of_one_signed_bit_is_that_of_one_step() -> None:
    x = torch.linspace(-1, 1, 24).reshape(8, 3)
    model = Fn(lambda _, x: torch.std(x, 1))
    program, _ = compiled(model, x, activations=1, table_bits=1)
    assert len(np.unique(simulate(program, x.numpy(), raw=True))) == 1
