"""A merge method is a row of data: what it takes, its parameters, and how it lowers to operations.

Nothing here imports torch: `validate` and `plan` read schemas only.

    Method ── parameters: Parameter(kind, scope, default, bounds)
           ── contract:   how many inputs, what its base is
           ── lower(Call, Emit) -> Handle        builds nodes through `emit`, knows no graph

    Op     ── kernel: "package.module:function", loaded when numbers are needed
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Value = bool | int | float | str
ParameterKind = Literal["float", "int", "bool", "string"]
Scope = Literal["shared", "input", "non_base"]
ValueType = Literal["weights", "delta"]
ResultType = Literal["weights", "delta", "same", "mixed"]
BasePolicy = Literal["required", "optional", "ignored"]
OpKind = Literal["pointwise", "rowwise", "whole", "view", "statistic"]


class _Required:
    """The default of a parameter that has none."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = _Required()


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method.

    Args:
        scope: ``shared`` has one value per output tensor; ``input`` one per input and tensor; ``non_base`` the
            same, but the base has none.
        default: the value when the recipe has none; REQUIRED when it must; None when absence has a meaning.
        minimum, maximum: bounds of the resolved value, inclusive; None for no bound.
        choices: what a string may be; empty for anything.
    """

    name: str
    kind: ParameterKind
    scope: Scope
    default: Value | _Required | None = REQUIRED
    minimum: float | None = None
    maximum: float | None = None
    meaning: str = ""
    choices: tuple[str, ...] = ()


# A value in the graph: an integer, and opaque to a method.
Handle = int

# How many tensors of its inputs' size the kernel of a ``whole`` operation may have alive, besides its inputs.
WHOLE_COPIES = 10


class Emit(Protocol):
    """Adds one operation to the graph and returns its value."""

    def __call__(self, op: str, inputs: Sequence[Handle], **parameters: object) -> Handle: ...


@dataclass(frozen=True, slots=True)
class Operand:
    """One input tensor of a call: its value, its type, and its own parameters."""

    handle: Handle
    type: ValueType
    parameters: Mapping[str, Value | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """A method applied to the tensors of one name.

    Args:
        operands: the inputs without the base, in listed order (a method that ignores its base finds it here).
        base: the base's tensor; None when the method has none. Weights, unless the method `gives` ``same`` and
            its operands are deltas: then the base is a delta as they are.
        parameters: the shared parameters, resolved.
        shape: of each tensor; () for a single number.
        seed: the recipe's, for operations that draw random numbers: it goes into their parameters, so into their key.
    """

    operands: tuple[Operand, ...]
    base: Handle | None
    parameters: Mapping[str, Value | None]
    shape: tuple[int, ...]
    seed: int = 0

    @property
    def size(self) -> int:
        """Number of elements of each tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Method:
    """A merge method. `formula`, `paper` and `summary` are what `mergeflow methods NAME` prints.

    `minimum` and `maximum` count the operands (the base excluded, unless the policy is ``ignored``).
    `takes` is what an operand may be; `gives` what the result is: ``same`` when every input (the base too) must be
    of one type, and the result is of that type; ``mixed`` when they need not, and the result is weights if one of them
    is. With a base that is ``optional``, ``same`` means weights: the method works on deltas then, and adds them to it.
    """

    name: str
    title: str
    summary: str
    formula: str
    parameters: tuple[Parameter, ...]
    lower: Callable[[Call, Emit], Handle]
    base: BasePolicy = "required"
    minimum: int = 1
    maximum: int | None = None
    takes: tuple[ValueType, ...] = ("weights",)
    gives: ResultType = "weights"
    paper: str = ""
    example: str = ""

    @property
    def adds_to_its_base(self) -> bool:
        """Whether it adds what any number of operands differ in to its base: nothing, of none."""
        return self.base == "required" and self.minimum == 1 and self.maximum is None

    def parameter(self, name: str) -> Parameter | None:
        return next((parameter for parameter in self.parameters if parameter.name == name), None)


@dataclass(frozen=True, slots=True)
class Op:
    """One operation of the graph.

    Args:
        version: bumped by hand whenever the bytes it computes change; it enters every key.
        kind: ``statistic`` gives a small record of the whole; the others a tensor of their inputs' shape: ``pointwise``
            from the same block of the inputs, ``rowwise`` from the same whole rows (along the last axis), ``whole``
            from the whole tensors at once. A ``view`` is a tensor of a shape of its own, read a range at a time from
            its inputs, which lie in files or in the cache.
        kernel: ``package.module:name``; imported only when numbers are computed.
        cost: nanoseconds per element and tensor input on one core, for estimates.
        holds: bytes that a view holds while it is read, for itself.
        random: whether it draws random numbers. Its kernel then finds, as parameter ``stream``, the key of the op's
            first input: what a mask depends on is the tensor it masks (and the seed, a parameter like any other).
    """

    name: str
    version: int
    kind: OpKind
    kernel: str
    formula: str
    cost: float
    random: bool = False
    holds: int = 0
