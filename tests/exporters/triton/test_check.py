"""What Triton's protobuf and core let pass, and is refused here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sparseflow_trt.errors import DeployError
from sparseflow_trt.exporters.triton.check import check_config
from sparseflow_trt.exporters.triton.config import make_config
from tests.exporters.triton.triton_parts import BATCHING, ENDS, PROFILES, served

Change = Callable[[Any], object]


def _add_group(config: Any) -> None:
    config.instance_group[0].name = "a"
    config.instance_group.add(name="a", count=1).profile.extend(["0", "1"])


def _one_group_a_profile(config: Any) -> None:
    del config.instance_group[:]
    for profile in ("0", "1"):
        config.instance_group.add(count=1).profile.append(profile)


WRONG: list[tuple[str, Change, str]] = [
    ("warm-up input", lambda c: c.model_warmup[0].inputs["z"].dims.append(1), "an input 'z'"),
    ("warm-up batch", lambda c: setattr(c.model_warmup[0], "batch_size", 9), "a batch of 9, above"),
    ("warm-up shape", lambda c: c.model_warmup[0].inputs["x"].dims.__setitem__(0, 500), "no profile"),
    ("graph input", lambda c: c.optimization.cuda.graph_spec[0].input["z"].dim.append(1), "an input 'z'"),
    (
        "graph batch",
        lambda c: setattr(c.optimization.cuda.graph_spec[1], "batch_size", 9),
        "a batch of 9, above",
    ),
    (
        "graph shape",
        lambda c: c.optimization.cuda.graph_spec[1].input["x"].dim.__setitem__(0, 500),
        "no profile",
    ),
    ("group names", _add_group, "two instance groups are named 'a'"),
    ("profile", lambda c: c.instance_group[0].profile.append("2"), "lists profile '2', and the engine has 2"),
    ("profile name", lambda c: c.instance_group[0].profile.append("x"), "lists profile 'x'"),
    ("group a profile", _one_group_a_profile, "leaves out profile 1"),
    ("no profiles", lambda c: c.instance_group[0].ClearField("profile"), "leaves out profile 1"),
    (
        "batch",
        lambda c: setattr(c, "max_batch_size", 16),
        "max_batch_size is 16, and the engine's profiles allow 8",
    ),
    ("no batch", lambda c: setattr(c, "max_batch_size", 0), "max_batch_size is 0, which --max-batch-size 0"),
    ("negative batch", lambda c: setattr(c, "max_batch_size", -1), "max_batch_size is -1"),
    ("preferred", lambda c: c.dynamic_batching.preferred_batch_size.append(9), "preferred_batch_size 9"),
    ("input's name", lambda c: setattr(c.input[0], "name", "z"), "input 'z' is not one of the engine's"),
    ("output's name", lambda c: setattr(c.output[0], "name", "z"), "output 'z' is not one of the engine's"),
    ("type", lambda c: setattr(c.input[0], "data_type", 10), "input 'x' is FP16, and the engine's is FP32"),
    ("dims", lambda c: c.input[0].dims.__setitem__(1, 17), "input 'x' has dims [-1, 17]"),
    ("rank", lambda c: c.input[0].dims.append(1), "input 'x' has dims [-1, 16, 1]"),
]


def test_what_is_generated_passes() -> None:
    check_config(make_config(served()), ENDS, PROFILES, BATCHING, "config.pbtxt")


@pytest.mark.parametrize(("change", "said"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_each_mutation_is_refused_in_words(change: Change, said: str) -> None:
    config = make_config(served())
    change(config)
    with pytest.raises(DeployError) as caught:
        check_config(config, ENDS, PROFILES, BATCHING, "config.pbtxt")
    assert said in caught.value.message


def test_a_smaller_batch_is_anybodys_choice() -> None:
    config = make_config(served())
    config.max_batch_size = 4
    del config.dynamic_batching.preferred_batch_size[:]
    check_config(config, ENDS, PROFILES, BATCHING, "config.pbtxt")
