"""Two workers of a Ray cluster of this machine share the work, and end with what one alone would measure."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparseflow_trt.engines.autotune import Measured, Request
from sparseflow_trt.engines.journal import Identity
from sparseflow_trt.engines.measurers import InTurn
from sparseflow_trt.engines.ray_workers import RayWorkers
from sparseflow_trt.errors import PolicyError
from sparseflow_trt.policy import Dtype, Pair, Point
from sparseflow_trt.presets import Product
from sparseflow_trt.tuning import Space, autotune

ray: Any = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray>=2.9'")

SPACE = Space((Product("gate_up", 256, 64), Product("down", 64, 256)), ("FP16",), (8, 64, 512))


def factories() -> tuple[Any, Any]:
    """What makes a measurer and says what it holds for; nested, so that Ray carries it to its workers."""

    class OnCpu:
        """Multiplies on the CPU, and says by a rule of M which was faster; the tactic names the process."""

        library = "torch"

        def versions(self) -> dict[str, str]:
            return {"numpy": np.__version__}

        def why_not(self, n: int, k: int, dtype: Dtype) -> str:
            return ""

        def measure(self, request: Request) -> Measured:
            curve = request.curve
            if curve.n == 13:
                raise PolicyError("the product is wrong.", "Look at it.")
            if curve.n == 14:
                os._exit(1)
            time.sleep(0.02)
            x = np.ones((request.m, curve.k), np.float32)
            assert (x @ np.ones((curve.k, curve.n), np.float32))[0, 0] == curve.k
            dense = Point(
                kind=curve.kind, n=curve.n, k=curve.k, m=request.m, dtype=curve.dtype, library="torch",
                kernel="dense", us=15.0, tactic=f"process {os.getpid()}",
            )  # fmt: skip
            sparse = dense.model_copy(update={"kernel": "sparse", "us": 10.0 if request.m >= 200 else 15.0})
            return Measured(request, Pair(dense, sparse), 0.02)

    def make() -> list[OnCpu]:
        return [OnCpu()]

    def identify(measurers: Sequence[Any], dtypes: tuple[Dtype, ...]) -> Identity:
        return Identity(
            device=os.environ.get("SHOWN_DEVICE", "a CPU"), compute_capability="0.0",
            libraries=measurers[0].versions(), dtypes=dtypes,
        )  # fmt: skip

    return make, identify


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of this machine alone, for all the tests here."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_two_workers_share_the_work_of_one(cluster: None, tmp_path: Path) -> None:
    make, identify = factories()
    alone = autotune(SPACE, InTurn(make(), identify), tmp_path / "alone.json", "p")
    with RayWorkers(make, count=2, gpus=0, identity=identify) as workers:
        assert (workers.count, workers.libraries(), workers.why_not("torch", 8, 8, "FP16")) == (
            2,
            ("torch",),
            "",
        )
        shared = autotune(SPACE, workers, tmp_path / "shared.json", "p")
    processes = {p.tactic for p in shared.policy.points}
    assert len(processes) == 2
    assert f"process {os.getpid()}" not in processes
    assert shared.policy.thresholds == alone.policy.thresholds
    assert shared.crossovers == alone.crossovers

    def without_process(points: Sequence[Point]) -> list[Point]:
        return [p.model_copy(update={"tactic": ""}) for p in points]

    assert without_process(shared.policy.points) == without_process(alone.policy.points)
    assert shared.measured_now == alone.measured_now


def test_an_error_in_a_worker_is_said_as_it_is_and_keeps_the_rest(cluster: None, tmp_path: Path) -> None:
    make, identify = factories()
    space = Space((*SPACE.products, Product("other", 13, 4)), ("FP16",), (8, 64))
    with RayWorkers(make, count=1, gpus=0, identity=identify) as workers:
        with pytest.raises(PolicyError) as caught:
            autotune(space, workers, tmp_path / "p.json")
        assert (caught.value.message, caught.value.hint) == ("the product is wrong.", "Look at it.")
    journal = (tmp_path / "p.json.points.jsonl").read_text()
    assert journal.count('"points"') == 4


def test_a_worker_that_dies_is_said(cluster: None, tmp_path: Path) -> None:
    make, identify = factories()
    with (
        RayWorkers(make, count=1, gpus=0, identity=identify) as workers,
        pytest.raises(PolicyError, match="a Ray worker died"),
    ):
        autotune(Space((Product("other", 14, 4),), ("FP16",), (8,)), workers, tmp_path / "p.json")


def test_what_a_worker_cannot_make_is_said_as_it_is(cluster: None) -> None:
    _, identify = factories()

    def broken() -> list[Any]:
        raise PolicyError("there is nothing here.", "Go elsewhere.")

    with pytest.raises(PolicyError, match=r"^there is nothing here\.$"):
        RayWorkers(broken, count=2, gpus=0, identity=identify)


def test_workers_on_unlike_machines_are_refused(cluster: None) -> None:
    make, _ = factories()

    def each_its_own(measurers: Sequence[Any], dtypes: tuple[Dtype, ...]) -> Identity:
        return Identity(device=f"GPU {os.getpid()}", compute_capability="9.0", libraries={}, dtypes=dtypes)

    with (
        RayWorkers(make, count=2, gpus=0, identity=each_its_own) as workers,
        pytest.raises(PolicyError, match="GPUs are not alike"),
    ):
        workers.identify(("FP16",))


def test_a_cluster_without_gpus_has_no_workers(cluster: None) -> None:
    make, identify = factories()
    with pytest.raises(PolicyError, match="the Ray cluster has no GPU"):
        RayWorkers(make, identity=identify)
    assert ray.is_initialized()  # it was not ours to end


def test_a_cluster_of_its_own_ends_with_the_run() -> None:
    make, identify = factories()
    ray.shutdown()  # the tests' own
    with RayWorkers(make, count=1, gpus=0, identity=identify) as workers:
        assert workers.identify(("FP16",)).device == "a CPU"
    assert not ray.is_initialized()
