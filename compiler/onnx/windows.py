"""Windows of convolutions and pools: strides, dilations and the padding on every side."""

from collections.abc import Sequence
from dataclasses import dataclass

from fxloom.onnx.node import Node, Refused


@dataclass(frozen=True)
class Window:
    """One number for each spatial dimension."""

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def even(self) -> bool:
        """Whether both sides are padded alike, as layers of torch pad."""
        return self.begins == self.ends

    @property
    def outside(self) -> list[int]:
        """The padding in the order of functional.pad, last dimension first."""
        pairs = zip(reversed(self.begins), reversed(self.ends), strict=True)
        return [size for pair in pairs for size in pair]


def window_of(node: Node, kernel: Sequence[int]) -> Window:
    """The window of a node whose first input has the images. Raises Refused."""
    count = len(kernel)
    strides = node.integers("strides", [1] * count)
    dilations = node.integers("dilations", [1] * count)
    pads = node.integers("pads", [0] * (2 * count))
    mode = node.text("auto_pad", "NOTSET")
    if len(strides) != count or len(dilations) != count or len(pads) != 2 * count:
        raise Refused(f"strides, dilations and pads are not for {count} spatial dimensions")
    if min([*strides, *dilations, *kernel]) < 1 or min(pads) < 0:
        raise Refused(f"strides {strides}, dilations {dilations} and pads {pads} are not positive")
    if node.rank() != count + 2:
        raise Refused(f"a window of {count} dimensions on an input of {node.rank() - 2}")
    begins, ends = pads[:count], pads[count:]
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        sizes = node.shape()[2:]
        for dim, (size, stride) in enumerate(zip(sizes, strides, strict=True)):
            covered = (-(-size // stride) - 1) * stride + (kernel[dim] - 1) * dilations[dim] + 1
            total = max(covered - size, 0)
            less, more = total // 2, total - total // 2
            begins[dim], ends[dim] = (less, more) if mode == "SAME_UPPER" else (more, less)
    elif mode == "VALID":
        begins, ends = [0] * count, [0] * count
    elif mode != "NOTSET":
        raise Refused(f"auto_pad={mode!r} is not known")
    return Window(tuple(strides), tuple(dilations), tuple(begins), tuple(ends))
