"""Channels that matter least, taken out of a graph: a smaller dense model.

Whatever must shrink together does: `channel_groups` finds it. Where the rest is not fitted anew,
the result equals the original with those channels masked to zero in every value that carries them:
the outputs of their layers and what is computed from these element by element, such as a batch
norm's shift or sigmoid(0).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import fx

from fxloom.editing import finish
from fxloom.errors import RecipeError
from fxloom.graph import arguments, constant
from fxloom.layer_figures import layer_figures, total
from fxloom.passes.channel_criteria import (
    Criterion,
    Scores,
    by_batchnorm,
    by_geometric_median,
    by_norm,
    by_slope,
)
from fxloom.passes.channel_groups import Dependencies, Group, dependencies
from fxloom.passes.channel_reconstruction import Reconstruction
from fxloom.passes.channel_removal import without
from fxloom.quantized_ops import require_unrounded
from fxloom.recipe import PassResult
from fxloom.settings import overrides, typed_keys, unmatched

if TYPE_CHECKING:
    from fxloom.data import Data

WITH_DATA = ("taylor", "reconstruction")
LAYER_KEYS = ("sparsity", "keep")


@typed_keys(RecipeError)
@dataclass(frozen=True)
class PruneChannels:
    """Removal of whole channels, filters, neurons, heads and hidden units.

    sparsity: share of a layer's channels that goes, of those that can; floor((1 - sparsity) *
    count) stay. layers: sparsity, or keep (how many stay), for the layers that match a pattern
    (fnmatch on names; the last match wins); without a sparsity for all, only those are pruned.
    Layers that share channels lose the same ones, so one's entry is for all of them. criterion:
    which go: those with the smallest norm of their filters (l1, l2), with the smallest scales in
    their batch norms (batchnorm), closest to all other filters (geometric_median), whose absence
    changes the loss least to first order (taylor), or the next layers' outputs (reconstruction,
    which fits these layers' weights anew). The last two need data, at most `samples` training
    samples. scope: layer, or global: the share is of all channels together, ranked by scores
    relative to their layers' mean (batchnorm and taylor: as they are). include, exclude: patterns
    of layers that may lose channels; all that must shrink with a layer has to be included.
    multiple_of: what stays is rounded up to a multiple. Where channels go as units, such as heads
    of attention, shares and multiples are of units, and keep is refused.
    """

    name: ClassVar[str] = "prune_channels"
    compresses: ClassVar[bool] = True

    sparsity: float | None = None
    layers: Mapping[str, Mapping[str, int | float]] = field(default_factory=dict)
    criterion: Literal["l1", "l2", "batchnorm", "geometric_median", "taylor", "reconstruction"] = (
        "l1"
    )
    scope: Literal["layer", "global"] = "layer"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    multiple_of: int = 1
    samples: int = 256

    def __post_init__(self) -> None:
        problems = []
        shares = {} if self.sparsity is None else {"sparsity": self.sparsity}
        for pattern, keys in self.layers.items():
            where = f'layers."{pattern}"'
            if len(keys) != 1 or not set(keys) <= set(LAYER_KEYS):
                problems.append(
                    f"{where}: required sparsity or keep, got {', '.join(keys) or '{}'}"
                )
            elif "keep" in keys and (not isinstance(keys["keep"], int) or keys["keep"] < 1):
                problems.append(
                    f"{where}.keep: required a number of channels, 1 or more, got {keys['keep']}"
                )
            elif "sparsity" in keys:
                shares[f"{where}.sparsity"] = float(keys["sparsity"])
        problems += [
            f"{key}: required a share from 0 to below 1, got {share}"
            for key, share in shares.items()
            if not 0 <= share < 1
        ]
        if self.sparsity is None and not self.layers:
            problems.append("sparsity: required, or layers with a sparsity or keep; got neither")
        for key in ("multiple_of", "samples"):
            if getattr(self, key) < 1:
                problems.append(f"{key}: required at least 1, got {getattr(self, key)}")
        if self.scope == "global" and self.criterion == "reconstruction":
            problems.append(
                'scope: required "layer" for reconstruction, which ranks the channels of one layer'
            )
        if problems:
            raise RecipeError("\n".join(problems))

    @property
    def needs_data(self) -> bool:
        """Whether the criterion looks at data."""
        return self.criterion in WITH_DATA

    def __call__(self, graph: fx.GraphModule, data: Data | None = None) -> PassResult:
        if data is None and self.needs_data:
            raise RecipeError(
                f"prune_channels: criterion {self.criterion}: required data, got none"
            )
        require_unrounded(graph, "prune_channels", "Put prune_channels before quantize")
        found = dependencies(graph)
        left = dict(found.left)
        wanted = self._wanted(found, left)
        _require_finite(found)
        reconstruction = None
        if self.criterion == "reconstruction" and wanted:
            assert data is not None
            reconstruction = Reconstruction(found, wanted, data, self.samples)
            criterion = reconstruction.criterion()
        else:
            criterion = self._criterion(found, data if wanted else None)
        removed = self._removed(found, wanted, criterion, left)
        before = layer_figures(graph)
        summary: dict[str, object] = {
            "criterion": self.criterion,
            "channels": _channels(found, wanted, removed),
            "left": left,
            "remarks": [f"{name} keeps its channels: {why}" for name, why in left.items()],
        }
        if not removed:
            return PassResult(graph, False, summary)
        smaller = without(found, removed)
        if reconstruction is not None:
            summary["fitted"] = reconstruction.fitted(smaller, removed)
            summary["not_fitted"] = reconstruction.skipped
            summary["remarks"] = [
                *(f"{name} keeps its channels: {why}" for name, why in left.items()),
                *(f"{name} is not fitted: {why}" for name, why in reconstruction.skipped.items()),
            ]
        smaller = finish(smaller)
        after = layer_figures(smaller)
        summary["layers"] = {
            name: {
                key: [getattr(figures, key), getattr(after[name], key)]
                for key in ("parameters", "nonzero", "macs")
            }
            for name, figures in before.items()
            if name in after
        }
        first, last = total(before), total(after)
        summary["parameters"] = [first.parameters, last.parameters]
        summary["macs"] = [first.macs, last.macs]
        return PassResult(smaller, True, summary)

    def _wanted(self, found: Dependencies, left: dict[str, str]) -> dict[Group, int | None]:
        """How many channels of every group stay; None where the global ranking decides.

        Adds why groups stay as they are to `left`. Raises RecipeError for what was asked for by
        name and cannot be.
        """
        names = _names(found)
        patterns = (*self.include, *self.exclude, *self.layers)
        if wrong := unmatched([p for p in patterns if p != "*"], names):
            raise RecipeError(
                f"prune_channels: {', '.join(wrong)}: matches no layer with channels. Layers: "
                f"{', '.join(names) or 'none'}"
            )
        problems: list[str] = []
        if names and not any(self._may(name) for name in names):
            raise RecipeError(
                "prune_channels: include and exclude leave no layer with channels. Layers: "
                f"{', '.join(names)}"
            )
        wanted: dict[Group, int | None] = {}
        for group in found.groups:
            out = [name for name in group.names if not self._may(name)]
            if out:
                for name in group.names:
                    if name in out:
                        left[name] = "exclude or include leaves it out"
                    else:
                        left[name] = f"it shares channels with {out[0]}, which is left out"
                continue
            count = len(group.units)
            settings = {
                name: keys for name in group.names if (keys := overrides(self.layers, name))
            }
            counts = {name: self._count(keys, count) for name, keys in settings.items()}
            label = ", ".join(group.names)
            sizes = {
                layer.ids.size for layer in group.layers if "keep" in settings.get(layer.name, ())
            }
            if sizes - {count}:
                problems.append(
                    f"{label}: keep counts channels, but the {max(sizes)} of this layer go as "
                    f"{count} units, such as heads, or some must stay. Give a sparsity: the share "
                    "of the units"
                )
                continue
            if len(set(counts.values())) > 1:
                asked = ", ".join(f"{number} of {name}" for name, number in counts.items())
                problems.append(
                    f"{label}: share their channels, but are to keep different numbers: {asked}"
                )
                continue
            if not counts and self.sparsity is None:
                continue
            if not counts and self.scope == "global":
                wanted[group] = None
                continue
            keep = next(iter(counts.values())) if counts else self._share(self.sparsity, count)
            if keep < 1:
                problems.append(
                    f"{label}: required at least one channel that stays, but of {count} "
                    f"{keep} would. Choose a lower sparsity, or exclude it"
                )
            elif keep > count:
                problems.append(
                    f"{label}: required to keep at most its {count} channels, got {keep}"
                )
            else:
                wanted[group] = self._rounded(keep, count)
        problems += self._refused(names, left)
        if problems:
            raise RecipeError("\n".join(f"prune_channels: {line}" for line in problems))
        return wanted

    def _refused(self, names: Sequence[str], left: Mapping[str, str]) -> list[str]:
        """The reason of each layer that was asked for by name, or by a pattern that finds nothing
        else, and stays."""
        problems: dict[str, None] = {}
        for pattern in (*self.include, *self.layers):
            matched = [name for name in names if fnmatchcase(name, pattern)]
            if pattern != "*" and matched and all(name in left for name in matched):
                problems |= dict.fromkeys(
                    f"{name}: cannot lose channels: {left[name]}" for name in matched
                )
        return list(problems)

    def _may(self, name: str) -> bool:
        def among(patterns: Sequence[str]) -> bool:
            return any(fnmatchcase(name, pattern) for pattern in patterns)

        return among(self.include) and not among(self.exclude)

    def _count(self, keys: Mapping[str, int | float], count: int) -> int:
        return int(keys["keep"]) if "keep" in keys else self._share(keys["sparsity"], count)

    def _rounded(self, keep: int, count: int) -> int:
        return min(-(-keep // self.multiple_of) * self.multiple_of, count)

    @staticmethod
    def _share(sparsity: float | None, count: int) -> int:
        """floor((1 - sparsity) * count), as written in decimals: 0.3 of 10 leaves 7."""
        assert sparsity is not None
        return math.floor((1 - sparsity) * count + 1e-9)

    def _criterion(self, found: Dependencies, data: Data | None) -> Criterion:
        if self.criterion == "batchnorm":
            return by_batchnorm(found)
        if self.criterion == "geometric_median":
            return by_geometric_median(found)
        if self.criterion == "taylor" and data is not None:
            return by_slope(found, data, self.samples)
        return by_norm(found, 2 if self.criterion == "l2" else 1)

    def _removed(
        self,
        found: Dependencies,
        wanted: Mapping[Group, int | None],
        criterion: Criterion,
        left: dict[str, str],
    ) -> set[int]:
        """The units that go."""
        scores: dict[Group, Scores] = {}
        for group in wanted:
            each = criterion(group)
            if each is None:
                reason = _SILENT[self.criterion]
                left.update(dict.fromkeys(group.names, reason))
                continue
            if not np.isfinite(each).all():
                raise RecipeError(
                    f"prune_channels: {', '.join(group.names)}: criterion {self.criterion} is not "
                    "a finite number. Look at the data and the weights"
                )
            scores[group] = each
        if problems := self._refused(_names(found), left):
            raise RecipeError("\n".join(f"prune_channels: {line}" for line in problems))
        if wanted and not scores:
            raise RecipeError(
                f"prune_channels: criterion {self.criterion}: {_SILENT[self.criterion]}. True of "
                f"{', '.join(name for group in wanted for name in group.names)}"
            )
        removed: set[int] = set()
        for group, each in scores.items():
            keep = wanted[group]
            if keep is not None:
                order = np.argsort(-each, kind="stable")
                removed.update(group.units[order[keep:]].tolist())
        removed |= self._globally({g: s for g, s in scores.items() if wanted[g] is None})
        return removed - _needed(found, scores, removed)

    def _globally(self, scores: Mapping[Group, Scores]) -> set[int]:
        """The units that go where all groups are ranked together; of each group one stays."""
        if not scores:
            return set()
        relative = {group: each if self.criterion in ("batchnorm", "taylor") else _relative(each)
                    for group, each in scores.items()}  # fmt: skip
        ranked = sorted(
            (score, number, place)
            for number, each in enumerate(relative.values())
            for place, score in enumerate(each)
        )
        goes = len(ranked) - self._share(self.sparsity, len(ranked))
        gone: dict[int, list[int]] = {number: [] for number in range(len(scores))}
        counts = [len(group.units) for group in scores]
        for _, number, place in ranked:
            if goes and len(gone[number]) < counts[number] - 1:
                gone[number].append(place)
                goes -= 1
        removed: set[int] = set()
        for number, group in enumerate(scores):
            count = counts[number]
            keep = self._rounded(count - len(gone[number]), count)
            removed.update(group.units[gone[number][: count - keep]].tolist())
        return removed


_SILENT = {
    "batchnorm": "it has no batch norm with a scale for each of its channels",
    "taylor": "no layer reads its channels, whose slopes could tell",
    "reconstruction": "no layer reads its channels, whose output could be kept",
}


def _names(found: Dependencies) -> list[str]:
    return list(dict.fromkeys(layer.name for layer in found.layers))


def _relative(scores: Scores) -> Scores:
    mean = float(scores.mean())
    return scores / mean if mean > 0 else scores


def _needed(found: Dependencies, scores: Mapping[Group, Scores], removed: set[int]) -> set[int]:
    """Of every dimension that would lose all its entries, the unit with the highest score."""
    worth = {
        int(unit): float(score)
        for group, each in scores.items()
        for unit, score in zip(group.units, _relative(each), strict=True)
    }
    needed: set[int] = set()
    for units in found.occupied:
        if units <= removed and not units & needed:
            needed.add(max(sorted(units), key=worth.__getitem__))
    return needed


def _channels(
    found: Dependencies, wanted: Mapping[Group, int | None], removed: set[int]
) -> dict[str, list[int]]:
    """For every layer that was looked at its channels, and how many stay."""
    counts: dict[str, list[int]] = {}
    for group in wanted:
        for layer in group.layers:
            stays = found.kept(layer.ids, removed)
            counts.setdefault(layer.name, [int(stays.size), int(stays.sum())])
    return counts


def _require_finite(found: Dependencies) -> None:
    """Raise RecipeError for weights that are no numbers: nothing could be ranked by them."""
    module = found.channels.module
    bad = []
    for layer in found.layers:
        for argument in arguments(layer.node):
            if isinstance(argument, fx.Node) and argument.op == "get_attr":
                tensor = constant(module, argument.target)
                if not _is_finite(tensor):
                    bad.append(f"{layer.name} ({argument.target})")
    if bad:
        raise RecipeError(
            f"prune_channels: {', '.join(dict.fromkeys(bad))}: required finite weights, got NaN or "
            "infinity. Train or load them again"
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    """Without a mask as large as the tensor: NaN and infinity outlast a minimum and a maximum."""
    if not tensor.numel():
        return True
    low, high = torch.aminmax(tensor.detach())
    return math.isfinite(float(low)) and math.isfinite(float(high))
