"""code_weights: everything is really encoded, decoded and compared, and the build has the file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fxloom
from fxloom import Recipe
from fxloom.data import Data
from fxloom.errors import RecipeError, WeightsError
from fxloom.passes import CodeWeights, Prune, Quantize
from fxloom.storage_table import storage_rows
from fxloom.weight_file import read_coded
from fxloom.weight_storage import storage_of_file


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 10)).eval()


def data() -> Data:
    return Data(torch.randn(64, 20, generator=torch.Generator().manual_seed(1)))


RECIPE = Recipe([Prune(sparsity=0.8, scope="layer"), Quantize(weights=4), CodeWeights()])


def test_the_summary_is_what_a_file_takes(tmp_path: Path) -> None:
    graph = fxloom.capture(net(), data().x_train[:2])
    result = RECIPE.run(graph, data())
    summary = result.steps[-1].summary
    assert not result.steps[-1].modified
    fxloom.save_weights(result.graph, tmp_path / "w")
    found = storage_of_file(tmp_path / "w")
    assert summary["huffman_bits"] == 8 * found.coded_bytes
    tensors = summary["tensors"]
    assert isinstance(tensors, dict)
    assert set(tensors) == {"0.weight", "2.weight", "biases and other vectors"}
    assert tensors["0.weight"]["kept"] == int(
        result.graph.get_parameter("0.weight").count_nonzero()
    )
    (remark,) = summary["remarks"]  # type: ignore[misc]
    assert f"take {summary['huffman_bits']:,} bits" in remark
    assert "all were encoded, decoded and compared" in remark


def test_float_weights_of_many_values_are_as_large_as_before() -> None:
    graph = fxloom.capture(net(), data().x_train[:2])
    result = CodeWeights()(graph)
    assert result.graph is graph
    parameters = sum(p.numel() for p in graph.parameters())
    assert result.summary["huffman_bits"] == 32 * parameters


def test_what_is_excluded_is_stored_as_it_is(tmp_path: Path) -> None:
    graph = RECIPE.run(fxloom.capture(net(), data().x_train[:2]), data()).graph
    for keys, coded in (
        ({"exclude": ("2",)}, {"0.weight", "0.bias"}),
        ({"include": ("*.weight",)}, {"0.weight", "2.weight"}),
        ({"include": ("0*",), "exclude": ("0.bias",)}, {"0.weight"}),
    ):
        written = list(CodeWeights(**keys).coded(graph))
        kinds = {w.entry.name: w.entry.coded["values"].coding for w in written}
        assert {name for name, kind in kinds.items() if kind == "coded"} == coded


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    graph = fxloom.capture(net(), data().x_train[:2])
    with pytest.raises(RecipeError, match=r"code_weights: exclude: fc: unknown tensor\."):
        CodeWeights(exclude=("fc",))(graph)
    with pytest.raises(RecipeError, match=r"include: 0.wieght: unknown tensor. Did you mean 0.we"):
        CodeWeights(include=("0.wieght",))(graph)


@pytest.mark.parametrize("value", [-1, 17, "2"])
def test_a_width_of_run_lengths_is_0_to_16(value: object) -> None:
    with pytest.raises(RecipeError, match="index_bits: required"):
        CodeWeights(index_bits=value)  # type: ignore[arg-type]


def test_a_tensor_that_no_file_can_hold_is_named() -> None:
    graph = fxloom.capture(net(), data().x_train[:2])
    graph.register_buffer("odd", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(WeightsError, match="odd: required a dense tensor of one of"):
        CodeWeights()(graph)


def test_the_build_has_coded_weights_and_a_coded_program(tmp_path: Path) -> None:
    builds = {
        name: fxloom.compile(net(), data=data(), recipe=recipe, out=tmp_path / name)
        for name, recipe in (("coded", RECIPE), ("plain", Recipe(RECIPE.passes[:-1])))
    }
    assert builds["plain"].weights is None
    coded = builds["coded"]
    assert coded.weights == tmp_path / "coded" / "weights.safetensors"
    opened = fxloom.open_build(tmp_path / "coded")
    assert opened.program.digest() == builds["plain"].program.digest()
    sizes = [(tmp_path / name / "program.fxloom").stat().st_size for name in builds]
    assert sizes[0] < sizes[1]
    graph = RECIPE.run(fxloom.capture(net(), data().x_train[:2]), data()).graph
    loaded = fxloom.load_weights(coded.weights, graph)
    x = data().x_train
    assert np.array_equal(fxloom.simulate(fxloom.lower(loaded), x), coded.simulate(x))
    summary = coded.report.passes[-1].summary
    nbytes = sum(written.nbytes for written in read_coded(coded.weights))
    assert summary["huffman_bits"] == 8 * nbytes
    assert sum(row.huffman_bits for row in coded.report.storage) == 8 * nbytes
    of_program = builds["plain"].report.storage
    assert of_program == storage_rows(coded.program)
    for row, other in zip(coded.report.storage[:2], of_program[:2], strict=True):
        assert (row.weights, row.kept, row.values) == (other.weights, other.kept, other.values)
    content = coded.weights.read_bytes()
    coded.weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(fxloom.FxloomError, match=r"weights.safetensors: required SHA-256"):
        fxloom.open_build(tmp_path / "coded")
