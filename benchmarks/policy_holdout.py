"""What a policy is worth on shapes and M that it was not tuned on.

    python benchmarks/policy_holdout.py POLICY [--later] [--dtype fp16] [--dtype bf16] [--time-limit S]
                                        [--share I/N]
    python benchmarks/policy_holdout.py POLICY [--later] --judge-only

Measures products of other models and other tensor-parallel splits, and those of tuned models, at M between
the tuned ones, by autotune's own measurer, in a random order, so that a run that is stopped has a fair sample
of them; none of the pairs of shape and M is in the policy. --share 0/4 measures one part of four, for as many
GPUs. Then asks the policy about each: what it takes against dense, and against an oracle that knows the
faster of the two. The times lie in results/policy_holdout*.points.jsonl, to which a killed run goes on;
with --judge-only they are judged again, which needs no GPU. Writes results/policy_holdout.json.

The rule for shapes that were not measured was chosen with these at hand. --later asks of models that nobody
had measured before: results/policy_holdout_later.json, with journals of its own. They are not untouched: when
they were first judged, with one caution for other shapes and between measured M, the mean was 2.9 % below the
oracle's; then the two were told apart (spreads, spreads_between), and the same products judged again.
No M is below 20, and 20 alone is no multiple of 8.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Iterable
from typing import Any
from unittest import mock

from measure import RESULTS, write_result

from sparseflow_trt.engines.measuring.curves import Curve, Request, curves_of
from sparseflow_trt.engines.measuring.journal import (
    SUFFIX,
    Journal,
    Run,
    journal_beside,
    open_journal,
    read_journal,
)
from sparseflow_trt.engines.measuring.measurers import identify, make_measurers
from sparseflow_trt.engines.measuring.medians import Effort
from sparseflow_trt.policies import forest
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import judge
from sparseflow_trt.policies.policy import Dtype, Pair, Policy, find_policy
from sparseflow_trt.policies.presets import Product, products_of_preset

# Mistral-7B's layers are those of LLaMA-3-8B.
MODELS = (
    ("llama-7b", 1), ("llama-8b", 1), ("llama-8b", 4), ("llama-70b", 4), ("vit-b", 1),
    ("qwen2.5-7b", 1), ("qwen2.5-32b", 1), ("llama-3b", 1),
    ("qwen3-8b", 1), ("mistral-nemo", 1), ("gemma-2-9b", 1), ("phi-3-mini", 1), ("bert-large", 1),
)  # fmt: skip
LATER = tuple((name, 1) for name in ("qwen3-14b", "qwen3-32b", "qwen2.5-72b", "gemma-2-27b", "phi-4",
                                     "yi-34b", "starcoder2-15b"))  # fmt: skip
# Off the grid: autotune measures powers of two and, where it is in doubt, half-way between two.
SIZES = (20, 40, 80, 112, 160, 224, 320, 448, 640, 896, 1280, 1792, 2560, 3584, 5120, 7168, 10240, 14336)
LEAST = 0.98
MARGINS = (0.02, 0.05, 0.1, 0.2)


def main() -> None:
    """Measures what is missing, judges all of it and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policy")
    parser.add_argument("--later", action="store_true")
    parser.add_argument("--dtype", action="append", choices=("fp16", "bf16"))
    parser.add_argument("--time-limit", type=float, default=math.inf)
    parser.add_argument("--share", default="0/1", type=share_from, metavar="I/N")
    parser.add_argument("--judge-only", action="store_true")
    given = parser.parse_args()
    policy = find_policy(given.policy)
    name = "policy_holdout_later" if given.later else "policy_holdout"
    products = products_of(given.later)
    if not given.judge_only:
        dtypes: tuple[Dtype, ...] = tuple(dict.fromkeys(d.upper() for d in given.dtype or ("fp16", "bf16")))
        measure(name, policy, products, dtypes, given.time_limit, given.share)
    journals = all_journals(name)
    pairs = pairs_of(journals)
    tuned = known(policy)
    held_out = {request: pair for request, pair in pairs.items() if request not in tuned}
    cases = judge_all(policy, products, held_out)
    figures = {
        "policy": policy.name,
        "device": policy.device,
        "library": "torch",
        "libraries": same(journal.identity.libraries for journal in journals),
        "measured": [{"date": run.date, "command": run.command} for j in journals for run in j.runs],
        "asked": f"dense/policy ≥ {LEAST} everywhere, and oracle/policy ≥ {LEAST} in the mean",
        **summary(cases),
        "by basis": {
            basis: summary([case for case in cases if case["basis"] == basis])
            for basis in ("exact", "learned", "nearest", "threshold", "none")
            if any(case["basis"] == basis for case in cases)
        },
        "by dtype": {
            dtype: summary([case for case in cases if case["dtype"] == dtype])
            for dtype in sorted({case["dtype"] for case in cases})
        },
        "by margin": {
            str(margin): summary(judge_all(policy.model_copy(update={"margin": margin}), products, held_out))
            for margin in MARGINS
        },
        "other shapes, by the nearest one": by_the_nearest(policy, products, held_out),
        "worst cases": sorted(cases, key=lambda case: case["dense/policy"])[:10],
        "rows": cases,
    }
    later = " --later" if given.later else ""
    write_result(name, figures, f"python benchmarks/policy_holdout.py {given.policy}{later}", show=False)
    print({key: figures[key] for key in summary(cases)})
    for case in figures["worst cases"]:
        print(case)


def products_of(later: bool) -> tuple[Product, ...]:
    """Those of all models, each once; the later ones without shapes that were there before."""
    first, others = (
        tuple(dict.fromkeys(p for name, gpus in models for p in products_of_preset(name, gpus)))
        for models in (MODELS, LATER)
    )
    seen = {(p.n, p.k) for p in first}
    return tuple(p for p in others if (p.n, p.k) not in seen) if later else first


def all_journals(name: str) -> list[Journal]:
    """Those of all shares of a result."""
    return [read_journal(path) for path in sorted(RESULTS.glob(f"{name}.*{SUFFIX}"))]


def pairs_of(journals: Iterable[Journal]) -> dict[Request, Pair]:
    """All that they hold."""
    return {request: pair for journal in journals for request, pair in journal.pairs.items()}


def same(values: Iterable[dict[str, str]]) -> dict[str, str]:
    """What all journals were measured with.

    Raises:
        SystemExit: They differ.
    """
    first, *others = values
    if any(other != first for other in others):
        raise SystemExit("the journals are of different libraries: judge them apart.")
    return first


def known(policy: Policy) -> set[Request]:
    """What the policy has measured."""
    return {Request(Curve(p.library, p.dtype, p.n, p.k, p.kind), p.m) for p in policy.points}


def held_out_of(policy: Policy, products: Iterable[Product], dtypes: tuple[Dtype, ...]) -> list[Request]:
    """What is asked for: each product at each of SIZES, but for what the policy has measured."""
    tuned = known(policy)
    curves = curves_of(products, dtypes, ("torch",))
    return [request for curve in curves for m in SIZES if (request := Request(curve, m)) not in tuned]


def share_from(text: str) -> tuple[int, int]:
    """Which part, from 0 on, of how many: "1/4"."""
    part, _, parts = text.partition("/")
    if not 0 <= int(part) < int(parts):
        raise ValueError
    return int(part), int(parts)


def measure(
    name: str,
    policy: Policy,
    products: Iterable[Product],
    dtypes: tuple[Dtype, ...],
    limit: float,
    share: tuple[int, int],
) -> None:
    """Adds to the journal what is held out and not there yet."""
    begun = time.monotonic()
    (measurer,) = make_measurers(("torch",), Effort())
    wanted = held_out_of(policy, products, dtypes)
    random.Random(0).shuffle(wanted)
    wanted = wanted[share[0] :: share[1]]
    whole, part = RESULTS / f"{name}.json", RESULTS / f"{name}.{share[0]}-of-{share[1]}{SUFFIX}"
    journal_file = journal_beside(whole) if share == (0, 1) else part
    with open_journal(journal_file, identify([measurer], ("FP16", "BF16"))) as (_, appender):
        done = pairs_of(all_journals(name))
        appender.add_run(Run(command=" ".join(sys.argv), date=time.strftime("%Y-%m-%d", time.gmtime())))
        for number, request in enumerate(wanted, 1):
            if time.monotonic() - begun > limit:
                print(f"The time limit was met after {number - 1} of {len(wanted)}: run it again.")
                return
            if request not in done:
                appender.add(measurer.measure(request))
            if number % 50 == 0:
                seconds = time.monotonic() - begun
                print(f"{number} of {len(wanted)} in {seconds:.0f} s", file=sys.stderr, flush=True)


def judge_all(
    policy: Policy, products: Iterable[Product], pairs: dict[Request, Pair]
) -> list[dict[str, Any]]:
    """What the policy says of each product as each of its kinds, and what that costs or gains."""
    kinds: dict[tuple[int, int], dict[str, None]] = {}
    for product in products:
        kinds.setdefault((product.n, product.k), {})[product.kind] = None
    cases = []
    for request, pair in pairs.items():
        curve = request.curve
        for kind in kinds.get((curve.n, curve.k), {curve.kind: None}):
            verdict = judge(policy, Gemm(kind, curve.n, curve.k, curve.dtype), request.m, "torch")
            taken = pair.sparse.us if verdict.sparse else pair.dense.us
            cases.append(
                {
                    "kind": kind,
                    "n": curve.n,
                    "k": curve.k,
                    "m": request.m,
                    "dtype": curve.dtype,
                    "dense_us": pair.dense.us,
                    "sparse_us": pair.sparse.us,
                    "taken": "sparse" if verdict.sparse else "dense",
                    "basis": verdict.basis,
                    "dense/policy": round(pair.dense.us / taken, 4),
                    "oracle/policy": round(min(pair.dense.us, pair.sparse.us) / taken, 4),
                }
            )
    return cases


def by_the_nearest(policy: Policy, products: Iterable[Product], pairs: dict[Request, Pair]) -> dict[str, Any]:
    """What shapes that were not measured would get if nothing were learned of all that were."""
    with mock.patch.object(forest, "LEAST_SHAPES", math.inf):
        # a copy: what is known of a policy's layers is kept with it
        cases = judge_all(policy.model_copy(), products, pairs)
    return summary([case for case in cases if case["basis"] == "nearest"])


def summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """The worst and the means over some cases."""
    gains = [case["dense/policy"] for case in cases]
    shares = [case["oracle/policy"] for case in cases]
    oracle = [case["dense/policy"] / case["oracle/policy"] for case in cases]
    return {
        "cases": len(cases),
        "taken sparse": sum(case["taken"] == "sparse" for case in cases),
        "worst dense/policy": min(gains),
        f"below {LEAST}": sum(gain < LEAST for gain in gains),
        "mean dense/policy": round(statistics.geometric_mean(gains), 4),
        "mean dense/oracle": round(statistics.geometric_mean(oracle), 4),
        "mean oracle/policy": round(statistics.geometric_mean(shares), 4),
        "passed": min(gains) >= LEAST and statistics.geometric_mean(shares) >= LEAST,
    }


if __name__ == "__main__":
    main()
