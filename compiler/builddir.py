"""A build directory that appears whole or not at all.

Everything is written into a hidden sibling, on the same file system, and takes its place in one
step at the end. What must hold whenever the process stops, by an error, a signal or kill -9:
the directory is the old one or the new one, never a mixture; nothing that is not ours is touched;
what a killed process left behind is cleared away by the next.
"""

import errno
import fcntl
import logging
import os
import re
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from fxloom.errors import FxloomError
from fxloom.manifest import is_ours, write_manifest
from fxloom.signals import uninterrupted
from fxloom.swap import UNSUPPORTED, old_name, remove_tree, swap, sync, sync_tree

log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class BuildDir:
    """`with BuildDir(out, manifest) as folder:` write into folder; it becomes `out` at the end.

    out: absent, an empty directory, or an earlier build, which is replaced; missing parents are
    made. manifest: entries for fxloom.json, read at the end. If the block raises, all is as it
    was. Raises FxloomError for a target that is not ours, one that another process is writing, a
    full disk or missing permission. A signal during the swap takes effect after it.
    """

    def __init__(self, out: str | Path, manifest: Mapping[str, Any]) -> None:
        self._manifest = manifest
        self._out = _absolute(Path(out))
        self._traces = _Traces(self._out)
        # Should a signal strike between the block and __exit__, collection or exit clears up.
        self._last_resort = weakref.finalize(self, self._traces.remove)

    @property
    def path(self) -> Path:
        """Where the build will lie, absolute and without links or `..` on the way."""
        return self._out

    def __enter__(self) -> Path:
        try:
            with uninterrupted(), _explained(self._out):
                return self._traces.prepare()
        except BaseException:
            self._traces.remove()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if fault is None:
                self._finish()
            elif isinstance(fault, Exception) and _is_full(fault):
                raise FxloomError(_full_disk(self._out)) from fault
        finally:
            self._traces.remove()
            self._last_resort.detach()

    def _finish(self) -> None:
        new = self._traces.new
        assert new is not None
        with _explained(self._out):
            write_manifest(new, self._manifest)
            sync_tree(new)
            with uninterrupted():
                _refuse_foreign(self._out)  # once more: time has passed
                swap(new, self._out)
                self._traces.made_parents.clear()
                sync(self._out.parent)


@dataclass(slots=True)
class _Traces:
    """What lies on disk on behalf of one unfinished build, and how it goes away."""

    out: Path
    new: Path | None = None  # after the swap it holds the old build
    lock: int | None = None
    made_parents: list[Path] = field(default_factory=list)
    process: int = field(default_factory=os.getpid)

    def prepare(self) -> Path:
        """Make parents, take the lock, clear what others left, and make the new folder."""
        for parent in reversed(self.out.parents):
            if not parent.exists():
                with suppress(FileExistsError):  # another build may need the same parent
                    parent.mkdir()
                    self.made_parents.append(parent)
        self.lock = _lock(self._lock_file())
        _recover(self.out, locked=self.lock is not None)
        _refuse_foreign(self.out)
        prefix = f"{_prefix(self.out)}{self.process}-"
        self.new = Path(tempfile.mkdtemp(prefix=prefix, suffix=".new", dir=self.out.parent))
        return self.new

    def remove(self) -> None:
        """Remove all of it; a second call does nothing."""
        if os.getpid() != self.process:  # a forked child, whose parent is still writing
            return
        with uninterrupted():
            if self.new is not None:
                remove_tree(self.new)
                remove_tree(old_name(self.new))
                self.new = None
            if self.lock is not None:
                with suppress(OSError):
                    self._lock_file().unlink()  # while it is held, so that nobody waits on it
                os.close(self.lock)
                self.lock = None
            while self.made_parents:
                with suppress(OSError):  # someone else may have put something there
                    self.made_parents.pop().rmdir()

    def _lock_file(self) -> Path:
        return self.out.with_name(f"{_prefix(self.out)}lock")


def _absolute(out: Path) -> Path:
    if out.name in ("", "..") or "\0" in out.name:
        raise FxloomError(f"{out}: cannot be a build directory; give it a name of its own")
    try:
        absolute = out.parent.resolve() / out.name
        inside = Path.cwd().is_relative_to(absolute)
    except (OSError, RuntimeError, ValueError) as fault:  # links in a circle, a null byte
        raise FxloomError(f"{out}: cannot be a build directory: {fault}") from None
    if inside:
        raise FxloomError(f"{out}: is in use as the current directory; run from outside it")
    return absolute


def _refuse_foreign(out: Path) -> None:
    if not os.path.lexists(out):
        return
    advice = "Nothing was changed. Remove it yourself or choose another directory"
    if out.is_symlink():
        raise FxloomError(f"{out}: is a symbolic link. {advice}")
    if not out.is_dir():
        raise FxloomError(f"{out}: exists and is not a directory. {advice}")
    if any(out.iterdir()) and not is_ours(out):
        raise FxloomError(f"{out}: exists and was not made by fxloom (no fxloom.json). {advice}")


def _lock(file: Path) -> int | None:
    """A descriptor holding the lock; None where the file system has no locks."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise FxloomError(_busy(file)) from None
        except OSError as fault:
            os.close(descriptor)
            if fault.errno not in UNSUPPORTED:
                raise
            file.unlink(missing_ok=True)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(file), os.fstat(descriptor)):
                return descriptor
        os.close(descriptor)  # its last holder removed the file while we opened it


def _recover(out: Path, locked: bool) -> None:
    """Clear what killed processes left; a build they had only moved aside comes back."""
    pattern = re.compile(re.escape(_prefix(out)) + r"(\d+)-\w+\.(new|old)")
    for path in sorted(out.parent.iterdir()):
        found = pattern.fullmatch(path.name)
        if found is None:
            continue
        if not locked and _is_alive(int(found[1])):
            raise FxloomError(_busy(path))
        if found[2] == "old" and not os.path.lexists(out) and is_ours(path):
            log.warning("%s: restored after an interrupted build", out)
            path.rename(out)
        else:
            remove_tree(path)


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    """Errors of the file system as FxloomError."""
    try:
        yield
    except OSError as fault:
        if _is_full(fault):
            raise FxloomError(_full_disk(out)) from fault
        if fault.errno in _FORBIDDEN:
            raise FxloomError(
                f"{out}: required permission to write in {out.parent}: {fault.strerror}. "
                "Choose another directory"
            ) from fault
        raise FxloomError(f"{out}: cannot be written: {fault}") from fault


def _is_full(fault: BaseException | None) -> bool:
    """Whether a full disk is the cause; libraries wrap it in errors of their own."""
    while fault is not None:
        if isinstance(fault, OSError) and fault.errno in _FULL:
            return True
        if isinstance(fault, Exception) and os.strerror(errno.ENOSPC) in str(fault):
            return True
        fault = fault.__cause__ or fault.__context__
    return False


def _full_disk(out: Path) -> str:
    return (
        f"{out}: the disk is full; nothing was changed. A build needs room beside the one it "
        f"replaces: free some space in {out.parent} or choose a directory on another disk"
    )


def _busy(file: Path) -> str:
    return (
        f"{file.parent}: another fxloom is writing this build directory (it holds {file.name}). "
        "Wait for it, or choose another directory"
    )


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _prefix(out: Path) -> str:
    return f".{out.name}.fxloom-"
