"""Dense."""

from torch import Tensor, nn

from fxloom.keras.description import Layer
from fxloom.keras.registry import activated, activation, arrays, bias_name, builds, parameter


class Dense(nn.Module):
    """keras.layers.Dense: a product over the last axis."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        kernel, *bias = arrays(layer, "kernel", *bias_name(layer))
        self.weight = parameter(kernel, (1, 0))
        self.bias = parameter(bias[0]) if bias else None
        self.activation = activation(layer.config["activation"], layer)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.weight, self.bias)
        return activated(self.activation, y, channels_first=False)


@builds("Dense")
def _dense(layer: Layer) -> nn.Module:
    return Dense(layer)
