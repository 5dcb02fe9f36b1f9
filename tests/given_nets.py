"""Models that bring formats along, layer by layer, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from fxloom.quantized_ops import REQUANTIZE, REQUANTIZE_WEIGHTS

Format = tuple[int, int, bool]


def rounded(
    x: Tensor, width: int, integer: int, signed: bool = True, modes: str = "RND_CONV SAT"
) -> Tensor:
    """x in a format."""
    return REQUANTIZE(x, width, integer, signed, *modes.split())


class Rounded(nn.Module):
    """A rounding on its own."""

    def __init__(
        self, width: int, integer: int, signed: bool = True, modes: str = "RND_CONV SAT"
    ) -> None:
        super().__init__()
        self.kind = (width, integer, signed, modes)

    def forward(self, x: Tensor) -> Tensor:
        return rounded(x, *self.kind)


class Weighted(nn.Module):
    """A layer of torch.nn whose weights and bias are rounded. weights, bias: formats; shifts,
    encoding, widths: as in REQUANTIZE_WEIGHTS, where one of them is given."""

    def __init__(
        self,
        layer: nn.Module,
        weights: Format = (6, 1, True),
        bias: Format | None = (6, 1, True),
        shifts: Sequence[int] = (),
        encoding: str = "fixed",
        widths: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.layer, self.weights, self.bias = layer, weights, bias
        self.more: tuple[Any, ...] = (list(shifts), encoding, list(widths))

    @property
    def weight(self) -> Tensor:
        if any(self.more[::2]) or self.more[1] != "fixed":
            return REQUANTIZE_WEIGHTS(
                self.layer.weight, *self.more, *self.weights, "RND_CONV", "SAT"
            )
        return rounded(self.layer.weight, *self.weights)

    def forward(self, x: Tensor) -> Tensor:
        layer, bias = self.layer, self.layer.bias
        if bias is not None and self.bias is not None:
            bias = rounded(bias, *self.bias)
        if isinstance(layer, nn.Linear):
            return functional.linear(x, self.weight, bias)
        if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d):
            keys = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
            one = isinstance(layer, nn.ConvTranspose1d)
            function = functional.conv_transpose1d if one else functional.conv_transpose2d
            return function(x, self.weight, bias, *keys)
        keys = (layer.stride, layer.padding, layer.dilation, layer.groups)
        function = functional.conv1d if isinstance(layer, nn.Conv1d) else functional.conv2d
        return function(x, self.weight, bias, *keys)
