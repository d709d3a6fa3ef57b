"""A Polygraphy runner of a PyTorch module, to hold what was exported from it against it."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparseflow_trt._deps import require
from sparseflow_trt.validation.compare import Reference
from sparseflow_trt.validation.feeds import Array

if TYPE_CHECKING:
    from polygraphy.backend.base import BaseRunner


def torch_reference(
    module: Any,
    inputs: Mapping[str, Any],
    outputs: Sequence[str],
    name: str,
    dims: Mapping[str, Sequence[int | str | None]] | None = None,
) -> Reference:
    """A reference that runs a module on the CPU.

    Args:
        module: Takes tensors by position and gives tensors, in whatever of tuples, lists and mappings.
        inputs: Tensors by name, in their order: what it runs on is given their types.
        outputs: The names of what it gives, in the order in which torch takes such a thing apart.
        name: What the verdict calls it.
        dims: Of the inputs, which an error names their axes by.

    Raises:
        NotInstalledError: PyTorch or Polygraphy.
    """
    torch = require("torch", "running a PyTorch module")
    runtime = f"PyTorch {torch.__version__} on the CPU, in the module's own types"
    runner = _runner(torch, module, dict(inputs), tuple(outputs), name, dims or {})
    return Reference(name, runner, runtime)


def _runner(
    torch: Any,
    module: Any,
    inputs: dict[str, Any],
    outputs: Sequence[str],
    name: str,
    dims: Mapping[str, Sequence[int | str | None]],
) -> BaseRunner:
    require("polygraphy", "comparing outputs")
    from polygraphy.backend.base import BaseRunner
    from polygraphy.common import TensorMetadata
    from torch.utils._pytree import tree_leaves  # as torch.export takes outputs apart

    types = {given: tensor.dtype for given, tensor in inputs.items()}

    class TorchRunner(BaseRunner):  # type: ignore[misc, unused-ignore]  # Polygraphy is not typed
        """Copies arrays to tensors and back."""

        def get_input_metadata_impl(self) -> Any:
            metadata = TensorMetadata()
            for given, tensor in inputs.items():
                shape = list(dims.get(given, [None] * tensor.dim()))
                metadata.add(given, dtype=_array_of(torch, tensor).dtype, shape=shape)
            return metadata

        def infer_impl(self, feed_dict: dict[str, Array]) -> dict[str, Array]:
            # BF16 comes widened to FP32, since NumPy has no such type; nothing is lost on the way back
            tensors = [torch.from_numpy(feed_dict[given].copy()).to(like) for given, like in types.items()]
            started = time.perf_counter()
            with torch.no_grad():
                made = module(*tensors)
            self.inference_time = time.perf_counter() - started  # Polygraphy asks for it
            given = [leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
            return OrderedDict(
                (output, _array_of(torch, value)) for output, value in zip(outputs, given, strict=True)
            )

    return TorchRunner(name)


def _array_of(torch: Any, tensor: Any) -> Array:
    """An array of a tensor's values: BF16, which NumPy has not, in FP32."""
    array: Array = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).detach().cpu().numpy()
    return array
