"""What is worse than in a baseline: outputs, errors, metrics, verdicts, and layers sparse no more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from sparseflow_trt._schema import Record
from sparseflow_trt.artifacts.manifest import Manifest
from sparseflow_trt.artifacts.verdict import OutputVerdict, Validation, Verdict
from sparseflow_trt.gates.baseline import Baseline, Evidence, Figures, LayerEvidence, Metric
from sparseflow_trt.model.layer_names import shown_names

Kind = Literal["verdict", "metric", "output", "error", "layer"]  # in the order that they are told in

# An error below this share of what an element may be off by is no regression, whatever it grew from: two
# releases of one library differ by as much.
_NOISE = 0.01
_RANK: dict[str, int] = {"pass": 2, "not run": 1, "fail": 0}


class Check(Record):
    """One thing that must not be worse than it was.

    Attributes:
        name: What is checked: an output, a layer, a metric.
        of: Of which candidate; "" where of the build as a whole.
        was: What the baseline says, in words.
        now: What this build says.
        limit: What passes, in words.
        reason: What is worse, as a sentence; "" where it passed.
        layer: The name of the node that a check of one layer is of; `name` has its module's.
    """

    kind: Kind
    name: str
    of: str
    was: str
    now: str
    limit: str
    passed: bool
    reason: str = ""
    layer: str = ""


class Gate(Record):
    """An artifact against a baseline: pass where every check passed.

    Attributes:
        artifact: The folder's name.
        baseline: The file's name.
        notes: What changed and is no regression.
        hint: What to do where a check failed, as sentences; "" where all passed.
        validation: The comparison with the baseline's outputs, whole.
    """

    verdict: Literal["pass", "fail"]
    reason: str
    artifact: str
    baseline: str
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    hint: str = ""
    validation: Validation


def evidence_of(manifest: Manifest, validation: Validation) -> Evidence:
    """What a build has that can be lost."""
    ran: dict[str, list[int]] = {}
    for outcome in manifest.engine.outcomes:
        if outcome.sparse:
            ran.setdefault(outcome.layer, []).append(outcome.profile)
    layers = (
        LayerEvidence(
            name=layer.name,
            module=layer.module,
            pruned=layer.state == "sparse",
            planned=layer.sparsity != "dense",  # the plugin's kernels are sparse, too
            ran=tuple(sorted(ran.get(layer.name, ()))),
        )
        for layer in manifest.layers
    )
    return Evidence(
        status=manifest.status,
        candidates={candidate.name: candidate.verdict for candidate in validation.candidates},
        ships=manifest.duel.ships if manifest.duel else "",
        layers=tuple(layer for layer in layers if layer.pruned or layer.planned or layer.ran),
    )


def figures_of(validation: Validation) -> tuple[Figures, ...]:
    """The worst figures of each output of each candidate that ran."""
    found = []
    for candidate in validation.candidates:
        by_output: dict[str, list[OutputVerdict]] = {}
        for output in candidate.outputs:
            by_output.setdefault(output.output, []).append(output)
        for name, rows in by_output.items():
            found.append(
                Figures(
                    candidate=candidate.name,
                    output=name,
                    max_abs=_worst(max, (row.max_abs for row in rows)),
                    mean_abs=_worst(max, (row.mean_abs for row in rows)),
                    cosine=_worst(min, (row.cosine for row in rows)),
                    equal=_worst(min, (row.equal for row in rows)),
                )
            )
    return tuple(found)


def check_outputs(baseline: Baseline, validation: Validation) -> list[Check]:
    """Each output of each candidate that ran: within its tolerance, and its error not grown too much."""
    was = {(f.candidate, f.output): f for f in baseline.figures}
    now = {(f.candidate, f.output): f for f in figures_of(validation)}
    checks = []
    for candidate in validation.candidates:
        for name in dict.fromkeys(row.output for row in candidate.outputs):
            rows = [row for row in candidate.outputs if row.output == name]
            before, after = was.get((candidate.name, name)), now[candidate.name, name]
            failed = [row.reason for row in rows if not row.passed]
            tolerance = baseline.tolerances.get(name)
            asked = "" if tolerance is None else f"cosine ≥ {tolerance.min_cosine:.8g}"
            if after.equal is not None and tolerance is not None:
                asked = f"equal ≥ {tolerance.min_equal:g}"
            checks.append(
                Check(
                    kind="output",
                    name=name,
                    of=candidate.name,
                    was=_agreement(before),
                    now=_agreement(after),
                    limit=asked,
                    passed=not failed,
                    reason=f"{candidate.name}: {failed[0]}" if failed else "",
                )
            )
            if after.mean_abs is not None:
                checks.append(_check_growth(baseline.max_growth, before, after, rows))
    return checks


def _check_growth(most: float, was: Figures | None, now: Figures, rows: list[OutputVerdict]) -> Check:
    before, after = was.mean_abs if was else None, now.mean_abs
    assert after is not None
    loud = any(
        row.mean_abs is not None and row.abs_bound is not None and row.mean_abs > _NOISE * row.abs_bound
        for row in rows
    )
    passed = not before or after <= most * before or not loud
    why = ""
    if not passed and before:
        why = (
            f"the mean error of output '{now.output}' ({now.candidate}) is {after / before:.3g} times what "
            f"it was: {before:.3g} before, {after:.3g} now."
        )
    limit = f"≤ {most:g}×" if before else "none: it was 0" if was else "none: it is new"
    return Check(
        kind="error", name=now.output, of=now.candidate, was="–" if before is None else f"{before:.3g}",
        now=f"{after:.3g}", limit=limit,
        passed=passed, reason=why,
    )  # fmt: skip


def check_verdicts(was: Evidence, now: Evidence, reasons: Mapping[str, str]) -> list[Check]:
    """The build's own verdict, each candidate's and the duel's: none may be worse.

    Args:
        was: The accepted build's.
        now: This build's.
        reasons: Why a candidate has its verdict, by name; "" for the build's own.
    """
    checks = [_check_verdict("the build's own validation", "", was.status, now.status, reasons.get("", ""))]
    for name, verdict in was.candidates.items():
        after = now.candidates.get(name)
        why = reasons.get(name, "this build has no such candidate.")
        checks.append(_check_verdict("comparison with the baseline", name, verdict, after or "not run", why))
    if was.ships:
        passed = was.ships == "dense" or now.ships == "sparse"
        why = "" if passed else "the sparse engine shipped, and it does not now."
        checks.append(
            Check(
                kind="verdict",
                name="which engine ships",
                of="",
                was=was.ships,
                now=now.ships or "not compared",
                limit="sparse stays",
                passed=passed,
                reason=why,
            )
        )
    return checks


def _check_verdict(name: str, of: str, was: Verdict, now: Verdict, why: str) -> Check:
    passed = _RANK[now] >= _RANK[was]
    reason = "" if passed else f"{name}{f' ({of})' if of else ''} was '{was}' and is '{now}': {why}"
    return Check(
        kind="verdict", name=name, of=of, was=was, now=now, limit="no worse", passed=passed, reason=reason
    )


def check_layers(was: Evidence, now: Evidence, known: Mapping[str, str]) -> list[Check]:
    """Whether what was sparse is: weights, plan and kernels. Each layer that lost something is a check.

    Args:
        was: The accepted build's.
        now: This build's.
        known: What each weighted layer that this build has is called, by its node's name.
    """
    after, shown = {layer.name: layer for layer in now.layers}, {**shown_names(was.layers), **known}
    aspects: tuple[tuple[str, str, str, Callable[[LayerEvidence], bool]], ...] = (
        ("weights 2:4", "2:4", "not 2:4", lambda layer: layer.pruned),
        ("planned sparse", "sparse", "dense", lambda layer: layer.planned),
        ("sparse kernels", "sparse", "dense", lambda layer: bool(layer.ran)),
    )
    checks = []
    for aspect, had, has, holds in aspects:
        before = [layer for layer in was.layers if holds(layer)]
        lost = []
        for layer in before:
            stays = after.get(layer.name, LayerEvidence(name=layer.name))
            profiles = (
                set(layer.ran) - set(stays.ran) if had == "sparse" and aspect == "sparse kernels" else ()
            )
            if not holds(stays) or profiles:
                lost.append(layer.name)
        for name in lost:
            word = has if name in known else "not in the model"
            where = f"layer '{shown[name]}': {aspect} in the baseline, now {word}."
            checks.append(
                Check(
                    kind="layer",
                    name=f"{aspect}: {shown[name]}",
                    of="",
                    was=had,
                    now=word,
                    limit="stays",
                    passed=False,
                    reason=where,
                    layer=name,
                )
            )
        if before and not lost:
            had_it, has_it = (f"{sum(map(holds, of.layers))} layer(s)" for of in (was, now))
            checks.append(
                Check(kind="layer", name=aspect, of="", was=had_it, now=has_it, limit="stays", passed=True)
            )
    return checks


def check_metric(name: str, of: str, metric: Metric, score: float | None) -> Check:
    """A task metric of one candidate against what it gave on the reference outputs; None was not scored."""
    if score is None:
        passed, now = False, "not scored"
        why = f"metric '{name}' is in the baseline but was not given: --metric {name}."
    else:
        drop = metric.score - score
        passed, now = drop <= metric.max_drop, f"{score:.6g}"
        why = (
            ""
            if passed
            else f"metric '{name}' of {of} dropped by {drop:.3g}, from {metric.score:.6g} to {score:.6g}."
        )
    return Check(
        kind="metric", name=name, of=of, was=f"{metric.score:.6g}", now=now,
        limit=f"drop ≤ {metric.max_drop:g}", passed=passed, reason=why,
    )  # fmt: skip


def _agreement(figures: Figures | None) -> str:
    if figures is None:
        return "–"
    if figures.equal is not None:
        return f"equal {figures.equal:.4f}"
    return "–" if figures.cosine is None else f"cosine {figures.cosine:.7f}"


def _worst(pick: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
    found = list(values)
    known = [value for value in found if value is not None]
    return pick(known) if known and len(known) == len(found) else None
