"""An orthonormal basis of the space of some columns, the same to the last bit on every machine.

Cholesky's factor L of the columns' Gram matrix says how each depends on those before it: Y inverse(L') is orthonormal.
What rounding leaves askew, a second time straightens (Yamamoto et al., 2015). The factor is taken a column at a time,
in single additions, multiplications and divisions, each rounded by itself.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mergeflow.methods.kernels.exact_products import gram, product

Matrix = NDArray[np.float64]

# A column of length one of which less than this (squared) is left without the others is rounding error.
NEGLIGIBLE = 1e-14


def orthonormal(columns: Tensor) -> Tensor:
    """The basis (n, k), float64, of finite columns (n, k); zero columns for those that depend on others before them."""
    for _ in range(2):
        columns = columns / columns.abs().amax(dim=0).clamp_(min=torch.finfo(torch.float64).tiny)
        products = gram(columns).cpu().numpy()
        lengths = np.sqrt(np.diag(products))
        scales = np.where(lengths > 0.0, 1.0 / np.where(lengths > 0.0, lengths, 1.0), 0.0)
        turns = scales[:, None] * _inverse_factor(products * scales * scales[:, None])
        columns = product(columns, torch.from_numpy(turns).to(columns.device))
    return columns


def _inverse_factor(products: Matrix) -> Matrix:
    """inverse(L'), upper triangular, of a Gram matrix L L' (k, k) with ones on the diagonal; 0 where no pivot is."""
    rest, inverse = products.copy(), np.eye(len(products))
    for j in range(len(products)):
        pivot = rest[j, j]
        if pivot <= NEGLIGIBLE:
            inverse[:, j] = 0.0
            rest[j, j + 1 :] = 0.0
            continue
        root = np.sqrt(pivot)
        row = rest[j, j + 1 :] / root
        inverse[:, j] /= root
        rest[j + 1 :, j + 1 :] -= row[:, None] * row
        inverse[:, j + 1 :] -= inverse[:, j, None] * row
    return inverse
