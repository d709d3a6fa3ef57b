"""A timing cache is a hint: used where it is this machine's own, and never a reason to fail."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sparseflow_trt.engines.backends.child import run_build
from sparseflow_trt.engines.machine import hardware
from sparseflow_trt.engines.machine.hardware import Gpu, driver_of
from sparseflow_trt.engines.protocol import BuildRequest, EngineOptions
from sparseflow_trt.engines.tensorrt import timing_cache
from sparseflow_trt.engines.tensorrt.log import BuildLog
from sparseflow_trt.engines.tensorrt.timing_cache import (
    KEPT,
    Machine,
    TimingCache,
    caches_for,
    this_machine,
)

HERE = Machine(tensorrt="8.6.0", device="a GPU", driver="570.1")


class FakeCache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> memoryview:
        return memoryview(self.data)


class FakeConfig:
    """As much of an IBuilderConfig as a cache needs; it may refuse, return nothing, or log an error."""

    def __init__(self, log: BuildLog, fault: str = "") -> None:
        self.log = log
        self.fault = fault
        self.cache: FakeCache | None = None

    def create_timing_cache(self, data: bytes) -> FakeCache | None:
        if data and self.fault == "logs":
            self.log.record("ERROR", "Myelin error from unknown graph")
        return None if data and self.fault == "none" else FakeCache(data)

    def set_timing_cache(self, cache: FakeCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.data and self.fault == "refuses":
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> FakeCache | None:
        return self.cache


def build(path: Path, machine: Machine = HERE, adds: bytes = b"", fault: str = "") -> tuple[bytes, str, str]:
    """A build that measures `adds`; returns what it had been given, and both notes."""
    log = BuildLog(io.StringIO())
    config = FakeConfig(log, fault)
    cache = TimingCache(path, machine)
    loaded = cache.load(config, log)
    assert config.cache is not None, "there is always one to add to"
    given = config.cache.data
    config.cache.data += adds
    return given, loaded, cache.save(config)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "my.cache"


def test_what_one_build_measures_the_next_one_has(path: Path) -> None:
    assert build(path, adds=b"one\n") == (b"", "", "")
    assert build(path, adds=b"two") == (b"one\n", "", "")
    assert build(path) == (b"one\ntwo", "", "")
    assert [file.name for file in path.parent.iterdir() if file.is_file()] == ["my.cache"]


@pytest.mark.parametrize("other", [{"tensorrt": "10.0"}, {"device": "its GPU"}, {"driver": "550"}])
def test_a_cache_of_another_machine_is_not_loaded_and_is_replaced(path: Path, other: dict[str, str]) -> None:
    there = HERE.model_copy(update=other)
    build(path, there, b"theirs")
    given, why, _ = build(path, adds=b"ours")
    assert given == b""
    assert why == f"The timing cache my.cache was not used: it is of {there}; this is {HERE}. It is replaced."
    assert build(path)[0] == b"ours"


@pytest.mark.parametrize("content", [b"", b"raw bytes of trtexec", b'{"machine": {}}\nmore', b"\xff" * 9999])
def test_a_file_of_somebody_else_is_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    given, why, saved = build(path, adds=b"ours")
    assert (given, saved) == (b"", "")
    assert why == (
        "The timing cache my.cache was not used: sparseflow-trt did not write it. It is left as it is."
    )
    assert path.read_bytes() == content


def test_a_damaged_file_is_replaced(path: Path) -> None:
    build(path, adds=b"measured")
    path.write_bytes(path.read_bytes()[:-1])
    given, why, _ = build(path, adds=b"again")
    assert (given, "its bytes are not those that were written" in why) == (b"", True)
    assert build(path) == (b"again", "", "")


@pytest.mark.parametrize(
    ("fault", "says"),
    [("none", "it does not say why."), ("refuses", "it does not say why."), ("logs", "from unknown graph.")],
)
def test_what_tensorrt_refuses_is_a_note(path: Path, fault: str, says: str) -> None:
    build(path, adds=b"measured")
    given, why, saved = build(path, adds=b"again", fault=fault)
    assert (given, saved) == (b"", "")
    assert why.startswith("The timing cache my.cache was not used: TensorRT refuses it: ")
    assert why.endswith(says)
    assert build(path)[0] == b"again"


def test_a_place_that_cannot_be_read_or_written_is_a_note(tmp_path: Path) -> None:
    _, why, saved = build(tmp_path)
    assert why.endswith("was not used: it cannot be read: Is a directory.")
    assert saved.startswith("The timing cache was not saved: ")
    _, why, saved = build(tmp_path / "no" / "cache")
    assert (why, f"the folder {tmp_path / 'no'} does not exist" in saved) == ("", True)


def test_the_key_is_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpu = Gpu("a GPU", "9.0", 1 << 30, 132, sparse_tensor_cores=True, driver_version="12.8")
    monkeypatch.setattr(timing_cache, "find_gpus", lambda: (gpu,))
    monkeypatch.setattr(hardware, "_DRIVER", tmp_path / "version")
    said = ["", "580.1"]  # of NVML, which is asked where Linux hides it
    monkeypatch.setattr(hardware, "_driver_of_nvml", lambda: said.pop(0))
    assert str(this_machine("8.6.0")) == "TensorRT 8.6.0 on a GPU with driver for CUDA 12.8"
    assert this_machine("8.6.0").driver == "580.1"
    (tmp_path / "version").write_text("570.1\n")
    assert this_machine("8.6.0") == HERE
    assert driver_of(gpu) == "570.1", "not the CUDA that it is for: an engine's device says the same"


def test_an_editable_cache_is_kept_with_the_engine(tmp_path: Path) -> None:
    def names(options: EngineOptions, editable: bool) -> tuple[str, list[str]]:
        start, saved = caches_for(options, tmp_path / "new" / "model.engine", HERE, editable)
        return str(start and start.path.relative_to(tmp_path)), [
            str(cache.path.relative_to(tmp_path)) for cache in saved
        ]

    kept, given, like = f"new/{KEPT}", tmp_path / "my.cache", tmp_path / "old"
    assert names(EngineOptions(), False) == ("None", [])
    assert names(EngineOptions(timing_cache=given), False) == ("my.cache", ["my.cache"])
    assert names(EngineOptions(like=like), False) == ("None", [])  # an algorithm selector's build has none
    assert names(EngineOptions(), True) == (kept, [kept])
    assert names(EngineOptions(timing_cache=given), True) == ("my.cache", ["my.cache", kept])
    assert names(EngineOptions(like=like), True) == (f"old/{KEPT}", [kept])


def test_a_cache_that_is_asked_for_has_to_be_there(tmp_path: Path) -> None:
    log = BuildLog(io.StringIO())
    cache, _ = caches_for(EngineOptions(like=tmp_path), tmp_path / "n" / "e", HERE, editable=True)
    assert cache is not None
    why = cache.load(FakeConfig(log), log)
    assert why == f"The timing cache {KEPT} was not used: it does not exist."


def test_a_real_build_writes_and_reads_it(
    save_model: Callable[..., Path],
    make_request: Callable[..., BuildRequest],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TensorRT-RTX has the whole interface, and nothing in its caches: its backend leaves them out."""
    monkeypatch.chdir(tmp_path)
    request = replace(make_request(save_model(), 8), options=EngineOptions(timing_cache=Path("my.cache")))

    def build_it() -> tuple[str, ...]:
        return run_build("tensorrt-rtx", request, request.folder / "e", lambda progress: None).notes

    assert build_it() == ()
    written = (tmp_path / "my.cache").read_bytes()
    assert written.startswith(b'{"kind":"sparseflow-trt timing cache","machine":{"tensorrt":"1.')
    # Without a GPU its interface logs an error of CUDA's, which is taken for a refusal.
    assert all("was not used: TensorRT refuses it: " in note for note in build_it())
    assert (tmp_path / "my.cache").read_bytes() == written
    (tmp_path / "my.cache").write_bytes(b"something else")
    assert build_it()[0].startswith(
        "The timing cache my.cache was not used: sparseflow-trt did not write it."
    )
