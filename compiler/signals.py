"""Signals at the moments that matter: stop cleanly, and not in the middle of a swap."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_STOPPING = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, so that cleanup runs.

    A signal that is ignored stays so (nohup). Does nothing outside the main thread, where Python
    delivers no signals.
    """
    if not _in_main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    replaced = {
        number: signal.signal(number, interrupt)
        for number in _STOPPING
        if number != signal.SIGINT and signal.getsignal(number) == signal.SIG_DFL
    }
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put signals that stop the process off until the end of the block, then let them happen.

    Not by a signal mask, which holds for one thread only: the handlers are replaced. For short
    blocks. A handler that is the system's own or not Python's stays as it is.
    """
    if not _in_main_thread():
        yield
        return
    pending: list[int] = []
    replaced = {}
    for number in _STOPPING:
        if callable(signal.getsignal(number)):
            replaced[number] = signal.signal(number, lambda caught, frame: pending.append(caught))
    try:
        yield
    finally:
        for number, handler in reversed(replaced.items()):  # Ctrl-C last: it may strike here
            signal.signal(number, handler)
        for number in pending[:1]:
            signal.raise_signal(number)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
