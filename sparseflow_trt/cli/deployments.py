"""Renders deployments: what was written to a repository, and what a server made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparseflow_trt.cli import console
from sparseflow_trt.cli.verdicts import print_validation

if TYPE_CHECKING:
    from sparseflow_trt.serving.deployment import Deployed
    from sparseflow_trt.serving.verify import Verified

_MOST_BATCHES = 4  # sizes that ran most items: --json has all


def model_json(model: Deployed) -> dict[str, Any]:
    """A deployed model for programs."""
    from dataclasses import asdict

    return {
        "name": model.name,
        "route": model.route,
        "version": model.written.version,
        "unchanged": model.written.unchanged,
        "replaces": model.written.replaces,
        "removed": list(model.written.removed),
        "batching": asdict(model.batching),
        "sparse_from": [asdict(row) for row in model.sparse_from],
        "differences": [asdict(difference) for difference in model.written.differences],
        "needs": list(model.needs),
        "notes": list(model.notes),
    }


def print_model(model: Deployed) -> None:
    """Prints what was written, why so, and where an edited configuration differs."""
    out, written = console.out(), model.written
    state = "stands already" if written.unchanged else "written"
    out.print(f"{model.name}: version {written.version} {state} ({written.folder}, {model.route})")
    if written.replaces:
        out.print("  ", console.styled(f"Written anew: {written.replaces}", "yellow"), sep="")
    for note in model.notes:
        out.print("  ", note, sep="")
    if written.removed:
        out.print(f"  Removed: version {', '.join(map(str, written.removed))}.")
    if written.differences:
        out.print("  The configuration was edited; what differs from the fresh one:")
        table = console.table("Field", "Kept", "The file's", "Generated")
        for difference in written.differences:
            table.add_row(difference.field, difference.kept, difference.theirs, difference.ours)
        out.print(table)


def print_load(models: Sequence[str]) -> None:
    """Prints how a running server takes what was written: of a router its two models first."""
    out, order = console.out(), ", one after the other" if len(models) > 1 else ""
    out.print(f"To load it into a running server{order}:")
    for name in models:
        out.print(f"  curl -X POST http://HOST:8000/v2/repository/models/{name}/load")


def print_verified(found: Verified) -> None:
    """Prints the comparison, and what the server did at each concurrency."""
    from sparseflow_trt.validation.triton_load import least_concurrency

    out = console.out()
    out.print(f"{found.model}, version {found.version}")
    for note in found.notes:
        out.print("  ", console.styled(note, "yellow"), sep="")
    print_validation(found.validation)
    if not found.load:
        return
    out.print(
        f"\nUnder load ({found.load[0].by}; clients and server share this machine's CPUs if both are here):"
    )
    table = console.table(
        ">Clients", ">Requests", ">Failed", ">Per s", ">p50 ms", ">p95 ms", ">p99 ms", ">Sparse", "Batches"
    )
    for step in found.load:
        sparse = "" if step.in_sparse is None else f"{step.in_sparse:.0%}"
        table.add_row(
            str(step.concurrency), str(step.requests), str(step.failed), f"{step.per_second:.0f}",
            f"{step.p50_ms:.2f}", f"{step.p95_ms:.2f}", f"{step.p99_ms:.2f}", sparse,
            batch_words(step.batches),
        )  # fmt: skip
    out.print(table)
    if found.sparse_batch:
        least = least_concurrency(found.load)
        said = f"from {least} clients on" if least else "at none of these"
        out.print(
            f"Nine in ten items ran in batches of {found.sparse_batch} and more, where sparse wins, {said}."
        )


def batch_words(batches: Mapping[int, int]) -> str:
    """How many batches of which size, those with the most items first, and how many more sizes there were."""
    largest = sorted(batches.items(), key=lambda row: -row[0] * row[1])
    words = [f"{count}×{size}" for size, count in largest[:_MOST_BATCHES]]
    if more := largest[_MOST_BATCHES:]:
        words.append(f"… {len(more)} more")
    return ", ".join(words)
