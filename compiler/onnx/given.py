"""Constants that a quantizer of the model rounded, and layers whose weights are such."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fxloom.given_constants import constant
from fxloom.uniform import Weight, weight_of


@dataclass(frozen=True)
class Integers:
    """integers * scale. scale: one number, or an array that broadcasts with the integers.

    limits: the lowest and the highest integer that there may be.
    """

    integers: Tensor
    scale: Tensor
    limits: tuple[int, int]

    @property
    def values(self) -> Tensor:
        """As float32, multiplied as qonnx does."""
        return self.integers.to(torch.float32) * self.scale.to(torch.float32)

    def moved(self, move: Callable[[Tensor], Tensor]) -> "Integers":
        """What a function that only moves values makes of them."""
        if self.scale.numel() == 1:
            return Integers(move(self.integers), self.scale.reshape(()), self.limits)
        scale = move(self.scale.expand(self.integers.shape))
        for dim in range(scale.dim()):
            first = scale.narrow(dim, 0, 1)
            if torch.equal(first.expand_as(scale), scale):
                scale = first
        return Integers(move(self.integers), scale.contiguous(), self.limits)

    def weight(self, axis: int) -> Weight:
        """As weights of a layer with output channels along an axis. Raises QuantizerRefused."""
        return weight_of(self.integers, self.scale, self.limits, axis)


class Weights(nn.Module):
    """What layers with weights have in common: given formats, and a scale behind the product."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        rounding: tuple[Integers | None, Integers | None] = (None, None),
        axis: int = 0,
        groups: int = 1,
    ) -> None:
        """rounding: of weight and bias. axis: of the output channels, `groups` times over."""
        super().__init__()
        of_weight, of_bias = rounding
        self.given = None if of_weight is None else of_weight.weight(axis)
        self.weight = nn.Parameter(weight if self.given is None else self.given.values)
        scale = None if self.given is None else self.given.scale
        # Behind a convolution the channels are not the last axis.
        behind = (-1, *(1,) * (weight.dim() - 2))
        if scale is not None and scale.ndim:
            scale = np.tile(scale, groups if axis else 1).reshape(behind)
        self.scale = None if scale is None else constant(scale)
        if bias is not None and scale is not None:
            bias = bias.reshape(behind)
        self.given_bias = constant(bias) if bias is not None and of_bias is not None else None
        self.bias = nn.Parameter(bias) if bias is not None and of_bias is None else None

    def rounded_weight(self) -> Tensor:
        return self.weight if self.given is None else self.given.round(self.weight)

    def plain_bias(self) -> Tensor | None:
        """The bias that stands in the layer itself."""
        return None if self.scale is not None else self._bias()

    def behind(self, y: Tensor) -> Tensor:
        """The scale, and the bias that follows it."""
        if self.scale is None:
            return y
        y = y * self.scale()
        bias = self._bias()
        return y if bias is None else y + bias

    def _bias(self) -> Tensor | None:
        return self.bias if self.given_bias is None else self.given_bias()
