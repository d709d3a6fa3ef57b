"""Which products of one input TensorRT runs as one: with biases, of three dimensions, one of them not 2:4.

    python benchmarks/merged_products.py [CASE …] [--builders N] [--work DIR] [--backend BACKEND]

Each case is a network of two to four products of one value, with random 2:4 weights of BERT-base's sizes and
their outputs multiplied with each other, so that no neighbour is fused in. It goes through the whole pipeline
in FP16 with every 2:4 layer planned sparse, beside one that is not 2:4, too, where a plan would say dense.
The engine's inspector says what runs as one, which plans/merges.py assumes of an engine before there is one.

Writes results/merged_products.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from at_once import at_once
from compare_engines import facts, layer_rows
from engine_sides import Settings, add_options, build_side, plans_of, settings_from
from measure import write_result
from onnx import TensorProto, helper, numpy_helper

from sparseflow_trt._files import written_atomically
from sparseflow_trt.errors import BuildError
from sparseflow_trt.model.pattern import prune_2to4
from sparseflow_trt.plans.profile_specs import ProfileSpec

K, N, M = 768, 768, 64


@dataclass(frozen=True)
class Case:
    """A network of products of one value.

    Attributes:
        biases: Of each product whether an Add behind its MatMul gives it one.
        gemm: The products are Gemm nodes with the bias among their inputs, as PyTorch exports a linear layer
            of a matrix.
        rank: Of the value: 3 is [1, m, K].
        dense: How many products' weights are not 2:4, the last ones.
        relu: Whether the first product has one behind it.
    """

    biases: tuple[bool, ...]
    gemm: bool = False
    rank: int = 2
    dense: int = 0
    relu: bool = False


CASES = {
    "two": Case((False, False)),
    "two with biases": Case((True, True)),
    "two, one with a bias": Case((True, False)),
    "two with biases, one with a ReLU": Case((True, True), relu=True),
    "two, one not 2:4": Case((False, False), dense=1),
    "two with biases, one not 2:4": Case((True, True), dense=1),
    "three": Case((False,) * 3),
    "three with biases": Case((True,) * 3),
    "three with biases, rank 3": Case((True,) * 3, rank=3),
    "three with biases, Gemm": Case((True,) * 3, gemm=True),
    "four": Case((False,) * 4),
    "four with biases": Case((True,) * 4),
}


def main() -> None:
    """Reads the command line, builds every case and writes what ran as one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", nargs="*", help=f"by default all: {', '.join(CASES)}")
    add_options(parser)
    asked = parser.parse_args()
    if unknown := set(asked.case).difference(CASES):
        parser.error(f"there is no case {sorted(unknown)[0]!r}")
    names = asked.case or list(CASES)
    with settings_from(asked) as settings:
        rows = at_once(settings.builders, run_case, [(name, settings) for name in names])
    command = "python benchmarks/merged_products.py" + "".join(f" {name!r}" for name in asked.case)
    command += f" --builders {settings.builders}" if settings.builders > 1 else ""
    write_result("merged_products", {"K": K, "N": N, "m": f"{M // 2} to {M}", "cases": rows}, command)


def run_case(name: str, settings: Settings) -> dict[str, Any]:
    """One case's row: its products, in the groups in which the engine runs them, and each one's facts."""
    model = settings.work / f"{name.replace(',', '').replace(' ', '-')}.onnx"
    if not model.exists():
        with written_atomically(model) as path:
            write_model(path, CASES[name])
    pruned = range(len(CASES[name].biases) - CASES[name].dense)
    sparse = {f"product{i}": {"sparsity": "sparse", "reason": "asked for"} for i in pruned}
    settings = dataclasses.replace(settings, overrides={"sparse": sparse})
    plan = plans_of(model, ProfileSpec(name="m", axes={"m": (M // 2, M, M)}), settings)["sparse"]
    try:
        result = build_side(model, plan, model.with_suffix(""), settings)
    except BuildError as error:
        return {"case": name, "not built": str(error)}
    manifest, rows = result.manifest, layer_rows(result.manifest)
    return {
        "case": name,
        "run as one": groups_of(rows),
        "not 2:4": [layer.name for layer in manifest.layers if layer.state != "sparse"],
        "validation": facts(result)["validation"],
        "layers": rows,
        "notes": list(manifest.engine.notes),
    }


def groups_of(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The layers that each of the engine's layers runs."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault(row["engine_layer"] or row["layer"], []).append(row["layer"])
    return list(groups.values())


def write_model(path: Path, case: Case) -> None:
    """x → product_i (+ bias_i) → all multiplied → y, in FP32: the plan types it."""
    rng = np.random.default_rng(0)
    nodes, tensors, ends = [], [], []
    for i, biased in enumerate(case.biases):
        weight = (rng.standard_normal((K, N)) * K**-0.5).astype(np.float32)
        if i < len(case.biases) - case.dense:
            weight = prune_2to4(weight, 0)
        tensors.append(numpy_helper.from_array(weight, f"w{i}"))
        if biased:
            tensors.append(numpy_helper.from_array(rng.standard_normal(N).astype(np.float32), f"b{i}"))
        if case.gemm:
            nodes.append(helper.make_node("Gemm", ["x", f"w{i}", f"b{i}"], [f"a{i}"], f"product{i}"))
        else:
            nodes.append(helper.make_node("MatMul", ["x", f"w{i}"], [f"p{i}"], f"product{i}"))
            if biased:
                nodes.append(helper.make_node("Add", [f"p{i}", f"b{i}"], [f"a{i}"], f"bias{i}"))
        end = f"a{i}" if biased else f"p{i}"
        if case.relu and not i:
            nodes.append(helper.make_node("Relu", [end], ["r"], "relu"))
            end = "r"
        ends.append(end)
    product = functools.reduce(lambda left, right: multiply(nodes, left, right), ends)
    nodes.append(helper.make_node("Sigmoid", [product], ["y"], "end"))
    dims = [1] * (case.rank - 2) + ["m"]
    ins, outs = (
        helper.make_tensor_value_info(what, TensorProto.FLOAT, [*dims, size])
        for what, size in (("x", K), ("y", N))
    )
    graph = helper.make_graph(nodes, "products", [ins], [outs], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def multiply(nodes: list[Any], left: str, right: str) -> str:
    """Adds a node that multiplies two values; gives its output."""
    out = f"{left}{right}"
    nodes.append(helper.make_node("Mul", [left, right], [out], f"multiply_{out}"))
    return out


if __name__ == "__main__":
    main()
