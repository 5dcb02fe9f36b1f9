"""Tests that need TensorFlow, QKeras, Brevitas or ONNX: skipped where those are not installed."""

import os

# Before TensorFlow is imported: QKeras is made for Keras 2; keras itself stays Keras 3.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
