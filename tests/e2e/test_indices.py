"""Models of indices, from data in whatever type they are to the answers of a build."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxloom
from fxloom.backends.simulator import simulate
from fxloom.data import Data
from fxloom.errors import DataError
from fxloom.examples import examples_of
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes.quantize import Quantize


class Tagger(nn.Module):
    """A bag of tokens, of which number 0 is none, beside plain numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(10, 4, padding_idx=0)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        there = (tokens != 0).float().unsqueeze(-1)
        return self.head((self.tokens(tokens) * there).sum(1) + x)


def test_a_model_of_indices_compiles_from_arrays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tagger()
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 10, (200, 6))
    x = rng.normal(size=(200, 4)).astype(np.float32)
    for kind in (np.int32, np.float64):  # files often hold whole numbers as floats
        data = {"x_train": (tokens.astype(kind), x), "y_train": rng.integers(0, 3, 200)}
        build = fxloom.compile(model, data=data, out=tmp_path / kind.__name__)
        got = build.simulate((tokens, x))
        wanted = model(torch.from_numpy(tokens), torch.from_numpy(x)).detach().numpy()
        assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()
        assert "select" in build.program.to_text()  # a mask chooses, it does not multiply
        assert build.report.accuracy is not None


def test_whole_numbers_stay_floats_for_a_model_of_floats(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (50, 6))
    build = fxloom.compile(nn.Linear(6, 2), data=images, out=tmp_path / "build")
    assert build.program.inputs[0].value.type.width == 8


def test_integers_that_calibration_has_not_seen_are_compared_right() -> None:
    class Classes(nn.Module):
        def forward(self, i: Tensor) -> tuple[Tensor, Tensor]:
            return nn.functional.one_hot(i, 9), (i == -3).float()

    seen, all_of_them = torch.arange(3)[:, None], torch.arange(-3, 9)[:, None]
    graph = capture(Classes(), seen)
    program = lower(Quantize()(graph, Data(x_train=seen)).graph)
    hot, is_low = simulate(program, all_of_them.numpy())
    np.testing.assert_array_equal(hot[3:], np.eye(9)[:, None])
    np.testing.assert_array_equal(is_low[:, 0], [1] + [0] * 11)


def test_data_of_zeros_and_ones_are_conditions_where_the_model_takes_those() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return torch.where(mask, x, 0.5)

    x, mask = torch.randn(40, 3), torch.rand(40, 3) > 0.5
    data = Data(x_train=(x.numpy(), mask.float().numpy()))
    examples = examples_of(Masked(), data)
    assert [each.dtype for each in examples] == [torch.float32, torch.bool]
    graph = capture(Masked(), examples)
    program = lower(Quantize(activations=16)(graph, data).graph)
    got = simulate(program, [x.numpy(), mask.numpy()])
    np.testing.assert_allclose(got, Masked()(x, mask).numpy(), atol=1e-3)
    with pytest.raises(DataError, match=r"of torch.bool, .* of torch.float32 arrived"):
        Quantize()(graph, Data(x_train=(x, 2 * mask.float())))
