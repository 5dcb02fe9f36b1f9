"""A small training loop for captured graphs, float or quantized.

AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) with a cosine schedule over all steps. Only the
order of the samples is random (captured graphs have no dropout), and that of an epoch comes from
the seed and its number alone: a training that was resumed goes on as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil, cos, isfinite, pi
from typing import Protocol

import torch
from torch import Tensor, fx, nn

from fxloom.errors import DataError, RecipeError
from fxloom.facts import kept_weights, shared_weights
from fxloom.graph import input_specs, output_nodes
from fxloom.passes.by_class import ByClass
from fxloom.passes.checkpoints import Checkpoint, Epochs
from fxloom.passes.training_formats import TrainingFormats
from fxloom.processes import Processes


@dataclass(frozen=True)
class Samples:
    """inputs: one tensor an input of the graph, samples first. labels: int64 or float32; None where
    nobody looks at them. targets: what else outputs are compared with, samples first."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None
    targets: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs[0])

    def rows(self, chosen: Tensor) -> Samples:
        """Some of the samples."""
        return self._each(lambda x: x[chosen.to(x.device)])

    def to(self, place: torch.device) -> Samples:
        """The samples on a device."""
        return self._each(lambda x: x.to(place))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Samples:
        return Samples(
            tuple(change(x) for x in self.inputs),
            None if self.labels is None else change(self.labels),
            tuple(change(x) for x in self.targets),
        )


class Objective(Protocol):
    """What a training lowers.

    first_final: the first epoch in which it is what it is in the end; a stage of its own, with
    another schedule and optimizer, lies before it.
    """

    @property
    def first_final(self) -> int: ...

    def __call__(self, outputs: tuple[Tensor, ...], samples: Samples, epoch: int) -> Tensor:
        """The mean loss. outputs: all of the graph for these samples, samples first."""
        ...


@dataclass
class Training:
    """One training of a graph whose tensors are its own; it changes them in place.

    formats: of its numbers, with the graph. parameters: by name, those that train. set_training:
    tells the graph that it trains, or that it does not. batch: samples of a step, of all
    processes together.
    """

    formats: TrainingFormats
    parameters: Mapping[str, Tensor]
    set_training: Callable[[bool], None]
    objective: Objective
    epochs: int
    learning_rate: float
    weight_decay: float
    batch: int
    patience: int
    seed: int
    processes: Processes
    checkpoint: Checkpoint | None
    progress: Callable[[int, float], None]
    history: Epochs = field(default_factory=list)

    @property
    def module(self) -> fx.GraphModule:
        """The graph that trains."""
        return self.formats.module

    def run(self, samples: Samples, held_out: Samples | None) -> None:
        """Train; with held-out samples, keep the state that has the least loss on them."""
        self._optimizer = self._adamw()
        self._find_facts()
        self._wrapped: nn.Module | None = None
        best: dict[str, Tensor] = self._resume()
        for epoch in range(len(self.history), self.epochs):
            if self._is_stuck():
                break
            record = {"loss": self._epoch(epoch, samples)}
            if held_out is not None:
                record["validation"] = self._validate(held_out, epoch)
            self.history.append(record)
            if held_out is not None and self.best_epoch == epoch:
                best = {name: t.detach().clone() for name, t in self._state().items()}
            if self.checkpoint is not None and self.processes.index == 0:
                self.checkpoint.save(self._saved(best), self.history)
            self.processes.wait()
            self.progress(epoch + 1, record["loss"])
        with torch.no_grad():
            for name, tensor in best.items():
                self._state()[name].copy_(tensor)

    @property
    def best_epoch(self) -> int:
        """The epoch whose state is kept: of those with the final formats and loss the first with
        the least validation loss; without any the last."""
        first = max(self.formats.first_final, self.objective.first_final)
        losses = [each["validation"] for each in self.history[first:] if "validation" in each]
        return first + losses.index(min(losses)) if losses else len(self.history) - 1

    def _find_facts(self) -> None:
        """Which weights stay zero, and which are one number."""
        self._kept: dict[str, Tensor] = {}
        self._tied: dict[str, ByClass] = {}
        for name, tensor in self.parameters.items():
            kept = kept_weights(self.formats.graph, name)
            shared = shared_weights(self.formats.graph, name)
            if shared is not None:
                self._tied[name] = ByClass.of(shared, kept, tensor.device)
            elif kept is not None:
                self._kept[name] = kept.to(tensor.device)

    def _is_stuck(self) -> bool:
        """Whether the validation loss has not fallen for too many epochs."""
        return 0 < self.patience < len(self.history) - self.best_epoch

    def _epoch(self, epoch: int, samples: Samples) -> float:
        """Train once on all samples; returns the mean loss."""
        generator = torch.Generator().manual_seed(_seed(self.seed, epoch))
        order = torch.randperm(len(samples), generator=generator)
        batches = torch.tensor_split(order, batch_count(len(order), self.batch))
        total = 0.0
        self.formats.begin(epoch)
        if self._wrapped is not self.module:
            self._wrapped, self._call = self.module, self.processes.wrap(self.module)
        self.set_training(True)
        stage = self.objective.first_final
        begin, end = (0, stage) if epoch < stage else (stage, self.epochs)
        if epoch == stage:  # moments of the gradients of another loss say nothing of this one's
            self._optimizer.state.clear()
        for index, rows in enumerate(batches):
            progress = (epoch - begin + index / len(batches)) / (end - begin)
            rate = self.learning_rate * (1 + cos(pi * progress)) / 2
            own = self.processes.share(rows)
            # The mean over processes of such losses is the mean over the samples.
            weight = len(own) * self.processes.count / len(rows)
            total += self._step(samples.rows(own), weight, rate, epoch)
        self.set_training(False)
        return self.processes.total(total) / len(samples)

    def _step(self, samples: Samples, weight: float, rate: float, epoch: int) -> float:
        """One step of the optimizer; returns the sum of the losses."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad()
        with torch.enable_grad():  # whatever the caller is in
            outputs = forward(self.module, samples.inputs, self._call)
            loss = self.objective(outputs, samples, epoch)
            weighted = loss * weight
        if not loss.requires_grad:
            raise RecipeError(
                "no gradient reaches a parameter that trains: the output does not depend on one, "
                "or only by comparisons or indices"
            )
        weighted.backward()  # type: ignore[no-untyped-call]
        for name, kept in self._kept.items():
            slope = self.parameters[name].grad
            if slope is not None:  # without one AdamW leaves a weight that is zero where it is
                slope.mul_(kept)
        for name, tied in self._tied.items():
            slope = self.parameters[name].grad
            if slope is not None:
                tied.add_up(slope)
        value = float(loss.detach())
        slopes = [p.grad for p in self.parameters.values() if p.grad is not None]
        if not isfinite(value) or not isfinite(float(torch.nn.utils.get_total_norm(slopes))):
            raise RecipeError(
                f"the loss or its gradient is not finite in epoch {epoch + 1} (loss {value:g}). "
                f"Try a learning_rate below {self.learning_rate:g}, and look at the labels"
            )
        self._optimizer.step()
        with torch.no_grad():
            self.formats.settle()
            for name, (low, high) in self.formats.bounds.items():
                if name in self._tied:
                    low, high = self._tied[name].bounds(low, high)
                self.parameters[name].clamp_(low, high)
            for name, tied in self._tied.items():
                tied.tie(self.parameters[name])
        return value * len(samples)

    def _validate(self, samples: Samples, epoch: int) -> float:
        """The mean loss."""
        total = 0.0
        with torch.no_grad():
            for rows in torch.split(torch.arange(len(samples)), self.batch):
                part = samples.rows(self.processes.share(rows))
                if len(part):
                    loss = self.objective(forward(self.module, part.inputs), part, epoch)
                    total += float(loss) * len(part)
        total = self.processes.total(total)
        if not isfinite(total):
            raise RecipeError(
                f"the loss on held-out samples is not finite ({total:g}). "
                f"Try a learning_rate below {self.learning_rate:g}"
            )
        return total / len(samples)

    def _adamw(self) -> torch.optim.AdamW:
        # Biases and scales are not pulled to zero: that saves no bits and costs accuracy.
        matrices = [p for p in self.parameters.values() if p.dim() > 1]
        vectors = [p for p in self.parameters.values() if p.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]])

    def _state(self) -> dict[str, Tensor]:
        """What training changes: parameters, statistics of batch norms, and binary points."""
        graph = self.formats.graph
        return {
            **dict(graph.named_parameters()),
            **dict(graph.named_buffers()),
            **self.formats.points,
        }

    def _saved(self, best: Mapping[str, Tensor]) -> dict[str, Tensor]:
        slots = {
            f"optimizer.{slot}.{name}": tensor
            for name, p in self.parameters.items()
            for slot, tensor in self._optimizer.state.get(p, {}).items()
        }
        state = {f"state.{name}": tensor for name, tensor in self._state().items()}
        return {**state, **slots, **{f"best.{name}": tensor for name, tensor in best.items()}}

    def _resume(self) -> dict[str, Tensor]:
        """Take up the state of the checkpoint, if there is one; returns the best state so far."""
        self.processes.wait()
        found = None if self.checkpoint is None else self.checkpoint.load()
        if found is None:
            return {}
        tensors, self.history = found
        with torch.no_grad():
            for name, tensor in self._state().items():
                tensor.copy_(tensors[f"state.{name}"])
        for name, p in self.parameters.items():
            for slot in ("step", "exp_avg", "exp_avg_sq"):
                key = f"optimizer.{slot}.{name}"
                if key in tensors:
                    place = "cpu" if slot == "step" else p.device
                    self._optimizer.state[p][slot] = tensors[key].to(place)
        return {
            name.removeprefix("best."): tensor
            for name, tensor in tensors.items()
            if name.startswith("best.")
        }


def batch_count(samples: int, size: int) -> int:
    """Into how many batches of nearly one size samples are split.

    None has a single sample unless size is 1: a small rest would ruin the statistics of a batch
    norm. So a batch may have one sample more than size.
    """
    count = ceil(samples / size)
    return count if size == 1 else min(count, max(samples // 2, 1))


def as_declared(module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs, samples first, with their batch where the graph has it, and in its precision."""
    specs = input_specs(module)
    fitting = (
        (x.movedim(0, spec.batch_axis) if x.dim() > spec.batch_axis else x, spec.dtype)
        for x, spec in zip(inputs, specs, strict=False)
    )
    return (
        *(x.to(dtype) if dtype.is_floating_point else x for x, dtype in fitting),
        *inputs[len(specs) :],
    )


def forward(
    module: fx.GraphModule, inputs: tuple[Tensor, ...], call: nn.Module | None = None
) -> tuple[Tensor, ...]:
    """All outputs of a graph, samples first. inputs: samples first. call: the graph as several
    processes call it."""
    result = (call or module)(*as_declared(module, inputs))
    values = result if isinstance(result, tuple | list) else (result,)
    return tuple(
        value.movedim(node.meta.get("batch_axis") or 0, 0)
        for value, node in zip(values, output_nodes(module), strict=True)
    )


def split(samples: Samples, share: float, seed: int) -> tuple[Samples, Samples | None]:
    """The samples to train on and those held out, drawn by the seed; None where share is 0."""
    if not share:
        return samples, None
    count = max(round(share * len(samples)), 1)
    if count >= len(samples):
        raise DataError(f"x_train: {len(samples)} samples leave none to train on and to hold out")
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(_seed(seed, -1)))
    return samples.rows(order[count:].sort()[0]), samples.rows(order[:count].sort()[0])


def _seed(seed: int, epoch: int) -> int:
    """A seed for every epoch; -1: for what comes before them."""
    return (seed * 1_000_003 + epoch + 1) % 2**63
