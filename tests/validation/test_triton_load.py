"""Requests at a concurrency: what of it needs no server (tests/serving has the rest)."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparseflow_trt.errors import InputError
from sparseflow_trt.validation import triton_load
from sparseflow_trt.validation.triton_runner import ServedAt, ServedModel, triton_inputs


def test_a_load_is_sent_where_a_loop_runs_already() -> None:
    async def sent() -> dict[str, Any]:
        return {"requests": 1}

    async def in_a_notebook() -> dict[str, Any]:
        return triton_load._run(sent())

    assert triton_load._run(sent()) == triton_load._run(in_a_notebook()) == {"requests": 1}


@pytest.mark.parametrize(("batched", "shape"), [(True, [4]), (False, [1, 4])])
def test_perf_analyzer_is_given_whole_requests(tmp_path: Path, batched: bool, shape: list[int]) -> None:
    """A program that keeps what it is given, and answers as perf_analyzer does, stands in for it."""
    program, kept = tmp_path / "perf_analyzer", tmp_path / "kept.json"
    answer = "Inferences/Second,p50 latency,p95 latency,p99 latency\\n250,1000,2000,3000\\n"
    program.write_text(
        f"""#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
        --input-data) cp "$2" {shlex.quote(str(kept))} ;;
        -f) printf '{answer}' > "$2" ;;
    esac
    shift
done
""",
        encoding="utf-8",
    )
    program.chmod(0o755)
    item = {"x": np.arange(4, dtype=np.float32).reshape(1, 4)}
    at = ServedAt("grpc", "127.0.0.1:1", "model")
    served = ServedModel({"x": "FP32"}, {"x": [-1, 4]}, ("y",), frozenset(), 8 if batched else 0)
    found = triton_load._run_perf_analyzer(str(program), at, [item], 2, 1.0, served)
    assert json.loads(kept.read_text()) == {"data": [{"x": {"content": [0, 1, 2, 3], "shape": shape}}]}
    assert (found["requests"], found["per_second"], found["p50_ms"], found["p99_ms"]) == (
        250,
        250.0,
        1.0,
        3.0,
    )


@pytest.mark.parametrize(("kind", "dtype"), [("INT32", np.int32), ("INT64", np.int64)])
def test_integers_are_sent_as_the_server_has_them(kind: str, dtype: type) -> None:
    served = ServedModel({"ids": kind}, {"ids": [-1]}, ("y",), frozenset({"ids"}), 8)
    (given,) = triton_inputs("grpc", served, {"ids": np.asarray([1, 2, 3], np.int64)})
    assert (given.shape(), given.datatype()) == ([3, 1], kind)
    assert given._get_content() == np.asarray([1, 2, 3], dtype).tobytes()
    if kind == "INT32":
        with pytest.raises(InputError, match="input 'ids' holds integers that do not fit INT32"):
            triton_inputs("grpc", served, {"ids": np.asarray([1 << 40])})
