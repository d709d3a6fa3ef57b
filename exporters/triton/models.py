"""The Python that Triton runs: each model.py, and the stand-in for its TensorRT backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from sparseflow_trt._version import __version__
from sparseflow_trt.plans.shapes import Profile

Runtime = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
MODEL_FILE = "model.py"


def write_model_py(
    runtime: Runtime,
    file: str,
    files: Mapping[str, str],
    version_compatible: bool = False,
    plugin: str = "",
) -> str:
    """A model.py that serves one engine.

    Args:
        runtime: What runs it.
        file: The engine's name in the version's folder.
        files: SHA-256 of the files that are checked when it is loaded, by name.
        version_compatible: Whether the engine may bring code for the CPU.
        plugin: Which of `files` is the library of the engine's plugin nodes, "" where it has none.
    """
    name = "onnxruntime" if runtime == "onnxruntime" else "tensorrt"
    rtx = runtime == "tensorrt-rtx"
    title = "TensorRT-RTX" if rtx else "TensorRT"
    return _render(
        name, file=file, files=files, rtx=rtx, title=title, host_code=version_compatible, plugin=plugin
    )


def write_router_py(sparse: tuple[str, int], dense: tuple[str, int], least: int) -> str:
    """A model.py that sends batches of `least` and more to one model, and smaller ones to another.

    Both are named with the version: what a router answers does not change under it when they are updated.
    """
    return _render("router", sparse=sparse, dense=dense, least=least)


def write_stand_in(profiles: Sequence[Profile]) -> str:
    """The stand-in for TensorRT's backend, for one model's engine.

    Args:
        profiles: The engine's: an instance refuses shapes that its group's profiles do not take, as the
            real backend does.
    """
    ranges = [
        {name: (list(shapes.min), list(shapes.max)) for name, shapes in profile.inputs.items()}
        for profile in profiles
    ]
    return _render("stand_in", profiles=ranges)


def _render(name: str, **values: Any) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Python, not HTML
    )
    return environment.get_template(f"{name}.py.jinja").render(tool=f"sparseflow-trt {__version__}", **values)
