"""Row maps: for each model of a merge, where every row of its new embedding comes from.

The rule is mergekit's, for every token of the output vocabulary:

    own row             where the model has the token (an id beyond its rows counts as lacking) and `force` is not set
    else the default    1. what `tokens` configures: a model's row, another token's, zeros
                        2. one model has the token: its row
                        3. no model has it: zeros, with a warning
                        4. the base has it: the base's row
                        5. the mean of the rows of all that have it, in listed order

and for every row without a token (padding): the model's own row of that number, where it has one that no token of its
own uses, so that padded embeddings keep what they had; else the mean of the rows that tokens have.

Rows of weights never stand in for rows of a delta: a delta lacks a token as it lacks a change, and gets zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mergeflow.methods.views.runs import MEANS, PADDING, ZEROS

# In a list of own rows: no row of the model's own, for a token that it lacks, and for a row that no token has.
_LACKS, _EMPTY = -1, -2
Row = tuple[int, int]  # a member and a row of its tensor, or ZEROS, MEANS, PADDING and a place


@dataclass(frozen=True, slots=True)
class Member:
    """A model with a tensor to re-index: its rows, its tokens, and whether it is a delta."""

    rows: int
    ids: Mapping[str, int]
    is_delta: bool = False


@dataclass(frozen=True, slots=True)
class Configured:
    """What a recipe says of one token: the (member, row) it comes from; None: zeros. `is_default`: nothing."""

    row: tuple[int, int] | None = None
    force: bool = False
    is_default: bool = False


@dataclass(frozen=True, slots=True)
class RowMap:
    """The rows of one new tensor, as the view ``vocabulary`` takes them.

    Args:
        members: the members it is read from: input i of the view is `members[i]`.
        runs, means: as in methods/views/vocabulary.py.
    """

    members: tuple[int, ...]
    runs: tuple[int, ...]
    means: tuple[tuple[int, ...], ...]

    def is_identity(self, member: int, rows: int) -> bool:
        """Whether it gives the whole tensor of `member` as it is."""
        return self.members == (member,) and self.runs == (0, 0, rows)

    @property
    def is_computed(self) -> bool:
        """Whether a row of it is a mean."""
        return any(kind in (MEANS, PADDING) for kind in self.runs[::3])


@dataclass(frozen=True)
class Merged:
    """The tensors of one name of all models of a merge, to be brought to one vocabulary.

    Args:
        tokens: the output's, by id.
        rows: of every new tensor.
        members: the models that have the tensor in listed order, then others that `configured` names.
        considered: how many of `members` are merged.
        base: the member that is the step's base.
    """

    tokens: Mapping[str, int]
    rows: int
    members: Sequence[Member]
    considered: int
    configured: Mapping[str, Configured]
    base: int | None = None

    @cached_property
    def used(self) -> int:
        """Rows up to the last that a token has."""
        return max(self.tokens.values(), default=-1) + 1

    @cached_property
    def own(self) -> list[list[int]]:
        """For each considered member, its own row for each new row, or that it has none."""
        return [self._own(member) for member in self.members[: self.considered]]

    @cached_property
    def defaults(self) -> dict[int, tuple[Row, ...]]:
        """The default of each new row that needs one; none: zeros, several: their mean."""
        forced = {self.tokens[token] for token, rule in self.configured.items() if rule.force and token in self.tokens}
        wanted = forced | {row for own in self.own for row, place in enumerate(own) if place == _LACKS}
        rules = {self.tokens[token]: rule for token, rule in self.configured.items() if token in self.tokens}
        return {row: self._default(row, rules.get(row)) for row in sorted(wanted)}

    @cached_property
    def forced(self) -> frozenset[int]:
        """New rows for which even a model that has the token takes the default."""
        rules = self.configured.items()
        return frozenset(
            self.tokens[token] for token, rule in rules if rule.force and not rule.is_default and token in self.tokens
        )

    def nowhere(self) -> list[str]:
        """Tokens that no model has a row for, and of which the recipe says nothing, in order of their ids."""
        said = {token for token, rule in self.configured.items() if not rule.is_default}
        return [token for token, row in self.tokens.items() if self.defaults.get(row) == () and token not in said]

    @cached_property
    def row_maps(self) -> tuple[RowMap, ...]:
        """The new rows of every considered member."""
        return tuple(self.row_map(member) for member in range(self.considered))

    def row_map(self, member: int) -> RowMap:
        """The new rows of one considered member."""
        means: dict[tuple[Row, ...], int] = {}
        forced = self.forced
        rows = [
            (member, place) if place >= 0 and row not in forced else self._row(member, row, place, means)
            for row, place in enumerate(self.own[member])
        ]
        used = {kind for kind, _ in rows if kind >= 0} | {kind for mean in means for kind, _ in mean}
        members = tuple(sorted(used))
        place_of = {kind: index for index, kind in enumerate(members)}
        flat = [number for run in _runs(rows) for number in (place_of.get(run[0], run[0]), *run[1:])]
        listed = [tuple(number for kind, row in mean for number in (place_of[kind], row)) for mean in means]
        return RowMap(members, tuple(flat), tuple(listed))

    def _own(self, member: Member) -> list[int]:
        own = [_EMPTY] * self.rows
        for token, row in self.tokens.items():
            place = member.ids.get(token, _LACKS)
            if own[row] < 0:  # of two tokens that share a row, the first that the model has
                own[row] = place if place < member.rows else _LACKS
        empty = [row for row, place in enumerate(own) if place == _EMPTY and row < member.rows]
        if empty:
            taken = set(member.ids.values())
            for row in empty:
                own[row] = row if row not in taken else _EMPTY
        return own

    def _default(self, row: int, rule: Configured | None) -> tuple[Row, ...]:
        if rule is not None and not rule.is_default:
            return () if rule.row is None else (rule.row,)
        having = [
            (index, own[row])
            for index, own in enumerate(self.own)
            if own[row] >= 0 and not self.members[index].is_delta
        ]
        if len(having) > 1 and self.base is not None:
            return tuple(place for place in having if place[0] == self.base) or tuple(having)
        return tuple(having)

    def _row(self, member: int, row: int, own: int, means: dict[tuple[Row, ...], int]) -> Row:
        if own == _EMPTY:
            return (PADDING, 0) if row >= self.used else (ZEROS, 0)
        default = () if self.members[member].is_delta else self.defaults[row]
        if not default:
            return ZEROS, 0
        return default[0] if len(default) == 1 else (MEANS, means.setdefault(default, len(means)))


def _runs(rows: Sequence[Row]) -> Iterator[tuple[int, int, int]]:
    """Rows that follow each other in one tensor (or are alike) as (kind, first, count)."""
    start = 0
    for index in range(1, len(rows) + 1):
        if index < len(rows):
            before, following = rows[index - 1], rows[index]
            step = 0 if following[0] in (ZEROS, PADDING) else 1
            if following[0] == before[0] and following[1] == before[1] + step:
                continue
        yield *rows[start], index - start
        start = index
