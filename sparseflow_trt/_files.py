"""Files that are written whole or not at all, and their hashes."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sparseflow_trt.errors import ArtifactError

_CHUNK = 8 << 20
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


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


@contextlib.contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; renames it to `path` when the block ends well.

    Raises:
        ArtifactError: The folder does not exist, is not writable, or the disk is full.
    """
    with _disk_errors(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        with _disk_errors(path):
            yield temporary
            _flush(temporary)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_written_atomically(target: Path) -> Iterator[Path]:
    """Gives an empty folder beside `target`; puts it in `target`'s place when the block ends well.

    A folder that stood there is exchanged in one step (renameat2) and then removed, so that a killed
    process leaves either the old one or the new one whole. Leftovers of killed processes are removed.

    Raises:
        ArtifactError: The parent does not exist or is not writable, or the disk is full.
    """
    _remove_leftovers(target)
    with _disk_errors(target):
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.building-{os.getpid()}-", dir=target.parent))
    try:
        with _disk_errors(target):
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            _put_in_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(new: Path, target: Path) -> None:
    if not target.exists():
        new.rename(target)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    renameat2 = getattr(libc, "renameat2", None)
    if renameat2 is not None and 0 == renameat2(
        _AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE
    ):
        return  # `new` is now the old folder; the caller removes it
    old = target.with_name(f".{target.name}.old-{os.getpid()}")  # a file system that cannot exchange
    target.rename(old)
    new.rename(target)
    shutil.rmtree(old)


def _remove_leftovers(target: Path) -> None:
    for folder in target.parent.glob(f".{target.name}.building-*"):
        pid = folder.name.rpartition("building-")[2].partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise ArtifactError(
            f"{path} cannot be written: {error.strerror}.",
            "Nothing was changed there. Free some space, or choose another place with --output.",
        ) from error


def _flush(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
