"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparseflow_trt import _files
from sparseflow_trt._files import (
    alone_in,
    check_file,
    check_folder,
    check_folder_of_files,
    put_in_place,
    sha256_of,
    temporary_folder,
    write_atomically,
    written_atomically,
)
from sparseflow_trt.errors import ArtifactError


def _dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_hash_is_of_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "_CHUNK", 7)
    (tmp_path / "f").write_bytes(bytes(range(100)))
    assert sha256_of(tmp_path / "f") == hashlib.sha256(bytes(range(100))).hexdigest()


@pytest.mark.parametrize("data", ["größe\n", b"\x00\xff"])
def test_a_file_is_written(tmp_path: Path, data: bytes | str) -> None:
    path = tmp_path / "f"
    for _ in range(2):
        write_atomically(path, data)
        assert path.read_bytes() == (data if isinstance(data, bytes) else data.encode())
    assert [f.name for f in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "f", "text")
        with temporary_folder(tmp_path / "d") as folder:
            put_in_place(folder, tmp_path / "d")
    finally:
        assert os.umask(before) == umask  # nothing changed it for good
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o777 & ~umask


def test_the_umask_is_never_changed_where_another_thread_would_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads that each set it for a moment may leave it at 0: anybody could write what comes next."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail(f"the umask was set to {mask:o}"))
    write_atomically(tmp_path / "f", "text")
    with temporary_folder(tmp_path / "d") as folder:
        put_in_place(folder, tmp_path / "d")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(error), written_atomically(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["f"]


def test_a_reader_sees_the_old_file_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    with written_atomically(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def _refused(path: Path) -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        write_atomically(path, "text")
    assert caught.value.hint
    assert caught.value.message.startswith(f"{path} cannot be written: ")
    return caught.value


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    missing = _refused(tmp_path / "none" / "f")
    assert missing.message.endswith(f": the folder {tmp_path / 'none'} does not exist.")
    assert missing.hint == "Make it first, or choose another place."
    assert "Not a directory" in _refused(tmp_path / "file" / "f").message
    assert "Is a directory" in _refused(tmp_path / "folder").message
    assert "File name too long" in _refused(tmp_path / ("n" * 255)).message
    assert sorted(f.name for f in tmp_path.iterdir()) == ["file", "folder"]
    with pytest.raises(ArtifactError, match="cannot be written"), temporary_folder(tmp_path / "none" / "d"):
        pass


def test_what_cannot_be_written_is_said_before_as_after(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "none" / "f", tmp_path / "file" / "f", tmp_path / "folder", Path("/proc/f"),
                 tmp_path / ("n" * 255)):  # fmt: skip
        with pytest.raises(ArtifactError) as caught:
            check_file(path)
        assert caught.value.message == _refused(path).message
    for path in (tmp_path / "none" / "d", tmp_path / "file" / "d", tmp_path / "file", Path("/proc/d")):
        with pytest.raises(ArtifactError) as caught:
            check_folder(path)
        with pytest.raises(ArtifactError) as later, temporary_folder(path):
            pass
        assert caught.value.message == later.value.message
    check_file(tmp_path / "file")
    check_file(tmp_path / "new")
    check_folder(tmp_path / "folder")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["file", "folder"]


def test_a_pipe_or_a_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """As root a rename would do it: no machine has a /dev/null after that."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")  # as /dev/stdout is one, even to a file
    for name in ("pipe", "link", "stdout"):
        said = f"{tmp_path / name} cannot be written: it is a device or a pipe, and no file."
        assert _refused(tmp_path / name).message == said
        with pytest.raises(ArtifactError, match="it is a device or a pipe"):
            check_file(tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(f.name for f in tmp_path.iterdir()) == ["link", "pipe", "stdout"]


def test_what_a_link_names_is_written_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/file")
    for text in ("where nothing was", "over what was there"):
        check_file(tmp_path / "link")
        write_atomically(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "folder" / "file").read_text() == text
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["file"]
    (tmp_path / "lost").symlink_to("none/file")
    with pytest.raises(ArtifactError, match="none does not exist"):
        check_file(tmp_path / "lost")


def test_a_folder_that_is_to_have_files_is_tried_itself(tmp_path: Path) -> None:
    """It may be a volume, with a parent that nobody may write to."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    before = tmp_path.stat().st_mtime_ns
    check_folder_of_files(tmp_path / "folder")
    assert tmp_path.stat().st_mtime_ns == before, "nothing was made beside it"
    check_folder_of_files(tmp_path / "none" / "at" / "all")
    for path in (tmp_path / "file", tmp_path / "file" / "d" / "e"):
        with pytest.raises(ArtifactError, match="cannot be written: Not a directory"):
            check_folder_of_files(path)
    (tmp_path / "nowhere").symlink_to("none")
    with pytest.raises(ArtifactError, match="cannot be written: No such file"):
        check_folder_of_files(tmp_path / "nowhere")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["file", "folder", "nowhere"]
    assert not any((tmp_path / "folder").iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    assert "Permission denied" in _refused(tmp_path / "locked" / "f").message
    with pytest.raises(ArtifactError, match="Permission denied"):
        check_folder_of_files(tmp_path / "locked" / "a" / "b")
    (tmp_path / "locked").chmod(0o755)
    (tmp_path / "locked" / "mine").mkdir()
    (tmp_path / "locked").chmod(0o555)
    check_folder_of_files(tmp_path / "locked" / "mine")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no small disk to fill: {error}")
    if mounted.returncode:
        pytest.skip(f"no small disk to fill: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    (small_disk / "f").write_text("old")
    with pytest.raises(ArtifactError, match="f cannot be written: No space left on device"):
        write_atomically(small_disk / "f", bytes(1 << 20))
    with (
        pytest.raises(ArtifactError, match="d cannot be written: No space left on device"),
        temporary_folder(small_disk / "d") as folder,
    ):
        (folder / "big").write_bytes(bytes(1 << 20))
    assert [f.name for f in small_disk.iterdir()] == ["f"]
    assert (small_disk / "f").read_text() == "old"


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    here = _files._machine()
    dead, alive = f"{here}-{_dead_pid()}", f"{here}-{os.getpid()}"
    for name in (f".a[1].writing-{dead}-abc", f".a[1].building-{dead}-abc"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / f".a[1].writing-{dead}-file").touch()
    kept = [
        f".a[1].writing-{alive}-abc",
        f".b.writing-{dead}-abc",
        ".a[1].writing-",
        f".a1.writing-{dead}-abc",
        f".a[1].writing-0123abcd-{_dead_pid()}-abc",  # of another machine that shares the disk
    ]
    for name in kept:
        (tmp_path / name).touch()
    write_atomically(tmp_path / "a[1]", "text")
    assert {f.name for f in tmp_path.iterdir()} == {*kept, "a[1]", f".a[1].building-{dead}-abc"}
    (tmp_path / "a[1]").unlink()
    with temporary_folder(tmp_path / "a[1]"):
        pass
    assert {f.name for f in tmp_path.iterdir()} == set(kept)


def test_a_build_on_another_machine_that_shares_the_disk_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as there, contextlib.ExitStack() as theirs:
        there.setattr(_files, "_machine", lambda: "0123abcd")
        there.setattr(os, "getpid", _dead_pid)  # a number that no process has here
        folder = theirs.enter_context(temporary_folder(tmp_path / "d"))
        (folder / "engine").write_text("half")
        there.undo()
        with temporary_folder(tmp_path / "d"):
            pass
        assert (folder / "engine").read_text() == "half"
    assert not any(tmp_path.iterdir())


# ---- folders


def _fill(folder: Path, text: str) -> None:
    (folder / "file").write_text(text)


def _swap(target: Path, text: str) -> None:
    with temporary_folder(target) as folder:
        _fill(folder, text)
        put_in_place(folder, target)


def test_a_folder_is_put_in_place_and_exchanged(tmp_path: Path) -> None:
    target = tmp_path / "d"
    _swap(target, "one")
    _swap(target, "two")
    assert (target / "file").read_text() == "two"
    assert [f.name for f in tmp_path.iterdir()] == ["d"]


def test_a_file_system_that_cannot_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    target = tmp_path / "d"
    _swap(target, "one")
    _swap(target, "two")
    assert (target / "file").read_text() == "two"
    assert [f.name for f in tmp_path.iterdir()] == ["d"]


def test_an_exchange_that_fails_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    target = tmp_path / "d"
    _swap(target, "one")
    with pytest.raises(ArtifactError, match="cannot be written"), temporary_folder(target) as folder:
        put_in_place(folder / "none", target)
    with pytest.raises(ArtifactError, match="cannot be written"), temporary_folder(target) as folder:
        rename = Path.rename
        monkeypatch.setattr(Path, "rename", lambda old, new: rename(old if old != folder else old / "x", new))
        put_in_place(folder, target)
    assert (target / "file").read_text() == "one"
    assert [f.name for f in tmp_path.iterdir()] == ["d"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "d"
    _swap(target, "old")
    with pytest.raises(error), temporary_folder(target) as folder:
        _fill(folder, "half")
        raise error
    assert (target / "file").read_text() == "old"
    assert [f.name for f in tmp_path.iterdir()] == ["d"]


def test_an_error_that_is_not_the_disks_stays_itself(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), temporary_folder(tmp_path / "d"):
        (tmp_path / "somewhere else").read_text()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("precious")
    with (
        pytest.raises(ArtifactError, match="is a file, not a folder"),
        temporary_folder(tmp_path / "model.onnx"),
    ):
        pass
    assert (tmp_path / "model.onnx").read_text() == "precious"


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    target = tmp_path / "link"
    target.symlink_to(tmp_path / "disk" / "real", target_is_directory=True)
    (tmp_path / "disk" / "real").mkdir()
    _swap(target, "one")
    _swap(target, "two")
    assert target.is_symlink()
    assert (tmp_path / "disk" / "real" / "file").read_text() == "two"
    assert [f.name for f in (tmp_path / "disk").iterdir()] == ["real"]
    assert [f.name for f in tmp_path.iterdir() if f.name.startswith(".")] == []


def test_a_dash_is_not_taken_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="- is not a file name here"):
        write_atomically(Path("-"), "text")
    with pytest.raises(ArtifactError, match="- is not a file name here"):
        check_folder(Path("-"))
    assert not list(tmp_path.iterdir())
    write_atomically(tmp_path / "-", "text")
    assert (tmp_path / "-").read_text() == "text"


# ---- one process at a time


def test_the_next_one_waits_until_the_folder_is_free(tmp_path: Path) -> None:
    """Also where the one before made the folder, and took it away again."""
    code = """
import sys, time
from pathlib import Path
from sparseflow_trt._files import alone_in
with alone_in(Path(sys.argv[1]) / "new" / "folder"):
    order = Path(sys.argv[1]) / "order"
    with order.open("a") as stream: stream.write("in ")
    time.sleep(0.3)
    with order.open("a") as stream: stream.write("out ")
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "order").read_text() == "in out " * 3
    assert [f.name for f in (tmp_path / "new").iterdir()] == []


def test_what_was_put_into_a_new_folder_stays(tmp_path: Path) -> None:
    with alone_in(tmp_path / "folder"):
        (tmp_path / "folder" / "file").touch()
    assert [f.name for f in (tmp_path / "folder").iterdir()] == ["file"]
    with pytest.raises(ArtifactError, match="file cannot be written"), alone_in(tmp_path / "folder" / "file"):
        pass


def test_a_disk_without_locks_is_used_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.EBADF, "as NFS says of folders")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with alone_in(tmp_path):
        (tmp_path / "file").touch()
