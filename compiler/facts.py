"""What is known of the weights of a graph and must stay true: which of them are zero for good, and
which of them are one number.

A pass that prunes says so with `keep_zeros`, one that shares weights with `share`; passes that come
later round and train around those zeros and by those classes, and the recipe looks after every pass
whether all of it is still true. Facts are kept by the names of tensors in `graph.meta`, which
copies of a graph take along; a tensor with several names has the same facts under all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxloom.errors import RecipeError
from fxloom.sharing import Codebook, Shared, classes_of, holds

_ZEROS = "facts"
_SHARED = "shared"


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
    """The zeros of each tensor that has some for good, by its name."""
    found: Mapping[str, Zeros] = graph.meta.get(_ZEROS, {})
    return found


def sharing(graph: fx.GraphModule) -> Mapping[str, Shared]:
    """The classes of each tensor whose weights are shared, by its name."""
    found: Mapping[str, Shared] = graph.meta.get(_SHARED, {})
    return found


def has_facts(graph: fx.GraphModule, names: Iterable[str]) -> bool:
    """Whether weights of one of these tensors were pruned or are shared."""
    return any(name in facts(graph) or name in sharing(graph) for name in names)


def kept_weights(graph: fx.GraphModule, name: str) -> Tensor | None:
    """Which weights of a tensor may be other than zero; None where all may."""
    zeros = facts(graph).get(name)
    return None if zeros is None else zeros.kept


def shared_weights(graph: fx.GraphModule, name: str) -> Shared | None:
    """Which weights of a tensor are one number; None where none are."""
    return sharing(graph).get(name)


def keep_zeros(graph: fx.GraphModule, name: str, kept: Tensor | None = None) -> None:
    """State that weights of a tensor stay zero: those that are zero now, or those not in `kept`.

    For the graph that a pass returns, not for the one that it was given.
    """
    tensors = _tensors(graph)
    zeros = Zeros.outside(tensors[name].detach() != 0 if kept is None else kept)
    assert zeros.hold(tensors[name]), name
    _state(graph, _ZEROS, dict.fromkeys(_aliases(tensors, name), zeros))


def share(graph: fx.GraphModule, name: str, shared: Shared) -> None:
    """State that the weights of a tensor that are not zero for good are one number a class.

    For the graph that a pass returns, not for the one that it was given; after `keep_zeros`.
    """
    tensors = _tensors(graph)
    assert holds(shared, tensors[name], kept_weights(graph, name)), name
    _state(graph, _SHARED, dict.fromkeys(_aliases(tensors, name), shared))


def forget(graph: fx.GraphModule) -> None:
    """Say nothing of any tensor; for a graph that gets others."""
    _set(graph, _ZEROS, {})
    _set(graph, _SHARED, {})


def carry(
    graph: fx.GraphModule, old: str, new: str, move: Callable[[Tensor], Tensor] | None = None
) -> None:
    """Say of the tensor `new` what is known of `old`, which it was made from.

    move: what was done to the weights, where it moved them: takes and returns a tensor of bool or
    int32, which is false or 0 where the move puts zeros. Classes that are computed from the place
    of a weight do not move: then, and where `new` does not have its weights by class any more,
    nothing is said of them, which `check` tells.
    """
    zeros, shared = facts(graph).get(old), sharing(graph).get(old)
    if zeros is not None and (move is not None or old != new):
        zeros = zeros if move is None else Zeros.outside(move(zeros.kept))
        _state(graph, _ZEROS, {new: zeros})
    if shared is None:
        return
    if move is not None:
        shared = _moved(graph, shared, new, move)
    values, kept = _tensors(graph)[new], kept_weights(graph, new)
    if shared is not None and holds(shared, values, kept):
        _state(graph, _SHARED, {new: shared})
    elif new in sharing(graph):
        _set(graph, _SHARED, {n: each for n, each in sharing(graph).items() if n != new})


def check(before: fx.GraphModule, after: fx.GraphModule) -> dict[str, list[str]]:
    """Names of tensors that had facts which nobody states any more, by the kind of fact, for the
    summary of a pass. Raises RecipeError where a fact is not true."""
    tensors = _tensors(after)
    for name, zeros in facts(after).items():
        if name in tensors and not zeros.hold(tensors[name]):
            raise RecipeError(
                f"{name}: weights that were pruned are not zero any more, or the tensor has another"
                f" shape: required {list(zeros.shape)} with {int((~zeros.kept).sum())} zeros, got "
                f"{list(tensors[name].shape)}. Prune after this pass instead"
            )
    for name, shared in sharing(after).items():
        if name in tensors and not holds(shared, tensors[name], kept_weights(after, name)):
            raise RecipeError(
                f"{name}: weights that were shared are not one number any more, or the tensor has "
                f"another shape: required {shared.identity[0]}, {list(shared.shape)}, got "
                f"{list(tensors[name].shape)}. Share weights after this pass instead"
            )
    kinds = {"pruned_tensors_gone": _ZEROS, "sharing_gone": _SHARED}
    gone = {}
    for text, key in kinds.items():
        had, has = before.meta.get(key, {}), after.meta.get(key, {})
        left = {name: fact for name, fact in has.items() if name in tensors}
        if lost := sorted({*had, *has} - {*left}):
            gone[text] = lost
        _set(after, key, left)
    return gone


def _moved(
    graph: fx.GraphModule, shared: Shared, new: str, move: Callable[[Tensor], Tensor]
) -> Codebook | None:
    """Classes that moved with the weights, and zeros where the move put some; None where they
    cannot move."""
    if not isinstance(shared, Codebook):
        return None
    classes = move(classes_of(shared) + 1)
    if bool((is_new := classes == 0).any()):
        kept = kept_weights(graph, new)
        _state(graph, _ZEROS, {new: Zeros.outside(~is_new if kept is None else kept & ~is_new)})
    return Codebook.of((classes - 1).clamp_(min=0), shared.classes)


def _state(graph: fx.GraphModule, key: str, found: Mapping[str, Any]) -> None:
    _set(graph, key, {**graph.meta.get(key, {}), **found})


def _set(graph: fx.GraphModule, key: str, found: Mapping[str, Any]) -> None:
    graph.meta[key] = found  # a new mapping: copies of the graph share the old one


def _tensors(graph: fx.GraphModule) -> dict[str, Tensor]:
    return {
        **dict(graph.named_parameters(remove_duplicate=False)),
        **dict(graph.named_buffers(remove_duplicate=False)),
    }


def _aliases(tensors: Mapping[str, Tensor], name: str) -> Iterable[str]:
    """All names of a tensor."""
    same = _storage(tensors[name])
    return [other for other, tensor in tensors.items() if _storage(tensor) == same]


def _storage(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.device
