"""Where the optional package onnx is missing."""

import sys
from pathlib import Path

import pytest

import fxloom


def test_reading_a_model_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    (tmp_path / "x.onnx").touch()
    with pytest.raises(fxloom.CaptureError, match=r"pip install 'fxloom\[onnx\]'"):
        fxloom.load_model(str(tmp_path / "x.onnx"))
