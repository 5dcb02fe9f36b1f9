"""Accumulators narrower than the proof: as wide as the sums that calibration data really give.

The exact accumulator holds the largest sum that the weights allow for any input; inputs that give
it never come. A narrower one that wraps gives the lower bits of the sum, whatever the order of the
additions, so that simulator and hardware still agree in every bit: where a sum does not fit, both
give the same wrong number. How many did not, and how near the others came, is measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.editing import copy_graph
from fxloom.errors import CaptureError, DataError, RecipeError
from fxloom.exact import require_exact
from fxloom.fixed_point import FixedPoint, Overflow
from fxloom.graph import Float64, as_indices, check_inputs, input_specs, insert_like, origin
from fxloom.lowering.core import Lowered, Lowering
from fxloom.passes.calibration import Batch, batch_size
from fxloom.passes.chains import LAYERS
from fxloom.passes.quantize import as_declared
from fxloom.quantized_ops import REQUANTIZE, blocks
from fxloom.recipe import PassResult
from fxloom.settings import overrides, typed_keys, unmatched

if TYPE_CHECKING:
    from fxloom.data import Data

MOST_BITS = 63
LAYER_KEYS = ("bits", "headroom")


@typed_keys(RecipeError)
@dataclass(frozen=True)
class NarrowAccumulators:
    """Accumulators of linear layers and convolutions with fewer bits than the proof needs.

    bits: of every accumulator, sign and fraction bits included; None: as many as the sums of the
    calibration data need, and headroom more. No fraction bit is ever dropped, and no accumulator
    becomes wider than the exact one. overflow: WRAP; what a saturating accumulator gives depends on
    the order of the additions. samples: how many training samples are run, evenly spaced. layers:
    other bits and headroom for layers that match a pattern (fnmatch; the last match wins).
    """

    name: ClassVar[str] = "narrow_accumulators"
    needs_data: ClassVar[bool] = True

    bits: int | None = None
    headroom: int = 1
    overflow: Overflow = Overflow.WRAP
    samples: int = 1024
    layers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.overflow is not Overflow.WRAP:
            raise RecipeError(
                f"overflow: required WRAP, got {self.overflow}: what a saturating accumulator "
                "gives depends on the order of the additions, which no simulation knows. Saturate "
                "activations instead"
            )
        given = [(key, getattr(self, key)) for key in LAYER_KEYS]
        for pattern, keys in self.layers.items():
            for key, value in keys.items():
                where = f'layers."{pattern}".{key}'
                if key not in LAYER_KEYS:
                    raise RecipeError(f"{where}: unknown key; allowed: {', '.join(LAYER_KEYS)}")
                given.append((where, value))
        for where, value in given:
            least = 1 if where.endswith("bits") else 0
            if value is not None and not least <= value <= MOST_BITS:
                raise RecipeError(f"{where}: required {least} to {MOST_BITS} bits, got {value}")
        if self.samples < 1:
            raise RecipeError(f"samples: required at least 1, got {self.samples}")

    def __call__(self, graph: fx.GraphModule, data: Data | None = None) -> PassResult:
        if data is None:
            raise RecipeError("narrow_accumulators: required data to measure sums on, got none")
        if not any(node.target is REQUANTIZE for node in graph.graph.nodes):
            raise RecipeError(
                "narrow_accumulators: required a quantized graph, got floats. "
                "Put it behind quantize"
            )
        if any(node.meta.get("accumulator") for node in graph.graph.nodes):
            raise RecipeError("narrow_accumulators: the accumulators are narrowed already")
        module = copy_graph(graph)
        sums = _sums(module)
        names = sorted({each.name for each in sums})
        if wrong := unmatched(self.layers, names):
            raise RecipeError(
                f"narrow_accumulators: layers: {', '.join(wrong)} matches no layer with an "
                f"accumulator. Layers: {', '.join(names) or 'none'}"
            )
        with torch.inference_mode():
            run = _Summing(module, sums)
            for batch in _batches(module, data, self.samples):
                run.run(*batch)
        modified = False
        for each in sums:
            for node, proven in each.layers.items():
                if self._format(each).width < proven.width:
                    _insert(module, node, self._format(each))
                    modified = True
        module.graph.lint()
        module.recompile()
        summary: dict[str, object] = {
            "accumulators": {each.label: each.record(self._format(each)) for each in sums},
            "remarks": [each.remark(self._format(each)) for each in sums],
        }
        return PassResult(module, modified, summary)

    def _format(self, sums: _Sums) -> FixedPoint:
        keys = {"bits": self.bits, "headroom": self.headroom} | overrides(self.layers, sums.name)
        bits = keys["bits"]
        if bits is None:
            assert keys["headroom"] is not None
            bits = max(sums.needed, 1) + keys["headroom"]
        width = min(bits, sums.proven.width)
        return FixedPoint(width, width - sums.proven.fraction, sums.proven.signed)


@dataclass
class _Sums:
    """The sums of a layer, or of all steps of a recurrence: how many of them need how many bits.

    layers: the nodes, each with the format that holds its sum of any input; they have the same
    fraction. proven: the format that holds them all. largest: the largest magnitude, in units of
    the last place, where -1 counts as 0.
    """

    name: str
    label: str
    layers: Mapping[Node, FixedPoint]
    counts: Tensor = field(default_factory=lambda: torch.zeros(MOST_BITS + 2, dtype=torch.int64))
    largest: float = 0.0

    def see(self, x: Tensor) -> None:
        """Count the sums of a tensor, real values in float64."""
        proven = self.proven
        for block in blocks(x):
            steps = block * 2.0**proven.fraction
            magnitude = torch.where(steps < 0, -1 - steps, steps)
            bits = torch.frexp(magnitude).exponent + int(proven.signed)
            self.counts += torch.bincount(bits, minlength=len(self.counts))
            self.largest = max(self.largest, float(magnitude.max()))

    @property
    def proven(self) -> FixedPoint:
        """The format that holds every sum of any input."""
        formats = self.layers.values()
        signed = any(to.signed for to in formats)
        integer = max(to.integer + (signed and not to.signed) for to in formats)
        fraction = next(iter(formats)).fraction
        return FixedPoint(integer + fraction, integer, signed)

    @property
    def needed(self) -> int:
        """Bits that all of them need."""
        return int(self.counts.nonzero().max()) if self.counts.any() else 0

    def overflowed(self, to: FixedPoint) -> int:
        """How many do not fit a format of the same fraction."""
        return int(self.counts[to.width + 1 :].sum())

    def record(self, to: FixedPoint) -> dict[str, Any]:
        """Figures of a format. room: by how much the largest sum could grow before it overflows."""
        room = (to.hi + 1) / (self.largest + 1)
        return {
            "format": str(to),
            "bits": to.width,
            "proof": self.proven.width,
            "needed": self.needed,
            "sums": int(self.counts.sum()),
            "overflowed": self.overflowed(to),
            "room": float(f"{room:.3g}"),
        }

    def remark(self, to: FixedPoint) -> str:
        """The same as a sentence."""
        if to.width == self.proven.width:
            return f"accumulator of {self.label}: {to.width} bits, as the proof needs"
        figures = self.record(to)
        return (
            f"accumulator of {self.label}: {to.width} bits, proof needs {self.proven.width}, "
            f"{figures['overflowed']:,} of {figures['sums']:,} sums overflowed, nearest "
            f"{figures['room']:g}x [measured]"
        )


def _sums(module: fx.GraphModule) -> list[_Sums]:
    """What there is to measure in a quantized graph."""
    lowering = Lowering(module)
    require_exact(lowering.run())
    groups: dict[Hashable, dict[Node, FixedPoint]] = {}
    for node in module.graph.nodes:
        if node.target in LAYERS:
            lowered = lowering.known[node]
            assert isinstance(lowered, Lowered)
            to = lowered.value.type
            tied = (origin(node), node.target, to.fraction)
            groups.setdefault(tied if node.meta.get("tied") else node, {})[node] = to
    counts = Counter[str]()
    found = []
    for layers in groups.values():
        name = origin(next(iter(layers)))
        counts[name] += 1
        label = name if counts[name] == 1 else f"{name}#{counts[name]}"
        found.append(_Sums(name, label, layers))
    return found


class _Summing(Float64):
    """Runs a quantized graph, exactly, and shows every sum."""

    def __init__(self, module: fx.GraphModule, sums: Sequence[_Sums]) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self._sums = {node: each for each in sums for node in each.layers}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self._sums:
            self._sums[n].see(value)
        return value


def _batches(module: fx.GraphModule, data: Data, samples: int) -> Iterator[Batch]:
    specs = input_specs(module)
    for x in data.spread(samples, batch_size(module)):
        inputs = tuple(
            as_declared(each, spec) for each, spec in zip(as_indices(module, x), specs, strict=True)
        )
        try:
            check_inputs(module, inputs)
        except CaptureError as error:
            raise DataError(f"calibration data: {error}") from None
        yield tuple(each.double() if each.is_floating_point() else each for each in inputs)


def _insert(module: fx.GraphModule, layer: Node, to: FixedPoint) -> None:
    """Drop the upper bits of a layer's sums."""
    with module.graph.inserting_after(layer):
        args = (layer, to.width, to.integer, to.signed, "TRN", str(Overflow.WRAP))
        node = insert_like(module.graph, layer, REQUANTIZE, args)
    node.meta |= {key: layer.meta[key] for key in ("val", "batch_axis")} | {"accumulator": True}
    layer.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
