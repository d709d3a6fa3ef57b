"""Triton's configuration of one model, made as the protobuf that Triton itself reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sparseflow_trt._deps import require
from sparseflow_trt.errors import DeployError
from sparseflow_trt.exporters.triton.batching import Batching, batch_at_opt
from sparseflow_trt.exporters.triton.tensors import Ends, ServedTensor
from sparseflow_trt.plans.shapes import Profile

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

Route = Literal["tensorrt_plan", "python"]
Device = Literal["gpu", "cpu"]

PLAN_FILE = "model.plan"
_WARMUP_RUNS = 2
_FLOATS = ("FP32", "FP16", "BF16")


@dataclass(frozen=True)
class ServedModel:
    """All that a configuration is made from.

    Attributes:
        name: The model's, and its folder's.
        route: TensorRT's own backend, or a generated model.py.
        device: What an instance runs on.
        profiles: The engine's, in its order; none where shapes are static.
        gpus: The GPUs that instances are made on.
        count: Instances a GPU, or in all on CPUs.
        cuda_graphs: Whether the shapes at each profile's opt are captured.
        cache: Whether responses are cached. The server needs --cache-config for it.
        md5: Files that Triton's checksum agent checks before it loads them, by their path in the model.
        parameters: Strings that the backend reads.
    """

    name: str
    route: Route
    device: Device
    ends: Ends
    profiles: tuple[Profile, ...]
    batching: Batching
    gpus: tuple[int, ...] = (0,)
    count: int = 1
    cuda_graphs: bool = True
    cache: bool = False
    md5: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, str] = field(default_factory=dict)


def make_config(model: ServedModel) -> ModelConfig:
    """The configuration of a model.

    One instance group lists every profile: an instance that is given none serves profile 0 alone, and
    Triton's core, which knows no profiles, hands a batch to any idle instance, whatever profiles that has.

    Raises:
        NotInstalledError: tritonclient is missing.
    """
    pb = protobuf()
    config = pb.ModelConfig(name=model.name, backend="python")
    if model.route == "tensorrt_plan":
        config.backend = "tensorrt"
        config.platform = "tensorrt_plan"
        config.default_model_filename = PLAN_FILE
    config.max_batch_size = model.batching.max_batch_size
    for tensors, listed in ((model.ends.inputs, config.input), (model.ends.outputs, config.output)):
        for tensor in tensors:
            _add_tensor(pb, listed, tensor, bool(config.max_batch_size))
    _add_instances(pb, config, model)
    if config.max_batch_size > 1:
        config.dynamic_batching.preferred_batch_size.extend(model.batching.preferred)
        config.dynamic_batching.max_queue_delay_microseconds = model.batching.delay_us
        config.dynamic_batching.SetInParent()
    for profile in model.profiles:
        _add_warmup(pb, config, model.ends.inputs, profile)
    if model.route == "tensorrt_plan" and model.cuda_graphs and model.profiles:
        config.optimization.cuda.graphs = True
        for profile in model.profiles:
            _add_graph(config, profile)
    if model.cache:
        config.response_cache.enable = True
    if model.md5:
        agent = config.model_repository_agents.agents.add(name="checksum")
        for path, digest in model.md5.items():
            agent.parameters[f"MD5:{path}"] = digest
    for name, value in model.parameters.items():
        config.parameters[name].string_value = value
    return config


def cpu_twin(config: ModelConfig) -> ModelConfig:
    """The same configuration for a machine with no GPU: `tritonserver --model-config-name=cpu`.

    The checksum agent is left out: servers that come without TensorRT come without it, too.
    """
    pb = protobuf()
    twin = pb.ModelConfig()
    twin.CopyFrom(config)
    twin.ClearField("model_repository_agents")
    for group in twin.instance_group:
        group.kind = pb.ModelInstanceGroup.KIND_CPU
        group.ClearField("gpus")
    return twin


def parse_config(text: str, source: str) -> ModelConfig:
    """Reads a config.pbtxt.

    Raises:
        DeployError: It is not one; with the line that Triton would not name.
        NotInstalledError: tritonclient is missing.
    """
    pb = protobuf()
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as error:
        where = " ".join(str(error).split()).rstrip(".")
        raise DeployError(
            f"{source} is not a valid Triton configuration: {where}.", "Correct that line."
        ) from error


def text_from_config(config: ModelConfig) -> str:
    """A configuration as config.pbtxt holds it. Equal configurations give equal texts."""
    from google.protobuf import text_format

    return str(text_format.MessageToString(config))


def protobuf() -> Any:
    """tritonclient's model_config_pb2.

    Raises:
        NotInstalledError: tritonclient is missing.
    """
    return require("tritonclient.grpc.model_config_pb2", "Triton's configurations")


def _add_tensor(pb: Any, listed: Any, tensor: ServedTensor, batched: bool) -> None:
    dims = [dim if isinstance(dim, int) else -1 for dim in tensor.dims[1 if batched else 0 :]]
    made = listed.add(name=tensor.name, data_type=pb.DataType.Value(f"TYPE_{tensor.type}"))
    if not dims:  # an engine's [batch]: Triton wants a dimension, and takes it away again
        dims = [1]
        if batched:  # a scalar's is taken away by the model.py: the core refuses to
            made.reshape.SetInParent()
    made.dims.extend(dims)


def _add_instances(pb: Any, config: Any, model: ServedModel) -> None:
    gpu = model.device == "gpu"
    kind = pb.ModelInstanceGroup.KIND_GPU if gpu else pb.ModelInstanceGroup.KIND_CPU
    group = config.instance_group.add(kind=kind, count=model.count)
    if gpu:
        group.gpus.extend(model.gpus)
    if model.route == "tensorrt_plan" and model.profiles:  # the core refuses it for other platforms
        group.profile.extend(str(index) for index in range(len(model.profiles)))


def _add_warmup(pb: Any, config: Any, inputs: Sequence[ServedTensor], profile: Profile) -> None:
    batched = bool(config.max_batch_size)
    warmup = config.model_warmup.add(name=f"{profile.name} at opt", count=_WARMUP_RUNS)
    if batched:
        warmup.batch_size = min(batch_at_opt(profile), config.max_batch_size)
    for tensor in inputs:
        given = warmup.inputs[tensor.name]
        given.data_type = pb.DataType.Value(f"TYPE_{tensor.type}")
        given.dims.extend(_item_shape(profile, tensor.name, batched))
        if tensor.type in _FLOATS:
            given.random_data = True
        else:
            given.zero_data = True  # random bytes would be indices behind the end of a table


def _add_graph(config: Any, profile: Profile) -> None:
    batched = bool(config.max_batch_size)
    spec = config.optimization.cuda.graph_spec.add()
    if batched:
        spec.batch_size = min(batch_at_opt(profile), config.max_batch_size)
    for name in profile.inputs:
        spec.input[name].dim.extend(_item_shape(profile, name, batched))


def _item_shape(profile: Profile, name: str, batched: bool) -> tuple[int, ...]:
    shape = profile.inputs[name].opt
    return (shape[1:] if batched else shape) or (1,)
