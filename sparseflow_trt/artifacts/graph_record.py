"""What rewriting a model's graph for its plan did: records that the exporters make and a manifest keeps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, FiniteFloat

from sparseflow_trt._schema import Record


class OptOutRecord(Record):
    """A layer that was taken out of sparse tactics by one element of its weight, or why it was not.

    Attributes:
        route: "element" where one was changed; "none" where the layer could not be taken out.
        reason: In words: what was changed, or why nothing was.
        index: Of the element in the stored weight; it says nothing where the route is "none".
        old_bits: What stood there, as an unsigned integer of the element's size.
        new_bits: What stands there now.
    """

    layer: str
    weight: str
    dtype: str
    route: str
    reason: str
    index: tuple[int, ...]
    old_bits: int
    new_bits: int


class RestoreRecord(Record):
    """A layer that the plan runs dense: whether it got its weight of the unpruned model back, and why not.

    `elements` is how many elements of the weight changed by it.
    """

    layer: str
    weight: str
    route: Literal["restored", "kept"]
    reason: str
    elements: int = 0


class MaskCheckRecord(Record):
    """The 2:4 patterns of the layers planned sparse after one step that may touch weights.

    Attributes:
        step: What was done to the graph.
        touched: How many of these layers have another tensor, or another way to it, than before the step.
        read: How many weights were read again and found 2:4: none after a step that another one follows,
            as what the last one leaves decides, and what each left is read where that is broken.
        planned: Layers whose weights the step changed because the plan has them dense, by name.
    """

    step: str
    touched: int
    read: int = 0
    planned: tuple[str, ...] = ()


class PluginNodeRecord(Record):
    """A node of the plugin: one layer, or several as one product.

    Attributes:
        layer: The node's name: the layer's own, or those of the layers that it joins.
        layers: The layers' names.
        n: Its outputs, of joined layers together.
        k: Its inputs.
        dtype: FP16 or BF16.
        folded: The names of the nodes behind it that became part of it: its bias, its ReLU.
        packed_bytes: The size of its weight as it is kept.
        dense_bytes: And as it was.
        dense_below_m: The M below which it runs a dense copy; 0 where it holds none.
    """

    layer: str
    layers: tuple[str, ...]
    n: int
    k: int
    dtype: str
    folded: tuple[str, ...]
    packed_bytes: int
    dense_bytes: int
    dense_below_m: int = 0


class IslandsRecord(Record):
    """FP32 islands of one module between two weighted layers, in the graph's order.

    Attributes:
        after: The layer before them, "" for those before the first.
        operators: Of each island.
        module: The torch module they are of, or the path in their names; "" where neither tells.
    """

    after: str
    operators: tuple[str, ...]
    module: str = ""


class GraphRecord(Record):
    """What rewriting the graph for the plan did.

    Attributes:
        nodes_retyped: How many nodes compute in another type than before.
        casts: How many were added.
        islands: The nodes that were kept in FP32.
        clamped: The constants that did not fit their type: name, how many elements, and the largest of them.
        opted_out: The layers planned dense that were taken out of sparse tactics.
        lowered: How many nodes of each operator were rewritten, for an older opset, say.
        spine: The islands' operators, by the planned layer before them and their module.
        restored: The layers planned dense whose weights were pruned.
        mask_checks: What each step did to the weights that have to stay 2:4.
        plugin: The plugin's nodes.
    """

    nodes_retyped: int
    casts: int
    islands: tuple[str, ...]
    clamped: tuple[tuple[str, int, FiniteFloat], ...]
    opted_out: tuple[OptOutRecord, ...] = ()
    lowered: dict[str, int] = Field(default_factory=dict)
    spine: tuple[IslandsRecord, ...] = ()
    restored: tuple[RestoreRecord, ...] = ()
    mask_checks: tuple[MaskCheckRecord, ...] = ()
    plugin: tuple[PluginNodeRecord, ...] = ()

    @property
    def restored_layers(self) -> tuple[str, ...]:
        """The layers planned dense that got their weights of the unpruned model."""
        return tuple(record.layer for record in self.restored if record.route == "restored")
