"""sparseflow-trt plugin: compiles the 2:4 linear plugin, and tries it."""

from __future__ import annotations

from pathlib import Path

import click

from sparseflow_trt.cli import console
from sparseflow_trt.cli.options import common_options
from sparseflow_trt.errors import EXIT_OK

_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


@click.group("plugin")
def command() -> None:
    """Compile the TensorRT plugin that runs 2:4 layers on cuSPARSELt."""


@command.command("build", short_help="Compile the plugin with CMake and a C++ compiler.")
@click.option(
    "--tensorrt-include",
    type=_FOLDER,
    metavar="DIR",
    help="The headers (NvInferRuntime.h) of the TensorRT release that will load it: include/ of its branch "
    "at github.com/NVIDIA/TensorRT. Default: the system's.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The library to write. Default: where build and doctor look for it, one for each major release.",
)
@click.option(
    "--cuda",
    type=_FOLDER,
    metavar="DIR",
    help="CUDA, with include/ and lib64/ or lib/. Default: CUDA_HOME, NVIDIA's wheels in this Python, "
    "/usr/local/cuda.",
)
@click.option(
    "--cusparselt",
    type=_FOLDER,
    metavar="DIR",
    help="The folder of libcusparseLt.so.0, which the library remembers. Default: that of NVIDIA's wheels.",
)
@common_options
def build(
    tensorrt_include: Path | None,
    output: Path | None,
    cuda: Path | None,
    cusparselt: Path | None,
    as_json: bool,
) -> int:
    """Compile the plugin with CMake and a C++ compiler; no nvcc is needed. It takes half a minute."""
    from sparseflow_trt.engines.plugin.build import PluginRequest, build_plugin

    with console.progress_bar() as show:
        show("Compiling the plugin", 0, 0)
        built = build_plugin(PluginRequest(tensorrt_include, output, cuda, cusparselt))
    if as_json:
        console.print_json(built.to_json())
        return EXIT_OK
    out = console.out()
    out.print(f"{built.library}, for TensorRT {built.tensorrt}")
    out.print(f"CUDA's runtime: {built.cudart}")
    for folder in built.library_folders:
        out.print(f"At run time it looks into: {folder}")
    for note in built.notes:
        out.print(note)
    return EXIT_OK
