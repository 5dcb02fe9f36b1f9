"""Which weights a recipe speaks of, and how many of each layer's are to go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import fx

from fxloom.errors import RecipeError
from fxloom.passes.patterns import Pattern
from fxloom.passes.prunable import Prunable, find_prunable
from fxloom.settings import unmatched

Layers = Mapping[str, Mapping[str, Any]]
"""Keys for the layers that match a pattern; the last match wins."""


@dataclass(frozen=True, eq=False)
class Goal:
    """What one layer is to become. count: weights that go; None where it shares a common number.
    reuse: how many weights a block of the pattern is made of, or how many blocks there are."""

    prunable: Prunable
    count: int | None
    reuse: int = 1


def choose(
    module: fx.GraphModule,
    include: Sequence[str],
    exclude: Sequence[str],
    layers: Layers,
    embeddings: bool,
    who: str = "prune",
) -> list[Prunable]:
    """The weights of the layers that are included and not excluded. who: the pass, for errors.

    Raises RecipeError for a pattern that matches no layer with weights: almost always a typing
    error.
    """
    found = find_prunable(module, embeddings)
    names = sorted({name for each in found for name in each.layers})
    if not found:
        raise RecipeError(f"{who}: required layers with weights, and the model has none")
    listed = f"Layers with weights: {', '.join(names)}"
    for key, patterns in (("include", include), ("exclude", exclude), ("layers", layers)):
        if wrong := unmatched(patterns, names):
            quoted = ", ".join(f'"{pattern}"' for pattern in wrong)
            raise RecipeError(f"{who}: {key}: {quoted} matches no layer. {listed}")
    chosen = [each for each in found if matches(each, include) and not matches(each, exclude)]
    if not chosen:
        raise RecipeError(f"{who}: include and exclude leave no layer. {listed}")
    return chosen


def require_finite(chosen: Iterable[Prunable], who: str) -> None:
    """Raise RecipeError for weights that are no numbers. who: the pass."""
    if wrong := [each.name for each in chosen if not each.is_finite()]:
        raise RecipeError(
            f"{who}: {', '.join(wrong)}: weights are NaN or infinite. Exclude these layers, or "
            "look at the training"
        )


def require_numbers(chosen: Iterable[Prunable], who: str = "prune") -> None:
    """Raise RecipeError for weights that are no numbers, or are all zero already."""
    chosen = list(chosen)
    require_finite(chosen, who)
    if empty := [each.name for each in chosen if each.size and not each.kept]:
        raise RecipeError(
            f"{who}: {', '.join(empty)}: all weights are zero already. Exclude these layers, or "
            "look at the training"
        )


def require_some_left(pruned: Iterable[Prunable]) -> None:
    """Raise RecipeError for layers without weights."""
    if empty := [each.name for each in pruned if each.size and not each.kept]:
        raise RecipeError(
            f"prune: {', '.join(empty)}: no weight would be left. Choose a lower sparsity, "
            'scope = "layer", or give these layers one of their own in layers'
        )


def goals_of(
    chosen: Sequence[Prunable],
    pattern: Pattern,
    sparsity: float | None,
    reuse: int | None,
    layers: Layers,
    is_common: bool,
    so_far: Callable[[float], float],
) -> tuple[list[Goal], int]:
    """What every layer is to become, and how many weights are to go from the others together.

    is_common: whether layers share a sparsity, but for those that `layers` gives one of their own.
    so_far: from the final sparsity to that of this step. Raises RecipeError listing all layers that
    the pattern does not fit.
    """
    goals, problems = [], []
    for each in chosen:
        keys = keys_of(each, layers)
        factor = int(keys.get("reuse", reuse or 0))
        if pattern.is_blocks and not factor:
            problems.append(f"{each.name}: no reuse factor is given for it")
        elif why := pattern.problem(each.groups, each.size, each.inputs, each.transposed, factor):
            problems.append(f"{each.name}: {why}. Exclude it, or choose another pattern")
        is_own = "sparsity" in keys or not is_common or pattern.sparsity is not None
        final = float(keys.get("sparsity", sparsity or 0.0))
        if pattern.sparsity is not None:
            final = pattern.sparsity
        goals.append(Goal(each, round(so_far(final) * each.size) if is_own else None, factor))
    if problems:
        raise RecipeError("prune: " + "\n".join(problems))
    common = sum(goal.prunable.size for goal in goals if goal.count is None)
    return goals, round(so_far(sparsity or 0.0) * common)


def keys_of(each: Prunable, layers: Layers) -> dict[str, Any]:
    """What `layers` says of a layer."""
    found: dict[str, Any] = {}
    for pattern, keys in layers.items():
        if matches(each, (pattern,)):
            found |= keys
    return found


def matches(each: Prunable, patterns: Iterable[str]) -> bool:
    """Whether one of the names of a layer matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for name in each.layers for pattern in patterns)
