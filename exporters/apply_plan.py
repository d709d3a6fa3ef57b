"""Makes one typed ONNX model that means a plan: precision as types in the graph, FP32 islands, casts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from sparseflow_trt.artifacts.graph_record import GraphRecord, PluginNodeRecord, RestoreRecord
from sparseflow_trt.errors import PlanError
from sparseflow_trt.exporters.lowering.lower import lower_to_opset17
from sparseflow_trt.exporters.lowering.opt_out import begins_2to4, opt_out
from sparseflow_trt.exporters.lowering.spell_out import fold_dequantized, spell_out
from sparseflow_trt.exporters.mask_guard import check_written, mask_stage, why_broken
from sparseflow_trt.exporters.node_names import name_nodes
from sparseflow_trt.exporters.plugin.nodes import put_into_plugin
from sparseflow_trt.exporters.pruning.restore import restore_dense
from sparseflow_trt.exporters.retyping.cast_constants import fold_casts
from sparseflow_trt.exporters.retyping.islands import fp32_islands, islands_by_layer, quantized_region
from sparseflow_trt.exporters.retyping.node_types import floating_types
from sparseflow_trt.exporters.retyping.retype import retype
from sparseflow_trt.exporters.saving import check_valid, save_model, save_plugin_model
from sparseflow_trt.model.layer_names import shown_name
from sparseflow_trt.model.model_file import OnnxModel
from sparseflow_trt.model.scan import WeightReader
from sparseflow_trt.model.sites import find_sites, why_not_eligible
from sparseflow_trt.model.target import ANYTHING, GraphNeeds
from sparseflow_trt.plans.plan import Plan, PlannedLayer
from sparseflow_trt.plans.precision_record import UNCHANGED

if TYPE_CHECKING:
    import onnx_ir as ir


def apply_plan(
    model: OnnxModel,
    plan: Plan,
    output: Path,
    needs: GraphNeeds = ANYTHING,
    unpruned: OnnxModel | None = None,
) -> GraphRecord:
    """Writes the model that means `plan` to `output`, its large constants to `output`.data.

    The plugin's weights go to `output`.packed; for a backend that takes no plugin its layers stay what they
    are.

    Args:
        model: A model as read, not used for anything afterwards: its graph is rewritten in place.
        plan: A plan that fits the model.
        output: The file to write, in an existing folder.
        needs: What the backend needs of the graph.
        unpruned: The model before pruning, as read: layers planned dense get its weights.

    Returns:
        What was done to get there.

    Raises:
        PlanError: A layer cannot have the type that is planned for it, or cannot run in the plugin.
        ModelError: The result is not valid ONNX, a layer planned sparse is 2:4 no more, or the unpruned
            model is another model.
    """
    import onnx_ir as ir

    target = _data_type(plan.precision)
    guarded = {layer.name for layer in plan.layers if layer.sparsity == "sparse"}
    given = find_sites(model)
    stages = [mask_stage("Reading the model", given, guarded)]
    name_nodes(model.ir.graph, given)
    restored: tuple[RestoreRecord, ...] = ()
    if unpruned is not None:
        restored = restore_planned_dense(model, plan, unpruned)
        back = [record.layer for record in restored if record.route == "restored"]
        stages.append(mask_stage("Restoring dense weights", given, guarded, back))
    lowered = lower_to_opset17(model.ir) if needs.newest_opset == 17 else {}
    if needs.spells_out:
        lowered = dict(Counter(lowered) + Counter(spell_out(model.ir)))
    if folded := fold_dequantized(model.ir):
        lowered = {**lowered, "DequantizeLinear of INT32 or a number": folded}
    if folded := fold_casts(model.ir):
        lowered = {**lowered, "Cast of a constant": folded}
    rewritten = find_sites(model)
    stages.append(mask_stage("Rewriting operators", rewritten, guarded))
    sites = {site.node: site.name for site in rewritten}
    planned = {layer.name: layer for layer in plan.layers}
    islands = fp32_islands(model.ir, plan) if target is not None else set()
    spine = islands_by_layer(model.ir, islands, {n: name for n, name in sites.items() if name in planned})
    floats = [n for n, name in sites.items() if name in planned and planned[name].precision not in UNCHANGED]
    quantized = quantized_region(model.ir, model.opset, floats) if target is not None else set()

    def precision_of(node: ir.Node) -> ir.DataType | None:
        layer = planned.get(sites.get(node, ""))
        if layer is not None and layer.precision not in UNCHANGED:
            return _data_type(layer.precision)
        return ir.DataType.FLOAT if node in islands or node in quantized else target

    retyped = retype(model.ir, precision_of)
    _ensure_precision(sites, planned, model)
    stages.append(mask_stage("Casting to the planned types", rewritten, guarded))
    plugin = _put_into_plugin(model, plan) if needs.takes_plugin else ()
    opted_out = opt_out(model, _dense_as_if_2to4(model, plan)) if needs.opts_out_dense else ()
    out = [record.layer for record in opted_out if record.route != "none"]
    stages.append(mask_stage("Keeping dense layers out of sparse kernels", rewritten, guarded, out))
    (save_plugin_model if plugin else save_model)(model.ir, output)
    check_valid(output, model.path)
    checks = check_written(output, stages, guarded)
    return GraphRecord(
        nodes_retyped=retyped.nodes,
        casts=retyped.casts,
        islands=tuple(sorted(node.name or node.op_type for node in islands)),
        clamped=tuple((c.name, c.elements, c.largest) for c in retyped.clamped),
        opted_out=opted_out,
        lowered=lowered,
        restored=restored,
        mask_checks=checks,
        plugin=plugin,
        spine=spine,
    )


def restore_planned_dense(model: OnnxModel, plan: Plan, unpruned: OnnxModel) -> tuple[RestoreRecord, ...]:
    """Gives the layers that a plan runs dense their weights of the unpruned model, in the graph in memory.

    Raises:
        ModelError: The unpruned model is another model.
    """
    return restore_dense(model, unpruned, [p.name for p in plan.layers if p.sparsity == "dense"])


def _put_into_plugin(model: OnnxModel, plan: Plan) -> tuple[PluginNodeRecord, ...]:
    products = [tuple(layer.name for layer in product) for product in plan.plugin_products]
    below = {layer.name: layer.dense_below_m for product in plan.plugin_products for layer in product}
    layers = [name for product in products for name in product]
    return put_into_plugin(model, layers, products, below) if layers else ()


def _dense_as_if_2to4(model: OnnxModel, plan: Plan) -> list[str]:
    """The layers planned dense that may pass for 2:4, where any is planned sparse: else the flag is off."""
    if not plan.wants_sparse:
        return []
    dense = {layer.name for layer in plan.layers if layer.sparsity == "dense"}
    eligible = [site for site in find_sites(model) if site.name in dense and not why_not_eligible(site)]
    with WeightReader() as reader:
        return [
            site.name
            for site in eligible
            if not why_broken(reader, site.weight, site.k_axis, state_only=True) or begins_2to4(reader, site)
        ]


def _data_type(precision: str) -> ir.DataType | None:
    import onnx_ir as ir

    return {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}.get(
        precision
    )


def _ensure_precision(sites: dict[ir.Node, str], planned: dict[str, PlannedLayer], model: OnnxModel) -> None:
    """Checks that no layer was left as typed because its operator is not defined for the planned type."""
    for node, name in sites.items():
        layer = planned.get(name)
        wanted = _data_type(layer.precision) if layer is not None else None
        got = node.outputs[0].dtype
        if wanted in (None, got) or got not in floating_types():  # FP64 and integers have no other type
            continue
        assert layer is not None
        raise PlanError(
            f"layer '{shown_name(layer)}' is planned {layer.precision}, and opset {model.opset} has no "
            f"{node.op_type} of that type.",
            "Plan it fp32 or fp16, or export the model with a newer opset.",
        )
