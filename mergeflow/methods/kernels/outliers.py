"""Keeping the large entries of a task vector, but not the largest: Model Breadcrumbs.

Two order statistics say which entries are the largest, and which of the rest are large. Both break ties by index in the
same order, so what lies between them is exactly as many entries as was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mergeflow.methods.kernels.protocols import Record, Scratch
from mergeflow.methods.kernels.trimming import trim


def trim_outliers(
    blocks: Sequence[Tensor],
    records: Sequence[Record],
    parameters: Mapping[str, object],
    out: Tensor,
    scratch: Scratch,
    start: int,
) -> None:
    """R = D where it is among the k largest, but not among the t < k largest magnitudes; 0 elsewhere. A NaN stays.

    Davari, Belilovsky: Model Breadcrumbs, 2312.06795. Records: the t-th largest magnitude, the k-th. Scratch: one
    buffer.
    """
    outliers, kept = records
    largest = scratch(0)
    trim(blocks, [kept], parameters, out, scratch, start)
    trim(blocks, [outliers], parameters, largest, scratch, start)
    # D - D is 0 and D - 0 is D: a difference, where masks would take three operations more.
    torch.sub(out, largest, out=out)
