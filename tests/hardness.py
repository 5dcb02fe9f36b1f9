"""Damaged files and killed processes: what the slow runs and their short versions share.

python -m tests.hardness files 1000    mutated recipes, targets, programs, weights, models
python -m tests.hardness kill 50       kill -9 of `fxloom compile` over an existing build
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

import fxloom
from fxloom import FxloomError, Recipe, Target, load_model, load_program
from fxloom.compilation import open_build
from tests import keras_files

LIMIT_S = 60
"""Seconds after which a reader hangs."""

RECIPE = """
[[pass]]
name = "quantize"
weights = 8
activations = 8
rounding = "RND"
layers = { "fc*" = { weights = 6, activations = 10 } }
"""
TARGET = """
part = "xc7z020"
clock_ns = 5.0
io = "parallel"
layers = { "fc*" = { reuse = 1 } }
"""
MODEL = """
import torch
from torch import nn


def make():
    torch.manual_seed({seed})
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def data():
    return torch.randn(40, 6), torch.zeros(40, dtype=torch.int64)
"""
TOKENS = (
    b"0 1 -1 2 65 9999999999999999999999 1e999 nan true null {} [] [[pass]] '' \" \\ = . , "
    b"as_int as_expr expr_str Symbol('s0') open('made','w') __import__('os').mknod('made') "
    b"../made use_pickle torch.ops.aten.from_file.default os.system \x00 \xff I64 F32 conv "
    b"requantize axes shape"
).split()

Reader = Callable[[Path], object]


class Net(nn.Module):
    """Something of everything that a file can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3 * 16, 4)
        self.register_buffer("offset", torch.arange(4.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One residual step and a linear layer."""
        y = torch.relu(self.norm(self.conv(x)))
        return self.fc(y.flatten(1)) + self.offset


def originals(folder: Path) -> dict[str, tuple[bytes, Reader]]:
    """A good file of every kind, and what reads it."""
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(8, 2, 4, 4)
    batch = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(net, (x,), dynamic_shapes=batch), folder / "x.pt2")
    graph = Recipe.parse(RECIPE).run(fxloom.capture(net, x), data=fxloom.Data.of(x)).graph
    fxloom.save_program(fxloom.lower(graph), folder / "x.fxloom")
    fxloom.save_program(fxloom.lower(graph), folder / "coded.fxloom", coded=True)
    fxloom.save_weights(graph, folder / "x.safetensors")

    def program(path: Path) -> object:
        loaded = load_program(path)
        shape = [0] * len(loaded.inputs[0].axes)
        for internal, axis in enumerate(loaded.inputs[0].axes):
            shape[axis] = loaded.inputs[0].value.shape[internal]
        return fxloom.simulate(loaded, np.zeros((1, *shape)))

    keras_files.write_keras(folder / "x.keras")
    keras_files.write_h5(folder / "x.h5", keras_files.small(), keras_files.small_arrays())

    return {
        "recipe.toml": (RECIPE.encode(), Recipe.load),
        "target.toml": (TARGET.encode(), Target.load),
        "x.fxloom": ((folder / "x.fxloom").read_bytes(), program),
        "coded.fxloom": ((folder / "coded.fxloom").read_bytes(), program),
        "x.safetensors": ((folder / "x.safetensors").read_bytes(), fxloom.load_weights),
        "x.pt2": (
            (folder / "x.pt2").read_bytes(),
            lambda path: fxloom.capture(load_model(str(path)), x),
        ),
        "x.keras": ((folder / "x.keras").read_bytes(), fxloom.capture),
        "x.h5": ((folder / "x.h5").read_bytes(), fxloom.capture),
    }


def mutate(content: bytes, chance: random.Random) -> bytes:
    """One to four changes: of bits, bytes, pieces, or a word for another."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(changed) + 1)
        length = chance.choice((1, 1, 2, 8, 64, 1000))
        match chance.randrange(6):
            case 0 if place < len(changed):
                changed[place] ^= 1 << chance.randrange(8)
            case 1:
                changed[place : place + length] = chance.randbytes(length)
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = changed[place : place + length] * chance.randint(1, 5)
            case 4:
                changed[place : place + length] = chance.choice(TOKENS)
            case _:
                numbers = [i for i, byte in enumerate(changed) if 48 <= byte <= 57]
                if numbers:
                    changed[chance.choice(numbers)] = chance.choice(b"0123456789-.e")
    return bytes(changed)


def repaired(content: bytes, original: bytes) -> bytes:
    """A mutated zip with right checksums, so that what lies behind them is reached as well."""
    import io
    import zipfile

    buffer = io.BytesIO()
    chance = random.Random(content)
    with zipfile.ZipFile(io.BytesIO(original)) as old, zipfile.ZipFile(buffer, "w") as new:
        names = [name for name in old.namelist() if name.endswith(".json")] * 3 + old.namelist()
        chosen = chance.choice(names)
        for name in old.namelist():
            member = old.read(name)
            new.writestr(name, mutate(member, chance) if name == chosen else member)
    return buffer.getvalue()


def fuzz_files(count: int, seed: int, names: tuple[str, ...] = ()) -> Iterator[str]:
    """Read `count` mutated files; yields how each ended.

    Raises AssertionError for anything but success or FxloomError, for a hang or a file made.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        kinds = originals(root)
        chosen = names or tuple(kinds)
        for path in root.iterdir():
            path.unlink()
        before = os.getcwd()
        os.chdir(root)
        try:
            for index in range(count):
                chance = random.Random(seed + index)
                name = chosen[index % len(chosen)]
                yield f"{name}: {_read_mutated(root / name, kinds, chance, seed + index)}"
        finally:
            os.chdir(before)


def _read_mutated(
    path: Path, kinds: Mapping[str, tuple[bytes, Reader]], chance: random.Random, seed: int
) -> str:
    original, read = kinds[path.name]
    content = mutate(original, chance)
    if path.suffix in (".pt2", ".keras") and chance.random() < 0.8:
        content = repaired(content, original)
    path.write_bytes(content)

    def hangs(number: int, frame: object) -> None:
        raise AssertionError(f"{path.name}, seed {seed}: hangs")

    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(LIMIT_S)
    try:
        read(path)
        outcome = "reads"
    except FxloomError as fault:
        outcome = "refused" if str(fault).strip() else "an empty message"
    except Exception as fault:
        raise AssertionError(f"{path.name}, seed {seed}: {type(fault).__name__}") from fault
    finally:
        signal.alarm(0)
    made = [other.name for other in path.parent.iterdir() if other != path]
    assert not made, f"{path.name}, seed {seed}: made {made}"
    path.unlink()
    return outcome


def kill_compiles(count: int, seed: int) -> Iterator[str]:
    """kill -9 at `count` random moments over an existing build; yields what was there afterwards.

    Raises AssertionError unless the old or the new build is whole every time and the next run
    succeeds and leaves nothing else behind.
    """
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        digests, took = {}, 0.0
        for version in (0, 1):
            (root / f"net{version}.py").write_text(MODEL.format(seed=version))
            began = time.monotonic()
            _compile(root, version).wait()
            took = time.monotonic() - began
            digests[open_build(root / "build").program.digest()] = version
        assert len(digests) == 2
        present = 1
        for index in range(count):
            other = 1 - present
            process = _compile(root, other)
            # Half of them late, where files are written and swapped.
            share = chance.uniform(0.0, 1.1) if index % 2 else chance.uniform(0.75, 1.05)
            time.sleep(took * share)
            process.kill()
            code = process.wait()
            found = digests[open_build(root / "build").program.digest()]
            assert code != 0 or found == other
            kept = "new" if found == other else "old"
            present = found
            if index % 10 == 9:
                assert _compile(root, present).wait() == 0
                left = sorted(path.name for path in root.iterdir())
                assert left == ["build", "net0.py", "net1.py"], left
            yield f"{'finished' if code == 0 else 'killed'} at {share:.2f}: {kept} build is whole"
        assert _compile(root, present).wait() == 0
        left = sorted(path.name for path in root.iterdir())
        assert left == ["build", "net0.py", "net1.py"], left
        open_build(root / "build")


def _compile(root: Path, version: int) -> subprocess.Popen[bytes]:
    spec = f"net{version}.py"
    command = ["compile", f"{spec}:make", "--data", f"{spec}:data", "-o", "build"]
    code = "from fxloom.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *command],
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def main() -> None:
    """The slow runs."""
    kind, count = sys.argv[1], int(sys.argv[2])
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    runs = fuzz_files(count, seed) if kind == "files" else kill_compiles(count, seed)
    totals: dict[str, int] = {}
    for line in runs:
        key = line if kind == "files" else line.partition(": ")[2]
        totals[key] = totals.get(key, 0) + 1
    for key, number in sorted(totals.items()):
        print(f"{number:6} {key}")


if __name__ == "__main__":
    main()
