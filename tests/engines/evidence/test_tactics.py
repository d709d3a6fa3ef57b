"""Reading the layers that a builder's log lists."""

from __future__ import annotations

import pytest

from sparseflow_trt.engines.evidence.layer_evidence import LayerEvidence
from sparseflow_trt.engines.evidence.tactics import (
    accumulator_of_tactic,
    is_sparse_tactic,
    layer_key,
    layers_from_log,
)


def line(
    name: str, kind: str, inputs: str, outputs: str, tactic: str = "", metadata: str = "", weights: str = ""
) -> str:
    def tensors(types: str, shape: str = "64") -> str:
        return ", ".join(
            f"{{ Name: t, Dimensions: [{shape}], Strides: [1], Datatype: {t}, Format: F }}"
            for t in types.split()
        )

    constants = ", ".join(filter(None, (tensors(weights, "64,32"), tensors("Float", "1"))))
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {tensors(inputs)}], Constants: [ {constants}], "
        f"Outputs: [ {tensors(outputs)}], TacticName: {tactic}, StreamId: 0, Metadata: {metadata}"
    )


def test_a_layer_of_the_compiler_belongs_to_the_profile_of_its_region() -> None:
    text = "\n".join(
        (
            "Layers:",
            line("mm_myl0_0", "gemm", "Half", "Half", "__myelin_CASK_STUB", "[ONNX Layer: mm]"),
            line(
                "__myl_Add_myl0_1", "kgen", "Half", "Half", "__myl_Add_0xab", "[ONNX Layer: a][ONNX Layer: b]"
            ),
            line("__myl_Add_myl1_0", "kgen", "Half", "Half"),
            line("mm [profile 1]_myl1_1", "gemm", "Half", "Half", metadata="[ONNX Layer: mm [profile 1]]"),
            "",
            "I/O Tensors:",
            " Name: x, IOMode: Input, DataType: Half, Dimensions: [-1,64]",
        )
    )

    assert layers_from_log(text) == (
        LayerEvidence("mm_myl0_0", "gemm", "Half", "__myelin_CASK_STUB", 0, ("mm",)),
        LayerEvidence("__myl_Add_myl0_1", "kgen", "Half", "__myl_Add_0xab", 0, ("a", "b")),
        LayerEvidence("__myl_Add_myl1_0", "kgen", "Half", "", 1),
        LayerEvidence("mm_myl1_1", "gemm", "Half", "", 1, ("mm",)),
    )


def test_kernels_for_2to4_weights_are_known_by_their_names() -> None:
    assert is_sparse_tactic("sm80_xmma_sparse_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64_stage3")
    assert is_sparse_tactic("ampere_h16816spgemm_128x64_ldg8_stages_64x3_tn_v1")
    assert not is_sparse_tactic("sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64_stage3")
    assert not is_sparse_tactic("")


@pytest.mark.parametrize(
    ("tactic", "accumulator"),
    [
        ("sm90_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize128x128x64_warpgroupsize1x1x1_beta0", "Half"),
        ("sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64_stage3", "Float"),
        ("sm90_xmma_fprop_implicit_gemm_i8i8_i8i32_f32_nhwckrsc_nhwc_tilesize64x64x64", "Int32"),
        ("sm80_xmma_fprop_implicit_gemm_i8i8_i32_f32_nhwckrsc_nhwc_tilesize64x64x64", "Int32"),
        ("ampere_h16816spgemm_128x64_ldg8_stages_64x3_tn_v1", ""),
        ("__myl_Add_0xab", ""),
        ("", ""),
    ],
)
def test_a_tactics_name_tells_what_it_adds_up_in(tactic: str, accumulator: str) -> None:
    assert accumulator_of_tactic(tactic) == accumulator


def test_a_layer_says_its_profile_or_has_that_of_its_builder() -> None:
    assert layer_key("mm [profile 2]", 1) == ("mm", 2)
    assert layer_key("mm", 1) == ("mm", 1)


def test_quantized_inputs_are_told_and_types_are_named_once() -> None:
    (layer,) = layers_from_log(line("mm", "gemm", "Int8 Int8 Half", "Half Half"))

    assert layer.precision == "Int8->Half"


@pytest.mark.parametrize(
    ("inputs", "weights", "outputs", "precision"),
    [
        ("Half", "Half", "Float", "Half->Float"),  # FcCast
        ("Float Half", "Half", "Float", "Half->Float"),  # FcCastAdd: what is added is FP32
        ("Float", "Float", "Half", "Float->Half"),
        ("Half", "Half", "Half", "Half"),
        ("BFloat16", "BFloat16", "Float", "BFloat16->Float"),
        ("Int8", "Int8", "Half", "Int8->Half"),
        # The weights' type is not that of what they are multiplied by: which of the two is not known.
        ("Float", "Half", "Float", ""),
        ("Float", "Int8", "Float", ""),
        ("Half", "Half Float", "Half", ""),
        # No weights are told: there is a cast before the product or behind it.
        ("Half", "", "Float", ""),
        ("Float Half", "", "Float", ""),
        ("Half", "", "Half Float", ""),
        ("Half Int64", "", "Half", "Half"),
        ("", "", "Half", "Half"),
    ],
)
def test_what_is_multiplied_counts(inputs: str, weights: str, outputs: str, precision: str) -> None:
    (layer,) = layers_from_log(line("__myl_Fc_myl0_3", "runtime_fusion", inputs, outputs, weights=weights))

    assert layer.precision == precision


def test_a_log_without_layers_has_none() -> None:
    assert layers_from_log("") == ()
