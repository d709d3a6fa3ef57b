"""A metric of one's own, for `baseline create` and `check --metric examples/metrics.py:separation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Runs = Sequence[Mapping[str, np.ndarray[Any, Any]]]


def separation(outputs: Runs, inputs: Runs) -> float:
    """How much nearer the first two rows of the first input set are to each other than all others are.

    For sentence embeddings, with two sentences there that say the same (as in demo/out/sentences.npz): what
    semantic search lives on. More is better.
    """
    rows = np.concatenate([_unit(next(iter(found.values()))) for found in outputs])
    cosines = rows @ rows.T
    others = cosines[np.triu_indices(len(rows), 1)][1:]  # the first is that of rows 0 and 1
    return float(cosines[0, 1] - others.mean())


def _unit(embeddings: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    tokens = embeddings.reshape(len(embeddings), -1, embeddings.shape[-1]).astype(np.float64)
    rows = tokens.mean(axis=1)  # where the model gives one vector a token
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
