"""A build directory is the old one or the new one, whatever happens and whenever."""

import errno
import fcntl
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from fxloom import builddir, manifest, signals, swap
from fxloom.builddir import BuildDir
from fxloom.errors import FxloomError
from fxloom.manifest import read_manifest
from fxloom.signals import terminate_as_interrupt, uninterrupted

OURS = {Path(module.__file__).name for module in (builddir, manifest, signals, swap)}  # type: ignore[arg-type]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "build"


@pytest.fixture(params=["exchange", "two renames"])
def either_swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "two renames":
        monkeypatch.setattr(swap, "_exchange", lambda new, out: False)


def write(out: Path, text: str, **entries: Any) -> None:
    with BuildDir(out, {"tools": {"python": "3"}} | entries) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text(text)
        (folder / "run.sh").write_text(text)
        (folder / "run.sh").chmod(0o700)


def content(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def state(out: Path) -> str | None:
    """Which build lies there, checked to be whole."""
    if not out.exists():
        return None
    read_manifest(out, verify_files=True)
    return (out / "sub" / "a.txt").read_text()


def neighbours(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if path != out)


def test_first_build_appears(out: Path) -> None:
    write(out, "new")
    assert state(out) == "new"
    assert neighbours(out) == []


def test_earlier_build_is_replaced(out: Path, either_swap: None) -> None:
    write(out, "old")
    (out / "results_of_a_tool").mkdir()
    write(out, "new")
    assert state(out) == "new"
    assert neighbours(out) == []


def test_empty_directory_is_taken(out: Path, either_swap: None) -> None:
    out.mkdir()
    write(out, "new")
    assert state(out) == "new"


def test_missing_parents_are_made(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "build", "new")
    assert state(tmp_path / "a" / "b" / "build") == "new"


def test_relative_names_and_linked_parents_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    write(Path("build/"), "one")
    write(Path("link/build"), "two")
    write(Path("ünï code; $(x)"), "three")
    assert state(tmp_path / "real" / "build") == "two"
    assert sorted(os.listdir()) == ["build", "link", "real", "ünï code; $(x)"]


def test_bytes_are_the_same_anywhere(tmp_path: Path) -> None:
    mask = os.umask(0o077)
    try:
        write(tmp_path / "one", "x")
    finally:
        os.umask(mask)
    write(tmp_path / "elsewhere" / "two", "x")
    assert content(tmp_path / "one") == content(tmp_path / "elsewhere" / "two")
    for folder in (tmp_path / "one", tmp_path / "elsewhere" / "two"):
        modes = {p.name: p.stat().st_mode & 0o7777 for p in (folder, *folder.rglob("*"))}
        modes.pop(folder.name)
        assert modes == {"sub": 0o755, "a.txt": 0o644, "run.sh": 0o755, "fxloom.json": 0o644}
        assert folder.stat().st_mode & 0o7777 == 0o755


def test_manifest_lists_files_and_callers_entries(out: Path) -> None:
    write(out, "x", digest="abc")
    read = read_manifest(out)
    assert [entry["path"] for entry in read["files"]] == ["run.sh", "sub/a.txt"]
    assert (read["format"], read["version"]) == ("fxloom-build", 1)
    assert (read["tools"], read["digest"]) == ({"python": "3"}, "abc")


# What is not ours stays as it is.


def _file(out: Path) -> None:
    out.write_text("mine")


def _foreign(out: Path) -> None:
    (out / "sub").mkdir(parents=True)
    (out / "sub" / "thesis.tex").write_text("mine")


def _foreign_json(out: Path) -> None:
    out.mkdir()
    (out / "fxloom.json").write_text('{"format": "other", "version": 1}')


def _linked_json(out: Path) -> None:
    write(out.with_name("real"), "x")
    out.mkdir()
    (out / "fxloom.json").symlink_to("../real/fxloom.json")


def _link(out: Path) -> None:
    write(out.with_name("real"), "x")
    out.symlink_to("real")


def _dangling(out: Path) -> None:
    out.symlink_to("nowhere")


@pytest.mark.parametrize("make", [_file, _foreign, _foreign_json, _linked_json, _link, _dangling])
def test_what_is_not_ours_is_refused_and_untouched(out: Path, make: Callable[[Path], None]) -> None:
    make(out)
    before = content(out.parent), os.readlink(out) if out.is_symlink() else None
    with pytest.raises(FxloomError, match="Nothing was changed"):
        write(out, "new")
    assert (content(out.parent), os.readlink(out) if out.is_symlink() else None) == before


def test_target_that_turns_foreign_meanwhile_is_refused(out: Path) -> None:
    with pytest.raises(FxloomError, match="Nothing was changed"), BuildDir(out, {}):
        _foreign(out)
    assert content(out) == {"sub": None, "sub/thesis.tex": b"mine"}
    assert neighbours(out) == []


@pytest.mark.parametrize("name", ["", ".", "/", "..", "x/.."])
def test_names_that_are_no_directory_of_their_own_are_refused(name: str) -> None:
    with pytest.raises(FxloomError, match="give it a name of its own"):
        BuildDir(name, {})


def test_current_directory_is_refused(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(out, "old")
    monkeypatch.chdir(out / "sub")
    with pytest.raises(FxloomError, match="current directory"):
        BuildDir(out, {})


def test_parent_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FxloomError, match="cannot be written"):
        write(tmp_path / "file" / "build", "new")
    with pytest.raises(FxloomError, match=r"cannot be written|cannot be a build"):
        write(tmp_path / ("x" * 300), "new")
    with pytest.raises(FxloomError, match="cannot be a build"):
        write(tmp_path / "a\0b", "new")
    with pytest.raises(FxloomError, match="cannot be a build"):
        write(tmp_path / "a\0b" / "c", "new")
    assert content(tmp_path) == {"file": b"mine"}


# Failure in the block, and at every point around it.


@pytest.mark.parametrize("fault", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_failing_block_leaves_everything_as_it_was(out: Path, fault: BaseException) -> None:
    for _ in range(2):
        with pytest.raises(type(fault)), BuildDir(out.parent / "a" / "b", {}) as folder:
            (folder / "half").write_text("x")
            raise fault
        assert neighbours(out) == []
    write(out, "old")
    before = content(out)
    with pytest.raises(type(fault)), BuildDir(out, {}) as folder:
        (folder / "half").write_text("x")
        raise fault
    assert content(out) == before
    assert neighbours(out) == []


def test_parents_that_others_use_stay(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), BuildDir(tmp_path / "a" / "b" / "c", {}):
        (tmp_path / "a" / "note").write_text("mine")
        raise ValueError("x")
    assert content(tmp_path) == {"a": None, "a/note": b"mine"}


def interrupt_at(moment: int, pressed: list[int]) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that presses Ctrl-C at the nth line run in our modules."""
    count = iter(range(10**9))

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if Path(frame.f_code.co_filename).name not in OURS:
            return None
        if event == "line" and next(count) == moment:
            sys.settrace(None)
            pressed.append(moment)
            signal.raise_signal(signal.SIGINT)
        return trace

    return trace


@pytest.mark.parametrize("old", [None, "old"])
def test_ctrl_c_at_every_line_leaves_old_or_new(
    out: Path, old: str | None, either_swap: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # slow, and no line of ours
    gc.collect()
    gc.freeze()  # hundreds of collections follow, which need not look at torch each time
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    outcomes = set()
    for moment in range(10_000):
        if old is None:
            subprocess.run(["rm", "-rf", out], check=True)
        else:
            write(out, old)
        pressed: list[int] = []
        sys.settrace(interrupt_at(moment, pressed))
        try:
            write(out, "new")
        except KeyboardInterrupt:
            assert pressed
        else:
            assert not pressed, f"{moment}: Ctrl-C was lost"
        finally:
            sys.settrace(None)
        gc.collect()
        assert neighbours(out) == [], moment
        assert state(out) in (old, "new"), moment
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers, moment
        if not pressed:
            break
        outcomes.add(state(out))
    gc.unfreeze()
    assert moment > 100
    assert state(out) == "new"
    assert outcomes == {old, "new"}


CALLS = ("open", "mkdir", "rename", "unlink", "rmdir", "fsync", "chmod", "close")


def killed_at(moment: int, work: Callable[[], None]) -> bool:
    """Run in a child that dies like by kill -9 before its nth call to the system; whether so."""
    child = os.fork()
    if child == 0:
        count = iter(range(10**9))

        def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                if next(count) == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return wrapped

        for name in CALLS:
            setattr(os, name, deadly(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("old", [None, "old"])
def test_kill_9_at_every_call_leaves_old_or_new(
    out: Path, old: str | None, either_swap: None
) -> None:
    seen = set()
    for moment in range(10_000):
        if old is None:
            subprocess.run(["rm", "-rf", out], check=True)
        else:
            write(out, old)
        if not killed_at(moment, lambda: write(out, "new")):
            break
        found = state(out)
        seen.add(found)
        # Between the two renames the old build is aside, and the next start brings it back.
        with pytest.raises(ValueError, match="stop"), BuildDir(out, {}):
            found = state(out)
            assert found in (old, "new"), moment
            raise ValueError("stop")
        assert state(out) == found, moment
        assert neighbours(out) == [], moment
    assert moment > 20
    assert {old, "new"} <= seen


def test_terminated_process_cleans_up(out: Path) -> None:
    write(out, "old")
    child = os.fork()
    if child == 0:
        try:
            with terminate_as_interrupt(), BuildDir(out, {}):
                os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert state(out) == "old"
    assert neighbours(out) == []


def test_signal_handlers_come_back() -> None:
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"), terminate_as_interrupt():
        signal.raise_signal(signal.SIGTERM)
    reached = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        reached.append("end")
    assert reached == ["end"]
    after = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert after == before


def test_forked_child_does_not_clean_up_for_its_parent(out: Path) -> None:
    with BuildDir(out, {}) as folder:
        child = os.fork()
        if child == 0:
            gc.collect()
            os._exit(0)
        os.waitpid(child, 0)
        assert folder.exists()


# Two at once, locks, disks.


def test_second_build_of_the_same_directory_is_refused(out: Path) -> None:
    with BuildDir(out, {}) as folder:
        (folder / "first").write_text("x")
        with pytest.raises(FxloomError, match="another fxloom is writing"):
            write(out, "second")
        write(out.with_name("other"), "x")
    assert "first" in content(out)
    assert neighbours(out) == ["other"]


def test_without_locks_a_living_process_is_respected(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with BuildDir(out, {}), pytest.raises(FxloomError, match="another fxloom is writing"):
        write(out, "second")
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    out.with_name(f".build.fxloom-{child}-abc.new").mkdir()
    write(out, "third")
    assert neighbours(out) == []


def test_similar_names_of_others_are_not_cleared(out: Path) -> None:
    for name in (".build.fxloom-notes", ".build.fxloom-1-a.new.bak", ".build2.fxloom-1-a.new"):
        out.with_name(name).mkdir()
    before = neighbours(out)
    write(out, "new")
    assert neighbours(out) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("place", ["block", "wrapped", "text", "manifest", "sync"])
def test_full_disk_is_explained(
    out: Path, monkeypatch: pytest.MonkeyPatch, number: int, place: str
) -> None:
    write(out, "old")
    full = OSError(number, os.strerror(number))

    def fail(*args: Any) -> None:
        raise full

    if place == "manifest":
        monkeypatch.setattr(builddir, "write_manifest", fail)
    if place == "sync":
        monkeypatch.setattr(os, "fsync", fail)
    explained = pytest.raises(FxloomError, match=r"build: the disk is full.*free some space")
    with explained, BuildDir(out, {}):
        if place == "block":
            raise full
        if place == "wrapped":
            raise RuntimeError("writer failed") from full
        if place == "text":
            raise RuntimeError(f"I/O error: {os.strerror(errno.ENOSPC)} (os error 28)")
    monkeypatch.undo()
    assert state(out) == "old"
    assert neighbours(out) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs permission to mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_really_full_disk_leaves_the_old_build(small_disk: Path) -> None:
    out = small_disk / "build"
    write(out, "old")
    before = content(small_disk)
    with pytest.raises(FxloomError, match="the disk is full"):
        write(out, "x" * 100_000)
    assert content(small_disk) == before
    assert state(out) == "old"


def test_missing_permission_is_explained(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "mkdir", forbidden)
    with pytest.raises(FxloomError, match="required permission to write in"):
        write(out, "new")
    monkeypatch.undo()
    assert neighbours(out) == []


def test_really_forbidden_parent_is_explained(out: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    out.parent.chmod(0o555)
    try:
        with pytest.raises(FxloomError, match="required permission to write in"):
            write(out, "new")
    finally:
        out.parent.chmod(0o755)


def test_links_and_pipes_cannot_be_in_a_build(out: Path) -> None:
    with pytest.raises(FxloomError, match="l: only files and folders"), BuildDir(out, {}) as folder:
        (folder / "l").symlink_to("/etc/passwd")
    with pytest.raises(FxloomError, match="p: only files and folders"), BuildDir(out, {}) as folder:
        os.mkfifo(folder / "p")
    assert state(out) is None


# Reading a manifest.


def edited(out: Path, **changes: Any) -> None:
    file = out / "fxloom.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_absent_or_foreign_directories_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FxloomError, match="no such directory"):
        read_manifest(tmp_path / "none")
    with pytest.raises(FxloomError, match=r"it has no fxloom\.json"):
        read_manifest(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(FxloomError, match="is not a directory"):
        read_manifest(tmp_path / "file")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format": "other"}, "is not a manifest of fxloom"),
        ({"version": 2}, "made by a newer fxloom: required format version 1 or less, got 2"),
        ({"version": "1"}, "required a version number, got '1'"),
        ({"version": True}, "required a version number"),
        ({"files": None}, "required files as a list"),
        ({"files": [{"path": "../x", "sha256": "", "size": 0}]}, "required files as a list"),
        ({"files": [{"path": "/x", "sha256": "", "size": 0}]}, "required files as a list"),
        ({"files": [{"path": "x", "sha256": ""}]}, "required files as a list"),
        ({"files": [3]}, "required files as a list"),
    ],
)
def test_damaged_manifest_is_explained(out: Path, changes: dict[str, Any], expected: str) -> None:
    write(out, "x")
    edited(out, **changes)
    with pytest.raises(FxloomError, match=expected):
        read_manifest(out)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_manifest_that_is_no_json_is_explained(out: Path, text: bytes) -> None:
    write(out, "x")
    (out / "fxloom.json").write_bytes(text)
    with pytest.raises(FxloomError, match=r"fxloom\.json: (damaged|is not a manifest)"):
        read_manifest(out)


def test_all_damaged_files_are_named(out: Path) -> None:
    write(out, "text")
    (out / "unlisted").write_text("results of a tool")
    read_manifest(out, verify_files=True)
    (out / "sub" / "a.txt").write_text("tEXT")
    (out / "run.sh").unlink()
    read_manifest(out)
    with pytest.raises(FxloomError) as caught:
        read_manifest(out, verify_files=True)
    assert "run.sh: missing" in str(caught.value)
    assert "sub/a.txt: required SHA-256" in str(caught.value)
    (out / "sub" / "a.txt").write_text("longer than before")
    with pytest.raises(FxloomError, match=r"sub/a\.txt: required 4 bytes, got 18"):
        read_manifest(out, verify_files=True)
