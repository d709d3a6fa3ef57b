"""TensorRT: engines with sparse weights, built on the GPU that they are to run on."""

from __future__ import annotations

from sparseflow_trt.engines.child import run_build
from sparseflow_trt.engines.hardware import NO_GPU, find_gpus
from sparseflow_trt.engines.outcomes import join_outcomes, precision_mismatches, untold
from sparseflow_trt.engines.protocol import BuildRequest, BuiltEngine, OnProgress
from sparseflow_trt.engines.tensorrt_api import install_line, version_of
from sparseflow_trt.errors import EvidenceError
from sparseflow_trt.target import GraphNeeds

_KEY = "tensorrt"
_ENGINE = "model.engine"


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

    def graph_needs(self) -> GraphNeeds:
        """SPARSE_WEIGHTS is one switch for all layers; the parser of 8.6 ends at opset 17."""
        before_10 = self.versions().get(_KEY, "").startswith("8.")
        return GraphNeeds(17 if before_10 else None, spells_out=before_10, opts_out_dense=True)

    def build(self, request: BuildRequest, on_progress: OnProgress) -> BuiltEngine:
        """Builds an engine in a child process.

        Raises:
            BuildError: TensorRT refused the model or a profile, or crashed.
            EvidenceError: A layer runs in another precision than planned.
            NotInstalledError: TensorRT is missing or does not load.
        """
        file = request.folder / _ENGINE
        outcome = run_build(_KEY, request, file, on_progress)
        outcomes = join_outcomes(request.plan, outcome.layers, outcome.timings)
        told = tuple(outcome for outcome in outcomes if outcome.precision)
        if differing := precision_mismatches(request.plan, told):
            raise EvidenceError(
                f"the engine does not run as planned: {' '.join(differing)}",
                "Plan these layers in the precision that they run in, or build with another TensorRT.",
            )
        gpu = find_gpus()[0]
        return BuiltEngine(
            file=file,
            files=(file,),
            backend=self.name,
            versions={_KEY: outcome.version},
            device=f"{gpu.name}, compute capability {gpu.compute_capability}, driver {gpu.driver_version}",
            seconds=outcome.seconds,
            runs_here="",
            sparse_tactics="" if request.sparse else "Sparse weights were not enabled: the plan is dense.",
            layers=outcome.layers,
            outcomes=outcomes,
            notes=(
                *filter(None, [untold(request.plan, outcomes)]),
                *outcome.notes,
            ),
        )
