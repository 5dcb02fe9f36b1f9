"""Training of a captured graph on the user's labels, float or quantized.

In a quantized graph the float tensors in front of their roundings train, and every rounding passes
gradients straight through where it does not saturate (Bengio et al. 2013, arXiv 1308.3432; Jacob
et al. 2018, section 3): quantization-aware training by the very graph that is lowered afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, fx

from fxloom.errors import CaptureError, DataError, RecipeError
from fxloom.facts import facts, sharing
from fxloom.graph import (
    as_indices,
    as_samples,
    constant,
    origin,
    output_nodes,
    set_training,
)
from fxloom.passes.checkpoints import Checkpoint, digest
from fxloom.passes.losses import LabelObjective, LossName, loss_of
from fxloom.passes.trainable import batch_norms, own_copy, readers
from fxloom.passes.training import (
    Objective,
    Samples,
    Training,
    batch_count,
    forward,
    split,
)
from fxloom.passes.training_formats import TrainingFormats
from fxloom.processes import Processes
from fxloom.recipe import PassResult, progress_of_pass
from fxloom.settings import typed_keys, unmatched

if TYPE_CHECKING:
    from fxloom.data import Data

DIGITS = 6
"""Significant digits of losses in the report: sums differ in later ones between machines."""


class Goal(Protocol):
    """What a training of a graph is for, where that is more than to answer as the labels say.

    identity: what a checkpoint says of it, texts by name; after `begin`.
    """

    identity: Mapping[str, str]

    def begin(
        self, module: fx.GraphModule, output: int, samples: Samples, place: torch.device
    ) -> tuple[Samples, list[str]]:
        """The samples, on the CPU, with what their outputs are compared with, and the names of
        parameters of its own that train along.

        module: the graph that will train, on the CPU; may get more outputs behind its own.
        """
        ...

    def objective(
        self, keys: Finetune, first: tuple[Tensor, ...], samples: Samples
    ) -> tuple[str, Objective]:
        """The loss and its name. first: all outputs of the first samples; samples: all, both where
        training is."""
        ...

    def end(self, module: fx.GraphModule) -> None:
        """Take out of the graph what `begin` put in."""
        ...


@typed_keys(RecipeError)
@dataclass(frozen=True)
class Finetune:
    """Training on the data's labels, of a float or a quantized graph.

    epochs: how often every sample is seen. learning_rate: of AdamW at the first step; it falls to
    zero as a cosine. weight_decay: of AdamW, for weights and not for biases. batch: samples of a
    step. loss: cross_entropy (class numbers and an output for each class), nll (the same where
    outputs are probabilities), mse (numbers); auto chooses by labels and outputs. output: the one
    that the labels are for, where there are several: output_0, output_1 and so on; layers that lead
    to others only stay as they are. validation: share of the training samples that is held out; the
    state with the least loss on them is kept, else the last. patience: epochs without a lower loss
    on them at which training ends; 0 means that it never ends early. freeze: layers that do not
    train (fnmatch patterns on names); all others do, whether or not the model had them frozen.
    seed: of the order and of the held-out samples. ranges: whether the binary points of weights and
    activations are learned, too, in the first half of the epochs (of those after narrowing).
    narrowing: epochs in which widths fall from 8 bits to those of the graph, all of them together;
    0 means that they are there from the start. Both leave the formats of tables and of what they
    look up, of divisions and of what the steps of a recurrence share. device: auto means a GPU
    where torch has one. distributed: whether the processes that accelerate launched train together,
    each on its share of every batch. checkpoint: a folder that gets the whole state after every
    epoch; the same training resumes from it.
    """

    name: ClassVar[str] = "finetune"
    needs_data: ClassVar[bool] = True

    epochs: int = 20
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    batch: int = 64
    loss: LossName = "auto"
    output: str | None = None
    validation: float = 0.0
    patience: int = 0
    freeze: tuple[str, ...] = ()
    seed: int = 0
    ranges: bool = False
    narrowing: int = 0
    device: str = "auto"
    distributed: bool = False
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        demands = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate < float("inf"), "a number above 0"),
            "weight_decay": (0 <= self.weight_decay < float("inf"), "a number of at least 0"),
            "batch": (self.batch >= 1, "at least 1"),
            "validation": (0 <= self.validation < 1, "a share from 0 to below 1"),
            "patience": (self.patience >= 0, "at least 0"),
            "seed": (0 <= self.seed < 2**32, "a number from 0 to 2**32 - 1"),
        }
        problems = [
            f"{key}: required {demand}, got {getattr(self, key)}"
            for key, (holds, demand) in demands.items()
            if not holds
        ]
        if not 0 <= self.narrowing < self.epochs:
            problems.append(
                f"narrowing: required 0 to {self.epochs - 1}, fewer epochs than all, got "
                f"{self.narrowing}"
            )
        if self.ranges and self.epochs < 2:
            problems.append(f"ranges: required at least 2 epochs, got {self.epochs}")
        if self.patience and not self.validation:
            problems.append("patience: required validation above 0, which patience looks at")
        if problems:
            raise RecipeError("\n".join(problems))

    def __call__(self, graph: fx.GraphModule, data: Data | None = None) -> PassResult:
        return self.towards(None, graph, data)

    def towards(
        self, goal: Goal | None, graph: fx.GraphModule, data: Data | None = None
    ) -> PassResult:
        """The same for another goal than the labels alone; None: for those."""
        if data is None:
            raise RecipeError("finetune: required data to train on, got none")
        samples = _samples(graph, data, needs_labels=goal is None)
        output = self._output(graph)
        processes = self._processes()
        place = processes.device if self.distributed else _device(self.device)
        own = own_copy(graph)
        trained = self._trained(own)
        if goal is not None:
            samples, along = goal.begin(own, output, samples, place)
            trained += along
        checkpoint = self._checkpoint(graph, samples, {} if goal is None else goal.identity)
        samples = samples.to(place)
        training_samples, held_out = split(samples, self.validation, self.seed)
        self._require_batches(own, len(training_samples), processes.count)
        formats = TrainingFormats(own, trained, self._is_frozen, self.narrowing, self._learning)
        if (self.ranges or self.narrowing) and not formats.rounded:
            raise RecipeError(
                "finetune: ranges and narrowing: required a quantized graph with formats that may "
                "change, got none. Put quantize before this pass"
            )
        formats.to(place)
        module = formats.graph
        with torch.no_grad():
            first = forward(module, samples.rows(torch.arange(min(len(samples), 64))).inputs)
        if goal is None:
            assert samples.labels is not None
            name, loss = loss_of(self.loss, first[output], samples.labels)
            objective: Objective = LabelObjective(loss, output)
        else:
            name, objective = goal.objective(self, first, samples)
        with _progress(self.epochs, processes.index == 0) as progress:
            training = Training(
                formats,
                {target: constant(module, target) for target in trained} | formats.points,
                lambda flag: self._set_training(module, flag),
                objective,
                self.epochs,
                self.learning_rate,
                self.weight_decay,
                self.batch,
                self.patience,
                self.seed,
                processes,
                checkpoint,
                progress,
            )
            training.run(training_samples, held_out)
        result, biases, learned = formats.finished()
        result.to("cpu")
        if goal is not None:
            goal.end(result)
        for target, p in result.named_parameters():
            p.grad = None
            p.requires_grad_(constant(graph, target).requires_grad)
        kept = training.history[training.best_epoch]
        summary: dict[str, object] = {
            "loss": name,
            "epochs": len(training.history),
            "kept_epoch": training.best_epoch + 1,
            "first": _shortened(training.history[0]),
            "kept": _shortened(kept),
            "biases": biases,
        }
        if self.ranges:
            summary["ranges"] = learned
        return PassResult(result, True, summary)

    @property
    def _learning(self) -> int:
        """Epochs in which binary points are learned; weights settle in the others."""
        return (self.epochs + self.narrowing) // 2 if self.ranges else 0

    def _trained(self, module: fx.GraphModule) -> list[str]:
        """Names of the parameters that train; all others need no gradient."""
        found = readers(module)
        layers = sorted({layer for names in found.values() for layer in names})
        if wrong := unmatched(self.freeze, layers):
            raise RecipeError(
                f"finetune: freeze: {', '.join(wrong)} matches no layer. Layers with parameters: "
                f"{', '.join(layers) or 'none'}"
            )
        trained = []
        for name, p in module.named_parameters():
            frozen = any(self._is_frozen(layer) for layer in found.get(name, ()))
            p.requires_grad_(not frozen and p.is_floating_point())
            if p.requires_grad:
                trained.append(name)
        if not trained:
            reason = f"freeze {list(self.freeze)} matches" if self.freeze else "there are none in"
            raise RecipeError(f"finetune: no parameters to train: {reason} all layers")
        return trained

    def _is_frozen(self, layer: str) -> bool:
        return any(fnmatchcase(layer, pattern) for pattern in self.freeze)

    def _set_training(self, module: fx.GraphModule, flag: bool) -> None:
        """Training or evaluation; the statistics of frozen batch norms never move."""
        set_training(module, flag)
        frozen = [n for n in batch_norms(module) if flag and self._is_frozen(origin(n))]
        for node in frozen:
            node.update_arg(5, False)
        if frozen:
            module.recompile()

    def _output(self, graph: fx.GraphModule) -> int:
        """The number of the output that the labels are for."""
        count = len(output_nodes(graph))
        names = ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
        wanted = "output" if self.output is None else self.output
        if wanted not in names:
            key = "none" if self.output is None else f'"{self.output}"'
            raise RecipeError(
                f"finetune: output: required one of {', '.join(names)}, which the labels are for, "
                f"got {key}"
            )
        return names.index(wanted)

    def _processes(self) -> Processes:
        """This process alone, or all that were launched with it."""
        if not self.distributed:
            return Processes()
        if self.device not in ("auto", "cpu"):
            raise RecipeError(
                f'finetune: device: required "auto" or "cpu" where processes train together, got '
                f'"{self.device}": accelerate gives each its own'
            )
        return Processes.launched(cpu=self.device == "cpu")

    def _require_batches(self, module: fx.GraphModule, samples: int, processes: int) -> None:
        if processes > (least := samples // batch_count(samples, self.batch)):
            raise RecipeError(
                f"finetune: batch: required at least a sample for each of {processes} processes, "
                f"got batches of {least}"
            )
        count = min(self.batch, samples)
        norms = [origin(n) for n in batch_norms(module) if not self._is_frozen(origin(n))]
        if count < 2 and norms:
            raise RecipeError(
                f"finetune: {norms[0]}: a batch norm needs batches of at least 2 samples, got "
                f"{count}. Choose a larger batch, give more samples, or freeze it"
            )
        if processes > 1 and norms:
            raise RecipeError(
                f"finetune: {norms[0]}: a batch norm sees the batch of one process only. Put "
                "fold_batchnorm or quantize before this pass, or freeze it"
            )

    def _checkpoint(
        self, graph: fx.GraphModule, samples: Samples, goal: Mapping[str, str]
    ) -> Checkpoint | None:
        if self.checkpoint is None:
            return None
        state = graph.state_dict()
        keys = {
            each.name: str(getattr(self, each.name))
            for each in fields(self)
            if each.name not in ("checkpoint", "device", "distributed")
        }
        identity = {
            "graph": digest(
                [
                    *(str(graph.graph), *(part for item in state.items() for part in item)),
                    *(part for name, zeros in facts(graph).items() for part in (name, zeros.bits)),
                    *(
                        part
                        for name, shared in sharing(graph).items()
                        for part in (name, *shared.identity)
                    ),
                ]
            ),
            "data": digest(
                [*samples.inputs, *([] if samples.labels is None else [samples.labels])]
            ),
            **goal,
            **keys,
        }
        return Checkpoint(Path(self.checkpoint), identity)


def _samples(graph: fx.GraphModule, data: Data, *, needs_labels: bool) -> Samples:
    """All training samples, with their labels if they have some."""
    parts: list[tuple[Tensor, ...]] = []
    labels = []
    for x, y in data.pairs("train"):
        if y is None and needs_labels:
            raise DataError("finetune: required labels, y_train, but the data has none")
        inputs = as_indices(graph, x)
        try:
            as_samples(graph, inputs)
        except CaptureError as error:
            raise DataError(f"training data: {error}") from None
        parts.append(inputs)
        if y is not None:
            labels.append(y)
    if len({y.is_floating_point() for y in labels}) > 1:
        labels = [y.to(torch.float32) for y in labels]
    inputs = tuple(torch.cat(each) for each in zip(*parts, strict=True))
    return Samples(inputs, torch.cat(labels) if labels else None)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(name)
        if place.type not in ("cpu", "cuda"):
            raise RuntimeError('required "auto", "cpu" or "cuda"')
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as fault:
        reason = str(fault).strip().splitlines()[0]
        raise RecipeError(f'finetune: device: "{name}" cannot be used: {reason}') from None
    return place


def _shortened(record: Mapping[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.{DIGITS}g}") for key, value in record.items()}


@contextmanager
def _progress(epochs: int, tells: bool) -> Iterator[Callable[[int, float], None]]:
    """A function that is told the epochs that are done and the loss: for people only."""
    tell = progress_of_pass()
    if not (tells and sys.stderr.isatty()):
        yield lambda done, loss: None
    elif tell is not None:
        yield lambda done, loss: tell(f"epoch {done} of {epochs}, loss {loss:.4g}")
    else:
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("finetune", total=epochs)
            yield lambda done, loss: bar.update(
                task, completed=done, description=f"finetune, loss {loss:.4g}"
            )
