"""From a checked ModelProto to a Network.

Every node is evaluated at two batch sizes while the graph is read: with its values where all that
it reads is known, else with fake tensors that have shapes alone. So what an exporter computes from
shapes becomes numbers, and a module never asks for a shape when it runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fxloom.errors import CaptureError, UnsupportedLayer
from fxloom.exporting import quiet
from fxloom.given_constants import QuantizerRefused
from fxloom.onnx.files import QONNX, STANDARD, opset
from fxloom.onnx.linear_quantizers import QuantizeLinear, narrower
from fxloom.onnx.names import module_names, node_name
from fxloom.onnx.network import Network, Port, Step
from fxloom.onnx.node import Node, Refused, fitting
from fxloom.onnx.protos import KINDS, attributes_of, declared
from fxloom.onnx.registry import BUILDERS, Builder, module_of, rounding_of
from fxloom.onnx.tensors import tensor_of
from fxloom.onnx.values import Value, constant, joined

MAX_CONSTANTS = 2**27
"""Elements of all constants that are computed while a graph is read."""


def network_of_graph(model: Any) -> Network:
    """The module of a checked ModelProto. Raises UnsupportedLayer."""
    return _Reader(model).network()


class _Reader:
    def __init__(self, model: Any) -> None:
        self._graph = model.graph
        self._version = opset(model)
        self._versions = {each.domain: int(each.version) for each in model.opset_import}
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._left = MAX_CONSTANTS
        self._values: dict[str, Value | None] = {}  # None: of a node that is refused
        self._problems: list[str] = []
        self._modules: list[tuple[Step, nn.Module]] = []
        self._read = {name for node in self._graph.node for name in node.input}
        self._read |= {output.name for output in self._graph.output}

    def network(self) -> Network:
        for proto in self._graph.initializer:
            self._values[proto.name] = constant(tensor_of(proto, "initializer"))
        ports = self._inputs()
        for proto, name in zip(self._graph.node, self._names(ports), strict=True):
            try:
                self._evaluate(proto, name)
            except (Refused, QuantizerRefused) as refused:
                label = f"{proto.name or name} ({proto.op_type})"
                self._problems.append(f"{label}: {refused}")
                self._values.update(dict.fromkeys(proto.output))
        outputs = [output.name for output in self._graph.output]
        for name in outputs:
            value = self._values.get(name)
            if value is not None and value.known:
                self._problems.append(f"output {name}: it is a constant, or depends on sizes alone")
            elif value is not None and value.pair is not None:
                self._problems.append(
                    f"output {name}: it is the integers of a QuantizeLinear. "
                    "End the model with a DequantizeLinear"
                )
        if self._problems:
            raise UnsupportedLayer(self._problems)
        return Network(self._used(outputs), ports, outputs).eval()

    def _names(self, ports: Sequence[Port]) -> list[str]:
        """Of the module of each node; of a node that reads constants alone, how errors name it."""
        computed, places = {port.name for port in ports}, []
        for place, proto in enumerate(self._graph.node):
            if not computed.isdisjoint(proto.input):
                computed.update(proto.output)
                places.append(place)
        names = [proto.name or proto.op_type for proto in self._graph.node]
        nodes = [self._graph.node[place] for place in places]
        modules = module_names([(node_name(node), node.op_type) for node in nodes])
        for place, name in zip(places, modules, strict=True):
            names[place] = name
        return names

    def _used(self, outputs: Sequence[str]) -> list[tuple[Step, nn.Module]]:
        """Without what no output needs."""
        needed, kept = set(outputs), []
        for step, module in reversed(self._modules):
            if needed & set(step.outputs):
                needed |= set(step.inputs)
                kept.append((step, module))
        return kept[::-1]

    def _inputs(self) -> list[Port]:
        initial = set(self._values)
        given = [each for each in self._graph.input if each.name not in initial]
        if not given:
            raise CaptureError("the graph has no inputs")
        shapes = []
        for each in given:
            try:
                shapes.append(declared(each))
            except Refused as refused:
                self._problems.append(f"input {each.name}: {refused}")
        if self._problems:
            raise UnsupportedLayer(self._problems)
        sizes = [shape[axis] for shape, _, axis in shapes]
        fixed = {size for size in sizes if size is not None}
        if len(fixed) > 1:
            raise UnsupportedLayer([f"inputs have batches of {sorted(fixed)} samples: not one"])
        self._fixed = bool(fixed)
        first = fixed.pop() if fixed else 2
        self._samples = (first, first + 1)
        ports = []
        for each, (shape, dtype, axis) in zip(given, shapes, strict=True):
            tensors = [
                self._fakes(each.name, [size if dim != axis else samples
                            for dim, size in enumerate(shape)], dtype)
                for samples in self._samples
            ]  # fmt: skip
            self._values[each.name] = Value(tensors[0], tensors[1])
            ports.append(Port(each.name, tuple(tensors[0].shape), dtype, axis))
        return ports

    def _fakes(self, name: str, shape: Sequence[int | None], dtype: torch.dtype) -> Tensor:
        try:
            with self._fake:
                return torch.empty(shape, dtype=dtype)  # type: ignore[arg-type]
        except (RuntimeError, ValueError, OverflowError) as fault:
            raise CaptureError(f"input {name}: {list(shape)} is no shape: {fault}") from None

    def _evaluate(self, proto: Any, name: str) -> None:
        version = self._known(proto)
        attributes = attributes_of(proto)
        domain = "" if proto.domain in STANDARD else "qonnx"
        builder = BUILDERS.get((domain, proto.op_type))
        if builder is None:
            raise Refused(
                "no such operator is known here. `fxloom list layers` shows those that are"
            )
        if any(self._values.get(each, ...) is None for each in proto.input if each):
            self._values.update(dict.fromkeys(proto.output))
            return  # what it reads is refused
        inputs = [self._values[each] if each else None for each in proto.input]
        read = [bool(each) and each in self._read for each in proto.output]

        def node(place: int | None = None) -> Node:
            given = inputs if place is None else [_only(value, place) for value in inputs]
            return Node(
                proto.op_type, name, attributes, given, read, version, self._samples, self._fixed
            )

        if proto.op_type != "DequantizeLinear" and any(value and value.pair for value in inputs):
            if proto.op_type != "Clip" or self._version < 11:
                raise Refused(
                    "it reads integers of a QuantizeLinear. Only a DequantizeLinear may follow one"
                )
            self._narrow(proto, name, node())
            return
        results: list[Value] | None = None
        if proto.op_type not in ("Shape", "Size") and not all(v is None or v.known for v in inputs):
            view = node()
            module, positions = module_of(view, builder)
            if any(not view.value(place).known for place in positions):
                results = self._computed_results(view, module, positions)
                names = tuple(proto.input[place] for place in positions)
                pairs = zip(proto.output, read, strict=True)
                outputs = tuple(output if used else "" for output, used in pairs)
                self._modules.append((Step(name, names, outputs), module))
        if results is None:
            results = self._known_results(node, inputs, builder)
        if any(read[len(results) :]):
            raise Refused(f"{len(proto.output)} outputs are asked for, it has {len(results)}")
        self._values.update(
            (output, result)
            for output, result in zip(proto.output, results, strict=False)
            if output
        )

    def _known(self, proto: Any) -> int:
        """The version of the operator set that a node is of."""
        if proto.domain not in STANDARD and proto.domain not in QONNX:
            raise Refused(f"its domain {proto.domain!r} is not known here")
        if any(attribute.type not in KINDS or attribute.ref_attr_name
               for attribute in proto.attribute):  # fmt: skip
            raise Refused("it has graphs inside. Export the model without control flow")
        if proto.domain in STANDARD:
            return self._version
        if proto.domain.endswith("channels_last"):
            raise Refused(
                "channels-last wrappers are not supported. Give the model as it was before "
                "qonnx's ConvertToChannelsLastAndClean"
            )
        return self._versions.get(proto.domain, 1)

    def _narrow(self, proto: Any, name: str, node: Node) -> None:
        """A Clip of integers, as Brevitas writes for fewer bits: a QuantizeLinear with limits."""
        value = node.value(0)
        assert value.pair is not None
        limits = [node.optional(place, "limits") for place in (1, 2)]
        if value.known:
            assert value.rounding is not None
            rounding = narrower(value.rounding, value.pair, *limits)
            clipped = replace(constant(rounding.values, rounding), pair=value.pair)
            self._values[proto.output[0]] = clipped
            return
        source = proto.input[0]
        step, module = next(each for each in self._modules if source in each[0].outputs)
        assert isinstance(module, QuantizeLinear)
        again = Step(name, step.inputs, (proto.output[0],))
        self._modules.append((again, module.narrower(*limits)))
        self._values[proto.output[0]] = value

    def _known_results(
        self, node: Callable[[int], Node], inputs: Sequence[Value | None], builder: Builder
    ) -> list[Value]:
        """What is computed from known values, at both batch sizes where they differ."""
        if all(value is None or value.constant for value in inputs):
            return self._evaluated(node(0), builder)
        runs = (self._evaluated(node(place), builder) for place in (0, 1))
        pairs = zip(*runs, strict=True)
        return [joined(one.first, other.first) for one, other in pairs]

    def _evaluated(self, node: Node, builder: Builder) -> list[Value]:
        module, positions = module_of(node, builder)
        given = [node.value(place) for place in positions]
        with torch.no_grad():
            if not hasattr(module, "keeps_size"):
                shapes = self._run(node, module, [each.first for each in given])
                self._left -= sum(each.numel() for each in shapes)
            if self._left < 0:
                raise Refused(f"constants of more than {MAX_CONSTANTS} values are computed")
            with fitting(*(each.shapes[0] for each in given)):
                results = module(*(each.first for each in given))
        results = [results] if isinstance(results, Tensor) else list(results)
        rounding = rounding_of(node.kind, module, given)
        pair = getattr(module, "pair", None)
        return [Value(result, result, True, rounding, pair) for result in results]

    def _computed_results(self, node: Node, module: nn.Module, positions: list[int]) -> list[Value]:
        runs = (
            self._run(node, module, [node.value(place).at(samples) for place in positions])
            for samples in (0, 1)
        )
        pair = getattr(module, "pair", None)
        return [Value(one, other, pair=pair) for one, other in zip(*runs, strict=True)]

    def _run(self, node: Node, module: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs as fake tensors."""
        with fitting(*(tuple(each.shape) for each in inputs)), quiet(), self._fake, torch.no_grad():
            results = module(*inputs)
        return [results] if isinstance(results, Tensor) else list(results)


def _only(value: Value | None, place: int) -> Value | None:
    """A value at one of the batch sizes, as if there were no other."""
    if value is None or value.constant:
        return value
    return replace(value, first=value.at(place), second=value.at(place))
