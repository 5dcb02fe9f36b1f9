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

from examples.models import conv_bn, lenet5, mobilenet, resnet8


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


class Residual(nn.Module):
    """relu(body(x) + shortcut(x)), the shortcut a 1x1 convolution where shapes differ."""

    def __init__(self, body: nn.Module, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.body = body
        same = n_in == n_out and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(n_in, n_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _bottleneck(n_in: int, width: int, stride: int) -> Residual:
    body = nn.Sequential(
        conv_bn(n_in, width, 1, stride),
        nn.ReLU(),
        conv_bn(width, width, 3),
        nn.ReLU(),
        conv_bn(width, 4 * width, 1),
    )
    return Residual(body, n_in, 4 * width, stride)


def resnet50() -> nn.Module:
    """25.6 million parameters, 3.9 billion multiply-adds (stride in the first 1x1)."""
    layers: list[nn.Module] = [conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
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
