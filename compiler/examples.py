"""What a model is called with, where only its data are given, or nothing at all."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from fxloom.data import Data
from fxloom.errors import CaptureError
from fxloom.exporting import parameters_of, quiet, untouched
from fxloom.graph import is_whole

SAMPLES = 2


@runtime_checkable
class DeclaresInputs(Protocol):
    """A network from a file of another tool, which says what its inputs are."""

    def example_inputs(self, samples: int = SAMPLES) -> tuple[Tensor, ...]:
        """Inputs of the declared shapes and types. Raises CaptureError where one is not fixed."""


def declared_inputs(model: object) -> tuple[Tensor, ...] | None:
    """What a model says that it is called with; None where it says nothing.

    A user's own module says nothing, whatever its methods are called.
    """
    ours = type(model).__module__.startswith("fxloom.")
    return model.example_inputs(SAMPLES) if ours and isinstance(model, DeclaresInputs) else None


def examples_of(model: object, data: Data) -> tuple[Tensor, ...]:
    """The first samples as float32, or as integers or conditions where the model takes those.

    A program and a network of another tool declare their types. A module is asked: what it cannot
    compute from float32 it is given as int64, if they are whole numbers, or as bool, if they are
    zeros and ones. Where that fails too, float32: capture will say what is wrong.
    """
    first = data.example(SAMPLES)
    floats = first if isinstance(first, tuple) else (first,)
    indices = tuple(x.to(torch.int64) if is_whole(x) else x for x in floats)
    if isinstance(model, ExportedProgram):
        return _as_types(_declared(model), floats)
    if isinstance(model, nn.Module) and (declared := _types(model)) is not None:
        return _as_types(declared, floats)
    if not isinstance(model, nn.Module) or any(map(is_lazy, parameters_of(model).values())):
        return floats
    if _takes(model, floats):
        return floats
    conditions = tuple(x.to(torch.bool) if is_whole(x, torch.bool) else x for x in floats)
    both = tuple(
        c if c.dtype == torch.bool else i for c, i in zip(conditions, indices, strict=True)
    )
    return next((each for each in (indices, conditions, both) if _takes(model, each)), floats)


def _takes(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    with untouched(model), torch.no_grad(), quiet(), torch.random.fork_rng(devices=[]):
        try:
            model(*inputs)
        except Exception:  # whatever a model raises
            return False
    return True


def _declared(program: ExportedProgram) -> list[torch.dtype]:
    wanted = {
        node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"
    }
    return [
        value.dtype if isinstance(value := wanted.get(name), Tensor) else torch.float32
        for name in program.graph_signature.user_inputs
        if isinstance(name, str)
    ]


def _types(model: nn.Module) -> list[torch.dtype] | None:
    try:
        declared = declared_inputs(model)
    except CaptureError:  # a size that is not fixed: the data have one
        return None
    return None if declared is None else [x.dtype for x in declared]


def _as_types(types: list[torch.dtype], floats: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if len(types) != len(floats):
        return floats
    return tuple(
        x.to(dtype) if is_whole(x, dtype) else x for x, dtype in zip(floats, types, strict=True)
    )
