"""Proof by trial that a captured graph computes what the model computes, whatever the batch.

A model that rounds values into formats of its own is compared in float64, which holds those
exactly: in float32 the order of a sum may decide a tie, and a step of 16 bits is less than what is
allowed.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxloom.errors import CaptureError
from fxloom.exporting import blame
from fxloom.graph import Float64, output_nodes
from fxloom.quantized_ops import brings_formats

# Largest deviation relative to the largest output: another summation order is within it.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
_SAMPLES = 3

Noise = Callable[[], Sequence[float]]


def compare(
    model: Callable[..., object],
    graph_module: fx.GraphModule,
    examples: Sequence[Tensor],
    batch_axes: Sequence[int],
) -> None:
    """Raise CaptureError unless graph and model agree at batch sizes 1, 2 and 3.

    Samples are the examples' first, varied with a fixed seed. Batch 1 is the first sample, batch 2
    the other two, batch 3 all; the graph also computes each of the three alone.
    """
    inputs = vary(examples, batch_axes)
    if brings_formats(graph_module):
        wide = [x.double() if x.is_floating_point() else x for x in inputs]
        precise = _in_float64(model)
        if _stays_in_float64(precise, wide):
            _compare(precise, graph_module, Float64(graph_module).run, wide, batch_axes)
            return
    _compare(model, graph_module, graph_module, inputs, batch_axes)


def _in_float64(model: Callable[..., object]) -> Callable[..., object]:
    """The model with all its numbers in float64; the model itself stays as it is."""
    if isinstance(model, fx.GraphModule):
        return Float64(model).run
    assert isinstance(model, nn.Module)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = {
        name: tensor.detach().double() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    return lambda *inputs: torch.func.functional_call(model, state, inputs)


class _Narrowing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether anything is computed in float32."""

    seen = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else (result,)
        self.seen |= any(isinstance(x, Tensor) and x.dtype == torch.float32 for x in results)
        return result


def _stays_in_float64(model: Callable[..., object], inputs: Sequence[Tensor]) -> bool:
    """Whether a model computes in float64 alone: some name a type of their own."""
    try:
        with _Narrowing() as narrowing:  # type: ignore[no-untyped-call]
            model(*inputs)
    except Exception:  # of several types in one operation
        return False
    return not narrowing.seen


def _compare(
    model: Callable[..., object],
    graph_module: fx.GraphModule,
    graph: Callable[..., object],
    inputs: Sequence[Tensor],
    batch_axes: Sequence[int],
) -> None:
    """graph: runs graph_module."""

    def batch(first: int, stop: int) -> list[Tensor]:
        return [
            tensor.narrow(axis, first, stop - first)
            for tensor, axis in zip(inputs, batch_axes, strict=True)
        ]

    axes = [node.meta["batch_axis"] for node in output_nodes(graph_module)]
    whole = _run(graph, batch(0, _SAMPLES), "the graph")
    noise = cache(lambda: _noise(graph_module, inputs, whole))
    for first, stop in ((0, 1), (1, 3), (0, 3)):
        size = stop - first
        expected = _run(model, batch(first, stop), "the model")
        computed = _run(graph, batch(first, stop), "the graph") if size < _SAMPLES else whole
        _require_equal(expected, computed, f"graph and model disagree at batch size {size}", noise)
        _require_slices(whole, computed, axes, first, size, noise)
    for sample in range(1, _SAMPLES):
        alone = _run(graph, batch(sample, sample + 1), "the graph")
        _require_slices(whole, alone, axes, sample, 1, noise)


def vary(examples: Sequence[Tensor], batch_axes: Sequence[int]) -> list[Tensor]:
    """Three samples like each example's first: other values, the same signs and zeros.

    An example without variation (all zeros, all ones) would hide faults: noise is added to it.
    """
    generator = torch.Generator().manual_seed(0)
    varied = []
    for example, axis in zip(examples, batch_axes, strict=True):
        sample = example.detach().narrow(axis, 0, 1)
        tensor = sample.repeat_interleave(_SAMPLES, dim=axis)
        if not tensor.is_floating_point():
            varied.append(_other_indices(tensor, generator))
            continue
        noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
        constant = bool((sample == sample.flatten()[0]).all())
        varied.append(tensor + noise if constant else tensor * (0.75 + 0.5 * noise))
    return varied


def _other_indices(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Integers between zero and the example's own: what is an index there stays one."""
    part = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    return torch.round(tensor * part).to(tensor.dtype)


def _run(function: Callable[..., object], inputs: list[Tensor], name: str) -> list[Tensor]:
    """The output tensors in order, of a function that returns one or a sequence of them."""
    try:
        outputs = function(*inputs)
    except Exception as error:
        sizes = [list(tensor.shape) for tensor in inputs]
        raise CaptureError(f"{name} fails on inputs of shape {sizes}{blame(error)}") from error
    if isinstance(outputs, Tensor):
        return [outputs]
    assert isinstance(outputs, (tuple, list))
    return list(outputs)


def _require_slices(
    whole: Sequence[Tensor],
    part: Sequence[Tensor],
    axes: Sequence[int],
    first: int,
    size: int,
    noise: Noise,
) -> None:
    slices = [tensor.narrow(axis, first, size) for tensor, axis in zip(whole, axes, strict=True)]
    what = "a sample's result depends on the other samples of its batch"
    _require_equal(slices, part, what, noise)


def _noise(
    graph_module: fx.GraphModule, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> list[float]:
    """How far rounding alone carries each output: its distance from the same graph in float64."""
    try:
        exact = Float64(graph_module).run(*(x.double() for x in inputs))
    except Exception:  # what insists on a type of its own says nothing here
        return [0.0] * len(outputs)
    precise = [exact] if isinstance(exact, Tensor) else list(exact)
    return [_deviation(want, got)[0] for want, got in zip(precise, outputs, strict=True)]


def _require_equal(
    expected: Sequence[Tensor], computed: Sequence[Tensor], what: str, noise: Noise
) -> None:
    if len(expected) != len(computed):
        raise CaptureError(f"{what}: {len(expected)} outputs against {len(computed)}")
    for index, (want, got) in enumerate(zip(expected, computed, strict=True)):
        where = f"{what}, output {index}"
        if want.shape != got.shape or want.dtype != got.dtype:
            raise CaptureError(
                f"{where}: {list(want.shape)} of {want.dtype} against "
                f"{list(got.shape)} of {got.dtype}{_hint(want, got)}"
            )
        if want.numel() == 0 or torch.equal(want, got):
            continue
        error, bound = _deviation(want, got)
        if bool((want.isnan() & ~got.isnan()).any()):
            raise CaptureError(
                f"{where}: the model gives NaN on these samples, varied from the example inputs, "
                "and the graph does not. An attention mask may hide everything from a position"
            )
        if not error <= bound:
            rounding = noise()[index]
            if rounding > bound:
                raise CaptureError(
                    f"output {index}: rounding in {want.dtype} alone changes it by {rounding:.3g}, "
                    f"at most {bound:.3g} allowed, so that nothing can be compared with it. Keep "
                    "the arguments of functions such as sin, cos and exp small, or use float64."
                )
            raise CaptureError(
                f"{where}: largest difference {error:.3g}, at most {bound:.3g} allowed. "
                "The model may depend on the batch size, on randomness or on state that it keeps."
            )


def _hint(want: Tensor, got: Tensor) -> str:
    """What may have changed a shape."""
    if 1 not in {*want.shape, *got.shape} or want.squeeze().shape != got.squeeze().shape:
        return ""
    return ". A squeeze() that names no dimension drops the batch where that is 1: name one"


def _deviation(want: Tensor, got: Tensor) -> tuple[float, float]:
    """Largest difference and the allowed one; equal infinities and NaNs differ by nothing."""
    tolerance = _TOLERANCE.get(want.dtype, 0.0)
    want, got = want.detach().double(), got.detach().double()
    same = (want == got) | (want.isnan() & got.isnan())
    difference = torch.where(same, 0.0, (want - got).abs()).nan_to_num(nan=float("inf"))
    finite = want[want.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    return float(difference.max()), tolerance * scale
