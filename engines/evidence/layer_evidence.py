"""What an engine says of one of its layers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerEvidence:
    """What the engine says of one of its layers, as its inspector or its builder's log puts it.

    `nodes` are the ONNX nodes it was made from, where the engine tells: one for most, several for a fusion.
    `sparse_weights` is whether TensorRT found its weights to be 2:4, None where it does not say.
    `tactic_id` is the number that TensorRT gives the tactic ("0x00000000040608c4"), "" where it does not say.
    `parameters` is all that the inspector of 8.6 and 10 tells of a layer with weights, but for names and its
    tactic, as one text: layers that are alike have the same.
    """

    name: str
    type: str
    precision: str
    tactic: str
    profile: int = 0
    nodes: tuple[str, ...] = ()
    sparse_weights: bool | None = None
    tactic_id: str = ""
    parameters: str = ""
