"""Runs a module block by block on calibration batches, and keeps what its layers get.

A block is an element of the outermost ModuleList ("model.layers.3"), or else Sequential, with all the layers
in it, or a layer that stands in none. While a block is looked at, the blocks before it are not computed
again: the last one of each list gives what it gave when it was done, and all before it nothing of their own.
Everything else (masks, rotary embeddings, what lies between) is the module's own forward, cut off where the
block ends.

That this is the same as running the whole module is checked on the first batch of every block. Where it is
not (skip connections, a block that is called twice), the module is run from its beginning instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparseflow_trt._deps import require
from sparseflow_trt.errors import InputError, one_line
from sparseflow_trt.exporters.pruning.blocks import Block, find_blocks
from sparseflow_trt.pytorch.torch_layers import TorchLayer
from sparseflow_trt.pytorch.torch_pattern import Tensor

_SAME = 1e-3  # relative: GPUs add up in any order
_NEEDED_FOR = "calibrated pruning"


@dataclass(frozen=True)
class Batch:
    """What the module is called with once.

    Attributes:
        mask: [batch, seq], bool: which tokens count. Of padding nothing is learned.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    mask: Tensor | None = None


@dataclass
class _Replay:
    """Blocks that are done, and for each list what its last one gave, by batch."""

    done: list[Block] = field(default_factory=list)
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    works: bool = True


class _BlockEnded(BaseException):
    """The block that was asked for has run. No `except Exception` of a module's own catches it."""


Watch = Callable[[TorchLayer, Tensor], None]  # gets the rows [rows, K] of one call


def as_batch(inputs: Any, device: object) -> Batch:
    """A batch of what a user gives: a tensor, a tuple, or a mapping by name with or without attention_mask.

    Raises:
        InputError: It is none of these.
    """
    torch = require("torch", _NEEDED_FOR)

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    if isinstance(inputs, Mapping):
        named = {str(name): moved(value) for name, value in inputs.items()}
        mask = named.get("attention_mask")
        if not isinstance(mask, torch.Tensor) or mask.dim() != 2:
            mask = None  # of another kind: it says more than which tokens count
        return Batch((), named, None if mask is None else mask.bool())
    if isinstance(inputs, torch.Tensor):
        return Batch((moved(inputs),), {})
    if isinstance(inputs, (tuple, list)):
        return Batch(tuple(map(moved, inputs)), {})
    raise InputError(
        f"a calibration batch is a {type(inputs).__name__}.",
        "A batch is a tensor, a tuple of what the module takes, or a mapping by the names it takes.",
    )


def walk_blocks(
    module: Any,
    layers: Sequence[TorchLayer],
    batches: Sequence[Batch],
    watch: Watch,
    settle: Callable[[Block], None],
    on_step: Callable[[str, int, int], None] = lambda step, done, total: None,
) -> None:
    """For each block in the order of execution: shows its layers' inputs to `watch`, then calls `settle`.

    What `settle` does to the block's weights, the blocks after it see.

    Args:
        module: Run without gradients, in evaluation mode, with no key-value cache.
        layers: Whose inputs are watched.
        batches: At least one.
        watch: Gets the rows of each call of each layer.
        settle: Called when all batches have gone through a block. Blocks that are never called are settled
            last, with nothing watched.
        on_step: Told what is done.

    Raises:
        InputError: The module fails on a batch.
    """
    torch = require("torch", _NEEDED_FOR)
    blocks = find_blocks(module, layers)
    replay = _Replay()
    with torch.no_grad(), _calibrating(module):
        calls = _trace(module, blocks, batches[0])
        reached = [block for block in blocks if block.name in calls]
        reached.sort(key=lambda block: list(calls).index(block.name))
        replay.works = all(count == 1 for count in calls.values())
        for i, block in enumerate(reached):
            on_step(f"Calibrating {block.name}", i, len(blocks))
            _check_replay(module, block, batches[0], replay)
            for b, batch in enumerate(batches):
                with _watched(block.layers, batch, watch):
                    _run(module, block, b, batch, replay)
            settle(block)
            if block.siblings and replay.works:
                given = [_run(module, block, b, batch, replay) for b, batch in enumerate(batches)]
                replay.outputs[block.siblings] = given
            replay.done.append(block)
    for block in blocks:
        if block.name not in calls:
            settle(block)


def _trace(module: Any, blocks: Sequence[Block], batch: Batch) -> dict[str, int]:
    """How often each block is called in one run, in the order in which they first end."""
    calls: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for block in blocks:

            def hook(_: Any, args: Any, output: Any, name: str = block.name) -> None:
                calls[name] = calls.get(name, 0) + 1

            stack.callback(module.get_submodule(block.name).register_forward_hook(hook).remove)
        _call(module, batch)
    return calls


def _run(module: Any, block: Block, index: int, batch: Batch, replay: _Replay) -> Any:
    """Runs the module until a block has ended, and gives what the block gave.

    Where it cannot be replayed the module runs to its end, since a block may be called more than once.
    """
    given: list[Any] = []

    def hook(_: Any, args: Any, output: Any) -> None:
        given.append(output)
        if replay.works:
            raise _BlockEnded

    handle = module.get_submodule(block.name).register_forward_hook(hook)
    try:
        with _replayed(module, replay, index), contextlib.suppress(_BlockEnded):
            _call(module, batch)
    finally:
        handle.remove()
    return given[-1] if given else None


@contextlib.contextmanager
def _replayed(module: Any, replay: _Replay, index: int) -> Iterator[None]:
    """Has the blocks that are done give copies of what was kept of the last one of their list."""
    torch = require("torch", _NEEDED_FOR)

    def copy(value: Any) -> Any:  # what comes next may write into it
        return value.clone() if isinstance(value, torch.Tensor) else value

    with contextlib.ExitStack() as stack:
        for block in replay.done if replay.works else ():
            if block.siblings in replay.outputs:
                part, kept = module.get_submodule(block.name), replay.outputs[block.siblings][index]
                had = part.__dict__.get("forward")
                part.forward = lambda *args, _kept=kept, **kwargs: torch.utils._pytree.tree_map(copy, _kept)
                stack.callback(_restore_forward, part, had)
        yield


def _restore_forward(part: Any, had: Any) -> None:
    if had is None:
        del part.forward
    else:
        part.forward = had


def _check_replay(module: Any, block: Block, batch: Batch, replay: _Replay) -> None:
    """Gives replay up where a block's inputs differ from those of the whole module."""
    if not replay.works or not replay.outputs:
        return
    try:
        replayed = _inputs_of(module, block, batch, replay)
    except InputError:
        replayed = []
    whole = _inputs_of(module, block, batch, _Replay())
    if len(replayed) != len(whole) or not all(map(_alike, replayed, whole)):
        replay.works = False
        replay.outputs.clear()


def _inputs_of(module: Any, block: Block, batch: Batch, replay: _Replay) -> list[Tensor]:
    torch = require("torch", _NEEDED_FOR)
    found: list[Tensor] = []

    def hook(_: Any, args: Any, kwargs: Any) -> None:
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        found.extend(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
        raise _BlockEnded

    handle = module.get_submodule(block.name).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with _replayed(module, replay, 0), contextlib.suppress(_BlockEnded):
            _call(module, batch)
    finally:
        handle.remove()
    return found


def _alike(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return bool((one == other).all())
    one, other = one.float(), other.float()
    return bool((one == other).all()) or float((one - other).norm()) <= _SAME * float(other.norm())


@contextlib.contextmanager
def _watched(layers: Sequence[TorchLayer], batch: Batch, watch: Watch) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for layer in layers:

            def hook(_: Any, args: tuple[Any, ...], layer: TorchLayer = layer) -> None:
                rows = _rows_of(args[0].detach(), batch.mask)
                if len(rows):
                    watch(layer, rows)

            stack.callback(layer.module.register_forward_pre_hook(hook).remove)
        yield


def _rows_of(x: Tensor, mask: Tensor | None) -> Tensor:
    """x[..., K] as [rows, K], without the rows of padding where x is laid out as the mask is."""
    if mask is not None and x.dim() == mask.dim() + 1 and x.shape[:-1] == mask.shape:
        return x[mask]
    return x.reshape(-1, x.shape[-1])


def _call(module: Any, batch: Batch) -> None:
    """Runs the module.

    Raises:
        InputError: It fails.
    """
    try:
        module(*batch.args, **batch.kwargs)
    # the user's module can raise anything; its own words and traceback go along
    except Exception as error:
        raise InputError(
            f"the module fails on a calibration batch: {type(error).__name__}: {one_line(error)}.",
            "Batches are what the module is called with: a tensor, a tuple, or a mapping by name.",
        ) from error


@contextlib.contextmanager
def _calibrating(module: Any) -> Iterator[None]:
    """Evaluation mode and no key-value cache, which blocks that are not computed would leave empty."""
    with contextlib.ExitStack() as stack:
        for part in module.modules():
            config: Any = getattr(part, "config", None)
            if getattr(config, "use_cache", False) is True:
                config.use_cache = False
                stack.callback(setattr, config, "use_cache", True)
        trained = [part for part in module.modules() if part.training]
        module.eval()
        for part in trained:
            stack.callback(setattr, part, "training", True)
        yield
