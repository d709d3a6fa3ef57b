"""benchmarks/triton_reliability.py's scenarios, shorter: nothing fails that should not, nothing is wrong."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparseflow_trt.engines.triton.server import Server, ServerOptions, start_server

pytestmark = pytest.mark.usefixtures("tritonserver")
SECONDS = 0.4
CLIENTS = 8


@pytest.fixture(scope="module")
def scenarios() -> Iterator[Any]:
    """The script, as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield importlib.import_module("triton_reliability")


@pytest.fixture(scope="module")
def subject(scenarios: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A deployed model, and a second build of it."""
    made = scenarios.Subject(tmp_path_factory.mktemp("subject"))
    made.roll_in(0)
    return made


@pytest.fixture(scope="module")
def server(subject: Any, tritonserver: None) -> Iterator[Server]:
    """One server for all scenarios that do not kill it."""
    with start_server(subject.repository, ServerOptions(load=["mlp"])) as running:
        yield running


def right(figures: dict[str, Any]) -> bool:
    return bool(figures["sent"] > 0 and figures["failed"] == figures["wrong"] == 0)


def test_every_batch_over_both_protocols(scenarios: Any, server: Server, subject: Any) -> None:
    assert right(scenarios.infer(server, subject))


def test_a_new_version_under_load_fails_no_request(scenarios: Any, server: Server, subject: Any) -> None:
    found = scenarios.roll_versions(server, subject, CLIENTS, SECONDS)
    assert right(found), found
    assert found["refused"] == ""
    assert all(found["by version"][version] > 0 for version in ("1", "2"))


def test_a_corrupt_version_is_refused_and_the_old_one_serves(
    scenarios: Any, server: Server, subject: Any
) -> None:
    found = scenarios.load_corrupt(server, subject, CLIENTS, SECONDS)
    assert right(found), found
    assert "is not the file that was deployed: its SHA-256 differs" in found["refused"]
    assert found["refused after the rollback"] == ""
    assert list(found["by version"]) == ["1"]
    assert found["server is up and serves the model"]


def test_wrong_requests_are_told_and_harm_no_right_one(scenarios: Any, server: Server, subject: Any) -> None:
    found = scenarios.send_wrong(server, subject, CLIENTS, SECONDS)
    assert right(found), found
    assert found["server is up and serves the model"]
    said = found["refused"]
    assert all(said.values()), said
    assert "unexpected shape for input 'x'" in said["width 63"]
    assert "data-type is 'FP16', but model 'mlp' expects 'FP32'" in said["FP16"]
    assert "batch-size must be <= 8" in said["batch 9"]
    assert "expecting 128 additional bytes" in said["HTTP: half the bytes"]


def test_two_hundred_clients_at_once(scenarios: Any, server: Server, subject: Any) -> None:
    found = scenarios.crowd(server, subject, 200, 5)
    assert right(found), found
    assert found["sent"] == 1000


def test_after_a_killed_stub_it_serves_again(scenarios: Any, tritonserver: None, subject: Any) -> None:
    found = scenarios.kill_stub(subject, CLIENTS, SECONDS)
    assert found["serves again"], found
    assert found["during"]["wrong"] == 0
    assert right(found["after"]), found


def test_a_killed_server_is_started_again(scenarios: Any, subject: Any) -> None:
    found = scenarios.kill_server(subject, CLIENTS, SECONDS)
    assert found["serves again"], found
    assert found["stubs left"] == found["shared memory left"] == 0
    assert found["during"]["wrong"] == 0
    assert right(found["after"]), found
