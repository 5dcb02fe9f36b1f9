"""Training towards a teacher: what a student's graph shows of itself, and the loss of that.

While it trains, the graph returns the values of some of its layers as well, which regressors may
have made comparable; both are gone afterwards. So everything that training does with a graph
(checkpoints, devices, processes, number formats) it does with these, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node
from torch.nn import functional

from fxloom.editing import tensor_node
from fxloom.errors import DataError, RecipeError
from fxloom.graph import arguments, constant, output_nodes
from fxloom.passes.distillation_losses import (
    attention,
    attention_loss,
    fitted_weights,
    fresh_weights,
    hint_loss,
    regressor_shape,
    scores,
    soft_loss,
)
from fxloom.passes.legalize.core import insert
from fxloom.passes.losses import Loss, are_probabilities, loss_of
from fxloom.passes.teachers import Teacher, layer_nodes, require_student_layers, teacher_of
from fxloom.passes.training import Objective, Samples, forward
from fxloom.quantized_ops import is_quantized

if TYPE_CHECKING:
    from fxloom.passes.distill import Distill
    from fxloom.passes.finetune import Finetune

aten = torch.ops.aten

ROWS = 256
"""Samples of which a teacher is asked at once."""
FIRST = 64
"""Samples that say what outputs are, and with which regressors begin."""
CACHED = 2**28
"""Bytes of what a teacher says of all samples that are kept; more is asked again in each batch."""


@dataclass
class Teaching:
    """One training of a student; a `Goal` of `Finetune`. given: what the teacher is made from."""

    keys: Distill
    given: object
    teacher: Teacher = field(init=False)
    regressors: dict[str, str] = field(init=False, default_factory=dict)
    is_cached: bool = field(init=False, default=False)
    identity: Mapping[str, str] = field(init=False, default_factory=dict)

    def begin(
        self, module: fx.GraphModule, output: int, samples: Samples, place: torch.device
    ) -> tuple[Samples, list[str]]:
        keys = self.keys
        if keys.soft < 1 and samples.labels is None:
            raise DataError(
                f"distill: required labels, y_train, for {1 - keys.soft:g} of the loss, but the "
                "data has none. Give some, or soft = 1"
            )
        if not len(samples):
            raise DataError("distill: required samples, got none")
        self._output, self._count = output, len(output_nodes(module))
        taught = [*keys.hints, *keys.attention]
        few = samples.rows(torch.arange(2) % len(samples))
        self.teacher = teacher_of(
            self.given, list(dict.fromkeys(taught)), module, output, few.inputs, place
        )
        outputs, layers = self.teacher.answer(few.to(place).inputs)
        self._pick(outputs, output_nodes(module)[output])
        values = dict(zip(self.teacher.layers, layers, strict=True))
        trained = self._watch(module, values)
        several = samples.rows(torch.arange(min(len(samples), FIRST)))
        self._first = self._said(several.to(place).inputs)
        self._fit(module, several)
        # What a checkpoint belongs to.
        self.identity = {
            "teacher": self.teacher.identity(several.inputs),
            **{
                key: str(getattr(keys, key))
                for key in ("temperature", "soft", "hints", "hint_weight", "hint_epochs")
            },
            **{key: str(getattr(keys, key)) for key in ("attention", "attention_weight")},
        }
        labels = samples.labels if keys.soft < 1 else None
        self._labels_are_numbers = samples.labels is not None and samples.labels.is_floating_point()
        size = sum(x.nbytes for x in self._first) / len(several) * len(samples)
        self.is_cached = size <= CACHED
        targets: tuple[Tensor, ...] = ()
        if self.is_cached:
            parts = [
                tuple(x.cpu() for x in self._said(samples.rows(rows).to(place).inputs))
                for rows in torch.split(torch.arange(len(samples)), ROWS)
            ]
            targets = tuple(torch.cat(each) for each in zip(*parts, strict=True))
        return Samples(samples.inputs, labels, targets), trained

    def objective(
        self, keys: Finetune, first: tuple[Tensor, ...], samples: Samples
    ) -> tuple[str, Objective]:
        mine, own = first[self._output], self.keys
        parts: list[str] = []
        name: str = keys.loss
        labelled: Loss | None = None
        if samples.labels is not None:
            name, labelled = loss_of(keys.loss, mine, samples.labels)
            parts.append(f"{1 - own.soft:g} {name}")
        elif name == "auto" and self._labels_are_numbers:
            name = "mse"
        is_number = name == "mse" or mine.dim() < 2 or mine.shape[1] == 1
        softened: Loss | None = None
        if own.soft:
            softened = _squares if is_number else self._soft(mine)
            parts.append(
                f"{own.soft:g} " + ("mse" if is_number else f"soft scores at {own.temperature:g}")
            )
        parts += [f"{own.hint_weight:g} hints"] if own.hints and not own.hint_epochs else []
        parts += [f"{own.attention_weight:g} attention"] if own.attention else []
        before = f"hints for {own.hint_epochs} epochs, then " if own.hint_epochs else ""
        said = None if self.is_cached else self._said
        count = self._count
        objective = _Loss(self.keys, labelled, softened, self._output, count, said)
        return before + " + ".join(parts), objective

    def end(self, module: fx.GraphModule) -> None:
        module.graph.output_node().args = (self._returned(module),)
        for name in reversed(self._inserted):
            node = next(each for each in module.graph.nodes if each.name == name)
            if node.op == "get_attr":
                delattr(module, str(node.target))
            module.graph.erase_node(node)
        module.recompile()

    def _soft(self, mine: Tensor) -> Loss:
        said = self._first[0]
        theirs, own = are_probabilities(said), are_probabilities(mine)

        def loss(student: Tensor, teacher: Tensor) -> Tensor:
            return soft_loss(
                scores(student, probabilities=own),
                scores(teacher, probabilities=theirs),
                self.keys.temperature,
            )

        return loss

    def _said(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What the loss compares: the output, if it is compared, hints, maps of attention."""
        outputs, layers = self.teacher.answer(inputs)
        values = dict(zip(self.teacher.layers, layers, strict=True))
        said = [outputs[self._theirs]] if self.keys.soft else []
        said += [values[name] for name in self.keys.hints]
        said += [
            attention(values[name], sizes)
            for name, sizes in zip(self.keys.attention, self._sizes, strict=True)
        ]
        for x in said:
            if not bool(torch.isfinite(x).all()):
                raise RecipeError(
                    f"distill: teacher: {self.teacher.title}: NaN or infinity for a sample. Look "
                    "at its training, and at what its inputs are made of"
                )
        return tuple(said)

    def _pick(self, outputs: Sequence[Tensor], mine: Node) -> None:
        """Find the teacher's output that is compared with the student's."""
        if len(outputs) not in (1, self._count):
            raise RecipeError(
                f"distill: teacher: required one output, or {self._count} as the student has, got "
                f"{len(outputs)}"
            )
        self._theirs = self._output if len(outputs) > 1 else 0
        wanted, got = _sample_shape(mine), list(outputs[self._theirs].shape[1:])
        if self.keys.soft and wanted != got:
            raise RecipeError(
                f"distill: teacher: required outputs of the student's shape, {wanted} a sample, "
                f"got {got}. Give a teacher for the same classes, or soft = 0"
            )

    def _watch(self, module: fx.GraphModule, values: Mapping[str, Tensor]) -> list[str]:
        """Let the graph return layers of the student; returns the names of regressors' weights."""
        keys = self.keys
        nodes = layer_nodes(module)
        require_student_layers([*keys.hints.values(), *keys.attention.values()], nodes)
        before = set(module.graph.nodes)
        end = module.graph.output_node()
        self._single = not isinstance(arguments(end)[0], tuple | list)
        watched, trained, problems = list(output_nodes(module)), list[str](), list[str]()
        fitting = self._fitting = list[tuple[Node, int]]()
        for number, (theirs, mine) in enumerate(keys.hints.items()):
            node, hint = nodes[mine], values[theirs]
            guided, wanted = _sample_shape(node), list(hint.shape[1:])
            if guided == wanted and not is_quantized(module):
                watched.append(node)
                continue
            try:
                shape = regressor_shape(guided, wanted)
            except ValueError as reason:
                problems.append(f"hints: {theirs} {wanted} -> {mine} {guided}: {reason}")
                continue
            with module.graph.inserting_before(end):
                drawn = fresh_weights(shape, (keys.seed + number) % 2**32)
                node = _regressor(module, node, drawn, number)
            trained += [str(each.target) for each in arguments(node)[1:3]]
            self.regressors[mine] = " x ".join(map(str, shape))
            if max(shape[2:], default=1) == 1:
                fitting.append((node, number))
            watched.append(node)
        self._sizes: list[list[int]] = []
        for theirs, mine in keys.attention.items():
            sizes, other = _sample_shape(nodes[mine])[1:], values[theirs].shape[2:]
            if len(sizes) != len(other) or not 1 <= len(sizes) <= 3:
                problems.append(
                    f"attention: {theirs} {list(values[theirs].shape[1:])} -> {mine} "
                    f"{_sample_shape(nodes[mine])}: required channels and one to three axes more, "
                    "as many for both. Use hints for layers without places"
                )
            self._sizes.append(sizes)
            watched.append(nodes[mine])
        if problems:
            raise RecipeError("\n".join(f"distill: {problem}" for problem in problems))
        self._inserted = [node.name for node in module.graph.nodes if node not in before]
        end.args = (tuple(watched),)
        module.recompile()
        return trained

    def _fit(self, module: fx.GraphModule, samples: Samples) -> None:
        """Let regressors begin with what brings the student nearest to the teacher: values of few
        bits have scales of their own."""
        end = module.graph.output_node()
        watched = arguments(end)[0]
        if not self._fitting:
            return
        end.args = (tuple(arguments(node)[0] for node, _ in self._fitting),)
        module.recompile()
        with torch.no_grad():
            found = forward(module, samples.inputs)
        end.args = (watched,)
        module.recompile()
        hints = self._first[1 if self.keys.soft else 0 :]
        for (node, number), guided in zip(self._fitting, found, strict=True):
            weights = [constant(module, each.target) for each in arguments(node)[1:3]]
            fitted = fitted_weights(guided, hints[number].cpu(), weights[0].shape)
            with torch.no_grad():
                for tensor, values in zip(weights, fitted, strict=True):
                    tensor.copy_(values)

    def _returned(self, module: fx.GraphModule) -> Any:
        """What the graph returned in the beginning."""
        own = output_nodes(module)[: self._count]
        return own[0] if self._single else tuple(own)


@dataclass
class _Loss:
    """The objective. count: of the student's outputs, behind which its layers are. said: what the
    teacher says of a batch, where that is not kept with the samples."""

    keys: Distill
    labelled: Loss | None
    softened: Loss | None
    output: int
    count: int
    said: Any

    @property
    def first_final(self) -> int:
        """The first epoch after the hints have trained alone."""
        return self.keys.hint_epochs

    def __call__(self, outputs: tuple[Tensor, ...], samples: Samples, epoch: int) -> Tensor:
        keys, mine = self.keys, outputs[self.output]
        layers = list(outputs[self.count :])
        wanted = list(samples.targets or self.said(samples.inputs))
        answer = wanted.pop(0) if self.softened is not None else None
        hints = list(zip(layers, wanted[: len(keys.hints)], strict=False))
        maps = zip(layers[len(hints) :], wanted[len(hints) :], strict=True)
        if epoch < keys.hint_epochs:
            return torch.stack([hint_loss(*pair) for pair in hints]).sum()
        total = mine.new_zeros(())
        if self.labelled is not None:
            assert samples.labels is not None
            total = total + (1 - keys.soft) * self.labelled(mine, samples.labels)
        if self.softened is not None and answer is not None:
            total = total + keys.soft * self.softened(mine, answer)
        for guided, hint in hints if not keys.hint_epochs else ():
            total = total + keys.hint_weight * hint_loss(guided, hint)
        for values, there in maps:
            here = attention(values, values.shape[2:])
            total = total + keys.attention_weight * attention_loss(here, there)
        return total


def _squares(output: Tensor, wanted: Tensor) -> Tensor:
    return functional.mse_loss(output, wanted.to(output.dtype))


def _regressor(
    module: fx.GraphModule, node: Node, weights: tuple[Tensor, Tensor], number: int
) -> Node:
    """A layer on what a node gives, in front of the output."""
    end = module.graph.output_node()
    axis = node.meta["batch_axis"]
    if axis:
        rank = node.meta["val"].dim()
        order = [axis, *(each for each in range(rank) if each != axis)]
        node = insert(module, node, aten.permute.default, node, order)
    read = [
        tensor_node(module, end, f"regressor_{number}_{part}", tensor)
        for part, tensor in zip(("weight", "bias"), weights, strict=True)
    ]
    axes = weights[0].dim() - 2
    if not axes:
        return insert(module, node, aten.linear.default, node, *read)
    ones, zeros = [1] * axes, [0] * axes
    attributes = (ones, zeros, ones, False, zeros, 1)
    return insert(module, node, aten.convolution.default, node, *read, *attributes)


def _sample_shape(node: Node) -> list[int]:
    """The shape of a node's value for one sample."""
    shape, axis = node.meta["val"].shape, node.meta.get("batch_axis") or 0
    return [size for dim, size in enumerate(shape) if dim != axis]
