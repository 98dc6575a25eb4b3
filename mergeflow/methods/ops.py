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


def _op(
    name: str, kind: OpKind, kernel: str, formula: str, cost: float, version: int = 1, *, random: bool = False
) -> Op:
    return Op(name, version, kind, f"{_KERNELS}.{kernel}", formula, cost, random)


def _view(name: str, kernel: str, formula: str, cost: float, version: int = 1, *, holds: int = 0) -> Op:
    return Op(name, version, "view", f"mergeflow.methods.views.{kernel}", formula, cost, holds=holds)


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
                "trim_outliers",
                "pointwise",
                "outliers:trim_outliers",
                "R = D where |D| is among the k largest but not among the t largest, else 0",
                0.6,
            ),
            _op("drop", "pointwise", "dropping:drop", "R = D with probability density, else 0", 1.2, random=True),
            _op(
                "magprune",
                "rowwise",
                "magprune:magprune",
                "R = D with probability density - epsilon + 2 * epsilon * (rank - 1) / (n - 1), else 0; "
                "divide: / that probability",
                7.0,
                random=True,
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
                "consensus_by",
                "pointwise",
                "consensus:consensus_by",
                "as consensus, m_i = [sign(w_i * D_i) = sign(sum(b_j))], b_j = sign(w_j) * D_j, or sign(w_j * D_j)",
                1.4,
            ),
            _op("variance", "pointwise", "disagreement:variance", "R = mean((D_i - mean(D_j))^2)", 1.9),
            _op("select", "pointwise", "disagreement:select", "R = D where V is among its largest, else 0", 0.3),
            _op(
                "sce",
                "pointwise",
                "consensus:sce",
                "R = sum(m_i * e_i * D_i) / max(sum(m_i * e_i), 1e-6), m_i = [sign(D_i) = sign(sum(D_j))], "
                "e_i = |D_i|^2 / sum(|D_j|^2)",
                1.2,
            ),
            _op(
                "slerp",
                "pointwise",
                "spanned:slerp",
                "R = (sin((1-t)a) * A + sin(t*a) * Z) / sin(a), cos(a) = A.Z / (|A| |Z|); linear if |cos(a)| > 0.9995",
                0.35,
            ),
            _op(
                "nuslerp",
                "pointwise",
                "spanned:nuslerp",
                "R = (sin((1-t)a) * P + sin(t*a) * Q) / sin(a), cos(a) = P.Q / (|P| |Q|); linear if cos(a) < -0.9995",
                0.35,
            ),
            _op(
                "nuslerp_rows",
                "rowwise",
                "rows:nuslerp",
                "as nuslerp, each row of P and Q a vector",
                2.0,
            ),
            _op(
                "nuslerp_columns",
                "pointwise",
                "columns:nuslerp",
                "as nuslerp, each column of P and Q a vector",
                0.5,
            ),
            _op(
                "multislerp",
                "pointwise",
                "spanned:multislerp",
                "R = cos(eps) * sum(w_i * |X_i|) * m / |m|, m = sum(w_i * X_i / (|X_i| + eps)); "
                "sum(w_i * X_i) where m = 0",
                0.35,
            ),
            _op(
                "karcher",
                "pointwise",
                "spanned:karcher",
                "R = mean(|X_i|) * u, u the unit vector with the least sum(angle(u, X_i)^2)",
                0.35,
            ),
            _op(
                "model_stock",
                "pointwise",
                "spanned:model_stock",
                "R = t * mean(D_i), t = N * c / (1 + (N-1) * c), c the mean cosine of two D_i",
                0.35,
            ),
            _op(
                "model_stock_rows",
                "rowwise",
                "rows:model_stock",
                "as model_stock, each row of the D_i a vector",
                2.0,
            ),
            _op(
                "geometric_median",
                "pointwise",
                "spanned:geometric_median",
                "R = the Y with the least w_0 * |Y| + sum(w_i * |D_i - Y|)",
                0.35,
            ),
            _op(
                "ram",
                "pointwise",
                "overlap:ram",
                "R = sum(a_i * D_i) / max(sum(a_i), 1), a_i = [|D_i| > epsilon]",
                0.7,
            ),
            _op(
                "ram_plus",
                "pointwise",
                "overlap:ram_plus",
                "R = l_i * D_i where model i alone has |D_i| > epsilon, their mean where several have, else 0; "
                "l_i = 1 + r * min(shared_i / max(unique_i, epsilon), alpha)",
                1.2,
            ),
            _op("nearswap", "pointwise", "nearswap:nearswap", "R = X held between B - t and B + t", 0.4),
            _op(
                "perpendicular",
                "pointwise",
                "projection:perpendicular",
                "R = X + alpha * (Y - p * X), p = X.Y / X.X",
                0.35,
            ),
            _op(
                "largest_magnitude",
                "pointwise",
                "election:largest_magnitude",
                "R = the w_i * D_i of the largest magnitude, the first of equals",
                1.0,
            ),
            _op(
                "unify",
                "pointwise",
                "election:unify",
                "R = s * max(|w_i * D_i| where sign(w_i * D_i) = s), s = sign(sum(w_i * D_i))",
                0.8,
            ),
            _op("agreeing", "pointwise", "election:agreeing", "R = U where sign(U) = sign(D), else 0", 0.4),
            _op(
                "tall_mask",
                "pointwise",
                "tall_masks:tall_mask",
                "R = [|w * D| >= tall_lambda * |S - w * D|]",
                0.5,
            ),
            _op("tall_vote", "pointwise", "tall_masks:tall_vote", "R = S where sum(m_i) >= least, else 0", 0.25),
            _op(
                "fusion_importance",
                "rowwise",
                "fusion:importance",
                "I = |X - B| * k, k = sum(p * ln(p / q)) over the row, p = softmax(X) + 1e-8, q = softmax(B) + 1e-8",
                20.0,
            ),
            _op(
                "fuse",
                "pointwise",
                "fusion:fuse",
                "R = X where I >= Q2 + 1.5 * (Q3 - Q1), else B",
                0.3,
            ),
            _op(
                "overlap_counts",
                "statistic",
                "overlap:OverlapCounts",
                "unique = how many |D_i| > epsilon where no other is; shared = how many where others are",
                0.7,
            ),
            _op(
                "kth_magnitude",
                "statistic",
                "order_statistics:KthMagnitude",
                "threshold = the k-th largest |D|; cut = index of the last one kept of those equal to it",
                1.5,
            ),
            _op(
                "largest_share",
                "statistic",
                "order_statistics:LargestShare",
                "threshold = the k-th largest |X|, k = share * the number of X that are not 0; cut as of kth_magnitude",
                1.8,
            ),
            _op(
                "column_grams",
                "statistic",
                "columns:ColumnGrams",
                "gram = X_i . X_j of each column, for i <= j",
                1.0,
            ),
            _op("magnitude_sum", "statistic", "sums:MagnitudeSum", "sum = sum(|X|)", 1.0),
            _op(
                "low_rank",
                "whole",
                "low_rank:low_rank",
                "R = the sum of the largest s_i * u_i * v_i' of X = sum(s_i * u_i * v_i')",
                1000.0,
            ),
            _op("own_method", "whole", "own:whole", "R = the result of a user's function of whole tensors", 1.0),
            _op("own_pointwise", "pointwise", "own:pointwise", "R = the result of a user's function of blocks", 1.0),
            _view(
                "adapter",
                "adapter:Adapter",
                "R = W + sum(s_i * D_i), D = B A, (B A)', X or X - W",
                4.0,
            ),
            _view("dora", "adapter:Dora", "R = m * V / |V| for each output, V = W + s * B A", 6.0),
            _view("concatenate", "concatenate:Concatenate", "R = [X_1; X_2; ...], along the first axis", 0.5),
            _view(
                "block_scaled",
                "block_scaled:BlockScaled",
                "R = X * S[row // b_0, column // b_1], X of 8 bits",
                3.0,
            ),
            _view(
                "gguf", "gguf:GgufBlocks", "R = d * (q - z) or d * q - m, d, q, m as the block's format packs them", 5.0
            ),
            _view(
                "rotary_rows",
                "rotary_rows:RotaryRows",
                "R[h, j, i] = X[h, i, j]: rows of head h, j = 0 and 1 of pair i",
                1.0,
            ),
            _view("strided", "strided:Strided", "R[i, j, ...] = X[i * s_0 + j * s_1 + ...]", 3.0, holds=12 << 20),
            _view(
                "vocabulary",
                "vocabulary:Vocabulary",
                "R = rows of the X_i in the order of another vocabulary; mean(X_i[r]) where a model lacks the token",
                0.6,
            ),
            _op("gram", "statistic", "sums:Gram", "gram = X_i . X_j for i <= j, row by row", 1.0),
        )
    }
)
