"""How many requests Triton may put into one batch: from the engine's profiles and the policy's threshold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from sparseflow_trt.errors import DeployError
from sparseflow_trt.exporters.triton.tensors import Ends
from sparseflow_trt.plans.shapes import Profile

DEFAULT_DELAY_US = 500

# The words in a dimension's name that say what it counts. What one request has in an order is no batch of
# requests; "sequences" in the plural are.
_BATCH_WORDS = {"batch", "batchsize", "nbatch", "bs", "bsz", "images", "samples", "sequences"}
_SEQUENCE_WORDS = {
    "seq", "seqlen", "sequence", "length", "len", "token", "tokens", "ntokens", "time", "timestep",
    "timesteps", "step", "steps", "frame", "frames", "past", "context", "ctx",
}  # fmt: skip


@dataclass(frozen=True)
class Batching:
    """What the configuration says of batches.

    Attributes:
        max_batch_size: 0 where the first dimension is no batch that requests share, or starts above 1.
        preferred: Batch sizes that are sent at once; the others wait for `delay_us`.
        delay_us: How long a request may wait for others, in microseconds.
        why: The reason for each choice, as sentences.
    """

    max_batch_size: int
    preferred: tuple[int, ...] = ()
    delay_us: int = 0
    why: tuple[str, ...] = ()


def choose_batching(
    ends: Ends,
    profiles: Sequence[Profile],
    output_shapes: Sequence[tuple[int, tuple[int, ...]]] = (),
    sparse_from: Mapping[str, int | None] | None = None,
    delay_us: int | None = None,
    asked: int | None = None,
) -> Batching:
    """Chooses the batch sizes of a model that was built for these profiles.

    The backend asks only that some profile takes the largest batch (tensorrt_backend, src/instance_state.cc).
    Here it is the largest up to which every batch has a profile at every shape: a batcher that knows no
    profiles would otherwise make of requests that are right a batch that fails.

    Args:
        ends: Inputs and outputs.
        profiles: The engine's, in its order.
        output_shapes: (batch, output's shape) pairs that were seen: they tell of outputs whose first
            dimension shape inference does not know.
        sparse_from: By profile, the batch from which all sparse layers win; None where no batch reaches it.
        delay_us: How long a request may wait; by default 500 µs where a batch is worth waiting for, else 0.
        asked: The largest batch as a person gives it, who knows what dimensions mean: 0 where the first is
            no batch, whatever it is named; another number where it is one.

    Raises:
        DeployError: A larger batch is asked for than the engine takes.
    """
    if asked == 0:
        return Batching(0, why=("Requests share no batch, as asked.",))
    found = _widest(ends, profiles, output_shapes, named=asked is not None)
    most, why = found.max_batch_size, [*found.why]
    if asked is not None and asked > most:
        raise DeployError(
            f"a batch of {asked} is asked for, and the engine takes {most or 'none'}: {' '.join(why)}",
            f"Ask for --max-batch-size {most}, or build with profiles that take the batch.",
        )
    if asked is not None and asked < most:
        most = asked
        why.append(f"At most {most} are batched together, as asked.")
    if not most:
        return found
    if most == 1:
        return Batching(1, why=tuple(why))
    preferred, told = _preferred(profiles, most, sparse_from or {})
    why += told
    delay = delay_us if delay_us is not None else (DEFAULT_DELAY_US if preferred else 0)
    if delay and preferred:
        why.append(f"A lone client waits {delay} µs for other requests.")
    return Batching(most, preferred, delay, tuple(why))


def _widest(
    ends: Ends,
    profiles: Sequence[Profile],
    output_shapes: Sequence[tuple[int, tuple[int, ...]]],
    named: bool,
) -> Batching:
    """The largest batch that an engine takes at every shape.

    Args:
        ends: Inputs and outputs.
        profiles: The engine's.
        output_shapes: (batch, output's shape) pairs that were seen.
        named: Whether a person says that the first dimension is a batch.
    """
    reason = _why_no_batch(ends, profiles, output_shapes, named)
    if not reason and not named and (told := _why_no_batch_by_names(ends)):
        reason = f"{told} `--max-batch-size N` says that it is one anyway."
    if reason:
        return Batching(0, why=(reason,))
    if (least := min(_batch_range(profile)[0] for profile in profiles)) > 1:
        return Batching(0, why=(f"No profile takes fewer than {least} rows, but a batcher may send one.",))
    reach = {profile.name: _reach(profile, profiles) for profile in profiles}
    narrowest = min(reach, key=lambda name: reach[name])
    most, widest = reach[narrowest], max(_batch_range(profile)[2] for profile in profiles)
    if not most:
        return Batching(0, why=(f"Shapes of profile '{narrowest}' are not taken in batches of 1.",))
    why = [f"Batches of 1 to {most} are taken at every shape."]
    if most < widest:
        why.append(
            f"A profile takes {widest}, but a batcher would make such batches of '{narrowest}' shapes too."
        )
    if most > 1 and not named and not _says_batch(ends.inputs[0].dims[0]):
        why.append(
            "Nothing in the model says that its first dimension is a batch: `deploy verify` tests it, "
            "and `--max-batch-size 0` says that it is not."
        )
    return Batching(most, why=tuple(why))


def overlapping(profiles: Sequence[Profile]) -> tuple[tuple[str, str], ...]:
    """The pairs of profiles that both take some shape: between them Triton's choice is not the nearest.

    Its distance leaves the last dimension out and counts the batch twice, so that the profile with the
    smaller opt tends to win (tensorrt_backend, src/instance_state.cc, EvaluateTensorRTContext).
    """
    return tuple((a.name, b.name) for a, b in combinations(profiles, 2) if _overlap(a, b))


def _overlap(a: Profile, b: Profile) -> bool:
    return all(
        max(low, other_low) <= min(high, other_high)
        for name, shapes in a.inputs.items()
        for low, high, other_low, other_high in zip(
            shapes.min, shapes.max, b.inputs[name].min, b.inputs[name].max, strict=True
        )
    )


def _why_no_batch(
    ends: Ends,
    profiles: Sequence[Profile],
    output_shapes: Sequence[tuple[int, tuple[int, ...]]],
    named: bool,
) -> str:
    if scalars := [tensor.name for tensor in (*ends.inputs, *ends.outputs) if not tensor.dims]:
        return f"'{scalars[0]}' is a scalar, which requests in a batch would have to share."
    first = ends.inputs[0].dims[0] if ends.inputs else None
    if not profiles or isinstance(first, int):
        return "The first dimension is fixed, so requests cannot share a batch."
    for tensor in (*ends.inputs, *ends.outputs):
        if isinstance(first, str) and first in tensor.dims[1:]:
            said = f"'{tensor.name}' has '{first}', the first dimension of '{ends.inputs[0].name}',"
            return f"{said} as a later one."
    for tensor in ends.inputs:
        if tensor.dims[0] != first:
            return f"Input '{tensor.name}' does not begin with the batch that '{ends.inputs[0].name}' has."
    followed = all(shape and shape[0] == batch for batch, shape in output_shapes)
    varied = len({batch for batch, _ in output_shapes}) > 1
    for tensor in ends.outputs:
        known = isinstance(first, str) and tensor.dims[0] == first
        if not known and not ((tensor.dims[0] is None or named) and varied and followed):
            said = f"Output '{tensor.name}' does not begin with the inputs' batch, as far as is known."
            hint = " It did in the validation: `--max-batch-size N` says that it always does."
            return said + (hint if varied and followed else "")
    for profile in profiles:
        if len({(s.min[0], s.opt[0], s.max[0]) for s in profile.inputs.values()}) > 1:
            return f"In profile '{profile.name}' inputs have different batches."
    return ""


def _why_no_batch_by_names(ends: Ends) -> str:
    """Why the first dimension is no batch by the names of dimensions, "" where they do not say so."""
    first = ends.inputs[0].dims[0]
    if _words(first) & _SEQUENCE_WORDS:
        return f"The first dimension is named '{first}', which is a sequence length, not a batch."
    if _says_batch(first):
        return ""
    later = [name for tensor in ends.inputs for name in tensor.dims[1:] if "batch" in _words(name)]
    if later:
        return f"The first dimension is followed by one named '{later[0]}', so the first is not the batch."
    return ""


def _says_batch(name: int | str | None) -> bool:
    words = _words(name)
    return bool(words & _BATCH_WORDS) or words in ({"b"}, {"n"})


def _words(name: int | str | None) -> set[str]:
    """The words of a dimension's name, in small letters: "seq_len" and "seqLen" have two."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name) if isinstance(name, str) else ""
    return set(re.findall("[a-z]+", apart.lower()))


def _reach(profile: Profile, profiles: Sequence[Profile]) -> int:
    """The largest batch up to which, from 1 on, every batch of a profile's other dimensions has a profile."""
    most = 0
    for low, _, high in sorted(_batch_range(other) for other in profiles if _covers(other, profile)):
        most = max(most, high) if low <= most + 1 else most
    return most


def _covers(one: Profile, other: Profile) -> bool:
    """Whether a profile takes all that another takes, but for the batch."""
    return all(
        low <= other_low and other_high <= high
        for name, shapes in one.inputs.items()
        for low, high, other_low, other_high in zip(
            shapes.min[1:],
            shapes.max[1:],
            other.inputs[name].min[1:],
            other.inputs[name].max[1:],
            strict=True,
        )
    )


def batch_at_opt(profile: Profile) -> int:
    """The batch of a profile's opt."""
    return _batch_range(profile)[1]


def _batch_range(profile: Profile) -> tuple[int, int, int]:
    shapes = next(iter(profile.inputs.values()))
    return shapes.min[0], shapes.opt[0], shapes.max[0]


def _preferred(
    profiles: Sequence[Profile], most: int, sparse_from: Mapping[str, int | None]
) -> tuple[tuple[int, ...], list[str]]:
    if not sparse_from:
        return (), ["No layer's sparse threshold is known, so no batch size is preferred."]
    reached: dict[int, int] = {}  # from which batch on, by the profile's opt
    told = []
    for profile in profiles:
        least, (low, opt, high) = sparse_from.get(profile.name), _batch_range(profile)
        if least is None or least > min(high, most):
            told.append(
                f"Profile '{profile.name}': no batch up to {min(high, most)} reaches the sparse threshold."
            )
        elif least <= low:
            told.append(f"Profile '{profile.name}': every batch is at or above the sparse threshold.")
        else:
            told.append(f"Profile '{profile.name}': from a batch of {least} on, all sparse layers win.")
            reached[opt] = max(least, reached.get(opt, 0))
    if not reached:
        return (), told
    # The threshold, its doublings and the opts: what is sent at once is sparse in every profile that can be.
    size, sizes = max(reached.values()), {most}
    sizes |= {opt for opt in reached if size <= opt <= most}
    while size < most:
        sizes.add(size)
        size *= 2
    return tuple(sorted(sizes)), told
