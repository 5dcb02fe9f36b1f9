"""What data say of the outputs of layers: how they vary together, and how much an error in them
moves the outputs of the model.

The best map of rank r in a layer's place projects its outputs onto the leading eigenvectors of
their covariance (reduced-rank regression: Izenman 1975, doi 10.1016/0047-259X(75)90042-1; for
convolutions Zhang et al. 2015, arXiv 1505.06798, section 3.1), so that covariances of outputs are
all that ranks are chosen by: small even where a layer has many inputs. Errors are measured in the
metric of the model's outputs, to first order: the mean product of the gradients at the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from fxloom.errors import DataError
from fxloom.graph import output_nodes
from fxloom.passes.calibration import Batch
from fxloom.passes.distance import Distance, several
from fxloom.passes.factor_subjects import Subject, read_by
from fxloom.passes.layerwise import bias_of
from fxloom.passes.part_running import output_rows
from fxloom.passes.second_order import NOISE

RIDGE = 0.01
"""Share of the mean variance of an input that is added to each where there are many samples: what
few data do not say is taken to be noise. 1 / samples where that is more."""

DAMPING = 0.01
"""Share of the mean curvature of an output that is added to each."""

PROBES = 2
"""Random directions at the model's outputs, for every batch."""

DOUBLE = 2048
"""Outputs up to which matrices are float64."""


@dataclass(eq=False)
class Statistics:
    """Of the outputs of one layer, without its bias.

    covariance: [groups, outputs, outputs], around the means where the layer has a bias of its own,
    with that of noise at the inputs. metric: [groups, outputs, outputs], positive definite, about 1
    in the mean; harm: what one unit of it moves the model's outputs. ridge: variance of the noise,
    relative to the mean of the inputs'.
    """

    covariance: Tensor
    metric: Tensor
    harm: float
    ridge: float

    def tails(self) -> Tensor:
        """float64 [outputs of a group + 1]: what the model's outputs move where only so many
        directions of the layer's outputs are kept, in the mean over samples."""
        root, _ = roots(self.metric)
        values = torch.linalg.eigvalsh(root @ self.covariance @ root).clamp(min=0)
        ascending = values.to(torch.float64).sum(0)
        sums = torch.cat([torch.zeros(1, dtype=torch.float64), ascending.cumsum(0)])
        return sums.flip(0) * self.harm


def roots(metric: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric root of positive definite matrices, and its inverse."""
    values, vectors = torch.linalg.eigh(metric)
    root = values.clamp(min=torch.finfo(values.dtype).tiny).sqrt()[..., None, :]
    flipped = vectors.transpose(-1, -2)
    return (vectors * root) @ flipped, (vectors / root) @ flipped


def own_products(subject: Subject, dtype: torch.dtype) -> Tensor:
    """[groups, outputs, outputs]: the weights of outputs, multiplied and added up."""
    rows = subject.layer.weight.detach().reshape(subject.layer.groups, subject.layer.n_out, -1)
    wide = rows.to(torch.float64) if rows.numel() <= DOUBLE**2 else rows
    return (wide @ wide.transpose(1, 2)).to(dtype)


def type_for(subject: Subject) -> torch.dtype:
    """Of the matrices of a layer."""
    return torch.float64 if subject.layer.n_out <= DOUBLE else torch.float32


class _Sums:
    """What one layer gives, added up."""

    def __init__(self, module: fx.GraphModule, subject: Subject) -> None:
        self.subject = subject
        self.dtype = type_for(subject)
        shape = (subject.layer.groups, subject.layer.n_out)
        self.rows = 0
        self.products = torch.zeros(*shape, shape[1], dtype=self.dtype)
        self.curvature = torch.zeros_like(self.products)
        self.sums = torch.zeros(shape, dtype=self.dtype)
        self.inputs = torch.zeros(3, subject.layer.groups * subject.layer.n_in).double()
        self.bias = bias_of(module, subject.readers[0]) if subject.bias is not None else None

    def see(self, x: Tensor, y: Tensor) -> None:
        """What a layer reads and gives."""
        rows = self._rows(y)
        if self.bias is not None:
            rows = rows - self.bias.to(self.dtype).reshape(len(rows), 1, -1)
        self.rows += rows.shape[1]
        self.products += rows.transpose(1, 2) @ rows
        self.sums += rows.sum(1)
        if self.subject.is_embedding:  # 1 in one of the rows, which are all as likely
            mean = rows.new_tensor(1 / self.subject.layer.n_in).double()
            self.inputs += torch.stack([torch.ones_like(mean), mean, mean])[:, None]
            return
        axis = 1 if self.subject.layer.kernel else x.dim() - 1
        flat = x.transpose(0, axis).reshape(x.shape[axis], -1)
        self.inputs[0] += flat.shape[1]
        self.inputs[1] += flat.sum(1, dtype=torch.float64)
        self.inputs[2] += flat.square().sum(1, dtype=torch.float64)

    def _rows(self, y: Tensor) -> Tensor:
        return output_rows(self.subject.layer.dense[0], y).to(self.dtype)

    def see_gradient(self, gradient: Tensor) -> None:
        """Of a probe of the model's outputs."""
        rows = self._rows(gradient)
        self.curvature += rows.transpose(1, 2) @ rows

    def statistics(self, samples: int) -> Statistics:
        """Of all that was seen. samples: how many those were."""
        for sums in (self.products, self.inputs, self.curvature):
            if not bool(torch.isfinite(sums).all()):
                raise DataError(
                    f"{self.subject.name}: the float model gives NaN or infinity on the data. "
                    "Check its weights and the data"
                )
        layer, is_centred = self.subject.layer, self.subject.bias is not None
        covariance = self.products / self.rows
        means, squares = self.inputs[1:] / self.inputs[0]
        if is_centred:
            mean = self.sums / self.rows
            covariance -= mean[:, :, None] * mean[:, None, :]
        variance = (squares - means.square() if is_centred else squares).reshape(layer.groups, -1)
        power = squares.reshape(layer.groups, -1).mean(1)
        ridge = max(RIDGE, 1 / samples)
        # Constant inputs say nothing: then all weights count alike.
        noise = torch.where(variance.mean(1) > NOISE * power, ridge * variance.mean(1), 1.0)
        covariance += noise.to(self.dtype)[:, None, None] * own_products(self.subject, self.dtype)
        diagonal = self.curvature.diagonal(dim1=1, dim2=2)
        level = float(diagonal.mean())
        metric = self.curvature / (level or 1.0)
        metric.diagonal(dim1=1, dim2=2).add_(DAMPING)
        # Rows of an image add up: an error at each of them.
        return Statistics(covariance, metric, level / samples / PROBES, ridge)


def measure(
    module: fx.GraphModule, subjects: Sequence[Subject], batches: Sequence[Batch]
) -> dict[str, Statistics]:
    """The statistics of layers of a float graph, which is left as it is, by the layers' names."""
    found = {each: _Sums(module, each) for each in subjects}
    watched = {node: found[each] for each in subjects for node in each.readers}
    generator = torch.Generator().manual_seed(0)
    probe = _probe(module, batches)
    samples = 0
    for batch in batches:
        with torch.enable_grad():
            run = _Watching(module, watched)
            outputs = several(run.run(*batch))
            samples += len(outputs[0]) if outputs else len(batch[0])
            for _ in range(PROBES):
                scalar = probe(outputs, generator)
                if scalar is not None and scalar.requires_grad:
                    _see_gradients(scalar, run.values, watched)
    if not any(bool(each.curvature.any()) for each in found.values()):
        _count_outputs(found.values())
    return {each.name: sums.statistics(samples) for each, sums in found.items()}


def _see_gradients(
    scalar: Tensor, values: Mapping[Node, Tensor], watched: Mapping[Node, _Sums]
) -> None:
    found = torch.autograd.grad(scalar, list(values.values()), retain_graph=True, allow_unused=True)
    for node, gradient in zip(values, found, strict=True):
        if gradient is not None:
            watched[node].see_gradient(gradient)


def _count_outputs(found: Iterable[_Sums]) -> None:
    """Where nothing is known of the model's outputs: the share of a layer's variance."""
    for sums in found:
        mean = sums.sums / sums.rows
        variance = float((sums.products.diagonal(dim1=1, dim2=2) / sums.rows - mean**2).sum())
        sums.curvature.diagonal(dim1=1, dim2=2).fill_(PROBES / max(variance, 1e-30))


def _probe(
    module: fx.GraphModule, batches: Sequence[Batch]
) -> Callable[[Sequence[Tensor], torch.Generator], Tensor | None]:
    if not any(node.meta["val"].is_floating_point() for node in output_nodes(module)):
        return lambda outputs, generator: None

    def again() -> Iterator[Batch]:
        return iter(batches)

    return Distance.of(module, again, squares=True).probe


class _Watching(fx.Interpreter):
    """Runs a graph and collects what layers read and give."""

    def __init__(self, module: fx.GraphModule, sums: Mapping[Node, _Sums]) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.values: dict[Node, Tensor] = {}
        self._sums = sums

    def run_node(self, n: Node) -> Any:
        """The node's value, seen."""
        value = super().run_node(n)
        if n in self._sums:
            self._sums[n].see(self.env[read_by(n)].detach(), value.detach())
            if not value.requires_grad:
                value.requires_grad_()
            self.values[n] = value
        return value
