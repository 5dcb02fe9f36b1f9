"""A JSON document as dataclasses of torch's export schema: whitelisted, and checked to the leaf.

torch's deserializer trusts what it reads. It evaluates symbolic expressions (sympy.sympify), pastes
names into Python source that it executes (fx.Graph, guards), resolves operators by attribute access
and imports classes for containers. So nothing of a file reaches it but what passes here: every
name an identifier, every expression of a small grammar, every operator a known ATen one, and all
else (guards, traces, other metadata) dropped or refused.
"""

import ast
import json
import keyword
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import IntEnum
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch._export.serde import schema
from torch._export.serde.union import _Union as TorchUnion

from fxloom.errors import CaptureError

MAX_ELEMENTS = 2**31
MAX_EXPRESSION = 300
_LARGEST = 2**63 - 1
_TAGS: Mapping[type, str] = {
    schema.Argument: "as_graph as_custom_obj as_operator as_string_to_argument as_complex",
    schema.InputSpec: "custom_obj token",
    schema.OutputSpec: "token",
}
"""Members of unions that are refused: they hold code or objects."""

_FUNCTIONS = ("FloorDiv", "Mod", "PythonMod", "Max", "Min")
_SUMS = ("Add", "Mul")
"""How torch writes + and *, of two terms or more."""
_PLAIN = (
    ast.Expression,
    ast.Load,
    ast.BinOp,
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.UnaryOp,
    ast.USub,
)
_OPERATORS = frozenset(
    {"add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "getitem"}
    | {"eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_"}
)
_CREATION = frozenset(
    {"arange", "empty", "eye", "full", "linspace", "ones", "range", "scalar_tensor", "zeros"}
)
_PRIVATE = frozenset(
    {"_assert_tensor_metadata", "_to_copy", "_unsafe_view", "_softmax", "_log_softmax"}
    | {"_weight_norm", "_native_batch_norm_legit_no_training"}
)
_TEXTS = frozenset(
    {"approximate", "equation", "indexing", "mode", "padding", "reduce", "rounding_mode"}
)
_OPAQUE = ("Storage", "Stream", "Generator", "__torch__", "QScheme", "Dimname")
_STACK_DELIMITER = ";"


class Fault(Exception):
    """What is wrong at some place; the text follows the place."""


def convert(hint: Any, data: Any, place: str) -> Any:
    """JSON as an instance of a schema type. Raises CaptureError naming the place of a fault."""
    try:
        return _convert(hint, data)
    except Fault as fault:
        raise CaptureError(f"{place}{fault}") from None
    except RecursionError:
        raise CaptureError(f"{place}: nested too deeply") from None


def _convert(hint: Any, data: Any) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        inner = [each for each in get_args(hint) if each is not type(None)]
        return None if data is None else _convert(inner[0], data)
    if origin is list:
        required(isinstance(data, list), "a list", data)
        return [_at(str(index), get_args(hint)[0], each) for index, each in enumerate(data)]
    if origin is dict:
        required(isinstance(data, dict), "an object", data)
        return {key: _at(key, get_args(hint)[1], each) for key, each in data.items()}
    if is_dataclass(hint) and isinstance(hint, type):
        required(isinstance(data, dict), "an object", data)
        return _union(hint, data) if issubclass(hint, TorchUnion) else _record(hint, data)
    return _scalar(hint, data)


def _at(key: str, hint: Any, data: Any) -> Any:
    try:
        return _convert(hint, data)
    except Fault as fault:
        raise Fault(f".{key[:80]}{fault}") from None


def _union(cls: type[Any], data: dict[str, Any]) -> Any:
    hints = get_type_hints(cls, globalns=vars(schema))
    required(len(data) == 1 and next(iter(data)) in hints, "one known kind", list(data))
    ((tag, value),) = data.items()
    if tag in _TAGS.get(cls, "").split():
        raise Fault(f": {tag} holds code or objects, which are not read from a file")
    return cls.create(**{tag: _checked(cls, tag, _at(tag, hints[tag], value))})


def _record(cls: type[Any], data: dict[str, Any]) -> Any:
    hints = get_type_hints(cls, globalns=vars(schema))
    known = {field.name: field for field in fields(cls)}
    unknown = data.keys() - known.keys()
    required(not unknown, "known keys only", sorted(unknown))
    for name, field in known.items():
        optional = field.default is not MISSING or field.default_factory is not MISSING
        required(name in data or optional, f"the key {name}", list(data))
    converted = {
        name: _checked(cls, name, _at(name, hints[name], value)) for name, value in data.items()
    }
    return cls(**converted)


def _scalar(hint: Any, data: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, IntEnum):
        required(type(data) is int and data in list(hint), f"a known {hint.__name__}", data)
        return data
    if hint is float:
        if data in ("Infinity", "-Infinity", "NaN"):
            return float(data)
        required(type(data) in (int, float), "a number", data)
        return float(data) if abs(data) < 2**1023 else data
    required(type(data) is hint, hint.__name__, data)
    required(hint is not int or abs(data) <= _LARGEST, "an integer of 64 bits", data)
    return data


def required(holds: bool, what: str, arrived: object) -> None:
    """Raise Fault unless it holds."""
    if not holds:
        shown = repr(arrived)
        raise Fault(f": required {what}, got {shown if len(shown) <= 80 else shown[:77] + '...'}")


def identifier(name: str) -> str:
    """A name that is safe in Python source."""
    good = name.isidentifier() and name.isascii() and not keyword.iskeyword(name)
    required(good and len(name) <= 1000, "an identifier", name)
    return name


def _dotted(name: str) -> str:
    required(re.fullmatch(r"\w+(\.\w+)*", name, re.ASCII) is not None, "a dotted name", name)
    return name


def expression(text: str) -> str:
    """A symbolic expression of integers, symbols, + - * and a few functions, written anew."""
    required(len(text) <= MAX_EXPRESSION, f"at most {MAX_EXPRESSION} characters", text)
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Fault(f": {text!r} is no symbolic expression") from None
    _check_expression(tree, text)
    return ast.unparse(tree)


def _check_expression(tree: ast.AST, text: str) -> None:
    if isinstance(tree, ast.Constant):
        good = type(tree.value) is int and tree.value <= _LARGEST
    elif isinstance(tree, ast.Call):
        if not isinstance(tree.func, ast.Name):
            good = False
        elif tree.func.id == "Symbol":
            _check_symbol(tree, text)
            return
        else:
            count = len(tree.args)
            good = (
                (tree.func.id in _FUNCTIONS and count == 2)
                or (tree.func.id in _SUMS and count >= 2)
                or (tree.func.id == "Integer" and count == 1 and _is_integer(tree.args[0]))
            ) and not tree.keywords
            for argument in tree.args:
                _check_expression(argument, text)
    else:
        good = isinstance(tree, _PLAIN)
        for child in ast.iter_child_nodes(tree):
            _check_expression(child, text)
    if not good:
        raise Fault(
            f": the symbolic expression {text!r} is refused: only integers, symbols, + - * and "
            f"{', '.join(_FUNCTIONS)} are read from a file"
        )


def _is_integer(tree: ast.AST) -> bool:
    """Whether it is a number, or one with a sign; which, is checked with all others."""
    return isinstance(tree.operand if isinstance(tree, ast.UnaryOp) else tree, ast.Constant)


def _check_symbol(call: ast.Call, text: str) -> None:
    names = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
    flags = {
        each.arg: each.value.value for each in call.keywords if isinstance(each.value, ast.Constant)
    }
    good = len(names) == len(call.args) == 1 and len(flags) == len(call.keywords)
    good = good and isinstance(names[0], str) and re.fullmatch(r"[su]\d{1,9}", names[0]) is not None
    known = ("positive", "integer", "nonnegative")
    if not good or any(key not in known or value is not True for key, value in flags.items()):
        raise Fault(f": the symbolic expression {text!r} is refused: it has an unknown symbol")


def operator_name(target: str) -> str:
    """An operator that computes tensors from tensors, or sizes from sizes, and does nothing else.

    aten::from_file, for one, would create a file.
    """
    found = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", target, re.ASCII)
    if found is None:
        known = target.startswith("_operator.") and target.partition(".")[2] in _OPERATORS
        required(known, "an ATen operator", target)
        return target
    base, overload = found.groups()
    qualified = f"aten::{base}" + ("" if overload == "default" else f".{overload}")
    if torch._C._dispatch_has_kernel(qualified):
        arguments = getattr(getattr(torch.ops.aten, base), overload)._schema.arguments
        kinds = [str(argument.type) for argument in arguments]
        texts = {arg.name for arg, kind in zip(arguments, kinds, strict=True) if "str" in kind}
        pure = not any(word in kind for word in _OPAQUE for kind in kinds) and texts <= _TEXTS
        public = not base.startswith("_") or base in _PRIVATE
        reads = any("Tensor" in kind for kind in kinds) or base in _CREATION
        written = any(arg.is_out for arg in arguments)
        if pure and public and reads and not written:
            return target
    advice = ". Save what torch.export.export gives, without run_decompositions"
    raise Fault(
        f": the operator {target} is unknown, or is not read from a file"
        f"{advice if base.startswith('_') else ''}"
    )


def _module_stack(metadata: dict[str, str]) -> dict[str, str]:
    """Only the modules a node came from, which name the layers."""
    stack = metadata.get("nn_module_stack")
    if not stack:
        return {}
    entries = []
    for item in stack.split(_STACK_DELIMITER):
        found = re.fullmatch(r"([\w@.$]*),([\w@.]*),(torch\.nn\.[\w.]+)?.*", item, re.ASCII)
        if found is None:
            return {}
        entries.append(f"{found[1]},{found[2]},{found[3] or 'unknown'}")
    return {"nn_module_stack": _STACK_DELIMITER.join(entries)}


def treespec(text: str) -> str:
    """A structure of tuples, lists and dictionaries with text keys, written anew."""
    try:
        version, tree = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        raise Fault(f": {text[:60]!r} describes no structure") from None
    required(version == 1, "a structure of version 1", version)
    return json.dumps([1, _tree(tree)])


def _tree(tree: Any) -> dict[str, Any]:
    required(isinstance(tree, dict), "a structure", tree)
    kind, context, children = (tree.get(key) for key in ("type", "context", "children_spec"))
    required(isinstance(children, list), "a list of children", children)
    assert isinstance(children, list)
    if kind is None:
        required(context is None and not children, "a leaf", tree)
    elif kind == "builtins.dict":
        keys = json.loads(context) if isinstance(context, str) else None
        required(
            isinstance(keys, list) and all(isinstance(key, str) for key in keys), "keys", context
        )
        context = json.dumps(keys)
    else:
        required(kind in ("builtins.tuple", "builtins.list"), "tuples, lists, dicts", kind)
        required(context == "null", "no context", context)
    return {"type": kind, "context": context, "children_spec": [_tree(each) for each in children]}


def _tensor(meta: schema.TensorMeta) -> None:
    """A dense tensor on the CPU that is not absurdly large."""
    required(meta.layout == schema.Layout.Strided, "a dense tensor", meta.layout)
    elements = 1
    for size in meta.sizes:
        elements *= size.as_int if size.type == "as_int" else 1
        required(0 <= elements <= MAX_ELEMENTS, f"at most {MAX_ELEMENTS} elements", meta.sizes)
    for number in (*meta.strides, meta.storage_offset):
        required(number.type != "as_int" or number.as_int >= 0, "no negative stride", number)


def _device(kind: str) -> str:
    required(kind in ("cpu", "meta"), "the device cpu", kind)
    return kind


def _names(values: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in values:
        identifier(name)
    return values


def _tensors(values: Mapping[str, schema.TensorMeta]) -> Mapping[str, schema.TensorMeta]:
    for name, meta in _names(values).items():
        try:
            _tensor(meta)
        except Fault as fault:
            raise Fault(f".{name}{fault}") from None
    return values


def _ranges(values: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in values:
        required(re.fullmatch(r"[su]\d{1,9}", name, re.ASCII) is not None, "a symbol", name)
    return values


def _none(value: Any) -> Any:
    required(not value, "nothing", value)
    return value


def _verifiers(values: list[str]) -> list[str]:
    for value in values:
        required(value in ("TRAINING", "ATEN"), "TRAINING or ATEN", value)
    return values


def _major(value: int) -> int:
    required(value == schema.SCHEMA_VERSION[0], f"schema {schema.SCHEMA_VERSION[0]}", value)
    return value


def _payload(meta: schema.PayloadMeta) -> None:
    required(meta.tensor_meta is not None, "a tensor's description", meta.tensor_meta)
    assert meta.tensor_meta is not None
    _tensor(meta.tensor_meta)


def _payloads(values: Mapping[str, schema.PayloadMeta]) -> Mapping[str, schema.PayloadMeta]:
    for name, meta in values.items():
        _dotted(name)
        if meta.use_pickle or not re.fullmatch(r"(weight|tensor)_\d{1,9}", meta.path_name):
            raise Fault(f".{name}: is a pickled object, which could run code. Use plain tensors")
        try:
            _payload(meta)
        except Fault as fault:
            raise Fault(f".{name}{fault}") from None
    return values


def _identifiers(names: list[str] | None) -> list[str] | None:
    return None if names is None else [identifier(name) for name in names]


_CHECKS: Mapping[tuple[str, str], Callable[[Any], Any]] = {
    ("SymExpr", "expr_str"): expression,
    ("TensorArgument", "name"): identifier,
    ("SymIntArgument", "as_name"): identifier,
    ("SymFloatArgument", "as_name"): identifier,
    ("SymBoolArgument", "as_name"): identifier,
    ("NamedArgument", "name"): lambda name: name and identifier(f"{name}_")[:-1],
    ("InputToConstantInputSpec", "name"): identifier,
    ("Node", "name"): lambda name: name and identifier(name),
    ("Node", "target"): operator_name,
    ("Node", "metadata"): _module_stack,
    ("Node", "is_hop_single_tensor_return"): _none,
    ("Device", "type"): _device,
    ("Graph", "tensor_values"): _tensors,
    ("Graph", "sym_int_values"): _names,
    ("Graph", "sym_float_values"): _names,
    ("Graph", "sym_bool_values"): _names,
    ("Graph", "custom_obj_values"): _none,
    ("Graph", "is_single_tensor_return"): _none,
    ("InputToParameterSpec", "parameter_name"): _dotted,
    ("InputToBufferSpec", "buffer_name"): _dotted,
    ("InputToTensorConstantSpec", "tensor_constant_name"): _dotted,
    ("BufferMutationSpec", "buffer_name"): _dotted,
    ("ParameterMutationSpec", "parameter_name"): _dotted,
    ("GradientToParameterSpec", "parameter_name"): _dotted,
    ("GradientToUserInputSpec", "user_input_name"): identifier,
    ("UserInputMutationSpec", "user_input_name"): identifier,
    ("ModuleCallSignature", "in_spec"): treespec,
    ("ModuleCallSignature", "out_spec"): treespec,
    ("ModuleCallSignature", "forward_arg_names"): _identifiers,
    ("GraphModule", "metadata"): lambda metadata: {},
    ("GraphModule", "treespec_namedtuple_fields"): lambda named: {},
    ("GraphModule", "module_call_graph"): lambda entries: entries[:1],
    ("ExportedProgram", "guards_code"): lambda guards: [],
    ("ExportedProgram", "range_constraints"): _ranges,
    ("ExportedProgram", "verifiers"): _verifiers,
    ("SchemaVersion", "major"): _major,
    ("PayloadConfig", "config"): _payloads,
}
"""What is checked, and replaced, in a field beyond its type."""


def _checked(cls: type[Any], name: str, value: Any) -> Any:
    check = _CHECKS.get((cls.__name__, name))
    if check is None:
        return value
    try:
        return check(value)
    except Fault as fault:
        raise Fault(f".{name}{fault}") from None
