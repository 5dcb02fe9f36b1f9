"""Models of indices, from data in whatever type they are to the answers of a build."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import fxloom


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
