"""What makes modules of ours of layers of Brevitas, by their classes."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn

from fxloom.brevitas.recorded import Calls, Quantized

Builder = Callable[[Any, Calls], nn.Module]
AnyBuilder = TypeVar("AnyBuilder", bound=Builder)
BUILDERS: dict[str, Builder] = {}
"""By the class of Brevitas."""


def builds(*classes: str) -> Callable[[AnyBuilder], AnyBuilder]:
    """Register what makes a module of a layer of these classes; it raises QuantizerRefused."""

    def register(builder: AnyBuilder) -> AnyBuilder:
        BUILDERS.update(dict.fromkeys(classes, builder))
        return builder

    return register


def shape_of_input(calls: Calls) -> Sequence[int]:
    given = calls.layer[0][0][0]
    return (given.value if isinstance(given, Quantized) else given).shape
