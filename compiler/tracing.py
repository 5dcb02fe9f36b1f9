"""Where the error of a quantized model comes from: each rounded value against the float model.

Four runs of every batch, all in float64: the float graph (F) and the quantized graph (Q), each
once as it is and once with every rounded value replaced by the other graph's as soon as it is
computed. So a value's error is a sum, exactly, sample by sample:

    Q - F  =  weights     what its layer gives for float inputs, unrounded, less F
            + inherited   what it gives for quantized inputs, unrounded, less that
            + rounding    rounded less unrounded, where the range holds it
            + saturation  the same, where the range does not (or wraps)

and for what tables compute, inherited (the float function of quantized inputs) + tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.accuracy import is_classification
from fxloom.data import Data, SplitName
from fxloom.errors import DataError, RecipeError
from fxloom.examples import examples_of
from fxloom.fixed_point import FixedPoint, Rounding
from fxloom.frontend import capture
from fxloom.graph import Float64, arguments, as_indices, input_specs, op_name
from fxloom.model_file import opened
from fxloom.passes.calibration import batch_size
from fxloom.passes.chains import NARROWING, Chain, find_chains, format_of, is_real
from fxloom.passes.quantize import Quantize, as_declared
from fxloom.passes.written import INSERTS
from fxloom.quantized_ops import DIVIDE, rounded_steps
from fxloom.recipe import Recipe
from fxloom.threads import one_thread
from fxloom.trace_report import CAUSES, Trace, ValueTrace

SAMPLES = 256
HELD = 8
"""All values of a batch are held, four times as wide as usual: batches are that much smaller."""

Values = dict[str, Tensor]
Hook = Callable[[fx.Interpreter, Node, Any], Any]


@dataclass(slots=True)
class _Value:
    """A rounded value: its node, its chain in the float graph, and what was seen of it."""

    name: str
    node: Node
    chain: Chain
    to: FixedPoint | None
    count: int = 0
    low: int = 0
    high: int = 0
    float_range: tuple[float, float] = (float("inf"), float("-inf"))
    used_range: tuple[float, float] = (float("inf"), float("-inf"))
    squares: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("float", "error", *CAUSES), 0.0)
    )
    lost: int = 0
    gained: int = 0

    @property
    def twin(self) -> Node:
        """The node of the float graph."""
        return self.chain.end

    @property
    def is_table(self) -> bool:
        """Whether tables compute it: all their roundings count as one cause."""
        return self.twin.target in INSERTS


def trace(
    model: object,
    data: object,
    recipe: Recipe | str | Path | None = None,
    example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    samples: int = SAMPLES,
    progress: Callable[[str], None] | None = None,
    teacher: object = None,
) -> Trace:
    """Quantize a model as `compile` does, and say of every rounded value where its error is from.

    data, recipe, example_inputs, teacher: as for `compile`. samples: how many are traced, evenly
    spaced over the test samples, or the training samples without those. With labels of classes,
    also the accuracy with all values up to each one fixed and the rest float, which takes a run of
    the model a value. Raises an FxloomError for whatever is wrong with one of these.
    """
    tell = progress or (lambda text: None)
    found = Data.of(data)
    if found is None:
        raise DataError("trace: required data, got none")
    if samples < 1:
        raise DataError(f"samples: required at least 1, got {samples}")
    steps = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe) if recipe else None
    with one_thread():
        tell("capture")
        model = opened(model)
        graph = capture(model, examples_of(model, found) if example_inputs is None
                        else example_inputs)  # fmt: skip
        passes = steps or Recipe([Quantize()])
        fixed = passes.run(graph, found, lambda text: tell(f"pass {text}"), teacher=teacher).graph
        floats = fixed.meta.get("floats")
        if floats is None:
            names = ", ".join(step.name for step in passes.passes)
            raise RecipeError(f"trace: required a recipe that quantizes, got the passes {names}")
        run = _Tracing(fixed, floats)
        split: SplitName = "test" if found.has("test") else "train"
        size = max(batch_size(floats) // HELD, 1)
        done = 0
        for x, labels in found.sampled(split, samples, size):
            tell(f"trace sample {done}")
            inputs = _inputs(fixed, x)
            run.see(inputs, labels)
            done += len(x[0] if isinstance(x, tuple) else x)
    return run.result(split, done)


def _inputs(graph: fx.GraphModule, x: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    specs = input_specs(graph)
    inputs = zip(as_indices(graph, x), specs, strict=True)
    declared = (as_declared(tensor, spec) for tensor, spec in inputs)
    return tuple(x.double() if x.is_floating_point() else x for x in declared)


class _Hooked(Float64):
    """Runs a graph; what the hook returns for a node is its value."""

    def __init__(self, module: fx.GraphModule, hook: Hook) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self._hook = hook

    def run_node(self, n: Node) -> Any:
        return self._hook(self, n, super().run_node(n))


class _Tail(Float64):
    """Runs the nodes of a graph that its outputs need, given the values of others."""

    def __init__(self, module: fx.GraphModule, given: Mapping[Node, Tensor]) -> None:
        super().__init__(module)
        self._given = given
        output = module.graph.output_node()
        self._needed, pending = {output}, [output]
        while pending:
            node = pending.pop()
            if node not in given:
                fresh = [x for x in node.all_input_nodes if x not in self._needed]
                self._needed.update(fresh)
                pending += fresh

    def run_node(self, n: Node) -> Any:
        if n.op == "placeholder":  # its turn among the inputs, even where its value is given
            x = super().run_node(n)
            return self._given.get(n, x)
        if n in self._given:
            return self._given[n]
        return super().run_node(n) if n in self._needed else None


class _Tracing:
    """One trace of a quantized graph against its float graph, batch by batch."""

    def __init__(self, fixed: fx.GraphModule, floats: fx.GraphModule) -> None:
        self._fixed, self._floats = fixed, floats
        self.values = list(_rounded_values(fixed, floats))
        self._by_node = {value.node: value for value in self.values}
        self._by_twin = {value.twin: value for value in self.values}
        self._right_float = self._right_fixed = 0
        self._labelled = True

    @torch.inference_mode()
    def see(self, inputs: tuple[Tensor, ...], labels: Tensor | None) -> None:
        """Take in a batch."""
        want, have = Values(), Values()  # F and Q
        plain, unrounded = Values(), Values()  # before rounding: of float inputs, of fixed ones

        def keep_float(_: fx.Interpreter, node: Node, value: Any) -> Any:
            if node in self._by_twin:
                want[self._by_twin[node].name] = value
            return value

        def keep_fixed(run: fx.Interpreter, node: Node, value: Any) -> Any:
            if node in self._by_node:
                found = self._by_node[node]
                have[found.name] = value
                if not found.is_table:
                    unrounded[found.name] = _before(run, node)
            return value

        def force_float(run: fx.Interpreter, node: Node, value: Any) -> Any:
            if node not in self._by_node:
                return value
            found = self._by_node[node]
            if not found.is_table:
                plain[found.name] = _before(run, node)
            return want[found.name]

        def force_fixed(_: fx.Interpreter, node: Node, value: Any) -> Any:
            if node not in self._by_twin:
                return value
            found = self._by_twin[node]
            if found.is_table:
                plain[found.name], unrounded[found.name] = want[found.name], value
            return have[found.name]

        expected = _Hooked(self._floats, keep_float).run(*inputs)
        got = _Hooked(self._fixed, keep_fixed).run(*inputs)
        _Hooked(self._fixed, force_float).run(*inputs)
        if any(value.is_table for value in self.values):
            _Hooked(self._floats, force_fixed).run(*inputs)
        for value in self.values:
            name = value.name
            _add(value, want[name], plain[name], unrounded[name], have[name])
        self._labelled = self._labelled and is_classification(_outputs(expected), labels)
        if self._labelled:
            assert labels is not None
            self._classify(inputs, labels.reshape(-1), expected, got, have)

    def _classify(
        self, inputs: tuple[Tensor, ...], truth: Tensor, expected: Any, got: Any, have: Values
    ) -> None:
        right = _outputs(expected)[0].argmax(1) == truth
        self._right_float += int(right.sum())
        self._right_fixed += int((_outputs(got)[0].argmax(1) == truth).sum())
        given: dict[Node, Tensor] = {}
        for value in self.values:
            given[value.twin] = have[value.name]
            outputs = _Tail(self._floats, given).run(*inputs)
            now = _outputs(outputs)[0].argmax(1) == truth
            value.lost += int((right & ~now).sum())
            value.gained += int((~right & now).sum())

    def result(self, split: SplitName, samples: int) -> Trace:
        """All figures."""
        labelled = self._labelled
        values = tuple(
            _summary(value, samples, self._right_float if labelled else None)
            for value in self.values
        )
        return Trace(
            split=split,
            samples=samples,
            float_accuracy=self._right_float / samples if labelled else None,
            fixed_accuracy=self._right_fixed / samples if labelled else None,
            values=values,
        )


def _rounded_values(fixed: fx.GraphModule, floats: fx.GraphModule) -> Iterator[_Value]:
    chains = {chain.end.name: chain for chain in find_chains(floats.graph)}
    counts: dict[str, int] = {}
    for node in fixed.graph.nodes:
        chain = chains.get(str(node.meta.get("twin")))
        if chain is None or not is_real(node) or not is_real(chain.end):
            continue
        name = chain.layers[-1]
        if chain.end.target is NARROWING:
            name += ".argument"
        counts[name] = counts.get(name, 0) + 1
        label = name if counts[name] == 1 else f"{name}#{counts[name]}"
        yield _Value(label, node, chain, format_of(node))


def _before(run: fx.Interpreter, node: Node) -> Tensor:
    """What a node rounds."""
    source = run.env[arguments(node)[0]]
    assert isinstance(source, Tensor)
    if node.target is DIVIDE:
        divisor = run.env[arguments(node)[1]]
        assert isinstance(divisor, Tensor)
        return source / divisor
    return source


def _add(value: _Value, want: Tensor, plain: Tensor, unrounded: Tensor, have: Tensor) -> None:
    """A batch of a value: in the float model, before rounding of float and of fixed inputs, and
    rounded."""
    parts = {"weights": plain - want, "inherited": unrounded - plain}
    last = have - unrounded
    if value.to is not None:
        to, mode = value.to, Rounding.RND_CONV
        if not value.is_table:
            mode = Rounding(arguments(value.node)[-2])
        scaled = rounded_steps(unrounded, to.fraction, mode)
        below, above = scaled < to.lo, scaled > to.hi
        value.low += int(below.sum())
        value.high += int(above.sum())
        parts["saturation"] = torch.where(below | above, last, 0.0)
        last = torch.where(below | above, 0.0, last)
    parts["tables" if value.is_table else "rounding"] = last
    for name, tensor in {"float": want, "error": have - want, **parts}.items():
        value.squares[name] += float(tensor.square().sum())
    value.count += want.numel()
    value.float_range = _wider(value.float_range, want)
    value.used_range = _wider(value.used_range, unrounded)


def _wider(span: tuple[float, float], x: Tensor) -> tuple[float, float]:
    low, high = torch.aminmax(x)
    return min(span[0], float(low)), max(span[1], float(high))


def _summary(value: _Value, samples: int, right: int | None) -> ValueTrace:
    to, count = value.to, max(value.count, 1)
    accuracy = None if right is None else (right - value.lost + value.gained) / samples
    return ValueTrace(
        name=value.name,
        layers=tuple(dict.fromkeys(value.chain.layers)),
        op=op_name(value.twin.target) if value.twin.op == "call_function" else "input",
        format=str(to) if to is not None else "",
        given=(to.lo * to.step, to.hi * to.step) if to is not None else None,
        used=value.used_range,
        float_range=value.float_range,
        saturated_low=value.low / count,
        saturated_high=value.high / count,
        float_rms=(value.squares["float"] / count) ** 0.5,
        error_rms=(value.squares["error"] / count) ** 0.5,
        causes={name: (value.squares[name] / count) ** 0.5 for name in CAUSES},
        accuracy=accuracy,
        lost=value.lost,
        gained=value.gained,
    )


def _outputs(result: Any) -> list[Any]:
    if isinstance(result, tuple | list):
        return [each for item in result for each in _outputs(item)]
    return [result]
