"""TensorRT: engines with sparse weights, built on the GPU that they are to run on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sparseflow_trt._files import sha256_of
from sparseflow_trt.artifacts.manifest import PluginRecord
from sparseflow_trt.engines.backends.child import run_build
from sparseflow_trt.engines.backends.wire import Exchange, Outcome
from sparseflow_trt.engines.evidence.outcomes import check_precisions, join_outcomes, untold
from sparseflow_trt.engines.machine.hardware import NO_GPU, driver_of, find_gpus
from sparseflow_trt.engines.plugin.library import copy_library, plugin_mismatches
from sparseflow_trt.engines.protocol import BuildRequest, BuiltEngine, OnProgress
from sparseflow_trt.engines.tensorrt.api import graph_needs_of, install_line, version_of
from sparseflow_trt.engines.tensorrt.like import compare_tactics, read_like
from sparseflow_trt.errors import EvidenceError
from sparseflow_trt.model.target import GraphNeeds

_KEY = "tensorrt"
_ENGINE = "model.engine"
_DIFFERS = "Plan these layers in the precision that they run in, or build with another TensorRT."
_STRIPPED = "The engine holds no weights: it takes those of model.onnx, beside it, when it is loaded."


class TensorRtBackend:
    """Builds TensorRT engines, where there is a GPU."""

    name = _KEY

    def unavailable(self) -> str:
        """Why this backend cannot build on this machine, as a sentence with what to do; "" if it can."""
        if not self.versions():
            return f"TensorRT is not installed: {install_line(_KEY)}"
        if not find_gpus():
            return f"TensorRT builds on the GPU that the engine is for, and {NO_GPU}."
        return ""

    def versions(self) -> dict[str, str]:
        """The installed version of TensorRT."""
        version = version_of(_KEY)
        return {_KEY: version} if version else {}

    def device(self) -> str:
        """The GPU that kernels are timed on, with its driver; where there is one (see `unavailable`)."""
        gpu = find_gpus()[0]
        return f"{gpu.name}, compute capability {gpu.compute_capability}, driver {driver_of(gpu)}"

    def graph_needs(self) -> GraphNeeds:
        """What the installed version needs of the graph."""
        return graph_needs_of(_KEY, version_of(_KEY))

    def build(self, request: BuildRequest, on_progress: OnProgress) -> BuiltEngine:
        """Builds an engine in a child process.

        Raises:
            ArtifactError: The artifact whose tactics are asked for is not of this TensorRT, GPU and driver.
            BuildError: TensorRT refused the model or a profile, or crashed.
            EvidenceError: A layer runs in another precision than planned, or not in the plugin as planned.
            NotInstalledError: TensorRT or the plugin's library is missing or does not load.
        """
        request = _with_library(request)
        like = request.options.like
        before = read_like(like, _KEY, self.versions(), self.device()) if like else None
        built = self._built(request, run_build(_KEY, request, request.folder / _ENGINE, on_progress))
        if like and before:
            compared = compare_tactics(like.name, before.engine.layers, built.layers)
            built = replace(built, notes=(*built.notes, compared))
        return built

    def refit(self, request: BuildRequest, engine: Path, model: Path, on_progress: OnProgress) -> BuiltEngine:
        """Gives an engine the weights of the request's model, in a child process.

        Args:
            request: The new typed model, and the plan and options that the engine was built with.
            engine: The engine's file.
            model: The typed model that it was built from.
            on_progress: Called for each step.

        Raises:
            BuildError: The engine does not load here or does not take the weights, or TensorRT crashed.
            EvidenceError: A layer runs in another precision than planned, or not in the plugin as planned.
            NotInstalledError: TensorRT or the plugin's library is missing or does not load.
        """
        request = _with_library(request)
        exchange = Exchange(engine=str(engine.resolve()), model=str(model.resolve()))
        return self._built(request, run_build(_KEY, request, request.folder / _ENGINE, on_progress, exchange))

    def _built(self, request: BuildRequest, outcome: Outcome) -> BuiltEngine:
        file = request.folder / _ENGINE
        earlier_times = bool(request.options.timing_cache or request.options.like)
        outcomes = join_outcomes(request.plan, outcome.layers, outcome.timings, earlier_times)
        check_precisions(request.plan, outcomes, request.options.tf32, _DIFFERS)
        if elsewhere := plugin_mismatches(request.plan, outcomes):
            raise EvidenceError(
                f"the engine does not run as planned: {' '.join(elsewhere)}",
                "This is a bug in the rewriting: please report it with the model.",
            )
        library, plugin = request.plugin, None
        if library:
            versions = outcome.plugin_versions
            plugin = PluginRecord(file=library.name, sha256=request.plugin_sha256, versions=versions)
        return BuiltEngine(
            file=file,
            files=(file, *([library] if library else [])),
            plugin=plugin,
            backend=self.name,
            versions={_KEY: outcome.version},
            device=self.device(),
            seconds=outcome.seconds,
            runs_here="",
            sparse_tactics=_not_enabled(request),
            layers=outcome.layers,
            outcomes=outcomes,
            notes=(
                *filter(None, [untold(request.plan, outcomes)]),
                *((_STRIPPED,) if request.options.strip_plan else ()),
                *outcome.notes,
            ),
        )


def _not_enabled(request: BuildRequest) -> str:
    if request.sparse:
        return ""
    besides = "no layer is planned for TensorRT's own" if request.plugin else "the plan is dense"
    return f"Sparse weights were not enabled: {besides}."


def _with_library(request: BuildRequest) -> BuildRequest:
    """The request with the plugin's library in its folder, where it lies from then on."""
    if request.plugin is None or not request.plan.plugin_products:
        return replace(request, plugin=None)
    copy = copy_library(request.plugin, request.folder)
    return replace(request, plugin=copy, plugin_sha256=request.plugin_sha256 or sha256_of(copy))
