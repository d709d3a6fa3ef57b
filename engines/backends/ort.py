"""ONNX Runtime: an optimised ONNX file that runs on any CPU."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparseflow_trt import _deps
from sparseflow_trt.engines.backends.shadowed import rename_shadowed
from sparseflow_trt.engines.evidence.layer_evidence import LayerEvidence
from sparseflow_trt.engines.plugin.library import lowered_note
from sparseflow_trt.engines.protocol import BuildRequest, BuiltEngine, OnProgress, Progress
from sparseflow_trt.errors import BuildError
from sparseflow_trt.model.model_file import EXPORT_AGAIN, OnnxModel, data_files, read_model
from sparseflow_trt.model.target import GraphNeeds

if TYPE_CHECKING:
    import onnx_ir as ir

_IN_FP32 = "1"  # of MatMulNBits' accuracy levels
_ENGINE = "model.ort.onnx"
_DATA = "model.ort.data"
_PROVIDERS = ("CPUExecutionProvider",)
# A protobuf ends at 2 GiB, and ONNX Runtime's CPU may double a model as it folds FP16 weights into FP32:
# from a quarter of the limit on, weights go into a file of their own.
_INLINE_BYTES = 512 << 20
_EXTERNAL_FROM_BYTES = 1024
_FATAL_ONLY = 4

_DENSE = "ONNX Runtime has no kernels for 2:4 weights: this engine runs dense, and no speedup is claimed."
_FP16 = (
    "ONNX Runtime's CPU computes FP16 products in FP32: this engine shows the rounding of weights and types, "
    "not a GPU's accumulation."
)
_CUSTOM = re.compile(r"([\w.]+):(\w+)(?=\(-?\d+\) is not a registered function/op)")
_NODE = re.compile(r"with name '(?P<a>[^']*)'|In Node, \(\"(?P<b>[^\"]*)\"|in node \((?P<c>[^)]*)\)")


class OnnxRuntimeBackend:
    """Optimises models with ONNX Runtime, for its CPU."""

    name = "onnxruntime"

    def unavailable(self) -> str:
        """Why this backend cannot build on this machine, as a sentence with what to do; "" if it can."""
        if _deps.version_of("onnxruntime") is None:
            return f"ONNX Runtime is not installed: {_deps.install_line('onnxruntime')}"
        return ""

    def versions(self) -> dict[str, str]:
        """The installed version of ONNX Runtime, none where it is missing."""
        version = _deps.version_of("onnxruntime")
        return {"onnxruntime": version} if version else {}

    def device(self) -> str:
        """Any CPU: its layout of tensors is left to the run."""
        return "any CPU"

    def graph_needs(self) -> GraphNeeds:
        """No BF16, which its CPU has no products for; any opset, and no sparse kernels to be taken out of."""
        return GraphNeeds(takes_bf16=False)

    def build(self, request: BuildRequest, on_progress: OnProgress) -> BuiltEngine:
        """Optimises the model and saves it.

        Raises:
            BuildError: ONNX Runtime cannot run the model; the sentence names the node.
            ModelError: The file is not a valid ONNX model.
            OSError: The engine cannot be written.
            NotInstalledError: onnxruntime is missing, too old or does not load.
        """
        ort = _deps.require("onnxruntime", "building with ONNX Runtime")
        model = read_model(request.model)
        on_progress(Progress("Optimising the graph"))
        started = time.monotonic()
        _optimise(ort, model, request.folder)
        seconds = time.monotonic() - started
        file = request.folder / _ENGINE
        written = tuple(path for path in (file, request.folder / _DATA) if path.exists())
        return BuiltEngine(
            file=file,
            files=written,
            backend=self.name,
            versions=self.versions(),
            device=self.device(),
            seconds=seconds,
            runs_here="",
            sparse_tactics=_DENSE,
            layers=_layers(file),
            notes=tuple(_notes(request, model)),
        )


def _notes(request: BuildRequest, model: OnnxModel) -> Iterator[str]:
    if request.sparse:
        yield _DENSE
    yield from lowered_note(request.plan, "ONNX Runtime")
    if _has(model, "FLOAT16"):
        yield _FP16
    if ignored := request.options.flags():
        yield f"ONNX Runtime has no such options and ignores them: {ignored}."


def _optimise(ort: Any, model: OnnxModel, folder: Path) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL_ONLY  # what goes wrong is raised; its stderr would repeat it
    # EXTENDED fuses what any CPU runs faster (SkipLayerNormalization, BiasGelu). The levels above it lay
    # tensors out for the CPU they run on, and such a file would be wrong on another.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    # By default what multiplies a quantized weight by a float (MatMulNBits) rounds that to INT8, too.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", _IN_FP32)
    # Around FP8 it fuses products, as if it were INT8, and then refuses them; and 1.31 quantizes biases with
    # FP16 scales that it reads as FP32: the outputs are wrong.
    if _has(model, "FLOAT8") or _has_half_scales(model):
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.optimized_model_filepath = str(folder / _ENGINE)
    # Without this, weights that lie in the given model's data file stay there: the engine would need it.
    if data_files(model) or model.path.stat().st_size > _INLINE_BYTES:
        prefix = "session.optimized_model_external_initializers"
        options.add_session_config_entry(f"{prefix}_file_name", _DATA)
        options.add_session_config_entry(f"{prefix}_min_size_in_bytes", str(_EXTERNAL_FROM_BYTES))
    try:
        ort.InferenceSession(str(model.path), options, providers=list(_PROVIDERS))
    except _failures(ort) as error:
        if _ENGINE in str(error) or _DATA in str(error):  # it does not say why, and there is one reason
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / _ENGINE)) from error
        raise _refusal(model, str(error)) from error
    rename_shadowed(folder / _ENGINE)


def _failures(ort: Any) -> tuple[type[Exception], ...]:
    # They share no base class of their own.
    state = ort.capi.onnxruntime_pybind11_state
    names = ("EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel", "NoSuchFile")
    return tuple(getattr(state, name) for name in (*names, "NotImplemented", "RuntimeException"))


def _refusal(model: OnnxModel, text: str) -> BuildError:
    # "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for MatMul(13) …"
    reason = text.rpartition(f"Load model from {model.path} failed:")[2]
    reason = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", reason).strip().rstrip(".")
    match = _NODE.search(reason)
    name = match[match.lastgroup or 0] if match else None
    custom = _CUSTOM.search(reason)
    node = next(
        (
            node
            for node in model.ir.graph.all_nodes()
            if node.name == name or (custom and (node.domain, node.op_type) == custom.groups())
        ),
        None,
    )
    if node is not None and custom:
        return BuildError(
            f"ONNX Runtime cannot run {model.path.name}: {custom[0]} is not a registered operator, "
            f"and node '{node.name}' uses it.",
            "Export the model without it.",
        )
    if node is None:
        return BuildError(f"ONNX Runtime cannot run {model.path.name}: {reason}.", EXPORT_AGAIN)
    described = " of ".join(filter(None, (node.op_type, ", ".join(_types(node.inputs)))))
    described = f"node '{node.name}' ({described})"
    if "Could not find an implementation" in reason:
        return BuildError(
            f"ONNX Runtime's CPU has no kernel for {described} of {model.path.name}.",
            "Use --precision fp16 or fp32, or plan that layer in one of them; or build for a "
            "backend that has the kernel: --backend tensorrt-rtx.",
        )
    return BuildError(f"ONNX Runtime refuses {described} of {model.path.name}: {reason}.", EXPORT_AGAIN)


def _layers(file: Path) -> tuple[LayerEvidence, ...]:
    graph = read_model(file).ir.graph
    return tuple(
        LayerEvidence(
            name=node.name or "",
            type=f"{node.domain}.{node.op_type}".lstrip("."),
            precision="+".join(_types(node.outputs) or _types(node.inputs)),
            tactic="",
        )
        for node in graph
    )


def _types(values: Sequence[ir.Value | None]) -> list[str]:
    """The types of those values whose type the file tells: inputs, outputs and weights at least."""
    return sorted({value.dtype.name for value in values if value is not None and value.dtype is not None})


def _has_half_scales(model: OnnxModel) -> bool:
    """Whether a QuantizeLinear or DequantizeLinear has a scale in FP16, in any graph of the model."""
    import onnx_ir as ir

    scales = [
        node.inputs[1]
        for node in model.ir.graph.all_nodes()
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.inputs) > 1
    ]
    return any(scale is not None and scale.dtype == ir.DataType.FLOAT16 for scale in scales)


def _has(model: OnnxModel, kind: str) -> bool:
    """Whether a node reads or makes a value of a type; "FLOAT8" stands for each type of that size."""
    return any(
        value.dtype is not None and value.dtype.name.startswith(kind)
        for node in model.ir.graph.all_nodes()
        for value in (*node.inputs, *node.outputs)
        if value is not None
    )
