"""fxloom: compile PyTorch models to bit-exact FPGA projects.

Everything meant for use is here. Names load on first use, because torch takes seconds to import
and `fxloom --help` needs none of it.
"""

if __name__ != "fxloom":
    raise ImportError("import fxloom")

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fxloom import backends, passes
    from fxloom.backends.simulator import simulate
    from fxloom.checking import check
    from fxloom.compilation import Compilation, compile, open_build
    from fxloom.data import Data
    from fxloom.errors import (
        CaptureError,
        CodingError,
        DataError,
        FxloomError,
        RecipeError,
        TargetError,
        ToolError,
        UnsupportedLayer,
        VerifyError,
        WeightsError,
    )
    from fxloom.estimation import estimate
    from fxloom.evaluation import evaluate, evaluate_recipes
    from fxloom.evaluation_report import Evaluation, Evaluations
    from fxloom.exact import exact_forward
    from fxloom.fixed_point import FixedPoint, Overflow, Rounding
    from fxloom.frontend import capture
    from fxloom.lowering import lower
    from fxloom.model_file import load_model
    from fxloom.program import Program
    from fxloom.program_file import load_program, save_program
    from fxloom.recipe import Recipe
    from fxloom.report import Report
    from fxloom.target import Target
    from fxloom.trace_report import Trace
    from fxloom.tracing import trace
    from fxloom.weights import load_weights, save_weights

    __version__: str

__all__ = [
    "CaptureError",
    "CodingError",
    "Compilation",
    "Data",
    "DataError",
    "Evaluation",
    "Evaluations",
    "FixedPoint",
    "FxloomError",
    "Overflow",
    "Program",
    "Recipe",
    "RecipeError",
    "Report",
    "Rounding",
    "Target",
    "TargetError",
    "ToolError",
    "Trace",
    "UnsupportedLayer",
    "VerifyError",
    "WeightsError",
    "__version__",
    "backends",
    "capture",
    "check",
    "compile",
    "estimate",
    "evaluate",
    "evaluate_recipes",
    "exact_forward",
    "load_model",
    "load_program",
    "load_weights",
    "lower",
    "open_build",
    "passes",
    "save_program",
    "save_weights",
    "simulate",
    "trace",
]

_HOME = MappingProxyType(
    {
        "CaptureError": "errors",
        "CodingError": "errors",
        "Compilation": "compilation",
        "Data": "data",
        "DataError": "errors",
        "Evaluation": "evaluation_report",
        "Evaluations": "evaluation_report",
        "FixedPoint": "fixed_point",
        "FxloomError": "errors",
        "Overflow": "fixed_point",
        "Program": "program",
        "Recipe": "recipe",
        "RecipeError": "errors",
        "Report": "report",
        "Rounding": "fixed_point",
        "Target": "target",
        "TargetError": "errors",
        "ToolError": "errors",
        "Trace": "trace_report",
        "UnsupportedLayer": "errors",
        "VerifyError": "errors",
        "WeightsError": "errors",
        "capture": "frontend",
        "check": "checking",
        "compile": "compilation",
        "estimate": "estimation",
        "evaluate": "evaluation",
        "evaluate_recipes": "evaluation",
        "exact_forward": "exact",
        "load_model": "model_file",
        "load_program": "program_file",
        "load_weights": "weights",
        "lower": "lowering",
        "open_build": "compilation",
        "save_program": "program_file",
        "save_weights": "weights",
        "simulate": "backends.simulator",
        "trace": "tracing",
    }
)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("fxloom")
    if name in ("backends", "passes"):
        return import_module(f"fxloom.{name}")
    if name in _HOME:
        return getattr(import_module(f"fxloom.{_HOME[name]}"), name)
    raise AttributeError(f"module 'fxloom' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
