"""From a PyTorch module or a Hugging Face folder to an ONNX file that is known to do the same."""

from __future__ import annotations

import gc
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseflow_trt._clock import Clock
from sparseflow_trt._deps import require
from sparseflow_trt._files import check_file, temporary_folder
from sparseflow_trt._paths import AnyPath
from sparseflow_trt.engines.protocol import OnProgress, Progress
from sparseflow_trt.errors import InputError, ModelError
from sparseflow_trt.exporters.retyping.twin import write_twin
from sparseflow_trt.exporters.torch_onnx import DEFAULT_OPSET, export_module, save_export
from sparseflow_trt.model.graph import WeightedLayer, read_layers
from sparseflow_trt.model.model_file import OnnxModel, input_dims, read_model
from sparseflow_trt.plans.shapes import DEFAULT_PROFILE, Dims, make_profile, terms
from sparseflow_trt.pytorch.experts import use_every_expert
from sparseflow_trt.pytorch.exportable import Exportable, load_function
from sparseflow_trt.pytorch.hf_tasks import Task, load_exportable
from sparseflow_trt.pytorch.hugging_face import TorchDtype
from sparseflow_trt.pytorch.masks import MaskCheck, check_masks
from sparseflow_trt.validation.compare import compare
from sparseflow_trt.validation.inputs import generate_inputs
from sparseflow_trt.validation.tolerances import DEFAULTS, output_tolerances
from sparseflow_trt.validation.torch_runner import torch_reference
from sparseflow_trt.validation.trial import Candidate

if TYPE_CHECKING:
    from sparseflow_trt.artifacts.verdict import Validation
    from sparseflow_trt.plans.plan import Precision

# The sizes that an export is compared at: other ones than it was traced with, one token and none before.
_SIZES: dict[str, tuple[int, int, int]] = {
    "batch": (1, 2, 3), "images": (1, 2, 3), "seq": (1, 7, 16), "past": (0, 5, 9),
}  # fmt: skip
_ONNX_BEGINS = b"\x08"  # the key of a ModelProto's first field, its IR version
_PRECISIONS: dict[str, Precision] = {"BFLOAT16": "bf16", "FLOAT16": "fp16"}  # the coarsest first


@dataclass(frozen=True)
class ExportOptions:
    """How to export. Those from `task` on are for a Hugging Face folder alone.

    Attributes:
        opset: Of ONNX.
        check: Whether the file is run against the module before it is put in place.
        sizes: Of the axes where it is checked, (least, middle, most); others than named have defaults.
        task: What for; None goes by the configuration.
        model_class: A class of transformers; "" is the one that suits the task.
        dtype: Of the weights; None keeps the checkpoint's.
        random_weights: Draw them, instead of reading those in the folder.
        trust_remote_code: Run Python that lies in the folder.
    """

    opset: int = DEFAULT_OPSET
    check: bool = True
    sizes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    task: Task | None = None
    model_class: str = ""
    dtype: TorchDtype | None = None
    random_weights: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True)
class ExportReport:
    """A finished export.

    Attributes:
        files: What was written: the model last.
        written: Whether it was put in place: not where it does something else than the module.
        validation: None where it was not checked.
        seconds: Of each step.
        fixed: Axes along which alone it does something else than the module, at sizes other than those it was
            traced with, which these are.
    """

    files: tuple[Path, ...]
    written: bool
    task: str
    opset: int
    inputs: dict[str, Dims]
    outputs: tuple[str, ...]
    bytes: int
    layers: tuple[WeightedLayer, ...]
    masks: MaskCheck
    validation: Validation | None
    seconds: dict[str, float]
    fixed: dict[str, int] = field(default_factory=dict)


def is_torch_source(text: str) -> bool:
    """Whether a text names a Hugging Face folder or a function, and not an ONNX file."""
    path = Path(text)
    if path.exists():
        return (path / "config.json").exists() or path.name == "config.json"
    target, colon, function = text.rpartition(":")
    return bool(colon and target and function.isidentifier())


def export_model(
    source: AnyPath,
    output: AnyPath,
    options: ExportOptions | None = None,
    on_step: OnProgress = lambda _: None,
    check_inputs: Callable[[dict[str, Dims]], None] = lambda _: None,
) -> ExportReport:
    """Exports a module to ONNX, and compares the file with the module before it is put in place.

    The weights are written straight from the module. Where the outputs differ nothing is written.

    Args:
        source: A folder with a Hugging Face config.json, or FILE.py:FUNCTION or MODULE:FUNCTION.
        output: The ONNX file. Weights above 256 MiB stand in OUTPUT.data.
        options: How.
        on_step: Told how far it is.
        check_inputs: Given the dimensions of the module's inputs before anything is exported; what it raises
            ends this.

    Raises:
        InputError: The source cannot be read, or no model can be made of it.
        ModelError: torch cannot export it, or the file's zero positions are not the module's.
        ArtifactError: The output cannot be written.
        NotInstalledError: PyTorch, onnxscript, transformers, ONNX Runtime or Polygraphy.
    """
    options = options or ExportOptions()
    source, output = os.fspath(source), Path(output)
    _refuse_onnx(source)
    check_file(output)
    require("torch", "exporting PyTorch modules")
    clock = Clock()
    with clock("load"):
        on_step(Progress("Loading the module"))
        found = _load(source, options)
        check_inputs(_dims(found))
        if options.check:
            _check_sizes(found, options.sizes)
    with temporary_folder(output.with_name(f"{output.name}.export")) as folder:
        with clock("export"):
            on_step(Progress("Exporting through torch"))
            graph = export_module(found, options.opset)
        with clock("write"):
            step = "Writing the weights"
            files = save_export(
                graph, folder / output.name, lambda done, total: on_step(Progress(step, done, total))
            )
            del graph
            gc.collect()  # torch's program refers to itself in circles, and to the weights
        model = read_model(folder / output.name)
        with clock("masks"):
            layers, masks = _check_masks(model, found, on_step)
        validation = None
        if options.check:
            with clock("check"):
                validation = _compare(model, found, options.sizes, folder, on_step)
        written = validation is None or validation.verdict != "fail"
        fixed = {} if written else _fixed_axes(model, found, options.sizes, folder, on_step)
        report = ExportReport(
            files=tuple(output.with_name(file.name) for file in files),
            written=written,
            task=found.task,
            opset=model.opset,
            inputs=input_dims(model),
            outputs=tuple(value.name or "" for value in model.ir.graph.outputs),
            bytes=sum(file.stat().st_size for file in files),
            layers=layers,
            masks=masks,
            validation=validation,
            seconds=clock.rounded(),
            fixed=fixed,
        )
        if written:
            for file, place in zip(files, report.files, strict=True):  # the model after its data
                file.replace(place)
    return report


def _refuse_onnx(source: str) -> None:
    path = Path(source)
    if not path.is_file():
        return
    with path.open("rb") as file:
        begins = file.read(1)
    if path.suffix == ".onnx" or begins == _ONNX_BEGINS:
        raise InputError(
            f"{source} is an ONNX model already: it needs no export.",
            f"Give it as it is, such as to `sparseflow-trt build {shlex.quote(source)}`.",
        )


def _load(source: str, options: ExportOptions) -> Exportable:
    path = Path(source)
    if path.is_dir() or (path.is_file() and path.suffix == ".json"):
        return load_exportable(
            path,
            task=options.task,
            model_class=options.model_class,
            dtype=options.dtype,
            random_weights=options.random_weights,
            trust_remote_code=options.trust_remote_code,
        )
    if ":" not in source:
        raise InputError(
            f"{source} is not a Hugging Face folder and names no function.",
            "Give a folder with a config.json, or FILE.py:FUNCTION or MODULE:FUNCTION.",
        )
    for option in ("task", "model_class", "dtype", "random_weights", "trust_remote_code"):
        if getattr(options, option):
            raise InputError(
                f"--{option.replace('_', '-')} is for a Hugging Face folder, and {source} names a function.",
                "Leave it out: the function makes its module as you want it.",
                usage=True,
            )
    found = load_function(source)
    for module in found.module.modules():
        if type(module).__module__.startswith("transformers.") and hasattr(module, "config"):
            use_every_expert(module.config)
    return found


def _dims(found: Exportable) -> dict[str, Dims]:
    return {
        name: tuple(found.axes.get(name, {}).get(i, int(size)) for i, size in enumerate(tensor.shape))
        for name, tensor in found.inputs.items()
    }


def _check_masks(
    model: OnnxModel, found: Exportable, on_step: OnProgress
) -> tuple[tuple[WeightedLayer, ...], MaskCheck]:
    step = "Reading the weights back"
    layers = read_layers(model, lambda done, total: on_step(Progress(step, done, total)))
    named = found.module.named_parameters(remove_duplicate=False)
    masks = check_masks(model, layers, {name.removeprefix(found.prefix): value for name, value in named})
    if masks.changed:
        raise ModelError(
            f"the export moved zeros of {len(masks.changed)} weight(s), '{masks.changed[0]}' first: its mask "
            "would not be the module's.",
            "Report it with the module: an exported weight is meant to be the parameter, byte for byte.",
        )
    return layers, masks


def _compare(
    model: OnnxModel,
    found: Exportable,
    sizes: Mapping[str, tuple[int, int, int]],
    folder: Path,
    on_step: OnProgress,
) -> Validation:
    dims = input_dims(model)
    profile = make_profile("check", dims, _sizes_of(found, dims) | dict(sizes), {})
    inputs = generate_inputs(model, (profile,) if profile else ())
    types = {
        tensor.const_value.dtype.name for tensor in model.ir.graph.initializers.values() if tensor.const_value
    }
    precision: Precision = next((_PRECISIONS[name] for name in _PRECISIONS if name in types), "fp32")
    candidate = Candidate("exported model on the ONNX Runtime, CPU", model.path, "onnx", as_written=True)
    if precision == "bf16":  # for which ONNX Runtime's CPU has no kernels
        twin = folder / "twin.onnx"
        write_twin(read_model(model.path), twin)
        candidate = Candidate(
            "FP32 twin of the exported model, rounded to BF16", twin, "onnx", as_written=True
        )
    outputs = tuple(value.name or "" for value in model.ir.graph.outputs)
    step = "Comparing with PyTorch"
    compared = compare(
        torch_reference(found.module, found.inputs, outputs, "module", _dims(found)),
        [candidate],
        inputs,
        output_tolerances(DEFAULTS[precision]),
        lambda done, total: on_step(Progress(step, done, total)),
    )
    return compared.model_copy(update={"attribution": None})  # there is one step to blame, the export


def _check_sizes(found: Exportable, sizes: Mapping[str, tuple[int, int, int]]) -> None:
    """Refuses sizes of axes that there are not before the export, which takes long.

    Raises:
        ShapeError: There are such.
    """
    dims = _dims(found)
    make_profile(DEFAULT_PROFILE, dims, _sizes_of(found, dims) | dict(sizes), {})


def _sizes_of(found: Exportable, dims: Mapping[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Where an export is checked along each of its axes; one with no default at its example's size."""
    sizes = {}
    for name, named in found.axes.items():
        if name not in dims:  # nothing reads it: it is no input of the file
            continue
        for index, axis in named.items():
            size = int(found.inputs[name].shape[index])
            for term in terms(axis):
                sizes[term] = _SIZES.get(term, (size, size, 2 * size))
    return sizes


def _fixed_axes(
    model: OnnxModel,
    found: Exportable,
    sizes: Mapping[str, tuple[int, int, int]],
    folder: Path,
    on_step: OnProgress,
) -> dict[str, int]:
    """Those along which alone an export fails, each with the size it was traced with; it holds at that."""
    dims = input_dims(model)
    traced = {
        axis: int(found.inputs[name].shape[index])
        for name, named in found.axes.items()
        for index, axis in named.items()
        if name in dims and terms(axis) == (axis,)
    }
    varied = _sizes_of(found, dims) | dict(sizes)
    as_traced = {axis: (size, size, size) for axis, size in traced.items()}
    if as_traced.keys() != varied.keys():  # a term of a sum whose size no input has
        return {}

    def fails(some: Mapping[str, tuple[int, int, int]]) -> bool:
        try:
            return _compare(model, found, {**as_traced, **some}, folder, on_step).verdict == "fail"
        except InputError:  # the module itself does not take these sizes together
            return False

    return {} if fails({}) else {axis: traced[axis] for axis in traced if fails({axis: varied[axis]})}
