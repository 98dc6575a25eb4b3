"""How much SCE lets each model count: its share of the energy of all task vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mergeflow.methods.kernels.gram_matrix import entries
from mergeflow.methods.kernels.protocols import Record

# mergekit's bounds for SCE: less energy than this in all is taken for noise, and no element is divided by less.
SMALLEST_ENERGY = 1e-6
SMALLEST_WEIGHT = 1e-6


def energy_shares(grams: Sequence[Record], size: int) -> list[float]:
    """mean(D_i^2) of each model by the sum of them all; equal shares where that sum is below 1e-6."""
    energies = [entries(record)[0] / size for record in grams]
    total = math.fsum(energies) if all(math.isfinite(energy) for energy in energies) else math.nan
    return [1.0 / len(energies) if total < SMALLEST_ENERGY else energy / total for energy in energies]
