"""Files that are written whole or not at all, and their hashes."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sparseflow_trt.errors import ArtifactError

_CHUNK = 8 << 20
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes | str) -> None:
    """Writes a file under a temporary name beside it and renames it into place.

    Raises:
        ArtifactError: The folder does not exist, is not writable, or the disk is full.
    """
    with written_atomically(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def check_file(path: Path) -> None:
    """Finds out before long work what `written_atomically` would say after it.

    Raises:
        ArtifactError: The folder does not exist or is not writable, or a folder, a device or a pipe stands
            there.
    """
    _temporary_file(_behind_link(path)).unlink()


def check_folder(target: Path) -> None:
    """Finds out before long work what `temporary_folder` would say after it.

    Raises:
        ArtifactError: The parent does not exist or is not writable, or a file stands there.
    """
    with temporary_folder(target):
        pass


def check_folder_of_files(folder: Path) -> None:
    """Finds out before long work whether files can be added to a folder, made with its parents if need be.

    Unlike `check_folder` this needs no right to write beside a folder that is there.

    Raises:
        ArtifactError: It, or the nearest parent that there is, is not writable or is a file.
    """
    there = folder
    while not os.path.lexists(there):
        there = there.parent
    with _disk_errors(folder), tempfile.TemporaryFile(dir=there):
        pass


@contextlib.contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; renames it to `path` when the block ends well.

    Where `path` is a link, it stays, and what it names is written.

    Raises:
        ArtifactError: The folder does not exist, is not writable, or the disk is full; or a folder, a device
            or a pipe stands there.
    """
    path = _behind_link(path)
    _remove_leftovers(path, "writing")
    temporary = _temporary_file(path)
    try:
        with _disk_errors(path):
            yield temporary
            _flush(temporary)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Gives an empty folder beside `target`, removed when the block ends unless it was put in place.

    Leftovers of processes that were killed on this machine are removed first.

    Raises:
        ArtifactError: The parent does not exist or is not writable, a file stands there, or the disk
            is full.
    """
    _check_name(target)
    if target.is_symlink():
        target = target.resolve()  # the link stays and what it names is exchanged
    if target.exists() and not target.is_dir():
        raise ArtifactError(f"{target} is a file, not a folder.", "Choose another place.")
    _remove_leftovers(target, "building")
    with _disk_errors(target):
        temporary = Path(tempfile.mkdtemp(prefix=_prefix(target, "building"), dir=target.parent))
    try:
        with _disk_errors(target, only=_FULL):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_in_place(new: Path, target: Path) -> None:
    """Renames a folder to `target`. A folder that stood there is exchanged in one step (renameat2).

    A killed process leaves either the old one or the new one whole. After the exchange the old one has
    the new one's temporary name, and goes with it.

    Raises:
        ArtifactError: It cannot be renamed.
    """
    if target.is_symlink():
        target = target.resolve()
    with _disk_errors(target):
        new.chmod(0o777 & ~_umask())
        if not target.exists():
            new.rename(target)
        else:
            _exchange(new, target)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lets one process at a time change what a folder holds; the next one waits here until it is done.

    The folder is made where it is missing, and goes again if nothing was put into it. The lock is the
    folder's own, so that no file stays; on a file system that has none for folders (NFS) nobody waits.

    Raises:
        ArtifactError: The folder cannot be made or read, or a file stands there.
    """
    with _disk_errors(folder):
        handle, made = _lock(folder)
    try:
        yield
    finally:
        if made:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()
        os.close(handle)


def _lock(folder: Path) -> tuple[int, bool]:
    """The folder, opened and locked where it can be, and whether it was made for that.

    Whoever had the lock may have removed it meanwhile: then it is made anew.
    """
    while True:
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            if folder.is_dir() and os.path.samestat(os.fstat(handle), folder.stat()):
                return handle, made
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _behind_link(path: Path) -> Path:
    """What a link to a file names: it may not be there yet."""
    return path.resolve() if path.is_symlink() and not _is_special(path) else path


def _temporary_file(path: Path) -> Path:
    with _disk_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if _is_special(path):
            raise ArtifactError(
                f"{path} cannot be written: it is a device or a pipe, and no file.",
                "Name a file: it is written whole or not at all.",
            )
        _check_name(path)
        handle, name = tempfile.mkstemp(prefix=_prefix(path, "writing"), dir=path.parent)
        os.close(handle)
    return Path(name)


def _check_name(path: Path) -> None:
    if str(path) == "-":  # standard output, to many commands
        raise ArtifactError(
            "- is not a file name here.", "Name a place: nothing is written to standard output."
        )


def _is_special(path: Path) -> bool:
    """Whether no file may take its place: of a device, a pipe, or /dev/stdout, which is a link to /proc."""
    if path.is_symlink() and path.readlink().parts[:2] == ("/", "proc"):
        return True
    return path.exists() and not path.is_file()


def _exchange(new: Path, target: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    renameat2 = getattr(libc, "renameat2", None)
    names = (_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(target))
    if renameat2 is not None and renameat2(*names, _RENAME_EXCHANGE) == 0:
        return
    old = target.with_name(f".{target.name}.old-{os.getpid()}")  # a file system that cannot exchange
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old)


def _prefix(target: Path, doing: str) -> str:
    return f".{target.name}.{doing}-{_machine()}-{os.getpid()}-"


@functools.cache
def _machine() -> str:
    """Where process numbers mean the same as here, in eight letters: a machine, or a container of it."""
    numbers = ""
    with contextlib.suppress(OSError):
        numbers = str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(f"{os.uname().nodename} {numbers}".encode()).hexdigest()[:8]


def _remove_leftovers(target: Path, doing: str) -> None:
    """Removes the temporary files or folders of processes that were killed over the same target.

    Those of another machine that shares the disk stay: whether its processes live cannot be told here.
    """
    ours = re.compile(rf"{re.escape(f'.{target.name}.{doing}-{_machine()}-')}(\d+)-[^-]*")
    with contextlib.suppress(OSError):  # a parent that cannot be listed is reported when it is written to
        for entry in target.parent.iterdir():
            match = ours.fullmatch(entry.name)
            if match and not Path(f"/proc/{match[1]}").exists():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink(missing_ok=True)


@contextlib.contextmanager
def _disk_errors(path: Path, only: tuple[int, ...] = ()) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None or (only and error.errno not in only):
            raise
        if isinstance(error, FileNotFoundError) and not path.parent.exists():
            raise ArtifactError(
                f"{path} cannot be written: the folder {path.parent} does not exist.",
                "Make it first, or choose another place.",
            ) from error
        do = "Free some space, or choose another place." if error.errno in _FULL else "Choose another place."
        raise ArtifactError(
            f"{path} cannot be written: {error.strerror}.", f"Nothing was changed there. {do}"
        ) from error


def _flush(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _umask() -> int:
    """The mask of this process, read without a change of it: other threads make files meanwhile."""
    with contextlib.suppress(OSError):
        told = re.search(r"^Umask:\s*([0-7]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
        if told:
            return int(told[1], 8)
    mask = os.umask(0)  # Linux before 4.7
    os.umask(mask)
    return mask
