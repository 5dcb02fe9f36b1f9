"""Child processes that end with us, or before us where they take too long."""

import contextlib
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from fxloom.errors import ToolError


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def wait(
    command: Sequence[str],
    output: IO[bytes],
    timeout_s: float | None,
    on_line: Callable[[str], None] | None,
    log: Path | None,
    folder: Path | None = None,
) -> int:
    """Run a child process to its end; it never outlives us. Returns its exit code.

    output: takes what it prints to standard error, and standard output too unless on_line is told
    every line of that. log: the file of output, to name it. folder: where it runs. Raises
    ToolError after timeout_s.
    """
    stdout = subprocess.PIPE if on_line else output
    # A session of its own: g++ and yosys start further processes, and all must end with it.
    process = subprocess.Popen(
        command, stdout=stdout, stderr=output, text=True, start_new_session=True, cwd=folder
    )
    timed_out = threading.Event()

    def expire() -> None:
        timed_out.set()
        _kill(process)

    timer = threading.Timer(timeout_s, expire) if timeout_s is not None else None
    try:
        if timer is not None:
            timer.start()
        for line in process.stdout or ():
            if on_line is not None:
                on_line(line)
        code = int(process.wait())
    finally:
        # KeyboardInterrupt and errors of a progress callback come here as well.
        if timer is not None:
            timer.cancel()
        if process.poll() is None:
            _kill(process)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
    if timed_out.is_set():
        raise ToolError(
            f"stopped after {timeout_s:g} s", shlex.join(command), code, str(log) if log else None
        )
    return code
