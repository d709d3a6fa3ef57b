"""sparseflow-trt export: a PyTorch module, a Hugging Face folder or an artifact to ONNX."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparseflow_trt._listing import listed
from sparseflow_trt.cli import console
from sparseflow_trt.cli.option_values import read_ranges, take_export_options
from sparseflow_trt.cli.options import common_options, export_options
from sparseflow_trt.cli.verdicts import exit_code_of, print_validation
from sparseflow_trt.errors import EXIT_OK

if TYPE_CHECKING:
    from sparseflow_trt.export import ExportReport


@click.command("export")
@click.argument("source")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path),
    help="The ONNX file. Default: ./NAME.onnx, ./FILE.FUNCTION.onnx for a function, ./NAME.typed.onnx for "
    "NAME.artifact.",
)  # fmt: skip
@export_options
@click.option(
    "--dim", "dims", multiple=True, metavar="AXIS=MIN,OPT,MAX",
    help="Sizes of an axis at which to compare the file with the module: --dim seq=1,128,512.",
)  # fmt: skip
@click.option("--no-check", is_flag=True, help="Do not compare the file with the module.")
@common_options
def command(
    source: str, output: Path | None, dims: tuple[str, ...], no_check: bool, as_json: bool, **options: Any
) -> int:
    """Export SOURCE to ONNX, and compare the file with PyTorch at several shapes.

    An artifact's folder gives its typed model, with each weight as it was before the build kept its layer out
    of sparse kernels.

    SOURCE is a folder with a Hugging Face config.json and weights, or FILE.py:FUNCTION or MODULE:FUNCTION
    that returns (module, inputs) or (module, inputs, axes). Nothing is downloaded. If the outputs differ,
    nothing is written and the exit code is 4.
    """
    from sparseflow_trt.building.artifact_export import is_artifact
    from sparseflow_trt.export import ExportOptions, export_model

    asked = take_export_options(options)
    if is_artifact(source):
        if asked != ExportOptions() or dims or no_check:
            raise click.UsageError(
                f"{source} is an artifact, whose model is written as it is typed: give no export options."
            )
        return _export_artifact(Path(source), output, as_json)
    sizes, _ = read_ranges(dims, ())
    if dims and no_check:
        raise click.UsageError(
            "--dim says at which sizes to compare, and --no-check compares nothing: leave out one."
        )
    asked = dataclasses.replace(asked, check=not no_check, sizes=sizes)
    output = output or Path(f"{source_stem(source)}.onnx")
    with console.progress_bar() as show:
        report = export_model(source, output, asked, lambda p: show(p.step, p.done, p.total))
    if as_json:
        console.print_json(plain_export(report))
    else:
        print_export(report)
    return exit_code_of(report.validation) if report.validation else EXIT_OK


def _export_artifact(folder: Path, output: Path | None, as_json: bool) -> int:
    from sparseflow_trt.building.artifact_export import export_artifact

    name = folder.resolve().name.removesuffix(".artifact")
    with console.progress_bar() as show:
        done = export_artifact(
            folder, output or Path(f"{name}.typed.onnx"), lambda p: show(p.step, p.done, p.total)
        )
    if as_json:
        files = [str(file) for file in done.files]
        console.print_json(
            {"output": files[-1], "files": files, "bytes": done.bytes, "put_back": list(done.put_back)}
        )
        return EXIT_OK
    out = console.out()
    named = ", ".join(f"'{name}'" for name in done.put_back)
    said = f"Put back bit for bit, one element each: the weights of {len(done.put_back)} layer(s): {named}."
    out.print(said if named else "No layer was taken out of sparse kernels: there was nothing to put back.")
    out.print(f"Written: {', '.join(map(str, done.files))} ({console.size(done.bytes)})")
    return EXIT_OK


def source_stem(source: str) -> str:
    """What a file made of a source is called."""
    from sparseflow_trt._user_code import function_stem

    path = Path(source)
    if path.name == "config.json":
        path = path.parent
    return path.resolve().name if path.exists() else function_stem(source)


def print_export(report: ExportReport, advise: bool = True) -> None:
    """Prints what was exported, its axes and layers, and how it compares with the module.

    Args:
        report: The export's.
        advise: Whether to say what to do with layers that no plan is for; a build of the file says it, too.
    """
    from sparseflow_trt.model.graph import left_as_they_are
    from sparseflow_trt.model.layer_names import shown_names

    out = console.out()
    counts = Counter((layer.kind, layer.state.value) for layer in report.layers if layer.has_constant)
    table = console.table("Kind", "2:4", ">Layers")
    for (kind, state), number in counts.items():
        table.add_row(kind, state, str(number))
    if counts:
        out.print(table)
    for name, dims in report.inputs.items():
        out.print(f"Input '{name}': [{', '.join(map(str, dims))}]")
    masks = report.masks
    out.print(
        f"\n{masks.compared} layer(s) have their zeros where the module has them; {masks.sparse} of them are "
        "2:4."
    )
    for said in left_as_they_are(report.layers) if advise else ():
        out.print(console.styled(said, "yellow"))
    if masks.foreign:
        shown = shown_names(report.layers)
        named = listed([f"'{shown[name]}'" for name in masks.foreign], 1)
        out.print(console.styled(f"Not compared, since they multiply by no parameter: {named}.", "yellow"))
    if report.validation:
        print_validation(report.validation, "PyTorch")
    else:
        out.print(console.styled("Not compared with PyTorch: --no-check.", "yellow"))
    seconds = ", ".join(f"{step} {value:.1f} s" for step, value in report.seconds.items())
    if not report.written:
        out.print(console.styled("\nNothing was written.", "red"))
        for axis, size in report.fixed.items():
            out.print(_fixed(report, axis, size))
        return
    where = ", ".join(map(str, report.files))
    out.print(
        f"\nWritten: {where} ({console.size(report.bytes)}): {report.task}, opset {report.opset}\n  {seconds}"
    )


def _fixed(report: ExportReport, axis: str, size: int) -> str:
    from sparseflow_trt.exporters.torch_onnx import LEAVE_OUT

    places = (
        f"dimension {index} of input '{name}'"
        for name, dims in report.inputs.items()
        for index, dim in enumerate(dims)
        if dim == axis
    )
    where = f"axis '{axis}' ({', '.join(places)}) at {size}, the size it was traced with"
    return f"torch's exporter fixed {where}: the file fails at other sizes. {LEAVE_OUT}"


def plain_export(report: ExportReport) -> dict[str, Any]:
    """An export's report as plain data, for JSON."""
    return {
        "output": str(report.files[-1]) if report.written else None,
        "files": [str(file) for file in report.files] if report.written else [],
        "task": report.task,
        "opset": report.opset,
        "bytes": report.bytes,
        "inputs": report.inputs,
        "outputs": report.outputs,
        "layers": [
            {
                "name": layer.name, "module": layer.module, "kind": layer.kind, "weight": layer.weight,
                "n": layer.n, "k": layer.k, "dtype": layer.dtype, "state": layer.state.value,
                "reason": layer.reason,
            }
            for layer in report.layers
        ],
        "masks": dataclasses.asdict(report.masks),
        "validation": report.validation.model_dump(mode="json") if report.validation else None,
        "seconds": report.seconds,
        "fixed_axes": report.fixed,
    }  # fmt: skip
