"""Figures of an evaluation against counts by hand, and what is judged where there are no labels."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from operator import mul
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader, TensorDataset

import fxloom
from fxloom.editing import copy_graph
from fxloom.errors import DataError, FxloomError, TargetError
from fxloom.evaluation_plot import evaluations_figure
from fxloom.evaluation_report import Evaluation, Evaluations, Quality, Stage
from fxloom.evaluation_tables import pareto_front
from fxloom.passes import Circulant, CodeWeights, Distill, Prune, Quantize, ShareWeights
from fxloom.recipe import PassResult, Recipe
from fxloom.report import Figure
from fxloom.stages import quick
from fxloom.stream_schedule import StreamSchedule

FACTORS = (
    "plain_rate",
    "coded_rate",
    "mac_speedup",
    "nonzero_mac_speedup",
    "cycle_speedup",
    "interval_speedup",
    "measured_speedup",
)


def mlp(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(*(part for each in layers for part in (each, nn.ReLU())))[:-1]


def samples(*shape: int, classes: int = 0) -> fxloom.Data:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((96, *shape)).astype(np.float32)
    y = rng.integers(0, classes, 96) if classes else None
    return fxloom.Data(x[:32], None if y is None else y[:32], x[32:], None if y is None else y[32:])


@dataclass(frozen=True)
class Halve:
    """Halves every weight of more than one dimension."""

    name: ClassVar[str] = "halve"

    def __call__(self, graph: fx.GraphModule, data: object = None) -> PassResult:
        found = copy_graph(graph)
        for name, weight in list(found.named_parameters()):
            if weight.dim() > 1:
                module, _, last = name.rpartition(".")
                setattr(found.get_submodule(module), last, nn.Parameter(weight.detach() / 2))
        return PassResult(found, True, {})


@dataclass(frozen=True)
class Renamed:
    """Gives the layer "0" another name, as passes that replace layers do."""

    name: ClassVar[str] = "renamed"
    endings: ClassVar[tuple[str, ...]] = ("tail",)

    def __call__(self, graph: fx.GraphModule, data: object = None) -> PassResult:
        found = copy_graph(graph)
        for node in found.graph.find_nodes(
            op="call_function", target=torch.ops.aten.linear.default
        ):
            node.meta["origin"] = "0.tail"
        return PassResult(found, True, {})


def test_lenet_300_100_pruned_shared_and_coded_is_what_the_file_has(tmp_path: Path) -> None:
    model, data = mlp(784, 300, 100, 10), samples(784, classes=10)
    recipe = Recipe([Prune(sparsity=0.9, scope="layer"), ShareWeights(bits=5), CodeWeights()])
    found = fxloom.evaluate(model, data, recipe)
    first, last = found.original, found.result
    assert (first.parameters, first.plain_bits) == (266_200 + 410, 32 * 266_610)
    assert (first.macs, first.nonzero_macs) == (266_200, 266_200)
    graph = recipe.run(fxloom.capture(model, torch.zeros(2, 784)), data).graph
    kept = {name: int((w != 0).sum()) for name, w in graph.named_parameters() if w.dim() > 1}
    assert list(kept.values()) == [23_520, 3_000, 100]
    assert (last.macs, last.nonzero_macs) == (266_200, 26_620)
    assert last.nonzero == 26_620 + 410
    assert last.plain_bits == 32 * 266_610  # zeros and shared weights are floats as well
    fxloom.save_weights(graph, tmp_path / "weights")
    in_file = sum(each.numel() * each.itemsize for each in load_file(tmp_path / "weights").values())
    assert last.coded_bits == 8 * in_file
    assert found.file_bytes == (tmp_path / "weights").stat().st_size
    assert found.total.coded_rate == 32 * 266_610 / (8 * in_file)
    assert found.total.space_saving == pytest.approx(1 - in_file / (4 * 266_610))
    assert found.total.nonzero_mac_speedup == 10
    assert found.total.plain_rate == found.total.mac_speedup == 1


def test_a_recipe_without_effect_has_rate_one_and_loses_nothing() -> None:
    found = fxloom.evaluate(mlp(6, 5, 3), samples(6, classes=3), Recipe([CodeWeights()]))
    for change in (*found.changes, found.total):
        values = [getattr(change, name) for name in FACTORS if name != "measured_speedup"]
        assert values == [1.0] * len(values)
        assert (change.points, change.space_saving) == (0.0, 0.0)
    quality = found.result.quality
    assert (quality.lost, quality.gained, quality.errors) == (0, 0, (0.0,))
    assert [stage.modified for stage in found.stages] == [True, False]


def test_rows_multiply_up_to_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxloom.evaluation.LEAST_SECONDS", 1e-4)
    model, data = mlp(12, 16, 16, 4), samples(12, classes=4)
    with torch.no_grad():
        model[0].weight[:, :3] = 0  # zeros that the original has, which coding saves
    passes = [Prune(sparsity=0.5), ShareWeights(bits=3), Quantize(weights=5), CodeWeights()]
    found = fxloom.evaluate(model, data, Recipe(passes), measure=True)
    assert found.changes[0].coded_rate > 1
    for name in FACTORS:
        rows = [getattr(change, name) for change in found.changes]
        assert reduce(mul, rows) == pytest.approx(getattr(found.total, name), rel=1e-12), name
    points = [change.points for change in found.changes if change.points is not None]
    assert sum(points) == pytest.approx(found.total.points, abs=1e-9)


def test_integers_count_in_their_widths_with_formats_and_binary_points() -> None:
    model, data = mlp(6, 5, 3), samples(6, classes=3)
    passes = [Quantize(weights=4, activations=6)]
    found = fxloom.evaluate(model, data, Recipe(passes))
    program = fxloom.lower(passes[0](fxloom.capture(model, torch.zeros(2, 6)), data).graph)
    constants = {each.data.size: each.value.type.width for each in program.constants.values()}
    assert sorted(constants) == [1, 3, 5, 15, 30]  # the first one is the zero of the rectifier
    assert constants[15] == constants[30] == 4
    # An input, five constants, and what rounds: the hidden values and the output.
    assert sum(instr.op.name == "requantize" for instr in program.instrs) == 2
    formats = 16 * (1 + 5 + 2)
    assert found.result.numbers == "integers"
    assert found.result.plain_bits == 4 * 45 + sum(n * constants[n] for n in (1, 3, 5)) + formats
    assert found.result.nonzero == sum(int((c.data != 0).sum()) for c in program.constants.values())
    coded = sum(8 * each.nbytes for each in CodeWeights().coded(passes[0](
        fxloom.capture(model, torch.zeros(2, 6)), data).graph))  # fmt: skip
    assert found.result.coded_bits == coded + formats


def test_circulant_blocks_count_one_number_a_diagonal_and_what_says_so() -> None:
    recipe = Recipe([Circulant(block=4)])
    found = fxloom.evaluate(mlp(8, 12), samples(8), recipe)
    assert found.result.plain_bits == 32 * (96 + 12)
    assert found.result.coded_bits == 32 * (96 // 4 + 12) + 128


class Branches(nn.Module):
    """A strided and a grouped convolution with zeros, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Conv2d(2, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2, padding=1)
        with torch.no_grad():
            self.wide.weight[0] = 0
            self.grouped.weight[:, :, 1] = 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.wide(x))
        return self.grouped(x), x.mean((2, 3))


def test_multiply_adds_without_zero_weights_and_buffers_by_hand() -> None:
    found = fxloom.evaluate(Branches().eval(), samples(2, 7, 7), Recipe([Quantize()]))
    first, last = found.original, found.result
    wide, grouped = 9 * 4 * 2 * 9, 9 * 4 * 2 * 9
    assert first.macs == last.macs == wide + grouped
    assert first.nonzero_macs == last.nonzero_macs == wide * 3 // 4 + grouped * 2 // 3
    assert first.parameters == (72 + 4) + 8 + (72 + 4)
    assert first.plain_bits == 32 * (first.parameters + 8)  # running mean and variance
    assert len(last.quality.errors) == 2
    assert "error of the outputs, in order: " in found.to_text()


def test_floats_are_judged_by_torch_and_integers_by_the_simulator() -> None:
    model, data = mlp(6, 12, 3), samples(6, classes=3)
    recipe = Recipe([Prune(sparsity=0.6), Quantize(weights=3, activations=3)])
    found = fxloom.evaluate(model, data, recipe)
    graph = fxloom.capture(model, torch.zeros(2, 6))
    x, y = torch.as_tensor(data.x_test), np.asarray(data.y_test)
    pruned = recipe.passes[0](graph, data).graph
    program = fxloom.lower(recipe.run(graph, data).graph)
    with torch.no_grad():
        outputs = [model(x).numpy(), pruned(x).numpy(), np.asarray(fxloom.simulate(program, x))]
    for stage, have in zip(found.stages, outputs, strict=True):
        assert stage.quality.accuracy == np.mean(have.argmax(1) == y)
        error = np.sqrt(np.mean((have - outputs[0]) ** 2) / np.mean(outputs[0] ** 2))
        assert stage.quality.error == pytest.approx(error, rel=1e-5)
    right = [have.argmax(1) == y for have in (outputs[0], outputs[2])]
    last = found.result.quality
    assert (last.lost, last.gained) == ((right[0] & ~right[1]).sum(), (~right[0] & right[1]).sum())


def test_tables_of_functions_count_and_are_told_apart() -> None:
    recipe = Recipe([Quantize(table_bits=6)])
    model = nn.Sequential(nn.Linear(6, 3), nn.Sigmoid())
    found, plain = (fxloom.evaluate(m, samples(6), recipe) for m in (model, model[:1]))
    assert found.original.table_bits == plain.result.table_bits == 0
    assert 64 < found.result.table_bits < 64 * 17  # entries of 16 bits and how they are stored
    assert found.result.plain_bits > plain.result.plain_bits + 64
    others = found.result.coded_bits - found.result.table_bits
    rate = found.original.plain_bits / others
    assert f"{found.result.table_bits:,} of the coded bits are tables" in found.to_text()
    assert f"all else takes {rate:.2f} times fewer bits" in found.to_text()
    more = found.result.coded_bits / found.original.plain_bits
    assert f"total: {more:.2f} times more bits than as 32-bit floats" in found.to_text()


def test_cycles_are_those_of_estimate_and_in_streams_of_the_schedule() -> None:
    model, data = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten()), samples(1, 6, 6)
    target = fxloom.Target(part="xczu9eg", io="stream")
    found = fxloom.evaluate(model, data, Recipe([Quantize(weights=6)]), target)
    graph = fxloom.capture(model, torch.zeros(2, 1, 6, 6))
    for stage, each in zip(found.stages, (quick(Quantize()), Quantize(weights=6)), strict=True):
        program = fxloom.lower(each(graph, data).graph)
        assert stage.latency == StreamSchedule(program, target).latency
        assert stage.interval == fxloom.estimate(program, target).total.interval
    assert "a schedule that simulates every pack" in found.to_text()


def test_what_has_no_rule_has_no_cycles_and_says_why() -> None:
    target = fxloom.Target(part="10ax115", backend="Quartus")
    found = fxloom.evaluate(mlp(6, 3), samples(6), Recipe([CodeWeights()]), target)
    assert found.total.cycle_speedup is None
    assert f"cycles: {found.original.latency.source}" in found.to_text()


def test_a_target_with_a_layer_that_is_not_there_is_refused() -> None:
    target = fxloom.Target(layers={"nowhere": {"reuse": 2}})
    with pytest.raises(TargetError, match="nowhere"):
        fxloom.evaluate(mlp(6, 3), samples(6), Recipe([Quantize()]), target)


def test_a_target_may_speak_of_layers_that_a_pass_makes() -> None:
    target = fxloom.Target(strategy="resource", layers={"0.tail": {"reuse": 6}})
    found = fxloom.evaluate(mlp(6, 8), samples(6), Recipe([Renamed(), Quantize()]), target)
    assert [stage.interval.value for stage in found.stages] == [2, 6, 6]


def _labels(data: fxloom.Data, labels: Callable[[int], Tensor]) -> fxloom.Data:
    x = data.x_test
    assert isinstance(x, np.ndarray)
    return fxloom.Data(data.x_train, None, x, labels(len(x)))


def test_without_labels_the_error_against_the_original_is_given() -> None:
    found = fxloom.evaluate(mlp(6, 3), samples(6), Recipe([Quantize(weights=3)]))
    assert found.total.points is None
    assert found.result.quality.error > 0.01
    assert "y_test: no labels, so no accuracy" in found.notes
    assert "accuracy  " not in found.to_text()


def test_labels_that_are_numbers_give_the_distance_to_them() -> None:
    data = _labels(samples(6), lambda n: torch.ones(n, 1))
    model = mlp(6, 1)
    found = fxloom.evaluate(model, data, Recipe([Halve()]))
    with torch.no_grad():
        y = model(torch.as_tensor(data.x_test))
        halved = y - (y - model[0].bias) / 2
    wants = [float((each - 1).square().mean().sqrt()) for each in (y, halved)]
    assert [s.quality.label_error for s in found.stages] == pytest.approx(wants, rel=1e-5)
    assert "error to labels" in found.to_text()


def test_every_place_of_an_image_may_have_a_label() -> None:
    torch.manual_seed(0)
    model, data = nn.Conv2d(1, 3, 1), samples(1, 4, 4)
    labelled = _labels(data, lambda n: torch.zeros(n, 4, 4, dtype=torch.int64))
    found = fxloom.evaluate(model, labelled, Recipe([CodeWeights()]))
    with torch.no_grad():
        met = model(torch.as_tensor(data.x_test)).argmax(1) == 0
    assert found.original.quality.accuracy == float(met.double().mean())
    assert found.original.quality.places == met.numel()
    assert "standard errors" not in found.to_text()


class Decision(nn.Module):
    """Says which class is largest."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x).argmax(1)


def test_a_model_that_decides_itself_is_compared_with_its_labels() -> None:
    model, data = Decision(), samples(6, classes=3)
    found = fxloom.evaluate(model, data, Recipe([Quantize(weights=3)]))
    graph = fxloom.capture(model, torch.zeros(2, 6))
    program = fxloom.lower(Quantize(weights=3)(graph, data).graph)
    decided = [model(torch.as_tensor(data.x_test)).numpy(), fxloom.simulate(program, data.x_test)]
    wants = [np.mean(np.asarray(each) == np.asarray(data.y_test)) for each in decided]
    assert [stage.quality.accuracy for stage in found.stages] == wants


class Endless(nn.Module):
    """No weights, and outputs that are not finite."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) * 1e38 * 1e38


def test_what_has_no_ratio_has_no_figure() -> None:
    found = fxloom.evaluate(Endless(), samples(3), Recipe([Halve()]))
    assert found.total.coded_rate is None
    assert found.result.quality.error is None
    assert Evaluation.from_json(found.to_json()) == found
    assert "worth" in found.to_text()
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    assert evaluations_figure(Evaluations((found, found))).axes


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        (lambda n: torch.full((n,), 7), "required class numbers 0 to 2, got 7 to 7"),
        (lambda n: torch.ones(n, 2), "got torch.float32 of shape [2]"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels: Callable[[int], Tensor], note: str) -> None:
    found = fxloom.evaluate(mlp(6, 3), _labels(samples(6), labels), Recipe([CodeWeights()]))
    assert found.original.quality.accuracy is None
    assert any(note in each for each in found.notes)


def test_of_several_outputs_one_is_named_for_the_labels() -> None:
    model = Branches().eval()
    data = _labels(samples(2, 7, 7), lambda n: torch.arange(n) % 4)
    silent = fxloom.evaluate(model, data, Recipe([CodeWeights()]))
    assert silent.original.quality.accuracy is None
    assert 'output = "output_0" to "output_1"' in silent.notes[0]
    named = fxloom.evaluate(model, data, Recipe([CodeWeights()]), output="output_1")
    with torch.no_grad():
        met = model(torch.as_tensor(data.x_test))[1].argmax(1) == torch.arange(64) % 4
    assert named.original.quality.accuracy == float(met.double().mean())
    with pytest.raises(DataError, match="required one of output_0, output_1, got 'output_2'"):
        fxloom.evaluate(model, data, Recipe([CodeWeights()]), output="output_2")


def test_a_loader_that_shuffles_gives_every_stage_the_same_samples() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    loader = DataLoader(TensorDataset(x, torch.arange(64) % 3), 16, shuffle=True)
    found = fxloom.evaluate(mlp(6, 3), loader, Recipe([Halve(), CodeWeights()]), samples=40)
    assert found.original.quality.errors == (0.0,)
    assert found.result.quality == found.stages[1].quality
    assert (found.samples, found.split) == (40, "train")
    assert any("training samples were judged" in note for note in found.notes)


def test_json_comes_back_equal_and_rates_must_be_those_of_the_stages() -> None:
    data = samples(6, classes=3)
    recipes = {"narrow": Recipe([Quantize(weights=3)]), "wide": Recipe([Quantize(weights=9)])}
    both = fxloom.evaluate_recipes(mlp(6, 3), data, recipes)
    assert Evaluations.from_json(both.to_json()) == both
    one = both.evaluations[0]
    assert Evaluation.from_json(one.to_json()) == one
    document = json.loads(one.to_json())
    document["total"]["coded_rate"] *= 2
    with pytest.raises(FxloomError, match="evaluation: damaged: its rates are not those"):
        Evaluation.from_json(json.dumps(document))
    with pytest.raises(FxloomError, match="required fxloom-evaluations version 1, got"):
        Evaluations.from_json(one.to_json())


def test_the_original_of_several_recipes_is_one() -> None:
    recipes = {"one": Recipe([Quantize(weights=3)]), "other": Recipe([Prune(sparsity=0.5)])}
    both = fxloom.evaluate_recipes(mlp(6, 3), samples(6, classes=3), recipes)
    alone = [fxloom.evaluate(mlp(6, 3), samples(6, classes=3), each) for each in recipes.values()]
    assert [each.stages for each in both.evaluations] == [each.stages for each in alone]
    text = both.to_text()
    assert text.index("recipe one") < text.index("recipe other")


def _evaluation(recipe: str, rate: float, accuracy: float) -> Evaluation:
    cycles = Figure(10, "cycles", "rule", "by hand")
    start = Stage("original", "float32", True, 100, 100, 3200, 3200, 0, 100, 100, cycles, cycles,
                  Quality(0.9, None, 100, 0, 0, (0.0,)))  # fmt: skip
    quality = Quality(accuracy, None, 100, 0, 0, (0.1,))
    end = replace(start, name="1 quantize", coded_bits=int(3200 / rate), quality=quality)
    return Evaluation("net", recipe, "test", 100, "part", (start, end), 1000)


MANY = Evaluations(
    tuple(
        _evaluation(name, rate, accuracy)
        for name, rate, accuracy in (
            ("best", 4, 0.9), ("small", 16, 0.8), ("beaten", 8, 0.79), ("twin", 16, 0.8),
            ("poor", 2, 0.9),
        )
    )
)  # fmt: skip


def test_a_teacher_is_of_the_recipes_that_distill() -> None:
    x = samples(6, classes=4)
    asked = []

    def teacher(inputs: Tensor) -> Tensor:
        asked.append(len(inputs))
        return torch.zeros(len(inputs), 4)

    recipes = {
        "prune": Recipe([Prune(sparsity=0.5)]),
        "distill": Recipe([Distill(finetune={"epochs": 1})]),
    }
    fxloom.evaluate_recipes(mlp(6, 8, 4), x, recipes, teacher=teacher)
    assert asked
    with pytest.raises(FxloomError, match="required a pass that learns from it"):
        fxloom.evaluate(mlp(6, 8, 4), x, recipes["prune"], teacher=teacher)


def test_no_recipe_of_the_front_is_beaten_by_another() -> None:
    assert [each.recipe for each in pareto_front(MANY)] == ["small", "twin", "best"]


def test_the_plot_names_recipes_and_its_axis_is_logarithmic_where_rates_differ_much() -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    axes = evaluations_figure(MANY).axes[0]
    assert axes.get_xscale() == "log"
    assert {text.get_text() for text in axes.texts} == {
        "original", "best", "small", "beaten", "twin", "poor"
    }  # fmt: skip
    single = evaluations_figure(Evaluations(MANY.evaluations[:1])).axes[0]
    assert single.get_xscale() == "linear"
    assert {text.get_text() for text in single.texts} == {"original", "quantize"}


def test_names_in_the_plot_are_no_formulas(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    Evaluations((_evaluation("$\\no$", 4, 0.9),)).save_png(tmp_path / "plot.png")


def test_what_cannot_be_evaluated_is_refused() -> None:
    recipe = Recipe([CodeWeights()])
    with pytest.raises(DataError, match="required data, got none"):
        fxloom.evaluate(mlp(6, 3), None, recipe)
    with pytest.raises(DataError, match="x_train: input"):
        fxloom.evaluate(mlp(6, 3), samples(5), recipe, example_inputs=torch.zeros(2, 6))
    with pytest.raises(DataError, match="samples: required a number of at least 1, got 0"):
        fxloom.evaluate(mlp(6, 3), samples(6), recipe, samples=0)
    with pytest.raises(FxloomError, match="at least one recipe"):
        fxloom.evaluate_recipes(mlp(6, 3), samples(6), {})
    with pytest.raises(FxloomError, match="required recipes by their names, a dict, got list"):
        fxloom.evaluate_recipes(mlp(6, 3), samples(6), [recipe])  # type: ignore[arg-type]
    with pytest.raises(FxloomError, match=r"required a Recipe, which .* got CodeWeights"):
        fxloom.evaluate(mlp(6, 3), samples(6), CodeWeights())  # type: ignore[arg-type]
