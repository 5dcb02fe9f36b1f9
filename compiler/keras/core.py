"""Dense and what reshapes."""

import torch
from torch import Tensor, nn

from fxloom.keras.description import Layer
from fxloom.keras.registry import activation, builds


class Dense(nn.Linear):
    """keras.layers.Dense: a product over the last axis."""

    def __init__(self, layer: Layer) -> None:
        kernel = torch.from_numpy(layer.weights[0].copy())
        super().__init__(len(kernel), kernel.shape[1], layer.config["use_bias"])
        self.weight = nn.Parameter(kernel.T.contiguous())
        if layer.config["use_bias"]:
            self.bias = nn.Parameter(torch.from_numpy(layer.weights[1].copy()))
        self.activation = activation(layer.config["activation"], layer)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.activation is None else self.activation(y)


@builds("Dense")
def _dense(layer: Layer) -> nn.Module:
    return Dense(layer)


@builds("Flatten")
def _flatten(layer: Layer) -> nn.Module:
    return nn.Flatten()
