"""Resize and Upsample. Nearest neighbours are numbers that the operator's formulas give.

In float32, as onnxruntime has them: (1 + 0.5) / 0.6 is 2.5 there, and less otherwise.
"""

from collections.abc import Sequence
from math import ceil, floor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fxloom.onnx.node import Node, Refused
from fxloom.onnx.registry import Function, builds

MAX_SIZE = 2**20
"""Pixels along one dimension."""


@builds("Upsample")
def _upsample(node: Node) -> Function:
    if node.version < 9:
        scales = [float(scale) for scale in node.attribute("scales", [])]
    else:
        scales = node.constant(1, "scales").reshape(-1).tolist()
    mode = node.text("mode", "nearest")
    sizes = _sizes(node, scales)
    if mode == "nearest":
        return _nearest(node, sizes, scales, "asymmetric", "floor")
    raise Refused(f"mode {mode!r} of Upsample places pixels as torch does not. Use Resize")


@builds("Resize")
def _resize(node: Node) -> Function:
    mode = node.text("mode", "nearest")
    place = 1 if node.version == 10 else 2
    default = "asymmetric" if node.version == 10 else "half_pixel"
    placing = node.text("coordinate_transformation_mode", default)
    rounding = node.text("nearest_mode", "simple" if node.version == 10 else "round_prefer_floor")
    for name, value in (
        ("exclude_outside", 0), ("antialias", 0), ("keep_aspect_ratio_policy", "stretch"),
    ):  # fmt: skip
        node.only(name, value, value)
    node.attribute("extrapolation_value", 0.0)  # of tf_crop_and_resize alone
    cubic = node.number("cubic_coeff_a", -0.75)
    if node.version > 10 and node.has(1):
        node.consumed.add(1)  # the region, of tf_crop_and_resize alone
    axes = node.attribute("axes", None)
    scales, sizes = _asked(node, place, axes)
    if axes is not None:
        full = [node.counted(int(axis), node.rank()) for axis in axes]
        given = scales if scales is not None else sizes
        if given is None or len(given) != len(full):
            raise Refused(f"axes {axes} do not fit its sizes")
        if scales is not None:
            scales = [dict(zip(full, scales, strict=True)).get(d, 1.0) for d in range(node.rank())]
        if sizes is not None:
            whole = dict(zip(full, sizes, strict=True))
            sizes = [whole.get(dim, size) for dim, size in enumerate(node.shape())]
    if sizes is None:
        sizes = _sizes(node, scales or [])
    else:
        _check(node, sizes)
        scales = [size / old for size, old in zip(sizes, node.shape(), strict=True)]
    assert scales is not None
    if mode == "nearest":
        return _nearest(node, sizes, scales, placing, rounding)
    if mode == "cubic" and cubic != -0.75:
        raise Refused(f"cubic_coeff_a={cubic} is not torch's -0.75")
    return _smooth(node, sizes, scales, placing, mode)


def _asked(
    node: Node, place: int, axes: Sequence[int] | None
) -> tuple[list[float] | None, list[int] | None]:
    if node.has(place) and node.value(place).known and node.value(place).first.numel():
        return node.constant(place, "scales").reshape(-1).tolist(), None
    if node.has(place):
        node.consumed.add(place)
    if node.version == 10 or not node.has(place + 1):
        raise Refused("it has neither scales nor sizes")
    first, second = node.sizes(place + 1, "sizes")
    axis = None if axes is not None else node.value(0).batch_axis
    if axis is not None and axis < len(first) and not (node.fixed and first == second):
        if second[axis] != node.value(0).shapes[1][axis]:
            raise Refused("it resizes the batch")
        second[axis] = first[axis]
    if first != second:
        raise Refused("its sizes depend on the batch size")
    return None, first


def _sizes(node: Node, scales: Sequence[float]) -> list[int]:
    if len(scales) != node.rank() or min(scales) <= 0:
        raise Refused(f"scales {list(scales)} are not for {node.rank()} dimensions")
    sizes = [
        floor(np.float32(size) * np.float32(scale))
        for size, scale in zip(node.shape(), scales, strict=True)
    ]
    _check(node, sizes)
    return sizes


def _check(node: Node, sizes: Sequence[int]) -> None:
    if len(sizes) != node.rank() or not min(sizes) > 0 or max(sizes) > MAX_SIZE:
        raise Refused(f"required {node.rank()} sizes from 1 to {MAX_SIZE}, {list(sizes)} arrived")
    axis = node.value(0).batch_axis
    if axis is not None and sizes[axis] != node.shape()[axis]:
        raise Refused("it resizes the batch")


def _place(new: int, size: int, old: int, scale: float, placing: str) -> float:
    """Where a pixel comes from, in pixels of the input."""
    single, place, half = np.float32(scale), np.float32(new), np.float32(0.5)
    match placing:
        case "half_pixel":
            return float((place + half) / single - half)
        case "pytorch_half_pixel":
            return float((place + half) / single - half) if size > 1 else 0.0
        case "asymmetric":
            return float(place / single)
        case "align_corners":
            return float(place * np.float32(old - 1) / np.float32(size - 1)) if size > 1 else 0.0
    raise Refused(f"coordinate_transformation_mode {placing!r} is not supported")


def _rounded(place: float, rounding: str, scale: float) -> int:
    match rounding:
        case "simple":  # version 10 says nothing; this is what onnxruntime does with it
            return ceil(place) if scale < 1 else floor(place)
        case "floor":
            return floor(place)
        case "ceil":
            return ceil(place)
        case "round_prefer_floor":
            return ceil(place - 0.5)
        case "round_prefer_ceil":
            return floor(place + 0.5)
    raise Refused(f"nearest_mode {rounding!r} is not known")


def _nearest(
    node: Node, sizes: Sequence[int], scales: Sequence[float], placing: str, rounding: str
) -> Function:
    picks: dict[int, list[int]] = {}
    for dim, (size, old, scale) in enumerate(zip(sizes, node.shape(), scales, strict=True)):
        if size == old and scale == 1:
            continue
        places = (_place(new, size, old, scale, placing) for new in range(size))
        picks[dim] = [min(max(_rounded(place, rounding, scale), 0), old - 1) for place in places]
    factors = {
        dim: sizes[dim] // node.shape()[dim]
        for dim, picked in picks.items()
        if sizes[dim] % node.shape()[dim] == 0
        and picked == [new // (sizes[dim] // node.shape()[dim]) for new in range(sizes[dim])]
    }
    spatial = list(range(2, node.rank()))
    if factors.keys() == picks.keys() == set(spatial) and len(spatial) in (1, 2):
        numbers = [float(factors[dim]) for dim in spatial]
        return lambda x: functional.interpolate(x, scale_factor=numbers, mode="nearest")
    indices = {dim: torch.tensor(picked) for dim, picked in picks.items()}

    def picked(x: Tensor) -> Tensor:
        for dim, index in indices.items():
            x = x.index_select(dim, index)
        return x

    return picked


_SMOOTH = {("linear", 1): "linear", ("linear", 2): "bilinear", ("cubic", 2): "bicubic"}


def _smooth(
    node: Node, sizes: Sequence[int], scales: Sequence[float], placing: str, mode: str
) -> Function:
    name = _SMOOTH.get((mode, node.rank() - 2))
    if name is None:
        raise Refused(f"mode {mode!r} for {node.rank() - 2} spatial dimensions is not supported")
    if list(sizes[:2]) != list(node.shape()[:2]):
        raise Refused("it resizes channels")
    pairs = list(zip(sizes, node.shape(), scales, strict=True))
    if any(abs(size - old * scale) > 1e-4 for size, old, scale in pairs):
        raise Refused(
            f"scales {list(scales)} give no whole sizes, and torch places pixels otherwise"
        )
    single = any(size == 1 for size in sizes[2:])
    corners = placing == "align_corners"
    if not corners and placing != "half_pixel" and (placing != "pytorch_half_pixel" or single):
        raise Refused(f"coordinate_transformation_mode {placing!r} is not that of torch")
    target = list(sizes[2:])
    return lambda x: functional.interpolate(x, size=target, mode=name, align_corners=corners)
