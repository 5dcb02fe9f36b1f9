"""Dense."""

from torch import Tensor, nn

from fxloom.keras.description import Layer
from fxloom.keras.registry import activation, arrays, builds, parameter


class Dense(nn.Module):
    """keras.layers.Dense: a product over the last axis."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        kernel, *bias = arrays(layer, "kernel", *["bias"] * bool(layer.config["use_bias"]))
        self.weight = parameter(kernel, (1, 0))
        self.bias = parameter(bias[0]) if bias else None
        self.activation = activation(layer.config["activation"], layer)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.weight, self.bias)
        return y if self.activation is None else self.activation(y)


@builds("Dense")
def _dense(layer: Layer) -> nn.Module:
    return Dense(layer)
