"""From a model to a build directory and back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fxloom
from fxloom.passes import Quantize
from tests.e2e.conftest import compile_net, snapshot


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(64, 6, generator=generator)
    return x, torch.randint(0, 3, (64,), generator=generator)


def test_two_compilations_in_different_places_are_the_same_bytes(
    net: Path, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("deeper") / "elsewhere" / "another name"
    compile_net(net, out)
    first, second = snapshot(pristine), snapshot(tmp_path / out)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_the_number_of_threads_is_not_in_a_build(tmp_path: Path) -> None:
    """Float sums over 784 inputs differ between 1 and 4 threads."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU())
    net.append(nn.Linear(100, 10))
    x = torch.randn(600, 784)
    threads, builds = torch.get_num_threads(), []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            fxloom.compile(net, data=(x, torch.zeros(600)), out=tmp_path / str(count))
            assert torch.get_num_threads() == count
            builds.append(snapshot(tmp_path / str(count)))
    finally:
        torch.set_num_threads(threads)
    assert [name for name in builds[0] if builds[0][name] != builds[1][name]] == []


def test_no_path_of_this_machine_is_in_a_build(net: Path, pristine: Path) -> None:
    places = [str(pristine), str(net), str(Path.home()), str(Path(fxloom.__file__).parent)]
    for path in pristine.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [place for place in places if place.encode() in content], path


def test_build_directory_carries_what_it_was_made_from(pristine: Path) -> None:
    assert {path.name for path in pristine.iterdir()} == {
        "fxloom.json",
        "hls",
        "program.fxloom",
        "recipe.toml",
        "report.html",
        "report.json",
        "samples.safetensors",
        "target.toml",
    }


def test_output_beside_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    build = fxloom.compile(model(), data=data(), out=tmp_path / "missing" / ".." / "build")
    assert build.path == tmp_path / "build"
    assert fxloom.open_build(build.path).program.digest() == build.program.digest()


def test_open_build_gives_back_what_compile_returned(tmp_path: Path) -> None:
    recipe, target = fxloom.Recipe([Quantize(weights=6)]), fxloom.Target(part="xczu7ev")
    made = fxloom.compile(model(), None, recipe, target, data(), tmp_path / "build")
    opened = fxloom.open_build(tmp_path / "build")
    assert opened.program.digest() == made.program.digest()
    assert (opened.recipe, opened.target, opened.report) == (recipe, target, made.report)
    assert np.array_equal(opened.samples[0], made.samples[0])


def test_compiled_program_is_the_quantized_graph(tmp_path: Path) -> None:
    x, y = data()
    recipe = fxloom.Recipe([Quantize()])
    build = fxloom.compile(model(), x[:2], recipe, data=(x, y), out=tmp_path / "build")
    quantized = recipe.run(fxloom.capture(model(), x[:2]), fxloom.Data(x, y)).graph
    wild = x * 8
    exact = fxloom.exact_forward(quantized, wild).numpy()
    assert np.array_equal(build.simulate(wild.numpy()), exact)


def test_progress_names_every_stage(tmp_path: Path) -> None:
    stages: list[str] = []
    fxloom.compile(model(), data=data(), out=tmp_path / "build", progress=stages.append)
    assert stages == [
        "capture",
        "pass 1/1 quantize",
        "lower",
        "compare with the float model",
        "write the project",
        "put it in place",
    ]


def test_report_measures_every_rounded_layer_against_the_float_model(tmp_path: Path) -> None:
    build = fxloom.compile(model(), data=data(), out=tmp_path / "build")
    errors = {layer.name: layer.float_error for layer in build.report.layers}
    assert list(errors) == ["0", "1", "2"]
    assert errors["0"] is None  # not rounded: its accumulator is exact
    for name in ("1", "2"):
        figure = errors[name]
        assert figure is not None
        assert figure.value is not None
        assert 0 < figure.value < 0.05


def test_wider_formats_bring_the_program_closer_to_the_float_model(tmp_path: Path) -> None:
    errors = []
    for bits in (4, 8, 16):
        recipe = fxloom.Recipe([Quantize(weights=bits, activations=bits, outputs=24)])
        build = fxloom.compile(model(), None, recipe, data=data(), out=tmp_path / "build")
        assert build.report.accuracy is not None
        errors.append(build.report.accuracy.mean_error)
    assert errors[0] > 4 * errors[1] > 100 * errors[2]


def test_compile_leaves_the_model_alone(tmp_path: Path) -> None:
    own = model().train()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    fxloom.compile(own, data=data(), out=tmp_path / "build")
    assert own.training
    assert all(torch.equal(before[name], tensor) for name, tensor in own.state_dict().items())


def test_unmatched_layer_of_a_target_is_named(tmp_path: Path) -> None:
    target = fxloom.Target(layers={"fc*": {"reuse": 2}})
    with pytest.raises(fxloom.TargetError, match=r"no layer is named fc\*. Layers: 0, 1, 2"):
        fxloom.compile(model(), data=data(), target=target, out=tmp_path / "build")
    assert list(tmp_path.iterdir()) == []


def test_neither_example_inputs_nor_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(fxloom.RecipeError, match=r"quantize.*required data"):
        fxloom.compile(model(), torch.zeros(1, 6), out=tmp_path / "build")
    with pytest.raises(fxloom.FxloomError, match="example inputs or data"):
        fxloom.compile(
            model(),
            recipe=fxloom.Recipe([fxloom.passes.Legalize()]),
            out=tmp_path / "build",
        )


@pytest.mark.parametrize("network", [nn.Identity(), nn.ReLU(), nn.Flatten()])
def test_models_without_weights_compile(network: nn.Module, tmp_path: Path) -> None:
    x = torch.rand(8, 2, 3)
    build = fxloom.compile(network, data=x, out=tmp_path / "build")
    assert build.report.total.stored_bits == 0
    assert build.report.to_text()
    assert fxloom.Report.from_json(build.report.to_json()) == build.report


def test_a_layer_that_is_always_zero_has_an_error_of_zero(tmp_path: Path) -> None:
    dead = model()
    with torch.no_grad():
        dead[0].weight.zero_()  # type: ignore[index,union-attr,operator]
        dead[0].bias.fill_(-1.0)  # type: ignore[index,union-attr,operator]
    build = fxloom.compile(dead, data=data(), out=tmp_path / "build")
    error = build.report.layers[1].float_error
    assert error is not None
    assert error.value == 0
    assert build.report.to_text()


def test_a_target_that_cannot_be_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(fxloom.TargetError, match="made by Intel"):
        fxloom.compile(
            model(), data=data(), target="10ax115", out=tmp_path / "build", progress=told.append
        )
    assert told == []
    assert list(tmp_path.iterdir()) == []
