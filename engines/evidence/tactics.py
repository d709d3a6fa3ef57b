"""Evidence: what a built engine says of its own layers, in the words that its log and its inspector share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from sparseflow_trt.engines.evidence.layer_evidence import LayerEvidence

_LINE = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<type>\w+), Inputs: (?P<inputs>\[.*?\]), "
    r"Constants: (?P<constants>\[.*\]), Outputs: (?P<outputs>\[.*\]), TacticName: (?P<tactic>.*?), "
    r"StreamId: \d+, Metadata: (?P<metadata>.*)$",
    re.MULTILINE,
)
_PROFILE = re.compile(r" \[profile (\d+)\]")
_REGION = re.compile(r"_myl(\d+)_\d+$")
_DATATYPE = re.compile(r"Datatype: (\w+)")
_CONSTANT = re.compile(r"Dimensions: \[([\d,]*)\][^{}]*? Datatype: (\w+)")
# A node's own name may hold brackets: it ends where the next entry or the text's end follows.
_NODE = re.compile(r"\[ONNX Layer: (.*?)(?: \[profile \d+\])?\](?=\s*(?:\[ONNX Layer: |$))")
_SPARSE = re.compile(r"spars|spmma|sptensor|spgemm", re.IGNORECASE)
_QUANTIZED = {"Int8", "FP8"}
_FLOATS = {"Float", "Half", "BFloat16"}

_TYPES_BY_CODE = {
    "f32": "Float", "tf32": "TF32", "f16": "Half", "bf16": "BFloat16", "i8": "Int8", "i32": "Int32",
    "e4m3": "FP8", "e5m2": "FP8",
}  # fmt: skip
_CODE = "|".join(_TYPES_BY_CODE)
# sm80_xmma_gemm_f16f32_f16f32_f32_tn_n_…: A read as f16, the result written as f32; B taken as f16, summed
# in f32; scaled in f32. Direct convolutions leave out B: i8i8_i32_f32.
_TYPED_NAME = re.compile(
    rf"_(?P<read>{_CODE})(?P<written>{_CODE})_(?P<multiplied>{_CODE})??(?P<summed>{_CODE})_(?:{_CODE})(?:_|$)"
)


def layers_from_log(text: str) -> tuple[LayerEvidence, ...]:
    """Reads the `Layers:` message of a builder's log: every layer, once for each profile."""
    lines = list(_LINE.finditer(text))
    regions = region_profiles((line["name"], line[0]) for line in lines)
    return tuple(
        LayerEvidence(
            name=without_profile(line["name"]),
            type=line["type"],
            precision=precision_of(
                _DATATYPE.findall(line["inputs"]),
                _DATATYPE.findall(line["outputs"]),
                line["tactic"],
                weight_types(
                    ([int(d) for d in dims.split(",") if d], datatype)
                    for dims, datatype in _CONSTANT.findall(line["constants"])
                ),
            ),
            tactic=line["tactic"],
            profile=profile_of(line["name"], regions),
            nodes=nodes_of(line["metadata"]),
        )
        for line in lines
    )


def is_sparse_tactic(name: str) -> bool:
    """Whether a tactic's name is that of a kernel for 2:4 weights."""
    return _SPARSE.search(name) is not None


def precision_of(
    read: Iterable[str], written: Iterable[str], tactic: str = "", weights: Iterable[str] = ()
) -> str:
    """What a layer computes in, in TensorRT's words; "" where neither its types nor its tactic tell.

    What is multiplied counts: where the layer's weights are of a type that it also reads, it is that one, and
    "Half->Float" says that the products are written in another. TensorRT's compiler fuses the cast behind a
    product into it, so the type of the outputs alone tells nothing of a layer that reads another, too. But
    one that reads INT8 or FP8 and writes something else is put as "Int8->Half" without its weights, too.
    Where the tactic's name agrees about the outputs, it tells: "TF32" for products in TF32.

    Args:
        read: The types of the layer's inputs.
        written: Of its outputs.
        tactic: The tactic's name.
        weights: The types of its weights, where they are told.
    """
    inputs, outputs, own = set(read), sorted(set(written)), set(weights)
    quantized = sorted(_QUANTIZED.intersection(inputs).difference(outputs))
    told = "->".join(part for part in ("+".join(quantized), "+".join(outputs)) if part)
    named = precision_of_tactic(tactic)
    if not outputs or named.rpartition("->")[2] == told or (named, told) == ("TF32", "Float"):
        return named or told
    if len(own) == 1 and own <= inputs:
        multiplied = own.pop()
        return multiplied if outputs == [multiplied] else f"{multiplied}->{'+'.join(outputs)}"
    # There is a cast in it, and on which side of the product is not told.
    mixed = len((_FLOATS | _QUANTIZED) & (inputs | set(outputs))) > 1 and not quantized
    return "" if mixed or (own and inputs) else told


def weight_types(constants: Iterable[tuple[Sequence[int], str]]) -> tuple[str, ...]:
    """The types of those of a layer's constants that are matrices or more: biases and factors are not."""
    return tuple(datatype for shape, datatype in constants if sum(size > 1 for size in shape) > 1)


def precision_of_tactic(name: str) -> str:
    """What a tactic computes in, by its name: "Half", "Int8->Float"; "" where the name does not tell."""
    match = _TYPED_NAME.search(name)
    if match is None:
        return ""
    multiplied, written = (
        _TYPES_BY_CODE[code] for code in (match["multiplied"] or match["read"], match["written"])
    )
    return multiplied if multiplied in ("TF32", written) else f"{multiplied}->{written}"


def accumulator_of_tactic(name: str) -> str:
    """The type that a tactic adds up products in, by its name: "Half", "Float", "Int32"; "" as above."""
    match = _TYPED_NAME.search(name)
    return _TYPES_BY_CODE[match["summed"]] if match else ""


def nodes_of(metadata: str) -> tuple[str, ...]:
    """The ONNX nodes that a layer's metadata names, each once: '[ONNX Layer: a]\\x1e[ONNX Layer: b]'."""
    return tuple(dict.fromkeys(_NODE.findall(metadata)))


def without_profile(name: str) -> str:
    """A layer's name without its ' [profile 1]'."""
    return _PROFILE.sub("", name)


def layer_key(name: str, profile: int) -> tuple[str, int]:
    """A layer's name without its " [profile 1]", and that number, or else `profile`."""
    suffix = _PROFILE.search(name)
    return without_profile(name), int(suffix[1]) if suffix else profile


def region_profiles(layers: Iterable[tuple[str, str]]) -> dict[str, int]:
    """The profile of each region of TensorRT's compiler, from (name, whole text) of every layer.

    Only layers named after ONNX nodes carry "[profile 1]"; the compiler's own, such as fusions, share
    the number of their region with them.
    """
    return {
        region[1]: int(profile[1])
        for name, text in layers
        if (region := _REGION.search(name)) and (profile := _PROFILE.search(text))
    }


def profile_of(name: str, regions: dict[str, int]) -> int:
    """The profile that a layer belongs to, by its name or by its region."""
    if profile := _PROFILE.search(name):
        return int(profile[1])
    region = _REGION.search(name)
    return regions.get(region[1], 0) if region else 0
