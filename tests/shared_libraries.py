"""Shared libraries that stand for the plugin's: real ones, with its name in them and nothing behind it."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from sparseflow_trt.model.target import PLUGIN_OP


def write_library(path: Path, says: str = PLUGIN_OP) -> Path:
    """Writes a shared library that holds a name as the plugin's does."""
    path.write_bytes(_compiled(f'const char* getPluginName(void) {{ return "{says}"; }}\n'))
    return path


@functools.cache
def _compiled(source: str) -> bytes:
    compiler = shutil.which("gcc") or shutil.which("g++")
    if compiler is None:
        pytest.skip("gcc is not installed")
    with tempfile.TemporaryDirectory() as name:
        written, library = Path(name) / "source.c", Path(name) / "library.so"
        written.write_text(source, encoding="utf-8")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, written], check=True)
        return library.read_bytes()
