"""Two directories change places, and the disk knows of it: what BuildDir asks of the system."""

import ctypes
import errno
import logging
import os
import shutil
from pathlib import Path

log = logging.getLogger(__name__)

# What a file system answers that lacks locks or exchange.
UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.ENOLCK)


def swap(new: Path, out: Path) -> None:
    """Put `new` in the place of `out`, whose content is then under the name of `new` or gone."""
    if not os.path.lexists(out):
        new.rename(out)
    elif not _exchange(new, out):
        old = old_name(new)
        out.rename(old)
        try:
            new.rename(out)
        except OSError:
            old.rename(out)
            raise


def _exchange(new: Path, out: Path) -> bool:
    """Exchange two names in one step (renameat2, Linux 3.15); False where that is not possible."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if rename(here, os.fsencode(new), here, os.fsencode(out), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(out))


def sync_tree(folder: Path) -> None:
    """Have the disk hold every file before a name points to them."""
    for path, _, names in os.walk(folder):
        for name in names:
            sync(Path(path) / name)
        sync(Path(path))


def sync(path: Path) -> None:
    """Have the disk hold one file, or the names in one folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove a folder where there is one; a failure is only logged."""
    if not os.path.lexists(path):
        return
    try:
        shutil.rmtree(path)
    except OSError as fault:  # the next build tries again
        log.warning("%s: could not be removed: %s", path, fault)


def old_name(new: Path) -> Path:
    """Where an old build waits between the two renames."""
    return new.with_suffix(".old")
