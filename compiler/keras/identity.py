"""Whose a class is, and what in a layer's config would have to be run.

A class is one of Keras or QKeras by the module that the config names, or by its name alone where
Keras 2 wrote no module. Whatever else it is would be code of the file's author, which is not run.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fxloom.keras.json_access import shown

KERAS, QKERAS, OPERATIONS, OTHER = "keras", "qkeras", "keras.ops", "other"

_QKERAS_NAMES = (
    "QActivation QAdaptiveActivation QAveragePooling2D QBatchNormalization QBidirectional "
    "QConv1D QConv2D QConv2DBatchnorm QConv2DTranspose QDense QDepthwiseConv2D "
    "QDepthwiseConv2DBatchnorm QGRU QGRUCell QGlobalAveragePooling2D QLSTM QLSTMCell "
    "QSeparableConv1D QSeparableConv2D QSimpleRNN QSimpleRNNCell"
)
_QKERAS_CLASSES = frozenset(_QKERAS_NAMES.split())
_KERAS_ROOTS = ("keras", "tf_keras", "tensorflow.keras", "tensorflow.python.keras")
_OPERATIONS = ("keras.ops", "keras.src.ops")
_TRAINING = ("_initializer", "_regularizer", "_constraint")
"""Ends of keys of what has no part in a prediction, custom or not."""

MAX_WINDOW = 2**16
_WINDOWS = ("kernel_size", "pool_size", "strides", "size", "dilation_rate", "padding", "cropping")
"""Keys whose numbers a few bytes could make larger than any tensor."""

_CODE = {
    "Lambda": "it holds Python code, which is never run. Use layers of Keras in its place",
}


def package_of(class_name: str, module: Any, registered: Any) -> str:
    """ "keras", "qkeras", "keras.ops" (operations that are no layers) or "other"."""
    if module is None:
        # Keras writes no module for a class of __main__, but registers it: Keras' own are not.
        if registered is not None or ">" in class_name:
            return OTHER
        return QKERAS if class_name in _QKERAS_CLASSES else KERAS
    if not isinstance(module, str) or registered not in (None, class_name):
        return OTHER
    if _within(module, _OPERATIONS):
        return OPERATIONS
    if _within(module, ("qkeras",)):
        return QKERAS
    return KERAS if _within(module, _KERAS_ROOTS) else OTHER


def _within(module: str, roots: tuple[str, ...]) -> bool:
    return any(module == root or module.startswith(f"{root}.") for root in roots)


def refusals(class_name: str, package: str, described: Mapping[str, Any]) -> Iterator[str]:
    """Why a layer cannot be had, whatever its class computes; nothing where it can."""
    config = described["config"]
    if package == OTHER:
        yield f"a custom {_whose(described)}: what it computes is code, which is never run"
        return
    if class_name in _CODE:
        yield _CODE[class_name]
        return
    if class_name != "InputLayer":
        policy = policy_of(config.get("dtype"))
        if policy not in (None, "float32"):
            yield f"required dtype policy float32, got {shown(policy)}. Save it in float32"
    for key in _WINDOWS:
        if _largest(config.get(key)) > MAX_WINDOW:
            yield f"its {key} is beyond {MAX_WINDOW:,}"
    for key, value in config.items():
        if not key.endswith(_TRAINING):
            yield from (f"its {where} is {what}" for where, what in _code(key, value))


def _largest(value: Any) -> int:
    if isinstance(value, list | tuple):
        return max(map(_largest, value), default=0)
    return abs(value) if isinstance(value, int) else 0


def policy_of(dtype: Any) -> Any:
    """The name of a dtype policy, however it is written."""
    if isinstance(dtype, Mapping):
        if dtype.get("class_name") not in ("DTypePolicy", "Policy", "FloatDTypePolicy"):
            return dtype.get("class_name")
        inner = dtype.get("config")
        return inner.get("name") if isinstance(inner, Mapping) else inner
    return dtype


def _whose(described: Mapping[str, Any]) -> str:
    registered = described.get("registered_name")
    name = registered if isinstance(registered, str) else described["class_name"]
    module = described.get("module")
    return f"class, {shown(name)}" + (f" of module {shown(module)}" if module else "")


def _code(where: str, value: Any) -> Iterator[tuple[str, str]]:
    """Functions and objects of classes of others, in a value of a config."""
    if isinstance(value, list | tuple):
        for each in value:
            yield from _code(where, each)
    if not isinstance(value, Mapping):
        return
    kind, module = value.get("class_name"), value.get("module")
    if kind == "__lambda__" or (kind is None and set(value) == {"value"}):
        yield where, "Python code, which is never run. Use a function of Keras"
    elif kind == "function" and not _names_activation(value):
        yield where, f"the function {shown(value.get('config'))}, which is code and never run"
    elif isinstance(kind, str) and kind != "function":
        if package_of(kind, module, value.get("registered_name")) == OTHER:
            yield where, f"a custom {_whose(value)}: code, which is never run"
        elif isinstance(value.get("config"), Mapping):
            for key, each in value["config"].items():
                if not key.endswith(_TRAINING):
                    yield from _code(f"{where}.{key}", each)
    elif kind is None:
        for key, each in value.items():
            yield from _code(f"{where}.{key}", each)


def _names_activation(value: Mapping[str, Any]) -> bool:
    module = value.get("module")
    return isinstance(module, str) and _within(
        module, ("keras.activations", "keras.src.activations", "tf_keras.src.activations")
    )


def plain(value: Any) -> Any:
    """A config with Keras' own activations by name, as it writes them in most places."""
    if isinstance(value, Mapping):
        if value.get("class_name") == "function" and _names_activation(value):
            return value.get("config")
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value
