"""Operations on windows of images: convolution and pools."""

from collections.abc import Sequence
from math import prod
from typing import ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fxloom.fixed_point import (
    Int64Array,
)
from fxloom.ops.base import (
    Inferred,
    Operand,
    Pads,
    operation,
    require,
)
from fxloom.ops.products import dot_bounds


@operation
class Conv:
    """2-D cross-correlation of x[H, W, C] with the constant w[KH, KW, C/groups, O], zero-padded.

    padding: ((top, bottom), (left, right)). Output channel o reads the input channels of its group
    o // (O / groups), as in torch.nn.Conv2d.
    """

    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    name: ClassVar[str] = "conv"
    arity: ClassVar[int | None] = 2

    def infer(self, args: Sequence[Operand]) -> Inferred:
        x, w = args
        require(w.data is not None, "the kernel of conv must be a constant")
        assert w.data is not None
        require(
            len(x.shape) == 3 and len(w.shape) == 4,
            f"conv needs x[H, W, C] and w[KH, KW, C/groups, O], got {x.shape} and {w.shape}",
        )
        require(
            self.groups >= 1
            and x.shape[2] == w.shape[2] * self.groups
            and w.shape[3] % self.groups == 0,
            f"conv with {self.groups} groups does not fit {x.shape[2]} input channels and a "
            f"kernel of {w.shape}",
        )
        height, width = window_positions(
            x.shape[:2], w.shape[:2], self.stride, self.padding, self.dilation
        )
        padded = any(n for pair in self.padding for n in pair)
        lo, hi = (min(x.lo, 0), max(x.hi, 0)) if padded else (x.lo, x.hi)
        lo, hi = dot_bounds(lo, hi, w.data, (0, 1, 2))
        return Inferred((height, width, w.shape[3]), x.fraction + w.fraction, lo, hi)

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        x, w = arrays
        kernel = w.shape[:2]
        windows = sliding_windows(x, kernel, self.stride, self.padding, self.dilation, 0)
        outputs = w.shape[3] // self.groups
        parts = []
        for group in range(self.groups):
            channels = slice(group * w.shape[2], (group + 1) * w.shape[2])
            columns = windows[:, :, :, channels].reshape(*windows.shape[:3], -1)
            part = w[..., group * outputs : (group + 1) * outputs]
            # windows are [..., C, KH, KW]
            parts.append(columns @ part.transpose(2, 0, 1, 3).reshape(-1, outputs))
        return np.concatenate(parts, axis=-1)


@operation
class Pool:
    """Sum or maximum over windows of x[H, W, C]; positions in the padding do not take part.

    kind: "sum" or "max". padding: ((top, bottom), (left, right)), each less than what a window
    covers.
    """

    kind: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    name: ClassVar[str] = "pool"
    arity: ClassVar[int | None] = 1

    def infer(self, args: Sequence[Operand]) -> Inferred:
        (x,) = args
        require(self.kind in ("sum", "max"), f"pool kind must be sum or max, got {self.kind!r}")
        require(len(x.shape) == 3, f"pool needs x[H, W, C], got {x.shape}")
        height, width = window_positions(
            x.shape[:2], self.kernel, self.stride, self.padding, self.dilation
        )
        least = prod(self._fewest(axis, n) for axis, n in enumerate(x.shape[:2]))
        require(
            least > 0,
            f"pool with kernel {self.kernel}, padding {self.padding} and dilation {self.dilation} "
            f"has a window without any value of {x.shape[:2]}",
        )
        shape = (height, width, x.shape[2])
        if self.kind == "max":
            return Inferred(shape, x.fraction, x.lo, x.hi)
        count = prod(self.kernel)
        return Inferred(
            shape,
            x.fraction,
            min(count * x.lo, least * x.lo),
            max(count * x.hi, least * x.hi),
        )

    def _fewest(self, axis: int, size: int) -> int:
        """Positions of the emptiest window along an axis that lie inside."""
        (before, after), step = self.padding[axis], self.stride[axis]
        taps = np.arange(self.kernel[axis]) * self.dilation[axis]
        starts = np.arange(-before, size + after - int(taps[-1]), step)
        inside = (starts[:, None] + taps >= 0) & (starts[:, None] + taps < size)
        return int(inside.sum(axis=1).min())

    def evaluate(self, args: Sequence[Operand], arrays: Sequence[Int64Array]) -> Int64Array:
        fill = 0 if self.kind == "sum" else args[0].lo
        windows = sliding_windows(
            arrays[0], self.kernel, self.stride, self.padding, self.dilation, fill
        )
        result: Int64Array = (
            windows.sum(axis=(-2, -1)) if self.kind == "sum" else windows.max(axis=(-2, -1))
        )
        return result


def window_positions(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Pads,
    dilation: Sequence[int] = (1, 1),
) -> tuple[int, int]:
    """How many windows fit along height and width; VerifyError where an attribute is senseless."""
    require(
        min(*kernel, *stride, *dilation) >= 1 and min(n for pair in padding for n in pair) >= 0,
        f"kernel {tuple(kernel)}, stride {tuple(stride)} and dilation {tuple(dilation)} must be "
        f"positive, padding {padding} not negative",
    )
    counts = []
    for n, k, s, (before, after), d in zip(size, kernel, stride, padding, dilation, strict=True):
        room = n + before + after - (d * (k - 1) + 1)
        require(
            room >= 0, f"a window of {d * (k - 1) + 1} does not fit {n}+{before}+{after} positions"
        )
        counts.append(room // s + 1)
    return counts[0], counts[1]


def sliding_windows(
    x: Int64Array,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Pads,
    dilation: Sequence[int],
    fill: int,
) -> Int64Array:
    """Sliding windows of x[N, H, W, C]: a view [N, OH, OW, C, KH, KW]."""
    padded = np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=fill)
    extent = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    windows = sliding_window_view(padded, extent, axis=(1, 2))
    result: Int64Array = windows[:, :: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]
    return result
