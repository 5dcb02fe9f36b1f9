"""fxloom.passes: the graph rewrites, one file per family, and where each is found."""

if __name__ != "fxloom.passes":
    raise ImportError("import fxloom.passes")

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fxloom.errors import RecipeError
from fxloom.settings import unknown

# Imported on demand: listing the passes must not load what each of them needs.
REGISTRY: Mapping[str, str] = MappingProxyType(
    {
        "fold_batchnorm": "fxloom.passes.fold_batchnorm:FoldBatchnorm",
        "legalize": "fxloom.passes.legalize:Legalize",
        "quantize": "fxloom.passes.quantize:Quantize",
    }
)


def names() -> tuple[str, ...]:
    """The names a recipe may use, in the order of the registry."""
    return tuple(REGISTRY)


def get(name: str, registry: Mapping[str, str] = REGISTRY) -> type[Any]:
    """The class of a pass. Raises RecipeError naming the known ones."""
    if name not in registry:
        raise RecipeError(unknown(name, registry, "pass"))
    module, _, attribute = registry[name].partition(":")
    found: type[Any] = getattr(importlib.import_module(module), attribute)
    return found
