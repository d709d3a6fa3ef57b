"""sparseflow-trt policy: lists and shows policies."""

from __future__ import annotations

import click

from sparseflow_trt.cli import console
from sparseflow_trt.cli.options import common_options
from sparseflow_trt.errors import EXIT_OK


@click.group("policy")
def command() -> None:
    """List and show policies: from which M on sparse wins, on which GPU."""


@command.command("list")
@common_options
def list_policies(as_json: bool) -> int:
    """List the policies that are shipped."""
    from sparseflow_trt.policy import read_policy, shipped_policies

    policies = [read_policy(path) for path in shipped_policies().values()]
    if as_json:
        console.print_json([p.model_dump(mode="json", exclude={"points"}) for p in policies])
        return EXIT_OK
    table = console.table("Policy", "Device", "Capability", ">Points", "Thresholds", "Source")
    for policy in policies:
        limits = ", ".join(f"{kind} M≥{t.min_m}" for kind, t in policy.thresholds.items())
        table.add_row(
            policy.name,
            policy.device,
            policy.compute_capability,
            str(len(policy.points)),
            limits,
            policy.source,
        )
    console.out().print(table)
    return EXIT_OK


@command.command("show")
@click.argument("policy")
@common_options
def show_policy(policy: str, as_json: bool) -> int:
    """Show POLICY's points: a shipped one's name, or a file."""
    from sparseflow_trt.policy import find_policy

    found = find_policy(policy)
    if as_json:
        console.print_json(found.model_dump(mode="json"))
        return EXIT_OK
    table = console.table("Kind", ">N", ">K", ">M", "Type", "Kernel", ">µs", ">Against dense")
    dense = {(p.n, p.k, p.m, p.dtype): p.us for p in found.points if p.kernel == "dense"}
    for p in found.points:
        base = dense.get((p.n, p.k, p.m, p.dtype))
        ratio = f"{base / p.us:.2f}×" if base and p.kernel != "dense" else ""
        table.add_row(p.kind, str(p.n), str(p.k), str(p.m), p.dtype, p.kernel, f"{p.us:.2f}", ratio)
    out = console.out()
    out.print(table)
    for kind, limit in found.thresholds.items():
        upper = f" to {limit.max_m}" if limit.max_m else ""
        out.print(f"{kind}: sparse from M={limit.min_m}{upper}")
    out.print(f"Source: {found.source}")
    return EXIT_OK
