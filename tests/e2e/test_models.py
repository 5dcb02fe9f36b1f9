"""Every small model: graph = Program = reference = fast path, bit for bit, and close to float."""

import numpy as np
import pytest
import torch

from fxloom.backends.simulator import quantize_inputs, reference, simulate
from fxloom.data import Data
from fxloom.estimation import estimate
from fxloom.exact import exact_forward
from fxloom.fixed_point import Overflow, Rounding
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes.quantize import Quantize
from fxloom.program import Program
from fxloom.report import LEVELS
from fxloom.support import refusal
from fxloom.target import Target
from tests.models import CASES, make


def outputs(result: object) -> list[np.ndarray]:
    """Outputs as a list of arrays, however many there are."""
    parts = result if isinstance(result, tuple | list) else [result]
    return [p.detach().numpy() if isinstance(p, torch.Tensor) else np.asarray(p) for p in parts]


def require_estimates(program: Program) -> None:
    """Every figure of every layer is known, within its interval, however values travel."""
    for target in (Target(), Target(io="stream", strategy="resource", reuse=4)):
        report = estimate(program, target)
        for row in (*report.layers, report.total):
            figures = [f for level in LEVELS for _, f in getattr(row, level).items()]
            for figure in (*figures, row.latency, row.interval):
                assert figure.value is not None, (row, figure)
                low = figure.value if figure.low is None else figure.low
                high = figure.value if figure.high is None else figure.high
                assert 0 <= low <= figure.value <= high, (row, figure)


@pytest.mark.parametrize("name", CASES)
def test_model_is_exact_and_faithful(name: str) -> None:
    model, x = make(name)
    graph = capture(model, tuple(t[:2] for t in x), supported=refusal)
    data = Data(x_train=x if len(x) > 1 else x[0])
    step = Quantize(weights=16, activations=16, inputs=16, table_bits=14)
    fine = lower(step(graph, data).graph)
    arrays = [t.numpy() for t in x]
    for got, wanted in zip(outputs(simulate(fine, arrays)), outputs(model(*x)), strict=True):
        assert got.shape == wanted.shape
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-3 * scale)

    modes = list(zip(Rounding, [*Overflow, *Overflow], strict=False))
    rounding, overflow = modes[sum(map(ord, name)) % len(modes)]
    coarse = Quantize(
        weights=5,
        activations=6,
        outputs=8,
        rounding=rounding,
        overflow=overflow,
        per_channel=len(name) % 2 == 0,
    )
    quantized = coarse(graph, data).graph
    program = lower(quantized)
    used = {arg for instr in program.instrs for arg in instr.args}
    used |= {port.value for port in program.outputs}
    assert {instr.result.name for instr in program.instrs} <= used, "hardware for nothing"
    beyond = tuple((3 * t).to(t.dtype) for t in x)
    arrays = [t.numpy() for t in beyond]
    raw = outputs(simulate(program, arrays, raw=True))
    slow = reference(program, quantize_inputs(program, arrays))
    for port, fast, definition in zip(program.outputs, raw, slow, strict=True):
        axes = (0, *(axis + 1 for axis in port.axes))
        np.testing.assert_array_equal(fast, definition.transpose(axes))
    require_estimates(program)
    exact = outputs(exact_forward(quantized, *beyond))
    for values, wanted in zip(outputs(simulate(program, arrays)), exact, strict=True):
        np.testing.assert_array_equal(values, wanted)
