"""Quantizers of QKeras as data: their names, their options, and what they stand for by default.

Source of names and defaults: the constructors in qkeras/quantizers.py, 0.9.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fxloom.keras.quantizer_text import read_call
from fxloom.keras.registry import Refused

MAX_BITS = 32
"""Widest quantizer: QKeras computes in float32, which is exact for 24 bits and less."""


@dataclass(frozen=True)
class Quantizer:
    """A quantizer with all its options."""

    name: str
    options: Mapping[str, Any]

    def __getitem__(self, option: str) -> Any:
        return self.options[option]

    def with_options(self, **changed: Any) -> "Quantizer":
        """The same quantizer with other options."""
        return replace(self, options={**self.options, **changed})

    def for_weights(self) -> "Quantizer":
        """What QKeras makes of the quantizer of a kernel: a scale that is not given is a power of
        two found from the weights (`_set_trainable_parameter`)."""
        if self.name not in _TRAINABLE or self["alpha"] is not None:
            return self
        symmetric = {"symmetric": True} if self.name == "quantized_bits" else {}
        return self.with_options(alpha="auto_po2", **symmetric)


_TRAINABLE = (
    "quantized_bits",
    "quantized_hswish",
    "binary",
    "ternary",
    "stochastic_binary",
    "stochastic_ternary",
)

Check = Callable[[Any], bool]


def _integer(low: int, high: int) -> Check:
    return lambda value: _whole(value) and low <= value <= high


def _whole(value: Any) -> bool:
    return isinstance(value, int)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and -1e30 <= value <= 1e30


def _optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _alpha(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_alpha_number, value))
    return value in (None, "auto", "auto_po2") or _alpha_number(value)


def _alpha_number(value: Any) -> bool:
    return _number(value) and value != 0


def _slope(value: Any) -> bool:
    return _number(value) and (value == 0 or (0 < value <= 1 and math.frexp(value)[0] == 0.5))


_BITS = (8, _integer(1, MAX_BITS))
_POINT = (0, _integer(0, 30))
_FLAG = (False, _integer(0, 1))
_SET = (True, _integer(0, 1))
_ALPHA = (None, _alpha)
_ANY: tuple[Any, Check] = (None, lambda value: True)
_FULL = (1.0, lambda value: value == 1)
"""The share of quantization noise: all of it, or the values are on no grid."""

Options = dict[str, tuple[Any, Check]]

_SHARED: Options = {"qnoise_factor": _FULL, "var_name": _ANY, "use_ste": _ANY}
_SHARED |= {"use_variables": _ANY}
_PO2: Options = {"use_stochastic_rounding": _FLAG, "quadratic_approximation": _FLAG}
_PO2 |= {"log2_rounding": ("rnd", lambda value: value in ("rnd", "floor")), **_SHARED}
_UPPER = (None, _optional(lambda value: _number(value) and value >= 0))
_BINARY: Options = {"alpha": _ALPHA, "temperature": (6.0, _number), "use_real_sigmoid": _SET}

SIGNATURES: dict[str, Options] = {
    "quantized_bits": {
        "bits": _BITS,
        "integer": _POINT,
        "symmetric": _FLAG,
        "keep_negative": _SET,
        "alpha": _ALPHA,
        "use_stochastic_rounding": _FLAG,
        "scale_axis": (None, _optional(_integer(0, 8))),
        **_SHARED,
    },
    "quantized_relu": {
        "bits": _BITS,
        "integer": _POINT,
        "use_sigmoid": _FLAG,
        "negative_slope": (0.0, _slope),
        "use_stochastic_rounding": _FLAG,
        "relu_upper_bound": _UPPER,
        "is_quantized_clip": _SET,
        **_SHARED,
    },
    "quantized_ulaw": {
        "bits": _BITS,
        "integer": _POINT,
        "symmetric": _FLAG,
        "u": (255.0, lambda value: _number(value) and value > 0),
    },
    "quantized_tanh": {
        "bits": _BITS,
        "use_stochastic_rounding": _FLAG,
        "symmetric": _FLAG,
        "use_real_tanh": _FLAG,
    },
    "quantized_sigmoid": {
        "bits": _BITS,
        "symmetric": _FLAG,
        "use_real_sigmoid": _FLAG,
        "use_stochastic_rounding": _FLAG,
    },
    "quantized_hswish": {
        "bits": _BITS,
        "integer": _POINT,
        "symmetric": _FLAG,
        "alpha": _ALPHA,
        "use_stochastic_rounding": _FLAG,
        "scale_axis": (None, _optional(_integer(0, 8))),
        **_SHARED,
        "relu_shift": (3, _integer(1, 1024)),
        "relu_upper_bound": (6, _integer(1, 1024)),
        "keep_negative": _SET,
    },
    "quantized_po2": {"bits": _BITS, "max_value": _UPPER, **_PO2},
    "quantized_relu_po2": {
        "bits": _BITS,
        "max_value": _UPPER,
        "negative_slope": (0, _slope),
        **_PO2,
    },
    "binary": {"use_01": _FLAG, "alpha": _ALPHA, "use_stochastic_rounding": _FLAG},
    "ternary": {
        "alpha": _ALPHA,
        "threshold": (None, _optional(_number)),
        "use_stochastic_rounding": _FLAG,
        "number_of_unrolls": (5, _integer(1, 1000)),
    },
    "stochastic_binary": _BINARY,
    "stochastic_ternary": {
        "alpha": _ALPHA,
        "threshold": (None, _optional(_number)),
        "temperature": (8.0, _number),
        "use_real_sigmoid": _SET,
        "number_of_unrolls": (5, _integer(1, 1000)),
    },
    "bernoulli": _BINARY,
}
"""By name: the options in the order of the constructor, each with its default and its check."""


def parsed(described: Any) -> Quantizer | str | None:
    """The quantizer that a config or a text describes.

    A word that names no quantizer is returned as it is: it may be an activation. None where there
    is nothing. Raises Refused for options that are unknown or out of range.
    """
    if described is None:
        return None
    if isinstance(described, str):
        name, positional, keywords = read_call(described)
        if name not in SIGNATURES:
            if positional or keywords:
                raise Refused(_unknown(name))
            return name
        if len(positional) > len(SIGNATURES[name]):
            raise Refused(f"quantizer {described!r} has more arguments than {name} takes")
        given: dict[str, Any] = dict(zip(SIGNATURES[name], positional, strict=False))
        if given.keys() & keywords.keys():
            raise Refused(f"quantizer {described!r}: an argument is given twice")
        return _checked(name, given | keywords)
    if isinstance(described, Mapping) and isinstance(described.get("config"), Mapping):
        if names_quantizer(described):
            return _checked(str(described["class_name"]), described["config"])
        raise Refused(_unknown(described.get("class_name")))
    raise Refused(f"a quantizer must be a text or a config, got {type(described).__name__}")


def names_quantizer(described: Mapping[str, Any]) -> bool:
    """Whether a config is that of a quantizer that is known here, or refused by name."""
    kind = described.get("class_name")
    return isinstance(kind, str) and kind in SIGNATURES


def _unknown(name: object) -> str:
    return f"quantizer {name!r} is not known. Known are {', '.join(SIGNATURES)}"


def _checked(name: str, given: Mapping[str, Any]) -> Quantizer:
    options = {option: default for option, (default, _) in SIGNATURES[name].items()}
    for option, value in given.items():
        if option not in options:
            raise Refused(f"{name} has no option {option!r}")
        if isinstance(value, Mapping) and value.get("class_name") == "__numpy__":
            value = value["config"]["value"]
        value = value.tolist() if hasattr(value, "tolist") else value
        if not SIGNATURES[name][option][1](value):
            raise Refused(f"{name} with {option}={value!r} has no exact form here")
        options[option] = value
    if isinstance(options.get("alpha"), str) and "symmetric" in options:
        options["symmetric"] = True  # as the constructor does
    return Quantizer(name, options)
