"""Requests at a concurrency: what of it needs no server (tests/serving has the rest)."""

from __future__ import annotations

from typing import Any

from sparseflow_trt.validation import triton_load


def test_a_load_is_sent_where_a_loop_runs_already() -> None:
    async def sent() -> dict[str, Any]:
        return {"requests": 1}

    async def in_a_notebook() -> dict[str, Any]:
        return triton_load._run(sent())

    assert triton_load._run(sent()) == triton_load._run(in_a_notebook()) == {"requests": 1}
