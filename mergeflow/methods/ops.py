"""Every operation a graph can hold, by name. No operation is known by any other way than this table.

`version` enters every key: bump it by hand when an operation computes other bytes than before (a golden-digest test
fails until then). `cost` is nanoseconds per element and tensor input on one core of the machine described in
docs/performance.md, measured by benchmarks/kernels.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mergeflow.methods.schema import Op, OpKind

_KERNELS = "mergeflow.methods.kernels"


def _op(name: str, kind: OpKind, kernel: str, formula: str, cost: float, version: int = 1) -> Op:
    return Op(name, version, kind, f"{_KERNELS}.{kernel}", formula, cost)


OPS: Mapping[str, Op] = MappingProxyType(
    {
        op.name: op
        for op in (
            _op("cast", "pointwise", "elementwise:cast", "R = X, rounded to dtype", 0.15),
            _op("task_vector", "pointwise", "elementwise:task_vector", "D = X - B", 0.12),
            _op("add", "pointwise", "elementwise:add", "R = B + D", 0.12),
            _op("scale", "pointwise", "elementwise:scale", "R = factor * X", 0.2),
            _op("weighted_sum", "pointwise", "elementwise:weighted_sum", "R = sum(c_i * X_i)", 0.35),
            _op(
                "trim",
                "pointwise",
                "trimming:trim",
                "R = D where |D| > threshold, or = threshold up to the cut; else 0",
                0.25,
            ),
            _op(
                "rescale",
                "pointwise",
                "trimming:rescale",
                "R = M * (b / a), b and a the sums of magnitudes before and after; R = M if one is below 1e-7",
                0.22,
            ),
            _op(
                "consensus",
                "pointwise",
                "consensus:consensus",
                "R = lambda * sum(m_i * w_i * D_i), m_i = [sign(w_i * D_i) = sign(sum(w_j * D_j))]; "
                "normalized: / sum(m_i * w_i)",
                1.2,
            ),
            _op(
                "slerp",
                "pointwise",
                "spherical:slerp",
                "R = (sin((1-t)a) * A + sin(t*a) * Z) / sin(a), cos(a) = A.Z / (|A| |Z|); linear if |cos(a)| > 0.9995",
                0.35,
            ),
            _op(
                "kth_magnitude",
                "statistic",
                "order_statistics:KthMagnitude",
                "threshold = the k-th largest |D|; cut = index of the last one kept of those equal to it",
                1.5,
            ),
            _op("magnitude_sum", "statistic", "sums:MagnitudeSum", "sum = sum(|X|)", 1.0),
            _op("gram", "statistic", "sums:Gram", "gram = X_i . X_j for i <= j, row by row", 1.0),
        )
    }
)
