"""Pools and reductions."""

import torch
from torch.fx.node import Node

from fxloom.graph import arguments
from fxloom.support.core import checks, is_image, is_signal

aten = torch.ops.aten


@checks(aten.max_pool1d.default, aten.max_pool2d.default)
def _max_pool(node: Node) -> str | None:
    x, *attributes = arguments(node)
    problem = is_signal(x) if node.target is aten.max_pool1d.default else is_image(x)
    if problem is not None:
        return problem
    # Asked of PyTorch itself: of a window in its padding the maximum is minus infinity.
    zeros = torch.zeros(1, 1, *x.meta["val"].shape[2:])
    if node.target(zeros, *attributes).isinf().any():  # type: ignore[operator]
        kernel, _, padding, dilation, _ = attributes
        return (
            f"with kernel {kernel}, padding {padding} and dilation {dilation} a window lies in the "
            "padding alone and has no maximum. Choose a smaller padding"
        )
    return None


@checks(aten.avg_pool1d.default)
def _avg_pool1d(node: Node) -> str | None:
    return is_signal(arguments(node)[0])


@checks(aten.avg_pool2d.default)
def _avg_pool(node: Node) -> str | None:
    divisor = arguments(node)[6]
    if divisor is not None and divisor < 1:
        return f"divisor_override must be positive, got {divisor}"
    return is_image(arguments(node)[0])


@checks(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default)
def _adaptive_pool(node: Node) -> str | None:
    x, outputs = arguments(node)
    return is_signal(x) if len(outputs) == 1 else is_image(x)


@checks(
    aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec, aten._upsample_nearest_exact1d.vec,
    aten._upsample_nearest_exact2d.vec, aten.upsample_linear1d.vec, aten.upsample_bilinear2d.vec,
    aten.upsample_bicubic2d.vec, aten._upsample_bilinear2d_aa.vec, aten._upsample_bicubic2d_aa.vec,
)  # fmt: skip
def _upsample(node: Node) -> str | None:
    x = arguments(node)[0]
    return is_signal(x) if "1d" in str(node.target) else is_image(x)


@checks(aten.cumsum.default)
def _running_sum(node: Node) -> str | None:
    return None


@checks(aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default)
def _reduction(node: Node) -> str | None:
    if not arguments(node)[1]:
        return "needs the dimensions to reduce; none means all, the batch among them"
    if any(arguments(node)[3:]):
        return "a dtype of its own has no lowering. Leave the dtype out"
    return None
