"""A run from what is asked for to the policy: measured on this machine's CPU, and by functions of M."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from ml_dtypes import bfloat16
from onnx import TensorProto, helper

from sparseflow_trt.engines.machine.gpu_state import ClockState
from sparseflow_trt.engines.measuring.curves import Measured, Request
from sparseflow_trt.engines.measuring.journal import Identity, journal_beside, read_journal
from sparseflow_trt.engines.measuring.measured_policy import extend_policy, policy_from_journal
from sparseflow_trt.engines.measuring.measurers import InTurn
from sparseflow_trt.errors import ArtifactError, PolicyError
from sparseflow_trt.model.model_file import read_model
from sparseflow_trt.policies.between import WAVE
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import judge
from sparseflow_trt.policies.policy import Dtype, Library, Pair, Point, Policy, Threshold, read_policy
from sparseflow_trt.policies.presets import Product
from sparseflow_trt.tuning import (
    GRID,
    Progress,
    Space,
    Tuned,
    autotune,
    default_output,
    dtypes_of,
    products_of,
)
from tests.made_policies import make_points, make_policy

if TYPE_CHECKING:
    from tests.conftest import Models

QKV, OUT, DOWN = Product("qkv", 4096, 4096), Product("o", 4096, 4096), Product("down", 4096, 14336)
SPACE = Space((QKV, OUT, DOWN), ("FP16",), (1, 64, 1024, 16384))


class KilledError(Exception):
    """What a test ends a run with."""


class Fake:
    """Sparse wins from `wins_from` on; ends after `most` answers."""

    def __init__(self, wins_from: int = 200, most: int = 10**6, library: Library = "torch") -> None:
        self.library = library
        self.wins_from = wins_from
        self.most = most
        self.asked: list[Request] = []

    def versions(self) -> dict[str, str]:
        return {self.library: "1.0"}

    def why_not(self, n: int, k: int, dtype: Dtype) -> str:
        return f"{k}→{n} is odd" if n % 2 else ""

    def measure(self, request: Request) -> Measured:
        if len(self.asked) >= self.most:
            raise KilledError
        self.asked.append(request)
        curve = request.curve
        dense = Point(
            kind=curve.kind, n=curve.n, k=curve.k, m=request.m, dtype=curve.dtype, library=curve.library,
            kernel="dense", us=15.0, low_us=14.9, high_us=15.1, runs=20, tactic="F.linear",
        )  # fmt: skip
        wins = request.m >= self.wins_from
        times = {"us": 10.0, "low_us": 9.9, "high_us": 10.1} if wins else {}
        sparse = dense.model_copy(update={"kernel": curve.kernel, "tactic": "algorithm 1", **times})
        return Measured(request, Pair(dense, sparse), 0.1, "by a function", ClockState(sm_mhz=9, max_mhz=10))


def identify(measurers: Sequence[Any], dtypes: tuple[Dtype, ...]) -> Identity:
    libraries = {name: version for m in measurers for name, version in m.versions().items()}
    return Identity(device="NVIDIA H200", compute_capability="9.0", libraries=libraries, dtypes=dtypes)


def tune(output: Path, fake: Fake, space: Space = SPACE, **options: Any) -> Tuned:
    return autotune(space, InTurn([fake], identify), output, **options)


def test_a_policy_comes_of_a_run(tmp_path: Path) -> None:
    steps: list[Progress] = []
    fake = Fake()
    tuned = tune(tmp_path / "h200.json", fake, command="sparseflow-trt autotune …", on_progress=steps.append)
    policy = read_policy(tmp_path / "h200.json")
    assert policy == tuned.policy
    assert (policy.name, policy.device, policy.provenance) == ("h200", "NVIDIA H200", "measured")
    assert policy.libraries == {"torch": "1.0"}
    assert policy.clocks.startswith("SM 9 MHz")
    assert policy.source.endswith("timed as by a function, by: sparseflow-trt autotune …")
    assert {c.low for c in tuned.crossovers} == {192}
    assert {c.high for c in tuned.crossovers} == {200}
    assert tuned.left.points == 0
    assert tuned.measured_now == len(fake.asked) == len(steps) == steps[-1].measured
    assert steps[-1].left.points == 0
    assert steps[0].left.points == 2 * len(SPACE.grid) - 1
    assert {(t.kind, t.min_m, t.max_m) for t in policy.thresholds} == {
        ("qkv", 200, None),
        ("o", 200, None),
        ("down", 200, None),
    }


def test_the_wave_is_of_the_gpus_multiprocessors(tmp_path: Path) -> None:
    def smaller(measurers: Sequence[Any], dtypes: tuple[Dtype, ...]) -> Identity:
        return identify(measurers, dtypes).model_copy(update={"multiprocessors": 108})

    made = autotune(SPACE, InTurn([Fake()], smaller), tmp_path / "a100.json").policy
    assert made.wave == 108 * 64 * 128
    assert tune(tmp_path / "h200.json", Fake()).policy.wave == WAVE == 132 * 64 * 128


def test_a_shape_of_two_kinds_is_measured_once_and_stands_under_both(tmp_path: Path) -> None:
    fake = Fake()
    policy = tune(tmp_path / "p.json", fake).policy
    assert {r.curve.kind for r in fake.asked if r.curve.k == 4096} == {"qkv"}
    by_kind = {kind: [p for p in policy.points if p.kind == kind] for kind in ("qkv", "o")}
    assert [p.model_copy(update={"kind": "o"}) for p in by_kind["qkv"]] == by_kind["o"]
    for kind in ("qkv", "o"):
        verdict = judge(policy, Gemm(kind, 4096, 4096, "FP16"), 1024)
        assert (verdict.sparse, verdict.basis, verdict.speedup) == (True, "exact", 1.5)


@pytest.mark.parametrize("most", [0, 1, 7, 12])
def test_a_killed_run_goes_on_and_ends_with_the_same_policy(tmp_path: Path, most: int) -> None:
    whole = Fake()
    expected = tune(tmp_path / "whole.json", whole, name="p").policy
    first, second = Fake(most=most), Fake()
    output = tmp_path / "p.json"
    with pytest.raises(KilledError):
        tune(output, first, name="p")
    assert not output.exists()
    with journal_beside(output).open("ab") as stream:
        stream.write(b'{"points": [{"kind": "qk')  # it died in the middle of a line
    tuned = tune(output, second, name="p")
    assert tuned.policy.points == expected.points
    assert first.asked + second.asked == whole.asked
    assert tuned.measured_now == len(whole.asked) - most


def test_a_time_limit_leaves_a_policy_of_what_there_is(tmp_path: Path) -> None:
    class Slow(Fake):
        def measure(self, request: Request) -> Measured:
            time.sleep(0.02)
            return super().measure(request)

    slow = Slow()
    tuned = tune(tmp_path / "p.json", slow, time_limit=0.11)
    assert 4 <= tuned.measured_now == len(slow.asked) < 8
    assert tuned.left.points > 0
    assert {p.kind for p in tuned.policy.points} == {"qkv", "o"}  # and nothing of down, but for its large M
    rest = Fake()
    assert tune(tmp_path / "p.json", rest).left.points == 0
    assert not set(slow.asked) & set(rest.asked)
    with pytest.raises(PolicyError, match="no product has been measured at all of its M yet"):
        tune(tmp_path / "other.json", Fake(), time_limit=0)


def test_more_products_are_added_to_what_there_is(tmp_path: Path) -> None:
    output = tmp_path / "p.json"
    tune(output, Fake(), Space((QKV,), ("FP16",), SPACE.grid), command="first")
    fake = Fake()
    policy = tune(output, fake, command="second").policy
    assert {(r.curve.n, r.curve.k) for r in fake.asked} == {(4096, 14336)}
    assert {p.kind for p in policy.points} == {"qkv", "o", "down"}
    assert policy.source.endswith("by: first; second")


def test_what_an_earlier_run_left_unfinished_gives_no_verdict(tmp_path: Path) -> None:
    output = tmp_path / "p.json"
    down = Space((DOWN,), ("FP16",), (1, 512, 4096))
    with pytest.raises(KilledError):
        tune(output, Fake(most=2), down)  # sparse wins at 512, and nobody knows of 4096
    tuned = tune(output, Fake(), Space((QKV,), ("FP16",), (1, 1024)))
    assert {p.kind for p in tuned.policy.points} == {"qkv"}
    assert not judge(tuned.policy, Gemm("down", DOWN.n, DOWN.k, "FP16"), 8192).sparse
    assert tuned.left_out == (
        "14336→4096, FP16, torch, which an earlier run did not measure at all its M: the same command as "
        "then resumes it",
    )
    tuned = tune(output, Fake(), down)
    assert {p.kind for p in tuned.policy.points} == {"qkv", "down"}
    assert tuned.left_out == ()


def test_a_run_that_is_stopped_keeps_what_an_earlier_one_finished(tmp_path: Path) -> None:
    output = tmp_path / "p.json"
    before = tune(output, Fake(), Space((DOWN,), ("FP16",), (1, 1024))).policy
    tuned = tune(output, Fake(), Space((DOWN,), ("FP16",), (1, 64, 1024)), time_limit=0)
    assert tuned.left.points > 0
    assert tuned.policy.points == before.points


def test_what_cannot_be_measured_is_left_out_and_said(tmp_path: Path) -> None:
    odd = Product("classifier", 1001, 4096)
    tuned = tune(tmp_path / "p.json", Fake(), Space((odd, DOWN), ("FP16",), (1, 16)))
    assert tuned.left_out == ("4096→1001 is odd",)
    assert {p.kind for p in tuned.policy.points} == {"down"}
    with pytest.raises(PolicyError, match="nothing to measure: 4096→1001 is odd"):
        tune(tmp_path / "q.json", Fake(), Space((odd,), ("FP16",), (1, 16)))


def test_the_plugin_is_measured_behind_tensorrts_own_kernels(tmp_path: Path) -> None:
    class Both(Fake):
        def measure(self, request: Request) -> Measured:
            self.wins_from = 16 if request.curve.kernel == "plugin" else 2000
            return super().measure(request)

    space = Space((DOWN, Product("down", 1000, 512)), ("FP16",), (16, 1024, 4096), plugin=True)
    both = Both(library="tensorrt")
    tuned = tune(tmp_path / "p.json", both, space)
    assert {(t.kernel, t.min_m) for t in tuned.policy.thresholds} == {("sparse", 2048), ("plugin", 16)}
    assert tuned.left_out == ("N=1000 and K=512 are not both multiples of 16",)
    kernels = {(p.kernel, p.n) for p in tuned.policy.points}
    assert kernels == {(k, DOWN.n) for k in ("dense", "sparse", "plugin")} | {
        ("dense", 1000),
        ("sparse", 1000),
    }
    keys = [(p.n, p.k, p.m, p.kernel) for p in tuned.policy.points]
    assert len(keys) == len(set(keys)), "dense once, though measured beside both"
    rest = Both(library="tensorrt")
    assert tune(tmp_path / "p.json", rest, space).measured_now == 0
    torch = Fake()
    tune(tmp_path / "t.json", torch, space)
    assert {r.curve.kernel for r in torch.asked} == {"sparse"}


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "p.json").mkdir()
    fake = Fake()
    with pytest.raises(ArtifactError):
        tune(tmp_path / "p.json", fake)
    assert not fake.asked


def test_an_output_that_cannot_be_written_any_more_keeps_the_points(tmp_path: Path) -> None:
    output = tmp_path / "p.json"
    with pytest.raises(ArtifactError):
        tune(output, Fake(), on_progress=lambda _: output.mkdir(exist_ok=True))
    journal = read_journal(journal_beside(output))
    assert len(policy_from_journal(journal, "p").points) == 2 * len(journal.measured) * 3 // 2


def test_a_policy_that_came_without_its_journal_is_not_replaced(tmp_path: Path) -> None:
    output, fake = tmp_path / "p.json", Fake()
    tune(output, Fake())
    before = output.read_bytes()
    journal_beside(output).unlink()
    with pytest.raises(PolicyError, match=r"its journal p\.json\.points\.jsonl is missing") as caught:
        tune(output, fake, Space((DOWN,), ("FP16",), (1, 64)))
    assert f"--add {output}" in caught.value.hint
    assert output.read_bytes() == before
    assert not fake.asked
    assert not journal_beside(output).exists()


def test_policies_of_one_gpu_are_joined(tmp_path: Path) -> None:
    torch = tune(tmp_path / "torch.json", Fake()).policy
    tensorrt = tune(tmp_path / "trt.json", Fake(wins_from=2000, library="tensorrt")).policy
    joined = extend_policy(torch, tensorrt)
    assert set(joined.points) == {*torch.points, *tensorrt.points}
    assert joined.libraries == {"tensorrt": "1.0", "torch": "1.0"}
    assert {(t.library, t.min_m) for t in joined.thresholds if t.kind == "down"} == {
        ("torch", 200),
        ("tensorrt", 2048),
    }
    again = extend_policy(joined, torch.model_copy(update={"points": _slower(torch)}))
    assert again.points == joined.points  # its own are kept
    older = torch.model_copy(
        update={
            "libraries": {"torch": "0.9"},
            "points": tuple(p.model_copy(update={"dtype": "BF16"}) for p in torch.points),
            "thresholds": (
                Threshold(kind="o", library="torch", dtype="FP8", min_m=7),
                Threshold(kind="down", library="torch", dtype="FP16", min_m=7),
            ),
        }
    )
    versions = extend_policy(torch, older)
    assert versions.libraries == {"torch": "1.0 (FP16); 0.9 (BF16)"}
    limits = {(t.kind, t.dtype): t.min_m for t in versions.thresholds}
    assert (limits["o", "FP8"], limits["down", "FP16"]) == (7, 200)  # given, and derived
    assert extend_policy(torch, versions) == versions  # what is there already changes nothing
    careful = extend_policy(torch, tensorrt.model_copy(update={"margin": 0.6}))  # sparse is 1.5 times as fast
    assert careful.margin == 0.6
    assert {t.min_m for t in careful.thresholds} == {None}
    other = tensorrt.model_copy(update={"device": "NVIDIA A100"})
    with pytest.raises(PolicyError, match=r"is for NVIDIA A100 \(9.0\), not for NVIDIA H200"):
        extend_policy(torch, other)


def _slower(policy: Policy) -> tuple[Point, ...]:
    return tuple(p.model_copy(update={"us": p.us + 0.05}) for p in policy.points)


def test_the_products_of_a_model_are_its_layers_that_could_be_sparse(models: Models) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["a"], name="up_proj"),
        helper.make_node("MatMul", ["a", "down"], ["b"], name="down_proj"),
        helper.make_node("MatMul", ["b", "again"], ["c"], name="layer2.up_proj"),
        helper.make_node("MatMul", ["c", "odd"], ["y"], name="score"),
    ]
    shapes = {"up": (64, 256), "down": (256, 64), "again": (64, 256), "odd": (256, 7)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    weights["odd"] = weights["odd"][:, :7]
    path = models.save(models.model(nodes, weights))
    assert products_of([read_model(path)], []) == (
        Product("gate_up", 256, 64),
        Product("down", 64, 256),
        Product("classifier", 7, 256),
    )
    assert products_of([read_model(path)], ["llama-8b"])[3] == Product("qkv", 6144, 4096)


@pytest.mark.parametrize("activation", ["Relu", "Sigmoid"])
def test_layers_of_one_input_are_measured_as_one_product_too(models: Models, activation: str) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "gate"], ["a"], name="gate_proj"),
        helper.make_node("MatMul", ["x", "up"], ["b"], name="up_proj"),
        helper.make_node(activation, ["a"], ["s"]),
        helper.make_node("Mul", ["s", "b"], ["c"]),
        helper.make_node("MatMul", ["c", "down"], ["y"], name="down_proj"),
    ]
    shapes = {"gate": (64, 256), "up": (64, 256), "down": (256, 64)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    path = models.save(models.model(nodes, weights))
    alone = (Product("gate_up", 256, 64), Product("down", 64, 256))
    as_one = () if activation == "Relu" else (Product("gate_up", 512, 64),)  # TensorRT keeps those apart
    assert products_of([read_model(path)], []) == (*alone, *as_one)


def test_a_windowed_or_grouped_conv_is_no_plain_product(models: Models) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "one"], ["a"], name="one"),
        helper.make_node("Conv", ["a", "window"], ["b"], name="window"),
        helper.make_node("Conv", ["b", "grouped"], ["y"], name="grouped", group=2),
    ]
    shapes = {"one": (32, 16, 1, 1), "window": (32, 32, 3, 3), "grouped": (32, 16, 1, 1)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model = models.model(nodes, weights, {"x": (1, 16, 8, 8)})
    assert products_of([read_model(models.save(model))], []) == (Product("conv", 32, 16),)


def test_a_model_is_measured_in_the_type_that_it_computes_in(models: Models) -> None:
    node = helper.make_node("MatMul", ["x", "up"], ["y"], name="up_proj")
    types = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16, bfloat16: TensorProto.BFLOAT16}
    written = [models.model([node], {"up": np.ones((64, 256), one)}, dtype=two) for one, two in types.items()]
    single, half, brain = (read_model(models.save(model, f"{i}.onnx")) for i, model in enumerate(written))
    assert dtypes_of([single], []) == dtypes_of([half], []) == dtypes_of([], ["llama-8b"]) == ("FP16",)
    assert dtypes_of([brain], []) == ("BF16",)
    assert dtypes_of([brain, single], []) == dtypes_of([brain], ["llama-8b"]) == ("FP16", "BF16")


def test_a_model_with_nothing_to_measure(models: Models) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(PolicyError, match="no model has a layer"):
        products_of([read_model(models.save(models.model([node])))], [])


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H200", "h200.json"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb.json"),
        ("NVIDIA GeForce RTX 4090", "geforce-rtx-4090.json"),
        ("", "policy.json"),
    ],
)
def test_a_policy_file_is_named_after_its_gpu(device: str, name: str) -> None:
    assert default_output(device) == Path(name)


def test_the_grid_is_one_that_is_tuned_by_doublings() -> None:
    assert GRID[0] == 1
    assert [m for m in GRID if m > 8] == [8 * 2**i for i in range(1, 12)]


class OnCpu(Fake):
    """Times NumPy products on this machine: 'sparse' has a quarter of W's columns."""

    def measure(self, request: Request) -> Measured:
        curve, rng = request.curve, np.random.default_rng(0)
        x = rng.standard_normal((request.m, curve.k), dtype=np.float32)
        weight = rng.standard_normal((curve.k, curve.n), dtype=np.float32)
        part = np.ascontiguousarray(weight[:, : curve.n // 4])
        dense, sparse = _least_us([lambda: x @ weight, lambda: x @ part])
        fields: dict[str, Any] = {
            "kind": curve.kind, "n": curve.n, "k": curve.k, "m": request.m, "dtype": curve.dtype,
            "library": curve.library,
        }  # fmt: skip
        pair = Pair(Point(kernel="dense", us=dense, **fields), Point(kernel="sparse", us=sparse, **fields))
        return Measured(request, pair, 0.0)


def _least_us(sides: Sequence[Callable[[], object]]) -> list[float]:
    """Each side's shortest run of many, in turn: what other work on this machine does not touch."""
    spans: list[list[float]] = [[] for _ in sides]
    for _ in range(40):
        for work, collected in zip(sides, spans, strict=True):
            begun = time.perf_counter()
            work()
            collected.append((time.perf_counter() - begun) * 1e6)
    return [min(collected) for collected in spans]


def test_real_products_on_the_cpu_make_a_policy_that_is_asked(tmp_path: Path) -> None:
    space = Space((Product("gate_up", 1024, 512),), ("FP16",), (64, 256))
    policy = tune(tmp_path / "cpu.json", OnCpu(), space).policy
    verdict = judge(policy, Gemm("gate_up", 1024, 512, "FP16"), 256)
    assert verdict.sparse  # a quarter of the work is faster, on whatever machine
    assert verdict.speedup is not None
    assert verdict.speedup > 1.2


def test_of_two_policies_the_more_careful_says_how_sure_a_win_has_to_be() -> None:
    points = make_points("o", 64, 64, {8: 2.0})
    careful = make_policy(points).model_copy(update={"spreads": 2.0, "spreads_between": 1.25, "wave": 8192})
    bold = make_policy(points).model_copy(update={"spreads": 0.5, "spreads_between": 1.5, "wave": None})
    for one, other in ((careful, bold), (bold, careful)):
        both = extend_policy(one, other)
        assert (both.spreads, both.spreads_between, both.wave) == (2.0, 1.5, 8192)


def test_what_a_kernel_gained_in_its_own_run_it_gains_in_the_joined_policy() -> None:
    points = make_points("down", 64, 64, {8: 1.25, 16: 1.5}, library="tensorrt")
    dense = tuple(p.model_copy(update={"us": p.us * 1.3}) for p in points if p.kernel == "dense")
    plugin = tuple(p.model_copy(update={"kernel": "plugin"}) for p in points if p.kernel == "sparse")
    beside = [p for p in points if p.kernel == "dense"]
    joined = extend_policy(make_policy(dense), make_policy((*beside, *plugin)))
    times = {(p.m, p.kernel): p.us for p in joined.points}
    assert {m: times[m, "dense"] for m in (8, 16)} == {p.m: p.us for p in dense}
    gains = {m: times[m, "dense"] / times[m, "plugin"] for m in (8, 16)}
    assert gains == pytest.approx({8: 1.25, 16: 1.5}, rel=1e-4)
