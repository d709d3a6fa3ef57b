"""Batch sizes: whatever the batcher makes of right requests has a profile."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseflow_trt.errors import DeployError
from sparseflow_trt.exporters.triton.batching import choose_batching, overlapping
from sparseflow_trt.exporters.triton.tensors import Ends, ServedTensor
from sparseflow_trt.plans.shapes import Profile, ShapeRange

Range = tuple[int, int, int]
ENDS = Ends((ServedTensor("x", "FP32", ("batch", "seq")),), (ServedTensor("y", "FP32", ("batch", "seq", 8)),))


def profile(name: str, batch: Range, seq: Range = (1, 8, 16)) -> Profile:
    low, opt, high = zip(batch, seq, strict=True)
    return Profile(name=name, inputs={"x": ShapeRange(min=low, opt=opt, max=high)})


ranges = st.tuples(*[st.integers(1, 12)] * 3).map(lambda t: tuple(sorted(t)))


@given(st.lists(st.tuples(ranges, ranges), min_size=1, max_size=4), st.integers(1, 20))
def test_every_batch_that_may_be_formed_has_a_profile(found: list[tuple[Range, Range]], least: int) -> None:
    profiles = [profile(str(i), batch, seq) for i, (batch, seq) in enumerate(found)]
    batching = choose_batching(ENDS, profiles, sparse_from=dict.fromkeys(map(str, range(len(found))), least))
    lengths = {length for _, (low, _, high) in found for length in range(low, high + 1)}
    for batch, length in product(range(1, batching.max_batch_size + 1), lengths):
        assert any(
            p.inputs["x"].min[0] <= batch <= p.inputs["x"].max[0]
            and p.inputs["x"].min[1] <= length <= p.inputs["x"].max[1]
            for p in profiles
        )
    assert all(1 < size <= batching.max_batch_size for size in batching.preferred)
    assert all(size >= least for size in batching.preferred)
    assert not batching.preferred or batching.delay_us > 0


def test_inputs_whose_ranges_of_the_batch_differ_share_none() -> None:
    """The batcher puts one number of items into all inputs: of these no number is right for both."""
    two = Ends((*ENDS.inputs, ServedTensor("mask", "FP32", ("batch", "seq"))), ENDS.outputs)
    same = profile("a", (1, 8, 32)).inputs["x"]
    for mask, most in ((same, 32), (ShapeRange(min=(1, 1), opt=(4, 8), max=(16, 16)), 0)):
        chosen = choose_batching(two, [Profile(name="a", inputs={"x": same, "mask": mask})])
        assert chosen.max_batch_size == most
    assert "In profile 'a' inputs have different batches." in " ".join(chosen.why)


def test_profiles_split_by_batch_reach_the_last_one() -> None:
    parts = [profile("small", (1, 1, 4)), profile("large", (5, 8, 32))]
    assert choose_batching(ENDS, parts).max_batch_size == 32
    assert choose_batching(ENDS, parts[1:]).max_batch_size == 0  # the batcher may send one


def test_a_gap_between_profiles_ends_the_batch() -> None:
    assert choose_batching(ENDS, [profile("a", (1, 1, 4)), profile("b", (6, 8, 32))]).max_batch_size == 4


def test_preferred_sizes_keep_m_above_the_threshold() -> None:
    chosen = choose_batching(ENDS, [profile("a", (1, 8, 32))], sparse_from={"a": 6})
    assert chosen.preferred == (6, 8, 12, 24, 32)
    assert chosen.delay_us == 500
    assert choose_batching(ENDS, [profile("a", (1, 8, 32))], sparse_from={"a": 6}, delay_us=90).delay_us == 90


@pytest.mark.parametrize("least", [None, 1, 33])
def test_nothing_is_waited_for_that_gains_nothing(least: int | None) -> None:
    chosen = choose_batching(ENDS, [profile("a", (1, 8, 32))], sparse_from={"a": least})
    assert (chosen.preferred, chosen.delay_us) == ((), 0)


def test_what_is_no_shared_batch() -> None:
    fixed = Ends((ServedTensor("x", "FP32", (4, "seq")),), ENDS.outputs)
    alone = Ends((*ENDS.inputs, ServedTensor("table", "FP32", ("rows", 8))), ENDS.outputs)
    lost = Ends(ENDS.inputs, (ServedTensor("y", "FP32", (None, 8)),))
    for ends in (fixed, alone, lost):
        assert choose_batching(ends, [profile("a", (1, 8, 32))]).max_batch_size == 0
    assert choose_batching(ENDS, []).max_batch_size == 0
    seen = [(1, (1, 8)), (8, (8, 8))]  # what inference does not know, the validation saw
    assert choose_batching(lost, [profile("a", (1, 8, 32))], seen).max_batch_size == 32
    assert choose_batching(lost, [profile("a", (1, 8, 32))], [(1, (3, 8)), (8, (3, 8))]).max_batch_size == 0
    other = Ends(ENDS.inputs, (ServedTensor("y", "FP32", ("rows", 8)),))
    unlike = choose_batching(other, [profile("a", (1, 8, 32))], seen)
    assert unlike.max_batch_size == 0 and "`--max-batch-size N` says that it always does" in unlike.why[0]
    assert choose_batching(other, [profile("a", (1, 8, 32))], seen, asked=32).max_batch_size == 32


def of_dims(dims: tuple[int | str | None, ...], out: tuple[int | str | None, ...]) -> Ends:
    return Ends((ServedTensor("x", "FP32", dims),), (ServedTensor("y", "FP32", out),))


def three(name: str = "a") -> list[Profile]:
    low, opt, high = (1, 2, 8), (8, 2, 8), (32, 2, 8)
    return [Profile(name=name, inputs={"x": ShapeRange(min=low, opt=opt, max=high)})]


@pytest.mark.parametrize(
    ("dims", "said"),
    [
        (("seq", "batch", 8), "is named 'seq', which is a sequence length"),
        (("sequence_length", 2, 8), "is named 'sequence_length'"),
        (("numTokens", 2, 8), "is named 'numTokens'"),
        (("batch_seq", 2, 8), "is named 'batch_seq'"),
        (("s0", "batch_size", 8), "is followed by one named 'batch_size'"),
        ((None, "batch", 8), "is followed by one named 'batch'"),
    ],
)
def test_a_first_dimension_that_names_tell_is_no_batch(dims: tuple[int | str | None, ...], said: str) -> None:
    seen = [(1, (1, 2, 8)), (8, (8, 2, 8))]
    chosen = choose_batching(of_dims(dims, dims), three(), seen)
    assert chosen.max_batch_size == 0
    assert said in chosen.why[0] and "--max-batch-size N" in chosen.why[0]
    assert choose_batching(of_dims(dims, dims), three(), seen, asked=32).max_batch_size == 32


@pytest.mark.parametrize("first", ["batch", "batch_size", "N", "b", "num_sequences", "s0", None])
def test_other_names_leave_it_a_batch(first: str | None) -> None:
    seen = [(1, (1, 2, 8)), (8, (8, 2, 8))]
    chosen = choose_batching(of_dims((first, "seq", 8), (first, "seq", 8)), three(), seen)
    assert chosen.max_batch_size == 32
    unsaid = any("Nothing in the model says" in why and "--max-batch-size 0" in why for why in chosen.why)
    assert unsaid == (first in ("s0", None))


def test_a_first_dimension_that_comes_twice_is_no_batch_whatever_is_asked() -> None:
    """As the similarities of a batch's images and texts: an item alone has other shapes."""
    ends = of_dims(("batch", 2, 8), ("batch", "batch", 8))
    assert choose_batching(ends, three()).max_batch_size == 0
    (why,) = choose_batching(ends, three()).why
    assert "'y' has 'batch', the first dimension of 'x', as a later one" in why
    with pytest.raises(DeployError, match="the engine takes none: 'y' has 'batch', the first dimension"):
        choose_batching(ends, three(), asked=8)


def test_a_person_says_the_largest_batch() -> None:
    ranges = [profile("a", (1, 8, 32))]
    assert choose_batching(ENDS, ranges, asked=0).max_batch_size == 0
    fewer = choose_batching(ENDS, ranges, sparse_from={"a": 6}, asked=12)
    assert (fewer.max_batch_size, fewer.preferred) == (12, (6, 8, 12))
    assert choose_batching(ENDS, ranges, asked=32) == choose_batching(ENDS, ranges)
    with pytest.raises(DeployError, match="a batch of 33 is asked for, and the engine takes 32") as caught:
        choose_batching(ENDS, ranges, asked=33)
    assert "--max-batch-size 32" in caught.value.hint


def test_profiles_that_share_shapes_are_named() -> None:
    a, b, c = profile("a", (1, 2, 4)), profile("b", (4, 8, 8)), profile("c", (1, 2, 4), (17, 20, 32))
    assert overlapping([a, b, c]) == (("a", "b"),)
