"""What all measured shapes of a policy say of one that was not: extremely randomized trees (scikit-learn).

Of a product they learn the logarithm of dense over sparse from N, K, M, the type, the bytes for each
operation, and how full its tiles and waves of tiles are (Geurts et al., Extremely randomized trees, 2006).
Their spread tells how far to trust them: sparse is taken where their mean, less the policy's `spreads`
standard deviations, still wins by its margin.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparseflow_trt._deps import require
from sparseflow_trt._same import Same
from sparseflow_trt.model.packing import ROWS, round_up
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.policy import Library, Pair, Point, Policy, pairs_by_shape, points_of

# Fewer shapes of a library's type are no sample to learn from: then the nearest speaks (near.py).
LEAST_SHAPES = 20
TREES = 300
_TILES = ((64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128), (64, 256))  # rows, columns of y
_MULTIPROCESSORS = 132  # of an H100 SXM or an H200; of another GPU the waves are scaled


@dataclass(frozen=True)
class Guess:
    """What the trees say of one shape, by M. They learn once they are asked.

    Attributes:
        shapes: How many (N, K) of the type they learn from.
        largest: The largest M measured; above it what holds there holds.
    """

    points: Same[tuple[Point, ...]]
    library: Library
    gemm: Gemm
    shapes: int
    largest: int
    _known: dict[int, tuple[float, float]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def forest(self) -> Any:
        """The trees, the same for all shapes that these points are asked of."""
        return _forest(self.points, self.library)

    def weights(self, m: int) -> list[tuple[float, Pair]]:
        """The measured products that the answer at M is made of, with their shares of it, the largest first.

        The mean of the trees is that of the products in the leaves where this one falls: each counts in a
        tree as one of those in its leaf, so that all shares together are 1. Some are of the other type.
        """
        import numpy as np

        pairs = _pairs(self.points, self.library)
        asked = self._features([self._rows(m)])
        beside = self.forest.apply(_features_of(pairs)) == self.forest.apply(asked)  # products by trees
        shares = (beside / beside.sum(0)).mean(1)
        order = np.argsort(-shares, kind="stable")[: np.count_nonzero(shares)]
        return [(float(shares[i]), pairs[i]) for i in order]

    def gain(self, m: int) -> tuple[float, float]:
        """The mean of the logarithm of dense over sparse at M, and its standard deviation over the trees."""
        return self.gains([m])[0]

    def gains(self, sizes: Iterable[int]) -> list[tuple[float, float]]:
        """The same at each of many M."""
        sizes = list(sizes)
        self.ask(sizes)
        return [self._known[self._rows(m)] for m in sizes]

    def ask(self, sizes: Iterable[int]) -> None:
        """Asks the trees for many M at once, which takes little longer than for one.

        Raises:
            NotInstalledError: scikit-learn is not installed.
        """
        import numpy as np

        new = sorted({size for m in sizes if (size := self._rows(m)) not in self._known})
        if not new:
            return
        rows = self._features(new)
        said = np.array([tree.tree_.predict(rows)[:, 0] for tree in self.forest.estimators_])
        means = said.mean(0)
        said -= means  # in place: there are many trees and many M
        np.square(said, out=said)
        spreads = np.sqrt(said.mean(0))
        self._known.update(zip(new, zip(means.tolist(), spreads.tolist(), strict=True), strict=True))

    def sizes(self, low: int, high: int) -> list[int]:
        """The M from `low` to `high` after which the trees' answer may be another one."""
        high = min(high, self.largest)
        return [*range(low, min(high + 1, ROWS)), *range(round_up(max(low, ROWS)), high + 1, ROWS)]

    def _features(self, sizes: Sequence[int]) -> Any:
        return features(self.gemm.dtype, self.gemm.n, self.gemm.k, sizes)

    def _rows(self, m: int) -> int:
        m = min(m, self.largest)
        return m if m <= ROWS else round_up(m)


def guess_of(policy: Policy, library: Library, gemm: Gemm) -> Guess | None:
    """What the shapes that a policy measured by a library's sparse kernel say of another.

    Returns:
        None where fewer than LEAST_SHAPES of that type were measured.
    """
    points = Same(policy.points)
    shapes, largest = _measured(points, library, gemm.dtype)
    if shapes < LEAST_SHAPES or not (gemm.n and gemm.k):
        return None
    return Guess(points, library, gemm, shapes, largest)


def features(
    dtypes: str | Sequence[str], ns: int | Sequence[int], ks: int | Sequence[int], ms: Sequence[int]
) -> Any:
    """What the trees see of products y[M, N] = x[M, K] · Wᵀ: float32, a row for each.

    Args:
        dtypes: The types of the products, or the one of all.
        ns: Their N, likewise.
        ks: Their K, likewise.
        ms: Their M.
    """
    import numpy as np

    given = (np.asarray(dtypes) == "FP16", ns, ks, ms)
    is_half, n, k, m = np.broadcast_arrays(*(np.asarray(each, np.float64) for each in given))
    found = [np.log2(size) for size in (n, k, m, m * n, m * n * k)]
    found += [is_half, np.log2((n * k + m * k + m * n) / (m * n * k))]
    for rows, columns in _TILES:
        waves = np.ceil(m / rows) * np.ceil(n / columns) / _MULTIPROCESSORS
        found += [np.log2(waves), np.ceil(waves) / waves]
    found += [m / (np.ceil(m / rows) * rows) for rows in (64, 128, 256)]
    found += [n / (np.ceil(n / columns) * columns) for columns in (128, 256)]
    return np.stack(found, axis=-1).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _measured(points: Same[tuple[Point, ...]], library: Library, dtype: str) -> tuple[int, int]:
    found = pairs_by_shape(points_of(points).get((library, dtype), ()))
    return len(found), max((max(pairs) for pairs in found.values()), default=0)


@functools.lru_cache(maxsize=2)
def _forest(points: Same[tuple[Point, ...]], library: Library) -> Any:
    require("sklearn", "judging shapes that a policy has not measured")
    from sklearn.ensemble import ExtraTreesRegressor

    pairs = _pairs(points, library)
    gains = [math.log(pair.speedup) for pair in pairs]
    trees = ExtraTreesRegressor(TREES, min_samples_leaf=2, max_features=0.5, random_state=0, n_jobs=-1)
    return trees.fit(_features_of(pairs), gains)


def _pairs(points: Same[tuple[Point, ...]], library: Library) -> list[Pair]:
    """The products that the trees learn from, those of all types."""
    of_library = [p for p in points.value if p.library == library]
    dtypes = sorted({p.dtype for p in of_library})
    by_shape = [pairs_by_shape(p for p in of_library if p.dtype == dtype) for dtype in dtypes]
    return [pair for shapes in by_shape for pairs in shapes.values() for pair in pairs.values()]


def _features_of(pairs: list[Pair]) -> Any:
    dense = [pair.dense for pair in pairs]
    return features(
        [p.dtype for p in dense], [p.n for p in dense], [p.k for p in dense], [p.m for p in dense]
    )
