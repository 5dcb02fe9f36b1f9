"""Everything fxloom raises on purpose.

A message says where, what was required, what arrived and what to do next. The command line prints
it without a traceback and exits with 2.
"""

from collections.abc import Sequence


class FxloomError(Exception):
    """Root of all errors that are the input's fault, never fxloom's."""


class CaptureError(FxloomError):
    """The model could not be captured as a graph that computes the same function."""


class UnsupportedLayer(FxloomError):
    """One or more layers have no exact lowering; all of them are listed.

    problems: one line each, "layer (op): reason. What to do."
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        plural = "layer" if len(self.problems) == 1 else "layers"
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{len(self.problems)} unsupported {plural}:\n{lines}")


class VerifyError(FxloomError):
    """A program or a quantized graph breaks an invariant of its format."""


class RecipeError(FxloomError):
    """A recipe, or one of its keys, is not valid."""


class TargetError(FxloomError):
    """A target, or one of its keys, is not valid."""


class DataError(FxloomError):
    """Calibration or test data cannot be used."""


class CodingError(FxloomError):
    """Weights cannot be coded, or what should be coded weights is damaged."""


class WeightsError(FxloomError):
    """A file of weights is damaged, is none, or is not one of this model's weights."""


class ToolError(FxloomError):
    """An external tool is missing or failed.

    command: the command line; exit_code: its status, None where it never ran; log: path of its
    output, None where there is none.
    """

    def __init__(
        self, message: str, command: str = "", exit_code: int | None = None, log: str | None = None
    ) -> None:
        self.command, self.exit_code, self.log = command, exit_code, log
        details = [message]
        if command:
            details.append(f"  command: {command}")
        if exit_code is not None:
            details.append(f"  exit code: {exit_code}")
        if log is not None:
            details.append(f"  log: {log}")
        super().__init__("\n".join(details))
