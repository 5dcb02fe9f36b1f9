"""Masks that Keras hands from layer to layer: which layers would compute something else by them.

Embedding(mask_zero=True) and Masking say which points in time count. A mask goes along with what is
computed, through layers that do not look at it, to those whose `call` has an argument `mask`.
fxloom computes without masks, so a model is only taken where none arrives at such a layer.
"""

from collections.abc import Iterator

from fxloom.keras.description import Layer, Model, references

_READERS = frozenset(
    {
        *("AdditiveAttention", "Attention", "Bidirectional", "GRU", "GlobalAveragePooling1D"),
        *("GroupNormalization", "GroupQueryAttention", "LSTM", "MultiHeadAttention", "RNN"),
        *("SimpleRNN", "Softmax", "TimeDistributed"),
    }
)
"""What has an argument `mask` in Keras 2 or 3 that counts at inference."""


def unmet(model: Model) -> Iterator[str]:
    """A line for each layer that reads a mask; what it needs and what to do."""
    sources: dict[str, str] = {}
    pending = True
    while pending:  # until nothing new is reached: layers need not be in the order of their calls
        pending = False
        for layer in model.layers:
            if layer.name not in sources:
                reached = _source(layer, sources)
                if reached is not None:
                    sources[layer.name] = reached
                    pending = True
    for layer in model.layers:
        source = sources.get(layer.name)
        if source is not None and source != layer.name and _reads(layer):
            yield (
                f"{layer.label}: the mask of {source} reaches it, which leaves out points in time. "
                "Masks have no lowering: give sequences of full length, or make the mask an input"
            )


def _source(layer: Layer, sources: dict[str, str]) -> str | None:
    """The layer whose mask goes along with what a layer returns, itself among them."""
    if _makes(layer):
        return layer.name
    for call in layer.calls:
        for ref in references((call.args, call.kwargs)):
            if ref.layer in sources:
                return sources[ref.layer]
    return None


def _makes(layer: Layer) -> bool:
    inside = layer.model.layers if layer.model is not None else tuple(layer.inner.values())
    return (
        bool(layer.config.get("mask_zero"))
        or layer.class_name == "Masking"
        or any(_makes(each) for each in inside)
    )


def _reads(layer: Layer) -> bool:
    if layer.model is not None:
        return any(_reads(each) for each in layer.model.layers)
    return layer.class_name in _READERS
