"""hls4ml's ModelGraph of a plan, checked against it.

Only the passes that hls4ml needs to write C++ run (our own flow): none that fuses, removes or
renames layers or infers a precision. Afterwards every layer, array, type and weight is compared
with the plan; hls4ml skips what it does not understand, and our promise is that nothing is silent.
This module imports hls4ml; import it where it is needed only.
"""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from fxloom.backends.hls4ml.dialect import DIALECTS, Dialect, ValueType
from fxloom.backends.hls4ml.plan import POWER_PRODUCT, PRODUCT, Layer, Plan
from fxloom.errors import FxloomError
from fxloom.target import Target


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """hls4ml prints and warns; the library does not."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


with silenced():
    from hls4ml.backends import get_backend
    from hls4ml.backends.template import FunctionCallTemplate, LayerConfigTemplate
    from hls4ml.model.attributes import Attribute
    from hls4ml.model.flow import get_flow, register_flow
    from hls4ml.model.graph import ModelGraph
    from hls4ml.model.layers import Layer as Hls4mlLayer
    from hls4ml.model.layers import layer_map, register_layer
    from hls4ml.model.types import FixedPrecisionType, IntegerPrecisionType
    from hls4ml.utils.string_utils import convert_to_pascal_case

HEADER = "nnet_utils/fxloom_kernels.h"
PRODUCTS = "nnet_utils/fxloom_products.h"


class FxloomKernel(Hls4mlLayer):  # type: ignore[misc]
    """Any kernel of ours: its text comes from the plan."""

    _expected_attributes = (
        Attribute("shape", value_type=tuple),
        Attribute("arrays", value_type=tuple),
        Attribute("declarations", value_type=str),
        Attribute("call", value_type=str),
    )

    def initialize(self) -> None:
        """Add the result's arrays and the constants."""
        for name, array in zip(self.outputs, self.get_attr("arrays"), strict=True):
            self.add_output_variable(list(self.get_attr("shape")), name, array)
        for key, held in self.get_attr("constants").items():
            kind = IntegerPrecisionType(held.kind.width, held.kind.signed)
            self.add_weights_variable(
                name=key,
                var_name=held.name,
                type_name=f"{held.name}_t",
                precision=kind,
                data=held.values,
            )


class FxloomConfigTemplate(LayerConfigTemplate):  # type: ignore[misc]
    """Writes a kernel's declarations."""

    def __init__(self) -> None:
        super().__init__(FxloomKernel)

    def format(self, node: Any) -> str:
        """The declarations as planned."""
        return str(node.get_attr("declarations"))


class FxloomFunctionTemplate(FunctionCallTemplate):  # type: ignore[misc]
    """Writes a kernel's call."""

    def __init__(self) -> None:
        super().__init__(FxloomKernel, include_header=[HEADER])

    def format(self, node: Any) -> str:
        """The call as planned."""
        return str(node.get_attr("call"))


def _register() -> None:
    """Teach hls4ml our layer and our flow; once a process."""
    if "FxloomKernel" in layer_map:
        return
    register_layer("FxloomKernel", FxloomKernel)
    parts = ("init_layers", "specific_types", "apply_templates")
    for name, dialect in DIALECTS.items():
        backend = get_backend(name)
        backend.register_template(FxloomConfigTemplate)
        backend.register_template(FxloomFunctionTemplate)
        # Vitis has of its own only what differs from Vivado.
        base = name.lower() if dialect.algorithmic_c else "vivado"
        passes = [step for part in parts for step in get_flow(f"{base}:{part}").optimizers]
        # The plan has transposed the weights of Resource layers, so that it holds what is written.
        passes.remove(f"{base}:apply_resource_strategy")
        own = f"{name.lower()}:apply_templates"
        passes += [step for step in get_flow(own).optimizers if step not in passes]
        register_flow("fxloom", passes, backend=name.lower())


def _precision(kind: ValueType, dialect: Dialect) -> Any:
    held = dialect.held(kind.format)
    # A new object every time: hls4ml changes the class of the ones it is given.
    return FixedPrecisionType(
        held.width,
        held.integer,
        held.signed,
        str(kind.rounding),
        str(kind.overflow),
    )


def _record(layer: Layer) -> dict[str, Any]:
    """A layer as from_layer_list wants it."""
    record: dict[str, Any] = {"class_name": layer.kind, "name": layer.name}
    shape = layer.shape or (1,)  # hls4ml knows no scalars
    if layer.kind == "InputLayer":
        return record | {"input_shape": list(shape)}
    record |= {"inputs": list(layer.inputs), **layer.attributes}
    if layer.kernel is not None:
        return record | {
            "shape": shape,
            "outputs": [name for name, _ in layer.results],
            "arrays": tuple(array for _, array in layer.results),
            "declarations": layer.kernel.declarations,
            "call": layer.kernel.call,
            "constants": layer.weights,
        }
    weight_key = "depthwise_data" if layer.kind == "DepthwiseConv2D" else "weight_data"
    return record | {
        weight_key: layer.weights["weight"].values,
        "bias_data": layer.weights["bias"].values,
    }


def _precisions(layer: Layer, dialect: Dialect) -> dict[str, Any]:
    precisions = {"result": _precision(layer.type, dialect)}
    if layer.accum is not None:
        precisions["accum"] = _precision(layer.accum, dialect)
        precisions |= {
            key: _precision(ValueType(held.kind), dialect) for key, held in layer.weights.items()
        }
    return precisions


def _settings(layer: Layer, dialect: Dialect) -> dict[str, Any]:
    settings: dict[str, Any] = {"Precision": _precisions(layer, dialect)}
    if layer.allotment is not None:
        settings["Strategy"] = layer.allotment.strategy
        settings["ReuseFactor"] = layer.allotment.reuse
    return settings


def build_graph(plan: Plan, target: Target, project: str, out: str) -> Any:
    """The ModelGraph of a plan, checked. Raises FxloomError naming the layer."""
    _register()
    if plan.dialect.name == "oneAPI":
        _check_pipes(plan)
    config = {
        "OutputDir": out,
        "ProjectName": project,
        "Backend": target.backend,
        "Part": target.device.full_name,
        "ClockPeriod": target.clock_ns,
        "IOType": "io_stream" if plan.stream else "io_parallel",
        "WriterConfig": {"Namespace": None, "WriteWeightsTxt": False, "WriteTar": False},
        "HLSConfig": {
            "Flows": [f"{target.backend.lower()}:fxloom"],
            "Model": {
                "Precision": "fixed<16,6>",
                "ReuseFactor": 1,
                "Strategy": "Latency",
                "PipelineStyle": "dataflow" if plan.dataflow else "pipeline",
            },
            "LayerName": {layer.name: _settings(layer, plan.dialect) for layer in plan.layers},
        },
    }
    try:
        graph = ModelGraph.from_layer_list(
            config,
            [_record(layer) for layer in plan.layers],
            [layer.name for layer in plan.inputs],
            [layer.name for layer in plan.outputs],
        )
    except Exception as error:
        raise FxloomError(
            f"hls4ml refused the project ({type(error).__name__}: {error}). {_blame(plan, error)}"
        ) from error
    nodes = {node.name: node for node in graph.get_layers()}
    for layer in plan.layers:
        if layer.product == POWER_PRODUCT and layer.name in nodes:
            _without_multipliers(nodes[layer.name])
        if plan.stream and layer.name in nodes:
            variables = nodes[layer.name].get_variables()
            for variable, depth in zip(variables, plan.depths(layer), strict=False):
                variable.pragma = ("stream", depth)
    check_graph(graph, plan)
    for layer, node in zip(plan.layers, graph.get_layers(), strict=True):
        if layer.kind == "InputLayer":
            continue
        call = str(node.get_attr("function_cpp"))
        if plan.stream and layer.pointwise:
            # hls4ml's own choice for these, made by a pass that would give them another number.
            # Unlike its line buffer it knows vertical strides.
            call = call.replace("nnet::conv_2d_cl<", "nnet::pointwise_conv_2d_cl<")
            headers = [*node.get_attr("include_header"), "nnet_utils/nnet_sepconv2d_stream.h"]
            node.set_attr("include_header", headers)
        lines = [_comment(layer), call]
        # The writers for the other tools want one text.
        node.set_attr("function_cpp", "\n    ".join(lines) if plan.dialect.algorithmic_c else lines)
    return graph


def _blame(plan: Plan, error: Exception) -> str:
    """The user's layers that an hls4ml message speaks of."""
    origins = [layer.origin for layer in plan.layers if layer.name in str(error)]
    return f"Layer: {', '.join(origins)}." if origins else "It names no layer."


def _comment(layer: Layer) -> str:
    # ASCII only, and never ending in a backslash, which would continue the comment.
    origin = layer.origin.encode("unicode_escape").decode("ascii")
    return f"// {origin} ({', '.join(layer.ops)})"


def check_graph(graph: Any, plan: Plan) -> None:
    """Raise FxloomError unless hls4ml's graph is the plan: layers, order, types, weights."""
    nodes = list(graph.get_layers())
    got = [node.name for node in nodes]
    expected = [layer.name for layer in plan.layers]
    if got != expected:
        raise FxloomError(f"hls4ml changed the layers: asked for {expected}, got {got}")
    for layer, node in zip(plan.layers, nodes, strict=True):
        asked, found = _facts(layer, plan), _node_facts(node)
        wrong = [key for key in asked if asked[key] != found.get(key)]
        if wrong:
            key = wrong[0]
            raise FxloomError(
                f"{layer.origin} ({layer.name}): hls4ml changed {key}: "
                f"asked for {asked[key]}, got {found.get(key)}"
            )
        for key, held in layer.weights.items():
            if not np.array_equal(node.weights[key].data, held.values):
                raise FxloomError(f"{layer.origin} ({layer.name}): hls4ml changed its {key}")
    for what, layers, variables in (
        ("inputs", plan.inputs, graph.get_input_variables()),
        ("outputs", plan.outputs, graph.get_output_variables()),
    ):
        if [layer.array for layer in layers] != [_array(variable) for variable in variables]:
            raise FxloomError(f"hls4ml changed the {what} of the project")


def _facts(layer: Layer, plan: Plan) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "index": layer.index,
        "arrays": [array for _, array in layer.results],
        "size": layer.size,
        "depths": plan.depths(layer) if plan.stream else [],
        "type": plan.dialect.fixed(layer.type),
        "accumulator": None if layer.accum is None else plan.dialect.fixed(layer.accum),
        "weights": {
            key: (held.name, held.cpp(plan.dialect)) for key, held in layer.weights.items()
        },
        "product": layer.product,
    }
    if layer.accum is not None and layer.allotment is not None:
        facts["strategy"] = layer.allotment.strategy
        facts["reuse_factor"] = layer.allotment.reuse
    if layer.kind != "InputLayer":
        facts["inputs"] = list(layer.inputs)
    if layer.kernel is not None:
        facts["call"] = layer.kernel.call
        facts["declarations"] = layer.kernel.declarations
    facts |= layer.attributes
    return facts


def pascal_case(name: str) -> str:
    """As hls4ml names classes for oneAPI."""
    return str(convert_to_pascal_case(name))


def pipe_name(array: str) -> str:
    """hls4ml's name for the pipe of a port, with oneAPI."""
    return f"{pascal_case(array)}Pipe"


def _check_pipes(plan: Plan) -> None:
    """Raise FxloomError where two ports would share a pipe: its name has lost the underscores."""
    ports: dict[str, str] = {}
    for layer in (*plan.inputs, *plan.outputs):
        other = ports.setdefault(pipe_name(layer.array), layer.origin)
        if other != layer.origin:
            raise FxloomError(
                f"the ports {other} and {layer.origin} would have the same pipe, "
                f"{pipe_name(layer.array)}, with oneAPI. Rename one of them"
            )


def _array(variable: Any) -> str:
    """The name of a variable; Quartus has inputs and outputs in a struct each."""
    return str(getattr(variable, "member_name", variable.name))


def _product(config: str) -> str:
    """The class that a layer's configuration multiplies with; empty where there is not just one."""
    found = set(re.findall(r"using product = ([\w:]+)<", config))
    return found.pop() if len(found) == 1 else ""


def _without_multipliers(node: Any) -> None:
    """Make an hls4ml layer multiply by shifts."""
    node.set_attr("config_cpp", node.get_attr("config_cpp").replace(PRODUCT, POWER_PRODUCT))
    node.set_attr("include_header", [*node.get_attr("include_header"), PRODUCTS])


def _node_facts(node: Any) -> dict[str, Any]:
    result, variables = node.get_output_variable(), node.get_variables()
    accum = node.get_attr("accum_t") if node.class_name != "FxloomKernel" else None
    config = node.get_attr("config_cpp", "")
    facts = {
        **node.attributes,
        "index": node.index,
        "arrays": [_array(variable) for variable in variables],
        "depths": [int(each.pragma[1]) for each in variables if isinstance(each.pragma, tuple)],
        "size": int(np.prod(result.shape)),
        "type": result.type.precision.definition_cpp(),
        "accumulator": None if accum is None else accum.precision.definition_cpp(),
        "weights": {
            key: (held.name, held.type.precision.definition_cpp())
            for key, held in node.weights.items()
        },
        # hls4ml picks another product class for 1- and 2-bit integer types, with other arithmetic.
        "product": None if accum is None else _product(config),
        "inputs": list(node.inputs),
        "call": node.get_attr("function_cpp"),
        "declarations": config,
    }
    return facts
