"""Random PyTorch models, as source text: a hypothesis strategy over the ops that users write.

A model grows statement by statement. Every statement is run at once on a batch of three samples, so
that PyTorch itself says whether it is possible and which shape it has; nothing here knows the
shapes of results. What is drawn is the source of a module with two functions, ``make()`` and
``inputs(count)``: `fxloom compile` takes such a file, and so does a person with a debugger.
"""

import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn
from torch import nn

MAX_VALUES = 600
"""Numbers in a value of one sample: C++ is compiled for some of these models."""

PREAMBLE = """\
import torch
from torch import nn
from torch.nn import functional as F
"""


@dataclass(frozen=True)
class Statement:
    """module: an expression for a module, or empty; text: an expression of the values' names."""

    text: str
    module: str = ""


@dataclass(frozen=True)
class Signal:
    """A value of the model under construction: its name and the shape of one sample."""

    name: str
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class RandomModel:
    """shapes: of one sample of every input; kinds: of the statements, for statistics."""

    source: str
    shapes: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]

    def build(self) -> tuple[nn.Module, Callable[[int], tuple[torch.Tensor, ...]]]:
        """The model in eval mode, and what makes inputs for it; the same ones every time."""
        space: dict[str, Any] = {}
        exec(self.source, space)
        return space["make"](), space["inputs"]


Draw = Callable[[DrawFn, Sequence[Signal]], Statement | None]
STATEMENTS: dict[str, Draw] = {}


def statement(*names: str) -> Callable[[Draw], Draw]:
    def register(function: Draw) -> Draw:
        for name in names:
            STATEMENTS[name] = function
        return function

    return register


def _any(draw: DrawFn, values: Sequence[Signal], *ranks: int) -> Signal | None:
    """One of the values with such a rank, the later ones more often."""
    fitting = [value for value in values if not ranks or value.rank in ranks]
    if not fitting:
        return None
    return draw(st.sampled_from([*fitting, *fitting[-2:]]))


def _number(draw: DrawFn) -> float:
    return draw(st.sampled_from([-2.5, -1, -0.5, -0.37, 0.1, 0.25, 0.5, 0.8, 1.0, 1.5, 2, 3]))


def _small(draw: DrawFn, low: int = 1, high: int = 3) -> int:
    return draw(st.integers(low, high))


# Layers ------------------------------------------------------------------------------------------


@statement("linear")
def _linear(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    x = _any(draw, values)
    assert x is not None
    bias = draw(st.booleans())
    return Statement(f"M({x.name})", f"nn.Linear({x.shape[-1]}, {_small(draw, 1, 9)}, bias={bias})")


@statement("conv1d", "conv1d", "conv2d")
def _conv(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    x = _any(draw, values, 2, 3)
    if x is None:
        return None
    size = x.rank - 1
    channels = x.shape[0]
    groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
    outputs = groups * _small(draw, 1, 3)
    each = [_small(draw, 1, 4) for _ in range(size)]
    kernel = ", ".join(map(str, each))
    options = [f"groups={groups}", f"bias={draw(st.booleans())}"]
    if draw(st.booleans()):
        options.append(f"dilation={_small(draw, 1, 3)}")
    padding = draw(st.sampled_from(["0", "1", "2", "'same'", "'valid'"]))
    options.append(f"padding={padding}")
    if padding != "'same'":
        options.append(f"stride={_small(draw, 1, 3)}")
    if draw(st.integers(0, 5)) == 0:
        mode = draw(st.sampled_from(["reflect", "replicate", "circular"]))
        options.append(f"padding_mode='{mode}'")
    made = f"nn.Conv{size}d({channels}, {outputs}, ({kernel},), {', '.join(options)})"
    return Statement(f"M({x.name})", made)


@statement("conv_transpose")
def _conv_transpose(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    x = _any(draw, values, 2, 3)
    if x is None:
        return None
    channels, size = x.shape[0], x.rank - 1
    groups = draw(st.sampled_from([g for g in (1, 2) if channels % g == 0]))
    stride = _small(draw)
    options = (
        f"stride={stride}, padding={_small(draw, 0, 2)}, groups={groups}, "
        f"output_padding={_small(draw, 0, 1) if stride > 1 else 0}, dilation={_small(draw, 1, 2)}, "
        f"bias={draw(st.booleans())}"
    )
    outputs = groups * _small(draw, 1, 2)
    made = f"nn.ConvTranspose{size}d({channels}, {outputs}, {_small(draw, 1, 4)}, {options})"
    return Statement(f"M({x.name})", made)


@statement("batch_norm")
def _batch_norm(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    x = _any(draw, values, 1, 2, 3)
    if x is None:
        return None
    dimensions = {1: 1, 2: 1, 3: 2}[x.rank]
    affine = draw(st.booleans())
    return Statement(f"M({x.name})", f"nn.BatchNorm{dimensions}d({x.shape[0]}, affine={affine})")


@statement("layer_norm", "group_norm", "rms_norm")
def _norm(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    x = _any(draw, values)
    assert x is not None
    kind = draw(st.sampled_from(["layer", "rms", "group", "instance"]))
    affine = draw(st.booleans())
    if kind in ("layer", "rms"):
        shape = list(x.shape[-_small(draw, 1, x.rank) :])
        name = "LayerNorm" if kind == "layer" else "RMSNorm"
        return Statement(f"M({x.name})", f"nn.{name}({shape}, elementwise_affine={affine})")
    if kind == "instance" and x.rank in (2, 3):
        return Statement(
            f"M({x.name})", f"nn.InstanceNorm{x.rank - 1}d({x.shape[0]}, affine={affine})"
        )
    groups = draw(st.sampled_from([g for g in range(1, x.shape[0] + 1) if x.shape[0] % g == 0]))
    return Statement(f"M({x.name})", f"nn.GroupNorm({groups}, {x.shape[0]}, affine={affine})")


@statement("recurrent")
def _recurrent(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    x = _any(draw, values, 2)
    if x is None or x.shape[0] > 8:
        return None
    kind = draw(st.sampled_from(["LSTM", "GRU", "RNN"]))
    options = f"batch_first=True, bidirectional={draw(st.booleans())}, bias={draw(st.booleans())}"
    if kind == "RNN":
        options += f", nonlinearity='{draw(st.sampled_from(['tanh', 'relu']))}'"
    made = f"nn.{kind}({x.shape[1]}, {_small(draw, 1, 4)}, {_small(draw, 1, 2)}, {options})"
    last = draw(st.sampled_from(["", "[:, -1]"]))
    return Statement(f"M({x.name})[0]{last}", made)


@statement("attention")
def _attention(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    x = _any(draw, values, 2)
    if x is None or x.shape[0] > 8:
        return None
    heads = draw(st.sampled_from([h for h in (1, 2, 3) if x.shape[1] % h == 0]))
    if draw(st.booleans()):
        made = f"nn.MultiheadAttention({x.shape[1]}, {heads}, batch_first=True)"
        return Statement(f"M({x.name}, {x.name}, {x.name}, need_weights=False)[0]", made)
    causal = draw(st.booleans())
    return Statement(
        f"F.scaled_dot_product_attention({x.name}, {x.name}, {x.name}, is_causal={causal})"
    )


@statement("transformer", "masked_attention")
def _transformer(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    """An encoder layer, or attention under a constant mask that leaves something in every row."""
    x = _any(draw, values, 2)
    if x is None or x.shape[0] > 6 or x.shape[1] > 8:
        return None
    rows, width = x.shape
    if draw(st.booleans()):
        options = f"{_small(draw, 1, 4)}, batch_first=True, norm_first={draw(st.booleans())}"
        return Statement(f"M({x.name})", f"nn.TransformerEncoderLayer({width}, 1, {options})")
    mask = draw(
        st.sampled_from(
            [
                f"torch.ones({rows}, {rows}).tril().bool()",
                f"nn.Transformer.generate_square_subsequent_mask({rows})",
                f"torch.randn({rows}, {rows})",
            ]
        )
    )
    made = f"nn.Buffer({mask})"
    return Statement(
        f"F.scaled_dot_product_attention({x.name}, {x.name}, {x.name}, attn_mask=M)", made
    )


# Elementwise -------------------------------------------------------------------------------------

FUNCTIONS = (
    *("F.relu({})", "F.relu6({})", "F.hardtanh({}, -0.7, 0.4)", "F.leaky_relu({}, 0.2)"),
    *("F.threshold({}, 0.1, -0.2)", "F.elu({})", "F.selu({})", "F.celu({}, 0.8)", "F.gelu({})"),
    *("F.gelu({}, approximate='tanh')", "F.silu({})", "F.hardswish({})", "F.hardsigmoid({})"),
    *("F.mish({})", "torch.sigmoid({})", "torch.tanh({})", "F.softplus({})", "F.softsign({})"),
    *("torch.exp({})", "torch.abs({})", "-{}", "torch.sign({})", "{} ** 2", "{} ** 3"),
    *("torch.log(torch.abs({}) + 0.5)", "torch.sqrt(torch.abs({}) + 0.1)"),
    *("torch.rsqrt(torch.abs({}) + 0.5)", "torch.reciprocal(torch.abs({}) + 0.5)"),
    *("torch.square({})", "F.logsigmoid({})", "torch.erf({})"),
    *("{}.clamp(-0.5, 0.75)", "{}.clamp(min=-0.3)", "{}.clamp(max=0.6)", "F.hardshrink({}, 0.3)"),
    *("F.softshrink({}, 0.2)", "F.rrelu({}, 0.1, 0.3)", "torch.nan_to_num({})"),
    *("{}.clamp(-1e30, 1e30)", "torch.true_divide({}, 3)"),
)


@statement("function", "function", "relu")
def _function(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    x = _any(draw, values)
    assert x is not None
    return Statement(draw(st.sampled_from(FUNCTIONS)).format(x.name))


@statement("prelu")
def _prelu(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    x = _any(draw, values)
    assert x is not None
    return Statement(f"M({x.name})", f"nn.PReLU({draw(st.sampled_from([1, x.shape[0]]))})")


@statement("softmax")
def _softmax(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    x = _any(draw, values)
    assert x is not None
    name = draw(st.sampled_from(["softmax", "softmax", "log_softmax"]))
    return Statement(f"F.{name}({x.name}, {_small(draw, 1, x.rank)})")


@statement("number")
def _with_number(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    x = _any(draw, values)
    assert x is not None
    form = draw(
        st.sampled_from(["{0} + {1}", "{1} - {0}", "{0} * {1}", "{0} / {1}", "{1} * {0} - 0.5"])
    )
    return Statement(form.format(x.name, _number(draw)))


@statement("constant")
def _with_constant(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    """A parameter that broadcasts."""
    x = _any(draw, values)
    assert x is not None
    shape = [1 if draw(st.booleans()) else n for n in x.shape]
    shape = shape[draw(st.integers(0, len(shape) - 1)) :]
    form = draw(st.sampled_from(["{0} + M", "M - {0}", "{0} * M", "torch.maximum({0}, M)"]))
    return Statement(form.format(x.name), f"nn.Parameter(torch.randn({shape}))")


@statement("merge", "merge")
def _merge(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    x = _any(draw, values)
    assert x is not None
    fitting = []
    for other in values:
        try:
            if other.rank == x.rank:
                torch.broadcast_shapes(x.shape, other.shape)
                fitting.append(other)
        except RuntimeError:
            continue
    y = draw(st.sampled_from(fitting))
    form = draw(
        st.sampled_from(
            [
                *("{0} + {1}", "{0} + {1}", "{0} - {1}", "{0} * {1}", "torch.maximum({0}, {1})"),
                *("torch.minimum({0}, {1})", "torch.where({0} > {1}, {0}, 0.5 * {1})"),
                *("torch.where({1} <= 0.1, {0}, {1})", "torch.add({0}, {1}, alpha=0.75)"),
                *("torch.where({0} == {1}, {0}, {1})", "{0} / ({1}.abs() + 0.5)"),
                *("torch.where(({0} > 0) & ({1} < 0.5), {0}, {1})",),
            ]
        )
    )
    return Statement(form.format(x.name, y.name))


@statement("matmul")
def _matmul(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    pairs = [
        (a, b, t)
        for a in values
        for b in values
        for t in ("", ".transpose(-1, -2)")
        if a.rank == b.rank >= 2
        and a.shape[:-2] == b.shape[:-2]
        and a.shape[-1] == b.shape[-1 if t else -2]
    ]
    if not pairs:
        return None
    a, b, transposed = draw(st.sampled_from(pairs))
    return Statement(f"{a.name} @ {b.name}{transposed}")


# Moving ------------------------------------------------------------------------------------------


@statement("cat", "stack")
def _cat(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    x = _any(draw, values)
    assert x is not None
    dim = draw(st.integers(0, x.rank - 1))
    if draw(st.integers(0, 3)) == 0:
        return Statement(f"torch.stack([{x.name}, {x.name} * 0.5], {dim + 1})")
    fitting = [
        v for v in values
        if v.rank == x.rank and v.shape[:dim] + v.shape[dim + 1 :]
        == x.shape[:dim] + x.shape[dim + 1 :]
    ]  # fmt: skip
    parts = draw(st.lists(st.sampled_from(fitting), min_size=1, max_size=3))
    names = ", ".join(v.name for v in [x, *parts])
    return Statement(f"torch.cat([{names}], {dim + 1})")


@statement("matrix")
def _matrix(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    """Triangles, diagonals, differences, classes, similarities."""
    x = _any(draw, values)
    assert x is not None
    dim, shift = _small(draw, 1, x.rank), draw(st.integers(-1, 1))
    forms = [f"{{0}}.diff(dim={dim}, n={_small(draw, 1, 2)})", "torch.hstack([{0}, {0} * 0.5])"]
    if x.rank > 1:
        forms += [f"{{0}}.tril({shift})", f"{{0}}.triu({shift})"]
        forms += [f"{{0}}.diagonal({shift}, -2, -1)", "torch.dstack([{0}, -{0}])"]
        forms += [f"F.cosine_similarity({{0}}, {{0}} + 1, {dim})"]
    if x.rank < 3 and x.shape[-1] < 6:
        forms += ["torch.diag_embed({0})"]
        forms += [f"F.one_hot({{0}}.argmax(-1), {x.shape[-1]}).float()"]
    return Statement(draw(st.sampled_from(forms)).format(x.name))


@statement("assign", "assign")
def _assign(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    """Something written into a part of a value."""
    x = _any(draw, values)
    assert x is not None
    dim = draw(st.integers(0, x.rank - 1))
    n = x.shape[dim]
    start = draw(st.integers(0, n - 1))
    stop, step = draw(st.integers(start + 1, n)), _small(draw, 1, 2)
    part = f"{x.name}[{':, ' * (dim + 1)}{start}:{stop}:{step}]"
    changed = [f"{part} * 0.5", f"torch.full_like({part}, 0.3)", f"-{part}.flip({dim + 1})"]
    written = draw(st.sampled_from(changed))
    forms = [
        f"{x.name}.slice_scatter({written}, {dim + 1}, {start}, {stop}, {step})",
        f"{x.name}.index_fill({dim + 1}, torch.tensor([{start}]), 0.25)",
        f"{x.name}.index_copy({dim + 1}, torch.tensor([{start}]), "
        f"{x.name}.narrow({dim + 1}, 0, 1) + 1)",
        f"torch.index_put({x.name}, ({x.name} > 0.5,), torch.tensor(0.5))",
    ]
    if x.rank > 1:
        row = f"{x.name}.select({dim + 1}, 0) * 2"
        forms += [f"{x.name}.select_scatter({row}, {dim + 1}, {start})"]
    return Statement(draw(st.sampled_from(forms)))


@statement("view")
def _view(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    x = _any(draw, values)
    assert x is not None
    forms = ["{0}.flatten(1)", "{0}.unsqueeze(1)", "{0}.unsqueeze(-1)", "{0}.contiguous()"]
    size = torch.Size(x.shape).numel()
    for n in (2, 3, 4):
        if size % n == 0:
            forms += [f"{{0}}.reshape(-1, {n}, {size // n})"]
            if size // n % 2 == 0:
                forms += [f"{{0}}.reshape(-1, {size // n // 2}, {n}, 2)"]
    if x.rank > 1:
        forms += ["{0}.transpose(-1, -2)", "{0}.flatten(-2)"]
        forms += [f"{{0}}.permute(0, {', '.join(map(str, range(x.rank, 0, -1)))})"]
    if x.rank == 3:
        forms += ["{0}.permute(0, 2, 3, 1)", "{0}.permute(0, 3, 1, 2)", "{0}.transpose(1, 3)"]
    if 1 in x.shape and x.rank > 1:
        forms += [f"{{0}}.squeeze({x.shape.index(1) + 1})"]
    return Statement(draw(st.sampled_from(forms)).format(x.name))


@statement("slice", "slice")
def _slice(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    x = _any(draw, values)
    assert x is not None
    dim = draw(st.integers(0, x.rank - 1))
    n = x.shape[dim]
    start = draw(st.integers(0, n - 1))
    stop, step = draw(st.integers(start + 1, n)), _small(draw, 1, 2)
    before = ":, " * (dim + 1)
    forms = [
        f"{{0}}[{before}{start}:{stop}:{step}]",
        f"{{0}}[{before}-1:]",
        f"{{0}}.flip({dim + 1})",
        f"{{0}}.roll({start}, {dim + 1})",
        f"torch.chunk({{0}}, {_small(draw)}, {dim + 1})[-1]",
        f"{{0}}.repeat_interleave({_small(draw, 1, 2)}, {dim + 1})",
    ]
    if x.rank > 1:
        forms += [f"{{0}}[{before}{start}]", f"{{0}}.select({dim + 1}, -1)"]
        forms += [f"{{0}}.sum({dim + 1})", f"{{0}}.amax({dim + 1}, keepdim=True)"]
        forms += [f"{{0}}.mean({dim + 1}, keepdim=True)", f"{{0}}.amin({dim + 1})"]
    if n == 1:
        sizes = ", ".join(str(2 if d == dim else -1) for d in range(x.rank))
        forms += [f"{{0}}.expand(-1, {sizes})"]
    if n % 2 == 0:
        forms += [f"F.glu({{0}}, {dim + 1})"]
    return Statement(draw(st.sampled_from(forms)).format(x.name))


@statement("pad")
def _pad(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    x = _any(draw, values)
    assert x is not None
    axes = draw(st.integers(1, x.rank))
    widths = [draw(st.integers(-1, 2)) for _ in range(2 * axes)]
    if draw(st.integers(0, 3)) == 0 and x.rank in (2, 3):
        mode = draw(st.sampled_from(["reflect", "replicate", "circular"]))
        widths = [abs(w) for w in widths[:2]]
        return Statement(f"F.pad({x.name}, {widths}, '{mode}')")
    value = draw(st.sampled_from([0, 0, 0.5, -1.0]))
    return Statement(f"F.pad({x.name}, {widths}, value={value})")


@statement("pool", "pool")
def _pool(draw: DrawFn, values: Sequence[Signal]) -> Statement | None:
    x = _any(draw, values, 2, 3)
    if x is None:
        return None
    size = x.rank - 1
    kernel = [_small(draw, 1, 3) for _ in range(size)]
    stride = [_small(draw, 1, 3) for _ in range(size)]
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    ceil = draw(st.booleans())
    forms = [
        f"F.max_pool{size}d({{0}}, {kernel}, {stride}, {padding}, {_small(draw, 1, 2)}, {ceil})",
        f"F.avg_pool{size}d({{0}}, {kernel}, {stride}, {padding}, {ceil}, {draw(st.booleans())})",
        f"F.adaptive_avg_pool{size}d({{0}}, {[_small(draw, 1, 4) for _ in range(size)]})",
        f"F.adaptive_max_pool{size}d({{0}}, {[_small(draw, 1, 4) for _ in range(size)]})",
    ]
    if size == 2:
        forms += [
            f"F.avg_pool2d({{0}}, {kernel}, {stride}, divisor_override={_small(draw, 1, 7)})",
        ]
        if x.shape[0] % 4 == 0:
            forms += ["F.pixel_shuffle({0}, 2)"]
        if x.shape[1] % 2 == x.shape[2] % 2 == 0:
            forms += ["F.pixel_unshuffle({0}, 2)"]
        align = draw(st.booleans())
        forms += [
            f"F.interpolate({{0}}, scale_factor=2, mode='bilinear', align_corners={align})",
            "F.interpolate({0}, size=(5, 3), mode='bilinear')",
        ]
    forms += ["F.interpolate({0}, scale_factor=2)", "F.interpolate({0}, size=5)"]
    return Statement(draw(st.sampled_from(forms)).format(x.name))


# Models ------------------------------------------------------------------------------------------

_SHAPES: list[tuple[int, ...]] = [(6,), (1,), (9,), (4, 5), (3, 7), (1, 6), (3, 6, 5), (2, 5, 5)]
_SHAPES += [(1, 4, 7), (4, 4, 4)]


@st.composite
def random_models(draw: DrawFn, length: int = 20) -> RandomModel:
    """Models of 2 to `length` statements with residuals, values used again and modules used twice.

    Every input is used, and every value that nothing reads is an output (the last four are).
    """
    shapes = draw(st.lists(st.sampled_from(_SHAPES), min_size=1, max_size=2))
    seed = draw(st.integers(0, 2**16))
    torch.manual_seed(seed)
    space: dict[str, Any] = {}
    exec(PREAMBLE, space)
    values = [Signal(f"x{i}", shape) for i, shape in enumerate(shapes)]
    tensors = {value.name: torch.randn(3, *value.shape) for value in values}
    modules: dict[str, str] = {}
    lines: list[str] = []
    kinds: list[str] = []
    unread = {value.name for value in values}
    for number in range(draw(st.integers(2, length))):
        kind = draw(st.sampled_from(sorted(STATEMENTS)))
        drawn = STATEMENTS[kind](draw, values)
        if drawn is None:
            continue
        text, name = drawn.text, f"v{number}"
        scope = dict(space)
        if drawn.module:
            module = f"m{number}"
            # Now and then a module of the model again, where it fits.
            if modules and draw(st.integers(0, 9)) == 0:
                again = [m for m, made in modules.items() if made == drawn.module]
                module = draw(st.sampled_from(again)) if again else module
            scope[module] = eval(modules.get(module, drawn.module), space)
            if isinstance(scope[module], nn.Module):
                scope[module].eval()
            run, text = text.replace("M", module), text.replace("M", f"self.{module}")
        else:
            run = text
        try:
            with torch.no_grad():
                result = eval(run, scope | tensors)
        except (RuntimeError, ValueError, IndexError):
            continue
        shape = tuple(result.shape[1:])
        fits = result.dim() >= 2 and len(result) == 3 and 1 <= result[0].numel() <= MAX_VALUES
        if not fits or not result.isfinite().all() or result.abs().max() > 1e4:
            continue
        if drawn.module:
            modules[module] = drawn.module
        lines.append(f"{name} = {text}")
        kinds.append(kind)
        unread -= {v.name for v in values if re.search(rf"\b{v.name}\b", text)}
        unread.add(name)
        values.append(Signal(name, shape))
        tensors[name] = result
    assume(len(lines) >= 2)
    outputs = [value.name for value in values if value.name in unread]
    outputs = [*[n for n in outputs if n.startswith("x")], *outputs[-4:]]
    outputs = list(dict.fromkeys(outputs))
    # An input that is an output as it is says nothing: let something be computed from it.
    returned = [f"{name} * 2" if name.startswith("x") else name for name in outputs]
    body = [f"self.{name} = {made}" for name, made in modules.items()]
    source = _source(body, [v.name for v in values if v.name.startswith("x")], lines, returned)
    source += _tail(seed, shapes)
    return RandomModel(source, tuple(shapes), tuple(kinds))


def _source(init: list[str], inputs: list[str], lines: list[str], outputs: list[str]) -> str:
    returned = ", ".join(outputs)
    parts = [
        PREAMBLE,
        "",
        "class Model(nn.Module):",
        "    def __init__(self):",
        textwrap.indent("\n".join(["super().__init__()", *init]), " " * 8),
        "",
        f"    def forward(self, {', '.join(inputs)}):",
        textwrap.indent("\n".join([*lines, f"return {returned}"]), " " * 8),
        "",
    ]
    return "\n".join(parts)


def _tail(seed: int, shapes: Sequence[tuple[int, ...]]) -> str:
    drawn = ", ".join(f"torch.randn(count, *{shape}, generator=g)" for shape in shapes)
    return f"""

def make():
    torch.manual_seed({seed})
    model = Model().eval()
    for module in model.modules():  # batch norms as after training, rather than the identity
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    return model


def inputs(count):
    g = torch.Generator().manual_seed({seed})
    return ({drawn},)
"""
