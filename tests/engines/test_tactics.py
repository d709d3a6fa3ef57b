"""Reading the layers that a builder's log lists."""

from __future__ import annotations

from sparseflow_trt.engines.protocol import LayerEvidence
from sparseflow_trt.engines.tactics import layers_from_log


def line(name: str, kind: str, inputs: str, outputs: str, tactic: str = "", metadata: str = "") -> str:
    def tensors(types: str) -> str:
        return ", ".join(f"{{ Name: t, Dimensions: [64], Datatype: {t}, Format: F }}" for t in types.split())

    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {tensors(inputs)}], Constants: [], "
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


def test_quantized_inputs_are_told_and_types_are_named_once() -> None:
    (layer,) = layers_from_log(line("mm", "gemm", "Int8 Int8 Half", "Half Half"))

    assert layer.precision == "Int8->Half"


def test_a_log_without_layers_has_none() -> None:
    assert layers_from_log("") == ()
