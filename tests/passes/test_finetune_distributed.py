"""Finetune by several processes, which accelerate launched."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fxloom.data import Data
from fxloom.errors import RecipeError
from fxloom.frontend import capture
from fxloom.passes import training
from fxloom.passes.checkpoints import FILE
from fxloom.passes.finetune import Finetune
from fxloom.processes import Processes, is_follower
from tests.passes.test_finetune import X, Y, assert_equal, circles, perceptron, quantized, state

ROOT = Path(__file__).parents[2]

KEYS: dict[str, Any] = {"epochs": 6, "batch": 32, "learning_rate": 0.01, "validation": 0.2}
KEYS |= {"ranges": True, "narrowing": 2}

CHILD = """
import json, os, sys
from pathlib import Path
import torch
import fxloom
from fxloom import Data, Recipe
from fxloom.passes import Finetune, Quantize
from fxloom.passes.checkpoints import Checkpoint
from tests.passes.test_finetune import circles, perceptron
from tests.passes.test_finetune_distributed import KEYS
torch.set_num_threads(1)
out, index = Path(sys.argv[1]), os.environ["RANK"]
saved, plain = [], Checkpoint.save
def save(self, tensors, epochs):
    saved.append(len(epochs))
    plain(self, tensors, epochs)
Checkpoint.save = save
step = Finetune(**KEYS, distributed=True, device="cpu", checkpoint=str(out / "state"))
recipe = Recipe([Quantize(weights=3, activations=4, weight_rounding="nearest", samples=64), step])
build = fxloom.compile(perceptron(), data=Data(*circles()), recipe=recipe, out=out / "build")
record = {"program": build.program.digest(), "saved": saved,
          "summary": build.report.passes[-1].summary}
(out / f"{index}.json").write_text(json.dumps(record))
"""


def launch(folder: Path, count: int) -> list[dict[str, Any]]:
    script = folder / "train.py"
    script.write_text(CHILD)
    # accelerate's own launcher starts several processes on GPUs only; on CPUs torch's does.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(count), str(script), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stderr
    return [json.loads((folder / f"{index}.json").read_text()) for index in range(count)]


def test_two_processes_train_what_one_would_and_the_first_writes(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    first, second = launch(tmp_path, 2)
    assert first["program"] == second["program"]
    assert first["saved"] == [1, 2, 3, 4, 5, 6]
    assert second["saved"] == []
    assert (tmp_path / "state" / FILE).exists()
    data = Data(*circles())
    alone = Finetune(**KEYS)(quantized(perceptron(), data), data)
    for epoch in ("first", "kept"):
        got, want = first["summary"][epoch], alone.summary[epoch]
        assert isinstance(want, dict)
        assert got == pytest.approx(want, rel=1e-3)
    assert first["summary"]["kept_epoch"] == alone.summary["kept_epoch"]


def test_a_single_process_trains_as_without_accelerate() -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    data = Data(X, Y)
    graph = quantized(perceptron(), data)
    alone, one = Finetune(epochs=2), Finetune(epochs=2, distributed=True, device="cpu")
    assert_equal(state(alone(graph, data).graph), state(one(graph, data).graph))


def test_without_accelerate_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(RecipeError, match=r"distributed: required the package accelerate.*fxloom"):
        Finetune(distributed=True)(capture(perceptron(), X[:2]), Data(X, Y))


def test_what_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Finetune, "_processes", lambda self: Processes(None, 0, 4))
    with pytest.raises(RecipeError, match="a batch norm sees the batch of one process"):
        Finetune()(capture(perceptron(norm=True), X[:2]), Data(X, Y))
    with pytest.raises(RecipeError, match="a sample for each of 4 processes, got batches of 3"):
        Finetune(batch=3)(capture(perceptron(), X[:2]), Data(X, Y))
    monkeypatch.undo()
    with pytest.raises(RecipeError, match=r'device: required "auto" or "cpu".*got "cuda:1"'):
        Finetune(distributed=True, device="cuda:1")(capture(perceptron(), X[:2]), Data(X, Y))


def test_a_training_that_resumes_is_joined_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Data(X, Y)
    graph = quantized(perceptron(), data)
    joined: list[nn.Module] = []

    def wrap(self: Processes, module: nn.Module) -> nn.Module:
        joined.append(module)
        return module

    monkeypatch.setattr(Processes, "wrap", wrap)
    plain, stop = training.Training._epoch, 3

    def interrupted(self: training.Training, epoch: int, samples: training.Samples) -> float:
        if epoch == stop:
            raise KeyboardInterrupt
        return plain(self, epoch, samples)

    monkeypatch.setattr(training.Training, "_epoch", interrupted)
    step = Finetune(epochs=8, ranges=True, checkpoint=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        step(graph, data)
    assert len(joined) == 1
    stop = 8
    result = step(graph, data).graph
    assert len(joined) == 3  # what learns ranges, as before, and then the graph itself
    assert joined[2] is result


def test_shares_of_a_batch_are_all_of_it() -> None:
    rows = torch.arange(10)
    shares = [Processes(None, index, 3).share(rows) for index in range(3)]
    assert sorted(torch.cat(shares).tolist()) == rows.tolist()
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_only_passes_that_train_together_have_followers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert is_follower([Finetune(distributed=True)])
    assert not is_follower([Finetune()])
    monkeypatch.setenv("RANK", "0")
    assert not is_follower([Finetune(distributed=True)])
