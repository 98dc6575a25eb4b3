"""The nearest matrix of a low rank: a truncated singular value decomposition.

    D = sum(s_i u_i v_i')        R = the sum of its largest terms        (Eckart and Young, 1936)

R is D projected on the space of the v_i that stay, so that is what is looked for: in a large matrix by iterating from
a random subspace a little larger than is asked for (Halko, Martinsson and Tropp, 2011), until the share of D's energy
(the sum of squares) in it grows no more; in a small matrix from D'D itself. `exact_products`, `orthonormal` and
`symmetric` make it the same on every machine, and the random start is always the same.

Where more than LARGEST_SUBSPACE directions must be found, or half of all, the eigenvectors of D'D come from LAPACK
instead, which is many times faster there; then, and only then, the last bits of R depend on the library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergeflow.methods.kernels.exact_products import gram, product, sliced
from mergeflow.methods.kernels.orthonormal import orthonormal
from mergeflow.methods.kernels.protocols import Record
from mergeflow.methods.kernels.rows import row_sums
from mergeflow.methods.kernels.symmetric import eigen
from mergeflow.methods.values import optional_number, whole

# More directions than asked for: the last ones converge the slowest.
OVERSAMPLING = 8

# Iterations end when the energy of the subspace grows by less than this share of itself. What is left to find are
# directions hardly larger than those that are found, and a fine-tune has hundreds of such.
STEADY = 1e-6
MOST_ITERATIONS = 30

# Jacobi's method takes 0.1 s for 100 directions, and 8 times that for twice as many.
SMALL = 96
LARGEST_SUBSPACE = 256

# With an energy to reach, the first guess at the number of directions, doubled until it does.
FIRST_GUESS = 24

Energies = NDArray[np.float64]


def low_rank(tensors: Sequence[Tensor], records: Sequence[Record], parameters: Mapping[str, object]) -> Tensor:
    """R, for each matrix of a stack (..., m, n): the best of rank `rank`, or of the least rank with `energy` of D's.

    A tensor of one axis, or none, is returned as it is.

    Parameters: `rank`, a whole number from 1 on; or `energy`, a share of the sum of squares, in (0, 1].
    """
    (delta,) = tensors
    if delta.ndim < 2:
        return delta
    matrices = delta.reshape(-1, *delta.shape[-2:])
    result = torch.empty_like(matrices)
    for matrix, out in zip(matrices, result, strict=True):
        out.copy_(truncated(matrix, parameters))
    return result.reshape(delta.shape)


def truncated(matrix: Tensor, parameters: Mapping[str, object]) -> Tensor:
    """The low-rank approximation of one matrix (m, n): float64. NaN everywhere when an entry is not finite."""
    if not bool(torch.isfinite(matrix).all()):
        return torch.full_like(matrix, torch.nan)
    if not bool(matrix.any()):
        return matrix
    if matrix.shape[0] < matrix.shape[1]:
        return truncated(matrix.T, parameters).T

    energy = optional_number(parameters, "energy")
    if energy is None:
        return _of_rank(matrix, whole(parameters, "rank"))
    return _of_energy(matrix, energy)


def _of_rank(matrix: Tensor, rank: int) -> Tensor:
    if rank >= matrix.shape[1]:
        return matrix
    _, directions = _principal(matrix, rank)
    return _projected(matrix, directions[:, :rank])


def _of_energy(matrix: Tensor, share: float) -> Tensor:
    total = math.fsum(row_sums(matrix.to(torch.float64).square()).flatten().tolist())
    count = FIRST_GUESS
    while True:
        energies, directions = _principal(matrix, count)
        found = np.cumsum(energies)
        enough = np.flatnonzero(found >= share * total)
        if len(enough):
            return _projected(matrix, directions[:, : int(enough[0]) + 1])
        if len(energies) == matrix.shape[1]:
            return matrix
        count *= 2


def _projected(matrix: Tensor, directions: Tensor) -> Tensor:
    return product(product(matrix, directions), directions.T)


def _principal(matrix: Tensor, count: int) -> tuple[Energies, Tensor]:
    """Energies (k,) and directions (n, k) of the largest singular values of (m, n), m >= n; k >= `count`, or n."""
    size = matrix.shape[1]
    if size <= SMALL:
        return _all_directions(matrix)
    if count + OVERSAMPLING > min(LARGEST_SUBSPACE, size // 2):
        return _by_library(matrix)
    return _by_iteration(matrix, count)


def _all_directions(matrix: Tensor) -> tuple[Energies, Tensor]:
    values, vectors = eigen(gram(matrix).cpu().numpy())
    return np.maximum(values, 0.0), torch.from_numpy(vectors).to(matrix.device)


def _by_library(matrix: Tensor) -> tuple[Energies, Tensor]:
    values, vectors = torch.linalg.eigh(gram(matrix).cpu())
    return values.flip(0).clamp_(min=0.0).numpy(), vectors.flip(1).to(matrix.device)


def _by_iteration(matrix: Tensor, count: int) -> tuple[Energies, Tensor]:
    slices = sliced(matrix)
    start = _start(matrix.shape[0], count + OVERSAMPLING).to(matrix.device)
    basis = orthonormal(product(slices.transposed, start))
    before = 0.0
    for _ in range(MOST_ITERATIONS):
        images = product(slices, basis)  # (m, k)
        seen = gram(images)  # (k, k)
        found = math.fsum(seen.diagonal().tolist())
        if found <= before * (1.0 + STEADY):
            break
        before, best, best_seen = found, basis, seen
        basis = orthonormal(product(slices.transposed, orthonormal(images)))
    energies, turns = eigen(best_seen.cpu().numpy())
    directions = product(best, torch.from_numpy(turns).to(matrix.device))
    return np.maximum(energies[:count], 0.0), directions[:, :count]


def _start(size: int, count: int) -> Tensor:
    """Random signs (size, count), the same for every matrix of this size: bits of Philox, whose key is zero."""
    words = np.random.Philox(key=0).random_raw(-(-size * count // 64))
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")[: size * count]
    return torch.from_numpy(bits.astype(np.float64).reshape(size, count) * 2.0 - 1.0)
