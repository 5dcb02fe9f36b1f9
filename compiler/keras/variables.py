"""Which arrays a layer has, in the order of Keras' layer.weights: names, shapes, whether trained.

Source: what the build methods of Keras 3, tf_keras and QKeras add, layer by layer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fxloom.keras.description import Layer
from fxloom.keras.identity import KERAS, OPERATIONS, QKERAS

Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Variable:
    """One array. shape: None where it is not known, as one size or as a whole. part: the layer
    within the layer that it belongs to, as Keras 3 and Keras 2 call it."""

    name: str
    shape: Shape | None = None
    trained: bool = True
    part: tuple[str, ...] = ()


_BUILT = "input_shape"
Declares = Callable[[Mapping[str, Any]], list[Variable]]


def variables_of(layer: Layer) -> tuple[Variable, ...] | None:
    """The arrays of a layer without layers in it; None where its class is not known here."""
    name = layer.class_name
    if layer.package == OPERATIONS or (layer.package == KERAS and name in _WITHOUT):
        return ()
    if layer.package == QKERAS and name in _QKERAS_WITHOUT:
        return ()
    # QKeras keeps the arrays of the layer whose name it extends.
    plain = name[1:] if layer.package == QKERAS else name
    declares = _QKERAS.get(name) if layer.package == QKERAS else None
    declares = declares or _DECLARES.get(plain)
    return (
        None if declares is None else tuple(declares({**layer.config, _BUILT: layer.input_shape}))
    )


def _size(config: Mapping[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _times(factor: int, size: int | None) -> int | None:
    return None if size is None else factor * size


def _input(config: Mapping[str, Any], axis: int = -1) -> int | None:
    """The size of an axis of the input, where the config knows it."""
    shape = config.get(_BUILT)
    if not isinstance(shape, list | tuple) or not -len(shape) <= axis < len(shape):
        return None
    size = shape[axis]
    return size if isinstance(size, int) else None


def _channels(config: Mapping[str, Any]) -> int | None:
    return _input(config, 1 if config.get("data_format") == "channels_first" else -1)


def _bias(
    config: Mapping[str, Any], *shape: int | None, part: tuple[str, ...] = ()
) -> list[Variable]:
    return [Variable("bias", shape, part=part)] if config.get("use_bias", True) else []


def _window(config: Mapping[str, Any], dims: int) -> Shape:
    size = config.get("kernel_size")
    if isinstance(size, int):
        return (size,) * dims
    known = isinstance(size, list | tuple) and len(size) == dims
    return tuple(size) if known and size else (None,) * dims


def _dense(config: Mapping[str, Any]) -> list[Variable]:
    units = _size(config, "units")
    return [Variable("kernel", (_input(config), units)), *_bias(config, units)]


def _conv(dims: int) -> Declares:
    def declares(config: Mapping[str, Any]) -> list[Variable]:
        groups, channels, filters = (
            config.get("groups", 1),
            _channels(config),
            _size(config, "filters"),
        )
        whole = isinstance(groups, int) and groups > 0 and channels is not None
        per_group = channels // groups if whole and channels is not None else None
        kernel = Variable("kernel", (*_window(config, dims), per_group, filters))
        return [kernel, *_bias(config, filters)]

    return declares


def _transposed(dims: int) -> Declares:
    def declares(config: Mapping[str, Any]) -> list[Variable]:
        filters = _size(config, "filters")
        kernel = Variable("kernel", (*_window(config, dims), filters, _channels(config)))
        return [kernel, *_bias(config, filters)]

    return declares


def _depthwise(dims: int) -> Declares:
    def declares(config: Mapping[str, Any]) -> list[Variable]:
        shape = (*_window(config, dims), _channels(config), _size(config, "depth_multiplier"))
        return [Variable("depthwise_kernel", shape), *_bias(config, None)]

    return declares


def _separable(dims: int) -> Declares:
    def declares(config: Mapping[str, Any]) -> list[Variable]:
        filters = _size(config, "filters")
        first, *_ = _depthwise(dims)(config)
        pointwise = Variable("pointwise_kernel", (*(1,) * dims, None, filters))
        return [first, pointwise, *_bias(config, filters)]

    return declares


def _normalized(config: Mapping[str, Any], shape: Shape | None) -> list[Variable]:
    scale = [Variable("gamma", shape)] if config.get("scale", True) else []
    return scale + ([Variable("beta", shape)] if config.get("center", True) else [])


def _batch_norm(config: Mapping[str, Any]) -> list[Variable]:
    axis = config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list | tuple) and len(axis) == 1 else axis
    shape = (_input(config, axis) if isinstance(axis, int) else None,)
    moving = [Variable(f"moving_{what}", shape, trained=False) for what in ("mean", "variance")]
    return _normalized(config, shape) + moving


def _layer_norm(config: Mapping[str, Any]) -> list[Variable]:
    axis = config.get("axis", -1)
    axes = axis if isinstance(axis, list | tuple) else [axis]
    sizes = tuple(_input(config, each) if isinstance(each, int) else None for each in axes)
    if config.get("rms_scaling"):  # which looks at neither scale nor center
        return [Variable("gamma", sizes)]
    return _normalized(config, sizes)


def _recurrent(gates: int) -> Declares:
    def declares(config: Mapping[str, Any]) -> list[Variable]:
        units, cell = _size(config, "units"), ("cell",)
        wide = _times(gates, units)
        bias: Shape = (2, wide) if gates == 3 and config.get("reset_after", True) else (wide,)
        return [
            Variable("kernel", (_input(config), wide), part=cell),
            Variable("recurrent_kernel", (units, wide), part=cell),
            *_bias(config, *bias, part=cell),
        ]

    return declares


def _of_cell(declares: Declares) -> Declares:
    def without_part(config: Mapping[str, Any]) -> list[Variable]:
        return [Variable(each.name, each.shape, each.trained) for each in declares(config)]

    return without_part


def _attention_heads(config: Mapping[str, Any]) -> list[Variable]:
    heads, keys = _size(config, "num_heads"), _size(config, "key_dim")
    values = keys if config.get("value_dim") is None else _size(config, "value_dim")
    found = []
    gate = [("gate", values)] if config.get("use_gate") else []
    for part, size in (("query", keys), ("key", keys), *gate, ("value", values)):
        found.append(Variable(f"{part}/kernel", (None, heads, size), part=(f"{part}_dense",)))
        found += _bias(config, heads, size, part=(f"{part}_dense",))
    found.append(Variable("attention_output/kernel", part=("output_dense",)))
    found += [Variable("bias", part=("output_dense",))] if config.get("use_bias", True) else []
    return found


def _attention(config: Mapping[str, Any]) -> list[Variable]:
    scale = [Variable("scale", ())] if config.get("use_scale") else []
    concat = config.get("score_mode") == "concat"
    return scale + ([Variable("concat_score_weight", ())] if concat else [])


def _additive_attention(config: Mapping[str, Any]) -> list[Variable]:
    return [Variable("scale", (None,))] if config.get("use_scale", True) else []


def _embedding(config: Mapping[str, Any]) -> list[Variable]:
    return [Variable("embeddings", (_size(config, "input_dim"), _size(config, "output_dim")))]


def _einsum_dense(config: Mapping[str, Any]) -> list[Variable]:
    return [Variable("kernel"), *([Variable("bias")] if config.get("bias_axes") else [])]


def _with_batch_norm(declares: Declares) -> Declares:
    """QKeras' folded layers: the convolution's arrays, and a batch norm within."""

    def both(config: Mapping[str, Any]) -> list[Variable]:
        norm = [
            Variable(each.name, (None,), each.trained, ("batchnorm",))
            for each in _batch_norm({"center": config.get("center"), "scale": config.get("scale")})
        ]
        own = [Variable("iteration", (), trained=False)]
        trained, moving = norm[:-2], norm[-2:]
        return [*declares(config), *trained, *own, *moving]

    return both


_DECLARES: dict[str, Declares] = {
    "Dense": _dense,
    "Conv1D": _conv(1),
    "Conv2D": _conv(2),
    "Conv3D": _conv(3),
    "Conv1DTranspose": _transposed(1),
    "Conv2DTranspose": _transposed(2),
    "Conv3DTranspose": _transposed(3),
    "DepthwiseConv1D": _depthwise(1),
    "DepthwiseConv2D": _depthwise(2),
    "SeparableConv1D": _separable(1),
    "SeparableConv2D": _separable(2),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "GroupNormalization": lambda config: _normalized(config, (None,)),
    "RMSNormalization": lambda config: [Variable("scale")],
    "PReLU": lambda config: [Variable("alpha")],
    "Embedding": _embedding,
    "LSTM": _recurrent(4),
    "GRU": _recurrent(3),
    "SimpleRNN": _recurrent(1),
    "LSTMCell": _of_cell(_recurrent(4)),
    "GRUCell": _of_cell(_recurrent(3)),
    "SimpleRNNCell": _of_cell(_recurrent(1)),
    "MultiHeadAttention": _attention_heads,
    "Attention": _attention,
    "AdditiveAttention": _additive_attention,
    "EinsumDense": _einsum_dense,
}
_QKERAS: dict[str, Declares] = {
    "QConv2DBatchnorm": _with_batch_norm(_conv(2)),
    "QDepthwiseConv2DBatchnorm": _with_batch_norm(_depthwise(2)),
}
_QKERAS_WITHOUT_NAMES = "QActivation QAveragePooling2D QGlobalAveragePooling2D"
_QKERAS_WITHOUT = frozenset(_QKERAS_WITHOUT_NAMES.split())
_WITHOUT_NAMES = (
    "InputLayer Activation ReLU LeakyReLU ELU Softmax ThresholdedReLU Flatten Reshape Permute "
    "RepeatVector Masking Identity Rescaling Dropout SpatialDropout1D SpatialDropout2D "
    "SpatialDropout3D GaussianNoise GaussianDropout AlphaDropout ActivityRegularization "
    "MaxPooling1D MaxPooling2D MaxPooling3D AveragePooling1D AveragePooling2D "
    "AveragePooling3D MaxPool1D MaxPool2D MaxPool3D AvgPool1D AvgPool2D AvgPool3D "
    "GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GlobalAveragePooling1D "
    "GlobalAveragePooling2D GlobalAveragePooling3D ZeroPadding1D ZeroPadding2D ZeroPadding3D "
    "Cropping1D Cropping2D Cropping3D UpSampling1D UpSampling2D UpSampling3D Add Subtract "
    "Multiply Average Maximum Minimum Concatenate Dot UnitNormalization"
)
_WITHOUT = frozenset(_WITHOUT_NAMES.split())
