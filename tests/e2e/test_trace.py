"""fxloom trace: the layer and the cause that are to blame are named, by figures that add up."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from fxloom import Data, FxloomError, Recipe, Trace, capture, lower, simulate, trace
from fxloom.cli import app
from fxloom.errors import DataError, RecipeError, ToolError
from fxloom.passes import Quantize
from fxloom.trace_report import CAUSES, ValueTrace
from tests.models import make

CASES = [
    "mlp", "conv bn relu", "resnet avg 3", "softmax inside", "squeeze and excite", "two outputs",
    "attention", "comparisons", "upsampled by interpolation", "pads of signals",
]  # fmt: skip


def classes() -> tuple[nn.Sequential, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """A network, and data whose labels are its own answers: it is always right."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    ).eval()
    x = torch.rand(600, 8)
    with torch.no_grad():
        model[4].bias -= model(x).mean(0)
        y = model(x).argmax(1)
    return model, (x[:200], y[:200], x[200:], y[200:])


def traced(model: nn.Module, data: object, samples: int = 400, **options: Any) -> Trace:
    return trace(model, data, Recipe([Quantize(**options)]), samples=samples)


def by_name(found: Trace) -> dict[str, ValueTrace]:
    return {value.name: value for value in found.values}


def test_a_saturating_layer_is_named() -> None:
    model, data = classes()
    rules = {"3": {"method": "percentile"}}
    found = traced(model, data, activations=10, weights=10, layers=rules, percentile=50.0)
    assert found.worst is not None
    assert (found.worst.name, found.worst.cause) == ("3", "saturation")
    assert found.worst.saturated_high > 0.1
    assert found.worst.used[1] > found.worst.given[1]  # type: ignore[index]
    others = [value for value in found.values if value.name != "3"]
    assert all(value.saturated_high < 0.01 for value in others)
    assert "largest error of its own: 3, by saturation" in found.to_text()


def test_a_coarse_layer_is_named_and_accuracy_goes_there() -> None:
    model, data = classes()
    found = traced(model, data, activations=10, weights=10, layers={"1": {"activations": 1}})
    assert found.worst is not None
    assert found.worst.name == "1"
    assert found.first_drop is not None
    assert found.first_drop.name == "1"
    assert by_name(found)["input"].accuracy is not None
    assert by_name(found)["input"].accuracy > 0.97  # type: ignore[operator]
    assert found.float_accuracy == 1.0
    assert "accuracy goes first at 1:" in found.to_text()


def test_coarse_weights_are_told_from_coarse_activations() -> None:
    model, data = classes()
    rules = {"2": {"weights": 2}}
    found = traced(model, data, activations=12, weights=12, layers=rules, weight_rounding="nearest")
    assert found.worst is not None
    assert (found.worst.name, found.worst.cause) == ("3", "weights")
    assert found.worst.layers == ("2", "3")


def test_errors_of_exact_layers_are_inherited() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(torch.eye(4))
            layer.bias.zero_()
    x = torch.rand(300, 4)
    found = by_name(traced(model, x, inputs=4, activations=12, outputs=16, bias_correction=False))
    assert found["input"].causes["rounding"] > 0
    assert found["1"].causes["weights"] == 0
    assert found["1"].causes["inherited"] == pytest.approx(found["input"].error_rms)
    assert found["2"].own == dict.fromkeys(("weights", "rounding", "saturation", "tables"), 0.0)
    assert found["2"].error_rms == pytest.approx(found["input"].error_rms)


def test_coarse_tables_are_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 3))
    x = torch.randn(200, 6) * 3
    rules = {"1": {"activations": 2}}
    options: dict[str, Any] = {"activations": 12, "weights": 12, "method": "minmax"}
    found = by_name(traced(model, x, layers=rules, table_bits=12, **options))
    assert found["1"].cause == "tables"
    assert found["1"].causes["tables"] > 10 * found["1"].causes["inherited"]
    assert found["1"].causes["rounding"] == 0


def test_figures_are_those_of_the_float_model_and_of_the_program() -> None:
    model, data = classes()
    options: dict[str, Any] = {"weights": 4, "activations": 4, "equalize": False}
    found = traced(model, data, **options)
    graph = Quantize(**options)(capture(model, data[0][:2]), Data.of(data)).graph
    fixed = simulate(lower(graph), data[2].numpy())
    assert isinstance(fixed, np.ndarray)
    wanted = model(data[2]).detach().double().numpy()
    last = found.values[-1]
    assert last.error_rms == pytest.approx(np.sqrt(np.mean((fixed - wanted) ** 2)), rel=1e-5)
    assert last.float_rms == pytest.approx(np.sqrt(np.mean(wanted**2)), rel=1e-5)
    assert last.float_range == pytest.approx((wanted.min(), wanted.max()), rel=1e-5)
    assert found.fixed_accuracy == (fixed.argmax(1) == data[3].numpy()).mean()
    assert last.accuracy == found.fixed_accuracy
    assert found.samples == 400


def test_equalized_neurons_are_compared_with_scaled_ones() -> None:
    model, data = classes()
    with torch.no_grad():
        model[0].weight[::2] *= 8
        model[0].bias[::2] *= 8
    found = traced(model, data, activations=6, weights=6)
    assert all(value.sqnr_db > 15 for value in found.values)


@pytest.mark.parametrize("name", CASES)
def test_causes_bound_the_error(name: str) -> None:
    """They add up value by value, so their root mean squares obey the triangle inequality."""
    model, x = make(name)
    recipe = Recipe([Quantize(weights=5, activations=5)])
    found = trace(model, Data(x_train=x), recipe, example_inputs=x, samples=16)
    assert found.values
    assert len({value.name for value in found.values}) == len(found.values)
    for value in found.values:
        parts = sorted(value.causes[cause] for cause in CAUSES)
        assert value.error_rms <= sum(parts) * (1 + 1e-9)
        assert value.error_rms >= (parts[-1] - sum(parts[:-1])) * (1 - 1e-9)
        assert 0 <= value.saturated_low + value.saturated_high <= 1
        assert bool(value.causes["saturation"]) <= bool(value.saturated_low + value.saturated_high)


def test_batches_and_the_users_model_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = classes()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = json.loads(traced(model, data, activations=5).to_json())
    monkeypatch.setattr("fxloom.tracing.HELD", 2**20)
    single = json.loads(traced(model, data, activations=5).to_json())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert single["first_drop"] == whole["first_drop"]
    for one, other in zip(single["values"], whole["values"], strict=True):
        assert one["causes"] == pytest.approx(other["causes"])
        assert one["accuracy"] == other["accuracy"]


def test_data_without_labels_or_without_signal() -> None:
    model, _ = classes()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found = traced(model, torch.rand(20, 8))
    assert found.float_accuracy is None
    assert all(value.accuracy is None for value in found.values)
    assert by_name(found)["4"].sqnr_db == float("inf")
    text = found.to_text()
    assert "exact" in text
    assert "accuracy: not known" in text
    assert json.loads(found.to_json())["values"][-1]["sqnr_db"] is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"data": None}, DataError, "trace: required data"),
        ({"samples": 0}, DataError, "samples: required at least 1, got 0"),
        ({"data": torch.rand(9, 3)}, FxloomError, "."),
    ],
)
def test_what_cannot_be_traced(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    model, data = classes()
    with pytest.raises(error, match=message):
        trace(model, **{"data": data} | arguments)


def test_a_recipe_that_does_not_quantize_is_refused() -> None:
    from fxloom.passes.fold_batchnorm import FoldBatchnorm

    model, data = classes()
    with pytest.raises(RecipeError, match="required a recipe that quantizes, got the passes fold"):
        trace(model, data, Recipe([FoldBatchnorm()]))


# On the command line


def command(net: Path, *rest: str, code: int = 0) -> str:
    line = ["trace", f"{net}/net.py:make", "--data", f"{net}/net.py:data", *rest]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == code, result.output
    return result.output if code else result.stdout


def test_table_and_files(net: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    names = {form: str(tmp_path / f"trace.{form}") for form in ("json", "html", "png")}
    text = command(net, *(part for form, name in names.items() for part in (f"--{form}", name)))
    assert text.startswith("fxloom trace: 4 rounded values, 16 test samples")
    document = json.loads(Path(names["json"]).read_text())
    assert document["format"] == "fxloom-trace"
    assert [value["layers"] for value in document["values"]][1] == ["conv", "relu"]
    assert document["values"][-1]["name"] == "head"
    page = Path(names["html"]).read_text()
    assert "<svg" in page
    assert page.count("<tr") == 5
    assert Path(names["png"]).read_bytes().startswith(b"\x89PNG")


def test_plots_are_the_same_every_time_and_of_bounded_size() -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    from fxloom.plots import MOST_ROWS, trace_figure, trace_png, trace_svg

    model, data = classes()
    found = traced(model, data, activations=4)
    assert trace_png(found) == trace_png(found)
    assert trace_svg(found) == trace_svg(found)
    assert len(trace_figure(found).axes) == 4
    many = replace(found, values=found.values * MOST_ROWS)
    figure = trace_figure(many)
    assert f"{MOST_ROWS} with the lowest SQNR are shown" in figure.get_suptitle()
    assert len(figure.axes[0].get_yticks()) == MOST_ROWS


@pytest.mark.parametrize("option", ["--png", "--html"])
def test_plots_without_matplotlib_say_what_to_install(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    text = command(net, option, str(tmp_path / "file"), code=2)
    assert "pip install 'fxloom[plots]'" in text
    assert "capture" not in text
    assert not (tmp_path / "file").exists()
    model, data = classes()
    with pytest.raises(ToolError, match="plots need matplotlib"):
        traced(model, data).save_png(tmp_path / "file")


def test_bad_input_on_the_command_line(net: Path, tmp_path: Path) -> None:
    assert "required 1 or more" in command(net, "--samples", "0", code=2)
    missing = tmp_path / "missing"
    assert "no such file" in command(net, "--recipe", str(missing), code=2)
    assert "cannot be written" in command(net, "--json", str(missing / "t.json"), code=2)
    result = CliRunner().invoke(app, ["trace", f"{net}/net.py:make"])
    assert result.exit_code == 2
