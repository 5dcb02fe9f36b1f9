"""The graph computes what the model computes, and the model stays as it was."""

import copy
import random
from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxloom.errors import CaptureError, UnsupportedLayer
from fxloom.graph import (
    aten,
    check_inputs,
    input_specs,
    insert_like,
    lint_origins,
    origin,
    refresh_shapes,
    set_training,
)
from fxloom.state_names import spell
from tests.capturing import capture_anything as capture
from tests.models import AwkwardNames, make

X = torch.linspace(-2, 2, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.drop(self.relu(self.bn(self.conv(x))).mean((2, 3))))
        return y


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    model.bn.running_mean.uniform_(-1, 1)
    model.bn.running_var.uniform_(0.5, 2)
    return model


def same(graph: fx.GraphModule, model: nn.Module, *inputs: Tensor) -> None:
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(graph(*inputs), model(*inputs))


def test_a_model_in_training_is_left_as_it_was(net: Net) -> None:
    net.train()
    net.drop.eval()
    net.conv.weight.requires_grad_(False)
    hook = net.relu.register_forward_hook(lambda module, args, output: None)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    flags = [module.training for module in net.modules()]
    versions = [tensor._version for tensor in net.state_dict(keep_vars=True).values()]
    generator = torch.get_rng_state()
    capture(net, X)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in net.modules()] == flags
    assert [t._version for t in net.state_dict(keep_vars=True).values()] == versions
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    assert [p.requires_grad for p in net.parameters()] == [False] + [True] * 5
    assert all(parameter.grad is None for parameter in net.parameters())
    assert len(net.relu._forward_hooks) == 1
    hook.remove()
    assert not net.relu._forward_hooks


def test_attributes_that_forward_sets_do_not_stay() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.last = x * 2
            self.seen.append(x)
            return self.last

    model = Remembers()
    capture(model, X)
    assert not hasattr(model, "last")
    assert model.seen == []


def test_a_failing_capture_restores_the_model(net: Net) -> None:
    net.train()
    with pytest.raises(CaptureError):
        capture(net, torch.ones(2, 5))
    assert all(module.training for module in net.modules())


def test_parameters_share_the_models_storage_under_their_names(net: Net) -> None:
    graph = capture(net, X)
    own = dict(net.named_parameters())
    assert {name for name, _ in graph.named_parameters()} == set(own)
    for name, parameter in graph.named_parameters():
        assert parameter.data_ptr() == own[name].data_ptr()
        assert parameter is not own[name]
        assert parameter.requires_grad == own[name].requires_grad


def test_a_one_sample_example_gives_a_graph_for_any_batch(net: Net) -> None:
    graph = capture(net, X[:1])
    for batch in (1, 2, 5):
        same(graph, net, torch.randn(batch, 3, 8, 8))


def test_no_op_works_in_place(net: Net) -> None:
    graph = capture(net, X)
    assert not [
        node
        for node in graph.graph.nodes
        if node.op == "call_function" and node.target._schema.name.endswith("_")
    ]


def test_inplace_aliases_are_followed() -> None:
    class Aliases(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            z = F.relu(y, inplace=True)
            y[:, 0] = 1
            y += 1
            return y + z

    same(capture(Aliases(), X), Aliases(), X)

    class Relu(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            z = F.relu(y, inplace=True)
            y += 1
            return y + z

    same(capture(Relu(), X), Relu(), X)


def test_residual_on_the_input_and_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = a + self.fc(self.fc(b))
            return y, a, y

    graph = capture(Two(), (torch.ones(2, 4), torch.ones(2, 4)))
    assert [spec.name for spec in input_specs(graph)] == ["a", "b"]
    model = Two()
    model.load_state_dict(graph.state_dict())
    same(graph, model, torch.randn(3, 4), torch.randn(3, 4))


def test_tied_weights_stay_one_parameter() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    graph = capture(model, torch.ones(2, 4) / 3)
    weights = [node.args[1].target for node in graph.graph.nodes if node.op == "call_function"]
    assert len(set(weights)) == 1
    assert len(list(graph.parameters())) == 3


def test_float64_models_are_captured(net: Net) -> None:
    graph = capture(net.double(), X.double())
    assert graph.graph.output_node().args[0].meta["val"].dtype == torch.float64


def test_a_dynamic_exported_program_is_captured(net: Net) -> None:
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net.eval(), (X,), dynamic_shapes=dynamic)
    graph = capture(program, X)
    assert [node.meta["origin"] for node in graph.graph.nodes if node.op == "call_function"] == [
        "conv", "bn", "relu", "mean", "head",
    ]  # fmt: skip
    same(graph, net, X)


def test_no_grad_and_eval_inside_forward_are_fine() -> None:
    class NoGrad(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = x * 2
            return y + 1

    same(capture(NoGrad(), X), NoGrad(), X)


def test_train_and_eval_of_the_graph_change_nothing(net: Net) -> None:
    graph = capture(net, X)
    before = graph(X)
    graph.train()
    assert torch.equal(graph(X), before)


def test_set_training_is_the_switch(net: Net) -> None:
    graph = capture(net, X)
    before, mean = graph(X), net.bn.running_mean.clone()
    graph.get_buffer("bn.running_mean").data = mean.clone()  # whoever trains clones
    graph.get_buffer("bn.running_var").data = net.bn.running_var.clone()
    set_training(graph, True)
    assert not torch.allclose(graph(X), before)
    graph.get_buffer("bn.running_mean").copy_(mean)
    graph.get_buffer("bn.running_var").copy_(net.bn.running_var)
    set_training(graph, False)
    assert torch.equal(graph(X), before)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.ones(2, 3, 8, 9), r"input x: required shape \['batch', 3, 8, 8\] of torch.float32"),
        (torch.ones(3, 8, 8), r"\[3, 8, 8\] of torch.float32 arrived"),
        (torch.ones(2, 3, 8, 8).double(), "torch.float64 arrived"),
        ((X, X), r"required 1 inputs \(x\), 2 arrived"),
        (([1],), "a list arrived"),
    ],
)
def test_inputs_are_checked_by_name(net: Net, inputs: Any, message: str) -> None:
    graph = capture(net, X)
    check_inputs(graph, X[:1])
    with pytest.raises(CaptureError, match=message):
        check_inputs(graph, inputs)


def test_inputs_must_agree_on_the_batch() -> None:
    class Add(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    graph = capture(Add(), (X, X))
    with pytest.raises(CaptureError, match="disagree on the batch size"):
        check_inputs(graph, (X, X[:1]))


def test_shapes_are_refreshed_after_a_rewrite_and_misfits_named(net: Net) -> None:
    graph = capture(net, X)
    (relu,) = graph.graph.find_nodes(op="call_function", target=aten.relu.default)
    with graph.graph.inserting_after(relu):
        half = insert_like(graph.graph, relu, aten.slice.Tensor, (relu, 1, 0, 2, 1))
    relu.replace_all_uses_with(half, delete_user_cb=lambda user: user is not half)
    lint_origins(graph.graph)
    assert half.meta["origin"] == "relu"
    with pytest.raises(UnsupportedLayer, match=r"head \(aten.linear\).*\['batch', 2\].*do not fit"):
        refresh_shapes(graph)


def test_a_compute_node_without_origin_is_rejected(net: Net) -> None:
    graph = capture(net, X).graph
    with graph.inserting_before(graph.output_node()):
        graph.call_function(aten.relu.default, (next(iter(graph.nodes)),))
    with pytest.raises(AssertionError, match="no origin"):
        lint_origins(graph)


def test_capture_is_deterministic(net: Net) -> None:
    first, second = capture(net, X), capture(net, X)
    assert first.code == second.code
    assert [node.name for node in first.graph.nodes] == [node.name for node in second.graph.nodes]


def test_a_captured_graph_can_be_copied_and_captured_again(net: Net) -> None:
    graph = copy.deepcopy(capture(net, X))
    again = capture(graph, X)
    assert [n.target for n in again.graph.nodes if n.op == "call_function"] == [
        n.target for n in graph.graph.nodes if n.op == "call_function"
    ]
    same(again, net, X)


def test_an_input_may_be_unused() -> None:
    class First(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a * 2

    graph = capture(First(), (X, X))
    assert len(input_specs(graph)) == 2
    same(graph, First(), X, X)


def test_layers_with_a_random_mode_pass_in_eval() -> None:
    dropouts = (nn.Dropout1d(), nn.AlphaDropout(), nn.FeatureAlphaDropout())
    model = nn.Sequential(nn.RReLU(), nn.Hardswish(), *dropouts)
    same(capture(model, X[0]), model, X[0])


class RandomNet(nn.Module):
    """A net drawn from a seed: a chain of random layers with residual additions."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        choose = random.Random(seed)
        self.stages = nn.ModuleList()
        channels = 3
        for _ in range(choose.randint(2, 5)):
            width = choose.choice([3, 4, 6])
            kernel = choose.choice([1, 3, 4])
            options: list[nn.Module] = [
                nn.Sequential(
                    nn.Conv2d(channels, width, kernel, padding="same", bias=choose.random() < 0.5),
                    nn.BatchNorm2d(width, affine=choose.random() < 0.5),
                ),
                nn.Conv2d(channels, width, 3, padding=2, dilation=choose.choice([1, 1, 2])),
            ]
            activation = choose.choice(
                [nn.ReLU(inplace=True), nn.ReLU6(True), nn.LeakyReLU(0.1, inplace=True), nn.GELU()]
            )
            pool = choose.choice([nn.MaxPool2d(2, 1), nn.AvgPool2d(3, 1, 1), nn.Identity()])
            self.stages.append(nn.Sequential(choose.choice(options), activation, pool))
            channels = width
        self.head = choose.choice(
            [nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(channels * 4, 3)),
             nn.Sequential(nn.Dropout(), nn.AdaptiveMaxPool2d(1), nn.Flatten())]
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            y = stage(x)
            x = y + x if y.shape == x.shape else y
        result: Tensor = self.head(x)
        return result


@pytest.mark.parametrize("seed", range(8))
def test_random_nets_compute_the_same(seed: int) -> None:
    torch.manual_seed(seed)
    model = RandomNet(seed)
    graph = capture(model, X)
    lint_origins(graph.graph)
    same(graph, model, torch.randn(4, 3, 8, 8))


def test_names_that_fx_keeps_for_itself_are_captured() -> None:
    model, x = make("awkward names")
    graph = capture(model, x)
    origins = {origin(node) for node in graph.graph.nodes if node.op == "call_function"}
    assert {*AwkwardNames.NAMES, "block.class", "block.for"} <= origins
    names = dict(graph.named_parameters())
    assert names["class_.weight"].data_ptr() == model.get_parameter("class.weight").data_ptr()
    assert "class.weight" in dict(model.named_parameters())


def test_spelled_names_stay_apart() -> None:
    names = ["class.weight", "class_.weight", "class__.weight", "a.for.b", "graph", "a.graph"]
    spelled = spell(names)
    assert len(set(spelled.values())) == len(names)
    assert spelled["a.graph"] == "a.graph"
    assert spelled["class.weight"] == "class___.weight"


@pytest.mark.parametrize("name", ["class", "None", "ﬁ", "größe", "a b", 'say "hi"', "a\\b", "a\nb"])
@pytest.mark.parametrize("exported", [False, True])
def test_any_layer_name_is_captured_and_kept(name: str, exported: bool) -> None:
    """Torch writes names into source text as they are, where keywords are errors."""
    inner = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model = nn.Sequential(OrderedDict([(name, inner), (f"{name}_", nn.Linear(4, 2))])).eval()
    x = torch.randn(3, 4)
    given: nn.Module | ExportedProgram = model
    if exported:
        shapes = ({0: torch.export.Dim("batch")},)
        given = torch.export.export(model, (x,), dynamic_shapes=shapes)
        before = dict(given.state_dict)
    graph = capture(given, x)
    origins = [n.meta["origin"] for n in graph.graph.nodes if n.op == "call_function"]
    assert origins == [f"{name}.0", f"{name}.1", f"{name}_"]
    same(graph, model, x)
    same(copy.deepcopy(graph), model, x)
    if isinstance(given, ExportedProgram):
        assert list(given.state_dict) == list(before)
