"""Batch normalization at inference."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxloom.keras.description import Layer
from fxloom.keras.registry import Order, Refused, arrays, builds, parameter, tensor


class BatchNormalization(nn.Module):
    """keras.layers.BatchNormalization: with the statistics of training, along any axis."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, layer: Layer, axis: int) -> None:
        super().__init__()
        config = layer.config
        scale, center = bool(config["scale"]), bool(config["center"])
        *learned, mean, variance = arrays(
            layer,
            *["gamma"] * scale,
            *["beta"] * center,
            "moving mean",
            "moving variance",
        )
        self.axis = axis
        self.epsilon = float(config["epsilon"])
        self.register_buffer("running_mean", tensor(mean))
        self.register_buffer("running_var", tensor(variance))
        weight = parameter(learned[0]) if scale else None
        bias = parameter(learned[-1]) if center else None
        # torch knows both or none.
        for name, given, other in (("weight", weight, bias), ("bias", bias, weight)):
            if given is None and other is not None:
                neutral = np.full(mean.shape, name == "weight", np.float32)
                self.register_buffer(name, torch.from_numpy(neutral))
            else:
                self.register_parameter(name, given)

    def order(self, dims: Sequence[int]) -> Order:
        """Channels first where Keras' axis is the last, else as Keras has them."""
        return "first" if self.axis in (-1, dims[0] - 1) else "keras"

    def forward(self, x: Tensor) -> Tensor:
        axis = 1 if self.order([x.dim()]) == "first" else self.axis % x.dim()
        if axis != 1:
            x = x.movedim(axis, 1)
        y = functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.epsilon
        )
        return y if axis == 1 else y.movedim(1, axis)


@builds("BatchNormalization", "SyncBatchNormalization")
def _batch_normalization(layer: Layer) -> nn.Module:
    axis = layer.config["axis"]
    axes = [axis] if isinstance(axis, int) else list(axis)  # a list in Keras 2
    if len(axes) != 1 or axes[0] == 0:
        raise Refused(f"axis={axis}: required one axis that is not the batch")
    if layer.config.get("renorm"):
        layer.config.get("renorm_clipping")  # at inference it norms with the same statistics
    return BatchNormalization(layer, int(axes[0]))
