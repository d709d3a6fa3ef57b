"""2:4-sparse models to TensorRT: which layers are sparse, why or why not, measured.

What programs import from here keeps its name and its place; modules below may move. Each name is imported
when it is first asked for, so that `import sparseflow_trt` needs nothing and costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sparseflow_trt._version import __version__ as __version__

if TYPE_CHECKING:
    from sparseflow_trt.artifacts.manifest import Manifest as Manifest
    from sparseflow_trt.artifacts.manifest import read_manifest as read_manifest
    from sparseflow_trt.building.artifact_validation import ValidationOptions as ValidationOptions
    from sparseflow_trt.building.loading import open_artifact as open_artifact
    from sparseflow_trt.building.plan_options import PlanOptions as PlanOptions
    from sparseflow_trt.engines.protocol import EngineOptions as EngineOptions
    from sparseflow_trt.engines.running.runner import Engine as Engine
    from sparseflow_trt.engines.torch_kernels.sparsify import restore_module as restore_module
    from sparseflow_trt.engines.torch_kernels.sparsify import sparsify_module as sparsify_module
    from sparseflow_trt.errors import SparseflowError as SparseflowError
    from sparseflow_trt.export import ExportOptions as ExportOptions
    from sparseflow_trt.export import export_model as export_model
    from sparseflow_trt.exporters.pruning.prune import prune_model as prune_model
    from sparseflow_trt.exporters.pruning.prune_torch import prune_module as prune_module
    from sparseflow_trt.gates.gate import BaselineOptions as BaselineOptions
    from sparseflow_trt.gates.gate import check_artifact as check_artifact
    from sparseflow_trt.gates.gate import create_baseline as create_baseline
    from sparseflow_trt.model.graph import WeightedLayer as WeightedLayer
    from sparseflow_trt.model.graph import read_layers as read_layers
    from sparseflow_trt.model.model_file import read_model as read_model
    from sparseflow_trt.pipeline import BuildOptions as BuildOptions
    from sparseflow_trt.pipeline import BuildResult as BuildResult
    from sparseflow_trt.pipeline import build as build
    from sparseflow_trt.plans.split import Split as Split
    from sparseflow_trt.policies.lookup import judge as judge
    from sparseflow_trt.policies.policy import Policy as Policy
    from sparseflow_trt.policies.policy import find_policy as find_policy
    from sparseflow_trt.pytorch.sparse_checkpoint import load_checkpoint as load_checkpoint
    from sparseflow_trt.pytorch.torch_layers import choose_by_name as choose_by_name
    from sparseflow_trt.pytorch.torch_layers import find_layers as find_layers
    from sparseflow_trt.refitting import RefitOptions as RefitOptions
    from sparseflow_trt.refitting import refit as refit
    from sparseflow_trt.serving.deploying import deploy as deploy
    from sparseflow_trt.serving.deployment import DeployOptions as DeployOptions
    from sparseflow_trt.serving.verify import VerifyOptions as VerifyOptions
    from sparseflow_trt.serving.verify import verify as verify

_HOMES = {
    "artifacts.manifest": ("Manifest", "read_manifest"),
    "building.artifact_validation": ("ValidationOptions",),
    "building.loading": ("open_artifact",),
    "building.plan_options": ("PlanOptions",),
    "engines.protocol": ("EngineOptions",),
    "engines.running.runner": ("Engine",),
    "engines.torch_kernels.sparsify": ("restore_module", "sparsify_module"),
    "errors": ("SparseflowError",),
    "export": ("ExportOptions", "export_model"),
    "exporters.pruning.prune": ("prune_model",),
    "exporters.pruning.prune_torch": ("prune_module",),
    "gates.gate": ("BaselineOptions", "check_artifact", "create_baseline"),
    "model.graph": ("WeightedLayer", "read_layers"),
    "model.model_file": ("read_model",),
    "pipeline": ("BuildOptions", "BuildResult", "build"),
    "plans.split": ("Split",),
    "policies.lookup": ("judge",),
    "policies.policy": ("Policy", "find_policy"),
    "pytorch.sparse_checkpoint": ("load_checkpoint",),
    "pytorch.torch_layers": ("choose_by_name", "find_layers"),
    "refitting": ("RefitOptions", "refit"),
    "serving.deploying": ("deploy",),
    "serving.deployment": ("DeployOptions",),
    "serving.verify": ("VerifyOptions", "verify"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sparseflow_trt' has no attribute '{name}'")
    return getattr(importlib.import_module(f"sparseflow_trt.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
