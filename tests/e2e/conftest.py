"""A user's files and a build of them, made once."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fxloom.cli import app

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Linear(27, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(self.pool(x).flatten(1))


def make():
    torch.manual_seed(0)
    return Net()


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(48, 1, 6, 6, generator=generator)
    y = torch.randint(0, 4, (48,), generator=generator)
    return x[:32], y[:32], x[32:], y[32:]
"""

Snapshot = dict[str, tuple[int, bytes]]


def snapshot(folder: Path) -> Snapshot:
    """Mode and bytes of everything below a folder."""
    return {
        path.relative_to(folder).as_posix(): (
            path.stat().st_mode,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(folder.rglob("*"))
    }


def compile_net(folder: Path, out: Path) -> None:
    """Compile the net of folder/net.py on the command line."""
    arguments = ["compile", f"{folder}/net.py:make", "--data", f"{folder}/net.py:data"]
    result = CliRunner().invoke(app, [*arguments, "-o", str(out)])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with net.py."""
    folder = tmp_path_factory.mktemp("net")
    (folder / "net.py").write_text(NET)
    return folder


@pytest.fixture(scope="session")
def pristine(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of net.py; not to be changed."""
    out = tmp_path_factory.mktemp("pristine") / "build"
    compile_net(net, out)
    return out


@pytest.fixture
def build(pristine: Path, tmp_path: Path) -> Path:
    """A build of net.py of the test's own."""
    return Path(shutil.copytree(pristine, tmp_path / "build"))
