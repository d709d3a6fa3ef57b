"""bench, as far as a machine without a GPU goes: what it refuses, and what it makes of times."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparseflow_trt.building.timing import TimedShapes
from sparseflow_trt.engines.running.benchmark import EngineMemory, Ratio, Timing
from sparseflow_trt.engines.running.layer_times import LayerTime


def test_only_tensorrt_engines_are_timed(sparseflow: Any, mlp: Any) -> None:
    made = sparseflow("build", mlp(), "-o", "made", "--dim", "batch=1,2,4", "--backend", "onnxruntime")
    assert made.code == 0, made.err
    Path("made/model.onnx").unlink()  # nothing is read for that: there may be gigabytes of it
    assert sparseflow("bench", "made").error == (
        "made holds an engine of onnxruntime; only TensorRT's are timed."
    )


def test_a_folder_that_is_no_artifact_is_refused(sparseflow: Any) -> None:
    assert sparseflow("bench", "nowhere").error.startswith("there is no artifact nowhere")


def layers(*named: tuple[str, float]) -> tuple[LayerTime, ...]:
    total = sum(ms for _, ms in named)
    return tuple(LayerTime(name, ms, ms / total) for name, ms in named)


OWN = Timing(
    (0.5,), 0.5, 0.6, 0.7, 20, 2000.0, EngineMemory(4096, 5_000_000), layers(("up", 0.1), ("down", 0.4))
)
OTHER = Timing(
    (1.0,), 1.0, 1.1, 1.2, 20, 1000.0, EngineMemory(8192, 6_000_000), layers(("up", 0.9), ("a[b]", 0.3))
)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """In the place of a GPU: what was asked for, answered with fixed times."""
    asked: list[tuple[Any, ...]] = []

    def time(folder: Path, against: Path | None, *options: Any) -> tuple[TimedShapes, ...]:
        rounds, launches, _, with_layers = options
        asked.append((folder, against, rounds, launches, with_layers))
        own, other = (t if with_layers else replace(t, layers=()) for t in (OWN, OTHER))
        if against is None:
            return (TimedShapes(shapes="default:opt: x 4×64", timing=own, against=None, speedup=None),)
        speedup = Ratio(2.0, 1.9, 2.1)
        return (TimedShapes(shapes="default:opt: x 4×64", timing=own, against=other, speedup=speedup),)

    monkeypatch.setattr("sparseflow_trt.building.timing.time_artifacts", time)
    return asked


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def test_the_table_has_times_throughput_and_memory(sparseflow: Any, timed: list[tuple[Any, ...]]) -> None:
    done = sparseflow("bench", "a", "--rounds", "3", "--launches", "5")
    assert timed == [(Path("a"), None, 3, 5, False)]
    header, row, memory = done.out.splitlines()
    assert dict(zip(cells(header)[:5], cells(row), strict=True)) == {
        "Shapes": "default:opt: x 4×64", "Runs/s": "2000",
        "p50 ms": "0.5000", "p90 ms": "0.6000", "p99 ms": "0.7000",
    }  # fmt: skip
    assert memory == "a: its context takes 4.1 KB of GPU memory; loading it took 5.0 MB in all."


def test_two_artifacts_are_compared_layer_by_layer(sparseflow: Any, timed: list[tuple[Any, ...]]) -> None:
    done = sparseflow("bench", "a", "--against", "b", "--layers")
    assert timed == [(Path("a"), Path("b"), 15, 20, True)]
    lines = done.out.splitlines()
    assert cells(lines[1])[-3:] == ["1.0000", "2.000×", "1.900–2.100"]
    assert [line.partition(":")[0] for line in lines[2:4]] == ["a", "b"]
    assert lines[5] == "default:opt: x 4×64: the slowest of 3 layers"
    assert [cells(line) for line in lines[6:]] == [
        ["Layer", "ms", "Share", "Against ms"],
        ["up", "0.1000", "20.0%", "0.9000"],
        ["down", "0.4000", "80.0%", "–"],
        ["a[b]", "–", "0.3000"],
        ["all layers, one by one", "0.5000", "1.2000"],
    ]


@pytest.mark.parametrize("asked", [True, False])
def test_json_has_it_all(sparseflow: Any, timed: list[tuple[Any, ...]], asked: bool) -> None:
    done = sparseflow("bench", "a", "--json", *(["--layers"] if asked else []))
    (row,) = done.json
    assert row["shapes"] == "default:opt: x 4×64"
    assert (row["against"], row["speedup"]) == (None, None)
    assert row["timing"] == {
        "rounds": [0.5], "p50": 0.5, "p90": 0.6, "p99": 0.7, "launches": 20, "per_second": 2000.0,
        "memory": {"context": 4096, "loaded": 5_000_000},
        "layers": [
            {"name": "up", "ms": 0.1, "share": 0.2}, {"name": "down", "ms": 0.4, "share": 0.8}
        ] if asked else [],
    }  # fmt: skip
