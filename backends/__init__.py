"""Readers of a Program: the simulator, and the hardware backends behind one protocol."""

if __name__ != "fxloom.backends":
    raise ImportError("import fxloom.backends")

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fxloom.errors import FxloomError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fxloom.program import Program
    from fxloom.target import Target


class Build(Protocol):
    """What a backend wrote: a directory, and a way to run it bit for bit."""

    @property
    def directory(self) -> Path:
        """Where the project lies."""
        ...

    @property
    def project(self) -> str:
        """Name of the project and of its top function."""
        ...

    @property
    def layers(self) -> tuple[Mapping[str, Any], ...]:
        """One record a layer of the project: at least name (there) and origin (the user's)."""
        ...

    def run(
        self,
        x: Any,
        raw: bool = False,
        *,
        progress: Callable[[int, int], None] | None = None,
        timeout_s: float | None = None,
        debug: bool = False,
    ) -> "npt.NDArray[np.generic] | tuple[npt.NDArray[np.generic], ...]":
        """Outputs for real inputs [N, ...] in the user's layout; mantissas where raw.

        debug: build what runs for a debugger.
        """
        ...

    def debugger(self) -> str:
        """The command that runs the inputs of the last `run(debug=True)` in a debugger."""
        ...

    def trace(self, x: Any) -> "dict[str, npt.NDArray[np.int64]]":
        """Mantissas [N, ...] of the program's values that exist in the hardware, by name."""
        ...

    def edited(self) -> "dict[str, str | None]":
        """Source files that are not as they are emitted, with their layers."""
        ...


class Backend(Protocol):
    """Turns a Program into a project."""

    @property
    def name(self) -> str:
        """The name it is registered under."""
        ...

    @property
    def unsupported(self) -> Mapping[str, str]:
        """Operations that it declares it cannot do, with the reason."""
        ...

    def check_target(self, target: "Target") -> None:
        """Raise TargetError, with all reasons, where a target asks for what is not there."""
        ...

    def emit(
        self,
        program: "Program",
        target: "Target",
        out: str | os.PathLike[str],
        *,
        samples: Any = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> Build:
        """Write the project into out, a directory that is absent or empty.

        samples: real inputs [N, ...] for the project's own testbench. cache: where simulations
        keep what they compile, by default the user's cache directory.
        """
        ...

    def open(self, directory: str | os.PathLike[str], program: "Program") -> Build:
        """A project that was emitted earlier, and the program it was emitted from."""
        ...


# Modules with a BACKEND; imported on first use, because their tools are heavy.
_MODULES = {"hls4ml": "fxloom.backends.hls4ml"}


def names() -> tuple[str, ...]:
    """Names of all backends."""
    return tuple(_MODULES)


def get(name: str) -> Backend:
    """The backend of that name; FxloomError with the known ones where there is none."""
    if name not in _MODULES:
        raise FxloomError(f"unknown backend {name!r}; known: {', '.join(_MODULES)}")
    backend: Backend = import_module(_MODULES[name]).BACKEND
    return backend
