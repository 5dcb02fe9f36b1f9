"""The demonstration: two small networks for scikit-learn's digits, trained, compiled, compared."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxloom.checking import compare
from fxloom.compilation import Compilation, compile
from fxloom.data import Data
from fxloom.errors import FxloomError, ToolError
from fxloom.recipe import Recipe
from fxloom.target import Target
from fxloom.threads import one_thread

BATCH = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2
TEST_SHARE = 0.3


class Mlp(nn.Module):
    """64-64-32-32-10 with ReLU; takes images and flattens them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 64)
        self.fc2 = nn.Linear(64, 32)
        self.fc3 = nn.Linear(32, 32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.fc1(x.flatten(1)))
        x = functional.relu(self.fc2(x))
        x = functional.relu(self.fc3(x))
        logits: Tensor = self.head(x)
        return logits


class ResidualCnn(nn.Module):
    """Two convolutions, one inside a residual connection, batch norm, max and average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.block1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.block1_norm = nn.BatchNorm2d(8)
        self.block2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.block2_norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.conv = nn.Conv2d(8, 16, 3, padding=1)
        self.average = nn.AvgPool2d(2)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem_norm(self.stem(x)))
        y = functional.relu(self.block1_norm(self.block1(x)))
        y = self.block2_norm(self.block2(y))
        x = self.pool(functional.relu(x + y))
        x = self.average(functional.relu(self.conv(x)))
        logits: Tensor = self.head(x.flatten(1))
        return logits


@dataclass(frozen=True, slots=True)
class Network:
    """One of the two, and how long it trains."""

    name: str
    make: Callable[[], nn.Module]
    epochs: int


NETWORKS = (Network("mlp", Mlp, 60), Network("cnn", ResidualCnn, 30))


@dataclass(frozen=True)
class DemoResult:
    """One network, compiled. mismatches: integers that differ between simulator and C simulation
    over all test images; None, with the reason, where it could not run."""

    name: str
    build: Compilation
    images: int
    mismatches: int | None
    reason: str = ""


def digits(seed: int = 0) -> Data:
    """1,257 training and 540 test images of 8 x 8 pixels from 0 to 1, stratified by digit.

    Raises FxloomError where scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise FxloomError(
            "the demo needs scikit-learn for its images: pip install 'fxloom[demo]'"
        ) from None
    images, labels = load_digits(return_X_y=True)
    x: npt.NDArray[np.float32] = (images.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(
        x, labels, test_size=TEST_SHARE, random_state=seed, stratify=labels
    )
    return Data(x_train, y_train, x_test, y_test)


def train(network: Network, data: Data, seed: int = 0, epochs: int | None = None) -> nn.Module:
    """The trained network, in eval mode; the same seed gives the same weights.

    AdamW with a cosine schedule. The random state of the caller is left alone.
    """
    with one_thread():
        return _train(network, data, seed, epochs)


def _train(network: Network, data: Data, seed: int, epochs: int | None) -> nn.Module:
    count = network.epochs if epochs is None else epochs
    x, y = data.example(10**6), data.labels()
    assert isinstance(x, Tensor)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network.make().train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = count * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(count):
        order = torch.randperm(len(x), generator=generator)
        for start in range(0, len(x), BATCH):
            picked = order[start : start + BATCH]
            optimizer.zero_grad()
            functional.cross_entropy(model(x[picked]), y[picked]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model.eval()


def run_demo(
    out: str | Path,
    seed: int = 0,
    quick: bool = False,
    progress: Callable[[str], None] | None = None,
    recipe: Recipe | None = None,
    target: Target | None = None,
) -> Iterator[DemoResult]:
    """Train, compile and check both networks, one result after the other.

    out: gets a build directory for each. quick: a tenth of the training. The C simulation is left
    out, with a reason, where g++ is missing.
    """
    tell = progress or (lambda text: None)
    data = digits(seed)
    images = test_images(data)
    goal = target or Target(part="xczu9eg")
    for network in NETWORKS:
        tell(f"{network.name}: train")
        epochs = max(1, network.epochs // 10) if quick else network.epochs
        model = train(network, data, seed, epochs)
        build = compile(
            model,
            None,
            recipe,
            goal,
            data,
            Path(out) / network.name,
            lambda text, name=network.name: tell(f"{name}: {text}"),  # type: ignore[misc]
        )
        tell(f"{network.name}: C simulation of {len(images)} images (g++ takes some seconds)")
        try:
            found, _ = compare(build, "test images", images)
        except ToolError as fault:
            if fault.exit_code is not None:
                raise
            yield DemoResult(network.name, build, len(images), None, str(fault))
        else:
            yield DemoResult(network.name, build, len(images), found.mismatches)


def test_images(data: Data) -> npt.NDArray[Any]:
    """All test images, in order."""
    (images,) = data.batches("test", 10**6)
    assert isinstance(images, Tensor)
    return images.numpy()
