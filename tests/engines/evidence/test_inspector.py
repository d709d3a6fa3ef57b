"""Reading the engine inspector's JSON. The files in data/ are TensorRT 8.6.0's own, from an H200 host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparseflow_trt.engines.evidence.inspector import layers_from_inspector
from sparseflow_trt.engines.evidence.layer_evidence import LayerEvidence
from sparseflow_trt.errors import BuildError

DATA = Path(__file__).parent.parent / "data"
HALF = "Half. Row major linear FP16 format"
DYNAMIC = "N/A due to dynamic shapes"


def text(*layers: Any) -> str:
    return json.dumps({"Layers": layers, "Bindings": ["x", "y"]})


def layer(name: str, inputs: str, outputs: str, key: str = "Format/Datatype", **more: Any) -> dict[str, Any]:
    def tensors(types: str) -> list[dict[str, Any]]:
        return [{"Name": "t", "Dimensions": [8], key: t} for t in types.split("|")]

    return {"Name": name, "LayerType": "gemm", "Inputs": tensors(inputs), "Outputs": tensors(outputs), **more}


def test_a_real_engine_with_int8_products() -> None:
    raw = (DATA / "trt86_int8.json").read_text(encoding="utf-8")
    assert "\x1e" in raw

    layers = {e.name: e for e in layers_from_inspector(raw)}

    up = layers["w1 + transpose_before_up_proj + up_proj + PWN(relu)"]
    assert (up.type, up.precision, up.nodes) == ("CaskConvolution", "Int8", ("up_proj", "relu"))
    assert up.sparse_weights is True
    down = layers["w2 + transpose_before_down_proj + down_proj"]
    assert (down.precision, down.nodes, down.profile) == ("Int8->Float", ("down_proj",), 0)
    assert layers["q1"] == LayerEvidence("q1", "Reformat", "", "", tactic_id="0x0000000000000000")
    assert int(down.tactic_id, 16) == 0xFD22C4F50AD6CB5E


def test_a_real_engine_with_two_profiles() -> None:
    layers = layers_from_inspector((DATA / "trt86_two_profiles.json").read_text(encoding="utf-8"))

    first, second = ([e for e in layers if e.profile == number] for number in (0, 1))
    # The profiles differ in a conversion between formats, and in nothing else.
    assert {e.name for e in first} - {e.name for e in second} == {
        "Reformatting CopyNode for Input Tensor 0 to reshape_after_gate_proj"
    }
    assert {e.name for e in second} <= {e.name for e in first}
    assert not any("[profile" in e.name for e in layers)
    for number, half in enumerate((first, second)):
        merged = next(e for e in half if e.name == "gate_proj || up_proj")
        assert (merged.precision, merged.nodes) == ("Float", ("gate_proj", "up_proj"))
        assert (merged.profile, merged.sparse_weights) == (number, True)
        assert next(e for e in half if e.name == "down_proj").sparse_weights is False


@pytest.mark.parametrize(
    ("told", "precision"),
    [
        (HALF, "Half"),
        ("Half", "Half"),
        ("Half(64,1:8,2)", "Half"),
        ("Row major linear FP32", "Float"),
        ("Thirty-two wide channel vectorized row major Int8 format", "Int8"),
        ("BFloat16. Row major linear BF16 format", "BFloat16"),
        (DYNAMIC, ""),
        ("", ""),
    ],
)
def test_a_type_and_format_in_the_words_of_8_6_and_10(told: str, precision: str) -> None:
    (evidence,) = layers_from_inspector(text(layer("mm", told, told)))

    assert evidence.precision == precision


@pytest.mark.parametrize(
    ("inputs", "outputs", "tactic", "precision"),
    [
        ("Int8|Int8|Half", HALF, "", "Int8->Half"),
        ("Int8", "Int8", "", "Int8"),
        (HALF, HALF, "sm80_xmma_gemm_f16f16_f16f32_f32_tn_n", "Half"),
        ("Half", "Float", "sm80_xmma_gemm_f16f32_f16f32_f32_tn_n", "Half->Float"),
        ("Float", "Float", "sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n", "TF32"),
        # The name and the tensors disagree: the tensors are asked first.
        ("Float", "Float", "sm80_xmma_gemm_f16f16_f16f16_f16_nn_n", "Float"),
        (DYNAMIC, DYNAMIC, "sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize32", "Float"),
        (DYNAMIC, DYNAMIC, "sm80_xmma_gemm_f16f16_f16f16_f16_tn", "Half"),
        (DYNAMIC, DYNAMIC, "sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_x", "BFloat16"),
        (DYNAMIC, DYNAMIC, "sm50_xmma_fprop_direct_group_i8i8_i32_f32_nchw", "Int8"),
        (DYNAMIC, DYNAMIC, "sm89_xmma_gemm_e4m3f16_e4m3f32_f32_tn", "FP8->Half"),
        (DYNAMIC, DYNAMIC, "__myl_AddMul_0xcbcb71f1", ""),
        (DYNAMIC, DYNAMIC, "", ""),
    ],
)
def test_precision(inputs: str, outputs: str, tactic: str, precision: str) -> None:
    (evidence,) = layers_from_inspector(text(layer("mm", inputs, outputs, TacticName=tactic)))

    assert evidence.precision == precision


def test_the_type_of_the_weights_tells_what_is_multiplied() -> None:
    def fusion(weights: str, outputs: str) -> dict[str, Any]:
        constants = [
            {"Name": "bias", "Dimensions": [1, 64], "Datatype": "Float"},
            {"Name": "w", "Dimensions": [64, 32], "Datatype": weights},
            {"Name": "odd", "Dimensions": None, "Datatype": "Float"},
            {"Name": "untold", "Dimensions": [64, 32]},
        ]
        return layer("__myl_FcCast_myl0_3", "Half", outputs, "Datatype", Constants=constants)

    def precision(entry: dict[str, Any]) -> str:
        (evidence,) = layers_from_inspector(text(entry))
        return evidence.precision

    assert precision(fusion("Half", "Float")) == "Half->Float"
    assert precision(fusion("Float", "Float")) == ""
    assert precision(layer("mm", "Half", "Float")) == ""
    assert precision(layer("mm", HALF, "Float", Weights={"Type": "Half", "Count": 8})) == "Half->Float"
    given = {"Type": "Float", "Count": 8}
    assert precision(layer("mm", HALF, HALF, Weights=given)) == "Half", "8.6 tells them as they were given"


def test_the_schema_of_11() -> None:
    layers = [
        layer(
            "mm_myl0_0", "Half", "Half", "Datatype", TacticName="t", StreamId=0, Metadata="[ONNX Layer: mm]"
        ),
        layer("__myl_Add_myl1_0", "Half", "Half", "Datatype", Metadata=""),
        layer("mm [profile 1]_myl1_1", "Int8", "Half", "Datatype", Metadata="[ONNX Layer: mm [profile 1]]"),
    ]

    assert layers_from_inspector(json.dumps({"Layers": layers, "I/O Tensors": []})) == (
        LayerEvidence("mm_myl0_0", "gemm", "Half", "t", 0, ("mm",)),
        LayerEvidence("__myl_Add_myl1_0", "gemm", "Half", "", 1),
        LayerEvidence("mm_myl1_1", "gemm", "Int8->Half", "", 1, ("mm",)),
    )


def test_nodes_may_have_brackets_in_their_names() -> None:
    metadata = (
        "[ONNX Layer: /mlp[0]/up]\x1e[ONNX Layer: b [profile 1]]\x1e[ONNX Layer: b]\x1e[ONNX Layer: c[1]]"
    )
    (evidence,) = layers_from_inspector(text(layer("mm", "Half", "Half", Metadata=metadata)))

    assert evidence.nodes == ("/mlp[0]/up", "b", "c[1]")


def test_each_profile_is_read_from_its_own_text() -> None:
    def told(first: str, second: str) -> str:
        return text(layer("mm", first, first), layer("mm [profile 1]", second, second))

    layers = layers_from_inspector(told("Half", DYNAMIC), told(DYNAMIC, "Float"))

    assert [(e.name, e.profile, e.precision) for e in layers] == [("mm", 0, "Half"), ("mm", 1, "Float")]


def test_a_layer_that_is_told_by_its_name_alone_has_neither_type_nor_tactic() -> None:
    layers = layers_from_inspector(text("gate || up", "gate || up [profile 1]"))

    assert layers == (LayerEvidence("gate || up", "", "", ""), LayerEvidence("gate || up", "", "", "", 1))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no list of 'Layers'"),
        ('{"Layers": {}}', "no list of 'Layers'"),
        ('{"Layers": [1]}', "neither a name nor an object"),
        ('{"Layers": [{"Name": 3}]}', "neither a name nor an object"),
    ],
)
def test_what_is_no_inspectors_json_is_refused(raw: str, says: str) -> None:
    with pytest.raises(BuildError, match=says):
        layers_from_inspector(raw)


def test_fields_of_other_kinds_tell_nothing() -> None:
    odd = {
        "Name": "mm",
        "LayerType": None,
        "Inputs": "x",
        "Outputs": [3, {}],
        "Metadata": 1,
        "HasSparseWeights": "?",
    }

    assert layers_from_inspector(text(odd)) == (LayerEvidence("mm", "", "", ""),)
