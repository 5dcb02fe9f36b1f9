"""A model that no graph computes faithfully is refused, and the message says why and where."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fxloom.errors import CaptureError, FxloomError, UnsupportedLayer
from tests.capturing import capture_anything as capture

X = torch.linspace(-2, 2, 12).reshape(2, 6)


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.register_buffer("count", torch.zeros(1))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def if_positive(m: Function, x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


def count_calls(m: Function, x: Tensor) -> Tensor:
    m.count += 1
    return x * m.count


def count_in_python(m: Function, x: Tensor) -> Tensor:
    m.calls = getattr(m, "calls", 0) + 1
    return x * m.calls


def change_input(m: Function, x: Tensor) -> Tensor:
    x += 1
    return x


def by_batch_size(m: Function, x: Tensor) -> Tensor:
    return x if x.shape[0] > 1 else -x


def by_nan(m: Function, x: Tensor) -> Tensor:
    return x if x.shape[0] > 1 else x * float("nan")


def by_large_batch(m: Function, x: Tensor) -> Tensor:
    return x if x.shape[0] * 4 < 100 else -x


def in_bfloat16(m: Function, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return m.fc(x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            if_positive,
            r"data-dependent control flow, line \d+ of test_capture_ref.*: `return x",
        ),
        (lambda m, x: F.one_hot(x.argmax(1)), r"one_hot without num_classes, line \d+ of .*num_cl"),
        (lambda m, x: x.data * 2, r"x\.data\. Use x itself, or x\.detach\(\)"),
        (lambda m, x: x * x.max().item(), r"aten.item, line \d+ of .*depends on the data"),
        (lambda m, x: x[x > 0], "^aten.index.Tensor.*depends on the data[^\n]*$"),
        (lambda m, x: x.nonzero(), "aten.nonzero.*depends on the data"),
        (lambda m, x: x + torch.rand(6), "aten.rand, line .* it is random"),
        (lambda m, x: x + torch.randn_like(x), "aten.randn_like.* it is random"),
        (lambda m, x: F.dropout(x), "dropout stays on in eval mode"),
        (lambda m, x: F.dropout2d(x[..., None, None]), "dropout stays on in eval mode|random"),
        (count_calls, "count: buffer mutation"),
        (count_in_python, "graph and model disagree"),
        (change_input, "x: user input mutation"),
        (by_batch_size, "graph and model disagree at batch size 1"),
        (
            lambda m, x: x[:, :2].squeeze(),
            "at batch size 1.* squeeze.* names no dim",
        ),
        (by_nan, "the model gives NaN on these samples"),
        (by_large_batch, "batches of more than 24 samples differently"),
        (in_bfloat16, "bfloat16.*leave autocast off"),
        (lambda m, x: x.half(), "computes in torch.float16"),
        (lambda m, x: torch.fft.fft(x).real, "computes in torch.complex64"),
        (lambda m, x: x.view(2, 2, 3), "one batch size only: it fixes that of x"),
        (lambda m, x: {"y": x}, "forward returns a dict"),
        (lambda m, x: (x, (x, x)), "forward returns a nested structure"),
        (lambda m, x: (x, None), "other than tensors"),
        (lambda m, x: (x * 1, m.fc.bias), "output 1 .*does not depend on the input"),
        (
            lambda m, x: x @ torch.zeros(5, 5),
            "the model fails on the example inputs.*RuntimeErr",
        ),
        (lambda m, x: m.undefined, "AttributeError: .* has no attribute 'undefined'"),
        (lambda m, x: torch.from_numpy(x.numpy()) + 1, "numpy"),
        (lambda m, x: torch.cond(x.shape[0] > 2, lambda: x, lambda: -x), "."),
    ],
)
def test_unfaithful_models_are_refused(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(FxloomError, match=message) as caught:
        capture(Function(function), X)
    assert len(str(caught.value)) < 600


def test_all_refusals_are_listed() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Function(lambda m, x: F.dropout(x) + torch.rand(6)), X)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.ones(6), r"the model fails|batch"),
        (torch.ones(2, 5), r"mat1 and mat2 shapes cannot be multiplied"),
        (torch.ones(0, 6), "it is empty"),
        (torch.tensor(1.0), "does not exist in shape"),
        (torch.ones(2, 6, dtype=torch.uint16), "float64, integers or truth values, torch.uint16"),
        (torch.ones(2, 6, dtype=torch.float16), r"torch.float16 arrived. Convert with .float"),
        (torch.ones(2, 6, dtype=torch.complex64), "torch.complex64"),
        (torch.ones(2, 6, device="meta"), r"it is on meta. Call .cpu\(\)"),
        (torch.full((2, 6), math.nan), "NaN or infinity"),
        ((torch.ones(2, 6), torch.ones(2, 6)), "fails on the example inputs"),
        ((), "at least one example input"),
        (([1.0],), "required a tensor, list arrived"),
        ((torch.ones(2, 6), torch.ones(3, 6)), "disagree on the batch size"),
    ],
)
def test_wrong_example_inputs_are_named(inputs: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(nn.Linear(6, 2), inputs)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(6, 2).half(), "parameter weight: required float32 or float64"),
        (nn.Linear(6, 2, device="meta"), r"parameter weight: .* on meta. Call .cpu"),
        (nn.LazyLinear(2), "parameter weight is not initialized"),
        (nn.Linear, "the class Linear arrived"),
        (lambda x: x, "function arrived"),
        (None, "NoneType arrived"),
    ],
)
def test_what_is_no_usable_model_is_named(model: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(model, X)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_weights_are_named(value: float) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    model[1].weight.data[0, 0] = value
    with pytest.raises(CaptureError, match=r"parameter 1.weight: 1 of 8 values are NaN or inf"):
        capture(model, X)


def test_unused_non_finite_buffers_do_not_matter() -> None:
    model = Function(lambda m, x: m.fc(x))
    model.count.fill_(math.nan)
    capture(model, X)


def test_batch_axes_must_match_the_inputs() -> None:
    with pytest.raises(CaptureError, match="1 example inputs, but 2 batch_axes"):
        capture(nn.Linear(6, 2), X, batch_axes=(0, 0))


def test_a_program_limited_to_two_samples_is_refused() -> None:
    shapes = ({0: torch.export.Dim("batch", max=2)},)
    program = torch.export.export(
        Function(lambda m, x: m.fc(x)).eval(), (X,), dynamic_shapes=shapes, strict=False
    )
    with pytest.raises(CaptureError, match=r"the model fails on inputs of shape \[\[3, 6\]\]"):
        capture(program, X)
    with pytest.raises(CaptureError, match=r"required shape \['batch', 6\].*\['batch', 5\]"):
        capture(program, X[:, :5])


def test_a_program_exported_for_one_batch_size_is_refused() -> None:
    program = torch.export.export(nn.Linear(6, 2).eval(), (X,))
    with pytest.raises(CaptureError, match="dimension 0, the batch, to be the only dynamic one"):
        capture(program, X)


@pytest.mark.parametrize(
    "special", [lambda size: size == 17, lambda size: size % 4 == 0], ids=["equal", "multiple"]
)
def test_models_that_treat_some_batch_sizes_differently_are_refused(
    special: Callable[[int], bool],
) -> None:
    model = Function(lambda m, x: x * 2 if special(x.shape[0]) else x)
    with pytest.raises(CaptureError, match="treats some batch sizes differently"):
        capture(model, X)


def test_one_batch_for_all_inputs_is_no_special_case() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    capture(Sum(), (X, X))


def test_rounding_noise_is_not_taken_for_a_dependence_on_the_batch() -> None:
    model = nn.Sequential(nn.Linear(40, 40), Function(lambda m, x: torch.sin(1e4 * x)))
    with pytest.raises(CaptureError, match=r"rounding in torch.float32 alone changes it by"):
        capture(model, torch.linspace(-2, 2, 80).reshape(2, 40))


def test_empty_tensors_are_named() -> None:
    with pytest.raises(FxloomError, match=r"fc.*its result of shape \['batch', 0\] is empty"):
        capture(nn.Sequential(OrderedDict(fc=nn.Linear(6, 0))), X)


def test_a_constant_that_becomes_infinite_is_named() -> None:
    model = Function(lambda m, x: (x * (1 / m.count)).clamp(-1, 1))
    with pytest.raises(CaptureError, match="count_folded: 1 of 1 values are NaN or infinite"):
        capture(model, X)


ENCODER_OPTIONS = {"enable_nested_tensor", "mask_check"}
PADDED = torch.tensor([[0.0, 0, 1], [0, 1, 1]])


class PaddedEncoder(nn.Module):
    """An encoder whose padding mask is an input, with torch's defaults unless told otherwise."""

    def __init__(self, use: Callable[..., Tensor], **options: Any) -> None:
        super().__init__()
        encoder = {key: options.pop(key) for key in ENCODER_OPTIONS & options.keys()}
        layer = nn.TransformerEncoderLayer(4, options.pop("heads", 2), 6, **options)
        self.encoder = nn.TransformerEncoder(layer, 1, **encoder)
        self.use = use

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        return self.use(self.encoder, x, padded)


def with_padding(encoder: nn.Module, x: Tensor, padded: Tensor) -> Tensor:
    return encoder(x, src_key_padding_mask=padded > 0)


@pytest.mark.parametrize(
    "padded", [PADDED, PADDED.flip(1), 0 * PADDED], ids=["end", "start", "none"]
)
@pytest.mark.parametrize(
    ("use", "options"),
    [
        (with_padding, {}),
        (with_padding, {"mask_check": False}),
        (lambda e, x, padded: e(x, None, padded > 0), {}),
        (lambda e, x, padded: e(x, src_key_padding_mask=padded * -1e9), {}),
    ],
    ids=["defaults", "unchecked mask", "positional", "mask of floats"],
)
def test_an_encoder_that_drops_padding_by_where_it_lies_is_refused(
    padded: Tensor, use: Callable[..., Tensor], options: dict[str, Any]
) -> None:
    model = PaddedEncoder(use, batch_first=True, **options)
    message = r"encoder \(TransformerEncoder\): .*padded positions.*enable_nested_tensor=False"
    with pytest.raises(UnsupportedLayer, match=message):
        capture(model, (X.reshape(2, 3, 2).repeat(1, 1, 2), padded))
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_all_encoders_are_listed_also_one_that_makes_its_own_mask() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
            self.first, self.second = nn.TransformerEncoder(layer, 1), Masking(layer, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x, src_key_padding_mask=x[..., 0] > 0))

    class Masking(nn.TransformerEncoder):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x, src_key_padding_mask=x[..., 0] > 0)

    with pytest.raises(UnsupportedLayer) as caught:
        capture(Twice(), torch.linspace(-1, 2, 24).reshape(2, 3, 4))
    assert [problem.split()[0] for problem in caught.value.problems] == ["first", "second"]


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize(
    ("use", "options"),
    [
        (with_padding, {"enable_nested_tensor": False}),
        (with_padding, {"norm_first": True}),
        (with_padding, {"heads": 1}),
        (lambda e, x, padded: e(x), {}),
        (lambda e, x, padded: e(x, torch.tensor([0, 1, 0]).expand(3, 3) > 0, padded > 0), {}),
        (lambda e, x, padded: e(x, torch.ones(3, 3).triu(1) > 0), {}),
    ],
    ids=["disabled", "norm first", "one head", "no mask", "two masks", "no padding mask"],
)
def test_an_encoder_that_computes_padded_positions_is_captured(
    use: Callable[..., Tensor], options: dict[str, Any]
) -> None:
    model = PaddedEncoder(use, batch_first=True, **options).eval()
    x = X.reshape(2, 3, 2).repeat(1, 1, 2)
    graph = capture(model, (x, PADDED))
    with torch.no_grad():
        for padded in (PADDED, PADDED.flip(1)):
            torch.testing.assert_close(graph(x, padded), model(x, padded))


@pytest.mark.parametrize("inputs", [None, 5])
def test_example_inputs_of_the_wrong_kind_are_refused(inputs: Any) -> None:
    with pytest.raises(CaptureError, match="example_inputs: required a tensor"):
        capture(nn.Linear(6, 2), inputs)


@pytest.mark.parametrize("axes", [None, "a", 0.0, (0.0,)])
def test_batch_axes_of_the_wrong_kind_are_refused(axes: Any) -> None:
    with pytest.raises(CaptureError, match="batch_axes: required"):
        capture(nn.Linear(6, 2), X, batch_axes=axes)


def test_weights_computed_in_many_ways_take_no_time() -> None:
    def newton_schulz(m: Function, x: Tensor) -> Tensor:
        w = m.fc.weight
        for _ in range(30):
            w = 1.5 * w - 0.5 * w @ (w.T @ w)
        return x @ w

    capture(Function(newton_schulz), X)
