"""fxloom.passes: the graph rewrites, one file per family, and where each is found."""

if __name__ != "fxloom.passes":
    raise ImportError("import fxloom.passes")

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fxloom.errors import RecipeError
from fxloom.settings import unknown

if TYPE_CHECKING:
    from fxloom.passes.circulant import Circulant
    from fxloom.passes.code_weights import CodeWeights
    from fxloom.passes.compact import Compact
    from fxloom.passes.distill import Distill
    from fxloom.passes.factorize import Factorize
    from fxloom.passes.finetune import Finetune
    from fxloom.passes.fold_batchnorm import FoldBatchnorm
    from fxloom.passes.legalize import Legalize
    from fxloom.passes.mixed_precision import MixedPrecision
    from fxloom.passes.narrow_accumulators import NarrowAccumulators
    from fxloom.passes.prune import Prune
    from fxloom.passes.prune_channels import PruneChannels
    from fxloom.passes.quantize import Quantize
    from fxloom.passes.share_weights import ShareWeights
    from fxloom.passes.structured import Structured

__all__ = [
    "REGISTRY",
    "Circulant",
    "CodeWeights",
    "Compact",
    "Distill",
    "Factorize",
    "Finetune",
    "FoldBatchnorm",
    "Legalize",
    "MixedPrecision",
    "NarrowAccumulators",
    "Prune",
    "PruneChannels",
    "Quantize",
    "ShareWeights",
    "Structured",
    "get",
    "names",
]

# Imported on demand: listing the passes must not load what each of them needs.
REGISTRY: Mapping[str, str] = MappingProxyType(
    {
        "circulant": "fxloom.passes.circulant:Circulant",
        "code_weights": "fxloom.passes.code_weights:CodeWeights",
        "compact": "fxloom.passes.compact:Compact",
        "distill": "fxloom.passes.distill:Distill",
        "factorize": "fxloom.passes.factorize:Factorize",
        "finetune": "fxloom.passes.finetune:Finetune",
        "fold_batchnorm": "fxloom.passes.fold_batchnorm:FoldBatchnorm",
        "legalize": "fxloom.passes.legalize:Legalize",
        "mixed_precision": "fxloom.passes.mixed_precision:MixedPrecision",
        "narrow_accumulators": "fxloom.passes.narrow_accumulators:NarrowAccumulators",
        "prune": "fxloom.passes.prune:Prune",
        "prune_channels": "fxloom.passes.prune_channels:PruneChannels",
        "quantize": "fxloom.passes.quantize:Quantize",
        "share_weights": "fxloom.passes.share_weights:ShareWeights",
        "structured": "fxloom.passes.structured:Structured",
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


def __getattr__(name: str) -> object:
    """The classes of the passes, `fxloom.passes.Quantize`, loaded on first use."""
    for location in REGISTRY.values():
        module, _, attribute = location.partition(":")
        if attribute == name:
            return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
