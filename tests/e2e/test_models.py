"""Every small model: graph = Program = reference = fast path, bit for bit, and close to float.

Equalized, it computes what it did.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from fxloom.backends.simulator import quantize_inputs, reference, simulate
from fxloom.data import Data
from fxloom.editing import copy_graph
from fxloom.estimation import estimate
from fxloom.exact import exact_forward
from fxloom.fixed_point import Overflow, Rounding
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes import FoldBatchnorm, Legalize
from fxloom.passes.chains import find_chains
from fxloom.passes.equalize import equalize
from fxloom.passes.quantize import Quantize
from fxloom.program import Program
from fxloom.report import LEVELS
from fxloom.support import refusal
from fxloom.target import Target
from tests.models import CASES, make

Case = tuple[str, nn.Module, tuple[Tensor, ...], fx.GraphModule]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """Name, model, inputs and graph: captured once, since passes leave it as it is."""
    model, x = make(request.param)
    return request.param, model, x, capture(model, tuple(t[:2] for t in x), supported=refusal)


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


def test_model_is_exact_and_faithful(case: Case) -> None:
    name, model, x, graph = case
    data = Data(x_train=x if len(x) > 1 else x[0])
    # Tables are most of the time; one model of five norms in a row needs another bit.
    table_bits = 14 if name == "transformers with a mask" else 13
    step = Quantize(weights=16, activations=16, inputs=16, table_bits=table_bits)
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


def test_an_equalized_model_computes_nothing_else(case: Case) -> None:
    _, _, x, captured = case
    graph = copy_graph(Legalize()(FoldBatchnorm()(captured).graph).graph)
    with torch.no_grad():
        before = outputs(graph(*x))
        equalize(graph, dict.fromkeys(find_chains(graph.graph), 15), lambda: [x])
        graph.graph.lint()
        after = outputs(graph(*x))
    for a, b in zip(before, after, strict=True):
        if a.dtype.kind == "f":
            np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4 * (1 + float(np.abs(a).max())))
