"""TensorRT-RTX: engines that are built without a GPU and compiled for the device at their first run."""

from __future__ import annotations

from dataclasses import replace

from sparseflow_trt.engines.backends.child import run_build
from sparseflow_trt.engines.evidence.outcomes import check_precisions, join_outcomes, untold
from sparseflow_trt.engines.machine.hardware import NO_GPU, Gpu, find_gpus
from sparseflow_trt.engines.plugin.library import lowered_note
from sparseflow_trt.engines.protocol import BuildRequest, BuiltEngine, EngineOptions, OnProgress
from sparseflow_trt.engines.tensorrt.api import graph_needs_of, install_line, version_of
from sparseflow_trt.engines.tensorrt.like import compare_tactics, read_like
from sparseflow_trt.model.target import GraphNeeds

_KEY = "tensorrt-rtx"
_ENGINE = "model.engine"
_RUNS_ON = "compute capability 8.0, 8.6, 8.9, 12.0 and later"
_DENSE = "TensorRT-RTX ignores SPARSE_WEIGHTS: this engine runs dense, and no speedup is claimed for it."
_JIT = (
    "TensorRT-RTX picks its matrix kernels on the device at the first run: the engine reports types "
    "and fusions, not which kernel runs."
)
_TF32 = "Whether FP32 products run in TF32 is TensorRT-RTX's choice at the first run."
# 1.7.1 does so where nothing but these casts is around a product: 1e6 in its weights is infinite then.
_DIFFERS = (
    "TensorRT-RTX turns an FP32 product between casts from and to FP16 into an FP16 one. Plan these layers "
    "in the precision that they run in, plan what follows them in FP32, or build with another backend."
)


class TensorRtRtxBackend:
    """Builds TensorRT-RTX engines, on any Linux machine."""

    name = _KEY

    def unavailable(self) -> str:
        """Why this backend cannot build on this machine, as a sentence with what to do; "" if it can."""
        return "" if version_of(_KEY) else f"TensorRT-RTX is not installed: {install_line(_KEY)}"

    def versions(self) -> dict[str, str]:
        """The installed version of TensorRT-RTX, none where it is missing."""
        version = version_of(_KEY)
        return {_KEY: version} if version else {}

    def device(self) -> str:
        """Whatever GPUs it builds for: kernels are picked at the first run."""
        return f"NVIDIA GPUs of {_RUNS_ON}"

    def graph_needs(self) -> GraphNeeds:
        """Nothing: it reads any opset, and has no sparse kernels to be taken out of."""
        return graph_needs_of(_KEY, version_of(_KEY))

    def build(self, request: BuildRequest, on_progress: OnProgress) -> BuiltEngine:
        """Builds an engine in a child process.

        Raises:
            ArtifactError: The artifact that this one shall be like is not of this TensorRT-RTX.
            BuildError: TensorRT-RTX refused the model or a profile, or crashed.
            EvidenceError: A layer runs in another precision than planned.
            NotInstalledError: TensorRT-RTX is missing or does not load.
        """
        file = request.folder / _ENGINE
        like = request.options.like
        before = read_like(like, _KEY, self.versions(), self.device()).engine.layers if like else ()
        options = replace(request.options, timing_cache=None, like=None)
        outcome = run_build(_KEY, replace(request, options=options), file, on_progress)
        outcomes = join_outcomes(request.plan, outcome.layers)
        check_precisions(request.plan, outcomes, request.options.tf32, _DIFFERS)
        return BuiltEngine(
            file=file,
            files=(file,),
            backend=self.name,
            versions={_KEY: outcome.version},
            device=self.device(),
            seconds=outcome.seconds,
            runs_here=why_not_here(find_gpus()),
            sparse_tactics=_DENSE,
            layers=outcome.layers,
            outcomes=outcomes,
            notes=(
                _JIT,
                *filter(None, [untold(request.plan, outcomes)]),
                *lowered_note(request.plan, "TensorRT-RTX"),
                *_ignored(request.options),
                *((compare_tactics(like.name, before, outcome.layers),) if like else ()),
            ),
        )


def _ignored(options: EngineOptions) -> tuple[str, ...]:
    cache = options.timing_cache
    return (
        *((_TF32,) if options.tf32 else ()),
        *((f"TensorRT-RTX times no kernels: the timing cache {cache.name} was ignored.",) if cache else ()),
        *(
            (
                "TensorRT-RTX engines are for GPUs of several generations, with or without "
                "--hardware-compatible.",
            )
            if options.hardware_compatible
            else ()
        ),
    )


def why_not_here(gpus: tuple[Gpu, ...]) -> str:
    """Why a TensorRT-RTX engine runs on none of these GPUs, as a sentence; "" if it runs on one."""
    if not gpus:
        return f"A TensorRT-RTX engine needs a GPU to run, and {NO_GPU}."
    if any(gpu.capability in ((8, 0), (8, 6), (8, 9)) or gpu.capability >= (12, 0) for gpu in gpus):
        return ""
    return (
        f"{gpus[0].name} has compute capability {gpus[0].compute_capability}; a TensorRT-RTX engine runs on "
        f"{_RUNS_ON}."
    )
