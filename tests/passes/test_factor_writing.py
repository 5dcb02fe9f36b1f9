"""Chains of layers in the place of one: what is written computes the same, wherever it is read."""

from collections.abc import Callable
from math import prod

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxloom
from fxloom.data import Data
from fxloom.editing import copy_graph, finish
from fxloom.frontend import capture
from fxloom.graph import arguments, origin, refresh_shapes
from fxloom.passes import Factorize, Finetune, FoldBatchnorm, Prune, Quantize
from fxloom.passes.factor_norms import measure_norms
from fxloom.passes.factor_writing import (
    merged,
    obstacles,
    readers_of,
    write_chain,
)
from fxloom.passes.factors import Chain, Part
from fxloom.passes.prunable import Prunable, find_prunable
from fxloom.quantized_ops import REQUANTIZE

aten = torch.ops.aten

Make = Callable[[Prunable], Chain]


def svd(each: Prunable) -> Chain:
    """At full rank: of a linear layer, or group by group of a convolution, whose kernel goes into
    the first part."""
    values, groups = each.values.double(), each.groups
    u, s, v = torch.linalg.svd(values.reshape(groups, values.shape[0] // groups, -1), False)
    first = (s[..., None] * v).flatten(0, 1)
    second = u.flatten(0, 1)
    if values.dim() == 2:
        return Part(first), Part(second)
    axes = values.dim() - 2
    ones, zeros = (1,) * axes, (0,) * axes
    stride, padding, dilation = (tuple(n) for n in arguments(each.readers[0])[3:6])
    return (
        Part(first.reshape(-1, *values.shape[1:]), stride, padding, dilation, groups),
        Part(second.reshape(*second.shape, *ones), ones, zeros, ones, groups),
    )


def spatial(each: Prunable) -> Chain:
    """At full rank: a column of the kernel, then a row."""
    n_out, n_in, height, width = each.values.shape
    matrix = each.values.double().permute(1, 2, 0, 3).reshape(n_in * height, n_out * width)
    u, s, v = torch.linalg.svd(matrix, False)
    first = u.reshape(n_in, height, 1, -1).permute(3, 0, 1, 2)
    second = (s[:, None] * v).reshape(-1, n_out, 1, width).transpose(0, 1)
    attributes = arguments(each.readers[0])[3:6]
    (s0, s1), (p0, p1), (d0, d1) = attributes
    return (
        Part(first, (s0, 1), (p0, 0), (d0, 1)),
        Part(second, (1, s1), (0, p1), (1, d1)),
    )


def tensor_train(each: Prunable, ins: tuple[int, ...], outs: tuple[int, ...]) -> Chain:
    """At full rank: one axis of the inputs after another becomes one of the outputs."""
    count = len(ins)
    left = each.values.double().reshape(*outs, *ins)
    left = left.permute(*(axis for k in range(count) for axis in (count + k, k)))
    cores, rank = [], 1
    for n, m in zip(ins[:-1], outs[:-1], strict=True):
        u, s, v = torch.linalg.svd(left.reshape(rank * n * m, -1), False)
        cores.append(u.reshape(rank, n, m, -1))
        left, rank = s[:, None] * v, len(s)
    cores.append(left.reshape(rank, ins[-1], outs[-1], 1))
    parts = []
    done: list[int] = []
    for k, core in enumerate(cores):  # [*ins[k:], *done, rank] -> [*ins[k + 1:], *done, m, rank]
        r, n, m, after = core.shape
        view = (n, *ins[k + 1 :], *done, r)
        last = len(view) - 1
        weight = core.permute(2, 3, 1, 0).reshape(m * after, n * r)
        parts.append(Part(weight, view=view, order=(*range(1, last), 0, last)))
        done.append(m)
    return tuple(parts)


class Net(nn.Module):
    """Convolutions of all kinds, a flattened image, linear layers on several axes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=(2, 1), padding=(1, 2), dilation=(1, 2))
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 6, (3, 2), groups=2, bias=False)
        self.hidden, self.rows = nn.Linear(6 * 2 * 6, 12), nn.Linear(4, 6)
        self.signal, self.head = nn.Conv1d(3, 4, 3, padding=1), nn.Linear(24, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        y = torch.relu(self.hidden(self.grouped(y).flatten(1)))
        y = self.signal(self.rows(y.reshape(-1, 3, 4)))
        return self.head(y.flatten(1))


def net() -> tuple[GraphModule, Tensor]:
    torch.manual_seed(0)
    model = Net().eval()
    model.norm.running_mean.uniform_(-0.2, 0.2)
    model.norm.running_var.uniform_(0.3, 2)
    x = torch.randn(64, 2, 7, 7)
    return capture(model, x[:2]), x


def factored(graph: GraphModule, makes: dict[str, Make], norms: bool = False) -> GraphModule:
    """The layers of these names as chains."""
    module = copy_graph(graph)
    for each in find_prunable(module):
        if each.name in makes:
            assert list(obstacles(module, each)) == []
            write_chain(module, each.readers, makes[each.name](each), norms=norms)
    module = finish(module)
    kept = [node.meta.get("val") for node in module.graph.nodes]
    refresh_shapes(module)
    for value, node in zip(kept, module.graph.nodes, strict=True):
        assert getattr(value, "shape", None) == getattr(node.meta.get("val"), "shape", None)
    return module


MAKES: dict[str, Make] = {
    "conv": spatial,
    "grouped": svd,
    "hidden": lambda each: tensor_train(each, (3, 4, 6), (2, 2, 3)),
    "rows": svd,
    "signal": svd,
    "head": lambda each: tensor_train(each, (4, 6), (1, 5)),
}


def integers_agree(graph: GraphModule, x: Tensor) -> fxloom.Program:
    """Lower a quantized graph, whose values must be those of the simulator."""
    program = fxloom.lower(graph)
    program.verify()
    with torch.no_grad():
        wanted = fxloom.exact_forward(graph, x)
    np.testing.assert_array_equal(fxloom.simulate(program, x.numpy()), wanted.numpy())
    return program


def test_at_full_rank_chains_compute_what_the_layers_did_and_lower() -> None:
    graph, x = net()
    before = {name: tensor.clone() for name, tensor in graph.state_dict().items()}
    code, wanted = graph.code, graph(x)
    module = factored(graph, MAKES)
    torch.testing.assert_close(module(x), wanted, atol=2e-6, rtol=0)
    names = {name.removesuffix("_1") for name, _ in module.named_parameters()}
    assert {"conv.weight_factor0", "conv.weight_factor1", "hidden.weight_factor2"} <= names
    assert not names & {f"{name}.weight" for name in MAKES}
    layers = {origin(n) for n in module.graph.nodes if n.op == "call_function"}
    assert {"conv.factor0", "conv.factor1", "rows.factor1", "hidden.factor2"} <= layers
    assert not layers & MAKES.keys()
    assert (code, {*before}) == (graph.code, {*graph.state_dict()})
    assert all(torch.equal(before[name], tensor) for name, tensor in graph.state_dict().items())
    step = Quantize(layers={"conv*": {"weights": 5}, "head.factor1": {"weights": 4}})
    result = step(module, Data(x))
    program = integers_agree(result.graph, x)
    assert {"conv.factor0", "hidden.factor1"} <= {instr.origin for instr in program.instrs}
    widths = {name: each.value.type.width for name, each in program.constants.items()}
    assert {widths[f"conv.weight_factor{n}"] for n in (0, 1)} == {5}
    assert (widths["head.weight_factor0"], widths["head.weight_factor1"]) == (8, 4)


class Tied(nn.Module):
    """One tensor under two names, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.second(torch.relu(self.first(self.first(x)))))
        return self.head(y)


def test_readers_of_one_tensor_read_the_same_factors() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 6)
    graph = capture(Tied(), x[:2])
    module = factored(graph, {each.name: svd for each in find_prunable(graph)})
    torch.testing.assert_close(module(x), graph(x), atol=1e-6, rtol=0)
    assert sorted(dict(module.named_parameters())) == [
        *("first.bias", "first.weight_factor0", "first.weight_factor1"),
        *("head.bias", "head.weight_factor0", "head.weight_factor1", "second.bias"),
    ]
    layers = [origin(n) for n in module.graph.nodes if n.target is aten.linear.default]
    assert layers == [
        f"{name}.factor{k}" for name in ("first", "first_1", "second", "head") for k in (0, 1)
    ]
    integers_agree(Quantize()(module, Data(x)).graph, x)


@pytest.mark.parametrize(
    ("view", "order", "shortest"),
    [
        ((2, 3, 4), (0, 1, 2), ((24,), (0,))),
        ((2, 3, 4), (1, 2, 0), ((2, 12), (1, 0))),
        ((2, 1, 3, 4), (2, 1, 0, 3), ((2, 3, 4), (1, 0, 2))),
        ((2, 3, 4, 5), (2, 3, 0, 1), ((6, 20), (1, 0))),
        ((1, 1), (1, 0), ((), ())),
    ],
)
def test_axes_that_stay_side_by_side_are_one(
    view: tuple[int, ...], order: tuple[int, ...], shortest: tuple[tuple[int, ...], ...]
) -> None:
    assert merged(view, order) == shortest
    x = torch.arange(prod(view))
    moved = x.reshape(shortest[0]).permute(shortest[1]).flatten()
    assert torch.equal(moved, x.reshape(view).permute(order).flatten())


def test_batch_norms_change_nothing_at_first_train_and_fold_away() -> None:
    graph, x = net()
    module = copy_graph(graph)
    norms = []
    for each in find_prunable(module):
        if each.name in MAKES:
            chain = MAKES[each.name](each)
            written = write_chain(module, each.readers, chain, norms=True)
            assert written.parts == tuple(f"{each.name}.factor{k}" for k in range(len(chain)))
            norms += written.norms
    module = finish(module)
    assert len(norms) == 7
    torch.testing.assert_close(module(x), graph(x), atol=5e-6, rtol=0)
    measure_norms(module, norms, [(x[:40],), (x[40:],)])
    torch.testing.assert_close(module(x), graph(x), atol=5e-6, rtol=0)
    state = module.state_dict()
    assert float((state["rows.norm0.running_var"] - 1).abs().max()) > 0.01
    trained = Finetune(epochs=1)(module, Data(x, x[:, 0, 0, :5].argmax(1))).graph
    moved = {n for n, each in trained.state_dict().items() if not torch.equal(each, state[n])}
    assert {"conv.norm0.weight", "conv.norm0.running_mean", "head.weight_factor1"} <= moved
    folded = FoldBatchnorm()(trained)
    assert folded.summary["affine"] == []
    torch.testing.assert_close(folded.graph(x), trained(x), atol=1e-5, rtol=0)
    assert not any(".norm" in name for name in folded.graph.state_dict())
    integers_agree(Quantize()(trained, Data(x)).graph, x)
    for node in norms:  # training begins where evaluation is: these are the statistics of all data
        node.update_arg(5, True)
    module.recompile()
    torch.testing.assert_close(module(x), graph(x), atol=1e-5, rtol=0)


class Recurrent(nn.Module):
    """A recurrent layer and what reads its last step."""

    def __init__(self, kind: type[nn.Module], **keys: int) -> None:
        super().__init__()
        self.rnn = kind(3, 4, batch_first=True, **keys)
        self.head = nn.Linear(8 if "bidirectional" in keys else 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize(
    ("kind", "keys"),
    [(nn.LSTM, {}), (nn.GRU, {"bidirectional": True}), (nn.RNN, {})],
)
def test_all_steps_of_a_recurrence_read_the_same_factors_in_one_format(
    kind: type[nn.Module], keys: dict[str, int]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 2, 3)
    graph = capture(Recurrent(kind, **keys).eval(), x[:2])
    layers = find_prunable(graph)
    module = factored(graph, {each.name: svd for each in layers})
    torch.testing.assert_close(module(x), graph(x), atol=2e-6, rtol=0)
    weights = [name for name in dict(module.named_parameters()) if "weight" in name]
    assert len(weights) == 2 * len(layers)
    quantized = Quantize()(module, Data(x)).graph
    roles: dict[str, set[object]] = {}
    for node in quantized.graph.nodes:
        source = arguments(node)[0] if node.target is REQUANTIZE else None
        if source is not None and source.target is aten.linear.default and source.meta.get("tied"):
            assert origin(source) == f"rnn.{source.meta['tied']}"
            roles.setdefault(origin(source), set()).add(arguments(node)[1:])
    gates = "rnn.l0.gates"
    assert {f"{gates}.factor0", f"{gates}.factor1"} <= roles.keys()
    assert all(len(formats) == 1 for formats in roles.values()), roles
    program = integers_agree(quantized, x)
    assert sum("weight" in name for name in program.constants) == len(weights)


def test_an_embedding_becomes_a_smaller_one_and_a_linear_layer() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(12, 6, padding_idx=3), nn.Linear(18, 4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.head(torch.relu(self.words(x) + self.words(y)).flatten(1))

    torch.manual_seed(0)
    x = torch.randint(0, 12, (40, 3)), torch.randint(0, 12, (40, 3))
    graph = capture(Words(), (x[0][:2], x[1][:2]))
    module = copy_graph(graph)
    each = find_prunable(module, embeddings=True)[0]
    u, s, v = torch.linalg.svd(each.values, full_matrices=False)
    chain = Part((u * s).T), Part(v.T)
    assert list(obstacles(module, each)) == []
    write_chain(module, readers_of(module, each), chain)
    module = finish(module)
    torch.testing.assert_close(module(*x), graph(*x), atol=2e-6, rtol=0)
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert shapes["words.weight_factor0"] == (12, 6)
    assert "words.weight" not in shapes
    tables = module.graph.find_nodes(op="call_function", target=aten.embedding.default)
    assert [origin(node) for node in tables] == ["words.factor0", "words_1.factor0"]
    assert all(arguments(node)[2] == 3 for node in tables)
    module(*x).sum().backward()
    assert not bool(module.get_parameter("words.weight_factor0").grad[3].any())
    quantized = Quantize()(module, Data(x)).graph
    wanted = fxloom.exact_forward(quantized, *x)
    got = fxloom.simulate(fxloom.lower(quantized), [each.numpy() for each in x])
    np.testing.assert_array_equal(got, wanted.numpy())


def test_the_pass_factors_embeddings_and_recurrences() -> None:
    torch.manual_seed(0)
    words, rnn = nn.Embedding(20, 8), nn.RNN(8, 8, batch_first=True)

    class Sentence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.rnn = words, rnn

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(self.words(x))[0][:, -1]

    with torch.no_grad():  # of rank 2 and 3
        words.weight.copy_(torch.randn(20, 2) @ torch.randn(2, 8))
        left = torch.randn(8, 3) / 8
        rnn.weight_ih_l0.copy_(left @ torch.randn(3, 8))
        rnn.weight_hh_l0.copy_(left @ torch.randn(3, 8))
    x = torch.randint(0, 20, (40, 3))
    graph = capture(Sentence(), x[:2])
    step = Factorize(rank=2, layers={"rnn*": {"rank": 3}})
    module = step(graph).graph
    torch.testing.assert_close(module(x), graph(x), atol=1e-5, rtol=0)
    shapes = {tuple(p.shape) for name, p in module.named_parameters() if "factor" in name}
    assert shapes == {(20, 2), (8, 2), (3, 16), (8, 3)}
    integers_agree(Quantize()(module, Data(x)).graph, x)


def test_all_factors_get_gradients() -> None:
    graph, x = net()
    module = factored(graph, MAKES)
    module(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()), name


def test_what_stands_against_a_chain_is_said() -> None:
    class Others(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 2, 3), nn.ConvTranspose2d(2, 3, 3)
            self.c = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            again = nn.functional.conv2d(x, self.a.weight, padding=1)
            y = self.b(self.a(x) + again[..., 1:-1, 1:-1])
            return self.c(y) @ self.c.weight, y

    x = torch.randn(2, 2, 6, 6)
    module = capture(Others(), x)
    found = {each.name: list(obstacles(module, each)) for each in find_prunable(module)}
    assert found == {
        "convolution": ["its weights are read with different strides, paddings or dilations"],
        "b": ["it is a transposed convolution"],
        "c": ["its weights are read in other ways as well"],
    }
    module = capture(Tied(), torch.randn(2, 6))
    first = find_prunable(module)[0]
    assert list(obstacles(module, first, norms=True)) == [
        "its weights are read several times, and a batch norm has one set of statistics"
    ]
    pruned = Prune(sparsity=0.5)(module).graph
    assert "were pruned or shared" in next(obstacles(pruned, find_prunable(pruned)[0]))
