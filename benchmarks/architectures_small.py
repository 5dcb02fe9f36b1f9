"""Networks of publications on filter pruning and Deep Compression beside those for ImageNet.

ResNets of basic blocks (He et al. 2015) for CIFAR-10, whose shortcuts have no weights where the
width doubles (option A), and ResNet-34; VGG-16 for CIFAR-10 as Li et al. 2016 have it; LeNets of
Caffe, whose published sizes count weights alone.
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from benchmarks.architectures import BILLION, CLASSES, Architecture, Count
from benchmarks.published_rates import LENET_5, LENET_300_100, Lenet
from examples.models import Residual, conv_bn


class Padded(nn.Module):
    """Every second pixel, and channels of zeros on both sides."""

    def __init__(self, more: int) -> None:
        super().__init__()
        self.more = more

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more // 2))


def resnet_cifar(depth: int) -> nn.Module:
    """Three stages of 16, 32 and 64 channels, (depth - 2) / 6 blocks each."""
    layers: list[nn.Module] = [conv_bn(3, 16, 3), nn.ReLU()]
    n_in = 16
    for width in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            block = Residual(n_in, width, 1 if n_in == width else 2)
            if n_in != width:
                block.shortcut = Padded(width - n_in)
            layers.append(block)
            n_in = width
    return nn.Sequential(*layers, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10))


def resnet34() -> nn.Module:
    """Four stages of 3, 4, 6 and 3 blocks."""
    layers: list[nn.Module] = [conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    n_in = 64
    for width, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for _ in range(count):
            layers.append(Residual(n_in, width, 1 if n_in == width else 2))
            n_in = width
    return nn.Sequential(*layers, nn.AvgPool2d(7), nn.Flatten(), nn.Linear(512, CLASSES))


def vgg16_cifar() -> nn.Module:
    """Thirteen convolutions with batch norms, then 512-512-10 with a batch norm between."""
    layers: list[nn.Module] = []
    n_in = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [conv_bn(n_in, width, 3), nn.ReLU()]
            n_in = width
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(512, 10))


_LI = "Li et al. 2016, arXiv 1608.08710, table 1"
_HAN = "Han et al. 2016, arXiv 1510.00149, tables 2 and 3"


def _li(parameters: float, macs: float) -> tuple[Count, Count]:
    return Count(parameters, _LI), Count(macs, _LI)


CIFAR = (
    Architecture("VGG-16 for CIFAR-10", vgg16_cifar, (3, 32, 32), *_li(1.5e7, 3.13e8)),
    Architecture("ResNet-56", partial(resnet_cifar, 56), (3, 32, 32), *_li(8.5e5, 1.25e8)),
    Architecture("ResNet-110", partial(resnet_cifar, 110), (3, 32, 32), *_li(1.72e6, 2.53e8)),
)
RESNET_34 = Architecture("ResNet-34", resnet34, (3, 224, 224), *_li(2.16e7, 3.64 * BILLION))
LENETS = (
    Architecture("LeNet-300-100", partial(Lenet, LENET_300_100), (1, 28, 28), Count(266_200, _HAN)),
    Architecture("LeNet-5 of Caffe", partial(Lenet, LENET_5), (1, 28, 28), Count(430_500, _HAN)),
)
"""Their counts are of weights without biases."""
