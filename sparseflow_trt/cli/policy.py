"""sparseflow-trt policy: lists policies, shows, draws and asks one, and makes one of other files."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparseflow_trt.cli import console
from sparseflow_trt.cli.options import OutputFile, PlotFile, common_options
from sparseflow_trt.cli.policy_answers import answer_of, print_answer
from sparseflow_trt.cli.policy_tables import print_policy
from sparseflow_trt.errors import EXIT_OK, PolicyError
from sparseflow_trt.plans.traffic import LARGEST_M

if TYPE_CHECKING:
    from sparseflow_trt.policies.policy import Point, Policy

_DTYPES = click.Choice(["FP32", "FP16", "BF16", "INT8", "FP8"], case_sensitive=False)
_SOURCE = 120  # characters of it in the list
_LIBRARIES = click.Choice(["tensorrt", "torch"])


def _kind(text: str) -> str:
    """The kind that --kind names: a mistyped one would be answered as one that was not measured."""
    from sparseflow_trt.model.kinds import known_kind

    try:
        return known_kind(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.group("policy")
def command() -> None:
    """List, show, draw, ask, import and learn policies: from which M on sparse wins, on which GPU."""


@command.command("list")
@common_options
def list_policies(as_json: bool) -> int:
    """List the policies that are shipped."""
    from sparseflow_trt.policies.policy import read_policy, shipped_policies

    policies = [read_policy(path) for path in shipped_policies().values()]
    if as_json:
        rows = (p.model_dump(mode="json", exclude={"points"}) for p in policies)
        counted = ({"points": len(p.points), "types": _types_of(p)} for p in policies)
        console.print_json([{**row, **more} for row, more in zip(rows, counted, strict=True)])
        return EXIT_OK
    columns = ("Policy", "Device", "Capability", ">Points", "Types", "Source")
    cells: list[tuple[str, ...]] = [
        (
            policy.name, policy.device, policy.compute_capability, str(len(policy.points)),
            ", ".join(_types_of(policy)), textwrap.shorten(policy.source, _SOURCE, placeholder=" …"),
        )
        for policy in policies
    ]  # fmt: skip
    cells, sources = console.fold_last(columns, cells)
    table = console.table(*columns)
    for row in cells:
        table.add_row(*row)
    console.out().print(table)
    for source in sources:
        console.say(source)
    console.out().print("\n`sparseflow-trt policy show NAME` says what one holds.")
    return EXIT_OK


def _types_of(policy: Policy) -> list[str]:
    """What it holds points or thresholds of: "torch FP16"."""
    return sorted(" ".join(pair) for pair in policy.held)


@command.command("show")
@click.argument("policy")
@click.option("--library", type=_LIBRARIES, help="Only what was measured with this library.")
@click.option("--dtype", type=_DTYPES, help="Only this type.")
@click.option("--kind", type=_kind, metavar="KIND", help="Only this kind of layer: gate_up, down, qkv, o, …")
@click.option("--n", type=click.IntRange(1), help="Only layers with this many outputs (N).")
@click.option("--k", type=click.IntRange(1), help="Only layers with this many inputs (K).")
@click.option("--points", "every_point", is_flag=True, help="List every measured point.")
@click.option(
    "--plot", type=PlotFile(), metavar="FILE",
    help="Draw the points of one library and type to a .png or .svg file.",
)  # fmt: skip
@common_options
def show_policy(
    policy: str, library: str | None, dtype: str | None, kind: str | None, n: int | None, k: int | None,
    every_point: bool, plot: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Show what POLICY holds: a shipped one's name, a device, or a file.

    One row for each measured shape, with the M at which sparse wins there; --points lists all times. --json
    gives the whole file, or only the points and thresholds that the options choose.
    """
    from sparseflow_trt.policies.policy import find_policy

    found = find_policy(policy)

    def chosen(row: Any) -> bool:
        asked = ((library, row.library), (dtype, row.dtype), (kind, row.kind))
        return all(wanted in (None, given) for wanted, given in asked)

    def of_shape(shape: tuple[int, int]) -> bool:
        return n in (None, shape[0]) and k in (None, shape[1])

    points = tuple(p for p in found.points if chosen(p) and of_shape((p.n, p.k)))
    kinds = {p.kind for p in points}  # a threshold that names no shapes is of all of its kind
    limits = tuple(
        limit
        for limit in filter(chosen, found.thresholds)
        if (any(map(of_shape, limit.shapes)) if limit.shapes else not (n or k) or limit.kind in kinds)
    )
    shown = found.model_copy(update={"points": points, "thresholds": limits})
    if not plot and not shown.points and not shown.thresholds:
        raise _nothing_held(found, policy)
    drawn = _draw(found, policy, shown.points, plot) if plot else ""
    if as_json:
        console.print_json(shown.model_dump(mode="json"))
        return EXIT_OK
    print_policy(found, shown, every_point)
    if drawn:
        console.out().print(f"\n{drawn}")
    return EXIT_OK


def _nothing_held(found: Policy, named: str) -> PolicyError:
    if not found.held:
        return PolicyError(
            f"policy '{found.name}' holds no points and no thresholds, so every layer is dense.",
            "`sparseflow-trt autotune MODEL -o FILE` measures one on a GPU.",
        )
    held = ", ".join(_types_of(found))
    return PolicyError(
        f"policy '{found.name}' holds nothing for that library, type, kind and shape.",
        f"It holds {held}; `sparseflow-trt policy show {shlex.quote(named)}` lists it.",
    )


@command.command("ask", short_help="Ask a policy about one product, and show the points behind it.")
@click.argument("policy")
@click.option("--kind", required=True, type=_kind, metavar="KIND", help="gate_up, down, qkv, o, ffn, conv, …")
@click.option("--n", required=True, type=click.IntRange(1), help="The layer's outputs.")
@click.option("--k", required=True, type=click.IntRange(1), help="Its inputs.")
@click.option("--m", required=True, type=click.IntRange(1, LARGEST_M), help="Its rows.")
@click.option("--dtype", type=_DTYPES, default="FP16", show_default=True)
@click.option("--library", type=_LIBRARIES, default="tensorrt", show_default=True)
@click.option(
    "--plugin", is_flag=True, help="Ask for the 2:4 plugin in TensorRT, not for the library's kernels."
)
@common_options
def ask_policy(
    policy: str, kind: str, n: int, k: int, m: int, dtype: str, library: Any, plugin: bool, as_json: bool
) -> int:
    """Ask POLICY about one product, and show the points behind its answer."""
    from sparseflow_trt.policies.gemm import Gemm
    from sparseflow_trt.policies.policy import find_policy

    if plugin and library == "torch":
        raise click.UsageError("--plugin runs in TensorRT: leave out --library torch.")
    found = find_policy(policy)
    answer = answer_of(found, Gemm(kind, n, k, dtype), m, library, plugin)
    if as_json:
        console.print_json(answer.as_json())
    else:
        print_answer(answer)
    return EXIT_OK


@command.command("import", short_help="Make a policy from an older file of thresholds.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="The policy's name.")
@click.option("--device", required=True, help="The GPU it was measured on: 'NVIDIA A100-SXM4-80GB'.")
@click.option("--compute-capability", required=True, metavar="X.Y", help="That GPU's: 8.0.")
@click.option(
    "--shape", "shapes", multiple=True, metavar="OP=N,K",
    help="N and K of an operation in a CSV, which does not hold them: --shape gate_proj=14336,4096.",
)  # fmt: skip
@click.option("-o", "--output", required=True, type=OutputFile(), help="Write the policy there.")
@common_options
def import_file(
    file: Path, name: str, device: str, compute_capability: str, shapes: tuple[str, ...], output: Path,
    as_json: bool,
) -> int:  # fmt: skip
    """Make a policy from FILE: {"ops": {"gate_proj": {"min_m": 256}}} or a CSV op,M,pruned_dense_us,…."""
    from sparseflow_trt.policies.policy_import import import_policy

    if not re.fullmatch(r"\d+\.\d", compute_capability):
        raise click.BadParameter(f"'{compute_capability}' is not X.Y", param_hint="--compute-capability")
    if output.exists() and file.exists() and output.samefile(file):
        raise PolicyError(f"{output} is the file to import itself.", "Name another file with --output.")
    for option, words in (("--name", name), ("--device", device)):
        if not words.strip():
            raise click.BadParameter("it is empty", param_hint=option)
    policy = import_policy(file, name, device, compute_capability, _shapes_of(shapes))
    return _write(policy, output, as_json)


@command.command("learn", short_help="Make a policy from what TensorRT's builder measured.")
@click.argument("artifacts", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--name", required=True, help="The policy's name.")
@click.option(
    "--into", metavar="POLICY", help="A policy to add to: a shipped one's name, a device, or a file."
)
@click.option("-o", "--output", required=True, type=OutputFile(), help="Write the policy there.")
@common_options
def learn_from_artifacts(
    artifacts: tuple[Path, ...], name: str, into: str | None, output: Path, as_json: bool
) -> int:
    """Make a policy from what TensorRT's builder measured while it built ARTIFACTS with sparse weights.

    The builder times a kernel with its weights in the GPU's cache: such a policy says which kernel the
    builder prefers. What an engine gains by it, `build --verdict` measures.
    """
    from sparseflow_trt.artifacts.learn import learn_policy
    from sparseflow_trt.artifacts.manifest import read_manifest
    from sparseflow_trt.policies.policy import find_policy

    manifests = {str(artifact): read_manifest(artifact) for artifact in artifacts}
    policy = learn_policy(manifests, name, find_policy(into) if into else None)
    return _write(policy, output, as_json)


def _write(policy: Policy, output: Path, as_json: bool) -> int:
    from sparseflow_trt._files import write_atomically
    from sparseflow_trt.policies.policy import json_from_policy

    write_atomically(output, json_from_policy(policy))
    if as_json:
        console.print_json(policy.model_dump(mode="json"))
        return EXIT_OK
    print_policy(policy, policy)
    plan = shlex.join(["sparseflow-trt", "plan", "MODEL", "--policy", str(output)])
    console.out().print(f"\nWritten: {output}. Plan with it: {plan}")
    return EXIT_OK


def _shapes_of(texts: Sequence[str]) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for operation, shape in map(_parse_shape, texts):
        if found.setdefault(operation, shape) != shape:
            raise click.BadParameter(f"'{operation}' is given two shapes", param_hint="--shape")
    return found


def _parse_shape(text: str) -> tuple[str, tuple[int, int]]:
    operation, _, sizes = text.partition("=")
    numbers = [part.strip() for part in sizes.split(",")]
    if not operation.strip() or len(numbers) != 2 or not all(part.isdecimal() for part in numbers):
        raise click.BadParameter(f"'{text}' is not OP=N,K", param_hint="--shape")
    return operation.strip(), (int(numbers[0]), int(numbers[1]))


def _draw(policy: Policy, named: str, shown: Sequence[Point], path: Path) -> str:
    """Draws the first library and type that has times of both; says which, and what else there is."""
    from sparseflow_trt.report.policy_panels import curves_by_shape
    from sparseflow_trt.report.policy_plot import plot_policy

    groups: dict[Any, list[Point]] = {}
    for point in sorted(shown, key=lambda p: (p.library, p.dtype != "FP16", p.dtype)):
        groups.setdefault((point.library, point.dtype), []).append(point)
    drawable = [group for group, points in groups.items() if curves_by_shape(points)]
    if not drawable:
        raise PolicyError(
            f"policy '{policy.name}' holds nothing to draw: no product was measured dense and sparse.",
            f"`sparseflow-trt policy show {shlex.quote(named)}` lists what it holds.",
        )
    library, dtype = drawable[0]
    plot_policy(policy, path, library, dtype, groups[library, dtype])
    others = ", ".join(f"--library {library} --dtype {dtype}" for library, dtype in drawable[1:])
    return f"Drawn: {path} ({' '.join(drawable[0])})." + (f" The others: {others}." if others else "")
