"""Whether a regression would know of shapes that were not measured what a policy's lookup leaves: no GPU.

    pip install scikit-learn
    python benchmarks/policy_guess.py POLICY

The lookup would rather be dense where no measurement of the shape is at hand, and so stays behind an oracle
(policy_holdout.py). Here the logarithm of dense over sparse is learned from the policy's own products, by
randomised trees on N, K, M, the type, the arithmetic's share of the bytes, and how full the waves of several
tile sizes are. It is asked of the held-out products whose shapes the policy has not, and sparse is taken
where it is guessed to win by a margin: how many are then slower than dense allows, and how near the oracle
one comes. Writes results/policy_guess.json.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
from measure import write_result
from policy_holdout import LEAST, all_journals, pairs_of

from sparseflow_trt.between import MULTIPROCESSORS
from sparseflow_trt.engines.time_torch import DTYPES
from sparseflow_trt.policy import Pair, Policy, find_policy, pairs_by_shape

TILES = ((64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128), (64, 256))
MARGINS = (0.0, 0.05, 0.1, 0.15, 0.2)
TREES = 500

Asked = tuple[str, int, int, int]  # type, N, K, M


def main() -> None:
    """Learns, asks and writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("policy", type=find_policy)
    policy: Policy = parser.parse_args().policy
    tuned = products_of(policy)
    shapes = {asked[:3] for asked in tuned}
    held_out = {
        (r.curve.dtype, r.curve.n, r.curve.k, r.m): gain(pair) for r, pair in pairs_of(all_journals()).items()
    }
    unknown = {asked: true for asked, true in held_out.items() if asked[:3] not in shapes}
    guessed = guess(tuned, list(unknown))
    true = np.array(list(unknown.values()))
    figures = {
        "policy": policy.name,
        "learned from": len(tuned),
        "asked of": len(unknown),
        "trees": TREES,
        "guess over truth, standard deviation": round(float(np.exp((guessed - true).std()) - 1), 3),
        "mean dense/oracle": round(float(np.exp(np.maximum(true, 0).mean())), 4),
        "by margin": {str(margin): judged(true, guessed > math.log1p(margin)) for margin in MARGINS},
    }
    write_result("policy_guess", figures, f"python benchmarks/policy_guess.py {policy.name}")


def products_of(policy: Policy) -> dict[Asked, float]:
    """What the policy has measured through PyTorch, with the logarithm of dense over sparse."""
    found = {}
    for dtype in DTYPES:
        points = [p for p in policy.points if (p.library, p.dtype) == ("torch", dtype)]
        for (n, k), pairs in pairs_by_shape(points).items():
            found |= {(dtype, n, k, m): gain(pair) for m, pair in pairs.items()}
    return found


def gain(pair: Pair) -> float:
    """The logarithm of dense over sparse."""
    return math.log(pair.dense.us / pair.sparse.us)


def guess(known: dict[Asked, float], asked: list[Asked]) -> Any:
    """The mean of the trees for each product."""
    from sklearn.ensemble import ExtraTreesRegressor

    trees = ExtraTreesRegressor(TREES, min_samples_leaf=2, max_features=0.5, random_state=0)
    trees.fit([features(*product) for product in known], list(known.values()))
    return trees.predict([features(*product) for product in asked])


def features(dtype: str, n: int, k: int, m: int) -> list[float]:
    """What the trees see of a product."""
    sizes = [math.log2(size) for size in (n, k, m, m * n, m * n * k)]
    found = [*sizes, float(dtype == "FP16"), math.log2((n * k + m * k + m * n) / (m * n * k))]
    for rows, columns in TILES:
        waves = math.ceil(m / rows) * math.ceil(n / columns) / MULTIPROCESSORS
        found += [math.log2(waves), math.ceil(waves) / waves]
    return found


def judged(true: Any, taken: Any) -> dict[str, Any]:
    """What taking sparse there gives."""
    gains = np.where(taken, true, 0.0)
    return {
        "taken sparse": int(taken.sum()),
        f"below {LEAST}": int((np.exp(gains) < LEAST).sum()),
        "worst dense/guess": round(float(np.exp(gains.min())), 3),
        "mean dense/guess": round(float(np.exp(gains.mean())), 4),
        "mean oracle/guess": round(float(np.exp((gains - np.maximum(true, 0)).mean())), 4),
    }


if __name__ == "__main__":
    main()
