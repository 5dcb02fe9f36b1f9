"""Whom a student learns from: what a teacher may be, and what its outputs and layers are.

A graph is run as a graph and a program of torch.export is captured as one, so that layers have the
names that they have everywhere. A module is run in eval mode as it is, whatever it is made of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx.node import Node

from fxloom.editing import copy_graph
from fxloom.errors import CaptureError, RecipeError
from fxloom.exporting import untouched
from fxloom.frontend import capture
from fxloom.graph import as_indices, as_samples, input_specs, origin, output_nodes
from fxloom.passes.checkpoints import digest
from fxloom.passes.trainable import own_copy
from fxloom.passes.training import as_declared, forward
from fxloom.pt2_program import load_program_file
from fxloom.settings import did_you_mean
from fxloom.userfile import describe

Inputs = tuple[Tensor, ...]


class Teacher(Protocol):
    """Whom a student learns from.

    title: what the summary calls it. layers: the names of those that are asked for.
    """

    title: str
    layers: Sequence[str]

    def answer(self, inputs: Inputs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Outputs, and values of the layers. inputs: of the student's graph. All samples first,
        the results where the inputs are."""
        ...

    def identity(self, inputs: Inputs) -> str:
        """A fingerprint; inputs: some samples."""
        ...


def teacher_problem(value: object) -> str | None:
    """Why something cannot be a teacher, whatever the student is."""
    if isinstance(value, str):
        if value.endswith(".pt2"):
            return None
        return (
            f'required a .pt2 file of torch.export.save, got "{value}". A recipe '
            "names no code to run; on the command line --teacher FILE.py:FUNCTION may"
        )
    is_known = isinstance(value, nn.Module | ExportedProgram) or callable(value)
    if is_known and not isinstance(value, type):
        return None
    return (
        "required a .pt2 file, a module, a graph, an exported program or a function "
        f"of a batch, got {value!r}"
    )


def teacher_of(
    value: object,
    layers: Sequence[str],
    student: fx.GraphModule,
    output: int,
    example: Inputs,
    place: torch.device,
) -> Teacher:
    """The teacher that `Distill.teacher` or a recipe speaks of.

    layers: names of those whose values are asked for. output: the number of the student's that the
    teacher's only output is like. example: two samples. place: where graphs are to run. Raises
    RecipeError for what is no teacher for this student, or has no such layers.
    """
    title = value if isinstance(value, str) else type(value).__name__
    if isinstance(value, nn.Module):
        kind = "graph" if isinstance(value, fx.GraphModule) else title
        title = f"{kind}, {sum(p.numel() for p in value.parameters()):,} parameters"
    if isinstance(value, str):
        try:
            value = load_program_file(value)
        except CaptureError as fault:
            raise RecipeError(f"distill: teacher: {fault}") from None
    if isinstance(value, ExportedProgram):
        axes = [spec.batch_axis for spec in input_specs(student)]
        try:
            value = capture(
                value, as_declared(student, example), batch_axes=axes, supported=lambda _: None
            )
        except CaptureError as fault:
            raise RecipeError(f"distill: teacher: {title}: {fault}") from None
    if isinstance(value, fx.GraphModule) and _is_captured(value):
        return GraphTeacher.of(value, title, layers, example, place)
    if isinstance(value, nn.Module):
        known = dict(value.named_modules())
        _require_layers("teacher", layers, [name for name in known if name])
        return ModuleTeacher(value, title, layers, student, output)
    assert callable(value), value
    if layers:
        raise RecipeError(
            f"distill: teacher: required a module or a graph, which has layers: {', '.join(layers)}"
            f" are asked for, and a {title} has none"
        )
    return FunctionTeacher(value, title, (), student, output)


@dataclass
class GraphTeacher:
    """A captured graph. outputs: how many it has before those of its layers."""

    title: str
    layers: Sequence[str]
    graph: fx.GraphModule
    outputs: int

    @classmethod
    def of(
        cls,
        graph: fx.GraphModule,
        title: str,
        layers: Sequence[str],
        example: Inputs,
        place: torch.device,
    ) -> GraphTeacher:
        """The teacher, on a device; the graph stays where and as it is."""
        try:
            as_samples(graph, example)
        except CaptureError as fault:
            raise RecipeError(f"distill: teacher: {fault}") from None
        nodes = layer_nodes(graph)
        _require_layers("teacher", layers, nodes)
        own = copy_graph(graph) if place.type == "cpu" else own_copy(graph).to(place)
        twins = dict(zip(graph.graph.nodes, own.graph.nodes, strict=True))
        returned = output_nodes(own)
        own.graph.output_node().args = ((*returned, *(twins[nodes[n]] for n in layers)),)
        own.recompile()
        return cls(title, layers, own, len(returned))

    def answer(self, inputs: Inputs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        with torch.no_grad():
            found = forward(self.graph, as_indices(self.graph, inputs))
        return found[: self.outputs], found[self.outputs :]

    def identity(self, inputs: Inputs) -> str:
        return digest([str(self.graph.graph), *_state(self.graph)])


@dataclass
class FunctionTeacher:
    """A function of a batch, which gives a tensor or several. student, output: the graph that
    learns, and its output that a single one is like; they say where inputs and outputs have their
    batch."""

    function: Callable[..., Any]
    title: str
    layers: Sequence[str]
    student: fx.GraphModule
    output: int
    axes: list[int] = field(init=False)

    def __post_init__(self) -> None:
        # Now, for the student's graph may get more outputs.
        nodes = output_nodes(self.student)
        self.axes = [node.meta.get("batch_axis") or 0 for node in nodes]

    def answer(self, inputs: Inputs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        place = inputs[0].device
        there = self._place(place)  # copies, for the function may write on what it reads
        given = tuple(x.to(there, copy=True) for x in as_declared(self.student, inputs))
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), self._quiet():
                result, seen = self._call(given)
        except RecipeError:
            raise
        except Exception as fault:
            raise RecipeError(f"distill: teacher: {self.title} raised {describe(fault)}") from fault
        values = result if isinstance(result, tuple | list) else (result,)
        axes = [self.axes[self.output]] if len(values) == 1 else [*self.axes, *(0 for _ in values)]
        outputs = [
            self._samples_first(value, axis, len(inputs[0]), f"output {number}")
            for number, (value, axis) in enumerate(zip(values, axes, strict=False))
        ]
        layers = [
            self._samples_first(seen.get(name), 0, len(inputs[0]), name) for name in self.layers
        ]
        return tuple(x.to(place) for x in outputs), tuple(x.to(place) for x in layers)

    def identity(self, inputs: Inputs) -> str:
        return digest([self.title, *self.answer(inputs)[0]])

    def _place(self, default: torch.device) -> torch.device:
        """Where the function wants its inputs."""
        return default

    def _quiet(self) -> Any:
        """Held while the function runs."""
        return nullcontext()

    def _call(self, inputs: Inputs) -> tuple[Any, dict[str, Any]]:
        """What the function returns, and what its layers do."""
        return self.function(*inputs), {}

    def _samples_first(self, value: Any, axis: int, count: int, what: str) -> Tensor:
        fits = isinstance(value, Tensor) and value.is_floating_point() and value.dim() > axis
        if not fits or value.shape[axis] != count:
            arrived = (
                f"shape {list(value.shape)} of {value.dtype}"
                if isinstance(value, Tensor)
                else "nothing"
                if value is None
                else f"an object of type {type(value).__name__}"
            )
            raise RecipeError(
                f"distill: teacher: {what}: required a tensor of floats with the {count} samples "
                f"of the batch along axis {axis}, got {arrived}"
            )
        tensor: Tensor = value.detach()
        return tensor.movedim(axis, 0)


class ModuleTeacher(FunctionTeacher):
    """A module, in eval mode while it answers and as it was afterwards; it stays on its device."""

    @property
    def module(self) -> nn.Module:
        """The module."""
        assert isinstance(self.function, nn.Module)
        return self.function

    def identity(self, inputs: Inputs) -> str:
        text = re.sub("0x[0-9a-f]+", "", str(self.module))  # addresses differ in every process
        return digest([type(self.module).__qualname__, text, *_state(self.module)])

    def _place(self, default: torch.device) -> torch.device:
        tensors = [*self.module.parameters(), *self.module.buffers()]
        return tensors[0].device if tensors else default

    def _quiet(self) -> Any:
        return untouched(self.module)

    def _call(self, inputs: Inputs) -> tuple[Any, dict[str, Any]]:
        seen: dict[str, Any] = {}
        with ExitStack() as hooks:
            for name in self.layers:
                hook = self.module.get_submodule(name).register_forward_hook(
                    lambda _module, _inputs, result, name=name: seen.update({name: result})
                )
                hooks.callback(hook.remove)
            return self.module(*inputs), seen


def layer_nodes(graph: fx.GraphModule) -> dict[str, Node]:
    """The node that computes what a layer gives, by the layer's name: rounded, if it is; of a layer
    that is called several times the last."""
    return {
        origin(node): node
        for node in graph.graph.nodes
        if node.op == "call_function"
        and isinstance(node.meta.get("batch_axis"), int)
        and isinstance(node.meta.get("val"), Tensor)
        and node.meta["val"].is_floating_point()
    }


def require_student_layers(layers: Sequence[str], nodes: Iterable[str]) -> None:
    """Raise RecipeError for names that no layer of the student has."""
    _require_layers("student", layers, nodes)


def _require_layers(who: str, layers: Sequence[str], known: Iterable[str]) -> None:
    names = list(known)
    if wrong := [layer for layer in layers if layer not in names]:
        raise RecipeError(
            "\n".join(
                f"distill: {layer}: no layer of the {who}.{did_you_mean(layer, names)} "
                f"It has: {', '.join(names)}"
                for layer in wrong
            )
        )


def _is_captured(graph: fx.GraphModule) -> bool:
    """Whether a graph says of its inputs where they have their batch."""
    inputs = graph.graph.find_nodes(op="placeholder")
    return bool(inputs) and all({"val", "batch_axis"} <= node.meta.keys() for node in inputs)


def _state(module: nn.Module) -> Iterable[str | Tensor]:
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor):
            yield name
            yield value
