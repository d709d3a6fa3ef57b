"""What a backend needs of the graph that it is given, beyond the types that mean the plan."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GraphNeeds:
    """Asked of a backend, answered by the exporters.

    Attributes:
        newest_opset: The newest opset that its parser reads; None where any will do. 17 is the one known.
        opts_out_dense: Whether sparse weights are one switch for the whole engine, so that a 2:4 layer
            that is planned dense has to be taken out of them in its weights.
    """

    newest_opset: int | None = None
    opts_out_dense: bool = False


ANYTHING = GraphNeeds()  # a backend that takes any graph
