"""Requests at a given concurrency: how many a second, how late, and in which batches the server ran them."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from sparseflow_trt._deps import require
from sparseflow_trt.artifacts.load_record import LoadStep
from sparseflow_trt.errors import DeployError, one_line
from sparseflow_trt.validation.feeds import Array
from sparseflow_trt.validation.triton_runner import (
    ServedAt,
    ServedModel,
    asked,
    describe_model,
    triton_client,
    triton_inputs,
)

Feeds = dict[str, Array]
OnStep = Callable[[int, int], None]  # steps done, steps in all
_ENOUGH = 0.9  # of the items, in batches at or above the threshold


def sweep(
    at: ServedAt,
    items: Sequence[Feeds],
    concurrencies: Sequence[int],
    seconds: float,
    least: int | None = None,
    perf_analyzer: str | None = None,
    on_step: OnStep = lambda done, total: None,
) -> tuple[LoadStep, ...]:
    """Measures a model at several concurrencies, one after another.

    Args:
        at: The model, over gRPC.
        items: What is sent, in turn: requests of one item.
        concurrencies: How many clients at once.
        seconds: How long each step takes.
        least: The batch from which sparse layers win, if there is one.
        perf_analyzer: NVIDIA's program, where it is to measure; None for tritonclient's asynchronous client.
        on_step: Told of each step as it ends.

    Raises:
        DeployError: perf_analyzer failed, or the server refuses the requests.
        InputError: The server does not know the model, or an item does not fit.
        NotInstalledError: tritonclient is missing.
    """
    steps = []
    with contextlib.closing(triton_client(at)) as client:
        served = asked(describe_model, client, at)
    for number, concurrency in enumerate(concurrencies):
        before = batch_counts(at)
        if perf_analyzer:
            measured = _run_perf_analyzer(perf_analyzer, at, items, concurrency, seconds, served)
        else:
            measured = _run(_send(at, served, items, concurrency, seconds))
        formed = {
            size: n - before.get(size, 0) for size, n in batch_counts(at).items() if n > before.get(size, 0)
        }
        steps.append(
            LoadStep(concurrency=concurrency, batches=formed, in_sparse=_share(formed, least), **measured)
        )
        on_step(number + 1, len(concurrencies))
    return tuple(steps)


def _run(sending: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Runs a coroutine to its end, in a thread of its own where this one has a loop already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(sending)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, sending).result()


def least_concurrency(steps: Sequence[LoadStep]) -> int | None:
    """The least concurrency from which on nine in ten items run in batches at or above the threshold."""
    reached = None
    for step in reversed(steps):
        if step.in_sparse is None or step.in_sparse < _ENOUGH:
            break
        reached = step.concurrency
    return reached


def find_perf_analyzer() -> str | None:
    """NVIDIA's perf_analyzer, where it is on the PATH and runs: PyPI's is a name without a program."""
    found = shutil.which("perf_analyzer")
    if found is None:
        return None
    try:
        done = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found if done.returncode == 0 and "Perf Analyzer" in done.stdout + done.stderr else None


def batch_counts(at: ServedAt) -> dict[int, int]:
    """How many batches of each size a server has run of a model's newest version."""
    with contextlib.closing(triton_client(at)) as client:
        said = client.get_inference_statistics(at.model, at.version, as_json=True)
    counts: dict[int, int] = {}
    for model in said.get("model_stats", ()):
        for row in model.get("batch_stats", ()):
            size = int(row["batch_size"])
            counts[size] = counts.get(size, 0) + int(row.get("compute_infer", {}).get("count", 0))
    return counts


def write_csv(steps: Sequence[LoadStep], path: Path) -> None:
    """Writes one row for each concurrency."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        fields = [name for name in LoadStep.model_fields if name != "batches"]
        writer.writerow([*fields, "batches"])
        for step in steps:
            batches = " ".join(f"{size}:{count}" for size, count in sorted(step.batches.items()))
            writer.writerow([*(getattr(step, name) for name in fields), batches])


def _share(batches: dict[int, int], least: int | None) -> float | None:
    total = sum(size * count for size, count in batches.items())
    if least is None or not total:
        return None
    return round(sum(size * count for size, count in batches.items() if size >= least) / total, 4)


async def _send(
    at: ServedAt, served: ServedModel, items: Sequence[Feeds], concurrency: int, seconds: float
) -> dict[str, Any]:
    aio = require("tritonclient.grpc.aio", "measuring a Triton server")
    from tritonclient.utils import InferenceServerException

    prepared = [triton_inputs("grpc", served, feeds) for feeds in items]
    took: list[float] = []
    failed = 0
    async with aio.InferenceServerClient(at.address) as client:
        try:  # the connection is not what is measured
            await client.infer(at.model, prepared[0], at.version)
        except InferenceServerException as error:
            if "CANCELLED" in str(error.status()):
                raise asyncio.CancelledError from error
            raise DeployError(
                f"the server refuses requests of one item: {one_line(error)}",
                "Its log says more; `--concurrency 0` only compares outputs.",
            ) from error
        started = time.perf_counter()
        end = started + seconds

        async def ask(first: int) -> None:
            nonlocal failed
            number = first
            while (sent := time.perf_counter()) < end:
                try:
                    await client.infer(at.model, prepared[number % len(prepared)], at.version)
                    took.append(time.perf_counter() - sent)
                except InferenceServerException as error:
                    if "CANCELLED" in str(error.status()):  # Ctrl-C, as tritonclient may put it
                        raise asyncio.CancelledError from error
                    failed += 1
                number += 1

        await asyncio.gather(*(ask(first) for first in range(concurrency)))
        elapsed = time.perf_counter() - started
    quantiles = [float(value) * 1e3 for value in np.percentile(took or [0.0], [50, 95, 99])]
    return _figures(len(took), failed, len(took) / elapsed, quantiles, "tritonclient, asynchronous, gRPC")


def _figures(requests: int, failed: int, rate: float, quantiles: Sequence[float], by: str) -> dict[str, Any]:
    p50, p95, p99 = (round(value, 3) for value in quantiles)
    return {
        "requests": requests, "failed": failed, "per_second": round(rate, 1), "p50_ms": p50, "p95_ms": p95,
        "p99_ms": p99, "by": by,
    }  # fmt: skip


def _run_perf_analyzer(
    program: str, at: ServedAt, items: Sequence[Feeds], concurrency: int, seconds: float, served: ServedModel
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="sparseflow-perf-") as folder:
        data, out = Path(folder) / "data.json", Path(folder) / "out.csv"
        own = 1 if served.max_batch_size else 0  # perf_analyzer adds a batch of 1 itself
        rows = [
            {
                name: {"content": a.ravel().tolist(), "shape": list(a.shape[own:]) or [1]}
                for name, a in feeds.items()
            }
            for feeds in items
        ]
        data.write_text(json.dumps({"data": rows}), encoding="utf-8")
        command = [
            program, "-m", at.model, "-u", at.address, "-i", "grpc", "--async", "-b", "1",
            "--concurrency-range", f"{concurrency}:{concurrency}", "--measurement-interval",
            str(int(seconds * 1000)), "-s", "50", "--input-data", str(data), "-f", str(out),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not out.is_file():
            said = " ".join((done.stderr or done.stdout).split())[-400:]
            raise DeployError(f"perf_analyzer failed: {said}", "Leave it out with --no-perf-analyzer.")
        with out.open(newline="", encoding="utf-8") as stream:
            row = next(csv.DictReader(stream))
    quantiles = [float(row[f"p{q} latency"]) / 1e3 for q in (50, 95, 99)]
    rate = float(row["Inferences/Second"])
    return _figures(round(rate * seconds), 0, rate, quantiles, "perf_analyzer, gRPC")
