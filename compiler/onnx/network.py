"""The torch module of an ONNX graph: one module for each node, called in the graph's order."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxloom.onnx.names import identifiers


@dataclass(frozen=True)
class Step:
    """A call of the module at `path` with tensors by their names in the graph."""

    path: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Port:
    """An input: its shape with the batch dimension at `batch_axis`."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    batch_axis: int

    def check(self, tensor: Tensor) -> None:
        """Raises ValueError for another shape, whatever the batch size is."""
        sizes = list(tensor.shape)
        fits = len(sizes) == len(self.shape) and all(
            have == want
            for dim, (have, want) in enumerate(zip(sizes, self.shape, strict=True))
            if dim != self.batch_axis
        )
        if not fits:
            wanted: list[object] = list(self.shape)
            wanted[self.batch_axis] = "batch"
            raise ValueError(f"input {self.name}: required shape {wanted}, {sizes} arrived")


class Scope(nn.Module):
    """What modules with a common beginning of their names are in."""


class Network(nn.Module):
    """Computes what an ONNX graph computes, for any number of samples."""

    def __init__(
        self,
        modules: Sequence[tuple[Step, nn.Module]],
        inputs: Sequence[Port],
        outputs: Sequence[str],
    ) -> None:
        super().__init__()
        self.ports = tuple(inputs)
        self.input_names = identifiers([port.name for port in inputs])
        self._outputs = tuple(outputs)
        self._steps = tuple(step for step, _ in modules)
        for step, module in modules:
            *scopes, last = step.path.split(".")
            inside: nn.Module = self
            for scope in scopes:
                if scope not in inside._modules:
                    inside.add_module(_allowed(inside, scope), Scope())
                inside = inside.get_submodule(scope)
            inside.add_module(_allowed(inside, last), module)

    def example_inputs(self, samples: int = 2) -> tuple[Tensor, ...]:
        """Random inputs of the declared shapes; integers are zero."""
        generator = torch.Generator().manual_seed(0)
        examples = []
        for port in self.ports:
            shape = list(port.shape)
            shape[port.batch_axis] = samples
            noise = torch.randn(shape, generator=generator)
            examples.append(
                noise.to(port.dtype)
                if port.dtype.is_floating_point
                else noise.mul(0).to(port.dtype)
            )
        return tuple(examples)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        if len(inputs) != len(self.ports):
            names = ", ".join(port.name for port in self.ports)
            raise ValueError(f"{len(self.ports)} inputs ({names}), {len(inputs)} arrived")
        for port, tensor in zip(self.ports, inputs, strict=True):
            port.check(tensor)
        values = {port.name: tensor for port, tensor in zip(self.ports, inputs, strict=True)}
        for step in self._steps:
            results = self.get_submodule(step.path)(*(values[name] for name in step.inputs))
            if isinstance(results, Tensor):
                results = (results,)
            values.update(
                (name, result) for name, result in zip(step.outputs, results, strict=False) if name
            )
        outputs = tuple(values[name] for name in self._outputs)
        return outputs[0] if len(outputs) == 1 else outputs


def _allowed(inside: nn.Module, name: str) -> str:
    assert not hasattr(inside, name), name
    return name
