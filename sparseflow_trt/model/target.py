"""What a backend needs of the graph that it is given, beyond the types that mean the plan."""

from __future__ import annotations

from dataclasses import dataclass

# The TensorRT plugin of plugins/sparse_linear, and its node.
PLUGIN_DOMAIN = "sparseflow"
PLUGIN_OP = "SparseFlowLinear24"
PLUGIN_VERSION = "1"


@dataclass(frozen=True)
class GraphNeeds:
    """Asked of a backend, answered by the exporters.

    Attributes:
        newest_opset: The newest opset that its parser reads; None where any will do. 17 is the one known.
        spells_out: Whether Shape's start and end and Q/DQ's zero points have to be written out.
        opts_out_dense: Whether sparse weights are one switch for the whole engine, so that a 2:4 layer
            that is planned dense has to be taken out of them in its weights.
        takes_plugin: Whether it runs the plugin's nodes; else they are not made.
        takes_bf16: Whether it has BF16 at all, so that precisions that are searched for may be BF16.
    """

    newest_opset: int | None = None
    spells_out: bool = False
    opts_out_dense: bool = False
    takes_plugin: bool = False
    takes_bf16: bool = True


ANYTHING = GraphNeeds()  # a backend that takes any graph
