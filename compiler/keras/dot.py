"""Products of two tensors.

Sources: layers/merging/dot.py of Keras 3 and of Keras 2 (tf_keras).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from fxloom.keras.description import Layer
from fxloom.keras.norms import unit
from fxloom.keras.registry import Refused, builds


class Dot(nn.Module):
    """keras.layers.Dot: the sum of products along one axis of each, sample by sample.

    least: what the length along the axis is at least, where both are divided by theirs, or None.
    """

    def __init__(self, axes: Sequence[int], least: float | None) -> None:
        super().__init__()
        self.axes, self.least = list(axes), least

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        if len(inputs) != 2:
            raise ValueError(f"two tensors are required, {len(inputs)} arrived")
        sides = []
        for x, axis in zip(inputs, self.axes, strict=True):
            axis %= x.dim()
            if axis == 0:
                raise ValueError("the axis of samples cannot be summed over")
            x = x if self.least is None else unit(x, [axis], self.least)
            sides.append(x.movedim(axis, -1))
        first, second = sides
        others = [*first.shape[1:-1], *second.shape[1:-1]]
        product = _rows(first) @ _rows(second).transpose(1, 2)
        return product.reshape(-1, *others) if others else product.flatten(1)


def _rows(x: Tensor) -> Tensor:
    """[batch, ..., n] as [batch, rows, n]."""
    if x.dim() == 2:
        return x[:, None]
    return x if x.dim() == 3 else x.flatten(1, -2)


@builds("Dot")
def _dot(layer: Layer) -> nn.Module:
    axes = layer.config["axes"]
    axes = [axes, axes] if isinstance(axes, int) else list(axes)
    if len(axes) != 2 or not all(isinstance(axis, int) for axis in axes):
        raise Refused(f"axes is {axes!r}, required an integer or two of them")
    if not layer.config.get("normalize", False):
        return Dot(axes, None)
    # tf.linalg.l2_normalize bounds the square by 1e-12, Keras 3 the length by its epsilon
    return Dot(axes, 1e-6 if layer.generation == 2 else 1e-7)
