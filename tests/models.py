"""Small models: every first op with every attribute that is honoured, alone and together.

``CASES`` maps a name to (model factory, shape of one sample or shapes of several inputs).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxloom.graph import range_of
from tests import keras_descriptions

Shape = tuple[int, ...]
IMAGE: Shape = (4, 7, 6)
VECTOR: Shape = (10,)
SIGNAL: Shape = (4, 11)
SEQUENCE: Shape = (4, 3)


class Rows(tuple[int, ...]):
    """The shape of one sample of indices below `rows`, or of all numbers of a type."""

    rows: int | torch.dtype


def rows(count: int | torch.dtype, *shape: int) -> Rows:
    made = Rows(shape)
    made.rows = count
    return made


class Fn(nn.Module):
    """A model from a function of its inputs and its modules."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def parts_assigned(m: Any, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Every way of writing into parts of tensors, computed and constant ones."""
    a, b, c = x.clone(), x.new_zeros(x.shape[0], 6, 5), y * 2
    a[:, 1:3] += y[:, :2]
    a[..., -1] = 0.5
    a[:, 0, ::2] = y[:, 1, ::2]
    a[:, 3] = m.row
    b[:, 1:5] = x
    b[:, 5, 1:3] = y[:, 0, 1:3]
    b[:, :, m.i] = b[:, :, m.i + 1] - 1
    c[c > 1] = 0
    c[:, :, m.mask] = 1.5
    c[:, m.i, m.i] = m.row[:2]
    c = c.index_fill(1, m.i[1:], -0.5).index_copy(2, m.i, x[:, :, :2])
    return a, b, c, c.scatter(1, m.i[None, :, None].expand(x.shape[0], -1, 2), 0.25)


def image_assigned(m: Any, x: Tensor) -> Tensor:
    """Images on an empty canvas, changed in place."""
    canvas = torch.zeros_like(x).repeat(1, 1, 1, 2)
    canvas[:, :, 1:, 2:6] = x[:, :, :-1]
    canvas[:, 0].mul_(2)
    canvas[:, 1:, 0].zero_()
    return torch.relu(m.c(canvas))


class WithConstant(nn.Module):
    """Adds and multiplies buffers that broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", torch.linspace(-1, 1, 4).reshape(1, 4, 1, 1))
        self.register_buffer("row", torch.linspace(0.5, 2, 6))
        self.gain = nn.Parameter(torch.linspace(-2, 2, 28).reshape(4, 7, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.offset) * self.row - self.gain


class Residual(nn.Module):
    """A residual block with a shortcut, as in ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv1(x)))
        return self.act(self.bn2(self.conv2(y)) + self.shortcut(x))


class InitialState(nn.Module):
    """A recurrent layer that begins with a state of its own, for both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.state = nn.Parameter(torch.linspace(-1, 1, 6).reshape(2, 1, 3))
        self.rnn = nn.RNN(3, 3, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x, self.state.expand(-1, x.shape[0], -1).contiguous())[0]


class Cells(nn.Module):
    """Recurrent cells, called in loops of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTMCell(3, 4), nn.GRUCell(4, 4, bias=False)
        self.rnn = nn.RNNCell(2, 4, nonlinearity="relu")
        self.answer = nn.Linear(4, 2)
        self.start = nn.Parameter(torch.linspace(-1, 1, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = c = top = x.new_zeros(x.shape[0], 4)
        for step in x.unbind(1):
            h, c = self.lstm(step, (h, c))
            top = self.gru(h, top)
        answers = [self.start.repeat(x.shape[0], 1)]
        for _ in range(2):
            top = self.rnn(answers[-1], top)
            answers.append(self.answer(top))
        return torch.stack(answers[1:], 1), c


class Buffers(nn.Module):
    """A function of its input and of constants that are no float32 parameters of a layer."""

    def __init__(
        self,
        function: Callable[..., Any],
        modules: Mapping[str, nn.Module] | None = None,
        **buffers: Tensor,
    ) -> None:
        super().__init__()
        self.function = function
        for name, module in (modules or {}).items():
            self.add_module(name, module)
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def resnet(pool: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A small ResNet with a given last pool (outputs 16 channels of 2x2)."""

    def make() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            Residual(8, 8, 1),
            Residual(8, 16, 2),
            pool(),
            nn.Flatten(),
            nn.LazyLinear(10),
        )

    return make


def conv(*args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(4, 6, *args, **kwargs)


def conv1d(*args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv1d(4, 6, *args, **kwargs)


class ResidualSignal(nn.Module):
    """A residual block on signals."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(4, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm1d(4)
        self.conv2 = nn.Conv1d(4, 4, 3, padding=2, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(torch.relu(self.bn1(self.conv1(x)))) + x)


def slopes(first: float, last: float, count: int) -> nn.PReLU:
    """A PReLU with slopes of its own for each channel."""
    layer = nn.PReLU(count)
    layer.weight.data = torch.linspace(first, last, count)
    return layer


def fn(function: Callable[..., Any], **modules: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Fn(function, **{name: make() for name, make in modules.items()})


def twice(self: Any, x: Tensor) -> Tensor:
    return self.fc(torch.relu(self.fc(x)))


def in_place_alias(self: Any, x: Tensor) -> Tensor:
    x = self.fc(x)
    y = functional.relu(x, inplace=True)
    return x + y


def in_place_add(self: Any, x: Tensor) -> Tensor:
    y = self.fc(x)
    y += x
    y *= 2
    return y - x


CASES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    # linear
    "linear": (lambda: nn.Linear(10, 7), VECTOR),
    "linear without bias": (lambda: nn.Linear(10, 7, bias=False), VECTOR),
    "linear to one": (lambda: nn.Linear(10, 1), VECTOR),
    "linear on leading axes": (lambda: nn.Linear(6, 5), (3, 6)),
    "mlp": (
        lambda: nn.Sequential(
            nn.Linear(10, 8), nn.ReLU(), nn.Dropout(0.3),
            nn.Linear(8, 8), nn.ReLU6(), nn.Linear(8, 3),
        ),
        VECTOR,
    ),
    "layer used twice": (fn(twice, fc=lambda: nn.Linear(10, 10)), VECTOR),
    # conv2d
    "conv": (conv(3), IMAGE),
    "conv 1x1": (conv(1), IMAGE),
    "conv stride": (conv(3, stride=(2, 3)), IMAGE),
    "conv padding": (conv((3, 2), padding=(1, 2)), IMAGE),
    "conv same": (conv(3, padding="same"), IMAGE),
    "conv same even": (conv((4, 2), padding="same"), IMAGE),
    "conv valid": (conv(3, padding="valid", bias=False), IMAGE),
    "conv dilation": (conv(2, dilation=(2, 3)), IMAGE),
    "conv same dilated": (conv((2, 3), padding="same", dilation=(3, 2)), IMAGE),
    "conv groups": (conv(3, groups=2, padding=1), IMAGE),
    "conv depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), IMAGE),
    "conv depthwise multiplier": (lambda: nn.Conv2d(4, 8, 3, groups=4, stride=2), IMAGE),
    "conv whole image": (conv((7, 6)), IMAGE),
    "conv kernel beyond input": (conv(9, padding=4), IMAGE),
    # batch norm
    "conv bn relu": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
        IMAGE,
    ),
    "bn alone": (lambda: nn.BatchNorm2d(4), IMAGE),
    "bn before conv": (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)), IMAGE),
    "bn without affine": (
        lambda: nn.Sequential(nn.Linear(10, 6), nn.BatchNorm1d(6, affine=False)),
        VECTOR,
    ),
    "bn of a shared conv": (
        fn(
            lambda m, x: m.bn(y := m.conv(x)) + y,
            conv=conv(3),
            bn=lambda: nn.BatchNorm2d(6),
        ),
        IMAGE,
    ),
    "bn behind what it commutes with": (
        fn(
            lambda m, x: (
                m.bn5(m.pool(torch.cat([m.a(x), m.b(x)], 1))),
                m.bn3(m.b(x).flatten(2)),
                m.bn2(m.a(x).mean((2, 3))),
            ),
            a=lambda: nn.Conv2d(4, 2, 3), b=lambda: nn.Conv2d(4, 3, 3, padding=(0, 0)),
            pool=lambda: nn.AvgPool2d(2), bn5=lambda: nn.BatchNorm2d(5),
            bn3=lambda: nn.BatchNorm1d(3), bn2=lambda: nn.BatchNorm1d(2),
        ),
        IMAGE,
    ),
    "bn of another axis than the linear layer's": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)),
        (5, 6),
    ),
    "bn after a linear layer to one": (
        lambda: nn.Sequential(nn.Linear(6, 1), nn.BatchNorm1d(5)),
        (5, 6),
    ),
    # signals
    "conv1d": (conv1d(3), SIGNAL),
    "conv1d stride": (conv1d(3, stride=2, bias=False), SIGNAL),
    "conv1d padding": (conv1d(4, padding=3), SIGNAL),
    "conv1d same": (conv1d(3, padding="same"), SIGNAL),
    "conv1d same even": (conv1d(4, padding="same"), SIGNAL),
    "conv1d dilation": (conv1d(3, dilation=3), SIGNAL),
    "conv1d groups": (conv1d(3, groups=2, stride=3, padding=1, dilation=2), SIGNAL),
    "conv1d depthwise": (lambda: nn.Conv1d(4, 8, 3, groups=4), SIGNAL),
    "bn of a signal": (lambda: nn.BatchNorm1d(4), SIGNAL),
    "max pool 1d": (lambda: nn.MaxPool1d(3, stride=2, padding=1, ceil_mode=True), SIGNAL),
    "avg pool 1d": (lambda: nn.AvgPool1d(2), SIGNAL),
    "avg pool 1d padded": (
        lambda: nn.Sequential(
            nn.Conv1d(4, 3, 2), nn.AvgPool1d(3, 2, 1, True, count_include_pad=False), nn.ReLU()
        ),
        SIGNAL,
    ),
    "adaptive average 1d": (lambda: nn.AdaptiveAvgPool1d(1), SIGNAL),
    "unsqueezed signal": (
        fn(lambda m, x: m.c(x.unsqueeze(1)).squeeze(1) + x, c=lambda: nn.Conv2d(1, 1, 1)),
        SIGNAL,
    ),
    "signal to vector": (
        fn(lambda m, x: m.fc(m.c(x).transpose(1, 2)), c=conv1d(2), fc=lambda: nn.Linear(6, 2)),
        SIGNAL,
    ),
    "signals": (
        lambda: nn.Sequential(
            nn.Conv1d(4, 4, 5, padding="same"), nn.BatchNorm1d(4), nn.ReLU(), ResidualSignal(),
            nn.MaxPool1d(2), nn.Conv1d(4, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1),
            nn.Flatten(), nn.Linear(8, 3),
        ),
        SIGNAL,
    ),
    # activations
    "relu of the input": (lambda: nn.ReLU(), VECTOR),
    "relu6": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU6()), IMAGE),
    "clamp": (fn(lambda m, x: m.fc(x).clamp(-0.3, 0.45), fc=lambda: nn.Linear(10, 6)), VECTOR),
    "clamp min": (fn(lambda m, x: x.clamp(min=-0.5)), VECTOR),
    "clamp max": (fn(lambda m, x: x.clamp_max(0.7)), VECTOR),
    "hardtanh": (lambda: nn.Hardtanh(-0.5, 0.8), VECTOR),
    "leaky relu": (lambda: nn.Sequential(nn.Linear(10, 6), nn.LeakyReLU(0.1)), VECTOR),
    "leaky relu steep": (lambda: nn.LeakyReLU(1.75), VECTOR),
    "leaky relu negative": (lambda: nn.LeakyReLU(-0.3), VECTOR),
    # tables
    "sigmoid": (lambda: nn.Sigmoid(), VECTOR),
    "tanh": (lambda: nn.Sequential(nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 3)), VECTOR),
    "silu of an image": (lambda: nn.Sequential(nn.Conv2d(4, 3, 3), nn.SiLU()), IMAGE),
    "gelu": (lambda: nn.Sequential(nn.Linear(10, 6), nn.GELU(), nn.Linear(6, 3)), VECTOR),
    "gelu tanh": (lambda: nn.GELU(approximate="tanh"), VECTOR),
    "functions": (
        fn(lambda m, x: torch.cat([
            functional.mish(x), functional.hardswish(x), functional.elu(x, 0.7),
            functional.celu(x, 1.3), functional.selu(x), functional.softplus(x, 2),
            functional.logsigmoid(x), functional.hardsigmoid(x), torch.erf(x),
            torch.exp(x), torch.expm1(x),
        ], 1)),
        VECTOR,
    ),
    "gated": (
        fn(lambda m, x: m.a(x) * torch.sigmoid(m.b(x)) + torch.tanh(x),
           a=lambda: nn.Linear(10, 10), b=lambda: nn.Linear(10, 10)),
        VECTOR,
    ),
    "gated signal": (
        fn(lambda m, x: torch.tanh(m.a(x)) * torch.sigmoid(m.a(x)), a=conv1d(3, padding=2)),
        SIGNAL,
    ),
    "squeeze and excite": (
        fn(lambda m, x: x * torch.sigmoid(m.up(torch.relu(m.down(x.mean((2, 3), keepdim=True))))),
           down=lambda: nn.Conv2d(4, 2, 1), up=lambda: nn.Conv2d(2, 4, 1)),
        IMAGE,
    ),
    "amax": (fn(lambda m, x: m.c(x).amax((2, 3)), c=conv(2)), IMAGE),
    # softmax
    "softmax": (lambda: nn.Sequential(nn.Linear(10, 5), nn.Softmax(-1)), VECTOR),
    "softmax of the input": (fn(lambda m, x: (2 * x).softmax(1)), VECTOR),
    "softmax over channels": (lambda: nn.Softmax(1), IMAGE),
    "softmax over one": (lambda: nn.Sequential(nn.Linear(10, 1), nn.Softmax(-1)), VECTOR),
    "softmax inside": (
        fn(lambda m, x: m.b(m.a(x).softmax(-1) * x),
           a=lambda: nn.Linear(10, 10), b=lambda: nn.Linear(10, 4)),
        VECTOR,
    ),
    "mlp with softmax": (
        lambda: nn.Sequential(
            nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4),
            nn.Softmax(1),
        ),
        VECTOR,
    ),
    "log softmax and logsumexp": (
        fn(lambda m, x: (m.fc(x).log_softmax(1), x.logsumexp(1, keepdim=True), x.log_softmax(-1)),
           fc=lambda: nn.Linear(10, 5)),
        VECTOR,
    ),
    "logsumexp over several dimensions": (
        fn(lambda m, x: (x.logsumexp((1, 3)), x.logsumexp(-1)[:, :, :1].log_softmax(2))),
        (3, 2, 4),
    ),
    "softmax under a mask": (
        lambda: Buffers(
            lambda m, x: (
                x.masked_fill(m.hidden, -torch.inf).softmax(-1),
                torch.where(m.shown, x, -torch.inf).softmax(1),
                (x + m.added).softmax(-1),
            ),
            hidden=torch.eye(4) > 0,
            shown=torch.ones(4, 4).tril() > 0,
            added=(torch.eye(4) * 0.7).masked_fill(torch.ones(4, 4).triu(2) > 0, -torch.inf),
        ),
        (4, 4),
    ),
    "softmax under computed masks": (
        fn(lambda m, x, y: (
            *((z := torch.where(y > 0, x, -1e9)).softmax(-1), (z / 3).softmax(1)),
            x.masked_fill(y[:, :1] > 0, torch.finfo(x.dtype).min).softmax(1),
            x.masked_fill(y < y.amax(1, True) - 1, -torch.inf).softmax(1),
            (x + ((1 - (y[:, 2] > 0).float()) * -1e9)[:, None]).softmax(-1),
            torch.where(y.abs() > 0.1, x, torch.full_like(x, -1e5)).softmax(-1),
        )),
        ((4, 3), (4, 3)),
    ),
    "softmax under several masks": (
        lambda: Buffers(
            lambda m, x, y: (
                functional.softmin(x.masked_fill(y > 0.3, 1e9), -1),
                x.masked_fill(y < y.amax(-1, True) - 2, -1e9)
                .masked_fill(y > y.amin(-1, True) + 3, torch.tensor(-1e9)).softmax(-1),
                ((x + m.added) / 3).softmax(-1),
                (x - (y > 0).float() * 1e9).softmax(1),
            ),
            added=torch.tensor([0.5, -1e9, 0]),
        ),
        ((4, 3), (4, 3)),
    ),
    "written at computed places": (
        fn(lambda m, x, y: (
            torch.zeros_like(x).scatter_(2, x.argmax(2, keepdim=True), 1.0) * y,
            x.scatter(1, y.argmax(1, keepdim=True), -0.75),
            x.scatter(1, torch.stack([y[:, :, 0].argmin(1)] * 3, 1)[:, None], y),
            torch.zeros(x.shape[0], 4, 3).scatter(
                2, torch.stack([y.argmax(2), x.argmin(2)], 2), 0.5),
        )),
        ((4, 3), (4, 3)),
    ),
    "softmax under numbers that leave nothing": (
        lambda: Buffers(
            lambda m, x, y: (
                x.masked_fill(y > y.amin(-1, True), -400).softmax(-1),
                (torch.where(y < y.amax(1, True), -x, 900) / -2).softmax(1),
                (x + ((1 - (y[:, 2] > 0).float()) * -600)[:, None]).softmax(-1),
                (x + m.added).softmax(-1),
            ),
            added=torch.tensor([0.5, -300, 0]),
        ),
        ((4, 3), (4, 3)),
    ),
    "attention that sees nothing": (
        fn(lambda m, q, k: (
            functional.scaled_dot_product_attention(q, q, q, attn_mask=(k > 0.4)[:, None]),
            functional.scaled_dot_product_attention(
                q, q, q, attn_mask=torch.zeros(4, 4).masked_fill((k > 0)[:, None], -torch.inf)),
        )),
        ((4, 3), (4,)),
    ),
    "padded tokens before and after": (
        lambda: Buffers(
            lambda m, t: m.encoder(m.rows(t), mask=m.causal, src_key_padding_mask=t == 8),
            {"rows": nn.Embedding(9, 4), "encoder": nn.TransformerEncoder(
                nn.TransformerEncoderLayer(4, 2, 5, dropout=0, batch_first=True), 1,
                enable_nested_tensor=False)},
            causal=nn.Transformer.generate_square_subsequent_mask(3),
        ),
        rows(8, 3),
    ),
    "gated linear unit": (
        fn(lambda m, x: functional.glu(m.fc(x)), fc=lambda: nn.Linear(10, 6)),
        VECTOR,
    ),
    # functions of positive numbers, and quotients
    "roots and logarithms": (
        fn(lambda m, x: (y := torch.relu(x) + 0.25, torch.cat([
            y.sqrt(), y.rsqrt(), y.log(), y.log2(), x.relu().log1p(), y.reciprocal(), y**-0.5,
            x.sin() * x.cos(), y.log10(), 2 / y, (y + 0.5) ** -2,
        ], 1))[1]),
        VECTOR,
    ),
    "quotients": (
        fn(lambda m, x: (x / (x * x + 1), (x + 0.3) / (m.fc(x) * 0.1 - 2),
                         (x * x + 0.5) / (x * x + 0.7)),
           fc=lambda: nn.Linear(10, 10)),
        VECTOR,
    ),
    # norms
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(10, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)),
        VECTOR,
    ),
    "norms": (
        fn(lambda m, x: (m.layer(x), m.plain(x), m.group(x), m.one(x), m.instance(x), m.rms(x) + x),
           layer=lambda: nn.LayerNorm((2, 3)), plain=lambda: nn.LayerNorm(3, 0.1, False),
           group=lambda: nn.GroupNorm(2, 4), one=lambda: nn.GroupNorm(1, 4, affine=False),
           instance=lambda: nn.InstanceNorm2d(4, affine=True), rms=lambda: nn.RMSNorm((4, 2, 3))),
        (4, 2, 3),
    ),
    "norms of other ranks": (
        fn(lambda m, x: (m.rms(x), m.layer(x[:, 0]), m.instance(x), m.group(x[:, :, 0]),
                         m.channel(m.c(x)), m.last(x.transpose(1, 2))),
           rms=lambda: nn.RMSNorm(5, eps=1e-3), layer=lambda: nn.LayerNorm(5, bias=False),
           instance=lambda: nn.InstanceNorm1d(4), group=lambda: nn.GroupNorm(1, 4),
           c=lambda: nn.Conv1d(4, 6, 2), channel=lambda: nn.GroupNorm(3, 6),
           last=lambda: nn.LayerNorm(4)),
        (4, 5),
    ),
    "norms of small and constant rows": (
        fn(lambda m, x: (m.a(x * 2**-12), m.b(torch.relu(x - 1)), m.a(x[:, :1] + 0 * x),
                         m.b(x * 1000)),
           a=lambda: nn.LayerNorm(6), b=lambda: nn.LayerNorm(6, 1e-3)),
        (6,),
    ),
    "instance norm with statistics": (
        lambda: nn.InstanceNorm2d(4, track_running_stats=True),
        IMAGE,
    ),
    "normalized vectors": (
        fn(lambda m, x: (functional.normalize(x), functional.normalize(x, dim=-1, eps=0.5))),
        (3, 4),
    ),
    "statistics": (
        fn(lambda m, x: (x.var(1), x.std((1, 2), keepdim=True), x.var(-1, correction=0),
                         x.norm(dim=2))),
        (4, 5),
    ),
    # attention
    "attention": (
        lambda: Buffers(
            lambda m, q, k, v: (
                functional.scaled_dot_product_attention(q, k, v, scale=0.3),
                functional.scaled_dot_product_attention(q, k, v, attn_mask=m.shown),
                functional.scaled_dot_product_attention(q, q, q, is_causal=True),
                functional.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True),
            ),
            shown=torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]]) > 0,
        ),
        ((2, 3, 4), (2, 4, 4), (2, 4, 4)),
    ),
    "attention with an added mask": (
        lambda: Buffers(
            lambda m, q, k: functional.scaled_dot_product_attention(q, k, k, attn_mask=m.added),
            added=torch.tensor([[[0.5, -torch.inf, 0], [0, -1, 0.25]]]),
        ),
        ((2, 2, 4), (2, 3, 4)),
    ),
    "constant matrices spread over the batch": (
        lambda: Buffers(
            lambda m, x: (
                (a := m.a.expand(x.shape[0], -1, -1)).bmm(x),
                *(m.a[None] @ x, m.a.repeat(x.shape[0], 1, 1) @ x),
                *(torch.ones(x.shape[0], 4, 4).tril() @ x, x.mT @ a),
                *(torch.einsum("bij,bjk->bik", a, x), torch.baddbmm(a[:, :, :3], a, x)),
            ),
            a=torch.linspace(-1, 1.5, 16).reshape(4, 4),
        ),
        (4, 3),
    ),
    "padded tokens": (
        fn(lambda m, t: m.layer(m.rows(t), src_key_padding_mask=t == 0),
           rows=lambda: nn.Embedding(9, 4),
           layer=lambda: nn.TransformerEncoderLayer(4, 2, 5, dropout=0, batch_first=True)),
        rows(9, 3),
    ),
    "learned queries": (
        lambda: Buffers(
            lambda m, x: (
                *m.a((q := m.q.expand(x.shape[0], -1, -1)), x, x, key_padding_mask=x[..., 0] > 1),
                m.a(m.q.repeat(x.shape[0], 1, 1), x, x, need_weights=False)[0],
                m.a(x, q, q, need_weights=False)[0],
                m.decoder(q, x),
                functional.scaled_dot_product_attention(q, x, x, m.added),
                functional.scaled_dot_product_attention(q, x, x, x[:, None, :, 1] > -1),
            ),
            {
                "a": nn.MultiheadAttention(4, 2, batch_first=True),
                "decoder": nn.TransformerDecoderLayer(4, 2, 5, dropout=0, batch_first=True),
            },
            q=torch.linspace(-1, 1.5, 8).reshape(1, 2, 4),
            added=torch.tensor([0.5, -torch.inf, 0]),
        ),
        (3, 4),
    ),
    "multihead attention": (
        lambda: Buffers(
            lambda m, x: m.a(x, x, x, attn_mask=m.hidden),
            {"a": nn.MultiheadAttention(4, 2, batch_first=True)},
            hidden=torch.ones(3, 3).triu(1) > 0,
        ),
        (3, 4),
    ),
    "cross attention": (
        fn(lambda m, x, y: m.a(x, y, y, need_weights=False)[0],
           a=lambda: nn.MultiheadAttention(4, 1, bias=False, kdim=3, vdim=3, batch_first=True)),
        ((3, 4), (2, 3)),
    ),
    "transformer layer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 6, batch_first=True),
        (3, 4),
    ),
    "transformer": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 1, 5, 0, "gelu", batch_first=True, norm_first=True),
            1, norm=nn.LayerNorm(4), enable_nested_tensor=False,
        ),
        (3, 4),
    ),
    # pools
    "max pool": (lambda: nn.MaxPool2d(2), IMAGE),
    "max pool padded": (lambda: nn.MaxPool2d(3, stride=2, padding=1), IMAGE),
    "max pool ceil": (lambda: nn.MaxPool2d((2, 3), stride=(3, 2), ceil_mode=True), IMAGE),
    "max pool ceil padded": (
        lambda: nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
        IMAGE,
    ),
    "max pool dilated": (
        lambda: nn.MaxPool2d((2, 3), (1, 2), 1, dilation=(3, 2), ceil_mode=True),
        IMAGE,
    ),
    "max pool 1d dilated": (lambda: nn.MaxPool1d(3, 2, 1, dilation=2, ceil_mode=True), SIGNAL),
    "conv max pool relu": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.ReLU()),
        IMAGE,
    ),
    "avg pool": (lambda: nn.AvgPool2d(2), IMAGE),
    "avg pool 3x3": (lambda: nn.AvgPool2d(3, stride=1), IMAGE),
    "avg pool padded": (lambda: nn.AvgPool2d(3, stride=2, padding=1), IMAGE),
    "avg pool without padding's count": (
        lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
        IMAGE,
    ),
    "avg pool ceil": (lambda: nn.AvgPool2d(3, stride=2, ceil_mode=True), IMAGE),
    "avg pool ceil padded": (lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), IMAGE),
    "avg pool divisor": (lambda: nn.AvgPool2d(2, divisor_override=3), IMAGE),
    "avg pool relu": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 2), nn.AvgPool2d(3, stride=1), nn.ReLU()),
        IMAGE,
    ),
    "global average": (lambda: nn.AdaptiveAvgPool2d(1), IMAGE),
    "adaptive average": (lambda: nn.AdaptiveAvgPool2d((1, 3)), IMAGE),
    "adaptive uneven": (
        fn(
            lambda m, x: (
                functional.adaptive_avg_pool2d(x, (3, 4)),
                functional.adaptive_max_pool2d(m.c(x), (5, 4)),
                functional.adaptive_avg_pool2d(m.c(x), (2, 8)),
                functional.adaptive_max_pool2d(x, 1),
            ),
            c=conv(2),
        ),
        IMAGE,
    ),
    "adaptive uneven 1d": (
        fn(lambda m, x: functional.adaptive_avg_pool1d(x, 4)
           + functional.adaptive_max_pool1d(x, 4)),
        SIGNAL,
    ),
    "mean over space": (fn(lambda m, x: x.mean((2, 3))), IMAGE),
    "mean over space kept": (fn(lambda m, x: x.mean((-1, -2), keepdim=True)), IMAGE),
    "mean over channels": (fn(lambda m, x: x.mean(1)), IMAGE),
    "sum over a vector": (fn(lambda m, x: x.sum(1, keepdim=True)), VECTOR),
    # merges
    "residual on the input": (fn(lambda m, x: m.fc(x) + x, fc=lambda: nn.Linear(10, 10)), VECTOR),
    "input plus itself": (fn(lambda m, x: x + x), VECTOR),
    "square": (fn(lambda m, x: x * x), VECTOR),
    "sub and alpha": (
        fn(lambda m, x: torch.sub(m.fc(x), x, alpha=3), fc=lambda: nn.Linear(10, 10)),
        VECTOR,
    ),
    "scalars": (fn(lambda m, x: 1.5 - (x * 0.3 + 2) / 7 - x / 0.3), VECTOR),
    "powers of two": (fn(lambda m, x: x * 0.25 - x / 8), VECTOR),
    "constants": (WithConstant, IMAGE),
    "gate": (
        fn(lambda m, x: x * m.pool(x), pool=lambda: nn.AdaptiveAvgPool2d(1)),
        IMAGE,
    ),
    "two inputs": (fn(lambda m, x, y: m.fc(x) * y - x, fc=lambda: nn.Linear(5, 5)), ((5,), (5,))),
    "two images": (
        fn(lambda m, x, y: torch.cat([m.c(x), y], 1), c=lambda: nn.Conv2d(3, 2, 1)),
        ((3, 4, 5), (2, 4, 5)),
    ),
    "cat channels": (
        fn(lambda m, x: torch.cat([m.c(x), x, torch.relu(x)], 1), c=conv(1)),
        IMAGE,
    ),
    "cat height": (fn(lambda m, x: torch.cat([x, x * 0.7], dim=-2)), IMAGE),
    "constant beside a batch that is last": (
        lambda: Buffers(
            lambda m, x: (x.permute(1, 2, 0) * m.w + m.w).permute(2, 0, 1),
            w=torch.linspace(-1, 2, 4)[:, None],
        ),
        (4, 4),
    ),
    "constant beside a batch in the middle": (
        lambda: Buffers(
            lambda m, x: (x.transpose(0, 1) - m.w).transpose(0, 1),
            w=torch.linspace(-1, 2, 4).reshape(4, 1, 1),
        ),
        (4, 5),
    ),
    "division beside a batch that is last": (
        lambda: Buffers(
            lambda m, x: (x.permute(1, 2, 0) / m.w).permute(2, 0, 1),
            w=torch.tensor([[1.0], [3.0], [5.0], [7.0]]),
        ),
        (4, 4),
    ),
    "division by a buffer": (
        lambda: Buffers(lambda m, x: x / m.scale, scale=torch.linspace(0.3, 2, 10)),
        VECTOR,
    ),
    "division by a huge number": (fn(lambda m, x: x / 1e30), VECTOR),
    "integer and boolean buffers": (
        lambda: Buffers(
            lambda m, x: x * m.mask + x / m.whole - m.whole,
            mask=torch.arange(10) % 3 == 0,
            whole=torch.arange(1, 11),
        ),
        VECTOR,
    ),
    "one number a sample": (
        fn(
            lambda m, x: 0.3 - torch.relu(m.fc(x).squeeze(-1)).clamp(max=0.9) / 3 + x.mean(1) * 0.7,
            fc=lambda: nn.Linear(10, 1),
        ),
        VECTOR,
    ),
    "clamp with crossed bounds": (
        fn(lambda m, x: m.fc(x).clamp(0.3, -0.5), fc=lambda: nn.Linear(10, 3)),
        VECTOR,
    ),
    "cat vectors": (
        fn(lambda m, x: torch.cat([m.c(x).flatten(1), x.flatten(1)], 1), c=conv(3)),
        IMAGE,
    ),
    # choices
    "neg abs sign": (
        fn(lambda m, x: torch.cat([-m.fc(x), m.fc(x).abs(), x.sign(), -x.abs()], 1),
           fc=lambda: nn.Linear(10, 4)),
        VECTOR,
    ),
    "maximum and minimum": (
        lambda: Buffers(
            lambda m, x: torch.cat([
                torch.maximum(m.row, x), torch.minimum(x, m.number), torch.max(x, -2 * x),
                torch.min(torch.relu(x), m.whole), torch.fmax(m.number, x),
                x.clamp(-0.3, torch.inf),
            ], 1),
            row=torch.linspace(-1, 1, 10), number=torch.tensor(0.4), whole=torch.arange(10),
        ),
        VECTOR,
    ),
    "clamp between tensors": (
        lambda: Buffers(
            lambda m, x: torch.cat([
                x.clamp(m.low, m.high), x.clamp(max=m.high), x.clamp(min=x.mean(1, True)),
                x.clamp(-torch.inf, 0.3), x.clamp(m.high, m.low),
            ], 1),
            low=torch.linspace(-1, 0.5, 4)[:, None, None], high=torch.linspace(0, 1, 6),
        ),
        IMAGE,
    ),
    "comparisons": (
        lambda: Buffers(
            lambda m, x, y: (
                torch.where((x > y) & ~(x >= 0.7) | (y < m.c), x, y),
                torch.where(torch.logical_xor(x <= m.c, y != 0), 0.3, y) * (x == x.abs()),
                ((x > 0.1).float() - 0.5 * (m.c > y).float()) * x,
                (x > 0).any(1), torch.where(m.b & (x > 0.2).all(1, keepdim=True), m.c, x),
            ),
            c=torch.linspace(-1, 1, 5), b=torch.arange(5) % 2 == 0,
        ),
        ((5,), (5,)),
    ),
    "masks": (
        lambda: Buffers(
            lambda m, x: (
                x.permute(0, 2, 3, 1).masked_fill(m.mask, 0.3)
                .masked_fill(x[..., None].sum(1) > 2, -1),
                torch.where(x.mean(1, keepdim=True) > 0.1, x, m.row),
                torch.where(m.mask, x.permute(0, 2, 3, 1), m.row[:4]),
            ),
            mask=torch.arange(28).reshape(7, 1, 4) % 3 == 0, row=torch.linspace(-1, 1, 6),
        ),
        IMAGE,
    ),
    "argmax": (
        fn(lambda m, x: ((y := m.c(x)).argmax(1), x.argmin(2, keepdim=True), *y.max(-1),
                         y.min(1)[1], y.flatten(1).argmax(1),
                         torch.where(y.argmax(2, True) == 1, y, 0.25)),
           c=conv(3)),
        IMAGE,
    ),
    "amin": (fn(lambda m, x: (m.c(x).amin((2, 3)), x.amin(1, True)), c=conv(2)), IMAGE),
    "prelu": (
        fn(lambda m, x: m.d(m.b(m.a(x)) * m.c(x)), a=conv(3), c=conv(3),
           b=lambda: slopes(-0.5, 1.5, 6), d=lambda: slopes(0.25, 0.25, 1)),
        IMAGE,
    ),
    "prelu of a signal": (
        lambda: nn.Sequential(
            nn.Conv1d(4, 6, 3), slopes(0, 1, 6), nn.Conv1d(6, 3, 1), slopes(1, 2, 3)
        ),
        SIGNAL,
    ),
    "shrinks": (
        fn(lambda m, x: torch.cat([
            functional.threshold(m.fc(x), 0.2, -0.4), functional.hardshrink(x, 0.3),
            functional.softshrink(x, 0.3), functional.threshold(x, 0, 0),
        ], 1), fc=lambda: nn.Linear(10, 4)),
        VECTOR,
    ),
    "powers": (
        fn(lambda m, x: torch.cat(
            [x**2, x**3, x.square() + x**0, m.fc(x) ** 1, (x * 0.3) ** 5.0], 1
        ), fc=lambda: nn.Linear(10, 4)),
        VECTOR,
    ),
    "compound arithmetic": (
        lambda: Buffers(
            lambda m, x, y: torch.addcmul(x, y, m.c, value=0.5) + torch.lerp(y, x, 0.3)
            - torch.linalg.vecdot(x, y)[:, None] * torch.addcdiv(m.c, x, m.c + 3),
            c=torch.linspace(-1, 1, 5),
        ),
        ((5,), (5,)),
    ),
    "other ranks": (
        lambda: Buffers(
            lambda m, x: (
                m.number - (x.flatten(0, 1) * m.row + m.number).reshape(-1, 4, 3),
                m.stack * x.mean(1)[:, None, None, :] - m.row,
                torch.maximum(x.transpose(0, 1), x[None].mean(2)).transpose(0, 1),
            ),
            number=torch.tensor(0.7), row=torch.linspace(-1, 2, 3), stack=torch.randn(2, 1, 3),
        ),
        (4, 3),
    ),
    # joins
    "stacks": (
        fn(lambda m, x, y: (
            torch.hstack([x, y, x]), torch.dstack([x, 2 * y]), torch.column_stack([y, x]),
            torch.hstack([(v := x.mean(1)), v]), torch.dstack([v, v + 1]),
            torch.concat([x, y * 2], -1), torch.concatenate([y, x], dim=1),
            torch.true_divide(x, 3) - torch.true_divide(y, v.square()[:, None] + 1),
        )),
        ((3, 4), (3, 4)),
    ),
    "constants among the parts": (
        lambda: Buffers(
            lambda m, x: (
                torch.cat([m.token.expand(x.shape[0], -1, -1), x, m.token.expand(x.shape[0], 2, 5),
                           x], 1),
                torch.cat([x, torch.zeros_like(x)], 2),
                torch.stack([m.row.expand_as(x), x, 2 * x, x], 2),
            ),
            token=torch.linspace(-1, 1, 5)[None, None], row=torch.linspace(0, 2, 5),
        ),
        (3, 5),
    ),
    "constant channels": (
        fn(lambda m, x: m.c(torch.cat([torch.ones(x.shape[0], 1, 7, 6), x], 1)),
           c=lambda: nn.Conv2d(5, 3, 2)),
        IMAGE,
    ),
    # assignments
    "parts assigned": (
        lambda: Buffers(parts_assigned, row=torch.linspace(-1, 1, 5), i=torch.tensor([2, 0]),
                        mask=torch.tensor([True, False, True, False, True])),
        ((4, 5), (4, 5)),
    ),
    "image assigned": (
        fn(image_assigned, c=lambda: nn.Conv2d(3, 2, 3)),
        (3, 5, 4),
    ),
    "bounds out of reach": (
        fn(lambda m, x: (m.fc(x).clamp(-1e30, 1e30) + x.clamp(max=1e30)).clamp(
            min=torch.finfo(x.dtype).min), fc=lambda: nn.Linear(5, 5)),
        (5,),
    ),
    # triangles, diagonals, differences
    "matrices": (
        fn(lambda m, x: (
            x.tril() - x.triu(1).mT @ x, torch.diag_embed(x.diagonal(-1, 1, 2)),
            torch.einsum("bii,bij->bi", x, x) + torch.einsum("bii->b", x)[:, None],
        )),
        (4, 4),
    ),
    "differences": (
        fn(lambda m, x: (
            x.diff(n=2, dim=1), torch.diff(x, prepend=x[..., :1], append=torch.ones_like(x)),
            torch.nan_to_num(functional.rrelu(x, 0.1, 0.4)).diff(dim=1),
        )),
        (4, 3),
    ),
    "one hot": (
        fn(lambda m, x, i: (
            (h := functional.one_hot(x.argmax(-1), 5)), h * x,
            functional.one_hot(i, 7).float().sum(1),
        )),
        ((4, 5), rows(4, 3)),
    ),
    "cosines": (
        lambda: Buffers(
            lambda m, x, y: (
                functional.cosine_similarity(x, y),
                functional.cosine_similarity(x[:, :, None], m.rows[None, None], dim=-1),
            ),
            rows=torch.randn(3, 5),
        ),
        ((4, 5), (4, 5)),
    ),
    # products
    "matmul": (
        fn(lambda m, x, y: ((m.fc(x) @ y).softmax(-1) @ x, torch.bmm(x, x.transpose(1, 2)).relu()),
           fc=lambda: nn.Linear(5, 5)),
        ((4, 5), (5, 4)),
    ),
    "heads": (
        fn(lambda m, x: (
            q := m.q(x).reshape(-1, 4, 2, 3).transpose(1, 2),
            (q @ m.k(x).reshape(-1, 4, 2, 3).permute(0, 2, 3, 1) @ q).transpose(1, 2).flatten(2)
            + (x[:, None] @ m.q(x)[:, :, :, None]).squeeze(-1).mean(1, True).transpose(1, 2),
        )[1], q=lambda: nn.Linear(6, 6), k=lambda: nn.Linear(6, 6)),
        (4, 6),
    ),
    "constant matrices": (
        lambda: Buffers(
            lambda m, x: (
                m.left @ x, m.left[0] @ x, x @ m.left[1], x.transpose(1, 2) @ m.stack[0],
                (x[:, None] @ m.stack.transpose(1, 2)).mean(2), m.stack @ x[:, None],
            ),
            left=torch.randn(3, 4), stack=torch.randn(2, 4, 4),
        ),
        (4, 4),
    ),
    "constant matrix and image": (
        lambda: Buffers(lambda m, x: torch.relu(m.rows @ x @ m.columns), rows=torch.randn(3, 7),
                        columns=torch.randn(6, 5)),
        IMAGE,
    ),
    "a matrix for each": (
        lambda: Buffers(lambda m, x: x @ m.w, w=torch.randn(4, 6, 3)), IMAGE),
    "einsum": (
        lambda: Buffers(
            lambda m, x, y: (
                torch.einsum("bij,bkj->bik", x, y), torch.einsum("oi,bij->bjo", m.w, x),
                torch.einsum("bij,bij->b", x, y),
                torch.einsum("...ij,jk,...k->...i", x, m.w, m.v @ y),
                torch.einsum("bij,bij->bij", x, y),
            ),
            w=torch.randn(4, 4), v=torch.randn(4),
        ),
        ((4, 4), (4, 4)),
    ),
    "addmm": (
        lambda: Buffers(
            lambda m, x, y: (
                torch.addmm(m.row, x, m.w), torch.addmm(x, y, m.w, beta=0.5, alpha=2),
                torch.addmm(m.row, y, m.w, alpha=0.3), torch.addmv(x.sum(1), y, m.row),
                torch.baddbmm(y[:, None], x[:, :, None], y[:, None], beta=-1),
            ),
            w=torch.randn(5, 5), row=torch.linspace(-1, 1, 5),
        ),
        ((5,), (5,)),
    ),
    # indices
    "embedding": (
        lambda: nn.Sequential(
            nn.Embedding(11, 5, padding_idx=0), Fn(lambda m, x: x.transpose(1, 2)),
            nn.Conv1d(5, 4, 3), nn.ReLU(),
        ),
        rows(11, 8),
    ),
    "embedding of two columns": (
        fn(lambda m, i, x: m.fc(torch.cat([m.a(i).flatten(1), m.b(i).mean(1), x], 1)),
           a=lambda: nn.Embedding(6, 3), b=lambda: nn.Embedding(16, 2),
           fc=lambda: nn.Linear(11, 4)),
        (rows(6, 2), (3,)),
    ),
    "short integers and conditions": (
        fn(lambda m, i, c, x: (
            i.float() * 0.3 - torch.where(i > 2, i, 3).float(),
            torch.where(c & (x > 0) | ~c, x, i.float()),
            (x * c).sum(1) / (c.float().sum(1) + 1), c,
        )),
        (rows(torch.int8, 5), rows(torch.bool, 5), (5,)),
    ),
    "indices compared": (
        fn(lambda m, i: (
            (m.e(i) * (i != 0).unsqueeze(-1)).sum(1) - i.float().mean(1, True),
            m.e(m.e(i[:, 1:].flip(1)).argmax(2)), torch.where(i > 2, i, 2), i,
        ), e=lambda: nn.Embedding(7, 4)),
        rows(7, 5),
    ),
    # recurrent layers
    "lstm, last step": (
        fn(lambda m, x: m.fc(m.r(x)[0][:, -1]), fc=lambda: nn.Linear(5, 3),
           r=lambda: nn.LSTM(3, 5, batch_first=True)),
        SEQUENCE,
    ),
    "lstm, projected, whole sequence and states": (
        fn(lambda m, x: (*(lambda o, s: (torch.relu(o), s[0].squeeze(0), s[1][0]))(*m.r(x)),),
           r=lambda: nn.LSTM(3, 4, proj_size=2, bias=False, batch_first=True)),
        SEQUENCE,
    ),
    "gru, two layers, two directions": (
        fn(lambda m, x: m.r(x)[0] * 2,
           r=lambda: nn.GRU(3, 3, 2, batch_first=True, bidirectional=True)),
        SEQUENCE,
    ),
    "gru without bias of one step": (
        fn(lambda m, x: m.r(x[:, :1])[1][-1], r=lambda: nn.GRU(3, 4, bias=False, batch_first=True)),
        SEQUENCE,
    ),
    "rnn from a learned state": (InitialState, SEQUENCE),
    "recurrent cells": (Cells, SEQUENCE),
    "rnn of a recurrent layer's sequence": (
        fn(lambda m, x: m.a(m.b(x)[0])[0] + x.mean(2, keepdim=True),
           a=lambda: nn.RNN(4, 3, batch_first=True),
           b=lambda: nn.RNN(3, 4, nonlinearity="relu", batch_first=True)),
        SEQUENCE,
    ),
    # constants spread over the batch
    "class token": (
        lambda: Buffers(
            lambda m, x: (
                torch.cat([m.token.repeat(x.shape[0], 2, 1), x], 1),
                torch.cat([x, m.token.tile((x.shape[0], 1, 1))], 1)[:, -2:] * 0.5,
            ),
            token=torch.linspace(-1, 1, 3),
        ),
        SEQUENCE,
    ),
    "attention with learned keys": (
        fn(lambda m, x: m.a(x, x, x, need_weights=False)[0],
           a=lambda: nn.MultiheadAttention(
               4, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True)),
        (3, 4),
    ),
    "transformers with a mask": (
        lambda: Buffers(
            lambda m, x: m.decoder(x, m.encoder(x, mask=m.mask), tgt_mask=m.mask),
            {"encoder": nn.TransformerEncoder(nn.TransformerEncoderLayer(
                4, 2, 5, batch_first=True, norm_first=True), 1, enable_nested_tensor=False),
             "decoder": nn.TransformerDecoder(nn.TransformerDecoderLayer(
                4, 1, 3, batch_first=True), 1)},
            mask=nn.Transformer.generate_square_subsequent_mask(3),
        ),
        (3, 4),
    ),
    "pad around the batch": (
        fn(lambda m, x: functional.pad(
            functional.pad(x.transpose(0, 1), (1, 0, 0, 0, -1, 2), value=0.5).flip(0),
            (1, 1), mode="reflect").transpose(0, 1)),
        SEQUENCE,
    ),
    # shapes
    "flatten linear": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 5 * 4, 5)),
        IMAGE,
    ),
    "flatten output": (lambda: nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten()), IMAGE),
    "flatten relu output": (
        fn(lambda m, x: torch.relu(m.c(x).flatten(1)) * 0.3, c=conv(3)),
        IMAGE,
    ),
    "flatten and view": (
        fn(lambda m, x: m.d(m.c(x).flatten(1).view(-1, 4, 6, 5)), c=conv(3), d=conv(2)),
        IMAGE,
    ),
    "flatten plus vector": (
        fn(lambda m, x: m.c(x).flatten(1) - m.fc(x.flatten(1)), c=conv(3),
           fc=lambda: nn.Linear(168, 120)),
        IMAGE,
    ),
    "flatten some": (fn(lambda m, x: m.c(x).flatten(2), c=conv(3)), IMAGE),
    "view to image": (
        fn(lambda m, x: m.c(x.view(-1, 4, 3, 3)), c=conv(2)),
        (36,),
    ),
    "view with batch size": (
        fn(lambda m, x: m.fc(x.view(x.size(0), -1)), fc=lambda: nn.Linear(168, 3)),
        IMAGE,
    ),
    "permute": (fn(lambda m, x: m.fc(x.permute(0, 2, 3, 1)), fc=lambda: nn.Linear(4, 3)), IMAGE),
    "permute to image": (fn(lambda m, x: m.c(x.permute(0, 3, 1, 2)), c=conv(2)), (5, 6, 4)),
    "permute view": (
        fn(lambda m, x: m.fc(x.transpose(1, 3).reshape(-1, 168)), fc=lambda: nn.Linear(168, 3)),
        IMAGE,
    ),
    "flatten a thin image": (
        fn(lambda m, x: m.fc(m.p(x).flatten(1)), p=lambda: nn.AdaptiveAvgPool2d(1),
           fc=lambda: nn.Linear(4, 3)),
        IMAGE,
    ),
    "pad": (lambda: nn.ZeroPad2d((1, 2, 0, 3)), IMAGE),
    # slices, repetitions
    "slices": (
        fn(lambda m, x: torch.cat([
            (y := m.c(x))[:, 1:5:2, :4, -3:],
            y[:, -2:, 1::2].repeat(1, 1, 3, 1)[:, :, :4, :3],
            y.flip(1, 3)[:, :2, :4, :3],
            y.roll((1, -2), (2, 3))[:, 4:, :4].narrow(3, 0, 3),
        ], 1), c=conv(2, stride=(1, 2), padding=1)),
        IMAGE,
    ),
    "chosen": (
        lambda: Buffers(
            lambda m, x: (
                x[:, -1, None] + x[:, [0, 2]].repeat_interleave(2, 1),
                x.index_select(2, m.i) * x[:, 0, :1].unsqueeze(1).expand(-1, 4, 3, -1),
                x[:, [0, 1, -1], [1, 2, 3]],
                x[:, :, [[0, 1], [3, 2]]],
                x[:, [0, 1], :, [2, -1]].permute(1, 0, 2),
            ),
            i=torch.tensor([6, 0, 2]),
        ),
        IMAGE,
    ),
    "gated halves": (
        fn(lambda m, x: (h := m.c(x).chunk(2, 1))[0] * torch.sigmoid(h[1]) + x[:, :3, 1:],
           c=conv1d(2)),
        SIGNAL,
    ),
    "slices of vectors": (
        fn(lambda m, x: torch.relu(m.fc(x)[:, 2:]) + x.tile(2)[:, 3:9] - torch.fliplr(x)[:, :6],
           fc=lambda: nn.Linear(10, 8)),
        VECTOR,
    ),
    "slices beside a merged batch": (
        fn(lambda m, x: m.fc(x.reshape(-1, 11))[:, 1:4].repeat(1, 2).reshape(-1, 4, 6)[:, -1],
           fc=lambda: nn.Linear(11, 5)),
        SIGNAL,
    ),
    "slice of a flat image": (fn(lambda m, x: m.c(x).flatten(1)[:, 3:100:7], c=conv(3)), IMAGE),
    "splits and merges of axes": (
        fn(
            lambda m, x: (
                m.d(m.c(x).view(-1, 2, 3, 5, 4).transpose(1, 2).reshape(-1, 6, 5, 4)),
                m.fc((y := m.c(x)).reshape(-1, 6, 20).mT.unflatten(1, (4, 5)).movedim(3, 1)
                     .swapaxes(2, 3)),
                y.permute(0, 3, 1, 2).reshape(-1, 12, 10).unsqueeze(2).squeeze(2),
                m.fc(y.permute(2, 0, 3, 1).reshape(-1, 4)).reshape(5, -1, 6, 4).transpose(0, 1),
            ),
            c=conv(3), d=lambda: nn.Conv2d(6, 2, 2), fc=lambda: nn.Linear(4, 4),
        ),
        IMAGE,
    ),
    "shuffles": (
        fn(
            lambda m, x: (
                functional.pixel_shuffle(torch.relu(m.c(x)), 2),
                functional.channel_shuffle(
                    functional.pixel_unshuffle(m.c(x)[:, :2, :4], 2), 4
                ),
            ),
            c=lambda: nn.Conv2d(4, 8, 2),
        ),
        (4, 6, 7),
    ),
    # pads
    "pads with numbers": (
        fn(
            lambda m, x: (
                torch.sigmoid(functional.pad(m.c(x), (1, 0, 0, 2), value=3)),
                functional.pad(torch.relu(x), (1, -2, -1, 0, 1, 1), value=-0.7) * 0.3,
                functional.pad(x, (0, 1, 0, 0, 0, 0, 0, 0), value=0.4),
                functional.pad(x, (-1, -2, 2, -3)),
            ),
            c=conv(2),
        ),
        IMAGE,
    ),
    "pads of signals": (
        lambda: nn.Sequential(
            nn.ConstantPad1d((1, 2), 0.6), nn.Conv1d(4, 4, 2), nn.ReflectionPad1d((2, 1)),
            nn.ReLU(), nn.Conv1d(4, 2, 3, padding="same", padding_mode="circular"),
        ),
        SIGNAL,
    ),
    "pads with entries": (
        fn(
            lambda m, x: torch.cat([
                functional.pad(m.c(x), (1, 0, 3, 0), mode="reflect")[:, :, :5],
                functional.pad(x, (1, 0, 0, 0), mode="replicate"),
                functional.pad(x, (0, 1, 2, 0), mode="circular")[:, :, :5],
            ], 1),
            c=lambda: nn.Conv2d(4, 2, 3, padding=1, padding_mode="replicate"),
        ),
        (4, 5, 4),
    ),
    # transposed convolutions
    "transposed 2x2": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 3, 2, 2), nn.ReLU(), nn.Conv2d(3, 2, 1)),
        (4, 3, 4),
    ),
    "transposed bn": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(4, 4, (3, 4), (2, 3), 1, (1, 0), groups=2, bias=False),
            nn.BatchNorm2d(4), nn.ReLU(),
        ),
        (4, 4, 3),
    ),
    "transposed dilated": (
        lambda: nn.ConvTranspose2d(4, 2, (2, 3), (3, 1), (0, 3), (2, 0), dilation=(2, 3)),
        (4, 3, 4),
    ),
    "transposed signals": (
        lambda: nn.Sequential(
            nn.ConvTranspose1d(4, 4, 4, 2, 1), nn.BatchNorm1d(4), nn.ReLU(),
            nn.ConvTranspose1d(4, 2, 3, padding=2), nn.Sigmoid(),
            nn.ConvTranspose1d(2, 2, 1, 3, output_padding=2),
        ),
        (4, 5),
    ),
    # images of another size
    "upsampled by repetition": (
        fn(
            lambda m, x: torch.cat([
                functional.interpolate(m.c(x), scale_factor=(1.7, 2)),
                functional.interpolate(x, (8, 8), mode="nearest-exact"),
            ], 1),
            c=lambda: nn.Conv2d(2, 2, 1),
        ),
        (2, 5, 4),
    ),
    "upsampled by interpolation": (
        fn(
            lambda m, x: (
                m.c(functional.interpolate(m.c(x), scale_factor=2, mode="bilinear")),
                functional.interpolate(x, (3, 7), mode="bilinear", align_corners=True),
                functional.interpolate(m.c(x), (4, 5), mode="bicubic"),
                functional.interpolate(x, (3, 2), mode="bilinear", antialias=True),
            ),
            c=lambda: nn.Conv2d(2, 2, 1),
        ),
        (2, 5, 4),
    ),
    "signals of another size": (
        fn(
            lambda m, x: torch.relu(functional.interpolate(m.c(x), scale_factor=2.5))
            - functional.interpolate(x, 20, mode="linear"),
            c=lambda: nn.Conv1d(3, 3, 1),
        ),
        (3, 8),
    ),
    "running sums": (fn(lambda m, x: (x.cumsum(1), m.c(x).cumsum(-1)), c=conv(3)), (4, 5, 5)),
    # graphs
    "in-place alias": (fn(in_place_alias, fc=lambda: nn.Linear(10, 10)), VECTOR),
    "in-place add": (fn(in_place_add, fc=lambda: nn.Linear(10, 10)), VECTOR),
    "two outputs": (
        fn(lambda m, x: ((y := m.fc(x)), torch.relu(y), x), fc=lambda: nn.Linear(10, 4)),
        VECTOR,
    ),
    "same output twice": (
        fn(lambda m, x: ((y := m.fc(x)), y), fc=lambda: nn.Linear(10, 4)),
        VECTOR,
    ),
    "resnet avg 3": (resnet(lambda: nn.AvgPool2d(3)), (3, 12, 12)),
    "resnet global": (resnet(lambda: nn.AdaptiveAvgPool2d(1)), (3, 8, 8)),
    "lenet": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(4, 8, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(8 * 5 * 5, 12), nn.ReLU(), nn.Linear(12, 10),
        ),
        (1, 28, 28),
    ),
    "separable": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
        ),
        (3, 9, 10),
    ),
}  # fmt: skip


def shapes_of(name: str) -> tuple[Shape, ...]:
    """Sample shapes of all inputs of a case."""
    shape = CASES[name][1]
    return shape if isinstance(shape[0], tuple) else (shape,)


NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm2d,
)  # fmt: skip


def draw(shape: Shape) -> Tensor:
    """64 samples: normal numbers, or indices."""
    if isinstance(shape, Rows):
        if isinstance(shape.rows, torch.dtype):
            low, high = range_of(shape.rows)
            return torch.randint(low, high + 1, (64, *shape)).to(shape.rows)
        return torch.randint(0, shape.rows, (64, *shape))
    return torch.randn(64, *shape)


def make(name: str, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model of a case in eval mode, its statistics settled, and 64 samples an input."""
    torch.manual_seed(seed)
    model = CASES[name][0]()
    x = tuple(draw(shape) for shape in shapes_of(name))
    model.train()
    with torch.no_grad():
        model(*x)
        for module in model.modules():
            if isinstance(module, NORMS) and module.weight is not None:
                module.weight.uniform_(-1.5, 1.5)
                if getattr(module, "bias", None) is not None:
                    module.bias.uniform_(-0.5, 0.5)
    return model.eval(), x


class AwkwardNames(nn.Module):
    """Layers, parameters and buffers whose names Python, C++ or torch.fx keep for themselves."""

    NAMES = (
        "class",
        "graph",
        "input",
        "meta",
        "code",
        "größe",
        "_graph",
        "int",
        "Input",
        "x-y",
        "import_",
    )

    def __init__(self) -> None:
        super().__init__()
        for name in self.NAMES:
            self.add_module(name, nn.Linear(4, 4))
        self.block = nn.ModuleDict({"class": nn.BatchNorm1d(4), "for": nn.Linear(4, 4, bias=False)})
        self.register_parameter("import", nn.Parameter(torch.ones(4)))
        self.register_buffer("def", torch.full((4,), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        for name in self.NAMES:
            x = torch.relu(self.get_submodule(name)(x)) + x
        x = self.block["for"](self.block["class"](x))
        return x * self.get_parameter("import") + self.get_buffer("def")


CASES["awkward names"] = (AwkwardNames, (4,))
CASES["keras classifier"] = (keras_descriptions.classifier, (8, 6, 2))
CASES["keras u-net"] = (keras_descriptions.u_net, (8, 8, 3))
CASES["keras signals"] = (keras_descriptions.signals, (9, 3))
CASES["leaky chain"] = (lambda: nn.Sequential(*(nn.LeakyReLU(0.3) for _ in range(9))), VECTOR)
