"""What a server is started on: its backends, complete, and models as links to their files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path


def stage_backends(installed: Path, stub: Path | None, folder: Path, extra: Mapping[str, str]) -> Path:
    """A folder of backends where the Python backend has its stub beside it.

    Copies, not links: Triton refuses a backend whose real path leaves the folder. It needs no more backends
    than these: each other one is linked, and found where it is.

    Args:
        installed: The server's folder of backends.
        stub: The Python backend's stub, where it does not lie beside the backend.
        folder: What is made.
        extra: Python-based backends to add: model.py's text by the backend's name.
    """
    for backend in installed.iterdir():
        if backend.name == "python":
            shutil.copytree(backend, folder / "python", symlinks=False)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / backend.name).symlink_to(backend)
    if stub:
        shutil.copy(stub, folder / "python")
    for name, text in extra.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()
        (folder / name / "model.py").write_text(text, encoding="utf-8")
    return folder


def stage_model(model: Path, target: Path) -> None:
    """Makes a folder like a model's in a repository, of links to its files as they are now.

    What Python or a backend writes beside a file, such as a model.py's bytecode, then lies in that folder.
    """
    ignored = shutil.ignore_patterns(".*", "__pycache__")
    shutil.copytree(model, target, copy_function=link_file, ignore=ignored)


def link_file(source: Path | str, target: Path | str) -> None:
    """Links to a file where it really is."""
    Path(target).symlink_to(Path(source).resolve())
