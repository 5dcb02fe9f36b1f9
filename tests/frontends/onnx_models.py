"""ONNX models of a few lines: nodes in the text form of onnx.parser, constants as arrays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper, parser, shape_inference

FLOAT = onnx.TensorProto.FLOAT
Shape = Sequence[int | str]


def onnx_model(
    nodes: str,
    inputs: Mapping[str, Shape],
    constants: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = ("y",),
    opset: int = 21,
    domains: Mapping[str, int] | None = None,
    kinds: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A model; kinds: types of inputs that are not float32."""
    kinds = kinds or {}
    graph = helper.make_graph(
        [parser.parse_node(line.strip()) for line in nodes.strip().splitlines()],
        "graph",
        [
            helper.make_tensor_value_info(name, kinds.get(name, FLOAT), shape)
            for name, shape in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [
            numpy_helper.from_array(np.asarray(value), name)
            for name, value in (constants or {}).items()
        ],
    )
    imports = [helper.make_opsetid("", opset)]
    imports += [helper.make_opsetid(name, version) for name, version in (domains or {}).items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    inferred: onnx.ModelProto = shape_inference.infer_shapes(model)
    for output in inferred.graph.output:
        tensor = output.type.tensor_type
        if not tensor.HasField("shape"):
            # The checker wants some shape; which dimensions there are is not asked.
            tensor.elem_type = tensor.elem_type or FLOAT
            tensor.shape.SetInParent()
    return inferred


def computed(model: onnx.ModelProto, inputs: Mapping[str, Any]) -> list[Any]:
    """What onnxruntime computes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    results: list[Any] = session.run(None, dict(inputs))
    return results
