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
from typing import TYPE_CHECKING, ClassVar

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, fx, nn
from torch.fx.node import Node

from fxloom.editing import copy_graph
from fxloom.errors import CaptureError, DataError, RecipeError
from fxloom.fixed_point import FixedPoint
from fxloom.graph import (
    arguments,
    as_indices,
    check_inputs,
    constant,
    input_specs,
    origin,
    output_nodes,
    set_training,
)
from fxloom.passes.chains import LAYERS, fraction_of
from fxloom.passes.checkpoints import Checkpoint, digest
from fxloom.passes.fitting import bias_format
from fxloom.passes.training import LossName, Samples, Training, forward, loss_of, split
from fxloom.quantized_ops import REQUANTIZE, REQUANTIZE_CHANNELS
from fxloom.recipe import PassResult, progress_of_pass
from fxloom.settings import convert, known_keys, unmatched

if TYPE_CHECKING:
    from fxloom.data import Data

aten = torch.ops.aten

ROOM = 62
"""Bits of a bias while it trains: it must not saturate, whatever its values were before."""

DIGITS = 6
"""Significant digits of losses in the report: sums differ in later ones between machines."""


@known_keys(RecipeError)
@dataclass(frozen=True)
class Finetune:
    """Training on the data's labels, of a float or a quantized graph.

    epochs: how often every sample is seen. learning_rate: of AdamW at the first step; it falls to
    zero as a cosine. weight_decay: of AdamW, for weights and not for biases. batch: samples of a
    step. loss: cross_entropy (class numbers and an output for each class), nll (the same where
    outputs are probabilities), mse (numbers); auto chooses by labels and outputs. validation: share
    of the training samples that is held out; the state with the least loss on them is kept, else
    the last. patience: epochs without a lower loss on them at which training ends; 0 means that it
    never ends early. freeze: layers that do not train (fnmatch patterns on names); all others do,
    whether or not the model had them frozen. seed: of the order and of the held-out samples.
    device: auto means a GPU where torch has one. checkpoint: a folder that gets the whole state
    after every epoch; the same training resumes from it.
    """

    name: ClassVar[str] = "finetune"
    needs_data: ClassVar[bool] = True

    epochs: int = 20
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    batch: int = 64
    loss: LossName = "auto"
    validation: float = 0.0
    patience: int = 0
    freeze: tuple[str, ...] = ()
    seed: int = 0
    device: str = "auto"
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        converted, problems = convert(Finetune, values)
        if problems:
            raise RecipeError("\n".join(problems))
        for name, value in converted.items():
            object.__setattr__(self, name, value)
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
        if self.patience and not self.validation:
            problems.append("patience: required validation above 0, which patience looks at")
        if problems:
            raise RecipeError("\n".join(problems))

    def __call__(self, graph: fx.GraphModule, data: Data | None = None) -> PassResult:
        if data is None:
            raise RecipeError("finetune: required data to train on, got none")
        samples = _samples(graph, data)
        if len(outputs := output_nodes(graph)) != 1:
            raise RecipeError(
                f"finetune: required a model with one output, got {len(outputs)}: a loss compares "
                "one output with the labels"
            )
        place = _device(self.device)
        module = _own_copy(graph)
        trained = self._trained(module)
        self._require_batches(module, samples)
        checkpoint = self._checkpoint(graph, samples)
        samples = _moved(samples, place)
        held = split(samples, self.validation, self.seed)
        module.to(place)
        _widen_biases(module)
        with torch.no_grad():
            first = forward(module, samples.rows(torch.arange(min(len(samples), 64))).inputs)
        name, loss = loss_of(self.loss, first, samples)
        with _progress(self.epochs) as progress:
            training = Training(
                module,
                {target: _parameter(module, target) for target in trained},
                _bounds(module, trained),
                lambda flag: self._set_training(module, flag),
                loss,
                self.epochs,
                self.learning_rate,
                self.weight_decay,
                self.batch,
                self.patience,
                self.seed,
                checkpoint,
                progress,
            )
            training.run(*held)
        module.to("cpu")
        for target, p in module.named_parameters():
            p.grad = None
            p.requires_grad_(constant(graph, target).requires_grad)
        biases = _fit_biases(module)
        module.recompile()
        kept = training.history[training.best_epoch]
        summary: dict[str, object] = {
            "loss": name,
            "epochs": len(training.history),
            "kept_epoch": training.best_epoch + 1,
            "first": _shortened(training.history[0]),
            "kept": _shortened(kept),
            "biases": biases,
        }
        return PassResult(module, True, summary)

    def _trained(self, module: fx.GraphModule) -> list[str]:
        """Names of the parameters that train; all others need no gradient."""
        readers = _readers(module)
        layers = sorted({layer for names in readers.values() for layer in names})
        if wrong := unmatched(self.freeze, layers):
            raise RecipeError(
                f"finetune: freeze: {', '.join(wrong)} matches no layer. Layers with parameters: "
                f"{', '.join(layers) or 'none'}"
            )
        trained = []
        for name, p in module.named_parameters():
            frozen = any(self._is_frozen(layer) for layer in readers.get(name, ()))
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
        frozen = [n for n in _batch_norms(module) if flag and self._is_frozen(origin(n))]
        for node in frozen:
            node.update_arg(5, False)
        if frozen:
            module.recompile()

    def _require_batches(self, module: fx.GraphModule, samples: Samples) -> None:
        count = min(self.batch, round(len(samples) * (1 - self.validation)))
        norms = [origin(n) for n in _batch_norms(module) if not self._is_frozen(origin(n))]
        if count < 2 and norms:
            raise RecipeError(
                f"finetune: {norms[0]}: a batch norm needs batches of at least 2 samples, got "
                f"{count}. Choose a larger batch, give more samples, or freeze it"
            )

    def _checkpoint(self, graph: fx.GraphModule, samples: Samples) -> Checkpoint | None:
        if self.checkpoint is None:
            return None
        state = graph.state_dict()
        keys = {
            each.name: str(getattr(self, each.name))
            for each in fields(self)
            if each.name not in ("checkpoint", "device")
        }
        identity = {
            "graph": digest([str(graph.graph), *(p for item in state.items() for p in item)]),
            "data": digest([*samples.inputs, samples.labels]),
            **keys,
        }
        return Checkpoint(Path(self.checkpoint), identity)


def _samples(graph: fx.GraphModule, data: Data) -> Samples:
    """All training samples, as the graph takes them but samples first, with their labels."""
    parts: list[tuple[Tensor, ...]] = []
    labels = []
    specs = input_specs(graph)
    for x, y in data.pairs("train"):
        if y is None:
            raise DataError("finetune: required labels, y_train, but the data has none")
        inputs = as_indices(graph, x)
        wanted = zip(inputs, specs, strict=False)
        arrived = tuple(
            t.to(spec.dtype) if spec.dtype.is_floating_point else t for t, spec in wanted
        )
        try:
            check_inputs(graph, tuple(
                t.movedim(0, spec.batch_axis) if t.dim() > spec.batch_axis else t
                for t, spec in zip(arrived, specs, strict=False)
            ) + inputs[len(specs):])  # fmt: skip
        except CaptureError as error:
            raise DataError(f"training data: {error}") from None
        parts.append(arrived)
        labels.append(y)
    if len({y.is_floating_point() for y in labels}) > 1:
        labels = [y.to(torch.float32) for y in labels]
    return Samples(tuple(torch.cat(each) for each in zip(*parts, strict=True)), torch.cat(labels))


def _moved(samples: Samples, place: torch.device) -> Samples:
    return Samples(tuple(x.to(place) for x in samples.inputs), samples.labels.to(place))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(name)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as fault:
        reason = str(fault).strip().splitlines()[0]
        raise RecipeError(f'finetune: device: "{name}" cannot be used: {reason}') from None
    return place


def _own_copy(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph with tensors of its own; those that were tied still are."""
    module = copy_graph(graph)
    fresh: dict[object, Tensor] = {}
    for name, old in [*module.named_parameters(remove_duplicate=False),
                      *module.named_buffers(remove_duplicate=False)]:  # fmt: skip
        key = (old.data_ptr(), old.shape, old.stride(), old.dtype) if old.numel() else name
        if key not in fresh:
            values = old.detach().clone()
            fresh[key] = nn.Parameter(values, old.requires_grad) if _is_parameter(old) else values
        *path, leaf = name.split(".")
        setattr(module.get_submodule(".".join(path)), leaf, fresh[key])
    return module


def _is_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor, nn.Parameter)


def _parameter(module: fx.GraphModule, name: str) -> Tensor:
    return constant(module, name)


def _readers(module: fx.GraphModule) -> Mapping[str, set[str]]:
    """The layers that read each parameter, directly or rounded."""
    names = dict(module.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    readers: dict[str, set[str]] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr" and str(node.target) in names:
            # Tied parameters train under the first of their names.
            found = first.setdefault(id(names[str(node.target)]), _first_name(module, node))
            readers.setdefault(found, set()).update(
                origin(user) for user in node.users if user.op == "call_function"
            )
    return readers


def _first_name(module: fx.GraphModule, node: Node) -> str:
    tensor = constant(module, node.target)
    return next(name for name, p in module.named_parameters() if p is tensor)


def _batch_norms(module: fx.GraphModule) -> list[Node]:
    return [n for n in module.graph.nodes if n.target is aten.batch_norm.default]


def _biases(module: fx.GraphModule) -> Iterator[tuple[Node, Node]]:
    """Layers with the rounding of their bias."""
    for node in module.graph.nodes:
        if node.target in LAYERS:
            bias = arguments(node)[2]
            if isinstance(bias, Node) and bias.target is REQUANTIZE:
                yield node, bias


def _widen_biases(module: fx.GraphModule) -> None:
    """Let biases become as large as training makes them, in the steps that they have."""
    for _, bias in _biases(module):
        room = ROOM - fraction_of(bias)
        bias.args = (arguments(bias)[0], ROOM, room, True, *arguments(bias)[4:])
    module.recompile()


def _fit_biases(module: fx.GraphModule) -> dict[str, str]:
    """Give every bias the format that its values need, in steps of its products."""
    formats: dict[str, str] = {}
    for node, bias in _biases(module):
        source = arguments(bias)[0]
        to = bias_format(node, constant(module, source.target).detach())
        bias.args = (source, to.width, to.integer, to.signed, *arguments(bias)[4:])
        formats[origin(node)] = str(to)
    return formats


def _bounds(module: fx.GraphModule, trained: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """What the formats of weights can hold: beyond it gradients are cut off, and a weight that
    got there could never come back (Courbariaux et al. 2015, arXiv 1511.00363, section 2.4)."""
    names = {id(constant(module, name)): name for name in trained}
    biases = {bias for _, bias in _biases(module)}
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for node in module.graph.nodes:
        if node.target not in (REQUANTIZE, REQUANTIZE_CHANNELS) or node in biases:
            continue
        source = arguments(node)[0]
        if source.op != "get_attr" or id(constant(module, source.target)) not in names:
            continue
        tensor = constant(module, source.target)
        low, high = _range(node, tensor)
        name = names[id(tensor)]
        if name in found:  # read in several formats: the wider one
            low, high = torch.minimum(low, found[name][0]), torch.maximum(high, found[name][1])
        found[name] = (low, high)
    return found


def _range(node: Node, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest value of a rounded weight, for every channel where they differ."""
    to = FixedPoint(*arguments(node)[-5:-2])
    step = torch.full((1,) * weights.dim(), to.step, dtype=weights.dtype)
    if node.target is REQUANTIZE_CHANNELS:
        shifts = torch.tensor(arguments(node)[1], dtype=weights.dtype)
        step = step * torch.exp2(-shifts).reshape(-1, *(1,) * (weights.dim() - 1))
    step = step.to(weights.device)
    return to.lo * step, to.hi * step


def _shortened(record: Mapping[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.{DIGITS}g}") for key, value in record.items()}


@contextmanager
def _progress(epochs: int) -> Iterator[Callable[[int, float], None]]:
    """A function that is told the epochs that are done and the loss: for people only."""
    tell = progress_of_pass()
    if not sys.stderr.isatty():
        yield lambda done, loss: None
    elif tell is not None:
        yield lambda done, loss: tell(f"epoch {done} of {epochs}, loss {loss:.4g}")
    else:
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("finetune", total=epochs)
            yield lambda done, loss: bar.update(
                task, completed=done, description=f"finetune, loss {loss:.4g}"
            )
