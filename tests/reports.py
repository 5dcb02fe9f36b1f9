"""Reports for tests of their page: all sections filled, and names as bad as a model can have."""

from collections.abc import Sequence
from dataclasses import replace

from fxloom.made_from import MadeFrom
from fxloom.report import (
    RESOURCES,
    Accuracy,
    Figure,
    LayerCost,
    LayerReport,
    PassReport,
    Report,
    Resources,
    StageLayer,
    Totals,
    nanoseconds,
)
from fxloom.report_graph import Edge, Graph, Node
from fxloom.storage_table import StorageRow
from fxloom.value_histograms import ValueHistogram

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=http://example.org/x.png onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><h1>",
    "{{ 7 * 7 }}{% raw %}",
    "block.0." + "very_long_name" * 20,
    "W" * 300,
    "层.\u202eübergroß.\N{GRINNING FACE}",
    "&amp;&#60;",
    " ",
)


def resources(size: int, provenance: str = "fitted") -> Resources:
    """Figures of a size; all but DSP and URAM have intervals."""

    def figure(key: str, unit: str) -> Figure:
        if key == "uram":
            return Figure(0, unit, "rule", "rule: none is used")
        if key == "dsp":
            return Figure(size, unit, "rule", "rule: one a weight")
        return Figure(9 * size, unit, "fitted", f"fitted: {unit} <of> others", 7 * size, 12 * size)

    return Resources(*(figure(key, unit) for key, unit in RESOURCES.items()))


def shares(value: float, low: float, high: float) -> Resources:
    """The same percent of every resource."""
    return Resources(
        *(Figure(value, "%", "fitted", f"of 100 {unit}", low, high) for unit in RESOURCES.values())
    )


def layer(name: str, size: int) -> LayerReport:
    """A layer with that many weights."""
    cycles = Figure(size + 3, "cycles", "fitted", "fitted: a tree", size, size + 4)
    return LayerReport(
        name=name,
        ops=("matmul", "add", "requantize"),
        shape=(size,),
        result="fixed<8,3>",
        weights=("fixed<8,1>", "fixed<13,-1>"),
        accumulator="fixed<20,6>",
        weight_count=size,
        nonzero=size,
        stored_bits=8 * size,
        macs=size,
        csynth=resources(2 * size),
        synthesis=resources(size),
        latency=cycles,
        interval=Figure(1, "cycles", "rule", "rule: pipelined"),
        rounding=Figure(size, "LUT", "fitted", "fitted: adders", 0, 2 * size),
        float_error=Figure(0.01 / size, "of the value", "measured", "on 3 samples"),
        kernel="dense: fewer bits",
    )


def graph(names: Sequence[str]) -> Graph:
    """A chain with a connection around every second layer, and one back to the first."""
    nodes = [Node("x", "input"), *(Node(name, "layer", ("matmul", "add")) for name in names)]
    nodes.append(Node("output", "output"))
    edges = [Edge(n, n + 1, "ufixed<8,1>", (4, 4)) for n in range(len(nodes) - 1)]
    edges += [Edge(n, n + 2, "ufixed<8,1>", (4, 4)) for n in range(0, len(nodes) - 3, 2)]
    edges.append(Edge(len(names), 1, "fixed<9,2>", (), 19))
    return Graph(tuple(nodes), tuple(edges))


def histogram(name: str) -> ValueHistogram:
    """Of values that reach beyond both ends of a range."""
    counts = tuple(1 + 40 * (n - 12) ** 2 * (n % 3) for n in range(24))
    ends = (-1.0, 0.992, -1.5, 1.49)
    return ValueHistogram(name, "fixed<8,1>", *ends, 0.01, 0.02, -1.5, 0.125, counts, 128)


def storage(name: str, weights: int) -> StorageRow:
    """What a tensor of so many weights takes."""
    return StorageRow(
        name=name,
        what="weights",
        weights=weights,
        kept=weights // 10,
        values=8,
        stored=weights // 5,
        weight_bits=3,
        index_bits=4,
        weight_codes=weights // 2,
        index_codes=weights // 3,
        codebook=24,
        tables=40,
        bits=7 * weights // 5 + 24,
        huffman_bits=5 * weights // 6 + 64,
    )


def full(names: Sequence[str] = HOSTILE, share: float = 70.0) -> Report:
    """A report in which nothing is missing."""
    layers = tuple(layer(name, 8 << place % 5) for place, name in enumerate(names))
    cycles = Figure(50, "cycles", "fitted", "sum over the layers", 40, 60)
    every = layers[0].interval
    total = Totals(
        weight_count=100,
        nonzero=90,
        stored_bits=800,
        macs=1000,
        csynth=resources(200),
        synthesis=resources(100),
        csynth_percent=shares(2 * share, share, 3 * share),
        synthesis_percent=shares(share, share / 2, 1.2 * share),
        latency=cycles,
        interval=every,
        latency_ns=nanoseconds(cycles, 5.0),
        interval_ns=nanoseconds(every, 5.0),
    )
    cost = LayerCost(9, 9, 72, 9, resources(3), cycles)
    counts = {"parameters": 100, "nonzero": 100, "stored_bits": 800, "macs": 1000, "dsp": 9}
    half = {key: value // 2 for key, value in counts.items()}
    stages = tuple(StageLayer(name, cost, replace(cost, nonzero=3)) for name in names)
    return Report(
        part="xczu9eg",
        clock_ns=5.0,
        layers=layers,
        total=total,
        program="0123456789abcdef" * 4,
        float_bits=3200,
        passes=(
            PassReport("prune", True, {"remarks": list(names)}, counts, half, stages),
            PassReport("quantize", True, {}, half, half),
        ),
        accuracy=Accuracy("test", 540, 0.4, 0.05, 40.0, 0.98, 0.9),
        notes=tuple(names),
        made_from=MadeFrom(
            model=names[0],
            parameters=100,
            recipe='[[pass]]\nname = "prune"\nsparsity = 0.5\n[[pass]]\nname = "quantize"\n',
            target='part = "xczu9eg"\nio = "stream"\nlayers = {"a<b" = {reuse = 2}}\n',
            versions={"fxloom": "0.1.0"},
            found='[[pass]]\nname = "prune"\nsparsity = 0.25\n[[pass]]\nname = "quantize"\n',
        ),
        graph=graph(names),
        histograms=tuple(histogram(name) for name in names),
        storage=tuple(storage(name, 100 << place % 5) for place, name in enumerate(names)),
    )


def bare() -> Report:
    """What `estimate` gives for a backend without rules: nothing known, nothing measured."""
    report = full(["fc"])
    unknown = Resources(
        *(Figure(None, unit, "unknown", "unknown: no rule") for unit in RESOURCES.values())
    )
    cycles = Figure(None, "cycles", "unknown", "unknown: no rule")
    nothing = {"csynth": unknown, "synthesis": unknown, "latency": cycles, "interval": cycles}
    only = replace(report.layers[0], **nothing, rounding=None, float_error=None, kernel="")
    total = replace(
        report.total,
        **nothing,
        csynth_percent=unknown,
        synthesis_percent=unknown,
        latency_ns=nanoseconds(cycles, 5.0),
        interval_ns=nanoseconds(cycles, 5.0),
    )
    return Report(part="10ax115", clock_ns=5.0, layers=(only,), total=total, program=report.program)
