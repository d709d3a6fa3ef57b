"""sparseflow-trt unpack: another tool's 2:4 checkpoint, as plain weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from sparseflow_trt._listing import counted
from sparseflow_trt.cli import console
from sparseflow_trt.cli.options import common_options
from sparseflow_trt.errors import EXIT_NOT_SPARSE, EXIT_OK


@click.command("unpack")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="A folder for a folder, else a .safetensors file.",
)
@common_options
def command(checkpoint: Path, output: Path, as_json: bool) -> int:
    """Write CHECKPOINT's sparse weights as plain ones with zeros, each mask verified.

    CHECKPOINT is a Hugging Face folder or a file of compressed-tensors (sparse-24-bitmask, or plain weights
    that its configuration says are 2:4), of torchao or PyTorch (semi-structured tensors) or of ModelOpt
    (weights with masks). The file itself is not changed.

    Exits with 3 if weights that the configuration says are 2:4 are not; they are written as they are.
    """
    from sparseflow_trt.pytorch.sparse_checkpoint import unpack_checkpoint

    with console.progress_bar() as show:
        done = unpack_checkpoint(checkpoint, output, show)
    if as_json:
        layers = [layer.model_dump(mode="json") for layer in done.layers]
        console.print_json({"layers": layers, "not_2to4": list(done.broken), "output": str(output)})
    else:
        out = console.out()
        for name in done.broken:
            out.print(console.styled("not 2:4", "red"), f"'{name}', which the configuration says is")
        for form, count in Counter(layer.form for layer in done.layers).items():
            out.print(f"{counted(count, 'weight', 'was', 'were')} {form}: 2:4 along K, now verified")
        out.print(f"Written: {done.output}")
    return EXIT_NOT_SPARSE if done.broken else EXIT_OK
