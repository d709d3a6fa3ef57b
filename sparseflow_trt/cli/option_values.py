"""What the shared options ask for: the words that were given become the values that functions take."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from sparseflow_trt.building.artifact_validation import ValidationOptions
    from sparseflow_trt.building.plan_options import PlanOptions
    from sparseflow_trt.engines.protocol import EngineOptions
    from sparseflow_trt.export import ExportOptions
    from sparseflow_trt.plans.shapes import ShapeRange
    from sparseflow_trt.policies.policy import Policy

_T = TypeVar("_T")


def take_export_options(options: dict[str, Any]) -> ExportOptions:
    """The options of an export, taken out of a command's."""
    from sparseflow_trt.export import ExportOptions

    names = ("task", "dtype", "random_weights", "model_class", "trust_remote_code", "opset")
    given = {name: options.pop(name) for name in names}
    return ExportOptions(**{name: value for name, value in given.items() if value})


def take_engine_options(options: dict[str, Any]) -> EngineOptions:
    """The options of the builder, taken out of a command's."""
    from dataclasses import fields

    from sparseflow_trt.engines.protocol import EngineOptions

    if options["like"] and options["timing_cache"]:
        raise click.UsageError("--like has its own measurements: leave out --timing-cache.")
    return EngineOptions(**{field.name: options.pop(field.name) for field in fields(EngineOptions)})


def read_plan_options(
    dims: tuple[str, ...],
    shapes: tuple[str, ...],
    profiles: tuple[str, ...],
    shapes_file: Path | None,
    split: str | None,
    traffic: Path | None,
    policy: str | None,
    precision: Any,
    sparsity: Any,
    plugin: Path | None,
) -> PlanOptions:
    """What the plan options ask for.

    Raises:
        ShapeError: A range, a profile, the shapes file or the traffic cannot be read, or a range is given
            twice.
        PolicyError: There is no such policy.
    """
    from sparseflow_trt.building.plan_options import PlanOptions
    from sparseflow_trt.plans.profile_specs import check_specs, parse_profile, read_shapes_file
    from sparseflow_trt.plans.split import Split
    from sparseflow_trt.plans.traffic import read_traffic

    if traffic and not split:
        raise click.UsageError("--traffic weighs the cuts of --split: give both.")
    if split and (profiles or shapes_file):
        raise click.UsageError("--split makes the profiles: give the whole range with --dim or --shapes.")
    if sparsity == "plugin" and not plugin:
        raise click.UsageError("--sparsity plugin needs the plugin: --plugin LIB names its library.")
    if sparsity == "off" and policy:
        raise click.UsageError(
            "--policy says where sparse wins, and --sparsity off plans every layer dense: leave out one."
        )
    if sparsity in ("off", "force") and plugin:
        raise click.UsageError(
            f"--plugin lets layers run in it, and --sparsity {sparsity} puts none there: leave out one."
        )
    axes, inputs = read_ranges(dims, shapes)
    specs = tuple(map(parse_profile, profiles))
    check_specs(specs, usage=True)
    return PlanOptions(
        policy=find_policy_for(policy) if sparsity != "off" else None,  # nothing is told of it then
        axes=axes,
        shapes=inputs,
        profiles=(*specs, *(read_shapes_file(shapes_file) if shapes_file else ())),
        precision=precision,
        sparsity=sparsity,
        split=Split(split, read_traffic(traffic) if traffic else None) if split else None,
        plugin=plugin is not None,
    )


def read_ranges(
    dims: tuple[str, ...], shapes: tuple[str, ...]
) -> tuple[dict[str, tuple[int, int, int]], dict[str, ShapeRange]]:
    """The ranges of axes and of inputs that --dim and --shapes give.

    Raises:
        ShapeError: One cannot be read, or is given twice.
    """
    from sparseflow_trt.plans.shapes import parse_axis_range, parse_input_range

    axes = _each_once(map(parse_axis_range, dims), "axis")
    return axes, _each_once(map(parse_input_range, shapes), "input")


def _each_once(pairs: Iterable[tuple[str, _T]], what: str) -> dict[str, _T]:
    from sparseflow_trt.errors import ShapeError

    found: dict[str, _T] = {}
    for name, value in pairs:
        if name in found:
            hint = "Give each one range: MIN,OPT,MAX."
            raise ShapeError(f"{what} '{name}' is given two ranges.", hint, usage=True)
        found[name] = value
    return found


def find_policy_for(name: str | None) -> Policy | None:
    """The named policy, or the shipped one for this machine's GPU, or None.

    Raises:
        PolicyError: There is no policy of that name.
    """
    from sparseflow_trt.engines.machine.hardware import find_gpus
    from sparseflow_trt.policies.policy import find_policy, policy_for_device

    if name:
        return find_policy(name)
    gpus = find_gpus()
    return policy_for_device(gpus[0].name) if gpus else None


def read_validation_options(
    inputs: str | None,
    seed: int,
    tolerances: tuple[str, ...],
    dense_model: Path | None = None,
    per_layer: bool = False,
) -> ValidationOptions:
    """What the validation options ask for.

    Raises:
        InputError: A tolerance reads otherwise.
    """
    from sparseflow_trt.building.artifact_validation import ValidationOptions
    from sparseflow_trt.validation.tolerances import parse_tolerances

    return ValidationOptions(inputs, seed, parse_tolerances(tolerances), dense_model, per_layer)
