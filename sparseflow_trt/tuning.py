"""`autotune` from end to end: what to measure, the search with its journal, the policy that comes of it."""

from __future__ import annotations

import functools
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from sparseflow_trt._files import check_file, write_atomically
from sparseflow_trt.engines.machine.hardware import installed_driver
from sparseflow_trt.engines.measuring.curves import Curve, Measured, curves_of
from sparseflow_trt.engines.measuring.journal import Run, journal_beside, open_journal, read_journal
from sparseflow_trt.engines.measuring.measured_policy import (
    check_gpu,
    extend_policy,
    points_from_pairs,
    policy_from_journal,
    without_points_of,
)
from sparseflow_trt.engines.measuring.measurers import Crew
from sparseflow_trt.engines.measuring.search import Crossover, Left, find_crossovers, search, what_is_left
from sparseflow_trt.errors import PolicyError
from sparseflow_trt.exporters.plugin.nodes import plugin_layers
from sparseflow_trt.model.kinds import kind_from_names
from sparseflow_trt.model.model_file import OnnxModel
from sparseflow_trt.model.packing import why_not_in_plugin
from sparseflow_trt.model.sites import LayerSite, find_sites, type_name, why_not_eligible
from sparseflow_trt.model.weights import TracedWeight
from sparseflow_trt.plans.merges import MOST_MERGED
from sparseflow_trt.policies.policy import MARGIN, Dtype, Policy, json_from_policy, read_policy
from sparseflow_trt.policies.presets import Product, products_of_preset

_HALVES: tuple[Dtype, ...] = ("FP16", "BF16")
GRID = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True)
class Space:
    """What to measure.

    Attributes:
        products: The products, those of the same N and K with different kinds apart.
        dtypes: The types of their weights and activations.
        grid: The M that each is measured at, ascending, before crossovers are looked into.
        plugin: Whether the plugin is measured in TensorRT, too.
    """

    products: tuple[Product, ...]
    dtypes: tuple[Dtype, ...]
    grid: tuple[int, ...] = GRID
    plugin: bool = False


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        measured: Points so far, those of earlier runs with them.
        left: What is still to be measured, for the crossovers that are seen so far.
        seconds_left: How long that will take, None while nothing was measured.
        last: What was measured last.
    """

    measured: int
    left: Left
    seconds_left: float | None
    last: Measured


@dataclass(frozen=True)
class Tuned:
    """What came of a run.

    Attributes:
        policy: The policy: what the journal holds of products that some run measured at its whole grid, and
            what was added.
        measured_now: How many products this run measured.
        crossovers: All that were found.
        left: What a time limit left to be measured.
        left_out: Sentences about products that cannot be measured, or that an earlier run left unfinished.
        seconds: How long the run took.
    """

    policy: Policy
    measured_now: int
    crossovers: tuple[Crossover, ...]
    left: Left
    left_out: tuple[str, ...]
    seconds: float


def products_of(
    models: Iterable[OnnxModel], presets: Iterable[str], tensor_parallel: int = 1
) -> tuple[Product, ...]:
    """The products of models and presets, each once; of layers of one kind and input their one product, too.

    TensorRT runs such layers as one (`plans.merges`), and the plugin can.

    Args:
        models: As read, pruned or not: N, K and the kind of each layer count, its weights are not read.
        presets: Names of presets.
        tensor_parallel: How many GPUs share each layer of a preset.

    Raises:
        ModelError: A model cannot be read.
        PolicyError: There is no such preset, it cannot be shared so, or there is nothing to measure.
    """
    found = [product for model in models for product in _products_of_model(model)]
    found += [product for name in presets for product in products_of_preset(name, tensor_parallel)]
    if not found:
        raise PolicyError(
            "there is nothing to measure: no model has a layer that could be 2:4.",
            "Give an ONNX model with MatMul or Gemm layers, or --preset llama-8b.",
        )
    return tuple(dict.fromkeys(found))


def dtypes_of(models: Iterable[OnnxModel], presets: Iterable[str]) -> tuple[Dtype, ...]:
    """The types to measure where none is asked for: the half ones that models compute in, else FP16.

    A plan keeps such a model as it is typed, and takes FP16 for one in FP32; presets count as FP16.

    Raises:
        ModelError: A model cannot be read.
    """
    found = set[Dtype]("FP16" for _ in presets)
    for model in models:
        gives = {type_name(site.node.outputs[0].dtype) for site in find_sites(model)}
        found |= {half for half in _HALVES if half in gives} or {"FP16"}
    return tuple(half for half in _HALVES if half in found)


def autotune(
    space: Space,
    crew: Crew,
    output: Path,
    name: str = "",
    command: str = "",
    margin: float = MARGIN,
    time_limit: float | None = None,
    added: Sequence[Policy] = (),
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Tuned:
    """Measures, or goes on measuring, and writes the policy.

    Every answer is added to the journal beside the policy at once. A run with the same output goes on from
    it, and one with other products adds to it.

    Args:
        space: What to measure.
        crew: Those that measure.
        output: The policy file; the folder has to exist.
        name: The policy's name; by default the file's.
        command: What made it, for the policy.
        margin: The share by which sparse has to be faster to win.
        time_limit: Seconds after which nothing new is begun.
        added: Policies of this GPU whose points are put beside; the one that `output` holds may be one.
        on_progress: Called after each answer.

    Raises:
        ArtifactError: The policy cannot be written.
        BuildError: An engine cannot be built or run.
        PolicyError: The journal is of another GPU, other libraries or dtypes, an added policy is of another
            GPU, the output holds points that would be lost, a product is wrong, or the time was too short
            for any.
    """
    check_file(output)
    journal_file = journal_beside(output)
    _check_nothing_is_lost(output, journal_file, added)
    begun = time.monotonic()
    identity = crew.identify(space.dtypes)
    for other in added:
        check_gpu(other, identity.device, identity.compute_capability)
    curves, left_out = _measurable(space, crew)
    with open_journal(journal_file, identity) as (journal, appender):
        appender.add_run(_run_of(space, command))
        wave = journal.identity.wave
        known = dict(journal.pairs)
        already = len(known)

        def remember(answer: Measured) -> None:
            appender.add(answer)
            known[answer.request] = answer.counted
            left = what_is_left(curves, space.grid, known, margin, wave)
            each = (time.monotonic() - begun) / (len(known) - already)
            on_progress(Progress(len(known), left, each * left.points, answer))

        def go_on() -> bool:
            return time_limit is None or time.monotonic() - begun < time_limit

        search(curves, space.grid, journal.pairs, crew, margin, wave, remember, go_on)
    made = read_journal(journal_file)
    measured = policy_from_journal(made, name or output.stem, margin, made.unfinished)
    policy = functools.reduce(extend_policy, added, measured)
    write_atomically(output, json_from_policy(policy))
    return Tuned(
        policy=policy,
        measured_now=len(known) - already,
        crossovers=find_crossovers(curves, known, margin),
        left=what_is_left(curves, space.grid, known, margin, wave),
        left_out=(*left_out, *_of_earlier_runs(made.unfinished.difference(curves))),
        seconds=time.monotonic() - begun,
    )


def default_output(device: str) -> Path:
    """A file name for a device's policy: "NVIDIA H200" is h200.json."""
    words = re.findall(r"[a-z0-9]+", device.lower().replace("nvidia", ""))
    return Path("-".join(words or ["policy"]) + ".json")


def _check_nothing_is_lost(output: Path, journal: Path, added: Sequence[Policy]) -> None:
    """What a policy has from elsewhere than its journal would be replaced by what is measured now."""
    if not output.exists() or (found := read_policy(output)) in added:
        return
    hint = f"Keep them with --add {shlex.quote(str(output))}, write to another file with -o, or remove "
    if not journal.exists():
        raise PolicyError(
            f"{output} would be overwritten by what is measured now: its journal {journal.name} is missing.",
            f"{hint}{output.name} first.",
        )
    made = read_journal(journal)
    kept = [*points_from_pairs(made.pairs, made.products), *(p for other in added for p in other.points)]
    if lost := without_points_of(found.points, kept):
        raise PolicyError(
            f"{output} holds {len(lost)} points that are not in its journal {journal.name}, such as of "
            f"{lost[0].k}→{lost[0].n} in {lost[0].library}: they would be lost.",
            f"{hint}{output.name} first.",
        )


def _products_of_model(model: OnnxModel) -> list[Product]:
    """Layers that could be 2:4 and are one plain product: no group of several, and no window of a Conv."""
    sites = [
        site
        for site in find_sites(model)
        if site.batch == 1 and site.pattern_k == site.k and not why_not_eligible(site)
    ]
    found = [Product(_kind_of(site), site.n, site.k) for site in sites]
    of_plugin = plugin_layers(model)  # which says what reads one value
    together: dict[tuple[object, ...], list[Product]] = {}
    for site, product in zip(sites, found, strict=True):
        if site.side == "right" and not of_plugin[site.name].relu:
            key = (of_plugin[site.name].reads, product.kind, product.k)
            together.setdefault(key, []).append(product)
    several = [members for members in together.values() if 1 < len(members) <= MOST_MERGED]
    return found + [Product(m[0].kind, sum(p.n for p in m), m[0].k) for m in several]


def _kind_of(site: LayerSite) -> str:
    if site.node.op_type == "Conv":
        return "conv"
    weight = site.weight.name if isinstance(site.weight, TracedWeight) else ""
    return kind_from_names((site.module, weight, site.name), site.n, site.k)


def _measurable(space: Space, crew: Crew) -> tuple[tuple[Curve, ...], tuple[str, ...]]:
    curves, left_out = [], []
    for curve in curves_of(space.products, space.dtypes, crew.libraries(), space.plugin):
        reason = crew.why_not(curve.library, curve.n, curve.k, curve.dtype)
        if curve.kernel == "plugin" and not reason:
            reason = why_not_in_plugin(curve.n, curve.k)
        if reason:
            left_out.append(reason)
        else:
            curves.append(curve)
    if not curves:
        raise PolicyError(
            f"there is nothing to measure: {left_out[0]}.", "Choose other layers, or another --library."
        )
    return tuple(curves), tuple(dict.fromkeys(left_out))


def _of_earlier_runs(unfinished: Iterable[Curve]) -> Iterator[str]:
    """Sentences about products that an earlier run with this journal began with, and did not finish."""
    for curve in sorted(unfinished, key=lambda curve: (curve.library, curve.dtype, curve.n, curve.k)):
        yield (
            f"{curve}, which an earlier run did not measure at all its M: the same command as then resumes it"
        )


def _run_of(space: Space, command: str) -> Run:
    return Run(
        command=command,
        date=datetime.now(timezone.utc).date().isoformat(),
        driver=installed_driver(),
        products=tuple((p.kind, p.n, p.k) for p in space.products),
        grid=space.grid,
    )
