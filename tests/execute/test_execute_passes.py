"""The passes of a program: what is computed when, and that a chain of n steps costs n."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import FLOATS, graphs, program_of, slerp_chain, source, sum_chain, ties_chain

from mergeflow.graph.program import Program


def expect_sound(program: Program) -> None:
    """Each pass has what it needs when it needs it, and everything is done once.

    pass p: tensors that wait for no record of pass p or later -> statistics of level p, sinks that are ready
    """
    instructions = program.instructions
    recorded = {i for i, it in enumerate(instructions) if it.kind == "record"}
    stored: set[int] = set()
    finished: list[int] = []
    written: list[int] = []
    made: list[int] = []
    for sweep in program.passes:
        ready: set[int] = set(sweep.read_back)
        assert ready <= stored, "what is read back was stored by an earlier pass"
        for i in sweep.evaluate:
            assert i not in ready, "a value is evaluated once in a pass"
            tensors = {j for j in instructions[i].inputs if instructions[j].dtype is not None}
            assert tensors <= ready, "inputs come before what is made of them"
            assert set(instructions[i].inputs) - tensors <= recorded, "records come from earlier passes"
            ready.add(i)
        assert set(sweep.store) <= set(sweep.evaluate)
        for i in sweep.statistics:
            tensors = {j for j in instructions[i].inputs if instructions[j].dtype is not None}
            assert tensors <= ready
        assert {program.sinks[k].instruction for k in sweep.sinks} <= ready
        kept = stored | set(sweep.store) | {i for i, it in enumerate(instructions) if it.kind in ("load", "cached")}
        for i in sweep.whole:
            inputs = set(instructions[i].inputs)
            assert inputs <= kept | recorded, "a whole tensor is made of what is kept, or on disk, when the pass ends"
        stored |= {*sweep.store, *sweep.whole}
        recorded |= set(sweep.statistics)
        finished += sweep.statistics
        written += sweep.sinks
        made += sweep.whole
    assert sorted(finished) == [i for i, it in enumerate(instructions) if it.kind == "statistic"]
    assert sorted(made) == [i for i, it in enumerate(instructions) if it.kind == "whole"]
    assert sorted(written) == list(range(len(program.sinks)))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data(), dtypes=st.lists(st.sampled_from(FLOATS), min_size=1, max_size=3))
def test_any_program(data: st.DataObject, dtypes: list[str]) -> None:
    """The passes of any graph bring every statistic and every sink about, in an order that can be carried out."""
    graph, wanted = data.draw(graphs([source(number, (3, 4), dtype) for number, dtype in enumerate(dtypes)]))
    for node in wanted:
        expect_sound(program_of(graph, [node]))


def evaluations(program: Program) -> int:
    return sum(len(sweep.evaluate) + len(sweep.read_back) for sweep in program.passes)


@pytest.mark.parametrize("make", [slerp_chain, ties_chain])
def test_a_chain_of_n_steps_costs_n(make: Callable[[int], Program]) -> None:
    """Twice as many chained steps take twice as many evaluations, not four times as many."""
    counts = [evaluations(make(steps)) for steps in (10, 20, 40)]
    assert counts[2] - counts[1] == pytest.approx(2 * (counts[1] - counts[0]), rel=0.1)
    expect_sound(make(40))


@pytest.mark.parametrize("make", [slerp_chain, ties_chain])
def test_each_statistic_waits_for_the_one_before(make: Callable[[int], Program]) -> None:
    """A chain has one pass for each step's statistics, and one that writes."""
    program = make(7)
    assert len(program.passes) == 8
    assert [bool(sweep.sinks) for sweep in program.passes] == [False] * 7 + [True]


def test_without_statistics_there_is_one_pass() -> None:
    """Steps that need no statistic are one pass, however many: also more than Python can call into each other."""
    program = sum_chain(3000)
    [sweep] = program.passes
    assert len(sweep.evaluate) == len(program.instructions)
    assert sweep.store == sweep.read_back == ()


def test_what_is_cheap_is_computed_again() -> None:
    """A difference of two inputs is not stored for the next pass: subtracting costs less than writing and reading."""
    program = ties_chain(1)
    first = program.passes[0]
    assert not any(program.instructions[i].op == "task_vector" for i in first.store)


def test_inputs_are_listed_with_their_passes() -> None:
    """`reads` tells which passes need each input, for memory to keep it between them."""
    program = slerp_chain(1)
    assert sorted(program.reads().values()) == [[0, 1], [0, 1]]
