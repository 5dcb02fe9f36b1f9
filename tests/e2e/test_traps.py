"""Models that converters get wrong without a word: here right to the bit, or refused by name.

The list is what hls4ml 1.3's own PyTorch front end was seen to miscompile or to crash on.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxloom.backends.simulator import simulate
from fxloom.data import Data
from fxloom.errors import CaptureError, UnsupportedLayer
from fxloom.exact import exact_forward
from fxloom.frontend import capture
from fxloom.lowering import lower
from fxloom.passes.quantize import Quantize
from tests.models import Fn

IMAGE = (4, 8, 8)
VECTOR = (8,)


def linear(n: int = 8) -> nn.Module:
    return nn.Linear(8, n)


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.rnn = kind(8, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.rnn(x)[0])


class InPlaceSlice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        y[:, 0] = 0
        return y


torch.manual_seed(0)  # the models below are made once, whatever was imported before

RIGHT: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "residual taken on the input": (Fn(lambda m, x: m.fc(x) + x, fc=linear()), VECTOR),
    "dilation": (nn.Conv2d(4, 4, 3, dilation=2), IMAGE),
    "max pool ceil_mode": (nn.MaxPool2d(3, 2, ceil_mode=True), IMAGE),
    "max pool padding": (nn.MaxPool2d(3, 2, padding=1), IMAGE),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), IMAGE),
    "grouped": (nn.Conv2d(4, 4, 3, groups=2), IMAGE),
    "adaptive average": (nn.AdaptiveAvgPool2d((2, 4)), IMAGE),
    "relu6": (nn.Sequential(linear(), nn.ReLU6()), VECTOR),
    "identity": (nn.Sequential(nn.Identity(), linear()), VECTOR),
    "zero pad": (nn.ZeroPad2d(2), IMAGE),
    "reshape": (Fn(lambda m, x: x.reshape(-1, 8, 32) * 0.5), IMAGE),
    "permute": (Fn(lambda m, x: x.permute(0, 2, 3, 1)), IMAGE),
    "transpose": (Fn(lambda m, x: x.transpose(1, 2)), IMAGE),
    "mean": (Fn(lambda m, x: x.mean((2, 3))), IMAGE),
    "view with the batch size": (Fn(lambda m, x: x.view(x.size(0), -1)), IMAGE),
    "division by a number": (Fn(lambda m, x: m.fc(x) / 3, fc=linear()), VECTOR),
    "F.dropout in eval": (
        Fn(lambda m, x: functional.dropout(m.fc(x), 0.5, m.training), fc=linear()),
        VECTOR,
    ),
    "F.linear": (Fn(lambda m, x: functional.linear(x, m.fc.weight), fc=linear()), VECTOR),
    "F.avg_pool2d": (Fn(lambda m, x: functional.avg_pool2d(x, 2)), IMAGE),
    "padding same": (nn.Conv2d(4, 4, (4, 3), padding="same"), IMAGE),
    "conv1d": (nn.Conv1d(4, 4, 3), (4, 9)),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE),
    "transposed": (nn.ConvTranspose2d(4, 4, 2), IMAGE),
    "adaptive uneven": (nn.AdaptiveAvgPool2d(3), IMAGE),
    "pool dilation": (nn.MaxPool2d(2, dilation=2), IMAGE),
    "constant padding": (nn.ConstantPad2d(1, 0.5), IMAGE),
    "slice": (Fn(lambda m, x: x[:, :4]), VECTOR),
    "chunk": (Fn(lambda m, x: x.chunk(2, 1)[0]), VECTOR),
    "softmax": (nn.Sequential(linear(), nn.Softmax(-1)), VECTOR),
    "softmax of a wide range": (
        nn.Sequential(linear(), Fn(lambda m, x: 8 * x), nn.Softmax(-1)),
        VECTOR,
    ),
    "gelu": (nn.GELU(), VECTOR),
    "silu": (nn.SiLU(), VECTOR),
    "hardswish": (nn.Hardswish(), VECTOR),
    "sigmoid": (nn.Sigmoid(), VECTOR),
    "layer norm": (nn.Sequential(linear(), nn.LayerNorm(8)), VECTOR),
    "group norm": (nn.GroupNorm(2, 4), IMAGE),
    "log softmax": (nn.Sequential(linear(), nn.LogSoftmax(-1)), VECTOR),
    "division by a tensor": (Fn(lambda m, x: x / (x * x + 1)), VECTOR),
    "lstm": (Recurrent(nn.LSTM), (6, 8)),
    "gru": (Recurrent(nn.GRU), (6, 8)),
    "prelu": (nn.Sequential(linear(), nn.PReLU(8)), VECTOR),
    "in-place slice": (InPlaceSlice(), VECTOR),
    "rrelu": (nn.Sequential(linear(), nn.RReLU()), VECTOR),
    "cat of three": (Fn(lambda m, x: torch.cat([x, m.fc(x), -1 * x], 1), fc=linear()), VECTOR),
}


@pytest.mark.parametrize("name", RIGHT)
def test_trap_is_right_to_the_bit(name: str) -> None:
    torch.manual_seed(1)
    model, shape = RIGHT[name]
    model.eval()
    x = torch.randn(40, *shape)
    # 14 bits into tables: ten are 0.8% of a softmax over logits up to 16.
    quantized = Quantize(weights=12, activations=12, table_bits=14)(
        capture(model, x[:2]), Data(x_train=x)
    ).graph
    y = simulate(lower(quantized), x.numpy())
    np.testing.assert_array_equal(y, exact_forward(quantized, x).numpy())
    wanted = model(x).detach().numpy()
    np.testing.assert_allclose(y, wanted, atol=0.01 * np.abs(wanted).max())


class Attention(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    def forward(self, x: Tensor) -> Any:
        return self.attention(x, x, x, need_weights=False)[0]


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Item(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.max().item()


REFUSED: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "softmax over the batch": (nn.Softmax(0), VECTOR, "softmax.*holds the batch"),
    "conv3d": (nn.Conv3d(4, 4, 3), (4, 5, 5, 5), "only 1-D and 2-D convolution"),
    "conv of one image": (nn.Conv2d(2, 4, 3), (8, 8), "batch"),
    "pool of one image": (nn.MaxPool2d(2), (8, 8), r"needs images .* got 3 dimensions"),
    "indices of a max pool": (
        Fn(lambda m, x: functional.max_pool2d(x, 2, return_indices=True)[1] * x.mean()),
        IMAGE,
        "max_pool2d_with_indices|mean",
    ),
    "max pool over padding alone": (
        nn.MaxPool2d(2, padding=1, dilation=6),
        (4, 5, 5),
        "lies in the padding alone",
    ),
    "padding with infinity": (nn.ConstantPad2d(1, float("-inf")), IMAGE, "finite number .* -inf"),
    "padding that cuts all off": (nn.ZeroPad2d((-8, 9, 0, 0)), IMAGE, "leaves nothing"),
    "a mask of huge numbers": (
        Fn(lambda m, x: x.masked_fill(x > 0, torch.finfo(x.dtype).max)),
        VECTOR,
        r"where.* puts 3.4e\+38 beside computed values, .* up to 2\*\*32",
    ),
    "infinity before a maximum": (
        Fn(lambda m, x: x.masked_fill(x > 0, -torch.inf).amax(1, True)),
        VECTOR,
        "no format holds the mask -inf",
    ),
    "wrapped comparison": (
        Fn(lambda m, x: torch.where((x > 0).to(torch.uint8) == -255, x, 0.0)),
        VECTOR,
        "-255 is no torch.uint8, torch would wrap it",
    ),
    "bits dropped": (
        Fn(lambda m, x: (x > 0).int().to(torch.int8).to(torch.uint8).float()),
        VECTOR,
        "a conversion of torch.int.* drops bits",
    ),
    "nothing but a bound": (Fn(lambda m, x: x.clamp(min=1e30)), VECTOR, "every value 1e.30"),
    "roll over all": (Fn(lambda m, x: x.roll(1)), VECTOR, "one sample to the next"),
    "repeated batch": (Fn(lambda m, x: x.repeat(2, 1)), VECTOR, "dimension 0, which holds"),
    "mask as index": (Fn(lambda m, x: x[:, torch.arange(8) > 3]), VECTOR, "batch|mask|data"),
    "upsampled volume": (nn.Upsample(scale_factor=2), (2, 3, 3, 3), "upsample_nearest3d"),
    "batch mixing": (Fn(lambda m, x: x - x.mean(0)), VECTOR, "mean"),
    "view one": (Fn(lambda m, x: x.view(1, -1)), VECTOR, "view|reshape"),
    "local response norm": (nn.LocalResponseNorm(2), IMAGE, "avg_pool3d"),
    "attention over the batch": (Attention(batch_first=False), (4, 8), "holds the batch|batch"),
    "a row with nothing in it": (
        Fn(lambda m, x: x.masked_fill(torch.ones(8) > 0, -torch.inf).softmax(-1)),
        VECTOR,
        "leaves nothing in some row",
    ),
    "a computed mask": (
        Fn(lambda m, x: functional.scaled_dot_product_attention(x, x, x, attn_mask=x @ x.mT)),
        (4, 8),
        "a computed mask must be a condition",
    ),
    "branch": (Branch(), VECTOR, "data"),
    "item": (Item(), VECTOR, "data|item"),
    "dropout that stays on": (
        Fn(lambda m, x: functional.dropout(x, 0.5, True)),
        VECTOR,
        "dropout|random",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_trap_is_refused_by_name(name: str) -> None:
    model, shape, message = REFUSED[name]
    with pytest.raises((UnsupportedLayer, CaptureError), match=message):
        capture(model.eval(), torch.randn(2, *shape))


def test_all_unsupported_layers_are_listed_at_once() -> None:
    model = nn.Sequential(
        nn.Linear(8, 8),
        Fn(lambda m, x: x * x.prod(1, True)),
        nn.Linear(8, 8),
        Fn(lambda m, x: torch.lgamma(x)),
        Fn(lambda m, x: x * x.prod(1, True)),
    )
    with pytest.raises(UnsupportedLayer) as caught:
        capture(model, torch.randn(2, 8))
    assert len(caught.value.problems) == 3
    for layer in ("1.prod (aten.prod", "3.lgamma (aten.lgamma", "4.prod (aten.prod"):
        assert any(problem.startswith(layer) for problem in caught.value.problems)
