"""What is known of the weights of a graph and must stay true: which of them are zero for good.

A pass that prunes says so with `keep_zeros`; passes that come later round and train around those
zeros, and the recipe looks after every pass whether they are still there. Facts are kept by the
names of tensors in `graph.meta`, which copies of a graph take along; a tensor with several names
has the same facts under all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from fxloom.errors import RecipeError

_KEY = "facts"


@dataclass(frozen=True)
class Zeros:
    """Weights of a tensor that stay zero. bits: one for each weight that is kept, packed."""

    shape: tuple[int, ...]
    bits: bytes

    @classmethod
    def outside(cls, kept: Tensor) -> Zeros:
        """Zeros wherever `kept`, of bool, is false."""
        return cls(tuple(kept.shape), np.packbits(kept.cpu().numpy()).tobytes())

    @property
    def kept(self) -> Tensor:
        """Which weights may be other than zero: bool, of the tensor's shape."""
        size = int(np.prod(self.shape))
        bits = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=size)
        return torch.from_numpy(bits.view(np.bool_)).reshape(self.shape)

    def hold(self, values: Tensor) -> bool:
        """Whether the values are zero where they must be."""
        is_nonzero = values.detach() != 0
        return tuple(values.shape) == self.shape and not bool(
            (is_nonzero & ~self.kept.to(values.device)).any()
        )


def facts(graph: fx.GraphModule) -> Mapping[str, Zeros]:
    """What is known of each tensor, by its name."""
    found: Mapping[str, Zeros] = graph.meta.get(_KEY, {})
    return found


def kept_weights(graph: fx.GraphModule, name: str) -> Tensor | None:
    """Which weights of a tensor may be other than zero; None where all may."""
    zeros = facts(graph).get(name)
    return None if zeros is None else zeros.kept


def keep_zeros(graph: fx.GraphModule, name: str, kept: Tensor | None = None) -> None:
    """State that weights of a tensor stay zero: those that are zero now, or those not in `kept`.

    For the graph that a pass returns, not for the one that it was given.
    """
    tensors = _tensors(graph)
    zeros = Zeros.outside(tensors[name].detach() != 0 if kept is None else kept)
    assert zeros.hold(tensors[name]), name
    same = _storage(tensors[name])
    names = [other for other, tensor in tensors.items() if _storage(tensor) == same]
    _set(graph, {**facts(graph), **dict.fromkeys(names, zeros)})


def carry(
    graph: fx.GraphModule, old: str, new: str, move: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Say of the tensor `new` what is known of `old`, which it was made from.

    move: what was done to the weights, where it moved them: takes and returns a bool tensor.
    """
    zeros = facts(graph).get(old)
    if zeros is not None and (move is not None or old != new):
        zeros = zeros if move is None else Zeros.outside(move(zeros.kept))
        _set(graph, {**facts(graph), new: zeros})


def check(before: fx.GraphModule, after: fx.GraphModule) -> list[str]:
    """Names of tensors that had facts and are gone. Raises RecipeError where one is not true."""
    tensors, gone = _tensors(after), []
    for name, zeros in facts(after).items():
        if name not in tensors:
            gone.append(name)
        elif not zeros.hold(tensors[name]):
            raise RecipeError(
                f"{name}: weights that were pruned are not zero any more, or the tensor has another"
                f" shape: required {list(zeros.shape)} with {int((~zeros.kept).sum())} zeros, got "
                f"{list(tensors[name].shape)}. Prune after this pass instead"
            )
    _set(after, {name: zeros for name, zeros in facts(after).items() if name not in gone})
    return sorted({*gone, *(facts(before).keys() - facts(after).keys())})


def _set(graph: fx.GraphModule, found: Mapping[str, Zeros]) -> None:
    graph.meta[_KEY] = found  # a new mapping: copies of the graph share the old one


def _tensors(graph: fx.GraphModule) -> dict[str, Tensor]:
    return {
        **dict(graph.named_parameters(remove_duplicate=False)),
        **dict(graph.named_buffers(remove_duplicate=False)),
    }


def _storage(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.device
