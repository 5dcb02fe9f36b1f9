"""What each pass saves in hardware, layer by layer, in the report."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from torch.fx import GraphModule

from fxloom.compilation import compile
from fxloom.data import Data
from fxloom.editing import copy_graph
from fxloom.estimation import estimate
from fxloom.facts import keep_zeros
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes import Factorize, FoldBatchnorm, Quantize
from fxloom.recipe import PassResult, Recipe
from fxloom.report import Report
from fxloom.target import LayerTable, Target


@dataclass(frozen=True)
class Halve:
    """Every other weight of one layer becomes zero."""

    name: ClassVar[str] = "halve"
    compresses: ClassVar[bool] = True

    def __call__(self, graph: GraphModule, data: Data | None = None) -> PassResult:
        result = copy_graph(graph)
        layer = result.get_submodule("0")
        assert isinstance(layer.weight, nn.Parameter)
        values = layer.weight.detach().clone()
        values[:, ::2] = 0
        layer.weight = nn.Parameter(values)
        keep_zeros(result, "0.weight")
        return PassResult(result, True, {})


def test_the_report_shows_what_a_pass_saves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
    data = Data(torch.randn(64, 16))
    target = Target()
    quantize = Quantize(weights=8)
    recipe = Recipe([FoldBatchnorm(), Halve(), quantize])
    report = compile(model, recipe=recipe, data=data, target=target, out=tmp_path / "b").report
    nothing, halved, last = report.passes
    assert nothing.layers == last.layers == ()
    first, second = halved.layers
    assert second.before == second.after
    assert first.before is not None
    assert first.after is not None
    assert first.before.nonzero > 1.5 * first.after.nonzero
    assert first.after.nonzero == report.layers[0].nonzero
    # The figures are the estimator's: of the graph as it was, and of the one that was compiled.
    graph = capture(model, data.example(2))
    without = estimate(lower(Recipe([quantize]).run(graph, data).graph), target)
    assert first.before.csynth.dsp == without.layers[0].csynth.dsp
    assert first.after.csynth.dsp == report.layers[0].csynth.dsp
    assert halved.before["dsp"] > halved.after["dsp"] == report.total.csynth.dsp.value
    text = report.to_text()
    assert "pass halve, before -> after" in text
    table = text.partition("pass halve, before -> after")[2].split("\n\n")[1]
    (row,) = (line for line in table.splitlines() if line.startswith("0 ") and "->" in line)
    assert f"{first.before.csynth.dsp} -> {first.after.csynth.dsp}" in row
    assert "<h3>halve: layers before and after</h3>" in report.to_html()
    assert Report.from_json(report.to_json()) == report


def test_settings_of_layers_that_a_pass_makes_hold_from_there_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
    quantize = Quantize(layers={"0.factor1": {"weights": 5}, "0*": {"activations": 7}})
    layers: dict[str, LayerTable] = {"0.factor0": {"strategy": "resource", "reuse": 8}}
    build = compile(
        model,
        recipe=Recipe([Factorize(rank=2, include=("0",)), quantize]),
        target=Target(layers=layers),
        data=torch.randn(64, 16),
        out=tmp_path / "b",
    )
    whole, other = build.report.passes[0].layers
    assert (whole.name, other.name) == ("0", "2")
    assert other.before is not None
    assert whole.before is not None
    assert whole.after is not None
    assert other.after is not None
    assert other.before.macs == other.after.macs
    parts = {layer.name: layer for layer in build.report.layers if layer.name.startswith("0.")}
    assert [each.weights[0][:7] for each in parts.values()] == ["fixed<8", "fixed<5"]
    assert whole.before.macs == 16 * 12
    assert whole.after.macs == sum(each.macs for each in parts.values()) == 2 * (16 + 12)
    dsp = [each.csynth.dsp.value for each in parts.values()]
    assert whole.before.csynth.dsp.value > whole.after.csynth.dsp.value == sum(dsp)
    cycles = [each.latency.value for each in parts.values()]
    assert whole.after.latency.value == sum(cycles) > 8
    assert "\n0 " in build.report.to_text().partition("pass factorize, before -> after")[2]


def test_a_recipe_that_only_quantizes_is_not_estimated_twice(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    report = compile(
        model, recipe=Recipe([Quantize()]), data=torch.randn(16, 4), out=tmp_path / "b"
    ).report
    assert all(step.layers == () and "dsp" not in step.before for step in report.passes)
