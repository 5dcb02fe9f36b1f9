"""Embeddings.

Source: layers/core/embedding.py of Keras 3 and layers/core of Keras 2 (tf_keras).
"""

from torch import Tensor, nn
from torch.nn import functional

from fxloom.keras.description import Layer
from fxloom.keras.registry import Refused, builds, parameters


class Embedding(nn.Module):
    """keras.layers.Embedding: rows of a table by their numbers."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        if x.is_floating_point():  # which Keras casts: nothing is lost of what is whole
            raise TypeError(f"an Embedding needs integers, as indices are, got {x.dtype}")
        return functional.embedding(x, self.weight)


@builds("Embedding")
def _embedding(layer: Layer) -> nn.Module:
    layer.config.get("mask_zero")  # see masks.py
    if layer.config.get("lora_rank"):
        raise Refused("lora_rank: its table is a sum. Merge it first: save what `embeddings` is")
    (weight,) = parameters(layer, 1)
    if weight.dim() != 2:
        raise Refused(f"required a table, an array of shape {list(weight.shape)} arrived")
    return Embedding(weight)
