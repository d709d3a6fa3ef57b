"""A plan: what each layer of one model gets, with the reason, and the optimization profiles. YAML.

`planning` makes one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import Field, model_validator

from sparseflow_trt._listing import listed, listed_apart
from sparseflow_trt._schema import Record, load_yaml, parse, read_text
from sparseflow_trt.errors import NotSparseError, PlanError
from sparseflow_trt.model.graph import SparsityState, WeightedLayer
from sparseflow_trt.model.layer_names import only_if_named, shown_names
from sparseflow_trt.plans.decide import DENSE_IN_FP32
from sparseflow_trt.plans.decide import SparsityMode as SparsityMode
from sparseflow_trt.plans.precision_record import UNCHANGED, PrecisionSearch, unchanged_precision
from sparseflow_trt.plans.precision_record import ModelPrecision as ModelPrecision
from sparseflow_trt.plans.precision_record import Precision as Precision
from sparseflow_trt.plans.shapes import MOST_PROFILES, Profile
from sparseflow_trt.policies.policy import Kernel

# Operators that stay FP32 unless the plan says otherwise: sums over many elements and exponentials,
# where FP16's 11 bits and its largest number, 65504, hurt first.
DEFAULT_ISLANDS = (
    "BatchNormalization", "Exp", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "Log",
    "LogSoftmax", "LpNormalization", "MeanVarianceNormalization", "Pow", "RMSNormalization", "Reciprocal",
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Softmax", "Softplus", "Sqrt", "CumSum",
)  # fmt: skip

_ALIKE = ("k", "precision", "dense_below_m")  # in layers that become one product

_MOST_TOLD = 6  # layers that do not fit, with what is wrong of each
# What people edit of a layer: the words that may stand there, and those that a plan may ask for.
_WORDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "precision": (get_args(Precision), tuple(p for p in get_args(Precision) if p not in UNCHANGED)),
    "sparsity": (get_args(Kernel), get_args(Kernel)),
}
_HINT = "Write a fresh one with `sparseflow-trt plan MODEL`, and edit that."


class PlannedLayer(Record):
    """What one weighted layer gets. Names, N and K tie it to the model; the rest is the decision.

    Attributes:
        sparsity: Its kernel: "dense", "sparse" for TensorRT's own sparse ones, or "plugin".
        dense_below_m: The M below which the plugin runs a dense copy of the weight, which it then holds, too;
            0 for none.
        joined: The first of the plugin's layers that become one product with it, itself for the first; ""
            where it is a product by itself.
        decided: What `reason` is of, as `mark_decided` marks it, so that a kernel edited beside it is told
            from it; "" in plans that have no such mark. Editing it changes nothing else.
    """

    name: str
    module: str = ""
    kind: str
    n: int
    k: int
    precision: Precision
    sparsity: Kernel
    reason: str
    dense_below_m: int = Field(default=0, ge=0)
    joined: str = ""
    decided: str = ""

    @model_validator(mode="after")
    def _of_the_plugin(self) -> PlannedLayer:
        if self.sparsity != "plugin" and (self.dense_below_m or self.joined):
            raise ValueError("dense_below_m and joined are for the plugin's layers alone")
        return self


class Plan(Record):
    """What one model gets. Version 1 had no plugin: it is read as version 2.

    Attributes:
        model_sha256: Of the model file the plan was made for, "" where it is not tied to one.
        precision: Of every operator that is no weighted layer and no island; "keep" leaves them as typed.
        islands: Operator types, or node names, that run in FP32 (nothing is an island under "keep").
        policy: The policy's name and what it was measured on, or why there is none.
        split: Why the profiles are split as they are, where the plan was asked to split them.
        search: How the precisions were found, where they were searched for; editing it changes nothing,
            but `held_to`, whose tolerances the outputs are held to.
    """

    schema_version: Literal[2] = 2
    model: str = ""
    model_sha256: str = ""
    precision: ModelPrecision
    islands: tuple[str, ...] = DEFAULT_ISLANDS
    policy: str
    split: str = ""
    profiles: tuple[Profile, ...] = Field(max_length=MOST_PROFILES)
    layers: tuple[PlannedLayer, ...]
    search: PrecisionSearch | None = None

    @property
    def wants_sparse(self) -> bool:
        """Whether any layer is planned for TensorRT's own sparse kernels."""
        return any(layer.sparsity == "sparse" for layer in self.layers)

    @property
    def plugin_products(self) -> tuple[tuple[PlannedLayer, ...], ...]:
        """The plugin's layers, those that become one product together, in the order of the plan."""
        products: dict[str, list[PlannedLayer]] = {}
        for layer in self.layers:
            if layer.sparsity == "plugin":
                products.setdefault(layer.joined or layer.name, []).append(layer)
        return tuple(map(tuple, products.values()))

    @model_validator(mode="before")
    @classmethod
    def _version_1(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("schema_version") == 1:
            return {**data, "schema_version": 2}
        return data

    @model_validator(mode="after")
    def _unique(self) -> Plan:
        for what, names in (
            ("layers", [layer.name for layer in self.layers]),
            ("profiles", [profile.name for profile in self.profiles]),
        ):
            twice = sorted(name for name, count in Counter(names).items() if count > 1)
            if twice:
                raise ValueError(f"{what} named twice: {', '.join(twice)}")
        for first, *others in self.plugin_products:
            if first.joined not in ("", first.name):
                raise ValueError(
                    f"'{first.name}' is joined to '{first.joined}', which is not a layer before it"
                )
            for other in others:
                if any(getattr(first, key) != getattr(other, key) for key in _ALIKE):
                    raise ValueError(f"'{other.name}' and '{first.name}' are joined and differ")
        return self


def read_plan(path: Path) -> Plan:
    """Reads a plan file.

    Raises:
        PlanError: It is missing, is not YAML or has wrong fields.
    """
    return plan_from_yaml(read_text(path, PlanError, "plan"), str(path))


def plan_from_yaml(text: str, source: str = "the plan") -> Plan:
    """The plan that a YAML text holds.

    Raises:
        PlanError: It is not YAML or has wrong fields.
    """
    data = load_yaml(text, source, PlanError, _HINT)
    _check_words(data, source)
    plan = parse(Plan, data, source, PlanError, _HINT)
    return plan.model_copy(update={"layers": tuple(map(_with_edit_told, plan.layers))})


def _check_words(data: Any, source: str) -> None:
    """Refuses what people edit of layers where it is no word of a plan: of each word one layer is named."""
    layers = data.get("layers") if isinstance(data, dict) else None
    by_word: dict[tuple[str, str], list[str]] = {}
    for layer in layers if isinstance(layers, list) else ():
        for field, (known, _) in _WORDS.items() if isinstance(layer, dict) else ():
            word = layer.get(field)
            if isinstance(word, str) and word not in known:
                by_word.setdefault((field, word), []).append(layer.get("module") or layer.get("name"))
    wrong = []
    for (field, word), names in by_word.items():
        which = listed([f"'{name}'" for name in names], 1)
        asked = ", ".join(_WORDS[field][1])
        wrong.append(f"{field} '{word}' of layer {which} is none that a plan may ask for ({asked})")
    if wrong:
        hint = "Correct it there, or write a fresh plan with `sparseflow-trt plan MODEL`."
        raise PlanError(f"{source}: {listed_apart(wrong, _MOST_TOLD)}.", hint)


def mark_decided(kernel: Kernel, reason: str) -> str:
    """The mark of a decision in `PlannedLayer.decided`: its kernel, and a digest of its reason."""
    return f"{kernel} {hashlib.sha256(reason.encode()).hexdigest()[:8]}"


def _with_edit_told(layer: PlannedLayer) -> PlannedLayer:
    """The layer with a reason that says so where its kernel was edited and the reason beside it was not."""
    kernel: Any = layer.decided.partition(" ")[0]
    if kernel == layer.sparsity or layer.decided != mark_decided(kernel, layer.reason):
        return layer
    return layer.model_copy(update={"reason": f"edited by hand; the plan said {kernel}: {layer.reason}"})


def yaml_from_plan(plan: Plan) -> str:
    """The plan as YAML, fields in the order of the schema, ready to be edited."""
    head = (
        "# What each layer gets. Edit `precision` (fp32, fp16, bf16) and `sparsity` (dense, sparse, plugin),"
        "\n# then: sparseflow-trt build MODEL --plan THIS_FILE\n"
    )
    data = plan.model_dump(mode="json")
    if plan.search is not None:  # one line a row: it is not what is edited
        data["search"] = {
            name: [_Line(row) for row in rows] if name in ("runs", "sensitivities") else rows
            for name, rows in data["search"].items()
        }
    return head + yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Line(dict[str, Any]):
    """A mapping that is written on one line."""


class _Dumper(yaml.SafeDumper):
    """Quotes what PyYAML would fold: a line separator in a node's name has to come back as it was."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(
    _Line,
    lambda dumper, row: dumper.represent_mapping("tag:yaml.org,2002:map", row.items(), flow_style=True),
)


def check_plan(plan: Plan, layers: tuple[WeightedLayer, ...], source: str = "the plan") -> None:
    """Checks that a plan fits a model's layers.

    Raises:
        PlanError: It was made for another model, and no layer is in both; or every layer that does not fit
            is named with what was expected and what the plan says; or all that does not is that layers are
            planned sparse in FP32.
        NotSparseError: All that does not fit is that layers are planned sparse whose weights are not 2:4.
    """
    known = {layer.name: layer for layer in layers if layer.weight}
    if plan.layers and known.keys().isdisjoint(planned.name for planned in plan.layers):
        other = plan.model or "another model"
        raise PlanError(
            f"{source} was made for {other}: this model has none of the layers that it plans.",
            f"Build the {other} that it was made for, or write a plan for this model with "
            "`sparseflow-trt plan MODEL`.",
        )
    problems = []
    not_sparse: list[WeightedLayer] = []
    wide: list[str] = []
    for planned in plan.layers:
        layer = known.pop(planned.name, None)
        if layer is None:
            of = f" (module '{planned.module}')" if planned.module else ""
            problems.append(f"'{planned.name}'{of} is not a layer of the model")
            continue
        name = layer.module or layer.name
        if (planned.n, planned.k) != (layer.n, layer.k):
            problems.append(
                f"'{name}' is planned with N={planned.n}, K={planned.k} but has N={layer.n}, K={layer.k}"
            )
        if planned.sparsity != "dense" and layer.state is not SparsityState.SPARSE:
            problems.append(
                f"'{name}' is planned {planned.sparsity} but is {layer.state.value}: {layer.reason}"
            )
            not_sparse.append(layer)
        elif planned.sparsity == "sparse" and planned.precision == "fp32":
            problems.append(f"'{name}' is planned sparse in fp32, but {DENSE_IN_FP32}")
            wide.append(name)
        planned_so = planned.precision if planned.precision in UNCHANGED else None
        if planned_so != unchanged_precision(layer.product or layer.dtype):
            multiplied = f", multiplied in {layer.product}" if layer.product not in ("", layer.dtype) else ""
            problems.append(
                f"'{name}' is planned {planned.precision} but its weights are {layer.dtype}{multiplied}"
            )
    problems += [f"'{name}' is not in the plan" for name in shown_names(known.values()).values()]
    if problems:
        told = listed_apart(problems, _MOST_TOLD)
        said = f"{source} does not fit the model in {len(problems)} layer(s): {told}."
        if len(problems) == len(not_sparse):
            named = only_if_named(layer.kind for layer in not_sparse)
            hint = f"Plan them dense, or prune the model first: `sparseflow-trt prune MODEL`{named}."
            raise NotSparseError(said, hint)
        in_16_bits = "Plan them dense, or in fp16 or bf16."
        raise PlanError(said, in_16_bits if len(problems) == len(wide) else _HINT)
