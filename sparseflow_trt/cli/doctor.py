"""sparseflow-trt doctor: what this machine can do, and what to install for what it cannot."""

from __future__ import annotations

import click

from sparseflow_trt.cli import console
from sparseflow_trt.cli.options import common_options
from sparseflow_trt.errors import EXIT_OK


@click.command("doctor")
@common_options
def command(as_json: bool) -> int:
    """Say what this machine can do: GPU, TensorRT, ONNX Runtime, CUDA libraries; and what to install."""
    from sparseflow_trt.engines.doctor import examine

    found = examine()
    if as_json:
        console.print_json(found.to_json())
        return EXIT_OK
    out = console.out()
    out.print(f"Python {found.python} on {found.platform}\n")
    colours = {"ok": "green", "limited": "yellow", "missing": "red"}
    columns = ("", "What", "Version", "Finding", "Install")
    cells = [(f.status, f.name, f.version, f.says, f.install) for f in found.findings]
    rows, installs = console.fold_last(columns, cells)  # a command that is broken cannot be copied
    table = console.table(*columns)
    for status, *others in rows:
        table.add_row(console.styled(status, colours[status]), *others)
    out.print(table)
    for install in installs:
        console.say(install)
    return EXIT_OK
