"""Transposed convolutions, of the lengths that Keras gives them."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from fxloom.keras.convolutions import kernel_axes
from fxloom.keras.description import Array, Layer
from fxloom.keras.registry import (
    Order,
    Refused,
    activated,
    activation,
    arrays,
    bias_name,
    builds,
    parameter,
)
from fxloom.keras.windows import Windows, order_of, per_axis


class TransposedConvolution(nn.Module):
    """keras.layers.Conv1DTranspose, Conv2DTranspose.

    A transposed convolution gives (n - 1) * stride + kernel positions; TensorFlow cuts the result
    to the length that Keras asks for, where 'same' takes half of what is too much from the front.
    """

    order: Order

    def __init__(self, layer: Layer, kernel: Array, bias: Array | None) -> None:
        super().__init__()
        self.order = order_of(layer)
        self.windows = Windows.of(layer, kernel.shape[:-2])
        if self.windows.padding == "causal":
            raise Refused("padding='causal' is not known here")
        given = layer.config.get("output_padding")
        self.output_padding = None if given is None else per_axis(given, len(self.windows.size))
        # Keras' kernel is [..., out, in], torch's [in, out, ...].
        self.weight = parameter(kernel, kernel_axes(kernel, (3, 4)))
        self.bias = None if bias is None else parameter(bias)
        self.cut = _Cut()
        self.activation = activation(layer.config["activation"], layer)

    def forward(self, x: Tensor) -> Tensor:
        windows, lengths = self.windows, self._lengths(x.shape[2:])
        behind = []
        for n, length, reach, stride, (before, _) in zip(
            x.shape[2:], lengths, windows.reach, windows.strides, self._pads(lengths), strict=True
        ):
            behind.append(length - ((n - 1) * stride + reach - 2 * before))
        function = functional.conv_transpose1d if x.dim() == 3 else functional.conv_transpose2d
        y = function(
            x,
            self.weight,
            self.bias,
            windows.strides,
            [before for before, _ in self._pads(lengths)],
            [max(more, 0) for more in behind],
            1,
            windows.dilation,
        )
        if min(behind) < 0:
            y = self.cut(y, lengths)
        return activated(self.activation, y, self.order == "first")

    def _pads(self, lengths: Sequence[int]) -> list[tuple[int, int]]:
        return self.windows.pads(lengths)

    def _lengths(self, lengths: Sequence[int]) -> list[int]:
        """What Keras says that the lengths of results are (deconv_output_length)."""
        windows, results = self.windows, []
        given = self.output_padding or (None,) * len(lengths)
        for n, reach, stride, more in zip(
            lengths, windows.reach, windows.strides, given, strict=True
        ):
            if more is not None:
                pad = reach // 2 if windows.padding == "same" else 0
                results.append((n - 1) * stride + reach - 2 * pad + more)
            elif windows.padding == "same":
                results.append(n * stride)
            else:
                results.append(n * stride + max(reach - stride, 0))
        return results


class _Cut(nn.Module):
    """Takes what is too much from behind."""

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        return x[..., : lengths[0]] if x.dim() == 3 else x[..., : lengths[0], : lengths[1]]


@builds("Conv1DTranspose", "Conv2DTranspose")
def _transposed(layer: Layer) -> nn.Module:
    kernel, *bias = arrays(layer, "kernel", *bias_name(layer))
    return TransposedConvolution(layer, kernel, bias[0] if bias else None)
