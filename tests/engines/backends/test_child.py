"""The child process of a build: that it cannot harm its parent, and never outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sparseflow_trt.engines.backends import child
from sparseflow_trt.engines.backends.tensorrt_rtx import TensorRtRtxBackend
from sparseflow_trt.engines.backends.wire import Outcome
from sparseflow_trt.engines.evidence.layer_evidence import LayerEvidence
from sparseflow_trt.engines.protocol import BuildRequest, Progress
from sparseflow_trt.errors import BuildError, NotInstalledError

SaveModel = Callable[..., Path]
MakeRequest = Callable[..., BuildRequest]


def children() -> list[int]:
    """The processes that this one started and that are not yet gone."""
    return [int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()]


@pytest.fixture
def request_for_tiny(save_model: SaveModel, make_request: MakeRequest) -> BuildRequest:
    return make_request(save_model(), 8)


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (signal.SIGSEGV, "the TensorRT-RTX builder crashed (SIGSEGV)"),
        (signal.SIGKILL, "the TensorRT-RTX builder was killed (SIGKILL), most likely because memory ran out"),
    ],
)
def test_a_crash_is_an_error_with_the_end_of_the_log(
    number: signal.Signals, says: str, request_for_tiny: BuildRequest, temporary_files_in: Path
) -> None:
    def crash(progress: Progress) -> None:
        if progress.step == "Building engine":
            (pid,) = children()
            os.kill(pid, number)

    with pytest.raises(BuildError) as caught:
        TensorRtRtxBackend().build(request_for_tiny, crash)

    assert says in caught.value.message
    assert "[VERBOSE]" in caught.value.message or "[INFO]" in caught.value.message
    (log,) = temporary_files_in.iterdir()
    assert str(log) in caught.value.hint
    assert children() == []


def test_a_child_that_ends_without_a_result_is_an_error(
    request_for_tiny: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "COMMAND", (sys.executable, "-c", "import sys; print('why'); sys.exit(3)"))

    with pytest.raises(BuildError) as caught:
        TensorRtRtxBackend().build(request_for_tiny, lambda progress: None)

    assert "ended with status 3 and no result" in caught.value.message
    assert caught.value.message.endswith("    why")


def test_what_a_child_said_before_it_was_asked_is_told(
    request_for_tiny: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(child._Child):
        def __init__(self, flavour: str) -> None:
            super().__init__(flavour)
            self._process.wait()

    monkeypatch.setattr(child, "_Child", Late)
    monkeypatch.setattr(child, "COMMAND", (sys.executable, "-c", "import sys; print('why'); sys.exit(3)"))
    with pytest.raises(BuildError, match=r"Its log ends with:\n    why"):
        TensorRtRtxBackend().build(request_for_tiny, lambda progress: None)


def test_what_crashes_after_the_engine_is_told_of_fails_no_build(
    request_for_tiny: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import atexit, os\n"
        "from sparseflow_trt.engines.backends.worker import main\n"
        "atexit.register(os.abort)\n"
        "main()\n"
    )
    monkeypatch.setattr(child, "COMMAND", (sys.executable, "-c", script))

    assert TensorRtRtxBackend().build(request_for_tiny, lambda progress: None).file.stat().st_size > 0


def test_the_child_does_not_wait_for_what_it_has_no_use_for() -> None:
    script = "import sys, sparseflow_trt.engines.backends.worker; print(*sys.modules)"
    loaded = subprocess.check_output((sys.executable, "-c", script), text=True).split()
    ours = {"sparseflow_trt.plans.plan", "sparseflow_trt.artifacts.manifest"}
    assert not {"numpy", "onnx", "onnx_ir", *ours} & set(loaded)


def test_a_library_that_is_missing_in_the_child_is_not_a_failed_build(
    request_for_tiny: BuildRequest, temporary_files_in: Path
) -> None:
    with pytest.raises(NotInstalledError):
        child.run_build("unknown", request_for_tiny, request_for_tiny.folder / "e", lambda progress: None)

    assert list(temporary_files_in.iterdir()) == []


def builder_of(request: BuildRequest, engine: str = "e") -> int:
    """Builds an engine, and gives the process that did."""
    seen: list[int] = []
    child.run_build("tensorrt-rtx", request, request.folder / engine, lambda _: seen.extend(children()))
    assert len(set(seen)) == 1
    return seen[0]


def test_builds_have_a_process_each(request_for_tiny: BuildRequest) -> None:
    assert builder_of(request_for_tiny) != builder_of(request_for_tiny)
    assert children() == []


@pytest.mark.parametrize("own", ["", "glibc.malloc.check=0"])
def test_a_child_has_large_pages_unless_the_user_says_otherwise(
    own: str, request_for_tiny: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if own:
        monkeypatch.setenv("GLIBC_TUNABLES", own)
    found = set()

    def look(progress: Progress) -> None:
        (pid,) = children()
        found.update(Path(f"/proc/{pid}/environ").read_text().split("\0"))

    TensorRtRtxBackend().build(request_for_tiny, look)

    assert f"GLIBC_TUNABLES={own or 'glibc.malloc.hugetlb=1'}" in found


def test_builds_may_share_a_process(request_for_tiny: BuildRequest, temporary_files_in: Path) -> None:
    with child.shared_child():
        first = builder_of(request_for_tiny)
        with child.shared_child():  # one within another ends with the outer one
            assert builder_of(request_for_tiny, "other") == first
        assert children() == [first]
        assert builder_of(request_for_tiny) == first
    assert children() == []
    assert list(temporary_files_in.iterdir()) == []
    sizes = {(request_for_tiny.folder / engine).stat().st_size for engine in ("e", "other")}
    assert len(sizes) == 1


def test_what_a_shared_process_says_of_a_build_is_of_that_build(
    save_model: SaveModel, make_request: MakeRequest
) -> None:
    def built(second: str) -> tuple[LayerEvidence, ...]:
        request = make_request(save_model(second=second), 8)
        return child.run_build("tensorrt-rtx", request, request.folder / "e", lambda _: None).layers

    operators = ("Relu", "Sigmoid", "Relu")
    with child.shared_child():
        shared = [built(second) for second in operators]
    assert shared == [built(second) for second in operators]
    assert shared[0] != shared[1]


def test_after_a_crash_the_next_build_has_a_new_process(
    request_for_tiny: BuildRequest, temporary_files_in: Path
) -> None:
    def crash(progress: Progress) -> None:
        os.kill(children()[0], signal.SIGSEGV)

    with child.shared_child():
        first = builder_of(request_for_tiny)
        with pytest.raises(BuildError, match="crashed"):
            child.run_build("tensorrt-rtx", request_for_tiny, request_for_tiny.folder / "e", crash)
        second = builder_of(request_for_tiny)
        os.kill(second, signal.SIGKILL)  # between two builds
        os.waitid(os.P_PID, second, os.WEXITED | os.WNOWAIT)  # until all of its threads are gone, too
        third = builder_of(request_for_tiny)
        assert len({first, second, third}) == 3
    assert children() == []
    (log,) = temporary_files_in.iterdir()
    assert log.suffix == ".log"


def test_a_build_stands_still_while_builders_are_stopped_and_none_begins(
    request_for_tiny: BuildRequest,
) -> None:
    looked_at = threading.Event()
    begun: list[str] = []

    def build(name: str) -> Outcome:
        def on_progress(progress: Progress) -> None:
            begun.append(name)
            assert looked_at.wait(60)

        return child.run_build("tensorrt-rtx", request_for_tiny, request_for_tiny.folder / name, on_progress)

    with ThreadPoolExecutor(2) as pool, child.shared_child():
        first = pool.submit(build, "first")
        wait_until(lambda: bool(begun))
        (builder,) = [one._process.pid for one in child._building]
        for _ in range(3):  # each time anew
            with child.builders_stopped():
                assert state_of(builder) == "T"
            wait_until(lambda: state_of(builder) != "T")
        with child.builders_stopped():
            second = pool.submit(build, "second")
            time.sleep(0.3)
            assert len(child._building) == 1
        looked_at.set()
        assert first.result().layers == second.result().layers
        assert not child._building
    assert set(begun) == {"first", "second"}
    assert not is_running(builder)


def test_a_build_that_is_abandoned_is_an_error_and_leaves_no_process(
    request_for_tiny: BuildRequest, temporary_files_in: Path
) -> None:
    begun: list[int] = []

    def on_progress(progress: Progress) -> None:
        begun.extend(one._process.pid for one in child._building)
        child.abandon_builds()

    with ThreadPoolExecutor(1) as pool:
        build = pool.submit(
            child.run_build, "tensorrt-rtx", request_for_tiny, request_for_tiny.folder / "e", on_progress
        )
        with pytest.raises(BuildError, match="was killed"):
            build.result()
    assert not any(is_running(pid) for pid in begun)
    assert not child._building
    with child.builders_stopped():  # nothing is left that could be stopped
        pass


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_ends_the_child(request_for_tiny: BuildRequest, temporary_files_in: Path) -> None:
    def interrupt(progress: Progress) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        TensorRtRtxBackend().build(request_for_tiny, interrupt)

    assert children() == []
    assert list(temporary_files_in.iterdir()) == []


def test_a_killed_parent_leaves_no_child(request_for_tiny: BuildRequest, temporary_files_in: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from sparseflow_trt.engines.protocol import BuildRequest\n"
        "from sparseflow_trt.engines.backends.tensorrt_rtx import TensorRtRtxBackend\n"
        "from sparseflow_trt.plans.plan import Plan\n"
        "def die(progress):\n"
        "    print(Path(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read_text(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "plan = Plan(precision='keep', policy='none', profiles=(), layers=())\n"
        "TensorRtRtxBackend().build(BuildRequest(Path(sys.argv[1]), plan, Path(sys.argv[2]), False), die)\n"
    )
    parent = subprocess.run(
        (sys.executable, "-c", script, str(request_for_tiny.model), str(request_for_tiny.folder)),
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary_files_in)},
    )
    orphan = int(parent.stdout.split()[0])

    assert parent.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while is_running(orphan) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(orphan)


def is_running(pid: int) -> bool:
    return state_of(pid) not in ("", "Z")


def state_of(pid: int) -> str:
    """The letter that Linux tells of a process's state, "" where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
