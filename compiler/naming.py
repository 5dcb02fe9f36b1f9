"""Constants folded into parameters, and every compute node named after the user's layer."""

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node

from fxloom.graph import op_name
from fxloom.quantized_ops import REQUANTIZE, REQUANTIZE_WEIGHTS

State = dict[str, Tensor]
_OURS = (
    "fxloom.keras.",
    "fxloom.onnx.",
    "fxloom.brevitas.",
    "fxloom.uniform.",
    "fxloom.given_constants.",
)
"""Layers of other tools: their activations are modules inside them."""
_NETWORK = "fxloom.keras.network.Network"
"""No layer: what it does by itself is to permute what goes from layer to layer."""
_LAYERS = ("torch.nn.modules.", "torch.nn.utils.parametrize.Parametrized", *_OURS)


def share(tensor: Tensor, requires_grad: bool | None = None) -> Tensor:
    """Another tensor object on the same storage, so that its gradient is not the user's.

    requires_grad: makes it a parameter; None keeps what `tensor` is.
    """
    if requires_grad is None:
        if not isinstance(tensor, nn.Parameter):
            return tensor.detach()
        requires_grad = tensor.requires_grad
    return nn.Parameter(tensor.detach(), requires_grad=requires_grad)


def fold_constants(graph: fx.Graph, state: State) -> None:
    """Replace what is computed from constants alone by its value, a new entry of `state`.

    But not a constant that is rounded into a format: the format is part of the model.

    Weight parametrizations and `x @ w` (whose transpose is a view of the user's storage) become
    plain weights. A result is a parameter where one of its sources is.
    """
    values: dict[Node, Tensor] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            values[node] = state[str(node.target)]
        elif (
            node.op == "call_function"
            and node.target not in (REQUANTIZE, REQUANTIZE_WEIGHTS)
            and all(arg in values for arg in node.all_input_nodes)
        ):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            assert callable(node.target)
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(values.get(node), Tensor):
            continue
        if all(user in values for user in node.users):
            continue
        sources = _sources(node)
        name = _free(_folded_name(node, sources), state)
        trainable = any(state[source].requires_grad for source in sources)
        parameter = any(isinstance(state[source], nn.Parameter) for source in sources)
        state[name] = share(values[node], trainable if parameter else None)
        with graph.inserting_before(node):
            folded = graph.get_attr(name)
        folded.meta["val"] = node.meta.get("val")
        node.replace_all_uses_with(folded)
    # attention counts as random, and so as impure
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


def _sources(node: Node) -> list[str]:
    """Targets of the `get_attr` nodes that `node` is computed from."""
    seen, pending = {node}, [node]
    while pending:
        sources = pending.pop().all_input_nodes
        pending += [source for source in sources if source not in seen]
        seen.update(sources)
    return sorted({str(source.target) for source in seen if source.op == "get_attr"})


def _folded_name(node: Node, sources: list[str]) -> str:
    """ "fc.weight" for what comes from "fc.parametrizations.weight...", else "..._folded"."""
    if "folded_name" in node.meta:
        return ".".join(filter(None, [_module(node)[0], node.meta["folded_name"]]))
    owners = set()
    for source in sources:
        owner, parametrized, rest = source.partition("parametrizations.")
        owners.add(owner + rest.partition(".")[0] if parametrized else f"{source}_folded")
    return owners.pop() if len(owners) == 1 else f"{_functional_name(node)}_folded"


def _free(name: str, state: State) -> str:
    """`name`, numbered where it is taken or would be both a tensor and a module."""
    candidate, number = name, 0
    while any(f"{candidate}.".startswith(f"{other}.") or f"{other}.".startswith(f"{candidate}.")
              for other in state):  # fmt: skip
        number += 1
        candidate = f"{name}_{number}"
    return candidate


def name_layers(graph: fx.Graph) -> dict[Node, Node]:
    """A copy of `graph` with `meta["origin"]` and nodes named after it, as original -> copy.

    Origins are unique, but for those of the steps of a recurrence.
    A node of a layer of torch.nn has the layer's path; one that stands in a forward method has
    the path of its module and the op: "block1.relu"; so has what a layer computes on the way, such
    as the pad before an even-sized 'same' convolution. Repetitions get _1, _2, ...
    """
    inner = {_module(node)[0].rpartition(".")[0] for node in graph.nodes} | {""}
    calls: dict[tuple[str, ...], Node] = {}  # of a layer; its last node bears the name
    for node in graph.nodes:
        path, kind = _module(node)
        is_layer = kind.startswith(_LAYERS) and kind != _NETWORK
        if is_layer and (path not in inner or kind.startswith(_OURS)):
            calls[tuple(node.meta["nn_module_stack"])] = node
    layers = {node: _module(node)[0] for node in calls.values()}
    taken = set(layers.values())
    unnamed = set(taken)
    copy, copies = fx.Graph(), dict[Node, Node]()
    for node in graph.nodes:
        if node.op != "call_function":
            copies[node] = copy.node_copy(node, copies.__getitem__)
            copies[node].meta = {}
            continue
        path = layers.get(node, "")
        if "tied" in node.meta:  # the same part of every step of a recurrence
            origin = f"{_module(node)[0] or 'recurrent'}.{node.meta['tied']}"
        else:
            origin = path if path in unnamed else _unique(path or _functional_name(node), taken)
            unnamed.discard(path)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), copies.__getitem__)
        copies[node] = copy.create_node(node.op, node.target, args, kwargs, origin)
        kept = {key: node.meta[key] for key in ("tied", "exact") if key in node.meta}
        copies[node].meta = {"origin": origin, **kept}
    return copies


def _module(node: Node) -> tuple[str, str]:
    """Path and class of the innermost module whose forward made this node."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path, kind = stack[-1] if stack else ("", "")
    return ("", "") if str(path).startswith("_empty_nn_module") else (str(path), str(kind))


def _functional_name(node: Node) -> str:
    path, _ = _module(node)
    parts = op_name(node.target).split(".")  # namespace, op, overload
    op = parts[min(1, len(parts) - 1)].strip("_")
    return f"{path}.{op}" if path else op


def _unique(name: str, taken: set[str]) -> str:
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate
