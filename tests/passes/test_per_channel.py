"""Binary points of their own for every output channel: narrow weights, exact, more accurate."""

import numpy as np
import pytest
import torch
from torch import nn

from fxloom import ops
from fxloom.backends.simulator import quantize_inputs, reference, simulate
from fxloom.data import Data
from fxloom.estimation import estimate
from fxloom.exact import exact_forward
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes.quantize import Quantize
from fxloom.program import Program
from fxloom.target import Target


def badly_scaled(kind: str) -> tuple[nn.Module, torch.Tensor]:
    """A model whose channels differ by a factor of a thousand, and one of which is zero."""
    torch.manual_seed(0)
    scales = torch.logspace(-2, 1, 8)
    if kind == "linear":
        layer, x = nn.Linear(10, 8), torch.randn(300, 10)
        head: nn.Module = nn.Linear(8, 5)
        weight = layer.weight
    elif kind == "conv":
        layer, x = nn.Conv2d(3, 8, 3), torch.randn(100, 3, 7, 7)
        head = nn.Conv2d(8, 5, 2)
        weight = layer.weight
    else:
        layer, x = nn.Conv1d(4, 8, 3, groups=4), torch.randn(100, 4, 9)
        head = nn.Conv1d(8, 5, 2)
        weight = layer.weight
    with torch.no_grad():
        weight.mul_(scales.reshape(-1, *(1,) * (weight.dim() - 1)))
        weight[3] = 0
        head.weight.div_(scales.reshape(1, -1, *(1,) * (head.weight.dim() - 2)))
    return nn.Sequential(layer, nn.ReLU(), head).eval(), x


def quantized(kind: str, per_channel: bool) -> tuple[torch.fx.GraphModule, Program, torch.Tensor]:
    model, x = badly_scaled(kind)
    wide = {"2": {"weights": 14}}  # its inputs are badly scaled, which no output's point mends
    step = Quantize(weights=4, activations=16, inputs=12, per_channel=per_channel, layers=wide)
    graph = step(capture(model, x[:2]), Data(x_train=x)).graph
    return graph, lower(graph), x


def error(program: Program, kind: str, x: torch.Tensor) -> float:
    wanted = badly_scaled(kind)[0](x).detach().numpy()
    return float(np.square(simulate(program, x.numpy()) - wanted).mean())


@pytest.mark.parametrize("kind", ["linear", "conv", "grouped conv1d"])
def test_own_points_are_exact_narrow_and_more_accurate(kind: str) -> None:
    graph, program, x = quantized(kind, True)
    kernels = [program.value(i.args[1]) for i in program.instrs if i.op.name in ("matmul", "conv")]
    assert [kernel.type.width for kernel in kernels] == [4, 14]
    assert any(isinstance(i.op, ops.Mul) for i in program.instrs)
    np.testing.assert_array_equal(simulate(program, x.numpy()), exact_forward(graph, x).numpy())
    (slow,) = reference(program, quantize_inputs(program, x.numpy()))
    fast = simulate(program, x.numpy(), raw=True)
    axes = (0, *(axis + 1 for axis in program.outputs[0].axes))
    np.testing.assert_array_equal(fast, slow.transpose(axes))
    _, common, _ = quantized(kind, False)
    assert error(program, kind, x) < error(common, kind, x) / 2
    own, shared = estimate(program, Target()).total, estimate(common, Target()).total
    assert own.macs == shared.macs
    assert own.weight_count == shared.weight_count
