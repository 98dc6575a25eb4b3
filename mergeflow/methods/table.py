"""Every merge method, by the name a recipe calls it. Adding one is a module beside this and a row here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mergeflow.methods.arcee_fusion import ARCEE_FUSION
from mergeflow.methods.arithmetic import ARITHMETIC
from mergeflow.methods.differences import ADD_DIFFERENCE, PERPENDICULAR
from mergeflow.methods.emr import EMR
from mergeflow.methods.geometric_median import GEOMETRIC_MEDIAN
from mergeflow.methods.karcher import KARCHER
from mergeflow.methods.linear import LINEAR
from mergeflow.methods.low_rank import LOW_RANK
from mergeflow.methods.magmax import MAGMAX
from mergeflow.methods.model_stock import MODEL_STOCK
from mergeflow.methods.multislerp import MULTISLERP
from mergeflow.methods.nearswap import NEARSWAP
from mergeflow.methods.nuslerp import NUSLERP
from mergeflow.methods.passthrough import PASSTHROUGH
from mergeflow.methods.ram import RAM, RAM_PLUS
from mergeflow.methods.scale import SCALE
from mergeflow.methods.sce import SCE
from mergeflow.methods.schema import Method
from mergeflow.methods.slerp import SLERP
from mergeflow.methods.sparse_arithmetic import (
    BREADCRUMBS,
    BREADCRUMBS_TIES,
    DARE_LINEAR,
    DARE_TIES,
    DELLA,
    DELLA_LINEAR,
)
from mergeflow.methods.sparsify import SPARSIFY
from mergeflow.methods.tall_masks import CONSENSUS_TA, CONSENSUS_TIES
from mergeflow.methods.task_arithmetic import TASK_ARITHMETIC, TASK_VECTOR
from mergeflow.methods.ties import TIES

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            LINEAR,
            ARITHMETIC,
            TASK_ARITHMETIC,
            TIES,
            DARE_LINEAR,
            DARE_TIES,
            BREADCRUMBS,
            BREADCRUMBS_TIES,
            DELLA_LINEAR,
            DELLA,
            SCE,
            SLERP,
            NUSLERP,
            MULTISLERP,
            KARCHER,
            MODEL_STOCK,
            GEOMETRIC_MEDIAN,
            RAM,
            RAM_PLUS,
            CONSENSUS_TA,
            CONSENSUS_TIES,
            MAGMAX,
            EMR,
            NEARSWAP,
            ARCEE_FUSION,
            ADD_DIFFERENCE,
            PERPENDICULAR,
            PASSTHROUGH,
            TASK_VECTOR,
            SPARSIFY,
            SCALE,
            LOW_RANK,
        )
    }
)
