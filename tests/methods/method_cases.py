"""Which law holds for which method, with which parameters: a table, and the inputs that it is tried on.

equal      all inputs are X: the result is X. "exact" bit for bit, "close" but for the rounding of coefficients
order      the order of the models does not matter: "exact" for any number of them, "pairs" for two (three add up
           in another order, so they differ by rounding), "close" where even two are rounded differently
scaling    twice the inputs give twice the result: "exact", as a power of two is no rounding, or "close", where a
           small constant guards a division
ends       shared parameters with which the result is the base, or the one other model, bit for bit
still      parameters (shared ones, or every model's own) with which the base stays as it is, bit for bit
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from method_evaluation import Model, merge
from torch import Tensor

from mergeflow.methods.schema import REQUIRED
from mergeflow.methods.table import METHODS

Parameters = Mapping[str, Any]
Exactness = Literal["exact", "close"]


@dataclass(frozen=True)
class Case:
    """A method with parameters, and the laws that hold of it then.

    Args:
        own: every model's parameters. Weights differ from model to model: the i-th has (i + 1) times this one.
        models: how many, the base not counted.
    """

    method: str
    own: Parameters = field(default_factory=dict)
    shared: Parameters = field(default_factory=dict)
    models: int = 3
    base: bool = True
    equal: Exactness | None = None
    order: Literal["pairs", "two", "close"] | None = None
    scaling: Exactness | None = None
    ends: tuple[tuple[Parameters, Literal["base", "model"]], ...] = ()
    still: tuple[Parameters, ...] = ()

    def __str__(self) -> str:
        settings = [f"{name}={value}" for name, value in (*self.own.items(), *self.shared.items())]
        return "-".join([self.method, *settings, *([] if self.base else ["no base"])])

    @property
    def inputs(self) -> int:
        """How many tensors the case takes, the base among them."""
        return self.models + self.base

    def merge(self, tensors: Sequence[Tensor], block: int | None = None, **changed: Any) -> Tensor:
        """The merge of tensors, the base first; `changed` are parameters with other values than the case's."""
        return self.merge_in_order(tensors, range(len(tensors) - self.base), block, **changed)

    def merge_in_order(
        self, tensors: Sequence[Tensor], order: Sequence[int], block: int | None = None, **changed: Any
    ) -> Tensor:
        """The same with the models listed in another order; each keeps its parameters."""
        base, others = (tensors[0], tensors[1:]) if self.base else (None, tensors)
        shared = {**self.shared, **{name: value for name, value in changed.items() if self._is_shared(name)}}
        own = {name: value for name, value in changed.items() if not self._is_shared(name)}
        listed = [Model(tensor, self.weighed(i, **own), self._type()) for i, tensor in enumerate(others)]
        return merge(self.method, [listed[i] for i in order], base, block, **shared)

    def weighed(self, index: int, **changed: Any) -> dict[str, Any]:
        """The parameters of one model, its weight by its place in the list."""
        own = {**self.own, **changed}
        return {name: value * (index + 1) if name == "weight" else value for name, value in own.items()}

    def _is_shared(self, name: str) -> bool:
        parameter = METHODS[self.method].parameter(name)
        return parameter is not None and parameter.scope == "shared"

    def _type(self) -> Literal["weights", "delta"]:
        return "weights" if "weights" in METHODS[self.method].takes else "delta"


def inputs(count: int, shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """A base and models tuned from it, in the precision of bfloat16: so many of their differences are equal."""
    generator = np.random.default_rng(seed)

    def drawn(spread: float) -> Tensor:
        return torch.from_numpy(np.asarray(generator.standard_normal(shape) * spread))

    base = drawn(1.0).bfloat16()
    return [base.to(dtype), *((base.double() + drawn(0.05)).bfloat16().to(dtype) for _ in range(count - 1))]


def same(left: Tensor, right: Tensor) -> bool:
    """Whether both are the same bytes, of the same dtype and shape."""
    alike = left.dtype == right.dtype and left.shape == right.shape
    return alike and left.contiguous().numpy().tobytes() == right.contiguous().numpy().tobytes()


def cases() -> list[Case]:
    """The rows of the table, and for a method without one its defaults, of which only the general laws are asked."""
    rows = [case for case in TABLE if case.method in METHODS]
    covered = {case.method for case in rows}
    return rows + [_defaults(name) for name in METHODS if name not in covered]


def _defaults(name: str) -> Case:
    method = METHODS[name]
    needed = {p.name: 0.5 for p in method.parameters if p.default is REQUIRED}
    shared = {n: v for n, v in needed.items() if method.parameter(n).scope == "shared"}  # type: ignore[union-attr]
    own = {n: v for n, v in needed.items() if n not in shared}
    return Case(name, own, shared, models=method.maximum or max(3, method.minimum), base=method.base == "required")


WEIGHTED = {"weight": 0.25}
TRIMMED = {"weight": 0.25, "density": 0.5}
WITHOUT_OUTLIERS = TRIMMED | {"gamma": 0.125}
# Deltas over a base: nothing to add where all models are equal.
ADDED: dict[str, Any] = {"equal": "exact", "order": "pairs", "scaling": "exact"}
# Which entries are dropped depends on the tensor: twice the tensor is another one.
ADDED_BY_CHANCE: dict[str, Any] = {"equal": "exact", "order": "pairs"}
NOTHING_ADDED: tuple[Parameters, ...] = ({"weight": 0.0}, {"lambda": 0.0})
NOTHING_KEPT: tuple[Parameters, ...] = (*NOTHING_ADDED, {"density": 0.0})
UNFLATTENED = {"nuslerp_flatten": False}

TABLE: tuple[Case, ...] = (
    # Sums
    Case("linear", WEIGHTED, base=False, equal="close", order="pairs", scaling="exact"),
    Case("linear", WEIGHTED, {"normalize": False}, base=False, order="pairs", scaling="exact"),
    Case("arithmetic", {"weight": 1 / 3}, models=2, base=False, equal="close", order="pairs", scaling="exact"),
    Case("passthrough", models=1, base=False, equal="exact", scaling="exact"),
    Case("passthrough", {"scale": -0.3}, models=1, base=False, scaling="exact"),
    Case("scale", shared={"factor": -0.3}, models=1, base=False, scaling="exact"),
    Case("task_vector", models=1, scaling="exact"),
    Case("task_arithmetic", WEIGHTED, {"lambda": 0.9}, **ADDED, still=NOTHING_ADDED),
    Case("task_arithmetic", WEIGHTED, {"normalize": True}, **ADDED),
    Case("add_difference", shared={"alpha": 0.7}, models=2, equal="exact", scaling="exact", still=({"alpha": 0.0},)),
    Case("perpendicular", shared={"alpha": 0.7}, models=2, equal="exact", scaling="exact"),
    # Along arcs, and other combinations that a Gram matrix decides
    Case(
        "slerp",
        shared={"t": 0.3},
        models=1,
        equal="close",
        scaling="exact",
        ends=(({"t": 0.0}, "base"), ({"t": 1.0}, "model")),
    ),
    Case("nuslerp", WEIGHTED, models=2, base=False, equal="close", order="close", scaling="exact"),
    Case("nuslerp", WEIGHTED, models=2, equal="exact", order="close", scaling="exact"),
    Case("nuslerp", WEIGHTED, UNFLATTENED, models=2, base=False, equal="close", order="close", scaling="exact"),
    Case(
        "nuslerp",
        WEIGHTED,
        UNFLATTENED | {"nuslerp_row_wise": True},
        models=2,
        equal="exact",
        order="close",
        scaling="exact",
    ),
    Case("multislerp", WEIGHTED, base=False, equal="close", order="pairs", scaling="close"),
    Case("multislerp", WEIGHTED, equal="exact", order="pairs", scaling="close"),
    Case("multislerp", WEIGHTED, {"normalize_weights": False}, base=False, order="pairs", scaling="close"),
    Case("karcher", base=False, equal="close", order="pairs", scaling="exact"),
    Case("model_stock", equal="exact", order="pairs", scaling="exact"),
    Case("model_stock", shared={"filter_wise": True}, equal="exact", order="pairs", scaling="exact"),
    Case("geometric_median", WEIGHTED, base=False, equal="exact", order="close", scaling="exact"),
    # Trimmed, elected
    Case("ties", TRIMMED, **ADDED, still=NOTHING_KEPT),
    Case("ties", TRIMMED, {"rescale": True, "normalize": False, "lambda": 0.4}, **ADDED),
    Case("ties", {"weight": 0.25, "density": 1e-9}, **ADDED),
    Case("breadcrumbs", WITHOUT_OUTLIERS, **ADDED, still=(*NOTHING_KEPT, {"density": 1e-9})),
    Case("breadcrumbs", TRIMMED | {"gamma": 0.0}, {"rescale": True}, **ADDED),
    Case("breadcrumbs", TRIMMED | {"gamma": 1.0}, **ADDED),
    Case("breadcrumbs_ties", WITHOUT_OUTLIERS, {"normalize": True}, **ADDED, still=NOTHING_KEPT),
    Case("dare_linear", TRIMMED, **ADDED_BY_CHANCE, still=NOTHING_KEPT),
    Case("dare_linear", TRIMMED, {"rescale_by": "density"}, **ADDED_BY_CHANCE),
    Case("dare_ties", TRIMMED, {"normalize": True}, **ADDED_BY_CHANCE, still=NOTHING_KEPT),
    Case("dare_ties", {"weight": 0.25, "density": 1e-9}, **ADDED_BY_CHANCE),
    Case("della_linear", TRIMMED, **ADDED_BY_CHANCE, still=NOTHING_KEPT),
    Case("della_linear", TRIMMED, {"rescale_by": "density"}, **ADDED_BY_CHANCE),
    Case("della", TRIMMED | {"epsilon": 0.25}, **ADDED_BY_CHANCE, still=NOTHING_KEPT),
    *(
        Case("sparsify", shared={"method": method, "density": 0.5, "rescale": True}, models=1, base=False)
        for method in ("magnitude", "random", "magnitude_outliers", "della")
    ),
    Case("low_rank", shared={"rank": 2}, models=1, base=False, scaling="exact"),
    Case("low_rank", shared={"energy": 0.7}, models=1, base=False, scaling="exact"),
    Case("low_rank", shared={"rank": 3}, models=1, base=False, scaling="close"),
    Case("low_rank", shared={"energy": 0.5}, models=1, base=False, scaling="close"),
    Case("sce", equal="exact", order="pairs"),
    Case("sce", shared={"select_topk": 0.5}, equal="exact", order="two", still=({"select_topk": 0.0},)),
    Case("ram", equal="exact", order="pairs"),
    Case("ramplus_tl", equal="exact", order="pairs"),
    Case("consensus_ta", WEIGHTED, **ADDED, still=NOTHING_ADDED),
    Case("consensus_ties", TRIMMED, **ADDED, still=NOTHING_KEPT),
    # Of equal magnitudes the first listed one is taken: the order does matter.
    Case("magmax", WEIGHTED, equal="exact", scaling="exact", still=NOTHING_ADDED),
    Case("emr", WEIGHTED, **ADDED, still=NOTHING_ADDED),
    # Towards one other model
    Case(
        "nearswap",
        shared={"t": 0.03},
        models=1,
        equal="exact",
        ends=(({"t": 0.0}, "base"), ({"t": 100.0}, "model")),
    ),
    Case("arcee_fusion", models=1, equal="exact"),
)


@dataclass(frozen=True)
class Refusal:
    """Parameters that make no merge: what is said names them. `own` has each model's."""

    method: str
    own: tuple[Parameters, ...]
    message: str
    shared: Parameters = field(default_factory=dict)
    base: bool = True

    def __str__(self) -> str:
        return f"{self.method}-{self.message}"

    def merge(self) -> Tensor:
        """The merge that must not be."""
        tensors = inputs(len(self.own) + self.base, (7, 9))
        base, others = (tensors[0], tensors[1:]) if self.base else (None, tensors)
        models = [Model(tensor, own) for tensor, own in zip(others, self.own, strict=True)]
        return merge(self.method, models, base, **self.shared)


CANCELLING: tuple[Parameters, ...] = ({"weight": 0.5}, {"weight": -0.5})

REFUSALS: tuple[Refusal, ...] = (
    Refusal("linear", CANCELLING, "the weights (0.5, -0.5) sum to zero", base=False),
    Refusal("multislerp", CANCELLING, "the weights (0.5, -0.5) sum to zero", base=False),
    Refusal("arithmetic", CANCELLING, "sum to 0, and must sum to 1", base=False),
    Refusal("geometric_median", ({"weight": 0.0},) * 2, "every weight is 0", base=False),
    Refusal("della", ({"weight": 1.0, "density": 0.1},) * 2, "epsilon 0.15 is too large for density 0.1"),
    Refusal("della_linear", ({"weight": 1.0, "density": 0.9},) * 2, "epsilon 0.15 is too large for density 0.9"),
    Refusal("emr", ({"task": True},) * 2, "'task' is true for 2 models"),
)

# Weights that cancel where nothing is divided by their sum, or where a rule says what is done instead.
CANCELLED: tuple[Case, ...] = (
    Case("task_arithmetic", shared={"normalize": True}, models=2),
    Case("nuslerp", models=2, base=False),
    Case("breadcrumbs", {"density": 0.5}, {"normalize": True}, models=2),
    Case("dare_linear", {"density": 0.5}, {"normalize": True}, models=2),
    Case("ties", {"density": 0.5}, models=2),
    Case("consensus_ta", shared={"normalize": True}, models=2),
)
