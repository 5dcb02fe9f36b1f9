"""Models that bring formats along, layer by layer, for tests."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
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


class Branches(nn.Module):
    """Two layers of one value, added or put side by side."""

    def __init__(self, first: nn.Module, second: nn.Module, adds: bool) -> None:
        super().__init__()
        self.first, self.second, self.adds = first, second, adds

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        return a + b if self.adds else torch.cat([a, b], 1)


def random_net(seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A model in which everything has a format, and the shape of its samples: layers, pools,
    branches and roundings of all modes, drawn by the seed."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    modes = ("TRN", "TRN_ZERO", "RND", "RND_ZERO", "RND_INF", "RND_MIN_INF", "RND_CONV")

    def rounding() -> nn.Module:
        width = draw.randint(3, 9)
        overflow = draw.choice(("SAT", "SAT_SYM", "SAT_ZERO", "WRAP"))
        signed = draw.random() < 0.5
        return Rounded(width, draw.randint(0, 4), signed, f"{draw.choice(modes)} {overflow}")

    def weighted(layer: nn.Module, channels: int) -> nn.Module:
        encoding = draw.choice(("fixed", "fixed", "binary", "ternary", "power_of_two"))
        width = {"fixed": draw.randint(2, 8), "power_of_two": 8}.get(encoding, 2)
        shifts = [draw.randint(0, 3) for _ in range(channels)] if draw.random() < 0.5 else []
        kind = (width, draw.randint(-1, 2), True)
        return Weighted(layer, kind, (draw.randint(4, 12), 2, True), shifts, encoding)

    layers: list[nn.Module] = [rounding()]
    is_image = draw.random() < 0.5
    channels = draw.randint(2, 4)
    size = 8
    shape = (channels, size, size) if is_image else (channels,)
    for _ in range(draw.randint(1, 3)):
        outputs = draw.choice((channels, 2 * channels))
        groups = draw.choice((1, channels))

        def layer(
            inputs: int = channels, outputs: int = outputs, groups: int = groups
        ) -> nn.Module:
            if is_image:
                return weighted(nn.Conv2d(inputs, outputs, 3, 1, 1, groups=groups), outputs)
            return weighted(nn.Linear(inputs, outputs), outputs)

        adds = draw.random() < 0.5
        layers.append(Branches(layer(), layer(), adds) if draw.random() < 0.4 else layer())
        channels = outputs * (2 if isinstance(layers[-1], Branches) and not adds else 1)
        layers += [nn.ReLU()] if draw.random() < 0.6 else []
        if is_image and size > 3 and draw.random() < 0.6:
            pools = (
                *(nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1)),
                nn.AvgPool2d(3, 2, 1, count_include_pad=False),
            )
            layers.append(draw.choice(pools))
            size = size // 2
            layers += [nn.ReLU()] if draw.random() < 0.3 else []
        layers.append(rounding())
    if is_image:
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), rounding()]
    layers.append(weighted(nn.Linear(channels, 3), 3))
    return nn.Sequential(*layers).eval(), shape
