"""Two workers of a Ray cluster of this machine share the work, and end with what one alone would measure."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparseflow_trt.engines.machine.hardware import find_gpus
from sparseflow_trt.engines.measuring import ray_cluster
from sparseflow_trt.engines.measuring.curves import Measured, Request
from sparseflow_trt.engines.measuring.journal import Identity, read_journal
from sparseflow_trt.engines.measuring.measurers import InTurn
from sparseflow_trt.engines.measuring.ray_workers import RayWorkers
from sparseflow_trt.errors import PolicyError
from sparseflow_trt.policies.policy import Dtype, Pair, Point
from sparseflow_trt.policies.presets import Product
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
            time.sleep(0.5 if curve.n == 15 else 0.02)
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


@pytest.fixture(scope="module", autouse=True)
def no_idle_workers() -> Iterator[None]:
    """Has Ray start a process where there is work for it, and not one for each CPU beforehand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_prestart_worker_first_driver", "0")
        yield


@pytest.fixture(scope="module")
def cluster(no_idle_workers: None) -> Iterator[None]:
    """A cluster of this machine alone, for all the tests here."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    start(num_cpus=3, num_gpus=2)  # Ray counts GPUs by what it is told, and never touches one
    yield
    ray.shutdown()


def start(**has: int) -> None:
    """Starts a cluster of this machine, in place of the one that runs."""
    ray.shutdown()
    ray.init(**has, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


def holder_of(gpus: int) -> Any:
    """Somebody else's work, on some GPUs of the cluster until it is killed."""

    class Busy:
        def begun(self) -> bool:
            return True

    actor = ray.remote(Busy).options(num_gpus=gpus, num_cpus=0).remote()
    assert ray.get(actor.begun.remote())
    left = ray.cluster_resources()["GPU"] - gpus
    for _ in range(100):  # Ray tells of it a moment later
        if ray.available_resources().get("GPU", 0) <= left:
            break
        time.sleep(0.1)
    return actor


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

    with pytest.raises(PolicyError, match=r"^there is nothing here\.(?m:$)"):
        RayWorkers(broken, count=2, gpus=0, identity=identify)


def test_workers_on_unlike_machines_are_refused(cluster: None) -> None:
    make, _ = factories()

    def each_its_own(measurers: Sequence[Any], dtypes: tuple[Dtype, ...]) -> Identity:
        return Identity(device=f"GPU {os.getpid()}", compute_capability="9.0", libraries={}, dtypes=dtypes)

    with (
        RayWorkers(make, count=2, gpus=0, identity=each_its_own) as workers,
        pytest.raises(PolicyError, match="GPUs differ"),
    ):
        workers.identify(("FP16",))


@pytest.mark.parametrize("wrong", [13, 14])
def test_what_the_other_workers_were_measuring_at_an_error_is_kept(
    cluster: None, tmp_path: Path, wrong: int
) -> None:
    make, identify = factories()
    space = Space((Product("other", wrong, 4), Product("other", 15, 4)), ("FP16",), (8,))
    with (
        RayWorkers(make, count=2, gpus=0, identity=identify) as workers,
        pytest.raises(PolicyError, match="the product is wrong" if wrong == 13 else "a Ray worker died"),
    ):
        autotune(space, workers, tmp_path / "p.json")
    (kept,) = read_journal(tmp_path / "p.json.points.jsonl").measured
    assert (kept.request.curve.n, kept.request.m) == (15, 8)


def test_it_measures_on_the_gpus_that_are_free_and_says_so(cluster: None, tmp_path: Path) -> None:
    make, identify = factories()
    busy = holder_of(1)
    said: list[str] = []
    with RayWorkers(make, identity=identify, tell=said.append) as workers:
        assert workers.count == 1
        assert autotune(SPACE, workers, tmp_path / "p.json").left.points == 0
    (sentence,) = said
    assert sentence.startswith("Measuring on 1 of 2 GPUs of the Ray cluster: the others are in use.")
    ray.kill(busy)


def test_busy_gpus_are_waited_for_and_it_says_what_for(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "_SETTLED", 1.0)
    monkeypatch.setattr(ray_cluster, "_SAID_EVERY", 0.5)
    make, identify = factories()
    busy = holder_of(2)
    said: list[str] = []

    def tell(sentence: str) -> None:
        said.append(sentence)
        if len(said) == 2:
            ray.kill(busy)

    with RayWorkers(make, identity=identify, tell=tell) as workers:
        assert workers.count == 2
    assert len(said) >= 2
    for sentence in said[:2]:  # a slow machine is told once more, with the GPUs that are free by then
        assert "Waiting for 1 GPU with a CPU beside it of the Ray cluster (" in sentence
        assert "0 of 2 GPUs and 3 of 3 CPUs are free, the others are in use" in sentence


def test_a_wait_that_is_given_up_leaves_nothing_reserved(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "_SETTLED", 0.5)
    make, identify = factories()
    busy = holder_of(2)

    def interrupt(sentence: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RayWorkers(make, identity=identify, tell=interrupt)
    ray.kill(busy)
    again = holder_of(2)  # gets both
    ray.kill(again)


def test_more_workers_than_the_cluster_could_ever_have_are_refused(cluster: None) -> None:
    make, identify = factories()
    with pytest.raises(PolicyError, match="3 workers were asked for, and the Ray cluster has room for 2"):
        RayWorkers(make, count=3, identity=identify)


def test_a_named_cluster_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    ray.shutdown()  # the tests' own
    make, identify = factories()
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unheard.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(
            PolicyError, match=f"no Ray cluster answers at {address}, which RAY_ADDRESS names"
        ):
            RayWorkers(make, identity=identify)
    for wrong in ("somewhere", "host:port"):
        monkeypatch.setenv("RAY_ADDRESS", wrong)
        with pytest.raises(PolicyError, match=f"RAY_ADDRESS is '{wrong}', which is not HOST:PORT"):
            RayWorkers(make, identity=identify)
    assert not ray.is_initialized()


def test_a_cluster_without_gpus_has_no_workers() -> None:
    start(num_cpus=2, num_gpus=0)
    make, identify = factories()
    with pytest.raises(PolicyError, match="the Ray cluster has no GPU") as caught:
        RayWorkers(make, identity=identify)
    assert "ray start --address=HOST:PORT" in caught.value.hint
    assert ray.is_initialized()  # it was not ours to end


def test_gpus_without_a_cpu_beside_them_are_said() -> None:
    start(num_cpus=0, num_gpus=2)
    make, identify = factories()
    with pytest.raises(PolicyError, match="no machine of the Ray cluster has 1 GPU with a CPU beside it"):
        RayWorkers(make, identity=identify)


@pytest.mark.skipif(bool(find_gpus()), reason="a cluster of this machine has its GPU")
@pytest.mark.parametrize("address", ["", "auto"])
def test_a_cluster_of_its_own_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", address)
    make, identify = factories()
    with pytest.raises(PolicyError, match="no Ray cluster runs here, and a new one would have no GPU"):
        RayWorkers(make, identity=identify)
    assert not ray.is_initialized()


def test_a_cluster_of_its_own_ends_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    make, identify = factories()
    ray.shutdown()
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with RayWorkers(make, count=1, gpus=0, identity=identify) as workers:
        assert workers.identify(("FP16",)).device == "a CPU"
    assert not ray.is_initialized()
