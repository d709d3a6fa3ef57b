"""A hand-edited configuration keeps what people decide and gets what the engine decides."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.exporters.triton.config import make_config
from sparseflow_trt.exporters.triton.merge import merge_configs
from tests.exporters.triton.triton_parts import served


def test_an_untouched_file_takes_the_fresh_values() -> None:
    old, new = make_config(served(count=1)), make_config(served(count=2, cuda_graphs=False))
    assert merge_configs(old, old, new) == (new, ())


def test_what_was_edited_stays_and_is_shown() -> None:
    base, theirs = make_config(served()), make_config(served())
    theirs.dynamic_batching.max_queue_delay_microseconds = 9000
    theirs.metric_tags["team"] = "search"
    theirs.ClearField("model_warmup")
    ours = make_config(served(md5={"4/model.plan": "1" * 32}))
    merged, differences = merge_configs(base, theirs, ours)
    assert merged.dynamic_batching.max_queue_delay_microseconds == 9000
    assert list(merged.dynamic_batching.preferred_batch_size) == [4, 8]
    assert merged.metric_tags["team"] == "search"
    assert not merged.model_warmup
    assert "MD5:4/model.plan" in merged.model_repository_agents.agents[0].parameters
    shown = {d.field: (d.kept, d.theirs, d.ours) for d in differences}
    assert shown["dynamic_batching.max_queue_delay_microseconds"] == (
        "the file's",
        "max_queue_delay_microseconds: 9000",
        "max_queue_delay_microseconds: 500",
    )
    assert shown["model_warmup"][:2] == ("the file's", "")
    assert set(shown) == {"dynamic_batching.max_queue_delay_microseconds", "model_warmup", "metric_tags"}


def test_what_the_engine_decides_is_renewed_and_shown() -> None:
    base, theirs = make_config(served()), make_config(served())
    theirs.input[0].name = "z"
    merged, (difference,) = merge_configs(base, theirs, make_config(served()))
    assert merged == base
    assert (difference.field, difference.kept) == ("input", "generated")


def test_a_file_that_is_not_ours_keeps_all_it_says() -> None:
    ours = make_config(served())
    theirs = type(ours)(name="m", max_batch_size=2)
    theirs.instance_group.add(count=5)
    merged, differences = merge_configs(None, theirs, ours)
    assert (merged.max_batch_size, merged.instance_group[0].count) == (2, 5)
    assert merged.input == ours.input
    assert {d.field for d in differences} == {"max_batch_size", "instance_group"}


def test_of_a_block_that_is_not_generated_any_more_what_was_edited_stays() -> None:
    base, theirs, ours = (make_config(served()) for _ in range(3))
    ours.ClearField("dynamic_batching")
    assert not merge_configs(base, theirs, ours)[0].HasField("dynamic_batching")
    theirs.dynamic_batching.max_queue_delay_microseconds = 9000
    merged, (difference,) = merge_configs(base, theirs, ours)
    assert merged.dynamic_batching.max_queue_delay_microseconds == 9000
    assert not merged.dynamic_batching.preferred_batch_size, "they were generated, for another batch"
    assert (difference.field, difference.kept) == (
        "dynamic_batching.max_queue_delay_microseconds",
        "the file's",
    )


def test_a_field_within_a_block_that_an_option_decides_is_renewed() -> None:
    base, theirs, ours = (make_config(served()) for _ in range(3))
    theirs.dynamic_batching.preferred_batch_size[:] = [7]
    merged, (difference,) = merge_configs(base, theirs, ours, {"dynamic_batching.preferred_batch_size"})
    assert merged == ours
    assert (difference.field, difference.kept) == ("dynamic_batching.preferred_batch_size", "generated")


@given(st.integers(1, 9), st.integers(0, 9999), st.booleans())
def test_merged_again_nothing_changes(count: int, delay: int, cached: bool) -> None:
    base, theirs = make_config(served()), make_config(served())
    theirs.instance_group[0].count = count
    theirs.dynamic_batching.max_queue_delay_microseconds = delay
    theirs.response_cache.enable = cached
    merged, _ = merge_configs(base, theirs, base)
    assert merged == theirs
    assert merge_configs(base, merged, base)[0] == merged
