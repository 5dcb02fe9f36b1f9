"""The same network as stock hls4ml layers, for the speed of stock hls4ml's own C simulation.

The layer list is our own (hls4ml's PyTorch converter refuses or miscomputes these models), with
hls4ml's classes, its Vitis backend, its writer and its g++ -O3; the types are those of our program.
io_stream, as hls4ml recommends for convolutions, io_parallel for the MLP. What is measured is
`ModelGraph.predict`. Average pools round as hls4ml does, so results may differ from ours by a step.
"""

from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fxloom.backends.hls4ml.graph import silenced
from fxloom.fixed_point import FixedPoint
from fxloom.ops import Add, Conv, Divide, MatMul, Max, Pool, Requantize, Reshape, Shift
from fxloom.program import Instr, Program


def stock_graph(program: Program, out: Path, stream: bool) -> Any:
    """A compiled ModelGraph; its predict takes channels-last inputs."""
    layers, precisions, last = _layers(program)
    config = {
        "OutputDir": str(out),
        "ProjectName": "myproject",
        "Backend": "Vitis",
        "Part": "xcvu13p-flga2577-2-e",
        "ClockPeriod": 5,
        "IOType": "io_stream" if stream else "io_parallel",
        "HLSConfig": {
            "Model": {"Precision": "fixed<16,6>", "ReuseFactor": 1, "Strategy": "Latency"},
            "LayerName": precisions,
        },
    }
    with silenced():
        from hls4ml.model.graph import ModelGraph

        graph = ModelGraph.from_layer_list(config, layers, ["x"], [last])
        graph.compile()
    return graph


def _type(kind: FixedPoint, modes: str = "") -> str:
    return f"{'' if kind.signed else 'u'}fixed<{kind.width},{kind.integer}{modes}>"


def _layers(program: Program) -> tuple[list[dict[str, Any]], dict[str, Any], str]:
    port = program.inputs[0]
    layers = [{"class_name": "InputLayer", "name": "x", "input_shape": list(port.value.shape)}]
    precisions: dict[str, Any] = {"x": {"Precision": {"result": _type(port.value.type)}}}
    names = {port.value.name: "x"}
    users: dict[str, list[Instr]] = {}
    for instr in program.instrs:
        for arg in instr.args:
            users.setdefault(arg, []).append(instr)
    for instr in program.instrs:
        if instr.result.name in names:
            continue
        chain = _chain(program, instr, users)
        name = f"n{len(layers)}"
        result = chain[-1].result
        kept = {"result": _type(result.type, ",RND,SAT" if _rounds(chain[-1]) else "")}
        layer = {"name": name, "inputs": [names[a] for a in instr.args if a in names]}
        relu = any(isinstance(each.op, Max) for each in chain)
        if isinstance(instr.op, MatMul | Conv):
            layer |= _weights(program, chain)
            accum = [each.result.type for each in chain if isinstance(each.op, Add)]
            exact = _type((accum or [instr.result.type])[-1])
            kept |= {"accum": exact, "weight": _type(program.constants[instr.args[1]].value.type)}
            kept |= {"bias": exact}
            kept |= {"result": exact} if relu else {}
        elif isinstance(instr.op, Pool):
            layer |= _pool(program, instr)
            kept["accum"] = _type(instr.result.type)
        elif isinstance(instr.op, Reshape):
            layer |= {"class_name": "Reshape", "target_shape": list(instr.op.shape)}
        elif isinstance(instr.op, Add):
            layer |= {"class_name": "Merge", "op": "add"}
            kept |= {"result": _type(instr.result.type)} if relu else {}
        elif not isinstance(instr.op, Requantize):
            raise NotImplementedError(instr.op.name)
        if isinstance(instr.op, Requantize):
            layer |= {"class_name": "Activation", "activation": "linear"}
            layer["n_in"] = prod(instr.result.shape)
        layers.append(layer)
        precisions[name] = {"Precision": kept}
        if relu:
            shape = result.shape
            act = {"class_name": "Activation", "name": f"{name}_relu", "activation": "relu"}
            layers.append(act | {"inputs": [name], "n_in": prod(shape)})
            modes = ",RND,SAT"
            precisions[f"{name}_relu"] = {"Precision": {"result": _type(result.type, modes)}}
            name = f"{name}_relu"
        for each in chain:
            names[each.result.name] = name
    return layers, precisions, name


def _rounds(instr: Instr) -> bool:
    return isinstance(instr.op, Requantize | Divide)


def _chain(program: Program, instr: Instr, users: dict[str, list[Instr]]) -> list[Instr]:
    """An instruction with what belongs to the same hls4ml layer: bias, ReLU, rounding."""
    chain = [instr]
    while not _rounds(chain[-1]) and not isinstance(instr.op, Reshape):
        following = users.get(chain[-1].result.name, [])
        if len(following) != 1:
            break
        (user,) = following
        inner = [name for name in user.args if name not in program.constants]
        if len(inner) != 1 or not isinstance(user.op, Add | Max | Requantize | Shift | Divide):
            break
        chain.append(user)
    return chain


def _weights(program: Program, chain: list[Instr]) -> dict[str, Any]:
    instr = chain[0]
    constant = program.constants[instr.args[1]]
    data = constant.data * 2.0**-constant.value.type.fraction
    bias: np.ndarray[Any, Any] = np.zeros(data.shape[-1])
    for each in chain:
        for name in each.args if isinstance(each.op, Add) else ():
            if name in program.constants:
                held = program.constants[name]
                bias = held.data * 2.0**-held.value.type.fraction
    if isinstance(instr.op, MatMul):
        n_in, n_out = data.shape
        return {
            "class_name": "Dense",
            "n_in": n_in,
            "n_out": n_out,
            "weight_data": data,
            "bias_data": bias,
        }
    assert isinstance(instr.op, Conv)
    height, width, channels = program.value(instr.args[0]).shape
    out_height, out_width, filters = instr.result.shape
    (top, bottom), (left, right) = instr.op.padding
    depthwise = instr.op.groups == channels > 1
    key = "depthwise_data" if depthwise else "weight_data"
    if depthwise:
        data = data.transpose(0, 1, 3, 2)
    return {
        "class_name": "DepthwiseConv2D" if depthwise else "Conv2D",
        "data_format": "channels_last",
        "in_height": height,
        "in_width": width,
        "n_chan": channels,
        "filt_height": data.shape[0],
        "filt_width": data.shape[1],
        "n_filt": filters,
        "out_height": out_height,
        "out_width": out_width,
        "stride_height": instr.op.stride[0],
        "stride_width": instr.op.stride[1],
        "pad_top": top,
        "pad_bottom": bottom,
        "pad_left": left,
        "pad_right": right,
        "padding": "same",
        key: data,
        "bias_data": bias,
    } | ({"depth_multiplier": 1} if depthwise else {})


def _pool(program: Program, instr: Instr) -> dict[str, Any]:
    assert isinstance(instr.op, Pool)
    height, width, channels = program.value(instr.args[0]).shape
    out_height, out_width, _ = instr.result.shape
    return {
        "class_name": "AveragePooling2D" if instr.op.kind == "sum" else "MaxPooling2D",
        "data_format": "channels_last",
        "in_height": height,
        "in_width": width,
        "n_filt": channels,
        "pool_height": instr.op.kernel[0],
        "pool_width": instr.op.kernel[1],
        "stride_height": instr.op.stride[0],
        "stride_width": instr.op.stride[1],
        "out_height": out_height,
        "out_width": out_width,
        "pad_top": 0,
        "pad_bottom": 0,
        "pad_left": 0,
        "pad_right": 0,
        "padding": "valid",
        "count_pad": False,
    }
