"""What moves values."""

from math import isfinite

import torch
from torch.fx.node import Node

from fxloom.graph import arguments
from fxloom.moves import GATHER
from fxloom.support.core import checks, is_constant, is_image, too_large

aten = torch.ops.aten


@checks(aten.cat.default)
def _cat(node: Node) -> str | None:
    for part in arguments(node)[0]:
        if part.op == "get_attr":
            return "a constant among the concatenated tensors has no lowering"
    return None


_PADS = ("reflect", "replicate", "circular")


@checks(aten.constant_pad_nd.default)
def _pad(node: Node) -> str | None:
    x, widths, fill = arguments(node)
    if not isfinite(fill):
        return f"needs a finite number to pad with, got {fill}"
    if reason := too_large(node, (2,)):
        return reason
    sizes = x.meta["val"].shape[::-1]
    for size, before, after in zip(sizes, widths[::2], widths[1::2], strict=False):
        if -before >= size or -after >= size:
            return f"its padding {list(widths)} leaves nothing of its input"
    return None


@checks(aten.pad.default)
def _pad_by_itself(node: Node) -> str | None:
    mode = arguments(node)[2]
    return None if mode in _PADS else f"mode {mode!r} has no lowering, only {', '.join(_PADS)}"


@checks(aten.pixel_shuffle.default, aten.pixel_unshuffle.default)
def _pixels(node: Node) -> str | None:
    return is_image(arguments(node)[0])


@checks(aten.channel_shuffle.default)
def _channels(node: Node) -> str | None:
    return None


@checks(
    GATHER, aten.slice.Tensor, aten.select.int, aten.flip.default, aten.roll.default,
    aten.expand.default, aten.repeat.default, aten.repeat_interleave.self_int,
)  # fmt: skip
def _choice(node: Node) -> str | None:
    return None  # the batch rules see to it that no sample is lost or moved


@checks(aten.index_select.default, aten.index.Tensor)
def _index(node: Node) -> str | None:
    if node.target is aten.index_select.default:
        indices = [arguments(node)[2]]
    else:
        indices = [index for index in arguments(node)[1] if index is not None]
    if not all(is_constant(index) for index in indices):
        return "only indices that are constants have a lowering"
    if any(index.meta["val"].is_floating_point() for index in indices):
        return "indices must be integers"
    if any(index.meta["val"].dtype == torch.bool for index in indices):
        return "a mask as index has no lowering. Use the indices, mask.nonzero()[:, 0]"
    return None
