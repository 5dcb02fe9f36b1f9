"""What passes that give layers other weights have in common: keys by layer, layers that must stay
as they are, training afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import fx

from fxloom.errors import RecipeError
from fxloom.facts import check
from fxloom.passes.finetune import Finetune
from fxloom.passes.goals import Layers, choose, matches, require_finite
from fxloom.passes.prunable import Prunable
from fxloom.quantized_ops import require_unrounded
from fxloom.settings import build

if TYPE_CHECKING:
    from fxloom.data import Data


def key_problems(
    key: str, common: int, least: int, layers: Layers, finetune: Mapping[str, Any]
) -> Iterator[str]:
    """What is wrong with a key that layers may have a value of, and with those of training."""
    values = {key: common}
    for pattern, keys in layers.items():
        for name, value in keys.items():
            if name == key:
                values[f'layers."{pattern}".{key}'] = value
            else:
                yield f'layers."{pattern}".{name}: unknown key; allowed: {key}'
    for where, value in values.items():
        if value < least:
            yield f"{where}: required at least {least}, got {value}"
    yield from (f"finetune.{line}" for line in build(Finetune, finetune)[1])


def require_float(graph: fx.GraphModule, who: str, data: Data | None, needs_data: bool) -> None:
    """Raise RecipeError for a graph that is quantized, and for missing data. who: the pass."""
    if data is None and needs_data:
        raise RecipeError(f"{who}: required data to finetune on, got none")
    require_unrounded(graph, who, f"Put {who} before quantize")


def is_read_otherwise(module: fx.GraphModule, each: Prunable) -> bool:
    """Whether something else than layers that multiply by a tensor reads it, or nothing does."""
    return not each.readers or each.reading(module) != set(each.readers)


def replaceable(
    module: fx.GraphModule,
    who: str,
    include: Sequence[str],
    exclude: Sequence[str],
    layers: Layers,
    problems: Callable[[Prunable], Iterator[str]],
    embeddings: bool = False,
) -> tuple[list[Prunable], dict[str, str]]:
    """The weights to replace, and why others of those that are included stay as they are.

    Raises RecipeError listing those that a pattern other than "*" names and that have problems, and
    where nothing is left.
    """
    chosen = choose(module, include, exclude, layers, embeddings, who)
    require_finite(chosen, who)
    found = ((each.name, next(problems(each), "")) for each in chosen)
    notes = {name: note for name, note in found if note}
    patterns = [pattern for pattern in (*include, *layers) if pattern != "*"]
    named = {each.name for each in chosen if matches(each, patterns)}
    if wrong := [f"{name}: {note}" for name, note in notes.items() if name in named]:
        raise RecipeError(f"{who}: " + "\n".join(wrong) + "\nExclude what cannot be")
    left = [each for each in chosen if each.name not in notes]
    if not left:
        lines = [f"{name}: {note}" for name, note in notes.items()]
        raise RecipeError("\n".join([f"{who}: no layer is left:", *lines]))
    return left, notes


def trained(
    graph: fx.GraphModule, data: Data | None, keys: Mapping[str, Any]
) -> tuple[fx.GraphModule, dict[str, object]]:
    """The graph behind `finetune` with these keys, and what the summary says of that."""
    result = Finetune(**keys)(graph, data)
    lost = check(graph, result.graph)
    assert not lost, lost
    return result.graph, {key: result.summary[key] for key in ("first", "kept", "kept_epoch")}
