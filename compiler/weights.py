"""Weights of graphs and models in files: coded as small as they are, with what is known of them.

A graph may be float, pruned, shared or quantized. Of one that is quantized the integers that it
rounds its weights to are kept, not what it rounds: loaded again it computes the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import overload

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from fxloom.coded_tensors import encode
from fxloom.editing import copy_graph
from fxloom.errors import WeightsError
from fxloom.facts import forget, keep_zeros, kept_weights, share, shared_weights
from fxloom.huffman import LONGEST
from fxloom.lowering.core import mantissas
from fxloom.quantized_ops import REQUANTIZE, REQUANTIZE_WEIGHTS
from fxloom.tensor_bits import DTYPES, require_dense
from fxloom.weight_entries import Entry, Integers, Weights, coded, scaled
from fxloom.weight_file import read_weights, write_weights


def save_weights(
    graph: nn.Module, path: str | os.PathLike[str], *, index_bits: int | None = None
) -> None:
    """Write all tensors of a captured graph, or of any model, as a safetensors file.

    Weights of few distinct values are stored as a codebook and Huffman codes, pruned ones as run
    lengths, shared ones once a class; what is known of them (zeros, classes) is kept. index_bits:
    of a run length, 1 to 16, 0 for none; by default what takes least. Raises WeightsError where a
    tensor has a type that safetensors does not, or the file cannot be written.
    """
    if not isinstance(graph, nn.Module):
        raise WeightsError(f"required a graph or a model, got a {type(graph).__name__}")
    if index_bits is not None and index_bits not in range(LONGEST + 1):
        raise WeightsError(f"index_bits: required 0 to {LONGEST}, got {index_bits!r}")
    how = partial(encode, index_bits=index_bits)
    # One after the other, for what is not coded yet may be a second model.
    found = (coded(weights, how) for weights in weights_of(graph))
    write_weights(path, [replace(written, patterns={}) for written in found])


@overload
def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]: ...
@overload
def load_weights(path: str | os.PathLike[str], graph: fx.GraphModule) -> fx.GraphModule: ...
def load_weights(
    path: str | os.PathLike[str], graph: fx.GraphModule | None = None
) -> dict[str, Tensor] | fx.GraphModule:
    """The tensors of a file by name, for `model.load_state_dict`; or a graph that has them.

    graph: a captured graph whose tensors have the names, types and shapes of those in the file. It
    stays as it is; returned is one with the weights of the file and what is known of them. Nothing
    in a file is executed. Raises WeightsError, which says which tensor, what was required and what
    arrived, for a file that is damaged, cut off, another's or of another model.
    """
    if graph is None:
        read = read_weights(path)
        return {name: weights.tensor for weights in read for name in weights.names}
    if not isinstance(graph, fx.GraphModule):
        raise WeightsError(
            f"{path}: required a graph of fxloom.capture, got a {type(graph).__name__}. Use "
            "model.load_state_dict(fxloom.load_weights(path))"
        )
    wanted = tensors_of(graph)
    read = read_weights(path, lambda entry: _require_fitting(entry, wanted))
    missing = wanted.keys() - {name for weights in read for name in weights.names}
    if missing:
        raise WeightsError(f"{path}: required {_some(missing)} of the graph, got no such tensors")
    return _with_weights(graph, read, str(path))


def save_plain(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Write the tensors of a file as they are decoded, for other readers of safetensors.

    Raises WeightsError where one cannot be read or the other not be written, or both are the same.
    """
    if os.path.exists(path) and os.path.exists(out) and os.path.samefile(path, out):
        raise WeightsError(f"{out}: is the file that is decoded: choose another for what comes out")
    tensors = {name: tensor.clone() for name, tensor in load_weights(path).items()}
    try:
        save_file(tensors, out)
    except (OSError, SafetensorError) as fault:
        raise WeightsError(f"{out}: cannot be written: {fault}") from None


def tensors_of(graph: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by all their names."""
    return {
        **dict(graph.named_parameters(remove_duplicate=False)),
        **dict(graph.named_buffers(remove_duplicate=False)),
    }


def weights_of(graph: nn.Module) -> Iterator[Weights]:
    """What there is to write of a graph or a model, tied tensors once."""
    is_graph = isinstance(graph, fx.GraphModule)
    tensors = tensors_of(graph) if is_graph else graph.state_dict(keep_vars=True)
    rounded = dict(_rounded(graph)) if isinstance(graph, fx.GraphModule) else {}
    alike: dict[object, list[str]] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise WeightsError(f"{name}: required a tensor, got a {type(tensor).__name__}")
        require_dense(tensor, name)
        where = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        alike.setdefault(where if tensor.numel() else name, []).append(name)
    for names in alike.values():
        first = names[0]
        nodes = [node for name in names for node in rounded.get(name, [None])]
        tensor = tensors[first]
        integers, steps = _integers(tensor, nodes)
        kept = shared = None
        if isinstance(graph, fx.GraphModule):
            kept, shared = kept_weights(graph, first), shared_weights(graph, first)
        if kept is not None and integers is None:
            # A weight times a mask may be -0.0, which would be another value to store.
            tensor = tensor.detach().masked_fill(~kept.to(tensor.device), 0)
        yield Weights(tuple(names), tensor, integers, steps, kept, shared)


def _rounded(graph: fx.GraphModule) -> Iterator[tuple[str, list[fx.Node | None]]]:
    """Names of tensors that are read, with the nodes that read them; None for those that do not
    round."""
    found: dict[str, list[fx.Node | None]] = {}
    for node in graph.graph.find_nodes(op="get_attr"):
        for user in node.users:
            is_rounding = user.target in (REQUANTIZE, REQUANTIZE_WEIGHTS)
            found.setdefault(str(node.target), []).append(user if is_rounding else None)
    yield from found.items()


def _integers(
    tensor: Tensor, nodes: Sequence[fx.Node | None]
) -> tuple[Integers | None, tuple[int, ...]]:
    """What all readers of a tensor round it to, in steps of 2**-steps; None where they differ or
    rounding once more would change it."""
    plain: tuple[Integers | None, tuple[int, ...]] = None, ()
    readers = [node for node in nodes if node is not None]
    if not readers or len(readers) < len(nodes) or not tensor.is_floating_point():
        return plain
    first = readers[0]
    if any((n.target, n.args[1:]) != (first.target, first.args[1:]) for n in readers):
        return plain
    whole, to, shifts = mantissas(tensor, first)
    steps = tuple(to.fraction + shift for shift in shifts or (0,))
    again = mantissas(scaled(whole, steps, tensor.dtype), first)[0]
    return (whole, steps) if np.array_equal(whole, again) else plain


def _require_fitting(entry: Entry, wanted: Mapping[str, Tensor]) -> None:
    """Raise WeightsError unless the graph has such a tensor."""
    for name in entry.names:
        if name not in wanted:
            raise WeightsError(f"required one of the graph's tensors, got {name!r}")
        tensor = wanted[name]
        required = (str(tensor.dtype), list(tensor.shape))
        arrived = (str(_dtype(entry)), entry.shape)
        if required != arrived:
            raise WeightsError(
                f"required {required[0]} of shape {required[1]}, as the graph has it, got "
                f"{arrived[0]} of shape {arrived[1]}"
            )


def _dtype(entry: Entry) -> object:
    return DTYPES.get(entry.dtype, entry.dtype)


def _some(names: set[str]) -> str:
    """A few of many names."""
    shown = sorted(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _with_weights(graph: fx.GraphModule, read: Sequence[Weights], path: str) -> fx.GraphModule:
    """A copy of a graph with these tensors and what is known of them."""
    loaded = copy_graph(graph)
    before = tensors_of(graph)
    forget(loaded)
    for weights in read:
        old = before[weights.name]
        tensor = weights.tensor.to(old.device)
        if isinstance(old, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
        for name in weights.names:
            *owner, leaf = name.split(".")
            setattr(loaded.get_submodule(".".join(owner)), leaf, tensor)
        if weights.kept is not None:
            keep_zeros(loaded, weights.name, weights.kept)
        if weights.shared is not None:
            share(loaded, weights.name, weights.shared)
    _require_same_steps(loaded, read, path)
    return loaded


def _require_same_steps(graph: fx.GraphModule, read: Sequence[Weights], path: str) -> None:
    """Raise WeightsError where a quantized graph rounds weights that were quantized otherwise."""
    readers = dict(_rounded(graph))
    for weights in read:
        nodes = [node for name in weights.names for node in readers.get(name, [])]
        if weights.integers is None or not any(nodes):
            continue
        for node in nodes:
            if node is None:
                continue
            whole, to, shifts = mantissas(weights.tensor, node)
            steps = tuple(to.fraction + shift for shift in shifts or (0,))
            if not torch.equal(scaled(whole, steps, weights.tensor.dtype), weights.tensor):
                raise WeightsError(
                    f"{path}: {weights.name}: required weights that {to} holds, as the graph "
                    f"rounds them, got some in steps of 2**-{max(weights.steps)} that it would "
                    "change. Load them into a graph that is quantized alike, or not at all"
                )
