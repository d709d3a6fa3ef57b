"""The plugin's C++ side of the packed format and of what an engine keeps, against the NumPy reference."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sparseflow_trt.model.packing import pack_2to4
from sparseflow_trt.model.pattern import prune_2to4
from tests.plugins.conftest import SOURCES, MakeOnce, compile_parts

Array = npt.NDArray[Any]
_HEADER = 34  # bytes before the values' length: mark, version, type, activation, n, k, dense_below_m


@dataclass(frozen=True)
class Tool:
    """The compiled format_tool, and a folder to work in."""

    program: Path
    folder: Path

    def __call__(self, *words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program, *map(str, words)], capture_output=True, text=True, check=False, cwd=self.folder
        )

    def write(
        self, weight: Array, bias: Array | None = None, activation: int = 0, dense_below_m: int = 0
    ) -> bytes:
        """The record of a weight, by way of the reference's packing."""
        packed = pack_2to4(weight)
        (self.folder / "values").write_bytes(packed.values.tobytes())
        (self.folder / "indices").write_bytes(packed.indices.tobytes())
        (self.folder / "bias").write_bytes(b"" if bias is None else bias.tobytes())
        files = ("values", "indices", "bias", "record")
        done = self("write", *weight.shape, 0, activation, *files, dense_below_m)
        assert done.returncode == 0, done.stderr
        return (self.folder / "record").read_bytes()

    def refusals(self, records: Sequence[bytes]) -> list[str]:
        """What is said of each record; "" of one that is taken."""
        names = [f"given.{i}" for i in range(len(records))]
        for name, record in zip(names, records, strict=True):
            (self.folder / name).write_bytes(record)
        done = self("try", *names)
        assert done.returncode == 0, done.stderr  # not a crash, nor a sanitizer's report
        said = done.stdout.splitlines()
        assert len(said) == len(records)
        return said

    def refusal(self, record: bytes) -> str:
        """What is said of one record."""
        return self.refusals([record])[0]


@pytest.fixture(scope="session")
def program(made_once: MakeOnce, record_parts: Path) -> Path:
    """format_tool, with the sanitizers that find reads past the end."""

    def make(made: Path) -> None:
        compile_parts(made, [SOURCES / "format_tool.cpp", *record_parts.glob("*.o"), "-o", "format_tool"])

    return made_once("format", make) / "format_tool"


@pytest.fixture
def tool(program: Path, tmp_path: Path) -> Tool:
    """format_tool in a fresh folder."""
    return Tool(program, tmp_path)


def _weight(n: int = 48, k: int = 32) -> Array:
    values = np.random.default_rng(n * k).standard_normal((n, k)).astype(np.float16)
    values[::3] *= np.random.default_rng(1).random((len(values[::3]), k)) > 0.8  # groups with one and none
    return prune_2to4(values, 1)


@pytest.mark.parametrize(("n", "k"), [(16, 16), (48, 32), (16, 4096), (1040, 64)])
def test_expands_what_the_reference_packs(tool: Tool, n: int, k: int) -> None:
    weight = _weight(n, k)
    tool.write(weight)
    done = tool("expand", "record", "dense")
    assert done.returncode == 0, done.stderr
    dense = np.fromfile(tool.folder / "dense", np.float16).reshape(n, k)
    assert np.array_equal(dense, weight)


def test_a_record_is_read_and_written_again(tool: Tool) -> None:
    record = tool.write(_weight(), np.arange(48, dtype=np.float16), activation=1, dense_below_m=64)
    assert tool.refusal(record) == ""
    assert tool("copy", "record", "copied").returncode == 0
    assert (tool.folder / "copied").read_bytes() == record


def test_a_record_takes_nine_sixteenths(tool: Tool) -> None:
    weight = _weight(64, 1024)
    assert 0 <= len(tool.write(weight)) - weight.nbytes * 9 // 16 < 512


def test_every_shorter_record_is_refused(tool: Tool) -> None:
    record = tool.write(_weight(16, 16), np.zeros(16, np.float16))
    assert all(tool.refusals([record[:length] for length in range(len(record))]))


def test_a_longer_record_is_refused(tool: Tool) -> None:
    assert "1 bytes stand behind its end" in tool.refusal(tool.write(_weight()) + b"\0")


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (0, b"XXXX", "is not a layer of SparseFlowLinear24"),
        (4, b"\1\0\0\0", "it is of version 1"),
        (8, b"\2", "its type is 2"),
        (9, b"\2", "its activation is 2"),
        (10, (49).to_bytes(8, "little"), "multiples of 16"),
        (10, (64).to_bytes(8, "little"), "comes with"),
        (10, (-48).to_bytes(8, "little", signed=True), "multiples of 16"),
        (10, (1 << 62).to_bytes(8, "little"), "multiples of 16"),
        (18, (1 << 30).to_bytes(8, "little"), "comes with"),
        (26, (-1).to_bytes(8, "little", signed=True), "dense_below_m is -1"),
        (26, (1 << 60).to_bytes(8, "little"), "which is no number of rows"),
        (_HEADER, (1 << 63).to_bytes(8, "little"), "the length of its values is wrong"),
        (_HEADER, ((1 << 64) - 2).to_bytes(8, "little"), "the length of its values is wrong"),
        (_HEADER, (1535).to_bytes(8, "little"), "the length of its values is wrong"),
        (_HEADER, (0).to_bytes(8, "little"), ""),
    ],
)
def test_wrong_fields_are_refused(tool: Tool, at: int, new: bytes, message: str) -> None:
    record = tool.write(_weight())
    said = tool.refusal(record[:at] + new + record[at + len(new) :])
    assert said
    assert message in said


def test_indices_out_of_order_are_refused(tool: Tool) -> None:
    weight = _weight()
    record = tool.write(weight)
    at = _HEADER + 8 + weight.nbytes // 2 + 8  # the first byte of the indices
    for nibble in (0b0000, 0b0101, 0b0100 >> 2, 0b1111):
        assert "not in rising order" in tool.refusal(
            record[:at] + bytes([record[at] & 0xF0 | nibble]) + record[at + 1 :]
        )


# Behind the indices: the bias, which is empty, the GPU's name, two versions, how many choices, the first's m.
_FIRST_CHOICE = 8 + 0 + 8 + len("some GPU sm90") + 4 + 4 + 8 + 8


@pytest.mark.parametrize(
    ("at", "new", "message"),
    [
        (0, -1, "algorithm -1 with"),
        (0, 256, "algorithm 256 with"),
        (0, 1 << 30, "algorithm 1073741824 with"),
        (4, -7, "K split in -7"),
        (4, 0, "K split in 0"),
        (4, 65, "K split in 65"),
        (4, 1, "K split in 1, mode 1"),
        (8, 0, "mode 0"),
        (8, 3, "mode 3"),
        (12, -1, "buffers -1"),
        (12, 65, "buffers 65"),
        (24, -1, "a time that is none"),  # NaN
        (24, 0x7F800000, "a time that is none"),  # infinite
        (0, 255, ""),
        (4, 4, ""),
    ],
)
def test_algorithms_that_cannot_be_are_refused(tool: Tool, at: int, new: int, message: str) -> None:
    weight = _weight()
    record = tool.write(weight)
    start = _HEADER + 8 + weight.nbytes // 2 + 8 + weight.size // 8 + _FIRST_CHOICE
    assert record[start : start + 16] == np.array([1, 2, 1, 1], np.int32).tobytes()
    damage = np.array([new], np.int64).astype(np.int32).tobytes()
    said = tool.refusal(record[: start + at] + damage + record[start + at + 4 :])
    assert bool(said) == bool(message)
    assert message in said


def test_random_damage_is_survived(tool: Tool) -> None:
    record = tool.write(_weight(16, 16), np.zeros(16, np.float16))
    rng = np.random.default_rng(0)
    records = []
    for _ in range(500):
        damaged = bytearray(record)
        for at in rng.integers(0, len(record), rng.integers(1, 6)):
            damaged[at] = int(rng.integers(0, 256))
        records.append(bytes(damaged[: rng.integers(len(record) // 2, 2 * len(record))]))
    assert any(tool.refusals(records))


def test_rows_to_measure_cover_the_range(tool: Tool) -> None:
    def rows(low: int, high: int) -> list[int]:
        return [int(word) for word in tool("rows", low, high).stdout.split()]

    assert rows(1, 1) == [8]
    assert rows(64, 64) == [64]
    assert rows(16, 300) == [16, 32, 64, 128, 256, 304]
    assert rows(300, 500) == [512 - 8]  # copied
    assert rows(600, 700) == [8, 700 + 4]
    assert rows(600, 600) == [600]
    # More sizes than a context plans one by one: what is left of a multiple of 256 is measured, too.
    assert rows(1000, 2000) == [8, 16, 32, 64, 128, 256, 1024, 1536, 2000]
    for low, high in ((1, 8192), (100, 2000), (1001, 1001), (7, 9)):
        made = rows(low, high)
        assert made == sorted(set(made))
        assert all(m % 8 == 0 for m in made)
        assert made[-1] == -(-high // 8) * 8


def test_dense_rows_to_measure_are_any_number(tool: Tool) -> None:
    def rows(low: int, high: int) -> list[int]:
        return [int(word) for word in tool("dense_rows", low, high).stdout.split()]

    assert rows(1, 1) == [1]
    assert rows(1, 31) == [1, 2, 4, 8, 16, 31]
    assert rows(5, 63) == [8, 16, 32, 63]


def test_no_more_rows_are_measured_than_matter(tool: Tool) -> None:
    assert int(tool("rows", 1, 1 << 20).stdout.split()[-1]) == 16384


def test_rows_are_split_where_they_are_no_multiple_of_eight(tool: Tool) -> None:
    for m in (1, 7, 8, 9, 255, 256, 257, 511, 512, 513, 1000, 1001, 8191):
        whole, tail, copied = map(int, tool("split", m).stdout.split())
        if m % 8 == 0:
            assert (whole, tail, copied) == (m, 0, 0)
        elif m < 512:
            assert (whole, tail, copied) == (0, 0, m)
        else:  # the last eight end where the rows end, and begin before the others do
            assert (whole, tail, copied) == (m - m % 8, 8, 0)
