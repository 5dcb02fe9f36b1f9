"""What layers of QKeras in memory compute and their configs leave out.

quantized_bits.get_config says nothing of scale_axis, quantized_relu.get_config nothing of
is_quantized_clip (qkeras/quantizers.py, 0.9): QKeras loses them where it saves a model, and so
would whoever reads configs.
"""

from collections.abc import Iterator
from typing import Any

from fxloom.errors import UnsupportedLayer
from fxloom.keras.quantizers import SIGNATURES

_OF_TRAINING = ("var_name", "use_ste", "use_variables")


def refuse_unsaved(model: Any) -> None:
    """Raises UnsupportedLayer, listing the layers of a model whose configs do not say all."""
    problems = [problem for layer in _layers(model) for problem in _unsaved(layer)]
    if problems:
        raise UnsupportedLayer(problems)


def _layers(held: Any) -> Iterator[Any]:
    """The layers of a model, and those within them."""
    for layer in getattr(held, "layers", None) or ():
        yield layer
        yield from _layers(layer)
        inner = getattr(layer, "layer", None)
        if inner is not None:
            yield from (inner, *_layers(inner))


def _unsaved(layer: Any) -> Iterator[str]:
    if not type(layer).__module__.startswith("qkeras."):
        return
    if isinstance(getattr(layer, "activation", None), str):
        return  # the config has the text that the quantizer was made from
    if type(layer).__name__ == "QAdaptiveActivation":
        return  # refused as a layer
    quantizers = {
        id(held): held
        for held in vars(layer).values()
        if type(held).__module__ == "qkeras.quantizers" and hasattr(held, "get_config")
    }
    for quantizer in quantizers.values():
        name, config = type(quantizer).__name__, quantizer.get_config()
        for option, (default, _) in SIGNATURES.get(name, {}).items():
            value = getattr(quantizer, option, default)
            if option not in config and option not in _OF_TRAINING and value != default:
                yield (
                    f"{layer.name} ({type(layer).__name__}): {name} has {option}={value!r}, which "
                    f"its get_config leaves out. In a QActivation the quantizer may be a text, "
                    "which has it"
                )
