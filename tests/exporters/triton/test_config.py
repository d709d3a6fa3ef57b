"""The configuration's fields, one by one, through Triton's own protobuf."""

from __future__ import annotations

import pytest

from sparseflow_trt.errors import DeployError
from sparseflow_trt.exporters.triton.batching import Batching
from sparseflow_trt.exporters.triton.config import cpu_twin, make_config, parse_config, text_from_config
from tests.exporters.triton.triton_parts import served


def test_a_plan_is_served_with_every_profile_in_one_group() -> None:
    config = make_config(served())
    assert (config.platform, config.backend, config.default_model_filename) == (
        "tensorrt_plan", "tensorrt", "model.plan",
    )  # fmt: skip
    assert config.max_batch_size == 8
    (group,) = config.instance_group
    assert (list(group.profile), list(group.gpus), group.count) == (["0", "1"], [0], 1)
    assert group.kind == type(group).KIND_GPU
    assert [list(tensor.dims) for tensor in config.input] == [[-1, 16], [1]]
    assert [list(tensor.dims) for tensor in config.output] == [[4]]
    assert config.input[1].HasField("reshape") and not config.input[1].reshape.shape
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    (agent,) = config.model_repository_agents.agents
    assert (agent.name, dict(agent.parameters)) == ("checksum", {"MD5:3/model.plan": "0" * 32})


def test_each_profile_is_warmed_up_and_captured_at_its_opt() -> None:
    config = make_config(served())
    assert [(w.batch_size, list(w.inputs["x"].dims)) for w in config.model_warmup] == [
        (4, [8, 16]),
        (2, [64, 16]),
    ]
    assert all(w.inputs["x"].random_data and w.inputs["ids"].zero_data for w in config.model_warmup)
    specs = config.optimization.cuda.graph_spec
    assert config.optimization.cuda.graphs
    assert [(s.batch_size, list(s.input["x"].dim), list(s.input["ids"].dim)) for s in specs] == [
        (4, [8, 16], [1]), (2, [64, 16], [1]),
    ]  # fmt: skip
    assert not make_config(served(cuda_graphs=False)).HasField("optimization")


def test_without_a_batch_shapes_are_whole() -> None:
    config = make_config(served(batching=Batching(0)))
    assert [list(tensor.dims) for tensor in (*config.input, *config.output)] == [[-1, -1, 16], [-1], [-1, 4]]
    assert not config.HasField("dynamic_batching")
    assert [w.batch_size for w in config.model_warmup] == [0, 0]
    assert list(config.optimization.cuda.graph_spec[1].input["x"].dim) == [2, 64, 16]


def test_the_python_backend_gets_no_profiles_and_no_graphs() -> None:
    config = make_config(served(route="python", device="cpu", md5={}, parameters={"threads": "2"}))
    assert (config.backend, config.platform) == ("python", "")
    (group,) = config.instance_group
    assert (list(group.profile), list(group.gpus), group.kind) == ([], [], type(group).KIND_CPU)
    assert not config.HasField("optimization") and not config.HasField("model_repository_agents")
    assert config.parameters["threads"].string_value == "2"


def test_the_twin_for_cpus_differs_in_its_instances_alone() -> None:
    config = make_config(served(gpus=(0, 1), cache=True))
    twin = cpu_twin(config)
    (group,) = twin.instance_group
    assert (group.kind, list(group.gpus), list(group.profile)) == (type(group).KIND_CPU, [], ["0", "1"])
    for made in (config, twin):
        made.ClearField("instance_group")
        made.ClearField("model_repository_agents")
    assert config == twin and config.response_cache.enable


def test_a_configuration_is_read_back_as_it_was_written() -> None:
    config = make_config(served())
    assert parse_config(text_from_config(config), "config.pbtxt") == config


@pytest.mark.parametrize(
    ("text", "said"),
    [("max_batch: 8", "1:1"), ("max_batch_size: 'x'", "1:17"), ("input { data_type: FP32 }", "FP32")],
)  # fmt: skip
def test_what_is_no_configuration_is_named_with_its_line(text: str, said: str) -> None:
    with pytest.raises(DeployError, match=r"config\.pbtxt is not a valid Triton configuration") as caught:
        parse_config(text, "config.pbtxt")
    assert said in caught.value.message
