"""Checks of a configuration that neither the protobuf nor Triton's core makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparseflow_trt.errors import DeployError
from sparseflow_trt.exporters.triton.batching import Batching
from sparseflow_trt.exporters.triton.tensors import Ends, ServedTensor
from sparseflow_trt.plans.shapes import Profile

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig


def check_config(
    config: ModelConfig, ends: Ends, profiles: Sequence[Profile], batching: Batching, source: str
) -> None:
    """Checks a configuration, as generated or as a person edited it, against the engine.

    Args:
        config: What Triton would read.
        ends: The engine's inputs and outputs.
        profiles: The engine's, in its order.
        batching: What the engine allows.
        source: The configuration's file, for the message.

    Raises:
        DeployError: Everything that is wrong is named.
    """
    problems = [*_tensor_problems(config, ends), *_batch_problems(config, batching),
                *_group_problems(config, len(profiles)),
                *_shape_problems(config, ends, profiles)]  # fmt: skip
    if problems:
        raise DeployError(
            f"{source}: {'; '.join(problems)}.",
            "Correct it, or remove it, and deploy again for a fresh one.",
        )


def _tensor_problems(config: Any, ends: Ends) -> Iterator[str]:
    batched = config.max_batch_size > 0
    for what, listed, tensors in (
        ("input", config.input, ends.inputs),
        ("output", config.output, ends.outputs),
    ):
        known = {tensor.name: tensor for tensor in tensors}
        for given in listed:
            tensor = known.get(given.name)
            if tensor is None:
                yield f"{what} '{given.name}' is not one of the engine's, which has {_names(known)}"
            elif _type(given) != tensor.type:
                yield f"{what} '{given.name}' is {_type(given)}, and the engine's is {tensor.type}"
            elif not _same_dims(list(given.dims), given.HasField("reshape"), tensor, batched):
                shown = [dim if isinstance(dim, int) else -1 for dim in tensor.dims[1 if batched else 0 :]]
                yield f"{what} '{given.name}' has dims {list(given.dims)}, and the engine takes {shown}"
        if what == "input" and (missing := [name for name in known if name not in {g.name for g in listed}]):
            yield f"input '{missing[0]}' of the engine is missing"


def _same_dims(given: list[int], reshaped: bool, tensor: ServedTensor, batched: bool) -> bool:
    own = tensor.dims[1 if batched else 0 :]
    if not own or reshaped:
        return reshaped or given == [1]
    return len(given) == len(own) and all(
        a == b if isinstance(b, int) else a == -1 or a > 0 for a, b in zip(given, own, strict=True)
    )


def _batch_problems(config: Any, batching: Batching) -> Iterator[str]:
    most = batching.max_batch_size
    if config.max_batch_size < 0:
        yield f"max_batch_size is {config.max_batch_size}"
    elif config.max_batch_size == 0 < most:
        yield "max_batch_size is 0, which --max-batch-size 0 writes, with inputs and outputs that fit it"
    elif config.max_batch_size > most:
        yield f"max_batch_size is {config.max_batch_size}, and the engine's profiles allow {most}"
    for size in config.dynamic_batching.preferred_batch_size:
        if not 0 < size <= config.max_batch_size:
            yield f"preferred_batch_size {size} is not within 1 to max_batch_size {config.max_batch_size}"


def _group_problems(config: Any, profiles: int) -> Iterator[str]:
    twice = [name for name, n in Counter(g.name for g in config.instance_group if g.name).items() if n > 1]
    if twice:
        yield f"two instance groups are named '{twice[0]}'"
    if config.platform != "tensorrt_plan":
        return
    for group in config.instance_group:
        listed = list(group.profile)
        if wrong := [p for p in listed if not p.isdecimal() or int(p) >= max(profiles, 1)]:
            yield f"an instance group lists profile '{wrong[0]}', and the engine has {max(profiles, 1)}"
        elif profiles > 1 and {int(p) for p in listed} != set(range(profiles)):
            lacking = sorted(set(range(profiles)) - {int(p) for p in listed or ["0"]})
            yield (
                f"an instance group leaves out profile {', '.join(map(str, lacking))}: Triton hands requests "
                "to any instance, and those with that profile's shapes would fail in this one"
            )


def _shape_problems(config: Any, ends: Ends, profiles: Sequence[Profile]) -> Iterator[str]:
    """Of the shapes that warm-ups and CUDA graphs run at: which batch, and each input's dimensions."""
    for warmup in config.model_warmup:
        dims = {name: given.dims for name, given in warmup.inputs.items()}
        yield from _run_problems(f"warm-up '{warmup.name}'", warmup.batch_size, dims, config, ends, profiles)
    for number, spec in enumerate(config.optimization.cuda.graph_spec):
        dims = {name: given.dim for name, given in spec.input.items()}
        yield from _run_problems(f"graph_spec {number}", spec.batch_size, dims, config, ends, profiles)


def _run_problems(
    where: str,
    batch: int,
    dims: Mapping[str, Sequence[int]],
    config: Any,
    ends: Ends,
    profiles: Sequence[Profile],
) -> Iterator[str]:
    inputs = {tensor.name: tensor for tensor in ends.inputs}
    if batch > config.max_batch_size:
        yield f"{where} has a batch of {batch}, above max_batch_size {config.max_batch_size}"
    elif unknown := [name for name in dims if name not in inputs]:
        yield f"{where} has an input '{unknown[0]}', which the engine does not have"
    else:
        shapes = {name: _full(batch, given, config, inputs[name]) for name, given in dims.items()}
        if profiles and not any(_takes(profile, shapes) for profile in profiles):
            yield f"{where} has shapes that no profile of the engine takes"


def _full(batch: int, dims: Sequence[int], config: Any, tensor: ServedTensor) -> tuple[int, ...]:
    if config.max_batch_size == 0:
        return tuple(dims) if tensor.dims else ()
    return (max(batch, 1), *(dims if len(tensor.dims) > 1 else ()))


def _takes(profile: Profile, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return all(
        len(shape) == len(ranges.min)
        and all(low <= size <= high for low, size, high in zip(ranges.min, shape, ranges.max, strict=True))
        for name, ranges in profile.inputs.items()
        if (shape := shapes.get(name)) is not None
    )


def _type(given: Any) -> str:
    kind = given.DESCRIPTOR.fields_by_name["data_type"].enum_type
    return str(kind.values_by_number[given.data_type].name).removeprefix("TYPE_")


def _names(known: Mapping[str, object]) -> str:
    return ", ".join(f"'{name}'" for name in known)
