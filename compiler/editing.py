"""Editing captured graphs without touching what they came from.

A pass works on a copy of the graph that shares every tensor with the original; new tensors are
registered under new names, and a tensor that is already there is never written to.
"""

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node

from fxloom.facts import carry
from fxloom.graph import infer
from fxloom.state_names import spell


def copy_graph(module: fx.GraphModule) -> fx.GraphModule:
    """A graph with the same nodes, metadata and tensors (shared, not copied)."""
    graph = fx.Graph()
    val_map: dict[Node, Node] = {}
    output = graph.graph_copy(module.graph, val_map)
    graph.output(output)
    for node, copied in val_map.items():
        copied.meta = dict(node.meta)
    copy = fx.GraphModule(module, graph)
    copy.meta = dict(module.meta)
    return copy


def add_tensor(module: fx.GraphModule, name: str, tensor: Tensor, *, trained: bool) -> str:
    """Register a tensor as parameter (trained) or buffer; returns its unique qualified name.

    Where part of the name before a dot is no module, an underscore takes the place of the dot.
    """
    name = spell([name])[name]
    *owners, leaf = name.split(".")
    for position in range(len(owners)):
        found = _lookup(module, ".".join(owners[: position + 1]))
        if found is not None and not isinstance(found, nn.Module):
            name = ".".join([*owners[:position], "_".join([*owners[position:], leaf])])
            break
    candidate, count = name, 0
    while _lookup(module, candidate) is not None:
        count += 1
        candidate = f"{name}_{count}"
    owner: nn.Module = module
    *path, leaf = candidate.split(".")
    for part in path:
        child = owner._modules.get(part)
        if child is None:
            child = nn.Module()
            owner.add_module(part, child)
        owner = child
    if trained:
        owner.register_parameter(leaf, nn.Parameter(tensor))
    else:
        owner.register_buffer(leaf, tensor)
    return candidate


def _lookup(module: nn.Module, name: str) -> object:
    owner: object = module
    for part in name.split("."):
        owner = getattr(owner, part, None)
        if owner is None:
            return None
    return owner


def release_tensor(module: fx.GraphModule, node: Node) -> str:
    """The name of a get_attr node's tensor, made free for another if this node is the only reader.

    The caller replaces the node next.
    """
    name = str(node.target)
    readers = [n for n in module.graph.nodes if n.op == "get_attr" and n.target == node.target]
    if len(readers) == 1 and len(node.users) == 1:
        *path, leaf = name.split(".")
        delattr(module.get_submodule(".".join(path)), leaf)
    return name


def tensor_node(
    module: fx.GraphModule,
    before: Node,
    name: str,
    tensor: Tensor,
    *,
    trained: bool = True,
    move: Callable[[Tensor], Tensor] | None = None,
) -> Node:
    """Register a tensor and read it with a new get_attr node in front of another node.

    name: of the tensor that it was made from, if it was: what is known of that one's weights is
    known of it. trained: whether it becomes a parameter, which only a floating tensor can be. move:
    what was done to that tensor's weights where they moved, as in `carry`.
    """
    target = add_tensor(module, name, tensor, trained=trained and tensor.is_floating_point())
    carry(module, name, target, move)
    with module.graph.inserting_before(before):
        node = module.graph.get_attr(target)
    node.meta = {"val": infer(module, node), "batch_axis": None}
    return node


def finish(module: fx.GraphModule) -> fx.GraphModule:
    """Remove what nothing uses any more, nodes and tensors, then lint and recompile."""
    module.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name in {*dict(module.named_parameters()), *dict(module.named_buffers())} - used:
        *path, leaf = name.split(".")
        delattr(module.get_submodule(".".join(path)), leaf)
    module.graph.lint()
    module.recompile()
    return module


def broadcastable(per_channel: Tensor, like: Node) -> Tensor:
    """[C] reshaped to broadcast over a tensor [N, C, ...]."""
    rank = like.meta["val"].dim()
    return per_channel.reshape(1, -1, *(1,) * (rank - 2))


def float64(tensor: Tensor) -> Tensor:
    """Detached values in float64."""
    return tensor.detach().to(torch.float64)
