"""ONNX and QONNX models as torch modules.

    file or ModelProto -> checked protobuf (files.py) -> values at two batch sizes, and a module for
    each node (loading.py) -> Network (network.py) -> fxloom.capture

The package `onnx` reads and checks the protobuf; what an operator means is written in torch in the
modules beside this one, from the ONNX operator specification. Nothing in a file is executed.
"""
