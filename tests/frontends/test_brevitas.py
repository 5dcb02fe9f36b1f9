"""Models of Brevitas: their graphs and programs compute what Brevitas computes."""

import copy
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxloom import CaptureError, UnsupportedLayer, capture, lower, simulate
from fxloom.backends import get
from fxloom.backends.hls4ml import csim
from fxloom.backends.simulator import quantize_inputs, reference
from fxloom.brevitas import quantizers
from fxloom.data import Data
from fxloom.passes import Quantize
from fxloom.target import Target
from tests.conformance.packing import pack

WHY = "needs Brevitas: make test-keras"
importorskip = partial(pytest.importorskip, reason=WHY)
qnn = importorskip("brevitas.nn")
enum = importorskip("brevitas.inject.enum")
binary, fixed_point, scaled_int, shifted_scaled_int, ternary = (
    importorskip(f"brevitas.quant.{name}")
    for name in ("binary", "fixed_point", "scaled_int", "shifted_scaled_int", "ternary")
)

ACT, UNSIGNED = fixed_point.Int8ActPerTensorFixedPoint, fixed_point.Uint8ActPerTensorFixedPoint
POWER, CHANNELS = (
    fixed_point.Int8WeightPerTensorFixedPoint,
    fixed_point.Int8WeightPerChannelFixedPoint,
)
FLOAT, FLOATS = scaled_int.Int8WeightPerTensorFloat, scaled_int.Int8WeightPerChannelFloat
Make = Callable[[], nn.Module]


def first(bits: int = 7) -> Any:
    return qnn.QuantIdentity(act_quant=ACT, bit_width=bits, return_quant_tensor=True)


def relu(bits: int = 5, **keys: Any) -> Any:
    return qnn.QuantReLU(act_quant=UNSIGNED, bit_width=bits, return_quant_tensor=True, **keys)


def layer(kind: Any, *sizes: int, quant: Any = POWER, **keys: Any) -> Any:
    keys = {"bias_quant": scaled_int.Int16Bias, "return_quant_tensor": True, **keys}
    return kind(*sizes, weight_quant=quant, weight_bit_width=5, **keys)


def dense(*sizes: int, **keys: Any) -> Any:
    return layer(qnn.QuantLinear, *sizes, **keys)


def conv(*sizes: int, **keys: Any) -> Any:
    return layer(qnn.QuantConv2d, *sizes, **keys)


class Residual(nn.Module):
    """Layers that return QuantTensors, which forward adds, concatenates and pools."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.again, self.act = first(6), first(6), relu(6)
        self.conv = conv(3, 3, 3, padding=1)
        self.add = qnn.QuantEltwiseAdd(ACT, ACT, return_quant_tensor=True)
        self.pool = qnn.TruncAvgPool2d(2, bit_width=5)
        self.fc = dense(54, 4, bias_quant=None, return_quant_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inp(x)
        y = self.again(self.conv(x))
        y = self.pool(self.act(self.add(x, y)))
        y = torch.cat([y, torch.relu(y)], dim=1)
        return self.fc(y.flatten(1))  # type: ignore[no-any-return]


def sequential(*layers: nn.Module) -> Make:
    return lambda: nn.Sequential(*copy.deepcopy(layers))


def binary_and_ternary() -> nn.Module:
    one = {"weight_quant": binary.SignedBinaryWeightPerTensorConst, "weight_scaling_const": 0.25}
    two = {"weight_quant": ternary.SignedTernaryWeightPerTensorConst, "weight_scaling_const": 0.5}
    three = {"act_quant": ternary.SignedTernaryActPerTensorConst, "scaling_const": 0.5}
    return nn.Sequential(
        first(),
        qnn.QuantLinear(10, 8, bias=False, **one),
        qnn.QuantIdentity(act_quant=binary.SignedBinaryActPerTensorConst),
        qnn.QuantLinear(8, 4, bias=False, weight_threshold=0.3, **two),
        qnn.QuantIdentity(threshold=0.3, **three),
    )


HARD = {"min_val": -1.0, "max_val": 1.0, "bit_width": 4}
SHIFTED = shifted_scaled_int.ShiftedUint8ActPerTensorFixedPoint
BY_CHANNEL = {
    "scaling_per_output_channel": True,
    "per_channel_broadcastable_shape": (1, 3, 1, 1),
    "scaling_stats_permute_dims": (1, 0, 2, 3),
}
EXACT: dict[str, tuple[Make, tuple[int, ...]]] = {
    "linear": (sequential(first(), dense(10, 8), relu(), dense(8, 4, quant=CHANNELS)), (10,)),
    "float bias": (sequential(first(), dense(10, 8, bias_quant=None), relu()), (10,)),
    "conv2d": (
        sequential(
            first(),
            conv(3, 8, 3, padding=1, stride=2, quant=CHANNELS),
            relu(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            dense(32, 3),
        ),
        (3, 8, 8),
    ),
    "conv2d, same, groups": (
        sequential(first(), conv(3, 6, 3, padding="same", stride=2, groups=3), relu()),
        (3, 7, 8),
    ),
    "conv1d": (
        sequential(first(), layer(qnn.QuantConv1d, 3, 6, 3, padding="same", stride=2), relu()),
        (3, 9),
    ),
    "average": (
        sequential(first(), qnn.TruncAvgPool2d(2, bit_width=6), conv(3, 2, 1)),
        (3, 8, 8),
    ),
    "adaptive": (sequential(first(), qnn.TruncAdaptiveAvgPool2d(2, bit_width=6)), (3, 8, 8)),
    "hard tanh": (
        sequential(
            first(),
            qnn.QuantHardTanh(fixed_point.Int8ActPerTensorFixedPointMinMaxInit, **HARD),
        ),
        (10,),
    ),
    "binary and ternary": (binary_and_ternary, (10,)),
    "zero point": (
        sequential(
            first(),
            qnn.QuantIdentity(SHIFTED, bit_width=6),
            dense(10, 8, bias=False, return_quant_tensor=False),
        ),
        (10,),
    ),
    "bits as a parameter, floor": (
        sequential(
            first(),
            relu(4, bit_width_impl_type=enum.BitWidthImplType.PARAMETER),
            relu(3, float_to_int_impl_type=enum.FloatToIntImplType.FLOOR),
        ),
        (10,),
    ),
    "scales of channels": (sequential(first(), relu(**BY_CHANNEL)), (3, 4, 4)),
    "a norm as scale and bias": (
        sequential(first(), qnn.BatchNorm2dToQuantScaleBias(3), relu()),
        (3, 4, 4),
    ),
    "residual": (Residual, (3, 6, 6)),
}


def trained(make: Make, shape: tuple[int, ...]) -> tuple[nn.Module, Tensor]:
    """A model whose scales come from data, and other data."""
    torch.manual_seed(1)
    model = make().train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(4):
            model(torch.randn(32, *shape) * (1 + step / 4))
    return model.eval(), torch.randn(48, *shape)


def output(model: nn.Module, x: Tensor) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        y = model(x)
    return (y if isinstance(y, Tensor) else y.value).numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", EXACT)
def test_powers_of_two_are_exact(name: str) -> None:
    model, x = trained(*EXACT[name])
    expected = output(model, x)
    graph = capture(model, x[:2])
    np.testing.assert_array_equal(graph(x).detach().numpy(), expected)
    # Brevitas adds a bias that is not quantized in float32.
    result = simulate(lower(graph), x).astype(np.float32)
    np.testing.assert_array_equal(result, expected)
    assert len(np.unique(expected)) > 2


FLOATING: dict[str, tuple[Make, tuple[int, ...]]] = {
    "weights": (
        sequential(first(), dense(10, 8, quant=FLOAT), relu(), dense(8, 4, quant=FLOATS), first(6)),
        (10,),
    ),
    "convolution": (
        sequential(first(), conv(3, 8, 3, padding=1, quant=FLOATS, bias_quant=None), relu()),
        (3, 8, 8),
    ),
    "transposed": (
        sequential(
            first(), layer(qnn.QuantConvTranspose2d, 4, 6, 3, stride=2, quant=FLOATS), relu()
        ),
        (4, 4, 5),
    ),
    "transposed, groups": (
        sequential(
            first(),
            layer(qnn.QuantConvTranspose1d, 4, 6, 3, groups=2, quant=FLOAT, bias_quant=None),
            relu(),
        ),
        (4, 5),
    ),
    "average of nine": (
        sequential(first(), qnn.TruncAvgPool2d(3, bit_width=5)),
        (3, 9, 9),
    ),
    "average of other scales": (
        sequential(qnn.QuantIdentity(bit_width=4, return_quant_tensor=True),
                   qnn.TruncAvgPool2d(2, bit_width=4)),
        (3, 8, 8),
    ),
    "activations": (
        sequential(
            qnn.QuantIdentity(bit_width=6, return_quant_tensor=True),
            dense(10, 8, quant=FLOAT),
            qnn.QuantReLU(bit_width=6, return_quant_tensor=True),
            dense(8, 4, quant=FLOATS),
            qnn.QuantIdentity(bit_width=6, return_quant_tensor=True),
        ),
        (10,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOATING)
def test_other_scales_are_equal_on_the_grid(name: str) -> None:
    """Of some hundred values none is where float32 and exact arithmetic round apart."""
    model, x = trained(*FLOATING[name])
    graph = capture(model, x[:2])
    program = lower(Quantize()(graph, Data(x_train=x)).graph)
    port = program.inputs[0].value.type
    x = torch.round(x / port.step) * port.step  # what reaches the hardware
    with torch.no_grad():
        quantized = model(x)
    scale, expected = quantized.scale.numpy(), quantized.value.numpy()
    for result in (graph(x).detach().numpy(), simulate(program, x)):
        np.testing.assert_array_equal(np.rint(result / scale), np.rint(expected / scale))
        np.testing.assert_allclose(result / scale, expected / scale, atol=1e-4)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.fc = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)
        self.act, self.pool = nn.ReLU(), nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.first(x)))
        x = torch.relu(self.second(x) + x)
        return self.fc(torch.flatten(self.pool(x), 1))  # type: ignore[no-any-return]


def test_a_model_that_brevitas_quantized_after_training() -> None:
    torch.manual_seed(3)
    tools = importorskip("brevitas.graph.quantize")
    model = tools.quantize(tools.preprocess_for_quantize(Plain().eval()))
    x = torch.randn(48, 3, 8, 8)
    with torch.no_grad(), importorskip("brevitas.graph.calibrate").calibration_mode(model):
        model(x)
    graph = capture(model.eval(), x[:2])
    program = lower(Quantize()(graph, Data(x_train=x)).graph)
    port = program.inputs[0].value.type
    x = torch.round(x / port.step) * port.step
    step = model.fc_output_quant.act_quant.scale().item()
    steps = np.rint(output(model, x) / step)
    for result in (graph(x).detach().numpy(), simulate(program, x)):
        np.testing.assert_array_equal(np.rint(result / step), steps)


def test_the_users_model_stays_as_it_is() -> None:
    model, x = trained(*EXACT["binary and ternary"])
    model.train()
    before = copy.deepcopy(model.state_dict())
    capture(model, x[:2])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    assert type(model[1]).__name__ == "QuantLinear"  # type: ignore[index]


def test_nodes_are_named_after_layers() -> None:
    model, x = trained(*EXACT["residual"])
    origins = {node.meta.get("origin") for node in capture(model, x[:2]).graph.nodes}
    assert {"inp", "conv", "again", "add", "act", "act.act_quant", "fc"} <= origins


def test_a_layer_called_with_several_sizes_is_refused() -> None:
    """Its padding would be that of one of them."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(3, 3, 2, padding="same", stride=2, return_quant_tensor=False)
            self.conv.bias_quant.disable_quant = True

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))  # type: ignore[no-any-return]

    with pytest.raises(UnsupportedLayer, match="something else"):
        capture(Twice().eval(), torch.randn(2, 3, 6, 6))


def test_embeddings_are_exact() -> None:
    keys = {"weight_quant": POWER, "weight_bit_width": 4}
    model = nn.Sequential(
        qnn.QuantEmbedding(9, 6, **keys), dense(6, 3, bias=False, bias_quant=None)
    )
    model[1].return_quant_tensor = False
    x = torch.arange(18).reshape(6, 3) % 9
    expected = output(model.eval(), x)
    program = lower(Quantize()(capture(model, x), Data(x_train=x)).graph)
    np.testing.assert_array_equal(simulate(program, x), expected)


class Own(qnn.QuantLinear):  # type: ignore[misc,name-defined]
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2  # type: ignore[no-any-return]


REFUSED = {
    "QuantLSTM": (lambda: nn.Sequential(qnn.QuantLSTM(10, 4)), (5, 10), "Supported are"),
    "CEIL": (
        sequential(relu(float_to_int_impl_type=enum.FloatToIntImplType.CEIL)),
        (10,),
        "rounds CEIL",
    ),
    "ceil_mode": (
        sequential(first(), qnn.TruncAvgPool2d(2, ceil_mode=True)),
        (3, 5, 5),
        "ceil_mode",
    ),
    "adaptive": (sequential(first(), qnn.TruncAdaptiveAvgPool2d(2)), (3, 5, 5), "several sizes"),
    "own forward": (lambda: nn.Sequential(Own(10, 4)), (10,), "forward method of its own"),
    "bilinear": (
        sequential(first(), qnn.QuantUpsample(scale_factor=2, mode="bilinear")),
        (3, 4, 4),
        "upsamples bilinear",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_exact_form_is_refused_by_name(name: str) -> None:
    make, shape, words = REFUSED[name]
    model = make().eval()
    with pytest.raises(UnsupportedLayer, match=words):
        capture(model, torch.randn(2, *shape))


def test_all_refusals_are_gathered() -> None:
    model = nn.Sequential(
        relu(float_to_int_impl_type=enum.FloatToIntImplType.CEIL), nn.Sequential(Own(10, 4))
    )
    with pytest.raises(UnsupportedLayer) as raised:
        capture(model, torch.randn(2, 10))
    assert [problem.split(":")[0] for problem in raised.value.problems] == [
        "0 (QuantReLU)",
        "1.0 (Own)",
    ]


class ReadsScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inp = first()

    def forward(self, x: Tensor) -> Tensor:
        y = self.inp(x)
        return y.value * y.scale  # type: ignore[no-any-return]


def test_code_that_reads_quant_tensors_is_refused() -> None:
    with pytest.raises(CaptureError, match="must not read scales"):
        capture(ReadsScale(), torch.randn(2, 10))


def test_a_layer_that_is_not_its_original_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(quantizers._ROUNDINGS, "RoundSte", "FLOOR")
    model, x = trained(*EXACT["linear"])
    with pytest.raises(UnsupportedLayer, match="something else than its quantizers say"):
        capture(model, x)


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_the_c_simulation_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csim, "FLAGS", (*csim.FLAGS, "-O0"))
    programs, inputs = [], []
    for name in ("linear", "conv2d", "binary and ternary", "zero point", "scales of channels"):
        model, x = trained(*EXACT[name])
        programs.append(lower(capture(model, x[:2])))
        inputs += quantize_inputs(programs[-1], [x.numpy()])
    model, x = trained(*FLOATING["activations"])
    programs.append(lower(Quantize()(capture(model, x[:2]), Data(x_train=x)).graph))
    inputs += quantize_inputs(programs[-1], [x.numpy()])
    packed = pack(programs)
    build = get("hls4ml").emit(packed, Target(), tmp_path / "p", cache=tmp_path / "c")
    for got, wanted in zip(build.run_mantissas(inputs), reference(packed, inputs), strict=True):
        np.testing.assert_array_equal(got, wanted)
