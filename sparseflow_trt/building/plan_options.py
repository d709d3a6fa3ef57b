"""What a plan is asked for, and the plan of a model that follows: checked, made, or settled by a search."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from sparseflow_trt.building.artifact_validation import ValidationOptions
from sparseflow_trt.engines.protocol import OnProgress, Progress
from sparseflow_trt.exporters.apply_plan import restore_planned_dense
from sparseflow_trt.exporters.fp32_reference import computes_in_half
from sparseflow_trt.exporters.plugin.nodes import plugin_layers
from sparseflow_trt.exporters.retyping.exact_layers import exact_layers
from sparseflow_trt.exporters.retyping.islands import check_islands
from sparseflow_trt.exporters.saving import save_model
from sparseflow_trt.model.graph import WeightedLayer, read_layers
from sparseflow_trt.model.model_file import OnnxModel, input_dims, output_types, read_model
from sparseflow_trt.model.operators import check_operators
from sparseflow_trt.plans.decide import PluginUse, SparsityMode
from sparseflow_trt.plans.plan import ModelPrecision, Plan, check_plan
from sparseflow_trt.plans.planning import check_forced, make_plan
from sparseflow_trt.plans.precision_record import Precision, Precisions
from sparseflow_trt.plans.profile_specs import ProfileSpec, make_profiles
from sparseflow_trt.plans.shapes import ShapeRange, check_profiles
from sparseflow_trt.plans.split import Split
from sparseflow_trt.policies.policy import Policy
from sparseflow_trt.precision.search import choose_precisions
from sparseflow_trt.precision.trials import Question
from sparseflow_trt.validation.feeds import InputSet
from sparseflow_trt.validation.tolerances import plan_precision


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is made from.

    Attributes:
        policy: Where sparse wins; None plans everything dense.
        axes: The range (min, opt, max) of each dynamic axis, by its name in the model.
        shapes: The shapes of whole inputs, by name; they go before `axes`.
        profiles: The optimization profiles; `axes` and `shapes` give what one leaves out. Without any,
            those two make one named 'default'.
        precision: None keeps a model that computes in half precision as it is typed, and takes FP16 for one
            that does in FP32, however its weights are stored. "auto" is FP16 until `settle` has searched.
        split: Along which axis the one profile is split at the layers' crossovers.
        plugin: Whether layers may be given to the plugin.
    """

    policy: Policy | None = None
    axes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    shapes: dict[str, ShapeRange] = field(default_factory=dict)
    profiles: tuple[ProfileSpec, ...] = ()
    precision: ModelPrecision | Precisions | Literal["auto"] | None = None
    sparsity: SparsityMode = "policy"
    split: Split | None = None
    plugin: bool = False


def read(path: Path, on_step: OnProgress = lambda _: None) -> tuple[OnnxModel, tuple[WeightedLayer, ...]]:
    """Reads a model that is to be planned, and its weighted layers.

    Raises:
        ModelError: The file cannot be read, or no backend takes its opset or one of its operators.
    """
    model = read_model(path)
    check_operators(model)
    step = "Reading the weights"
    return model, read_layers(model, lambda done, total: on_step(Progress(step, done, total)))


def plan_for(
    model: OnnxModel, layers: tuple[WeightedLayer, ...], plan: Plan | PlanOptions, model_sha256: str
) -> Plan:
    """A plan that fits the model: the given one, checked, or one made from options.

    Raises:
        PlanError: The given plan does not fit the model's layers, or names an island that there is not.
        ShapeError: Its profiles do not fit the model's inputs, a dynamic axis has no range, or the
            profile cannot be split as asked.
        NotSparseError: Layers are to run sparse whose weights are not 2:4: those of the given plan, or
            whichever are, and none is.
    """
    dims = input_dims(model)
    if isinstance(plan, PlanOptions):
        check_forced(layers, plan.sparsity, model)
        own: ModelPrecision = "keep" if computes_in_half(model, layers) else "fp16"
        asked = "fp16" if plan.precision == "auto" else plan.precision or own
        plan = make_plan(
            layers,
            make_profiles(plan.profiles, dims, plan.axes, plan.shapes),
            dims,
            plan.policy,
            _with_exact(asked, exact_layers(model)),
            plan.sparsity,
            model.path.name,
            model_sha256,
            plan.split,
            PluginUse(plan.plugin, plugin_layers(model)),
        )
    check_plan(plan, layers)
    check_islands(model.ir, plan)
    check_profiles(plan.profiles, dims)
    return plan


def _with_exact(asked: ModelPrecision | Precisions, reasons: dict[str, str]) -> Precisions:
    """What is asked for, with FP32 for the layers that half precision leads astray, and why."""
    precisions = asked if isinstance(asked, Precisions) else Precisions(asked)
    exact: dict[str, Precision] = dict.fromkeys(reasons, "fp32")
    return replace(precisions, layers={**exact, **precisions.layers}, reasons=reasons)


def settle(
    model: OnnxModel,
    layers: tuple[WeightedLayer, ...],
    plan: Plan,
    options: PlanOptions,
    inputs: Sequence[InputSet],
    validation: ValidationOptions,
    takes_bf16: bool,
    on_step: OnProgress = lambda _: None,
    unpruned: OnnxModel | None = None,
) -> Plan:
    """The plan with precisions that were searched for, and sparsity decided anew for these.

    What is run has the weights that will ship: those of the unpruned model where `plan` runs a layer dense.

    Args:
        model: As read.
        layers: Its layers.
        plan: As `plan_for` made it from `options`, in FP16.
        options: What it was made from.
        inputs: What precisions are tried on.
        validation: What the user asked for, for the tolerances.
        takes_bf16: Whether what runs the plan has BF16.
        on_step: Told of each run.
        unpruned: The model before pruning, where layers get their weights back.

    Raises:
        PlanError: Not even FP32 keeps the tolerances.
        SparseflowError: The model cannot be run on the inputs.
    """
    limits = validation.tolerances.for_plan(plan, output_types(model))
    with tempfile.TemporaryDirectory(prefix="sparseflow-") as scratch:
        path = model.path
        if unpruned is not None:
            path, shipped = Path(scratch) / "restored.onnx", read_model(model.path)
            restore_planned_dense(shipped, plan, unpruned)
            save_model(shipped.ir, path)
        question = Question(path, plan, plan_precision(plan), limits, inputs, takes_bf16)
        found = choose_precisions(question, Path(scratch), on_step)
    return plan_for(model, layers, replace(options, precision=found), plan.model_sha256)
