"""The networks that surveys of compression compare on, in plain PyTorch, and their published sizes.

Those for ImageNet as their authors' Caffe models have them: AlexNet in two groups, GoogLeNet's main
branch, stride in the first 1x1 of ResNet-50's blocks. Local response normalisation is left out: it
has no weights and no multiplications of matrices, and nothing here depends on trained weights.
Published sizes count weights, biases, scales and shifts; multiply-adds are of one image.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.models import Case, resnet50, vgg16
from examples.models import conv_bn

MILLION, BILLION = 1e6, 1e9
WITHIN = 0.01
"""How far counts may be from published ones."""
CLASSES = 1000


@dataclass(frozen=True, slots=True)
class Count:
    """A published size. digit: what its last digit is worth, so that ours may be half of it away;
    doubt: why it cannot be right, which is said instead of holding ours against it."""

    value: float
    source: str
    digit: float = 0.0
    doubt: str = ""

    def agrees(self, ours: float) -> bool:
        """Whether ours is within a hundredth, or is the same number in as many digits."""
        return abs(ours - self.value) <= max(WITHIN * self.value, self.digit / 2)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network, what it reads, and its published parameters and multiply-adds."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    parameters: Count | None = None
    macs: Count | None = None

    def case(self) -> Case:
        """With the same weights and inputs every time."""
        return Case(self.name, self.make, self.shape, 1, 0, 0, None)


def alexnet(groups: int = 2) -> nn.Module:
    """Krizhevsky et al. 2012; groups: of its 2nd, 4th and 5th convolution."""
    layers: list[nn.Module] = [nn.Conv2d(3, 96, 11, 4), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(96, 256, 5, padding=2, groups=groups), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(384, 384, 3, padding=1, groups=groups), nn.ReLU()]
    layers += [nn.Conv2d(384, 256, 3, padding=1, groups=groups), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Flatten(), nn.Linear(256 * 36, 4096), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, CLASSES))


def vgg16_average() -> nn.Module:
    """VGG-16's convolutions, the average of each channel and one linear layer (Luo et al. 2017,
    ThiNet-GAP, before filters are removed)."""
    kept = list(vgg16())[:30]  # type: ignore[call-overload]
    return nn.Sequential(*kept, nn.AvgPool2d(14), nn.Flatten(), nn.Linear(512, CLASSES))


def _conv(n_in: int, n_out: int, size: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_in, n_out, size, stride, size // 2), nn.ReLU())


class Inception(nn.Module):
    """Four branches side by side: 1x1; 1x1 and 3x3; 1x1 and 5x5; maxima and 1x1."""

    def __init__(self, n_in: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, to_three, three, to_five, five, pooled = widths
        self.one = _conv(n_in, one, 1)
        self.three = nn.Sequential(_conv(n_in, to_three, 1), _conv(to_three, three, 3))
        self.five = nn.Sequential(_conv(n_in, to_five, 1), _conv(to_five, five, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), _conv(n_in, pooled, 1))
        self.n_out = one + three + five + pooled

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], 1)


_INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64), "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64), "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128), "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip


class GoogLeNet(nn.Module):
    """Szegedy et al. 2014, table 1. auxiliary: with the two classifiers that only training has."""

    def __init__(self, auxiliary: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, ceil_mode=True), _conv(64, 64, 1),
            _conv(64, 192, 3), nn.MaxPool2d(3, 2, ceil_mode=True),
        )  # fmt: skip
        n_in = 192
        for name, widths in _INCEPTIONS.items():
            block = Inception(n_in, widths)
            self.add_module(f"inception_{name}", block)
            n_in = block.n_out
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.head = nn.Sequential(nn.AvgPool2d(7), nn.Flatten(), nn.Linear(n_in, CLASSES))
        self.auxiliary = nn.ModuleDict()
        for name, width in (("4a", 512), ("4d", 528)) if auxiliary else ():
            self.auxiliary[name] = nn.Sequential(
                nn.AvgPool2d(5, 3), _conv(width, 128, 1), nn.Flatten(),
                nn.Linear(128 * 16, 1024), nn.ReLU(), nn.Linear(1024, CLASSES),
            )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        x = self.stem(x)
        others = []
        for name in _INCEPTIONS:
            x = getattr(self, f"inception_{name}")(x)
            if name in self.auxiliary:
                others.append(self.auxiliary[name](x))
            if name in ("3b", "4e"):
                x = self.pool(x)
        return (self.head(x), *others) if others else self.head(x)


_SEPARABLE = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5,
    (1024, 2), (1024, 1),
)  # fmt: skip


def mobilenet_v1(width: float = 1.0, size: int = 224) -> nn.Module:
    """Howard et al. 2017, table 1. width: share of all channels; size: of the image."""
    n_in = int(32 * width)
    layers: list[nn.Module] = [conv_bn(3, n_in, 3, 2), nn.ReLU()]
    for channels, stride in _SEPARABLE:
        n_out = int(channels * width)
        layers += [conv_bn(n_in, n_in, 3, stride, groups=n_in), nn.ReLU()]
        layers += [conv_bn(n_in, n_out, 1), nn.ReLU()]
        n_in = n_out
    return nn.Sequential(*layers, nn.AvgPool2d(size // 32), nn.Flatten(), nn.Linear(n_in, CLASSES))


_SZE = "Sze et al. 2017, arXiv 1703.09039, table II"
_HOWARD = "Howard et al. 2017, arXiv 1704.04861, tables 6 and 7"
_SLIM = "tensorflow/models, research/slim/nets/mobilenet_v1.md"
_ONE_TOWER = "nerox8664/awesome-computer-vision-models, README.md"
_LUO = "Roll920/ThiNet_Code, README.md (FLOPs there are two a multiply-add)"
_SIMONYAN = "Simonyan, Zisserman 2014, arXiv 1409.1556, table 2, with all digits"
_CAFFE = "Caffe's bvlc_googlenet, as it is usually quoted"

_OF_WIDTH = {1.0: 4.24, 0.75: 2.59, 0.5: 1.34, 0.25: 0.47}
_OF_BOTH = {
    1.0: (569, 418, 291, 186),
    0.75: (317, 233, 162, 104),
    0.5: (150, 110, 77, 49),
    0.25: (41, 34, 21, 14),
}
_OF_PAPER = {(1.0, 224): 569, (1.0, 192): 418, (1.0, 160): 290, (1.0, 128): 186, (0.75, 224): 325,
             (0.5, 224): 149, (0.25, 224): 41}  # fmt: skip
_DOUBTS = {
    (0.75, 0): "its source has 317 at 224, where the paper has 325",
    (
        0.25,
        192,
    ): "more than the square of the resolution allows beside 41 and 21",
}
RESOLUTIONS = (224, 192, 160, 128)


def _mobilenets() -> Iterable[Architecture]:
    for width, counts in _OF_BOTH.items():
        for size, count in zip(RESOLUTIONS, counts, strict=True):
            if paper := _OF_PAPER.get((width, size)):
                macs = Count(paper * MILLION, _HOWARD, MILLION)
            else:
                doubt = _DOUBTS.get((width, size), _DOUBTS.get((width, 0), ""))
                macs = Count(count * MILLION, _SLIM, MILLION, doubt)
            yield Architecture(
                f"MobileNet-v1 {width:g} at {size}",
                partial(mobilenet_v1, width, size),
                (3, size, size),
                Count(_OF_WIDTH[width] * MILLION, _SLIM),
                macs,
            )


IMAGENET = (
    Architecture(
        "AlexNet",
        alexnet,
        (3, 227, 227),
        Count(60.97 * MILLION, _SZE),
        Count(724 * MILLION, _SZE),
    ),
    Architecture(
        "AlexNet, one group",
        partial(alexnet, 1),
        (3, 227, 227),
        Count(62.3 * MILLION, _ONE_TOWER),
        Count(1132.33 * MILLION, _ONE_TOWER),
    ),
    Architecture(
        "VGG-16",
        vgg16,
        (3, 224, 224),
        Count(138.358 * MILLION, _SIMONYAN),
        Count(15.470 * BILLION, _LUO),
    ),
    Architecture(
        "GoogLeNet",
        GoogLeNet,
        (3, 224, 224),
        Count(6.99 * MILLION, _CAFFE),
        Count(1.58 * BILLION, _CAFFE),
    ),
    Architecture(
        "ResNet-50",
        resnet50,
        (3, 224, 224),
        Count(25.557 * MILLION, _LUO),
        Count(3.858 * BILLION, _LUO),
    ),
    *_mobilenets(),
)
