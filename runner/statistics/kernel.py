"""Kernel Audio Distance: an unbiased distance of sets of embeddings (Chung et al., arXiv 2502.15602).

KAD is the squared maximum mean discrepancy with the kernel exp(−d²/2σ²), the unbiased estimator, times 100.  σ is the
median distance between the embeddings of one set: of the reference by the paper, of the set under test by kadtk's code.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from runner.statistics.moments import Matrix, Rows

SCALE = 100.0
"""kadtk's factor."""

MOST_ROWS = 5000
"""Rows of a set that are compared with each other: 12.5 million pairs."""

_BLOCK = 1024


def median_distance(rows: Rows) -> float:
    """The median of the distances between all pairs of embeddings [n, size]; the lower one of two, as PyTorch's is."""
    n = len(rows)
    distances = np.empty(n * (n - 1) // 2)
    end = 0
    for first in range(0, n, _BLOCK):
        squares = _squared_distances(rows[first : first + _BLOCK], rows[first:])
        for row, values in enumerate(squares):
            pairs = values[row + 1 :]
            distances[end : end + len(pairs)] = pairs
            end += len(pairs)
    middle = (len(distances) - 1) // 2
    return math.sqrt(np.partition(distances, middle)[middle])


def kernel_distance(reference: Rows, rows: Rows, bandwidth: float) -> float:
    """KAD of embeddings [n, size] against a reference [m, size] with kernels of this width; may be below 0."""
    scale = -1 / (2 * bandwidth**2)
    m, n = len(reference), len(rows)
    own = _kernel_sum(reference, reference, scale) - m  # without each embedding's with itself, which is 1
    other = _kernel_sum(rows, rows, scale) - n
    cross = _kernel_sum(reference, rows, scale)
    return SCALE * (own / (m * (m - 1)) + other / (n * (n - 1)) - 2 * cross / (m * n))


def _kernel_sum(first: Rows, second: Rows, scale: float) -> float:
    blocks = (first[start : start + _BLOCK] for start in range(0, len(first), _BLOCK))
    return math.fsum(float(np.exp(scale * _squared_distances(block, second)).sum()) for block in blocks)


def _squared_distances(first: Rows, second: Rows) -> Matrix:
    """float64 [n, m]."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    squares: NDArray[np.float64] = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * (a @ b.T)
    return np.maximum(squares, 0.0, out=squares)
