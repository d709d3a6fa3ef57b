"""What a server did under load. These records are printed, written as CSV and drawn."""

from __future__ import annotations

from sparseflow_trt._schema import Record


class LoadStep(Record):
    """What a server did at one concurrency: as many clients, each of which sends when it was answered.

    Attributes:
        requests: How many were answered; by perf_analyzer, in one of its windows.
        failed: How many were not.
        per_second: Answers a second.
        p50_ms: Of the time from sending to the answer, as the client sees it; the others likewise.
        batches: How many batches of each size the server formed.
        in_sparse: The share of items in batches at or above the sparse threshold; None where there is none.
        by: What measured.
    """

    concurrency: int
    requests: int
    failed: int
    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    batches: dict[int, int]
    in_sparse: float | None
    by: str
