"""The command line. It and `fxloom.commands` are all that prints.

Results go to standard output, everything else to standard error. Exit codes: 0 good, 1 `check`
found a difference, 2 the input's fault, 70 a fault of fxloom's own, 128 + n stopped by signal n.
"""

import errno
import io
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from fxloom.commands import building, judging, listing, reporting
from fxloom.commands.console import INPUT_FAULT, OWN_FAULT, close_output, complain
from fxloom.errors import FxloomError
from fxloom.signals import terminate_as_interrupt

EXAMPLES = """
Examples, for a file net.py in which make() returns the model and data() returns x, y:

  fxloom compile net.py:make --data net.py:data -o build/

  fxloom check build/

  fxloom report build/ --html report.html
"""


class _Commands(TyperGroup):
    """All commands, with one place that turns exceptions into messages and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with _faults_reported():
            return super().invoke(ctx)


app = typer.Typer(
    name="fxloom",
    cls=_Commands,
    help="Compile PyTorch models to bit-exact FPGA projects.\n" + EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The console script `fxloom`."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a report has more than ASCII, names may as well
        sys.stdout.reconfigure(errors="replace")
    try:
        with terminate_as_interrupt():
            app()
    except KeyboardInterrupt as stop:  # before or after a command
        raise SystemExit(_interrupted(stop)) from None
    finally:
        # All is done, and whoever presses Ctrl-C while torch unloads should see no traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _faults_reported() -> Iterator[None]:
    try:
        yield
    except FxloomError as fault:
        notes = "".join(f"\n({note})" for note in getattr(fault, "__notes__", []))
        complain(f"{fault}{notes}")
        raise typer.Exit(INPUT_FAULT) from None
    except KeyboardInterrupt as stop:
        raise typer.Exit(_interrupted(stop)) from None
    except (typer.Exit, typer.Abort, typer.TyperException):
        raise
    except OSError as fault:
        if fault.errno == errno.EPIPE:  # `fxloom list ops | head`
            close_output()
            raise typer.Exit(128 + signal.SIGPIPE) from None
        if fault.errno in (errno.ENOSPC, errno.EDQUOT):  # `fxloom report build/ > log`
            close_output()
            complain(f"the disk is full: {fault}. What was to be printed or kept is incomplete")
            raise typer.Exit(INPUT_FAULT) from None
        _own_fault()
    except MemoryError as fault:
        complain(f"out of memory: {fault or 'required more than is free'}. Give fewer samples")
        raise typer.Exit(INPUT_FAULT) from None
    except Exception:
        _own_fault()


def _own_fault() -> NoReturn:
    traceback.print_exc()
    complain("this is a fault of fxloom, not of its input: please report it with the text above")
    raise typer.Exit(OWN_FAULT)


def _interrupted(stop: KeyboardInterrupt) -> int:
    name = str(stop) or "SIGINT"
    complain(f"stopped by {name}; nothing half-written is left")
    return 128 + getattr(signal, name, signal.SIGINT)


def _version(wanted: bool) -> None:
    if wanted:
        import fxloom

        typer.echo(f"fxloom {fxloom.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.command("compile", epilog=building.COMPILE_EXAMPLES)(building.compile_)
app.command("check", epilog="Example:\n\n  fxloom check build/ --samples 1000")(building.check_)
app.command("report", epilog=reporting.REPORT_EXAMPLES)(reporting.report_)
app.command("weights", epilog=reporting.WEIGHTS_EXAMPLES)(reporting.weights_)
app.command("verify-estimate", epilog=reporting.VERIFY_EXAMPLES)(reporting.verify_estimate_)
app.command("trace", epilog=judging.TRACE_EXAMPLES)(judging.trace_)
app.command("evaluate", epilog=judging.EVALUATE_EXAMPLES)(judging.evaluate_)
app.command("list", epilog="Example:\n\n  fxloom list passes")(listing.list_)
app.command("demo", epilog="Example:\n\n  fxloom demo --out digits/")(listing.demo_)


if __name__ == "__main__":
    main()
