"""What all measured shapes of a policy say of one that was not: extremely randomized trees (scikit-learn).

Of a product they learn the logarithm of dense over sparse from N, K, M, the type, the bytes for each
operation, and how full its tiles and waves of tiles are (Geurts et al., Extremely randomized trees, 2006).
Their spread tells how far to trust them: sparse is taken where their mean, less the policy's `spreads`
standard deviations, still wins by its margin.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sparseflow_trt._deps import require
from sparseflow_trt.policy import Library, Pair, Point, Policy, pairs_by_shape

# Fewer shapes of a library's type are no sample to learn from: then the nearest speaks (near.py).
LEAST_SHAPES = 20
TREES = 300
_TILES = ((64, 64), (64, 128), (128, 64), (128, 128), (128, 256), (256, 128), (64, 256))  # rows, columns of y
_MULTIPROCESSORS = 132  # of an H100 SXM or an H200; of another GPU the waves are scaled
_ROWS = 8  # cuSPARSELt takes multiples of that: what calls it pads


@dataclass(frozen=True)
class Guess:
    """What the trees say of one shape, by M. They learn once they are asked.

    Attributes:
        shapes: How many (N, K) of the type they learn from.
        largest: The largest M measured; above it what holds there holds.
    """

    points: _Same
    library: Library
    n: int
    k: int
    dtype: str
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
        rows = np.array([_features_of(pair) for pair in pairs], np.float32)
        asked = np.array([features(self.dtype, self.n, self.k, self._rows(m))], np.float32)
        beside = self.forest.apply(rows) == self.forest.apply(asked)  # products by trees
        shares = (beside / beside.sum(0)).mean(1)
        order = np.argsort(-shares, kind="stable")[: np.count_nonzero(shares)]
        return [(float(shares[i]), pairs[i]) for i in order]

    def gain(self, m: int) -> tuple[float, float]:
        """The mean of the logarithm of dense over sparse at M, and its standard deviation over the trees."""
        rows = self._rows(m)
        if rows not in self._known:
            self.ask([m])
        return self._known[rows]

    def ask(self, sizes: Iterable[int]) -> None:
        """Asks the trees for many M at once, which takes little longer than for one.

        Raises:
            NotInstalledError: scikit-learn is not installed.
        """
        import numpy as np

        new = sorted({size for m in sizes if (size := self._rows(m)) not in self._known})
        if not new:
            return
        rows = np.array([features(self.dtype, self.n, self.k, m) for m in new], np.float32)
        said = np.array([tree.predict(rows, check_input=False) for tree in self.forest.estimators_])
        self._known.update(
            zip(new, zip(said.mean(0).tolist(), said.std(0).tolist(), strict=True), strict=True)
        )

    def sizes(self, low: int, high: int) -> list[int]:
        """The M from `low` to `high` after which the trees' answer may be another one."""
        high = min(high, self.largest)
        first = -(-max(low, _ROWS) // _ROWS) * _ROWS
        return [*range(low, min(high + 1, _ROWS)), *range(first, high + 1, _ROWS)]

    def _rows(self, m: int) -> int:
        m = min(m, self.largest)
        return m if m <= _ROWS else -(-m // _ROWS) * _ROWS


def guess_of(policy: Policy, library: Library, n: int, k: int, dtype: str) -> Guess | None:
    """What the shapes that a policy measured by a library's sparse kernel say of another.

    Args:
        policy: What was measured.
        library: Whose kernels.
        n: The layer's outputs.
        k: Its inputs.
        dtype: The type of its product.

    Returns:
        None where fewer than LEAST_SHAPES of that type were measured.
    """
    points = _Same(policy.points)
    shapes, largest = _measured(points, library, dtype)
    if shapes < LEAST_SHAPES or not (n and k):
        return None
    return Guess(points, library, n, k, dtype, shapes, largest)


def features(dtype: str, n: int, k: int, m: int) -> list[float]:
    """What the trees see of a product y[M, N] = x[M, K] · Wᵀ."""
    found = [math.log2(size) for size in (n, k, m, m * n, m * n * k)]
    found += [float(dtype == "FP16"), math.log2((n * k + m * k + m * n) / (m * n * k))]
    for rows, columns in _TILES:
        waves = math.ceil(m / rows) * math.ceil(n / columns) / _MULTIPROCESSORS
        found += [math.log2(waves), math.ceil(waves) / waves]
    found += [m / (math.ceil(m / rows) * rows) for rows in (64, 128, 256)]
    return found + [n / (math.ceil(n / columns) * columns) for columns in (128, 256)]


@dataclass(frozen=True, eq=False)
class _Same:
    """A tuple that equals itself alone, so that thousands of points are not hashed and compared."""

    points: tuple[Point, ...] = field(repr=False)

    def __hash__(self) -> int:
        return id(self.points)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.points is other.points


@functools.lru_cache(maxsize=8)
def _measured(points: _Same, library: Library, dtype: str) -> tuple[int, int]:
    found = pairs_by_shape(p for p in points.points if (p.library, p.dtype) == (library, dtype))
    return len(found), max((max(pairs) for pairs in found.values()), default=0)


@functools.lru_cache(maxsize=2)
def _forest(points: _Same, library: Library) -> Any:
    require("sklearn", "judging shapes that a policy has not measured")
    import numpy as np
    from sklearn.ensemble import ExtraTreesRegressor

    pairs = _pairs(points, library)
    rows, gains = [_features_of(pair) for pair in pairs], [math.log(pair.speedup) for pair in pairs]
    trees = ExtraTreesRegressor(TREES, min_samples_leaf=2, max_features=0.5, random_state=0)
    return trees.fit(np.array(rows, np.float32), np.array(gains))


def _pairs(points: _Same, library: Library) -> list[Pair]:
    """The products that the trees learn from, those of all types."""
    of_library = [p for p in points.points if p.library == library]
    dtypes = sorted({p.dtype for p in of_library})
    by_shape = [pairs_by_shape(p for p in of_library if p.dtype == dtype) for dtype in dtypes]
    return [pair for shapes in by_shape for pairs in shapes.values() for pair in pairs.values()]


def _features_of(pair: Pair) -> list[float]:
    return features(pair.dense.dtype, pair.dense.n, pair.dense.k, pair.dense.m)
