"""autotune on the command line: what it asks for, what it prints, and what it refuses."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sparseflow_trt.cli import autotune
from sparseflow_trt.engines.machine.hardware import find_gpus
from sparseflow_trt.engines.measuring.curves import Measured, Request
from sparseflow_trt.engines.measuring.journal import Identity, read_journal
from sparseflow_trt.engines.measuring.measurers import InTurn
from sparseflow_trt.policies.policy import Dtype, Library, Pair, Point, read_policy
from tests.shared_libraries import write_library

if TYPE_CHECKING:
    from tests.commands import Sparseflow

no_gpu = pytest.mark.skipif(bool(find_gpus()), reason="this machine has a GPU: tests/gpu measures on it")


class Fake:
    """Sparse is 1.5 times as fast from M=200 on; raises `error` after `most` answers."""

    def __init__(self, library: Library = "torch") -> None:
        self.library = library
        self.asked: list[Request] = []
        self.most = 10**6
        self.error: BaseException = AssertionError()

    def versions(self) -> dict[str, str]:
        return {self.library: "1.0"}

    def why_not(self, n: int, k: int, dtype: Dtype) -> str:
        return f"{k}→{n} is too narrow" if n < 64 else ""

    def measure(self, request: Request) -> Measured:
        if len(self.asked) >= self.most:
            raise self.error
        self.asked.append(request)
        curve = request.curve
        dense = Point(
            kind=curve.kind, n=curve.n, k=curve.k, m=request.m, dtype=curve.dtype, library=curve.library,
            kernel="dense", us=15.0,
        )  # fmt: skip
        sparse = dense.model_copy(update={"kernel": "sparse", "us": 10.0 if request.m >= 200 else 15.0})
        return Measured(request, Pair(dense, sparse), 0.0, "by a function")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Stands for the GPU: the rest of the command is as it is."""
    made = Fake()

    def identify(_: Any, dtypes: tuple[Dtype, ...]) -> Identity:
        return Identity(
            device="NVIDIA H200", compute_capability="9.0", libraries=made.versions(), dtypes=dtypes
        )

    @contextlib.contextmanager
    def crew(
        libraries: tuple[str, ...], use_ray: bool, plugin: Path | None, builders: int
    ) -> Iterator[InTurn]:
        assert (libraries, use_ray, builders) == ((), False, 1)
        yield InTurn([made], identify)

    monkeypatch.setattr(autotune, "make_crew", crew)
    return made


def test_presets_are_measured_into_a_policy_named_after_the_gpu(
    fake: Fake, sparseflow: Sparseflow, tmp_path: Path
) -> None:
    ended = sparseflow("autotune", "--preset", "bert-base", "--preset", "vit-b", "--m", "1,64,1024")
    assert (ended.code, ended.err) == (0, "")
    policy = read_policy(tmp_path / "h200.json")
    assert {(p.kind, p.n, p.k) for p in policy.points} == {
        ("qkv", 2304, 768),
        ("qkv", 768, 768),
        ("o", 768, 768),
        ("gate_up", 3072, 768),
        ("down", 768, 3072),
    }
    assert len({(r.curve.n, r.curve.k) for r in fake.asked}) == 4
    assert "--preset bert-base --preset vit-b --m 1,64,1024" in policy.source
    rows = [line.split() for line in ended.out.splitlines()]
    assert ["down", "torch", "FP16", "200", "any", "3072→768"] in rows
    assert ended.out.rstrip().endswith("policy: h200.json")


def test_json_says_all_of_it(fake: Fake, sparseflow: Sparseflow) -> None:
    ended = sparseflow(
        "autotune", "--preset", "llama-70b", "--tensor-parallel", 8, "--dtype", "fp16", "--dtype", "bf16",
        "--m", "16384,64", "-o", "p.json", "--name", "mine", "--json",
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    said = ended.json
    assert (said["policy"], said["name"], said["finished"], said["points_left"]) == (
        "p.json",
        "mine",
        True,
        0,
    )
    assert said["measured_now"] == len(fake.asked) == said["points"] // 2
    assert {r.curve.dtype for r in fake.asked} == {"FP16", "BF16"}
    assert {(c["low"], c["high"], c["sparse_wins"]) for c in said["crossovers"]} == {(192, 200, "above")}
    assert len(said["crossovers"]) == 14
    assert read_policy(Path("p.json")).name == "mine"


def test_layers_of_a_model_and_what_is_left_out(
    fake: Fake, sparseflow: Sparseflow, mlp: Callable[..., Path]
) -> None:
    ended = sparseflow("autotune", mlp(), "-o", "p.json", "--m", "1,1024", "--json")
    assert ended.code == 0
    assert {(r.curve.kind, r.curve.n, r.curve.k) for r in fake.asked} == {("gate_up", 128, 64)}
    assert ended.json["left_out"] == ["128→32 is too narrow"]


def test_an_interrupted_run_says_where_its_points_are_and_goes_on(
    fake: Fake, sparseflow: Sparseflow, tmp_path: Path
) -> None:
    fake.most, fake.error = 3, KeyboardInterrupt()
    command = ("autotune", "--preset", "tinyllama", "--m", "64,1024", "-o", "p.json")
    ended = sparseflow(*command)
    assert ended.code == 130
    assert "Measured points are kept in p.json.points.jsonl: the same command resumes." in ended.err
    assert len(read_journal(tmp_path / "p.json.points.jsonl").measured) == 3
    fake.most = 10**6
    assert sparseflow(*command).code == 0
    assert len(set(fake.asked)) == len(fake.asked)


def test_a_time_limit_is_said(fake: Fake, sparseflow: Sparseflow) -> None:
    command = ("autotune", "--preset", "tinyllama", "--m", "64,1024", "-o", "p.json")
    fake.most, fake.error = 3, KeyboardInterrupt()
    sparseflow(*command)
    fake.most = 10**6
    ended = sparseflow(*command, "--time-limit", 0)
    assert ended.code == 0
    assert "The time limit was reached: about 15 points are left and 1 crossovers are open." in ended.out
    assert {(p.n, p.m) for p in read_policy(Path("p.json")).points} == {(2560, 64), (2560, 1024)}
    assert len(fake.asked) == 3


def test_another_policys_points_are_put_beside(fake: Fake, sparseflow: Sparseflow) -> None:
    fake.library = "tensorrt"
    assert sparseflow("autotune", "--preset", "vit-b", "--m", "64,1024", "-o", "trt.json").code == 0
    fake.library = "torch"
    command = ("autotune", "--preset", "vit-b", "--m", "64,1024", "-o", "both.json", "--add", "trt.json")
    assert sparseflow(*command).code == 0
    policy = read_policy(Path("both.json"))
    assert {p.library for p in policy.points} == {"tensorrt", "torch"}
    assert policy.libraries == {"tensorrt": "1.0", "torch": "1.0"}


def test_a_policy_without_its_journal_is_gone_on_with_where_it_is_added(
    fake: Fake, sparseflow: Sparseflow
) -> None:
    fake.library = "tensorrt"
    begin = ("autotune", "--preset", "vit-b", "--m", "64,1024", "-o", "p.json")
    assert sparseflow(*begin).code == 0
    Path("p.json.points.jsonl").unlink()  # a colleague's file, say
    before = read_policy(Path("p.json"))
    fake.library = "torch"
    ended = sparseflow(*begin)
    assert ended.code == 1
    assert "its journal p.json.points.jsonl is missing" in ended.error
    assert "--add p.json" in ended.err
    assert sparseflow(*begin, "--add", "p.json").code == 0
    both = read_policy(Path("p.json"))
    assert set(before.points) < set(both.points)
    assert {p.library for p in both.points} == {"tensorrt", "torch"}
    asked = len(fake.asked)
    assert sparseflow(*begin, "--add", "p.json").code == 0
    assert (read_policy(Path("p.json")), len(fake.asked)) == (both, asked), "again nothing is to be done"
    ended = sparseflow(*begin)
    assert f"holds {len(before.points)} points that are not in its journal" in ended.error
    assert "they would be lost" in ended.error
    assert read_policy(Path("p.json")) == both


def test_another_gpus_points_are_refused_before_anything_is_measured(
    fake: Fake, sparseflow: Sparseflow
) -> None:
    ended = sparseflow("autotune", "--preset", "vit-b", "--m", "64", "-o", "p.json", "--add", "a100-80gb")
    assert ended.code == 1
    assert "not for NVIDIA H200 (9.0)" in ended.error
    assert not fake.asked
    assert not list(Path.cwd().glob("p.json*"))


def test_a_journal_of_other_types_is_refused(fake: Fake, sparseflow: Sparseflow) -> None:
    command = ("autotune", "--preset", "vit-b", "--m", "64", "-o", "p.json")
    assert sparseflow(*command).code == 0
    before = Path("p.json").read_text()
    assert (
        "holds measurements of dtypes FP16, and here it is BF16"
        in sparseflow(*command, "--dtype", "bf16").error
    )
    assert Path("p.json").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ((), 2, "give ONNX models, or --preset NAME"),
        (("--preset", "llama-9b"), 2, "'llama-9b' is not one of"),
        (("--preset", "vit-b", "--m", "1,x"), 2, "--m holds 'x'"),
        (("--preset", "vit-b", "--m", "0"), 2, "--m holds '0'"),
        (("--preset", "vit-b", "--m", 2**31), 2, "--m holds '2147483648'"),
        (("--preset", "vit-b", "--m", "1" * 5000), 2, f"--m holds '{'1' * 20}…'"),
        (("--preset", "vit-b", "--time-limit", "nan"), 2, "'nan' is not a number from 0 on"),
        (("--preset", "llama-8b", "--tensor-parallel", 3), 2, "attention heads 32 is no multiple"),
        (("whole.onnx", "--tensor-parallel", 2), 2, "--tensor-parallel divides the layers of presets"),
        (("missing.onnx",), 1, "missing.onnx"),
        (
            ("--preset", "vit-b", "--plugin", "lib.so", "--library", "torch"),
            2,
            "--plugin is measured in TensorRT: give --library tensorrt, too",
        ),
        (
            ("--preset", "vit-b", "--builders", 2, "--library", "torch"),
            2,
            "--builders build TensorRT engines: give --library tensorrt, too",
        ),
        (("--preset", "vit-b", "--builders", 2, "--ray"), 2, "--ray gives each GPU one builder"),
        (("--preset", "vit-b", "--plugin", "none.so"), 6, "There is no plugin library none.so"),
        (
            ("--preset", "vit-b", "--plugin", "text.so"),
            6,
            "text.so is not a library of the plugin: it is not an ELF",
        ),
    ],
)
def test_what_cannot_be_asked_for_is_refused(
    sparseflow: Sparseflow, own_folder: Path, arguments: tuple[object, ...], code: int, says: str
) -> None:
    write_library(own_folder / "lib.so")
    (own_folder / "text.so").write_text("no library")
    (own_folder / "whole.onnx").write_text("not read")
    ended = sparseflow("autotune", *arguments)
    assert ended.code == code
    assert says in ended.error


@no_gpu
@pytest.mark.parametrize("more", [(), ("--library", "torch"), ("--library", "tensorrt")])
def test_without_a_gpu_it_says_so(sparseflow: Sparseflow, tmp_path: Path, more: tuple[str, ...]) -> None:
    ended = sparseflow("autotune", "--preset", "vit-b", *more)
    assert ended.code == 6
    assert "autotune measures on the GPU that the policy is for" in ended.error
    assert not list(tmp_path.glob("*.json*"))


def test_progress_is_told_where_there_is_no_terminal(
    fake: Fake, sparseflow: Sparseflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune, "_SAID_EVERY", 0.0)
    ended = sparseflow("autotune", "--preset", "vit-b", "--m", "64,1024", "-o", "p.json", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["finished"]
    lines = ended.err.splitlines()
    assert len(lines) == len(fake.asked)
    assert lines[0].startswith(
        "1 measured, about 7 to go, 0 crossovers open; last 768→2304, M=64, FP16, torch: 1.00×"
    )
    assert "about 0 to go, 0 crossovers open" in lines[-1]
    assert lines[-1].endswith("s left")
