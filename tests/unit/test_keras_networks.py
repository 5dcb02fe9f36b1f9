"""Networks of Keras: what lies as in hardware is not moved, what is not known is refused."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from fxloom import capture, lower, simulate
from fxloom.data import Data
from fxloom.errors import CaptureError, UnsupportedLayer
from fxloom.exact import exact_forward
from fxloom.keras import effort
from fxloom.keras.description import Call, Layer, Model, TensorRef
from fxloom.keras.network import Network
from fxloom.passes import FoldBatchnorm, PruneChannels, Quantize
from fxloom.program import Program
from tests.keras_descriptions import Described, classifier, signals, u_net


def compiled(network: Network) -> tuple[Program, np.ndarray, np.ndarray]:
    """The program, inputs, and what the quantized graph makes of them."""
    (x,) = network.example_inputs(16)
    graph = Quantize()(capture(network, x), Data(x_train=x)).graph
    return lower(graph), x.numpy(), exact_forward(graph, x).numpy()


@pytest.mark.parametrize("build", [classifier, u_net, signals])
def test_keras_images_and_signals_are_not_transposed(build: Callable[[], Network]) -> None:
    program, x, expected = compiled(build())
    assert [type(instr.op).__name__ for instr in program.instrs].count("Transpose") == 0
    np.testing.assert_array_equal(simulate(program, x), expected)


def test_passes_see_through_what_permutes() -> None:
    """Batch norms fold, and channels go through Flatten, whose features are in Keras' order."""
    network = classifier()
    (x,) = network.example_inputs(16)
    folded = FoldBatchnorm()(capture(network, x))
    assert folded.summary["folded"] == ["batchnormalization_2"]
    torch.testing.assert_close(folded.graph(x), network(x), atol=1e-5, rtol=0)
    pruned = PruneChannels(sparsity=0.4)(folded.graph, Data(x_train=x))
    assert set(pruned.summary["channels"]) == {"conv2d_1", "conv2d_5", "dense_7"}
    program = lower(Quantize()(pruned.graph, Data(x_train=x)).graph)
    assert "Transpose" not in [type(instr.op).__name__ for instr in program.instrs]


def test_a_zeroed_channel_before_flatten_can_go_without_a_difference() -> None:
    network = classifier()
    for name in ("weight", "bias"):
        dict(network.conv2d_5.named_parameters())[name].data[[1, 3]] = 0
    (x,) = network.example_inputs(16)
    graph = capture(network, x)
    pruned = PruneChannels(sparsity=0.4, include=["conv2d_5"])(graph, Data(x_train=x))
    assert pruned.summary["channels"] == {"conv2d_5": [5, 3]}
    torch.testing.assert_close(pruned.graph(x), graph(x), atol=1e-5, rtol=0)


def test_what_a_config_says_and_no_one_reads_is_refused() -> None:
    m = Described(4)
    m.dense(m.image, 4, 3, lora_rank=2, kernel_initializer={"class_name": "Zeros"})
    m.dense(m.image, 4, 3, quantization_config=None, newer_flag=False, bias_constraint="max_norm")
    with pytest.raises(UnsupportedLayer) as refused:
        m.network("dense_1", "dense_2")
    assert list(refused.value.problems) == [
        "dense_1 (Dense): its config says lora_rank=2, which is not known here"
    ]


def test_a_layer_without_its_arrays_is_refused() -> None:
    m = Described(4)
    m.dense(m.image, 4, 3, use_bias=False)
    with pytest.raises(UnsupportedLayer, match=r"required 1 arrays \(kernel\), 2 arrived"):
        m.network("dense_1")


def test_what_a_layer_is_called_with_and_does_not_take_is_refused() -> None:
    m = Described(5, 2)
    name = m.dense(m.image, 2, 3)
    call = Call((TensorRef(m.image),), {"mask": TensorRef(m.image)})
    m.layers[-1] = replace(m.layers[-1], calls=(call,))
    with pytest.raises(UnsupportedLayer, match=f"{name} .*called with mask=, which is not known"):
        m.network(name)


def test_a_layer_that_fails_on_the_inputs_is_named() -> None:
    m = Described(5)
    network = m.network(m.add("ZeroPadding2D", m.image, padding=1))
    with pytest.raises(CaptureError, match=r"in layer zeropadding2d_1 .*: 4 dimensions are req"):
        capture(network, torch.rand(2, 5))


def test_inputs_of_another_shape_or_number_are_refused() -> None:
    m = Described(4, 3, 2)
    network = m.network(m.add("GlobalAveragePooling2D", m.image))
    with pytest.raises(CaptureError, match=r"image has shape \[4, 3, 2\] a sample, \[2, 4, 3\]"):
        capture(network, torch.rand(2, 2, 4, 3))
    with pytest.raises(CaptureError, match="1 inputs, image: 2 arrived"):
        capture(network, (torch.rand(2, 4, 3, 2), torch.rand(2, 4, 3, 2)))


def test_layers_may_have_any_name() -> None:
    m = Described(3)
    for name in ["forward", "_order", "input_names", "a.b", "a_b", "1", "in/out"]:
        m.dense("image", 3, 2)
        m.layers[-1] = replace(m.layers[-1], name=name)
    network = m.network(*[layer.name for layer in m.layers[1:]])
    graph = capture(network, network.example_inputs())
    names = ["forward_", "_order_", "input_names_", "a_b", "a_b_", "_1", "in_out"]
    assert [node.meta["origin"] for node in graph.graph.nodes if "origin" in node.meta] == names


def test_an_input_that_would_take_all_memory_needs_an_example() -> None:
    m = Described(2**27)
    network = m.network(m.add("Flatten", m.image))
    with pytest.raises(
        CaptureError, match=r"image has shape .*more than 8,388,608 numbers a sample"
    ):
        network.example_inputs()


def relus(calls: int) -> Model:
    chain = [Layer("InputLayer", "x", {"batch_shape": (None, 3)})]
    for number in range(calls):
        call = Call((TensorRef(chain[-1].name),))
        chain.append(Layer("Activation", f"relu{number}", {"activation": "relu"}, (), (call,)))
    return Model("net", tuple(chain), (TensorRef("x"),), (TensorRef(chain[-1].name),))


def in_one_another(depth: int) -> Model:
    """Each model calls the next one twice: 2**depth calls of a layer."""
    model = relus(1)
    for level in range(depth):
        calls = tuple(Call((ref,)) for ref in (TensorRef("x"), TensorRef(f"net{level}")))
        inner = Layer("Functional", f"net{level}", {}, (), calls, model=model)
        last = (TensorRef(inner.name, 1),)
        model = Model("net", (model.layers[0], inner), (TensorRef("x"),), last)
    return model


def over_time(kind: str) -> Model:
    config = {"activation": "tanh", "recurrent_activation": "sigmoid"}
    arrays = [np.zeros(shape, np.float32) for shape in ((2, 4), (1, 4), (4,))]
    lstm = Layer("LSTM", "lstm", config, tuple(arrays))
    call = (Call((TensorRef("x"),)),)
    if kind == "LSTM":
        layer = replace(lstm, calls=call)
    else:
        inner = Layer("Flatten", "flat", {})
        layer = Layer(kind, "steps", {}, calls=call, inner={"layer": inner})
    x = Layer("InputLayer", "x", {"batch_shape": (None, 1_000_000, 2)})
    return Model("net", (x, layer), (TensorRef("x"),), (TensorRef(layer.name),))


def test_models_of_more_calls_than_can_be_written_out_are_refused_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for kind in "LSTM", "TimeDistributed":
        network = Network(over_time(kind)).eval()
        with pytest.raises(CaptureError, match="more than 5,000 times for one sample"):
            capture(network, network.example_inputs())
    monkeypatch.setattr(effort, "MAX_CALLS", 16)
    for model in relus(16), in_one_another(4):
        network = Network(model).eval()
        assert capture(network, network.example_inputs())
    for model in relus(17), in_one_another(5):
        network = Network(model).eval()
        with pytest.raises(CaptureError, match=r"^the model calls layers more than 16 times"):
            capture(network, network.example_inputs())
