"""Row maps: which row of which model stands for a token, by mergekit's rule."""

from __future__ import annotations

from mergeflow.graph.row_maps import Configured, Member, Merged, RowMap
from mergeflow.methods.views.runs import MEANS, PADDING, ZEROS

BASE = Member(3, {"x": 0, "y": 1, "z": 2})
OTHER = Member(3, {"y": 0, "new": 1, "z": 2})
THIRD = Member(4, {"x": 0, "y": 1, "new": 2, "own": 3})
TOKENS = {"x": 0, "y": 1, "z": 2, "new": 3, "own": 4}


def merged(rows: int = 5, **fields: object) -> Merged:
    settings: dict[str, object] = {"members": [BASE, OTHER, THIRD], "considered": 3, "configured": {}, "base": 0}
    return Merged(TOKENS, rows, **{**settings, **fields})  # type: ignore[arg-type]


def rows_of(row_map: RowMap) -> list[tuple[int, ...]]:
    """Each row of a map as (member, row), or (kind,)."""
    found: list[tuple[int, ...]] = []
    for kind, first, count in zip(row_map.runs[::3], row_map.runs[1::3], row_map.runs[2::3], strict=True):
        for step in range(count):
            if kind >= 0:
                found.append((row_map.members[kind], first + step))
            elif kind == MEANS:
                pairs = row_map.means[first + step]
                found.append((MEANS, *(row_map.members[n] if i % 2 == 0 else n for i, n in enumerate(pairs))))
            else:
                found.append((kind,))
    return found


def test_a_models_own_rows_come_first() -> None:
    """A model keeps the row of every token it has, wherever it lies."""
    assert rows_of(merged().row_map(2))[:2] == [(2, 0), (2, 1)]
    assert rows_of(merged().row_map(1))[1:4] == [(1, 0), (1, 2), (1, 1)]


def test_a_token_of_one_model_gives_its_row_to_all() -> None:
    """The example of the specification: a token that one model has has that model's row everywhere."""
    assert [rows_of(merged().row_map(member))[4] for member in range(3)] == [(2, 3)] * 3


def test_the_base_stands_in_for_models_that_lack_a_token() -> None:
    """Of several that have the token, the base is taken."""
    assert rows_of(merged().row_map(1))[0] == (0, 0)
    assert rows_of(merged().row_map(2))[2] == (0, 2)


def test_without_the_base_it_is_the_mean_in_listed_order() -> None:
    """A token that the base lacks and several have: the mean of their rows."""
    assert rows_of(merged().row_map(0))[3] == (MEANS, 1, 1, 2, 2)


def test_an_id_beyond_the_rows_counts_as_lacking() -> None:
    """mergekit ends in a KeyError here (quirk 22)."""
    short = Member(2, THIRD.ids)
    assert rows_of(merged(members=[BASE, OTHER, short]).row_map(2))[3] == (1, 1)
    assert merged(members=[BASE, OTHER, short]).nowhere() == ["own"]
    assert rows_of(merged(members=[BASE, OTHER, short]).row_map(0))[4] == (ZEROS,)


def test_configured_rows_are_taken_where_the_token_is_missing_or_forced() -> None:
    """`force` makes models that have the token take the configured row too; without a source nothing is configured."""
    rules = {"x": Configured((2, 3)), "y": Configured(None, force=True), "z": Configured(is_default=True, force=True)}
    work = merged(configured=rules)
    assert [rows_of(work.row_map(member))[0] for member in range(3)] == [(0, 0), (2, 3), (2, 0)]
    assert [rows_of(work.row_map(member))[1] for member in range(3)] == [(ZEROS,)] * 3
    assert rows_of(work.row_map(1))[2] == (1, 2)


def test_padding_keeps_own_rows_and_else_takes_the_mean() -> None:
    """A padded embedding keeps what it has behind its tokens; a model without such rows gets their mean."""
    padded = Member(7, TOKENS)
    work = merged(rows=7, members=[padded, OTHER], considered=2)
    assert work.row_map(0).is_identity(0, 7)
    assert rows_of(work.row_map(1))[5:] == [(PADDING,), (PADDING,)]


def test_a_delta_that_lacks_a_token_lacks_a_change() -> None:
    """No row of weights stands in for a row of a delta, nor the other way round."""
    delta = Member(3, OTHER.ids, is_delta=True)
    work = merged(members=[BASE, delta], considered=2)
    assert rows_of(work.row_map(1)) == [(ZEROS,), (1, 0), (1, 2), (1, 1), (ZEROS,)]
    assert rows_of(work.row_map(0))[3] == (ZEROS,)
