"""The architectures that are measured, with random weights.

MLP: hls4ml's jet tagger. ResNet-8 and MobileNetV1-0.25: MLPerf Tiny (image classification, visual
wake words). LeNet-5: LeCun et al. 1998. ResNet-50: He et al. 2015. VGG-16: Simonyan, Zisserman
2014.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A model to measure. batch: samples of a measurement; stock: samples for stock hls4ml."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    stock: int
    gate_torch: float
    gate_stock: float | None

    def model(self) -> nn.Module:
        """The model in eval mode, the same weights every time."""
        torch.manual_seed(0)
        model = self.make().eval()
        _settle(model)
        return model

    def inputs(self, count: int) -> Tensor:
        """Random inputs, the same every time."""
        return torch.randn(count, *self.shape, generator=torch.Generator().manual_seed(1))


def _settle(model: nn.Module) -> None:
    """Batch norms as after training, rather than the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def mlp() -> nn.Module:
    sizes = (16, 64, 32, 32, 5)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def lenet5() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def _conv(n_in: int, n_out: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the image's size, and its batch norm."""
    conv = nn.Conv2d(n_in, n_out, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out))


class Residual(nn.Module):
    """relu(body(x) + shortcut(x)), the shortcut a 1x1 convolution where shapes differ."""

    def __init__(self, body: nn.Module, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.body = body
        same = n_in == n_out and stride == 1
        self.shortcut = nn.Identity() if same else _conv(n_in, n_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _basic(n_in: int, n_out: int, stride: int) -> Residual:
    body = nn.Sequential(_conv(n_in, n_out, 3, stride), nn.ReLU(), _conv(n_out, n_out, 3))
    return Residual(body, n_in, n_out, stride)


def _bottleneck(n_in: int, width: int, stride: int) -> Residual:
    body = nn.Sequential(
        _conv(n_in, width, 1, stride),
        nn.ReLU(),
        _conv(width, width, 3),
        nn.ReLU(),
        _conv(width, 4 * width, 1),
    )
    return Residual(body, n_in, 4 * width, stride)


def resnet8() -> nn.Module:
    return nn.Sequential(
        _conv(3, 16, 3),
        nn.ReLU(),
        _basic(16, 16, 1),
        _basic(16, 32, 2),
        _basic(32, 64, 2),
        nn.AvgPool2d(8),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def mobilenet() -> nn.Module:
    """MobileNetV1 with a quarter of the channels, for two classes."""
    layers: list[nn.Module] = [_conv(3, 8, 3, 2), nn.ReLU()]
    n_in = 8
    widths = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5)
    for n_out, stride in (*widths, (256, 2), (256, 1)):
        layers += [_conv(n_in, n_in, 3, stride, groups=n_in), nn.ReLU()]
        layers += [_conv(n_in, n_out, 1), nn.ReLU()]
        n_in = n_out
    return nn.Sequential(*layers, nn.AvgPool2d(3), nn.Flatten(), nn.Linear(n_in, 2))


def resnet50() -> nn.Module:
    """25.6 million parameters, 3.9 billion multiply-adds (stride in the first 1x1)."""
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    n_in = 64
    for width, count, first in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(count):
            layers.append(_bottleneck(n_in, width, first if index == 0 else 1))
            n_in = 4 * width
    return nn.Sequential(*layers, nn.AvgPool2d(7), nn.Flatten(), nn.Linear(n_in, 1000))


def vgg16() -> nn.Module:
    """138 million parameters, 15.5 billion multiply-adds."""
    layers: list[nn.Module] = []
    n_in = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(n_in, width, 3, padding=1), nn.ReLU()]
            n_in = width
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(512 * 49, 4096), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000))


CASES = (
    Case("mlp", mlp, (16,), 10_000, 2_000, 0.5, 300),
    Case("lenet5", lenet5, (1, 28, 28), 1_000, 100, 0.95, None),
    Case("resnet8", resnet8, (3, 32, 32), 256, 10, 0.95, 500),
    Case("mobilenet", mobilenet, (3, 96, 96), 64, 3, 0.95, None),
)
LARGE = (
    Case("resnet50", resnet50, (3, 224, 224), 1, 0, 0, None),
    Case("vgg16", vgg16, (3, 224, 224), 1, 0, 0, None),
)
