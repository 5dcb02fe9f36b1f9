"""Networks that people put on FPGAs, in plain PyTorch, with random weights.

    python examples/run.py lenet5

takes one of them (or all, as `make examples` does) from capture to the C simulation of its project.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


def jet_tagger() -> nn.Module:
    """16-64-32-32-5, the jet tagger of Duarte et al. 2018, with its softmax."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise((16, 64, 32, 32, 5)):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1], nn.Softmax(-1))


def lenet5() -> nn.Module:
    """LeNet-5 with ReLU (LeCun et al. 1998)."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def svhn_cnn() -> nn.Module:
    """Three convolutions (16, 16, 24) and 42-64-10 (Aarrestad et al. 2021)."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise((3, 16, 16, 24)):
        layers += [nn.Conv2d(n_in, n_out, 3, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    layers += [nn.Flatten()]
    for n_in, n_out in pairwise((96, 42, 64)):
        layers += [nn.Linear(n_in, n_out, bias=False), nn.BatchNorm1d(n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10), nn.Softmax(-1))


def conv_bn(n_in: int, n_out: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the image's size, and its batch norm."""
    conv = nn.Conv2d(n_in, n_out, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_out))


class Residual(nn.Module):
    """relu(body(x) + shortcut(x)), the shortcut a 1x1 convolution where shapes differ."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(n_in, n_out, 3, stride), nn.ReLU(), conv_bn(n_out, n_out, 3)
        )
        same = n_in == n_out and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(n_in, n_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet8() -> nn.Module:
    """Image classification of MLPerf Tiny (CIFAR-10)."""
    return nn.Sequential(
        conv_bn(3, 16, 3), nn.ReLU(), Residual(16, 16, 1), Residual(16, 32, 2),
        Residual(32, 64, 2), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def mobilenet() -> nn.Module:
    """Visual wake words of MLPerf Tiny: MobileNetV1 with a quarter of the channels, 96x96."""
    layers: list[nn.Module] = [conv_bn(3, 8, 3, 2), nn.ReLU()]
    n_in = 8
    widths = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5)
    for n_out, stride in (*widths, (256, 2), (256, 1)):
        layers += [conv_bn(n_in, n_in, 3, stride, groups=n_in), nn.ReLU()]
        layers += [conv_bn(n_in, n_out, 1), nn.ReLU()]
        n_in = n_out
    return nn.Sequential(*layers, nn.AvgPool2d(3), nn.Flatten(), nn.Linear(n_in, 2))


def autoencoder() -> nn.Module:
    """Anomaly detection of MLPerf Tiny: 640 - 4 x 128 - 8 - 4 x 128 - 640."""
    sizes = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 640))


class DsCnn(nn.Module):
    """Keyword spotting of MLPerf Tiny; its first convolution pads as TensorFlow's 'same'."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 64, (10, 4), 2, bias=False)
        self.norm = nn.BatchNorm2d(64)
        blocks: list[nn.Module] = []
        for _ in range(4):
            blocks += [conv_bn(64, 64, 3, groups=64), nn.ReLU(), conv_bn(64, 64, 1), nn.ReLU()]
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AvgPool2d((25, 5))
        self.head = nn.Linear(64, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(functional.pad(x, (1, 1, 4, 5)))))
        return self.head(self.pool(self.blocks(x)).flatten(1))


class Tagger(nn.Module):
    """A recurrent layer of 20 units over 20 particles with 6 features each (Khoda et al. 2023)."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.recurrent = kind(6, 20, batch_first=True)
        self.hidden = nn.Linear(20, 64)
        self.head = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        last = self.recurrent(x)[0][:, -1]
        return torch.sigmoid(self.head(torch.relu(self.hidden(last))))


class Transformer(nn.Module):
    """An encoder of two layers and two heads over 8 particles with 3 features each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, activation="relu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


class UNet(nn.Module):
    """Two levels, up by transposed convolutions, on 16x16 images (Ronneberger et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = conv_bn(1, 8, 3)
        self.down = conv_bn(8, 16, 3)
        self.bottom = conv_bn(16, 32, 3)
        self.up2 = nn.ConvTranspose2d(32, 16, 2, 2)
        self.merge2 = conv_bn(32, 16, 3)
        self.up1 = nn.ConvTranspose2d(16, 8, 2, 2)
        self.merge1 = conv_bn(16, 8, 3)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = torch.relu(self.enter(x))
        two = torch.relu(self.down(functional.max_pool2d(one, 2)))
        x = torch.relu(self.bottom(functional.max_pool2d(two, 2)))
        x = torch.relu(self.merge2(torch.cat([self.up2(x), two], 1)))
        x = torch.relu(self.merge1(torch.cat([self.up1(x), one], 1)))
        return self.head(x)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "jet_tagger": (jet_tagger, (16,)),
    "lenet5": (lenet5, (1, 28, 28)),
    "svhn_cnn": (svhn_cnn, (3, 32, 32)),
    "resnet8": (resnet8, (3, 32, 32)),
    "mobilenet": (mobilenet, (3, 96, 96)),
    "autoencoder": (autoencoder, (640,)),
    "ds_cnn": (DsCnn, (1, 49, 10)),
    "lstm_tagger": (partial(Tagger, nn.LSTM), (20, 6)),
    "gru_tagger": (partial(Tagger, nn.GRU), (20, 6)),
    "transformer": (Transformer, (8, 3)),
    "unet": (UNet, (1, 16, 16)),
}


def model(name: str) -> nn.Module:
    """One of MODELS in eval mode, the same weights every time, batch norms as after training."""
    torch.manual_seed(0)
    made = MODELS[name][0]().eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return made


def inputs(name: str, count: int) -> Tensor:
    """Random inputs for one of MODELS, the same every time."""
    return torch.randn(count, *MODELS[name][1], generator=torch.Generator().manual_seed(1))
