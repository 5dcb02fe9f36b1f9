"""Post-training quantization to fixed point: every number of the graph gets a format.

Weights and activations get a binary point per layer, by the range they cover or by least squared
error; after a rectifier formats are unsigned. A value is rounded once, at the end of its chain
(convolution, bias, activation), because the accumulator before it is exact. The shift of the mean
that rounding weights causes is corrected in the bias (Nagel et al. 2019, section 4.2).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node

from fxloom.editing import copy_graph, finish, release_tensor, tensor_node
from fxloom.encodings import MOST_POWER_BITS, Encoding
from fxloom.errors import CaptureError, DataError, RecipeError, UnsupportedLayer
from fxloom.facts import facts, shared_weights, sharing
from fxloom.fixed_point import FixedPoint, Overflow, Rounding
from fxloom.graph import (
    InputSpec,
    arguments,
    as_samples,
    constant,
    describe,
    input_specs,
    insert_like,
    origin,
    range_of,
    refresh_shapes,
)
from fxloom.ops import MAX_TABLE_WIDTH
from fxloom.passes.calibration import (
    NEGLIGIBLE,
    Batch,
    Errors,
    Means,
    Range,
    batch_size,
    candidates,
    covering,
    least_error,
    observe,
)
from fxloom.passes.chains import (
    CONSTANT_ARGUMENTS,
    LAYERS,
    MERGES,
    NARROWING,
    RELATIONS,
    ROUNDING,
    TABLES,
    WHERE,
    Chain,
    feeds_tables_only,
    find_chains,
    format_of,
    fraction_of,
    is_real,
    nonnegative,
)
from fxloom.passes.equalize import equalize
from fxloom.passes.fitting import (
    MOST_BITS,
    Fitting,
    best_encoded,
    bias_format,
    can_fit,
    set_weight,
    weight_label,
)
from fxloom.passes.fold_batchnorm import FoldBatchnorm
from fxloom.passes.given import WIDE, Given, fine_enough, given_formats, keeps_its_own, remark_on
from fxloom.passes.grid import MOST_SHIFTED
from fxloom.passes.histograms import Histogram, entropy_format, percentile_format
from fxloom.passes.legalize import Legalize, remarks_on
from fxloom.passes.masks import hide
from fxloom.passes.tabulate import isolate
from fxloom.passes.written import INSERTS
from fxloom.quantized_ops import (
    DIVIDE,
    EMBEDDING,
    REQUANTIZE,
    brings_formats,
    is_given,
    is_quantized,
)
from fxloom.recipe import PassResult
from fxloom.settings import convert, typed_keys
from fxloom.sharing import Shared
from fxloom.support import refused_ports

if TYPE_CHECKING:
    from fxloom.data import Data

aten = torch.ops.aten

NARROW = 6
"""Bits up to which equalisation and second-order rounding gain anything: see docs/accuracy.md."""

MOST_COMPARED = 2**31
"""What an integer input is compared with must fit its format, up to here."""
BESIDE = (
    *(aten.add.Tensor, aten.sub.Tensor, aten.clamp.default, *WHERE),
    *(aten.maximum.default, aten.minimum.default),
)
"""Operations whose constants share a format with computed values."""
FINER = 16
"""By how many bits such a constant may be finer than those values: an epsilon of 1e-12 would make
all of them 40 bits wider."""
CLIPPING = ("percentile", "kl")
"""Methods that take the largest values for outliers."""
NOTICEABLE = 0.05
"""Share of a table's largest value from which on its possible error gets a warning: tables of
ordinary ranges have less than half of that at 10 bits."""
LAYER_KEYS = (
    *("weights", "activations", "table_bits", "weight_format", "method"),
    *("rounding", "overflow"),
)


@typed_keys(RecipeError)
@dataclass(frozen=True)
class Quantize:
    """Post-training fixed point.

    weights, activations: bits, 1 to 32. inputs, outputs: bits of the model's own inputs (None: as
    activations) and outputs. biases: the most bits of biases, which then have coarser steps than
    their layer's products; None: as many as it takes not to. table_bits: bits of what only tables
    read (sigmoid, softmax, ...), and the most that index a table. method: how binary points are
    chosen: by least squared error (mse), to hold all values (minmax), to hold a share of the
    magnitudes that are not zero (percentile: that share, in percent), or by least entropy lost
    (kl); where activations go by one of the last two, weights go by mse. rounding, overflow: modes
    of activations; tables are rounded to nearest. samples: how many training samples calibrate,
    evenly spaced. weight_format: of the weights of layers: fixed, or binary, ternary and
    power_of_two, which need no multiplier (weights says the bits of the last, 2 to 5).
    weight_rounding: nearest, or second_order: every layer fitted to its float outputs on what the
    quantized layers before it give; auto means that for weights of at most 6 bits; adaround: the
    same, but each weight stays next to its float value. equalize: whether neurons are scaled to
    fill the range of their format, which the next layer undoes; None means where activations have
    at most 6 bits. bias_correction: whether the mean of each output is made what it was (a fitted
    layer's always is). per_channel: whether each output channel's weights get a binary point of
    their own. scales: bits of the constants that multiply values or are added to them in a model
    that brings formats along, as batch norms do that no rounded weights can take in; by default as
    many as float32 has (weights, where that is more). layers: other widths, formats, methods and
    modes for the layers that match a pattern (fnmatch on names; the last match wins); there,
    weights may be a list with the bits of every output channel, which then have binary points of
    their own (0 bits: no weights). Weights that are shared are rounded to nearest in one format
    each, and neither fitted nor equalized: whatever else would part them is left out or refused by
    name. What a model rounds into formats of its own keeps those, as do values that are exact in
    such formats; all else gets one.
    """

    name: ClassVar[str] = "quantize"
    needs_data: ClassVar[bool] = True

    weights: int = 8
    activations: int = 8
    inputs: int | None = None
    outputs: int = 16
    biases: int | None = None
    table_bits: int = 10
    method: Literal["mse", "minmax", "percentile", "kl"] = "mse"
    percentile: float = 99.9
    rounding: Rounding = Rounding.RND
    overflow: Overflow = Overflow.SAT
    weight_format: Encoding = Encoding.FIXED
    weight_rounding: Literal["auto", "nearest", "adaround", "second_order"] = "auto"
    equalize: bool | None = None
    bias_correction: bool = True
    samples: int = 1024
    per_channel: bool = False
    scales: int = 24
    layers: Mapping[str, Mapping[str, int | str | tuple[int, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        widths = {
            "weights": self.weights,
            "activations": self.activations,
            "outputs": self.outputs,
            "table_bits": self.table_bits,
            "scales": self.scales,
        }
        optional = {"inputs": self.inputs, "biases": self.biases}
        widths |= {key: width for key, width in optional.items() if width is not None}
        encodings = {"weight_format": str(self.weight_format)}
        for pattern, keys in self.layers.items():
            for key, value in keys.items():
                where = f'layers."{pattern}".{key}'
                if key not in LAYER_KEYS:
                    raise RecipeError(f"{where}: unknown key; allowed: {', '.join(LAYER_KEYS)}")
                if key == "weight_format":
                    encodings[where] = str(value)
                elif key in ("method", "rounding", "overflow"):
                    for problem in convert(Quantize, {key: value})[1]:
                        raise RecipeError(f'layers."{pattern}".{problem}')
                elif isinstance(value, tuple) and key == "weights":
                    if not value or min(value) < 0 or not 1 <= max(value) <= 32:
                        raise RecipeError(
                            f"{where}: required 0 to 32 bits for every output channel and one with "
                            f"weights at all, got {list(value)}"
                        )
                elif isinstance(value, int):
                    widths[where] = value
                else:
                    raise RecipeError(f"{where}: required a number of bits, got {value!r}")
        for key, encoding in encodings.items():
            if encoding not in list(Encoding):
                raise RecipeError(f"{key}: required one of {', '.join(Encoding)}, got {encoding}")
        for key, width in widths.items():
            most = MAX_TABLE_WIDTH if key.endswith("table_bits") else 32
            if not 1 <= width <= most:
                raise RecipeError(f"{key}: required 1 to {most} bits, got {width}")
        if not 50 <= self.percentile <= 100:
            raise RecipeError(f"percentile: required 50 to 100 percent, got {self.percentile}")
        if self.samples < 1:
            raise RecipeError(f"samples: required at least 1, got {self.samples}")

    def __call__(self, graph: fx.GraphModule, data: Data | None = None) -> PassResult:
        if data is None:
            raise RecipeError("quantize: required data to calibrate with, got none")
        if is_quantized(graph) and not brings_formats(graph):
            raise RecipeError("quantize: the graph is quantized already")
        run = self.prepared(graph, data)
        return PassResult(run.quantized(), True, run.summary)

    def prepared(self, graph: fx.GraphModule, data: Data) -> Quantization:
        """A run of the pass over a folded, legalized copy of a graph."""
        if problems := refused_ports(graph):
            raise UnsupportedLayer(problems)
        legal = Legalize()(FoldBatchnorm()(graph).graph).graph
        return Quantization(self, copy_graph(legal), data)

    def is_set(self, key: str, layers: tuple[str, ...]) -> bool:
        """Whether `layers` says something of a key for layers known by any of these names."""
        return any(
            key in keys and any(fnmatchcase(layer, pattern) for layer in layers)
            for pattern, keys in self.layers.items()
        )

    def width(self, key: str, layers: tuple[str, ...], default: int | None = None) -> int:
        """Bits of weights or activations for layers known by any of these names.

        default: where no pattern matches; None means the width for all layers.
        """
        width: int = getattr(self, key) if default is None else default
        found = self._of_layers(key, layers, width)
        return max(found) if isinstance(found, tuple) else int(found)

    def channel_widths(self, layers: tuple[str, ...]) -> tuple[int, ...]:
        """Bits of the weights of every output channel; () where all have the same."""
        found = self._of_layers("weights", layers, self.weights)
        return found if isinstance(found, tuple) else ()

    def encoding(self, layers: tuple[str, ...]) -> Encoding:
        """Which mantissas the weights of a layer may have."""
        return Encoding(str(self._of_layers("weight_format", layers, self.weight_format)))

    def method_of(self, layers: tuple[str, ...]) -> str:
        """How the binary points of layers known by any of these names are chosen."""
        return str(self._of_layers("method", layers, self.method))

    def modes_of(self, layers: tuple[str, ...]) -> tuple[Rounding, Overflow]:
        """How the activations of layers known by any of these names are rounded and fitted."""
        return (
            Rounding(str(self._of_layers("rounding", layers, str(self.rounding)))),
            Overflow(str(self._of_layers("overflow", layers, str(self.overflow)))),
        )

    def _of_layers(
        self, key: str, layers: tuple[str, ...], value: int | str
    ) -> int | str | tuple[int, ...]:
        found: int | str | tuple[int, ...] = value
        for pattern, keys in self.layers.items():
            if key in keys and any(fnmatchcase(layer, pattern) for layer in layers):
                found = keys[key]
        return found


class Quantization:
    """One application of the pass to a graph of its own."""

    def __init__(self, options: Quantize, module: fx.GraphModule, data: Data) -> None:
        self.options, self.module, self.data = options, module, data
        self.batch = batch_size(module)
        self.masks = hide(module, self.batches)
        self.given = Given({}, frozenset())
        widths = {chain: self._activation_width(chain) for chain in find_chains(module.graph)}
        self.given = Given.of(module, widths)
        isolate(module, {chain.end for chain in self._open_chains()})
        self.chains = self._open_chains()
        self.formats: dict[str, str] = {}
        self.corrected: dict[str, float] = {}
        self.equalized: dict[str, float] = {}
        self.tables: dict[str, dict[str, float]] = {}
        self.warnings: list[str] = []
        self.shared = sorted(sharing(module))
        self.typed: dict[tuple[Any, ...], Node] = {}
        self.beside: list[tuple[Node, int]] = []
        self._check_patterns()

    def _open_chains(self) -> list[Chain]:
        """Those at whose end something is to be rounded."""
        return [
            chain for chain in find_chains(self.module.graph) if not self.given.is_settled(chain)
        ]

    @property
    def summary(self) -> dict[str, object]:
        """Formats that were chosen, the largest bias correction of every layer, bounds of the
        absolute error of every table, the numbers that were taken for masks, and warnings: one
        line for each table that may be off by a noticeable share of its values; and remarks on
        layers whose weights are shared; given: formats that the model brought along."""
        given = given_formats(self.module)
        remarks = [*remarks_on(self.module), *([remark_on(given)] if given else [])]
        if self.shared:
            remarks.append(self._remark)
        return {
            "formats": self.formats,
            "bias_correction": self.corrected,
            "equalized": self.equalized,
            "table_errors": self.tables,
            "masks": self.masks,
            "warnings": list(dict.fromkeys(self.warnings)),
            **({"given": given} if given else {}),
            **({"remarks": remarks} if remarks else {}),
        }

    @property
    def _remark(self) -> str:
        return (
            f"{', '.join(self.shared)}: weights are shared: rounded to nearest in one format each, "
            "not fitted to outputs, not equalized"
        )

    def _check_patterns(self) -> None:
        """Raise RecipeError for what a pattern says in vain: almost always a typing error."""
        chained = sorted({name for chain in self.chains for name in chain.layers})
        weighted = sorted(
            {
                origin(node)
                for node in self.module.graph.nodes
                if node.target in (*LAYERS, *CONSTANT_ARGUMENTS)
            }
        )
        for pattern, keys in self.options.layers.items():
            if not any(fnmatchcase(name, pattern) for name in chained):
                left = f"Layers: {', '.join(chained)}" if chained else "There is none"
                if brings_formats(self.module):
                    left += "; all else keeps the formats that the model brought along"
                raise RecipeError(f'quantize: layers."{pattern}" matches no layer. {left}')
            speaks = not {"weights", "weight_format"}.isdisjoint(keys)
            if speaks and not any(fnmatchcase(name, pattern) for name in weighted):
                raise RecipeError(
                    f'quantize: layers."{pattern}" speaks of weights and matches no layer that has '
                    f"any. Those that have: {', '.join(weighted) or 'none'}"
                )

    def batches(self) -> Iterator[Batch]:
        """The calibration samples, as the graph takes them."""
        specs = input_specs(self.module)
        for batch in self.data.spread(self.options.samples, self.batch):
            try:
                inputs = as_samples(self.module, batch)
            except CaptureError as error:
                raise DataError(f"calibration data: {error}") from None
            yield tuple(as_declared(x, spec) for x, spec in zip(inputs, specs, strict=True))

    def quantized(self) -> fx.GraphModule:
        """The graph with a format for every number.

        Its meta["floats"] is the float graph with the same values, folded, legalized and
        equalized; meta["twin"] of a node that rounds is the name of what it rounds there.
        """
        if self.options.equalize is not False:
            self._equalize()
        floats = copy_graph(self.module)
        shared: dict[Hashable, Range] = {}
        ranges = {chain: shared.setdefault(chain.group, Range()) for chain in self.chains}
        means = {
            node: Means(channel_axis(node))
            for node in self.module.graph.nodes
            # Steps share their bias: it cannot be right for each of them.
            if node.target in LAYERS
            and self.options.bias_correction
            and not node.meta.get("tied")
            # What the model rounded stays as it is.
            and node not in self.given.layers
        }
        counted: dict[Hashable, Histogram] = {
            chain.group: Histogram()
            for chain in self.chains
            if self._method(chain) in CLIPPING and is_real(chain.end)
        }
        watched: dict[Node, list[Any]] = {chain.end: [ranges[chain]] for chain in self.chains}
        for chain in self.chains:
            if chain.group in counted:
                watched[chain.end].append(counted[chain.group])
        if not counted:
            for node, mean in means.items():
                watched.setdefault(node, []).append(mean)
        if watched:
            observe(self.module, self.batches(), watched)
        chosen = self._choose(ranges, counted)
        wanted = floats
        if counted:
            wanted = self._clipped(
                floats, {c: to for c, to in chosen.items() if c.group in counted}
            )
            names = {node.name: node for node in wanted.graph.nodes}
            observe(wanted, self.batches(), {names[n.name]: [m] for n, m in means.items()})
        self._quantize_constants()
        for chain, to in chosen.items():
            self._insert(chain, to)
        self._round_fills()
        self._quantize_biases()
        self._round_beside()
        finish(self.module)
        refresh_shapes(self.module)
        self._fit(wanted, means)
        self.module.recompile()
        self.module.meta["floats"] = floats
        return self.module

    @staticmethod
    def _clipped(module: fx.GraphModule, chosen: Mapping[Chain, FixedPoint]) -> fx.GraphModule:
        """The float graph with values clipped to their formats.

        What a percentile gives up as an outlier must not come back as a bias that makes good for
        its share of the mean.
        """
        floats = copy_graph(module)
        nodes = {node.name: node for node in floats.graph.nodes}
        for chain, to in chosen.items():
            end = nodes[chain.end.name]
            bounds = (to.lo * to.step, to.hi * to.step)
            with floats.graph.inserting_after(end):
                node = floats.graph.call_function(aten.clamp.default, (end, *bounds))
            node.meta = dict(end.meta) | {"origin": origin(end)}
            end.replace_all_uses_with(node, delete_user_cb=lambda user, node=node: user is not node)
        floats.recompile()
        return floats

    def _equalize(self) -> None:
        """Scale neurons where activations are narrow, or wherever it is wanted."""
        widths = {chain: self._activation_width(chain) for chain in self.chains}
        most = 32 if self.options.equalize else NARROW
        inputs = {chain.end: False for chain in self.chains if chain.is_input}
        verdicts = nonnegative(self.module.graph, inputs)
        levels = {
            chain: 1 << (width - (not verdicts[chain.end]))
            for chain, width in widths.items()
            if width <= most
        }
        self.equalized = equalize(self.module, levels, self.batches)

    def _fit(self, floats: fx.GraphModule, means: Mapping[Node, Means]) -> None:
        fitting = Fitting(
            self.module,
            floats,
            list(self.batches()),
            self.options.per_channel,
            self.options.weight_rounding == "adaround",
            self.corrected,
            self.formats,
        )
        fitted = [node for node in self.module.graph.nodes if self._is_fitted(node)]
        if fitted:
            fitting.fit_weights(fitted)
        rest = {node: mean for node, mean in means.items() if node not in fitted}
        if rest:
            fitting.correct_biases(rest)

    def _is_fitted(self, node: Node) -> bool:
        """Whether the weights of a layer are rounded with its inputs in mind."""
        if node.target not in LAYERS or node in self.given.layers or not can_fit(node):
            return False
        if str(arguments(arguments(node)[1])[0].target) in sharing(self.module):
            return False
        if self.options.weight_rounding == "auto":
            widths = [n for n in self.options.channel_widths((origin(node),)) if n]
            bits = min(widths or [self.options.width("weights", (origin(node),))])
            return bits <= NARROW or self.options.encoding((origin(node),)) is not Encoding.FIXED
        return self.options.weight_rounding in ("second_order", "adaround")

    # Activations

    def _method(self, chain: Chain) -> str:
        return self.options.method_of(chain.layers)

    def _choose(
        self, ranges: Mapping[Chain, Range], counted: Mapping[Hashable, Histogram]
    ) -> dict[Chain, FixedPoint]:
        options = self.options
        groups: dict[Hashable, list[Chain]] = {}
        for chain in self.chains:
            groups.setdefault(chain.group, []).append(chain)
        errors: dict[Hashable, Errors] = {}
        seen = {c.end: ranges[c].low >= 0 for c in self.chains if c.is_input}
        verdicts = nonnegative(self.module.graph, seen)
        for group, chains in groups.items():
            span = ranges[chains[0]]
            if not is_real(chains[0].end):
                errors[group] = Errors([self._whole(chains[0].end, span)])
                continue
            if (wanted := self.given.wanted(chains[0])) is not None:
                errors[group] = Errors([wanted])
                continue
            signed = not all(verdicts[chain.end] for chain in chains)
            # A state that is also an output is as narrow as the other steps' states.
            width = min(self._activation_width(chain) for chain in chains)
            low = span.low if signed else 0.0
            kind = (low, span.high, width, signed)
            match self._method(chains[0]):
                case "minmax":
                    shortlist = [covering(*kind)]
                case "percentile":
                    shortlist = [percentile_format(counted[group], options.percentile, *kind)]
                case "kl":
                    shortlist = [entropy_format(counted[group], *kind)]
                case _:
                    shortlist = candidates(*kind)
            errors[group] = Errors(shortlist)
        open_ends = [chain for chain in self.chains if len(errors[chain.group].candidates) > 1]
        if open_ends:
            watched = {chain.end: [errors[chain.group]] for chain in open_ends}
            observe(self.module, self.batches(), watched)
        return {
            chain: fine_enough(errors[chain.group].best, chain.end)
            if chain.is_input and self.options.inputs is None and is_real(chain.end)
            else errors[chain.group].best
            for chain in self.chains
        }

    def _whole(self, node: Node, span: Range) -> FixedPoint:
        """The format of an integer input: of short types every number, of others those seen, those
        it is compared with and every row it may ask for."""
        dtype = node.meta["val"].dtype
        if dtype.itemsize == 1:
            return FixedPoint.holding(*range_of(dtype), 0)
        found, pending = {0, int(span.low), int(span.high)}, list(node.users)
        while pending:
            user = pending.pop()
            if user.target is EMBEDDING:
                found.add(len(arguments(user)[1].meta["val"]) - 1)
            elif user.target in RELATIONS:
                found |= self._compared(user)
            elif user.op != "output" and not is_real(user):
                pending.extend(user.users)
        return FixedPoint.holding(min(found), max(found), 0)

    def _compared(self, relation: Node) -> set[int]:
        """The smallest and the largest integer constant that something is compared with."""
        found: set[int] = set()
        for argument in arguments(relation)[:2]:
            if isinstance(argument, int):
                found.add(argument)
            elif isinstance(argument, Node) and argument.op == "get_attr":
                values = constant(self.module, argument.target)
                if not values.is_floating_point():
                    found |= {int(bound) for bound in torch.aminmax(values)}
        return {number for number in found if abs(number) < MOST_COMPARED}

    def _activation_width(self, chain: Chain) -> int:
        options = self.options
        default = options.activations
        if chain.is_input and options.inputs:
            default = options.inputs
        elif feeds_tables_only(chain.end):
            default = self._table_bits(chain.end)
        elif chain.is_output:
            default = options.outputs
        if chain.end in self.given.wide:
            default = max(WIDE, default)
        return options.width("activations", chain.layers, default)

    def read_bits(self, layer: Node) -> int:
        """Bits of the values that a layer of the float graph multiplies with."""
        ends = {chain.end: chain for chain in self.chains}
        pending, found = [arguments(layer)[0]], [1]
        while pending:
            node = pending.pop()
            if node in ends:
                found.append(self._activation_width(ends[node]))
            elif node.op == "call_function":
                pending.extend(node.all_input_nodes)
        return max(found)

    def _table_bits(self, node: Node) -> int:
        """Bits that index the table of a node, or the tables that its users are."""
        tables = [node] if node.target in INSERTS else list(node.users)
        return self.options.width("table_bits", tuple(origin(table) for table in tables))

    def _narrowed_bits(self, node: Node) -> int:
        """Bits that the reader of a narrowing node can take."""
        is_table = any(user.target in TABLES for user in node.users)
        return self._table_bits(node) if is_table else MAX_TABLE_WIDTH

    def _tabulate(self, chain: Chain, to: FixedPoint) -> Node:
        """The lookups that compute the end of a chain."""
        end, modes = chain.end, self.options.modes_of(chain.layers)
        insert = INSERTS[end.target]
        node, to, error = insert(self.module, end, to, self._table_bits(end), modes)
        self.formats[origin(end)] = str(to)
        self.tables[origin(end)] = error.record()
        largest = max(-to.lo, to.hi) * to.step
        if error.bound >= NOTICEABLE * largest:
            self.warnings.append(
                f"{describe(end)}: may be off by {error.bound:.3g} where its values go up to "
                f"{largest:.3g}: {error.argument:.3g} by the {self._table_bits(end)} bits "
                "of its argument. Give it more table_bits, or an argument of a smaller range"
            )
        return node

    def _insert(self, chain: Chain, to: FixedPoint) -> None:
        """Round the end of a chain; a division rounds by itself."""
        end, (rounding, overflow) = chain.end, self.options.modes_of(chain.layers)
        if end.target in INSERTS:
            node = self._tabulate(chain, to)
            node.meta["twin"] = end.name
            end.replace_all_uses_with(node)
            return
        if end.target is NARROWING:
            source = arguments(end)[0]
            have = format_of(source)
            if have is not None and have.width <= self._narrowed_bits(end):
                end.replace_all_uses_with(source)
                return
        if not is_real(end):  # an index beyond the last is the last, not another
            overflow = Overflow.SAT
        modes = (to.width, to.integer, to.signed, str(rounding), str(overflow))
        suffix = ".argument" if end.target is NARROWING else ""
        self.formats[chain.layers[-1] + suffix] = str(to)
        graph = self.module.graph
        with graph.inserting_after(end):
            if end.target is aten.div.Tensor:
                x, divisor = arguments(end)[:2]
                if not isinstance(divisor, Node):
                    divisor = tensor_node(
                        self.module, end, f"{origin(end)}.divisor", torch.tensor([divisor])
                    )
                node = insert_like(graph, end, DIVIDE, (x, divisor, *modes))
            elif chain.is_input:
                node = graph.call_function(REQUANTIZE, (end, *modes))
                node.meta["origin"] = str(end.target)
            else:
                rounded = arguments(end)[0] if end.target is NARROWING else end
                node = insert_like(graph, end, REQUANTIZE, (rounded, *modes))
        node.meta |= {key: end.meta[key] for key in ("val", "batch_axis")} | {"twin": end.name}
        own = set() if chain.is_input or end.target in ROUNDING else set(end.users)
        own = {user for user in own if keeps_its_own(user)} | {node}
        end.replace_all_uses_with(node, delete_user_cb=lambda user: user not in own)

    # Weights

    def _quantize_constants(self) -> None:
        """Give every weight a format, and every literal number a short mantissa."""
        for node in list(self.module.graph.nodes):
            if node.target in LAYERS:
                if not is_given(arguments(node)[1]):
                    self._requantize_constant(node, 1)
            elif is_real(node) and node not in self.given.values:
                for position in CONSTANT_ARGUMENTS.get(node.target, ()):
                    argument = arguments(node)[position]
                    if isinstance(argument, Node) and argument.op == "get_attr":
                        self._requantize_constant(node, position)
                    elif isinstance(argument, int | float):
                        self._shorten(node, position)
                    else:
                        continue
                    if node.target in BESIDE:
                        self.beside.append((node, position))

    def _requantize_constant(self, node: Node, position: int) -> None:
        source = arguments(node)[position]
        if not isinstance(source, Node) or source.op != "get_attr":
            raise UnsupportedLayer([f"{describe(node)}: its weight is computed; not supported yet"])
        node.update_arg(position, self._constant(source, node))

    def _constant(self, source: Node, layer: Node) -> Node:
        bits = self._constant_bits(layer)
        tensor = constant(self.module, source.target)
        values = tensor.detach()
        if not values.is_floating_point():  # torch converts it to the type of the result
            values = values.to(layer.meta["val"].dtype)
            name = release_tensor(self.module, source)
            source = tensor_node(self.module, layer, name, values)
        is_layer = layer.target in LAYERS
        encoding = self._encoding(layer, bits) if is_layer else Encoding.FIXED
        if encoding is Encoding.BINARY and str(source.target) in facts(self.module):
            raise RecipeError(
                f"quantize: {describe(layer)}: binary weights are never zero, and this layer is "
                "pruned. Choose ternary weights, or prune other layers"
            )
        widths = self._channel_widths(layer, values, encoding)
        by_channel = self.options.per_channel and is_layer
        if (shared := shared_weights(self.module, str(source.target))) is not None:
            self._require_one_format(layer, shared, encoding, widths)
            by_channel = False
        # One weight of several layers is rounded once.
        method = self.options.method_of((origin(layer),))
        key = (source, bits, by_channel, encoding, widths, method)
        if key not in self.typed:
            shifts: list[int] = []
            if by_channel or widths:
                every = widths or (bits,) * len(values)
                to, shifts = self._by_channel(values, encoding, every, method)
            else:
                to = self._weight_format(values, encoding, bits, method)
            if shared is not None and not isinstance(tensor, nn.Parameter):
                to = _narrowest(values, to)  # it never trains, so that its numbers stay these
            if shared is not None and shared.is_signed:
                source = self._symmetric(source, layer, to)
            self.typed[key] = self._typed(source, layer, to)
            set_weight(self.typed[key], source, to, shifts, encoding, widths)
            self.formats[str(source.target)] = weight_label(to, shifts, encoding, widths)
        return self.typed[key]

    def _constant_bits(self, layer: Node) -> int:
        """Bits of a constant: of weights, or of what stands at values in formats of the model's
        own, such as the scale of a batch norm that those weights cannot take in."""
        default = self.options.weights
        if layer.target in MERGES and self.given.layers:
            default = max(default, self.options.scales)
        return self.options.width("weights", (origin(layer),), default)

    @staticmethod
    def _require_one_format(
        layer: Node, shared: Shared, encoding: Encoding, widths: tuple[int, ...]
    ) -> None:
        """Raise RecipeError for what would make different numbers of weights that are one."""
        asked = ""
        if widths:
            asked = "bits by output channel"
        elif shared.is_signed and encoding is not Encoding.FIXED:
            asked = f"{encoding} weights"
        if asked:
            raise RecipeError(
                f"quantize: {describe(layer)}: required one fixed format for weights that are "
                f"shared ({shared.identity[0]}), got {asked}. Give this layer a number of bits, or "
                "share the weights of other layers"
            )

    def _symmetric(self, source: Node, layer: Node, to: FixedPoint) -> Node:
        """A constant without what only one sign of its format can hold: a number and the same
        number negated round to the same."""
        values, most = constant(self.module, source.target).detach(), to.hi * to.step
        if float(values.min()) >= -most:
            return source
        name = release_tensor(self.module, source)
        return tensor_node(self.module, layer, name, values.clamp(-most, most))

    def _channel_widths(self, layer: Node, values: Tensor, encoding: Encoding) -> tuple[int, ...]:
        widths = self.options.channel_widths((origin(layer),))
        if not widths:
            return ()
        if layer.target not in LAYERS:
            return ()  # a constant of something else by that name has the most of these bits
        if len(widths) != len(values):
            raise RecipeError(
                f"quantize: {describe(layer)}: weights: required bits for each output channel, got "
                f"{len(widths)} of them; the layer has {len(values)} output channels"
            )
        if encoding is not Encoding.FIXED:
            raise RecipeError(
                f"quantize: {describe(layer)}: weights: bits by output channel are for fixed "
                f"weights, not {encoding} ones"
            )
        return widths

    def _encoding(self, layer: Node, bits: int) -> Encoding:
        encoding = self.options.encoding((origin(layer),))
        if encoding is not Encoding.FIXED and self.options.weight_rounding == "adaround":
            raise RecipeError(
                f"quantize: {describe(layer)}: adaround is for fixed weights, not {encoding} ones; "
                'choose weight_rounding = "second_order"'
            )
        if encoding is Encoding.POWER_OF_TWO and not 2 <= bits <= MOST_POWER_BITS:
            raise RecipeError(
                f"quantize: {describe(layer)}: weights that are powers of two need 2 to "
                f"{MOST_POWER_BITS} bits, got {bits}"
            )
        return encoding

    def _by_channel(
        self, values: Tensor, encoding: Encoding, widths: Sequence[int], method: str
    ) -> tuple[FixedPoint, list[int]]:
        """The coarsest channel's format, in the bits of the widest, and how much finer each is
        (channels: first axis)."""
        widest = max(widths)
        signed = float(values.min()) < 0 or widest > 1
        found = [
            self._weight_format(channel, encoding, max(bits, 1), method, signed)
            for channel, bits in zip(values, widths, strict=True)
        ]
        dead = [
            not bits or float(channel.abs().max()) < NEGLIGIBLE
            for channel, bits in zip(values, widths, strict=True)
        ]
        fractions = [to.fraction for to, is_dead in zip(found, dead, strict=True) if not is_dead]
        least = min(fractions, default=widest - 1)
        shifts = [
            0 if is_dead else min(own.fraction - least, MOST_SHIFTED)
            for own, is_dead in zip(found, dead, strict=True)
        ]
        width = encoding.width(widest)
        return FixedPoint(width, width - least, signed), shifts

    def _weight_format(
        self,
        values: Tensor,
        encoding: Encoding,
        bits: int,
        method: str,
        signed: bool | None = None,
    ) -> FixedPoint:
        low, high = (float(x) for x in torch.aminmax(values))
        width = encoding.width(bits)
        if signed is None:
            signed = low < 0 or width > 1  # one bit must be able to hold the sign of a weight
        if encoding is not Encoding.FIXED:
            return best_encoded(values, encoding, width)
        if method == "minmax":
            return covering(low, high, width, signed)
        return least_error(values, candidates(low, high, width, signed))

    def _typed(self, source: Node, layer: Node, to: FixedPoint) -> Node:
        """requantize(source) in front of a layer, to nearest, saturating."""
        with self.module.graph.inserting_before(layer):
            node = insert_like(
                self.module.graph,
                layer,
                REQUANTIZE,
                (source, to.width, to.integer, to.signed, "RND_CONV", "SAT"),
            )
        node.meta |= {"val": source.meta["val"], "batch_axis": None}
        return node

    def _shorten(self, node: Node, position: int) -> None:
        """Round a literal to as many significant bits as weights have."""
        number = float(arguments(node)[position])
        bits = self.options.width("weights", (origin(node),))
        mantissa, exponent = torch.frexp(torch.tensor(number, dtype=torch.float64))
        short = round(float(mantissa) * 2**bits) * 2.0 ** (int(exponent) - bits)
        node.update_arg(position, short)

    def _round_fills(self) -> None:
        """The number that a pad puts around a value takes that value's steps, to nearest."""
        for node in self.module.graph.nodes:
            if node in self.given.values:
                continue
            if node.target is aten.constant_pad_nd.default and arguments(node)[2]:
                self._shorten(node, 2)
                step = 2.0 ** -fraction_of(arguments(node)[0])
                node.update_arg(2, round(arguments(node)[2] / step) * step)

    def _round_beside(self) -> None:
        """Numbers and constants that stand beside values take no finer steps than any rounding
        of those sees."""
        for node, position in self.beside:
            argument = arguments(node)[position]
            others = [each for each in node.all_input_nodes if is_real(each) and each != argument]
            if not others:
                continue
            finest = max(map(fraction_of, others)) + FINER
            if not isinstance(argument, Node):
                node.update_arg(position, round(argument * 2.0**finest) * 2.0**-finest)
            elif len(argument.users) == 1 and fraction_of(argument) > finest:
                source, width, _, signed = arguments(argument)[:4]
                width = max(width - (fraction_of(argument) - finest), 1 + signed)
                to = FixedPoint(width, width - finest, signed)
                argument.args = (source, width, to.integer, signed, *arguments(argument)[4:])
                self.formats[str(source.target)] = str(to)

    def _quantize_biases(self) -> None:
        """A bias takes the binary point of its accumulator: no bit of it is lost that matters; one
        that may not be as wide takes the finest that it may."""
        for node in list(self.module.graph.nodes):
            if node.target not in LAYERS:
                continue
            weight, bias = arguments(node)[1:3]
            if isinstance(bias, Node) and is_given(bias):
                continue
            if bias is None:
                wanted = self.options.bias_correction or self._is_fitted(node)
                wanted &= node not in self.given.layers
                if not wanted or node.meta.get("tied"):
                    continue
                outputs = weight.meta["val"].shape[0]
                dtype = weight.meta["val"].dtype
                bias = tensor_node(
                    self.module, node, f"{origin(node)}.bias", torch.zeros(outputs, dtype=dtype)
                )
            assert isinstance(bias, Node)
            values, most = constant(self.module, bias.target).detach(), self.options.biases
            to = bias_format(node, values, most)
            is_tied = bool(node.meta.get("tied"))
            typed = self.typed.get((bias, to)) if is_tied else None
            if typed is None:
                typed = self._typed(bias, node, to)
                typed.meta[MOST_BITS] = most
            if is_tied:
                self.typed[bias, to] = typed
            node.update_arg(2, typed)


def as_declared(x: Tensor, spec: InputSpec) -> Tensor:
    """A batch with its axis where the model has it, in the model's precision."""
    precision = spec.dtype if spec.dtype.is_floating_point else x.dtype
    return x.movedim(0, spec.batch_axis).to(precision) if x.dim() > spec.batch_axis else x


def _narrowest(values: Tensor, to: FixedPoint) -> FixedPoint:
    """The narrowest format that holds all values exactly; `to` where none narrower than it does."""
    low, high = (float(x) for x in torch.aminmax(values))
    for width in range(2, to.width):
        found = covering(low, high, width, low < 0)
        mantissas = values / found.step
        if torch.equal(mantissas, mantissas.round().clamp(found.lo, found.hi)):
            return found
    return to


def channel_axis(layer: Node) -> int:
    """Where a layer's output channels are: second for a convolution, last for a linear layer."""
    rank: int = layer.meta["val"].dim()
    return 1 if layer.target is aten.convolution.default else rank - 1
