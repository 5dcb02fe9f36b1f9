"""Which operator becomes which module."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxloom.given_constants import constant
from fxloom.onnx.given import Integers
from fxloom.onnx.node import Node, Refused, fitting
from fxloom.onnx.values import Value

Function = Callable[..., Any]
Builder = Callable[[Node], nn.Module | Function]
BUILDERS: dict[tuple[str, str], Builder] = {}
"""By domain ("", "qonnx") and operator: the module of a node, or the function of its inputs."""


def builds(*kinds: str, domain: str = "") -> Callable[[Builder], Builder]:
    """Register what builds the nodes of some operators.

    It returns a module, which is called with the inputs that are computed and holds the constant
    ones; or a function of all inputs that it has not asked for.
    """

    def register(builder: Builder) -> Builder:
        BUILDERS.update({(domain, kind): builder for kind in kinds})
        return builder

    return register


class Apply(nn.Module):
    """A function of computed tensors, None among the operands, and of constants between them."""

    def __init__(self, function: Function, operands: Sequence[object]) -> None:
        super().__init__()
        self._function = function
        self._slots: list[object] = []
        for operand in operands:
            number = sum(isinstance(each, str) for each in self._slots)
            slot: object = f"constant_{number}" if number else "constant"
            if isinstance(operand, Integers):
                self.add_module(str(slot), constant(operand.values))
            elif isinstance(operand, Tensor) and operand.is_floating_point():
                self.register_parameter(str(slot), nn.Parameter(operand))
            elif isinstance(operand, Tensor):
                self.register_buffer(str(slot), operand)
            else:
                slot = operand
            self._slots.append(slot)

    def forward(self, *computed: Tensor) -> Any:
        remaining = list(computed)
        arguments: list[Any] = []
        for slot in self._slots:
            held = getattr(self, slot) if isinstance(slot, str) else slot
            match held:
                case None:
                    arguments.append(remaining.pop(0))
                case Repeated():
                    arguments.append(held.at(computed[0]))
                case nn.Module():
                    arguments.append(held())
                case _:
                    arguments.append(held)
        return self._function(*arguments)


class Repeated:
    """A constant that is repeated for every sample along one of its dimensions."""

    def __init__(self, one: Tensor, axis: int, batch_axis: int) -> None:
        self._one, self._axis, self._batch_axis = one, axis, batch_axis

    def at(self, computed: Tensor) -> Tensor:
        sizes = list(self._one.shape)
        sizes[self._axis] = computed.shape[self._batch_axis]
        return self._one.expand(sizes)


def pointwise(function: Function) -> Function:
    """Marks a function that broadcasts, and takes numbers for constants of one value."""
    function.pointwise = True  # type: ignore[attr-defined]
    return function


def module_of(node: Node, builder: Builder) -> tuple[nn.Module, list[int]]:
    """The module of a node, and the positions of the inputs that it is called with."""
    with fitting():
        built = builder(node)
    unknown = sorted(set(node.attributes) - node.asked)
    if unknown:
        raise Refused(f"attribute {', '.join(unknown)} is not known for it")
    rest = [
        place
        for place, value in enumerate(node.inputs)
        if value is not None and place not in node.consumed
    ]
    if all(node.value(place).known for place in rest):
        module = built if isinstance(built, nn.Module) else Apply(built, [None] * len(rest))
        return module, rest
    computed = [place for place in rest if not node.value(place).known]
    if isinstance(built, nn.Module):
        if rest != computed:
            raise Refused(f"input {min(set(rest) - set(computed))} cannot be a constant")
        return built, computed
    operands = [_operand(node, place, built, computed[0]) for place in rest]
    return Apply(built, operands), computed


def _operand(node: Node, place: int, function: Function, computed: int) -> object:
    value = node.value(place)
    if not value.known:
        return None
    broadcasts = hasattr(function, "pointwise")
    if not value.constant:
        return _repeated(node, place, broadcasts, computed)
    if value.rounding is not None:
        return value.rounding
    ranks = [len(each.first.shape) for each in node.inputs if each is not None and not each.known]
    if broadcasts and value.first.numel() == 1 and value.first.dim() <= max(ranks):
        return value.first.item()
    return value.first


def _repeated(node: Node, place: int, broadcasts: bool, computed: int) -> object:
    """A constant that is the same for every sample, as that of one sample."""
    value = node.value(place)
    axis, batch_axis = value.batch_axis, node.value(computed).batch_axis
    if axis is None or batch_axis is None:
        raise Refused(f"input {place} depends on the batch size")
    one = value.second.narrow(axis, 0, 1)
    same = value.shapes[0][axis] == node.shape(computed)[batch_axis]
    if not torch.equal(one.expand_as(value.second), value.second) or not same:
        raise Refused(f"input {place} depends on the batch size")
    return one.contiguous() if broadcasts else Repeated(one.contiguous(), axis, batch_axis)


MOVES = frozenset(
    {"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze", "DequantizeLinear"}
)
"""Operators behind which rounded constants are still that."""


def rounding_of(kind: str, module: nn.Module, inputs: Sequence[Value]) -> Integers | None:
    """How the values of a constant result are rounded, None where they are not.

    A module that rounds has `rounding`, a function of its constant input.
    """
    if hasattr(module, "rounding"):
        rounded: Integers = getattr(module, "rounding")(inputs[0].first)  # noqa: B009
        return rounded
    given = inputs[0].rounding if inputs else None
    return given.moved(module) if given is not None and kind in MOVES else None
