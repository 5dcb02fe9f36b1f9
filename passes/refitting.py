"""Layers behind what was replaced, fitted to what they gave before."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx
from torch.fx.node import Node

from fxloom.editing import release_tensor, tensor_node
from fxloom.facts import kept_weights, sharing
from fxloom.graph import arguments, constant
from fxloom.passes.calibration import Batch
from fxloom.passes.chains import LAYERS
from fxloom.passes.compact_fitting import look
from fxloom.passes.fitting import MOST_INPUTS
from fxloom.passes.second_order import refit


def following(module: fx.GraphModule, original: fx.GraphModule) -> list[Node]:
    """The layers of the original graph that read what was replaced, whose weights nothing else
    reads: they can make good for errors."""
    known = {node.name for node in original.graph.nodes}
    changed: set[Node] = set()
    found = []
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        is_known = node.name in known
        if is_known and node.target in LAYERS:
            if arguments(node)[0] in changed and _is_plain(module, node):
                found.append(node)
        elif not is_known or not changed.isdisjoint(node.all_input_nodes):
            changed.add(node)
    return found


def _is_plain(module: fx.GraphModule, layer: Node) -> bool:
    """Whether a layer is neither grouped nor transposed, and reads tensors of its own."""
    weight, bias = arguments(layer)[1:3]
    tensors = [node for node in (weight, bias) if node is not None]
    if any(node.op != "get_attr" or len(node.users) > 1 for node in tensors):
        return False
    rest = arguments(layer)[3:]
    grouped = bool(rest) and (rest[3] or rest[5] > 1)
    same = [
        node
        for node in module.graph.find_nodes(op="get_attr")
        if constant(module, node.target).data_ptr() == constant(module, weight.target).data_ptr()
    ]
    wide = weight.meta["val"][0].numel() > MOST_INPUTS
    tied = grouped or wide or len(same) > 1 or layer.meta.get("tied")
    return not tied and str(weight.target) not in sharing(module)


def refitted(
    module: fx.GraphModule, original: fx.GraphModule, layer: Node, batches: Sequence[Batch]
) -> None:
    """Give a layer of its own the weights and the bias with which its outputs are nearest to the
    original ones; zeros that must stay do."""
    source, bias = arguments(layer)[1:3]
    weight = constant(module, source.target).detach()
    rows = weight.flatten(1)[None]
    moments = look(module, original, [layer], batches).moments
    kept = kept_weights(module, str(source.target))
    kept = None if kept is None else kept.reshape(rows.shape)
    target = refit(rows, moments, kept, centred=bias is not None).target
    tensors = {source: target.reshape(weight.shape)}
    if bias is not None:
        rest = moments.mean("y") - (target @ moments.mean("x")[:, :, None])[:, :, 0]
        tensors[bias] = constant(module, bias.target).detach() + rest[0]
    for node, values in tensors.items():
        name = release_tensor(module, node)
        fresh = tensor_node(module, layer, name, values.to(weight.dtype).contiguous())
        layer.replace_input_with(node, fresh)
        if not node.users:
            module.graph.erase_node(node)
