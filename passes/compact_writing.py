"""Blocks written into a graph, in the place of a convolution wherever it is called.

Batch norm and rectifier behind the convolution go along into several heads, in front of their
concatenation, so that norms can be folded and values are rounded behind rectifiers. Heads give
their outputs in another order: see `rearranging`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.editing import tensor_node
from fxloom.graph import arguments, constant, origin
from fxloom.passes.compact_blocks import Block, Head
from fxloom.passes.compact_fitting import crop
from fxloom.passes.factors import Part
from fxloom.passes.layerwise import bias_of
from fxloom.passes.legalize.core import insert
from fxloom.passes.rearranging import put_in_order

aten = torch.ops.aten

ENDINGS = ("squeeze", "expand1x1", "expand", "depthwise", "pointwise", "norm")
"""Of the names of what takes a layer's place: "conv" becomes "conv.squeeze" and so on."""


def write_block(
    module: fx.GraphModule, readers: Sequence[Node], block: Block, kind: str
) -> list[Node]:
    """Put a block in the place of the layers that read one weight. Returns the nodes that put
    outputs back in their order, where there had to be any."""
    writer = _Writer(module, readers, block, kind)
    return [moved for reader in readers if (moved := writer.write(reader)) is not None]


@dataclass
class _Writer:
    module: fx.GraphModule
    readers: Sequence[Node]
    block: Block
    kind: str
    held: dict[str, Node] = field(default_factory=dict)
    weight: Node = field(init=False)
    biases: list[Node | None] = field(init=False)
    taken: set[str] = field(init=False)
    names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        nodes = self.module.graph.nodes
        self.taken = {node.meta["origin"] for node in nodes if node.op == "call_function"}
        self.weight = arguments(self.readers[0])[1]
        self.biases = list(dict.fromkeys(arguments(reader)[2] for reader in self.readers))

    def write(self, reader: Node) -> Node | None:
        """Replace one call of the layer, and a norm and a rectifier behind it where the block has
        several heads."""
        tail = _tail(reader) if len(self.block.heads) > 1 else []
        end = tail[-1] if tail else reader
        with self.module.graph.inserting_before(end):
            inner = self._inner(reader)
            bias = bias_of(self.module, reader)
            results = []
            for head in self.block.heads:
                name = self._name(head)
                result = self._head(reader, inner, head, name, bias)
                for node in tail:
                    result = self._again(node, result, head, name)
                results.append(result)
            joined = results[0]
            if len(results) > 1:
                joined = insert(self.module, end, aten.cat.default, results, 1)
        end.replace_all_uses_with(joined)
        for node in reversed([reader, *tail]):
            self.module.graph.erase_node(node)
        order = torch.cat([head.outputs for head in self.block.heads])
        return put_in_order(self.module, joined, order, 1)

    def _inner(self, reader: Node) -> Node:
        """What the heads read."""
        name = "squeeze" if self.kind == "fire" else "depthwise"
        block, module = self.block, self.module
        bias = None if block.offset is None else self._tensor(f"{name}.bias", block.offset)
        weight = self._tensor(f"{name}.weight", block.first.weight)
        source = arguments(reader)[0]
        value = self._convolution(reader, name, source, block.first, weight, bias)
        if (norm := block.norm) is not None:
            vectors = [
                self._tensor("norm.weight", norm.weight),
                self._tensor("norm.bias", norm.bias),
                self._tensor("norm.running_mean", norm.mean, trained=False),
                self._tensor("norm.running_var", norm.variance, trained=False),
            ]
            rest = (False, 0.1, norm.eps, False)
            value = insert(module, reader, aten.batch_norm.default, value, *vectors, *rest)
            name = self._named(reader, value, "norm")
        if not block.rectified:
            return value
        value = insert(module, reader, aten.relu.default, value)
        self._named(reader, value, name)
        return value

    def _head(self, reader: Node, value: Node, head: Head, name: str, bias: Tensor | None) -> Node:
        added = self.block.shift
        if bias is not None:
            added = bias if added is None else bias + added
        held = None
        if added is not None:
            place = self.biases.index(arguments(reader)[2])
            held = self._tensor(f"{name}.bias{place or ''}", added[head.outputs])
        weight = self._tensor(f"{name}.weight", head.part.weight)
        return self._convolution(reader, name, value, head.part, weight, held)

    def _convolution(
        self, like: Node, name: str, value: Node, part: Part, weight: Node, bias: Node | None
    ) -> Node:
        if any(pad < 0 for pad in part.padding):
            value = insert(self.module, like, aten.constant_pad_nd.default, value, crop(part), 0.0)
            self._named(like, value, name)
        result = insert(
            *(self.module, like, aten.convolution.default, value, weight, bias),
            *(list(part.stride), [max(pad, 0) for pad in part.padding], list(part.dilation)),
            *(False, [0] * len(part.stride), part.groups),
        )
        self._named(like, result, name)
        return result

    def _named(self, like: Node, node: Node, ending: str) -> str:
        """Give a node the name of a layer of its own, the same in all calls; returns the ending."""
        wanted = candidate = f"{origin(like)}.{ending}"
        count = 0
        while wanted not in self.names and candidate in self.taken:
            count += 1
            candidate = f"{wanted}_{count}"
        node.meta["origin"] = self.names.setdefault(wanted, candidate)
        return ending

    def _again(self, node: Node, value: Node, head: Head, name: str) -> Node:
        """A norm or a rectifier of the layer, for the outputs of one head."""
        if node.target is not aten.batch_norm.default:
            return insert(self.module, node, node.target, value, *arguments(node)[1:])
        vectors: list[Node | None] = []
        for source in arguments(node)[1:5]:
            if source is None:
                vectors.append(None)
                continue
            tensor = constant(self.module, source.target)
            is_trained = isinstance(tensor, torch.nn.Parameter)
            key = f"{source.target}_{name}"
            if key not in self.held:
                self.held[key] = tensor_node(
                    *(self.module, self.weight, key, tensor.detach()[head.outputs]),
                    trained=is_trained,
                )
            vectors.append(self.held[key])
        return insert(self.module, node, node.target, value, *vectors, *arguments(node)[5:])

    def _name(self, head: Head) -> str:
        if self.kind == "separable":
            return "pointwise"
        return "expand1x1" if head.part.weight[0, 0].numel() == 1 else "expand"

    def _tensor(self, name: str, values: Tensor, *, trained: bool = True) -> Node:
        """A tensor of the block, one for all calls."""
        if name not in self.held:
            base = str(self.weight.target).removesuffix(".weight")
            values = values.detach().to(self.weight.meta["val"].dtype).contiguous()
            self.held[name] = tensor_node(
                self.module, self.weight, f"{base}.{name}", values, trained=trained
            )
        return self.held[name]


def _tail(layer: Node) -> list[Node]:
    """A batch norm and a rectifier behind a layer, as far as nothing else reads it."""
    found: list[Node] = []
    for target in (aten.batch_norm.default, aten.relu.default):
        last = found[-1] if found else layer
        users = list(last.users)
        if len(users) == 1 and users[0].target is target:
            found.append(users[0])
    return found
