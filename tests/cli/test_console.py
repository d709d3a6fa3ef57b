"""Tables at any width of the terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from sparseflow_trt.artifacts.verdict import Validation
from sparseflow_trt.cli import console
from sparseflow_trt.cli.verdicts import print_validation


@pytest.mark.parametrize("width", [20, 60, 80, 100, 160])
def test_no_number_is_ever_cut(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    table = console.table("Layer", ">N", ">Dense µs", "Type", "Basis")
    table.add_row(
        "/model/layers.0/mlp/gate_proj/MatMul", "14336", "1,147.99", "FP16", "class threshold (no time)"
    )
    table.add_row("/model/layers.0/mlp/down_proj/MatMul", "4096", "1,097.17", "FP16", "nearest shape")
    console.out().print(table)
    printed = capsys.readouterr().out
    assert {"14336", "1,147.99", "4096", "1,097.17", "FP16", "threshold", "Dense", "µs"} <= set(
        printed.split()
    )


@pytest.mark.parametrize("width", [20, 60, 80, 160])
def test_ranges_and_words_of_a_list_are_not_broken(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    table = console.table("Kind", ">N", "Wins at M", "Basis", "Prune")
    table.add_row("gate_up", "14336", "1–128, 2048–16384 and 5 more", "estimated, extrapolated", "unknown")
    console.out().print(table)
    words = capsys.readouterr().out.split()
    assert {"1–128,", "2048–16384", "estimated,", "extrapolated", "unknown"} <= set(words)


def test_a_table_is_no_wider_than_the_terminal_where_its_words_have_room(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    table = console.table("Of what", "Candidate", ">Was")
    table.add_row("weights 2:4: layers.0.self_attn.q_proj", "engine (onnxruntime)", "cosine 1.0000000")
    console.out().print(table)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 60
    assert {"layers.0.self_attn.q_proj", "(onnxruntime)", "1.0000000"} <= set(printed.split())


@pytest.mark.parametrize(
    ("width", "header", "below"),
    [
        (40, ["Kind", "Type", "Share", "Basis"], None),
        (31, ["Kind", "Share", "Basis"], "Not shown, as the terminal is narrow: Type."),
        (28, ["Kind", "Basis"], "Not shown, as the terminal is narrow: Type, Share."),
        (10, ["Kind", "Basis"], "Not shown, as the terminal is narrow: Type, Share."),
    ],
)
def test_columns_that_can_be_spared_make_room(
    width: int,
    header: list[str],
    below: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    table = console.table("Kind", "Type", ">Share", "Basis", spared=("Type", "Share"))
    table.add_row("gate_up", "FP16", "100.0%", "extrapolated")
    for _ in range(2):  # a table can be printed twice
        console.out().print(table)
        first, row, *rest = capsys.readouterr().out.splitlines()
        assert first.split() == header
        assert len(row.split()) == len(header)
        assert rest == ([below] if below else [])
        assert len(row) <= max(width, 21)


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (42, ["/model/layers.0/mlp/gate_proj/MatMul"]),
        (40, ["/model/layers.0/mlp/gate_proj/", "MatMul"]),
        (20, ["/model/", "layers.0/mlp/", "gate_proj/", "MatMul"]),
    ],
)
def test_a_name_is_broken_between_its_parts(
    width: int, lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    table = console.table("Layer", ">N")
    table.add_row("".join(lines), "4096")
    for _ in range(2):  # a table can be printed twice
        console.out().print(table)
        printed = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in printed[1:]] == lines
        assert max(map(len, printed)) <= width


def test_a_name_of_one_long_word_is_broken_at_its_dashes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "32")
    table = console.table("Kernel or layer", ">Share")
    table.add_row("sm80_xmma_gemm_f16f16_f16f16_f16_nn", "100.0%")
    console.out().print(table)
    printed = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in printed] == ["sm80_xmma_gemm_f16f16_", "f16f16_f16_nn"]


def test_names_have_room_before_columns_that_can_be_spared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = console.table("Layer", ">N", "Op", spared=("Op",))
    table.add_row("encoder.layer.*.attention.query (6)", "384", "MatMul")
    console.out().print(table)
    assert capsys.readouterr().out.splitlines() == [
        "Layer                                  N", "encoder.layer.*.attention.query (6)  384",
        "Not shown, as the terminal is narrow: Op.",
    ]  # fmt: skip


def test_a_table_that_fits_keeps_to_the_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    table = console.table(">N", "Reason")
    table.add_row("14336", "sparse for M of 256 and more, and M is 1024 in this profile")
    console.out().print(table)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 50


def test_rows_alike_but_for_numbers_are_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    table = console.table("Layer", "2:4")
    rows = [
        (f"block1.layer.{i}.{name}", state)
        for i in range(12)
        for name, state in (("q", "sparse"), ("k", "no"))
    ]
    console.add_alike(table, [*rows, ("block1.layer.12.q", "no"), ("head", "no")], {"sparse": "green"})
    console.out().print(table)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert printed[1:] == [
        ["block1.layer.*.q", "(12)", "sparse"],
        ["block1.layer.*.k", "(12)", "no"],
        ["block1.layer.12.q", "no"],
        ["head", "no"],
    ]


@pytest.mark.parametrize(
    ("done", "total", "shown"),
    [
        (3, 9, ""),  # runs, or points
        (1_100_000_000, 2_200_000_000, "1.1 GB of 2.2 GB"),
        (0, 16_060_000_000, "0 B of 16.1 GB"),
    ],
)
def test_a_step_that_goes_by_bytes_shows_them(done: int, total: int, shown: str) -> None:
    assert console.amount_of(done, total) == shown


def test_progress_on_a_terminal_shows_bytes_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    terminal = Console(file=written, force_terminal=True, width=160)
    monkeypatch.setattr(console, "Console", lambda **_: terminal)
    with console.progress_bar() as show:
        assert "Starting" in written.getvalue(), "before the first step there are words, too"
        show("Pruning", 1_100_000_000, 2_200_000_000)
    assert "Pruning" in written.getvalue()
    assert "1.1 GB of 2.2 GB" in written.getvalue()
    assert "left" in written.getvalue()


@pytest.mark.parametrize(("width", "lines"), [(40, ["Build it with: build model.onnx"]),
                                              (20, ["Build it with:", "  build model.onnx"])])  # fmt: skip
def test_a_command_behind_a_sentence_stays_whole(
    width: int, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.StringIO()
    terminal = Console(file=written, force_terminal=True, width=width)
    monkeypatch.setattr(console, "out", lambda: terminal)
    console.say("Build it with: ", "build model.onnx")
    assert written.getvalue().splitlines() == lines


@pytest.mark.parametrize("width", [80, 160])
def test_sentences_with_no_room_stand_below_their_table(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    columns = ("Kind", ">N", "Reason")
    why = "sparse for M of 256 and more, and M is 1024 in this profile"
    rows = [("x" * 40, "14336", why), ("y", "1", "short"), ("z", "2", why)]
    if width == 160:
        assert console.fold_last(columns, rows) == (rows, [])
    else:
        folded, lines = console.fold_last(columns, rows)
        assert folded == [("x" * 40, "14336", "[1]"), ("y", "1", "[2]"), ("z", "2", "[1]")]
        assert lines == [f"[1] {why}", "[2] short"]


def test_a_row_without_a_sentence_gets_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    rows = [("x" * 40, ""), ("y", "a reason that is longer than the room for it")]
    assert console.fold_last(("Kind", "Why"), rows) == ([("x" * 40, ""), ("y", "[1]")], [f"[1] {rows[1][1]}"])


def test_a_sentence_that_is_short_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    rows = [("x" * 40, "short")]
    assert console.fold_last(("Kind", "Reason"), rows) == (rows, [])
    assert console.fold_last(("Kind", "Reason"), []) == ([], [])


@pytest.mark.parametrize(
    ("width", "output", "columns"),
    [
        (72, "sentence_embedding", 6),
        (80, "sentence_embedding", 7),
        (80, "y", 8),
        (90, "y", 9),
        (160, "sentence_embedding", 9),
    ],
)
def test_names_of_candidates_are_broken_at_spaces_alone(
    width: int, output: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    figures = {"max_abs": 9e-4, "mean_abs": 1e-4, "cosine": 0.999, "psnr": 74.2}
    bounds = {"max_abs": 1.0, "max_rel": 1.0, "min_cosine": 0.9}
    found = {"output": output, "input_set": "s", "passed": True, "tolerance": bounds, **figures}
    names = ("typed model, rounded as typed, CPU", "engine (tensorrt-rtx)")
    candidates = [
        {"name": name, "file": "f", "verdict": verdict, "reason": "", "outputs": outputs}
        for name, verdict, outputs in zip(names, ("pass", "not run"), ([found], []), strict=True)
    ]
    said = {"verdict": "pass", "reason": "", "reference": "r", "reference_runtime": "", "compared_by": ""}
    print_validation(Validation.model_validate({**said, "input_sets": [], "candidates": candidates}))
    lines = capsys.readouterr().out.splitlines()[3:]
    words = {word for line in lines for word in line.split()}
    assert {*" ".join(names).split(), output, "9.00e-04", "0.999000"} <= words
    assert len(re.split(r"  +", lines[0].strip())) == columns
    assert max(map(len, lines)) <= width
