"""Recipes: TOML in, TOML out, and the order and checks of a run."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.fx import Graph, GraphModule, symbolic_trace

import fxloom.passes as passes_package
from fxloom.data import Data
from fxloom.errors import DataError, RecipeError, UnsupportedLayer
from fxloom.recipe import Pass, PassResult, Recipe, count_parameters


@dataclass(frozen=True)
class Scale:
    """Multiplies all parameters."""

    name: ClassVar[str] = "scale"
    factor: float = 2.0
    seed: int | None = None
    layers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.factor < 0:
            raise RecipeError(f"factor: required 0 or more, got {self.factor}")

    def __call__(self, graph: GraphModule, data: Data | None = None) -> PassResult:
        state = {name: p.detach() * self.factor for name, p in graph.named_parameters()}
        copied = GraphModule(nn.Module(), torch.fx.Graph()) if not state else _with(graph, state)
        return PassResult(copied, True, {"scaled": len(state)})


@dataclass(frozen=True)
class Calibrate:
    """Does nothing, but wants data for it."""

    name: ClassVar[str] = "calibrate"
    needs_data: ClassVar[bool] = True
    samples: int

    def __call__(self, graph: GraphModule, data: Data | None = None) -> PassResult:
        return PassResult(graph, False, {})


@dataclass(frozen=True)
class Refuse:
    name: ClassVar[str] = "refuse"
    method: str = "loudly"

    def __call__(self, graph: GraphModule, data: Data | None = None) -> PassResult:
        if self.method == "in place":
            return PassResult(graph, True, {})
        raise UnsupportedLayer(["act (aten.mish): no lowering"])


def _with(graph: GraphModule, state: Mapping[str, torch.Tensor]) -> GraphModule:
    root = nn.Linear(2, 2)
    root.load_state_dict({name.removeprefix("0."): t for name, t in state.items()})
    return symbolic_trace(nn.Sequential(root))


REGISTRY = {cls.name: f"{__name__}:{cls.__name__}" for cls in (Scale, Calibrate, Refuse)}


@pytest.fixture(autouse=True)
def graph_module(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for the checks of fxloom.graph; returns which were called."""
    calls: list[str] = []

    def refresh_shapes(graph_module: GraphModule) -> None:
        assert isinstance(graph_module, GraphModule)
        calls.append("refresh_shapes")

    def lint_origins(graph: Graph) -> None:
        assert isinstance(graph, Graph)
        calls.append("lint_origins")

    fake = SimpleNamespace(refresh_shapes=refresh_shapes, lint_origins=lint_origins)
    monkeypatch.setitem(sys.modules, "fxloom.graph", fake)
    monkeypatch.setitem(sys.modules, __name__, SimpleNamespace(**globals()))
    return calls


@pytest.fixture
def graph() -> GraphModule:
    return symbolic_trace(nn.Sequential(nn.Linear(2, 2)))


def parse(text: str) -> Recipe:
    return Recipe.parse(text, "recipe.toml", REGISTRY)


def test_written_recipe_reads_back_equal() -> None:
    recipe = Recipe([Scale(0.1 + 0.2, layers={'odd "name".*': {"a": 1e-30}}), Calibrate(8)])
    assert parse(recipe.to_toml()) == recipe
    assert parse(recipe.to_toml()).to_toml() == recipe.to_toml()
    assert "factor = 0.30000000000000004" in recipe.to_toml()


def test_every_key_is_written_but_none() -> None:
    assert Recipe([Scale()]).to_toml() == ('[[pass]]\nname = "scale"\nfactor = 2.0\nlayers = {}\n')


def test_unwritable_value_is_named() -> None:
    recipe = Recipe([Scale(layers={"a": object()})])  # type: ignore[dict-item]
    with pytest.raises(
        RecipeError, match=r"pass 1 \(scale\): layers: required what TOML can hold, got"
    ):
        recipe.to_toml()


def test_all_faults_are_listed_with_their_place() -> None:
    with pytest.raises(RecipeError) as caught:
        parse(
            "version = 1\n"
            '[[pass]]\nname = "scael"\n'
            '[[pass]]\nname = "scale"\nfactor = "2"\nfaktor = 2\n'
            '[[pass]]\nname = "calibrate"\n'
            '[[pass]]\nname = "scale"\nfactor = -1.0\n'
            "[[pass]]\nfactor = 3\n"
            "[[pass]]\nname = 3\n"
        )
    assert str(caught.value).splitlines() == [
        "recipe.toml: version: unknown table. Allowed: pass",
        "recipe.toml: pass 1: scael: unknown pass. Did you mean scale? "
        "Allowed: scale, calibrate, refuse",
        "recipe.toml: pass 2 (scale): faktor: unknown key. Did you mean factor? "
        "Allowed: name, factor, seed, layers",
        'recipe.toml: pass 2 (scale): factor: required a number, got "2" (text)',
        "recipe.toml: pass 3 (calibrate): samples: required, but missing",
        "recipe.toml: pass 4 (scale): factor: required 0 or more, got -1.0",
        "recipe.toml: pass 5: name: required, but missing. Known: scale, calibrate, refuse",
        "recipe.toml: pass 6: name: required text, got 3",
    ]


def test_data_may_have_any_of_their_usual_forms() -> None:
    graph = symbolic_trace(nn.Linear(3, 2))
    assert Recipe([Calibrate(8)]).run(graph, torch.rand(20, 3)).steps[0].name == "calibrate"
    with pytest.raises(DataError):
        Recipe([Calibrate(8)]).run(graph, 7)


@pytest.mark.parametrize("text", ["", "# nothing\n", "pass = []"])
def test_empty_recipe_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="no passes"):
        parse(text)


@pytest.mark.parametrize("text", ['[pass]\nname = "scale"', "pass = 1", "pass = [1]"])
def test_single_brackets_are_explained(text: str) -> None:
    with pytest.raises(RecipeError, match=r"required \[\[pass\]\] tables"):
        parse(text)


def test_recipe_of_other_things_is_refused() -> None:
    with pytest.raises(RecipeError, match="no passes"):
        Recipe([])
    with pytest.raises(RecipeError, match="pass 2: required a pass, got 'scale'"):
        Recipe([Scale(), "scale"])  # type: ignore[list-item]
    with pytest.raises(RecipeError, match="pass 1: required a pass, got <class"):
        Recipe([Scale])  # type: ignore[list-item]


def test_load_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        Recipe.load(tmp_path / "none.toml")
    path = tmp_path / "recipe.toml"
    path.write_text('[[pass]]\nname = "scale"\n')
    assert Recipe.load(path, REGISTRY) == Recipe([Scale()])
    path.write_text("[[pass]\n")
    with pytest.raises(RecipeError, match=r"recipe\.toml: not valid TOML.*line 1"):
        Recipe.load(path)


def test_default_registry_is_that_of_the_passes() -> None:
    with pytest.raises(RecipeError, match="Did you mean quantize"):
        Recipe.parse('[[pass]]\nname = "quantise"')
    assert {"fold_batchnorm", "quantize"} <= set(passes_package.names())


def test_run_checks_each_graph_and_counts(graph: GraphModule, graph_module: list[str]) -> None:
    before = {name: p.clone() for name, p in graph.named_parameters()}
    told: list[str] = []
    result = Recipe([Scale(0.5), Scale(0.0)]).run(graph, progress=told.append)
    assert told == ["1/2 scale", "2/2 scale"]
    assert graph_module == ["refresh_shapes", "lint_origins"] * 2
    assert [step.after["nonzero"] for step in result.steps] == [6, 0]
    assert result.steps[1].before == {"parameters": 6, "nonzero": 6}
    assert result.steps[0].summary == {"scaled": 2}
    assert len(result.seconds) == 2
    assert all(torch.equal(before[name], p) for name, p in graph.named_parameters())


def test_pass_that_does_nothing_is_not_checked(graph: GraphModule, graph_module: list[str]) -> None:
    result = Recipe([Calibrate(1)]).run(graph, Data(torch.ones(1, 2)))
    assert result.graph is graph
    assert not result.steps[0].modified
    assert graph_module == []


def test_missing_data_is_reported_before_anything_runs(graph: GraphModule) -> None:
    told: list[str] = []
    with pytest.raises(RecipeError, match=r"pass 2 \(calibrate\): required data, got none"):
        Recipe([Scale(), Calibrate(1)]).run(graph, progress=told.append)
    assert told == []


def test_error_of_a_pass_carries_its_place(graph: GraphModule) -> None:
    with pytest.raises(UnsupportedLayer) as caught:
        Recipe([Scale(), Refuse()]).run(graph)
    assert caught.value.__notes__ == ["in pass 2 (refuse) of the recipe"]


def test_pass_that_changes_its_input_is_refused(graph: GraphModule) -> None:
    with pytest.raises(RecipeError, match="changed its input"):
        Recipe([Refuse("in place")]).run(graph)


def test_tied_parameters_count_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.detach())  # same storage, other object
    assert count_parameters(symbolic_trace(model)) == {"parameters": 4, "nonzero": 4}


def test_examples_satisfy_the_protocol() -> None:
    step: Pass = Scale()
    assert isinstance(step, Pass)
