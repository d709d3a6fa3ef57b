"""Evidence: what a built engine says of its own layers."""

from __future__ import annotations

import re

from sparseflow_trt.engines.protocol import LayerEvidence

_LINE = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<type>\w+), Inputs: (?P<inputs>\[.*?\]), Constants: \[.*\], "
    r"Outputs: (?P<outputs>\[.*\]), TacticName: (?P<tactic>.*?), StreamId: \d+, Metadata: (?P<metadata>.*)$",
    re.MULTILINE,
)
_PROFILE = re.compile(r" \[profile (\d+)\]")
_REGION = re.compile(r"_myl(\d+)_\d+$")
_DATATYPE = re.compile(r"Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: (.*?)(?: \[profile \d+\])?\]")
_QUANTIZED = {"Int8", "FP8"}


def layers_from_log(text: str) -> tuple[LayerEvidence, ...]:
    """Reads the `Layers:` message of a builder's log: every layer, once for each profile.

    A layer's precision is the type of its outputs in TensorRT's words; one that reads INT8 or FP8 and
    writes something else is put as "Int8->Half", as its products are INT8.
    """
    lines = list(_LINE.finditer(text))
    # Only layers named after ONNX nodes carry "[profile 1]"; the compiler's own, such as fusions, share
    # the number of their region with them.
    profile_of_region = {
        region: int(profile[1])
        for line in lines
        if (profile := _PROFILE.search(line[0])) and (region := _region(line["name"]))
    }
    return tuple(
        LayerEvidence(
            name=_PROFILE.sub("", line["name"]),
            type=line["type"],
            precision=_precision(line["inputs"], line["outputs"]),
            tactic=line["tactic"],
            profile=profile_of_region.get(_region(line["name"]), 0),
            nodes=tuple(dict.fromkeys(_NODE.findall(line["metadata"]))),
        )
        for line in lines
    )


def _region(name: str) -> str:
    match = _REGION.search(name)
    return match[1] if match else ""


def _precision(inputs: str, outputs: str) -> str:
    read, written = (sorted(set(_DATATYPE.findall(part))) for part in (inputs, outputs))
    quantized = _QUANTIZED.intersection(read).difference(written)
    return "->".join(part for part in ("+".join(sorted(quantized)), "+".join(written)) if part)
