"""What trains in a graph: tensors of its own, the layers that read them, their formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node

from fxloom.editing import copy_graph
from fxloom.fixed_point import FixedPoint
from fxloom.graph import arguments, constant, origin
from fxloom.passes.chains import LAYERS, fraction_of
from fxloom.passes.fitting import MOST_BITS, bias_format, encoding_of, widths_of
from fxloom.quantized_ops import REQUANTIZE, REQUANTIZE_WEIGHTS, channel_limits, is_given

aten = torch.ops.aten

ROOM = 62
"""Bits of a bias while it trains: it must not saturate, whatever its values were before."""


def own_copy(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph with tensors of its own; those that were tied still are."""
    module = copy_graph(graph)
    fresh: dict[object, Tensor] = {}
    for name, old in [*module.named_parameters(remove_duplicate=False),
                      *module.named_buffers(remove_duplicate=False)]:  # fmt: skip
        key = (old.data_ptr(), old.shape, old.stride(), old.dtype) if old.numel() else name
        if key not in fresh:
            values = old.detach().clone()
            fresh[key] = nn.Parameter(values, old.requires_grad) if _is_parameter(old) else values
        *path, leaf = name.split(".")
        setattr(module.get_submodule(".".join(path)), leaf, fresh[key])
    return module


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


def readers(module: fx.GraphModule) -> Mapping[str, set[str]]:
    """The layers that read each parameter, directly or rounded."""
    names = dict(module.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    layers: dict[str, set[str]] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr" and str(node.target) in names:
            # Tied parameters train under the first of their names.
            found = first.setdefault(id(names[str(node.target)]), _first_name(module, node))
            layers.setdefault(found, set()).update(
                origin(user) for user in node.users if user.op == "call_function"
            )
    return layers


def _first_name(module: fx.GraphModule, node: Node) -> str:
    tensor = constant(module, node.target)
    return next(name for name, p in module.named_parameters() if p is tensor)


def batch_norms(module: fx.GraphModule) -> list[Node]:
    """All batch norms, in order."""
    return [n for n in module.graph.nodes if n.target is aten.batch_norm.default]


def _biases(module: fx.GraphModule) -> Iterator[tuple[Node, Node]]:
    """Layers with the rounding of their bias, less those in formats of the model's own."""
    for node in module.graph.nodes:
        if node.target in LAYERS:
            bias = arguments(node)[2]
            if isinstance(bias, Node) and bias.target is REQUANTIZE and not is_given(bias):
                yield node, bias


def widen_biases(module: fx.GraphModule) -> None:
    """Let biases become as large as training makes them, in the steps of their products."""
    for node, bias in _biases(module):
        room = ROOM - sum(fraction_of(argument) for argument in arguments(node)[:2])
        bias.args = (arguments(bias)[0], ROOM, room, True, *arguments(bias)[4:])
    module.recompile()


def fit_biases(module: fx.GraphModule) -> dict[str, str]:
    """Give every bias the format that its values need, in steps of its products or coarser."""
    formats: dict[str, str] = {}
    for node, bias in _biases(module):
        source = arguments(bias)[0]
        values = constant(module, source.target).detach()
        to = bias_format(node, values, bias.meta.get(MOST_BITS))
        bias.args = (source, to.width, to.integer, to.signed, *arguments(bias)[4:])
        formats[origin(node)] = str(to)
    return formats


def bounds(module: fx.GraphModule, trained: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """What the formats of weights can hold: beyond it gradients are cut off, and a weight that
    got there could never come back (Courbariaux et al. 2015, arXiv 1511.00363, section 2.4)."""
    names = {id(constant(module, name)): name for name in trained}
    biases = {bias for _, bias in _biases(module)}
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for node in module.graph.nodes:
        if node.target not in (REQUANTIZE, REQUANTIZE_WEIGHTS) or node in biases:
            continue
        source = arguments(node)[0]
        if source.op != "get_attr" or id(constant(module, source.target)) not in names:
            continue
        tensor = constant(module, source.target)
        low, high = _range(node, tensor)
        name = names[id(tensor)]
        if name in found:  # read in several formats: the wider one
            low, high = torch.minimum(low, found[name][0]), torch.maximum(high, found[name][1])
        found[name] = (low, high)
    return found


def _range(node: Node, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest value of a rounded weight, for every channel where they differ."""
    to = FixedPoint(*arguments(node)[-5:-2])
    step = torch.full((1,) * weights.dim(), to.step, dtype=weights.dtype)
    if node.target is REQUANTIZE_WEIGHTS and arguments(node)[1]:
        shifts = torch.tensor(arguments(node)[1], dtype=weights.dtype)
        step = step * torch.exp2(-shifts).reshape(-1, *(1,) * (weights.dim() - 1))
    step = step.to(weights.device)
    if widths := widths_of(node):
        low, high = channel_limits(weights, widths, to.signed)
        return low * step, high * step
    levels = encoding_of(node).levels(to.width) or (to.lo, to.hi)
    return levels[0] * step, levels[-1] * step
