"""How far a program is from the float model, on the user's own samples."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.data import Data, SplitName
from fxloom.graph import arguments, as_indices, origin
from fxloom.program import Program
from fxloom.quantized_ops import DIVIDE, LOOKUP, REQUANTIZE
from fxloom.report import Accuracy, Figure
from fxloom.samples import Inputs
from fxloom.value_histograms import ValueHistogram, histogram

LAYER_SAMPLES = 128
"""Samples for the error of single layers: their values are all held at once."""

DIGITS = 6
"""Significant digits that are kept: float32 sums may differ in later ones between machines."""

Values = npt.NDArray[np.generic]


def measure(program: Program, graph: fx.GraphModule, data: Data) -> Accuracy:
    """Program against float graph on the test samples, or the training samples without those.

    graph: as captured. Accuracies are given where labels are whole numbers and the only output
    has one value a class.
    """
    from fxloom.backends.simulator import Simulator

    simulator = Simulator(program)
    split: SplitName = "test" if data.has("test") else "train"
    samples, elements, right_float, right_fixed = 0, 0, 0, 0
    largest_error = total_error = largest_output = 0.0
    labelled = True
    for x, labels in data.pairs(split):
        expected = outputs_of(float_outputs(graph, x))
        got = outputs_of(simulator.run(arrays_of(x)))
        for want, have in zip(expected, got, strict=True):
            difference = np.abs(want.astype(np.float64) - have.astype(np.float64))
            largest_error = max(largest_error, float(difference.max(initial=0.0)))
            largest_output = max(largest_output, float(np.abs(want).max(initial=0.0)))
            total_error += float(difference.sum())
            elements += difference.size
        samples += len(expected[0])
        labelled = labelled and is_classification(expected, labels)
        if labelled:
            assert labels is not None
            truth = labels.reshape(-1).numpy()
            right_float += int((expected[0].argmax(axis=1) == truth).sum())
            right_fixed += int((got[0].argmax(axis=1) == truth).sum())
    return Accuracy(
        split=split,
        samples=samples,
        max_error=_rounded(largest_error),
        mean_error=_rounded(total_error / max(elements, 1)),
        largest_output=_rounded(largest_output),
        float_accuracy=right_float / samples if labelled else None,
        fixed_accuracy=right_fixed / samples if labelled else None,
    )


@dataclass(frozen=True, slots=True)
class LayerValues:
    """What was seen of the layers: errors by their names, and distributions of their values."""

    errors: Mapping[str, Figure]
    histograms: tuple[ValueHistogram, ...]


def measure_layers(
    quantized: fx.GraphModule, graph: fx.GraphModule, program: Program, data: Data
) -> LayerValues:
    """Every rounded value against the float model, where both have it in the same shape.

    Its error: root mean square of the difference, relative to the float value's own, all errors
    before the layer included. Its distribution in the float model, inputs included. graph: as
    captured; program: of the quantized one. Keys are the origins of the nodes that round.
    """
    from fxloom.passes.chains import format_of
    from fxloom.passes.fold_batchnorm import FoldBatchnorm
    from fxloom.passes.legalize import Legalize

    # With the same rewrites that quantize begins with, so that a name means the same value in both,
    # and with neurons scaled as it scaled them.
    reference = quantized.meta.get("floats")
    if reference is None:
        reference = Legalize()(FoldBatchnorm()(graph).graph).graph
    inputs = as_indices(graph, data.example(LAYER_SAMPLES))
    samples = len(inputs[0])
    last = {origin(node): node for node in reference.graph.nodes if node.op == "call_function"}
    rounding = {
        origin(node): node
        for node in quantized.graph.nodes
        if node.target in (REQUANTIZE, DIVIDE, LOOKUP) and not _of_constant(node)
    }
    wanted = {name: last[name] for name in rounding if name in last}
    floats = _Recorder(reference, set(wanted.values())).values(inputs)
    fixed = _Recorder(quantized, set(rounding.values())).values(inputs)
    errors = {}
    seen = [
        histogram(port.value.name, x, port.value.type, samples)
        for port, x in zip(program.inputs, inputs, strict=True)
    ]
    for name, node in wanted.items():
        want, have = floats[node].double(), fixed[rounding[name]].double()
        if want.shape != have.shape:
            continue
        scale = float(want.square().mean().sqrt())
        error = float((want - have).square().mean().sqrt())
        errors[name] = Figure(
            _rounded(error / scale) if scale else 0.0 if not error else None,
            "of the value's root mean square",
            "measured",
            f"quantized graph against float graph on {samples} training samples",
        )
        if (to := format_of(rounding[name])) is not None:
            seen.append(histogram(name, want, to, samples))
    return LayerValues(errors, tuple(each for each in seen if each is not None))


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the values of some nodes."""

    def __init__(self, graph: fx.GraphModule, wanted: set[Node]) -> None:
        super().__init__(graph)
        self._wanted = wanted
        self._kept: dict[Node, Tensor] = {}

    def values(self, inputs: tuple[Tensor, ...]) -> dict[Node, Tensor]:
        """Values of the wanted nodes."""
        with torch.inference_mode():
            self.run(*inputs)
        return self._kept

    def run_node(self, n: Node) -> Any:
        """One node; what it gives is kept where it is wanted."""
        value = super().run_node(n)
        if n in self._wanted:
            self._kept[n] = value
        return value


def _of_constant(node: Node) -> bool:
    source = arguments(node)[0]
    return isinstance(source, Node) and source.op in ("get_attr", "placeholder")


def float_outputs(graph: fx.GraphModule, x: Inputs) -> Any:
    """What a graph returns for samples of the data, without gradients."""
    with torch.inference_mode():
        return graph(*as_indices(graph, x))


def arrays_of(x: Inputs) -> Any:
    """Samples as the simulator takes them."""
    return x.numpy() if isinstance(x, Tensor) else tuple(tensor.numpy() for tensor in x)


def outputs_of(result: Any) -> list[Values]:
    """All outputs of a graph or a program, in order."""
    return list(_flat(result))


def _flat(result: Any) -> Iterator[Values]:
    if isinstance(result, tuple | list):
        for item in result:
            yield from _flat(item)
    else:
        yield result.numpy() if isinstance(result, Tensor) else result


def is_classification(outputs: Sequence[Values | Tensor], labels: Tensor | None) -> bool:
    """Whether labels are classes, and the only output has a number for each class."""
    return (
        labels is not None
        and labels.dtype == torch.int64
        and len(outputs) == 1
        and outputs[0].ndim == 2
        and outputs[0].shape[1] > 1
        and labels.numel() == len(outputs[0])
    )


def _rounded(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")
