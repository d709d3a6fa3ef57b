"""Swaps Linear layers of a PyTorch module for cuSPARSELt's 2:4 products, and back.

The weight is packed once, and the algorithm is searched once for each shape and number of rows: by timing
all of them on buffers that together exceed the L2 cache, since in a network other layers pass between two
uses of a weight. Plans are made once, too, and kept (cusparselt_plan). A module's first run at a number of
rows searches, so it comes before a CUDA graph is captured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from sparseflow_trt._deps import require
from sparseflow_trt.engines.machine.gpu_state import l2_bytes
from sparseflow_trt.engines.timing.input_sets import sets_needed
from sparseflow_trt.engines.torch_kernels import cusparselt
from sparseflow_trt.engines.torch_kernels.cusparselt import Tensor
from sparseflow_trt.engines.torch_kernels.cusparselt_plan import Algorithm, Shape
from sparseflow_trt.engines.torch_kernels.torch_timing import Queue
from sparseflow_trt.pytorch.torch_pattern import is_2to4

NOT_2TO4 = "its weights are not 2:4"

_NEEDED_FOR = "sparse layers in PyTorch"


class SparseKernel(Protocol):
    """Multiplies by 2:4 weights."""

    def why_not(self, weight: Tensor) -> str:
        """Why it does not take W[N, K], "" where it does."""
        ...

    def pack(self, weight: Tensor) -> Tensor:
        """W[N, K] as it reads it."""
        ...

    def search(self, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Algorithm:
        """The fastest algorithm for x[M, K] and W of `shape` [N, K]."""
        ...

    def multiply(self, x: Tensor, packed: Tensor, algorithm: Algorithm, bias: Tensor | None) -> Tensor:
        """x[M, K] · Wᵀ + bias, M a multiple of 8."""
        ...


class CuSparseLt:
    """cuSPARSELt through PyTorch, for FP16 and BF16."""

    def why_not(self, weight: Tensor) -> str:
        """Why the library does not take W[N, K], "" where it does."""
        dtype = str(weight.dtype).removeprefix("torch.")
        if dtype not in ("float16", "bfloat16"):
            return f"its weight is {dtype}, not float16 or bfloat16"
        return cusparselt.why_not(*weight.shape)

    def pack(self, weight: Tensor) -> Tensor:
        """W[N, K] packed."""
        return cusparselt.pack(weight)

    def search(self, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Algorithm:
        """Times every algorithm on cold weights.

        Raises:
            PolicyError: None takes this product, or their calls cannot be timed.
        """
        torch = require("torch", _NEEDED_FOR)
        dtype = str(x.dtype).removeprefix("torch.")
        candidates = cusparselt.find_algorithms(dtype)
        cusparselt.make_plans(Shape(len(x), *shape, dtype), candidates)
        sets = [(x.clone(), packed.clone()) for _ in range(sets_needed(len(x), *shape, l2_bytes()))]
        queue = Queue(torch)

        def time_us(algorithm: Algorithm) -> float:
            self.multiply(*sets[0], algorithm, None)  # loads its kernel

            def work() -> None:
                for one, weight in sets:
                    self.multiply(one, weight, algorithm, None)

            return min(queue.times([work], len(sets))[0][0] for _ in range(3))

        return cusparselt.rank_algorithms(candidates, time_us)[0]

    def multiply(self, x: Tensor, packed: Tensor, algorithm: Algorithm, bias: Tensor | None) -> Tensor:
        """x · Wᵀ + bias."""
        return cusparselt.sparse_linear(x, packed, algorithm, bias)


@dataclass(frozen=True)
class Swapped:
    """Which layers of a module were swapped.

    Attributes:
        module: The module.
        dense: The layers that stood there, by name. They keep their weights: drop this record to free them.
        kept: The layers that were asked for and kept, with the reason.
        algorithms: What was searched: by (N, K), rows and type. It fills as the module runs.
    """

    module: Any
    dense: dict[str, Any]
    kept: dict[str, str]
    algorithms: dict[tuple[tuple[int, int], int, str], Algorithm] = field(default_factory=dict)


def swap_linears(
    module: Any, wanted: Callable[[str, Any], bool], kernel: SparseKernel | None = None
) -> Swapped:
    """Puts sparse layers in the place of Linear layers whose weights are 2:4, in the module itself.

    Args:
        module: A module on the GPU.
        wanted: Says of a name (such as "model.layers.0.mlp.up_proj") and its Linear whether to swap it.
        kernel: What multiplies; cuSPARSELt where none is given.

    Returns:
        What was swapped, which `restore_linears` undoes. A layer that is wanted and cannot be swapped is
        kept, with the reason.
    """
    torch = require("torch", _NEEDED_FOR)
    used = kernel or CuSparseLt()
    swapped = Swapped(module, {}, {})
    made: dict[int, Any] = {}  # one layer may stand in several places
    layers = list(module.named_modules(remove_duplicate=False))
    for name, layer in layers:
        if not isinstance(layer, torch.nn.Linear) or not name or not wanted(name, layer):
            continue
        if id(layer) not in made:
            if why := _why_not(torch, layer, used):
                swapped.kept[name] = why
                continue
            made[id(layer)] = sparse_linear_class()(layer, used, swapped.algorithms)
        swapped.dense[name] = layer
        module.set_submodule(name, made[id(layer)])
    return swapped


def restore_linears(swapped: Swapped) -> None:
    """Puts the dense layers back where they stood."""
    for name, layer in swapped.dense.items():
        swapped.module.set_submodule(name, layer)


def _why_not(torch: Any, layer: Any, kernel: SparseKernel) -> str:
    if type(layer) is not torch.nn.Linear:
        return f"it is a {type(layer).__name__}, not a plain Linear"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has hooks, which would be lost"
    if not is_2to4(layer.weight.detach()):
        return NOT_2TO4
    return kernel.why_not(layer.weight)


@functools.cache
def sparse_linear_class() -> Any:
    """The sparse layer's class: made when it is needed, as PyTorch is."""
    torch = require("torch", _NEEDED_FOR)
    base: Any = torch.nn.Module

    class SparseLinear(base):  # type: ignore[misc]  # PyTorch is not read by the type checker
        """x · Wᵀ + bias with a packed W[N, K]."""

        def __init__(
            self,
            linear: Any,
            kernel: SparseKernel,
            algorithms: dict[tuple[tuple[int, int], int, str], Algorithm],
        ) -> None:
            base.__init__(self)
            self.out_features, self.in_features = linear.weight.shape
            self.register_buffer("packed", kernel.pack(linear.weight.detach()))
            self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
            self.train(linear.training)
            self._kernel, self._algorithms = kernel, algorithms

        @property
        def weight(self) -> Tensor:
            """The packed weight: models ask a layer's weight for its type and device."""
            return self.packed

        def forward(self, input: Tensor) -> Tensor:
            x = input  # as Linear calls it: a module may do so, too
            if not x.numel():  # of no rows, as an expert gets that no token is sent to
                return x.new_empty(*x.shape[:-1], self.out_features)
            flat = x.reshape(-1, self.in_features)
            rows = cusparselt.pad_rows(flat)
            shape = (self.out_features, self.in_features)
            key = (shape, len(rows), str(rows.dtype))
            if key not in self._algorithms:
                self._algorithms[key] = self._kernel.search(rows, self.packed, shape)
            y = self._kernel.multiply(rows, self.packed, self._algorithms[key], self.bias)
            return y[: len(flat)].reshape(*x.shape[:-1], self.out_features)

        def extra_repr(self) -> str:
            return f"in_features={self.in_features}, out_features={self.out_features}, 2:4"

    return SparseLinear
