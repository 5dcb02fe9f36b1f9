"""Shapes, and tensors that are made from them."""

import torch
from torch import Tensor

from fxloom.onnx.node import Node, Refused
from fxloom.onnx.registry import Function, builds


@builds("Shape")
def _shape(node: Node) -> Function:
    start, end = node.integer("start", 0), node.attribute("end", None)
    return lambda x: torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


@builds("Size")
def _size(node: Node) -> Function:
    return lambda x: torch.tensor(x.numel())


@builds("Constant")
def _constant(node: Node) -> Function:
    names = ("value", "value_float", "value_floats", "value_int", "value_ints")
    given = [node.attribute(name, None) for name in names]
    found = [(name, each) for name, each in zip(names, given, strict=True) if each is not None]
    if len(found) != 1:
        raise Refused("required one tensor or number as its value")
    name, value = found[0]
    if isinstance(value, Tensor):
        return lambda: value
    kind = torch.float32 if "float" in name else torch.int64
    return lambda: torch.tensor(value, dtype=kind)


@builds("ConstantOfShape")
def _constant_of_shape(node: Node) -> Function:
    sizes = node.numbers(0, "sizes")
    value = node.attribute("value", torch.zeros(1))
    if not isinstance(value, Tensor) or value.numel() != 1 or any(size < 0 for size in sizes):
        raise Refused(f"required one value and no negative sizes, {sizes} arrived")
    number = value.item()
    return lambda: torch.full(sizes, number, dtype=value.dtype)


@builds("Range")
def _range(node: Node) -> Function:
    node.only("stash_type", 1, 1)
    start, limit, delta = (node.constant(place, "limits") for place in range(3))
    if {start.numel(), limit.numel(), delta.numel()} != {1} or delta.item() == 0:
        raise Refused("required one start, one limit and one step other than zero")
    numbers = [each.item() for each in (start, limit, delta)]
    if (numbers[1] - numbers[0]) / numbers[2] < 0:
        return lambda: torch.zeros(0, dtype=start.dtype)
    return lambda: torch.arange(*numbers, dtype=start.dtype)
