"""A journal gives back what was added, survives a torn last line, and refuses what it does not hold for."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparseflow_trt.engines.machine.gpu_state import ClockState
from sparseflow_trt.engines.measuring.curves import Curve, Measured, Request
from sparseflow_trt.engines.measuring.journal import (
    Identity,
    Journal,
    Run,
    journal_beside,
    open_journal,
    read_journal,
)
from sparseflow_trt.errors import PolicyError
from sparseflow_trt.policies.policy import Pair, Point
from sparseflow_trt.policies.presets import Product

IDENTITY = Identity(
    device="NVIDIA H200", compute_capability="9.0", libraries={"torch": "2.11.0"}, dtypes=("BF16", "FP16")
)
RUN = Run(command="sparseflow-trt autotune", date="2026-11-22", products=(("qkv", 64, 32), ("o", 64, 32)))


def answer(m: int) -> Measured:
    curve = Curve("torch", "FP16", 64, 32, "qkv")
    dense = Point(
        kind="qkv", n=64, k=32, m=m, dtype="FP16", library="torch", kernel="dense", us=m / 3, low_us=m / 4,
        high_us=float(m), runs=20, tactic="F.linear",
    )  # fmt: skip
    sparse = dense.model_copy(update={"kernel": "sparse", "us": m / 3.5, "tactic": "algorithm 7"})
    clock = ClockState(sm_mhz=1980, max_mhz=1980, held_back=("power cap",)) if m % 2 else None
    return Measured(Request(curve, m), Pair(dense, sparse), 0.25, "CUDA graphs", clock)


ANSWERS = tuple(answer(m) for m in (1, 8, 16, 4096))


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal of one run with four answers."""
    path = journal_beside(tmp_path / "h200.json")
    with open_journal(path, IDENTITY) as (_, appender):
        appender.add_run(RUN)
        for each in ANSWERS:
            appender.add(each)
    return path


def test_what_was_added_comes_back(journal: Path) -> None:
    assert journal.name == "h200.json.points.jsonl"
    found = read_journal(journal)
    assert (found.identity, found.runs, found.measured) == (IDENTITY, (RUN,), ANSWERS)
    assert found.pairs == {each.request: each.pair for each in ANSWERS}
    assert found.products == (Product("qkv", 64, 32), Product("o", 64, 32))


def test_a_journal_from_before_multiprocessors_were_recorded_goes_on(journal: Path, tmp_path: Path) -> None:
    assert read_journal(journal).identity.multiprocessors is None
    here = IDENTITY.model_copy(update={"multiprocessors": 108})
    with open_journal(journal, here) as (found, _):
        assert found.measured == ANSWERS
    with open_journal(tmp_path / "newer", here):
        pass
    assert read_journal(tmp_path / "newer").identity == here


def test_a_journal_is_of_one_number_of_multiprocessors(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with open_journal(journal, IDENTITY.model_copy(update={"multiprocessors": 132})):
        pass
    other = IDENTITY.model_copy(update={"multiprocessors": 78})
    with (
        pytest.raises(PolicyError, match="multiprocessors 132, and here it is 78"),
        open_journal(journal, other),
    ):
        pass


def test_a_line_is_on_the_disk_before_the_next_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with open_journal(path, IDENTITY) as (_, appender):
        appender.add(ANSWERS[0])
        assert read_journal(path).measured == ANSWERS[:1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_wherever_a_run_is_killed_the_next_one_goes_on(journal: Path, data: st.DataObject) -> None:
    whole = journal.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    torn = journal.with_name("torn")
    torn.write_bytes(whole[:cut])
    kept = [a for a in ANSWERS if _line(a) in whole[:cut].splitlines(keepends=True)]
    with open_journal(torn, IDENTITY) as (found, appender):
        assert list(found.measured) == kept
        for each in ANSWERS[len(kept) :]:
            appender.add(each)
    assert read_journal(torn).measured == ANSWERS
    torn.unlink()


def _line(each: Measured) -> bytes:
    pair = [
        point.model_dump(mode="json", exclude_defaults=True) for point in (each.pair.dense, each.pair.sparse)
    ]
    line = {"points": pair, "seconds": each.seconds, "how": each.how}
    if each.clock:
        line["clock"] = each.clock.model_dump(mode="json")
    return json.dumps(line).encode() + b"\n"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"device": "NVIDIA A100"}, "of device NVIDIA H200, and here it is NVIDIA A100"),
        ({"compute_capability": "8.0"}, "of compute capability 9.0, and here it is 8.0"),
        ({"libraries": {"torch": "2.13.0"}}, "of libraries torch 2.11.0, and here it is torch 2.13.0"),
        ({"dtypes": ("FP16",)}, "of dtypes BF16, FP16, and here it is FP16"),
    ],
)
def test_figures_of_something_else_are_not_added(
    journal: Path, changed: dict[str, object], says: str
) -> None:
    before = journal.read_bytes()
    with pytest.raises(PolicyError) as caught, open_journal(journal, IDENTITY.model_copy(update=changed)):
        pytest.fail("it was opened")
    assert says in caught.value.message
    assert "another file with -o, or remove h200.json.points.jsonl" in caught.value.hint
    assert journal.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not JSON\n", "line 1"),
        ('{"run": {"command": "", "date": ""}}\n', "is not a journal"),
        ("{}\n", "a line is a journal's head, a run or a pair"),
        ('{"journal": 1}\n', "line 1: journal"),
        ('[{"m": 64}, {"m": 128}]', "is not a journal"),
    ],
)
def test_what_is_no_journal_is_said_and_left_alone(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "journal"
    path.write_text(text)
    with pytest.raises(PolicyError, match=says), open_journal(path, IDENTITY):
        pytest.fail("it was opened")
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [("m", 17, "a pair is of one product"), ("kernel", "dense", "a dense point and a sparse one")],
)
def test_a_pair_that_is_none_is_not_read(journal: Path, field: str, value: object, says: str) -> None:
    lines = journal.read_text().splitlines()
    changed = json.loads(lines[3])
    changed["points"][1][field] = value
    journal.write_text("\n".join([*lines[:3], json.dumps(changed), *lines[4:]]) + "\n")
    with pytest.raises(PolicyError, match=rf"line 4: .*{says}"):
        read_journal(journal)


def test_a_file_system_without_locks_is_told_from_another_run(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with (
        pytest.raises(PolicyError, match=r"cannot be locked.*No locks available"),
        open_journal(journal, IDENTITY),
    ):
        pass


def test_two_runs_do_not_write_one_journal(journal: Path) -> None:
    with (
        open_journal(journal, IDENTITY),
        pytest.raises(PolicyError, match="another run is writing"),
        open_journal(journal, IDENTITY),
    ):
        pytest.fail("it was opened twice")
    with open_journal(journal, IDENTITY) as (found, _):
        assert found.measured == ANSWERS


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be written"), open_journal(tmp_path / "no" / "j", IDENTITY):
        pytest.fail("it was opened")
    with pytest.raises(PolicyError, match="cannot be read"):
        read_journal(tmp_path / "missing")


def test_a_damaged_line_in_the_middle_can_be_taken_out(journal: Path) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:3], b"\0" * 40 + b"\n", *lines[4:]]))
    with pytest.raises(PolicyError, match="line 4: ") as caught:
        read_journal(journal)
    assert f"sed -i 4d {journal}" in caught.value.hint
    journal.write_bytes(b"".join([*lines[:3], *lines[4:]]))
    assert read_journal(journal).measured == (ANSWERS[0], *ANSWERS[2:])


def test_two_gpus_journals_in_one_file_are_refused(journal: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.points.jsonl"
    with open_journal(other, IDENTITY.model_copy(update={"device": "NVIDIA A100"})) as (_, appender):
        appender.add(ANSWERS[0])
    alike = tmp_path / "alike.points.jsonl"
    alike.write_bytes(journal.read_bytes() * 2)
    assert read_journal(alike).pairs == read_journal(journal).pairs
    journal.write_bytes(journal.read_bytes() + other.read_bytes())
    says = "of device NVIDIA H200, and in line 7 it is NVIDIA A100"
    with pytest.raises(PolicyError, match=says) as caught:
        read_journal(journal)
    assert "keep each in a file of its own" in caught.value.hint


def test_a_curve_is_finished_where_some_run_has_all_its_m(journal: Path) -> None:
    def unfinished(*grids: tuple[int, ...]) -> bool:
        runs = tuple(RUN.model_copy(update={"grid": grid}) for grid in grids)
        return bool(Journal(IDENTITY, runs, ANSWERS).unfinished)

    assert not unfinished((1, 8, 16, 4096))
    assert not unfinished((1, 4096))
    assert unfinished((1, 64))
    assert not unfinished((1, 64), (8, 16))
    assert unfinished((), (1, 64))
    assert not unfinished(())  # of before the M were recorded
    other = Run(command="", date="", products=(("qkv", 64, 64),), grid=(1, 64))
    assert Journal(IDENTITY, (other,), ANSWERS).unfinished == frozenset()
