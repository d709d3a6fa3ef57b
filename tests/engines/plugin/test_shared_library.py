"""Whether a file is a whole shared library with a text in it, on libraries that are compiled here."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sparseflow_trt.engines.plugin.shared_library import why_no_library
from tests.shared_libraries import write_library


def test_a_library_that_holds_the_name(tmp_path: Path) -> None:
    library = write_library(tmp_path / "lib.so", "Word")
    assert why_no_library(library) == ""
    assert why_no_library(library, "Word") == ""
    assert why_no_library(library, "Wor") == "it holds no Wor"  # not the whole text
    assert why_no_library(library, "ord") == ""  # a linker may share the ends of two
    library.write_bytes(library.read_bytes() + b"signed")
    assert why_no_library(library, "Word") == ""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda _: b"", "it is empty"),
        (lambda _: b"INPUT(libother.so)\n", "it is not an ELF file"),
        (lambda whole: whole[:5], "it is cut off after 5 bytes"),
        (lambda whole: whole[:64], "it is cut off after 64 of "),
        (lambda whole: whole[:-1], "it is cut off after "),
        (lambda whole: whole[:4] + b"\1" + whole[5:], "but not a 64-bit shared library"),
    ],
    ids=["empty", "script", "header", "rest", "last byte", "32 bits"],
)
def test_what_is_none(tmp_path: Path, change: Callable[[bytes], bytes], says: str) -> None:
    library = write_library(tmp_path / "lib.so", "Word")
    library.write_bytes(change(library.read_bytes()))
    assert says in why_no_library(library, "Word")
    assert says in why_no_library(library)


def test_an_object_file_is_none(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not installed")
    (tmp_path / "p.c").write_text('const char* word = "Word";\n')
    subprocess.run([compiler, "-c", "-o", tmp_path / "lib.so", tmp_path / "p.c"], check=True)
    assert why_no_library(tmp_path / "lib.so", "Word") == "it is an ELF file, but not a 64-bit shared library"


def test_a_folder_cannot_be_read(tmp_path: Path) -> None:
    assert why_no_library(tmp_path) == "it cannot be read (Is a directory)"
