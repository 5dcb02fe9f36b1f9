"""What a model is called with, where only its data are given."""

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from fxloom.data import Data
from fxloom.exporting import parameters_of, quiet, untouched
from fxloom.graph import is_whole

SAMPLES = 2


def examples_of(model: nn.Module | ExportedProgram, data: Data) -> tuple[Tensor, ...]:
    """The first samples as float32, or as int64 where the model takes indices.

    A module is asked: what it cannot compute from float32 it is given as int64, if they are whole
    numbers. Where that fails too, float32: capture will say what is wrong.
    """
    first = data.example(SAMPLES)
    floats = first if isinstance(first, tuple) else (first,)
    indices = tuple(x.to(torch.int64) if is_whole(x) else x for x in floats)
    if isinstance(model, ExportedProgram):
        return _declared(model, floats, indices)
    if not isinstance(model, nn.Module) or any(map(is_lazy, parameters_of(model).values())):
        return floats
    if _takes(model, floats) or not _takes(model, indices):
        return floats
    return indices


def _takes(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    with untouched(model), torch.no_grad(), quiet(), torch.random.fork_rng(devices=[]):
        try:
            model(*inputs)
        except Exception:  # whatever a model raises
            return False
    return True


def _declared(
    program: ExportedProgram, floats: tuple[Tensor, ...], indices: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    wanted = {
        node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"
    }
    types = [
        value.dtype if isinstance(value := wanted.get(name), Tensor) else torch.float32
        for name in program.graph_signature.user_inputs
        if isinstance(name, str)
    ]
    if len(types) != len(floats):
        return floats
    return tuple(
        x if dtype.is_floating_point else whole.to(dtype) if is_whole(whole) else x
        for x, whole, dtype in zip(floats, indices, types, strict=True)
    )
