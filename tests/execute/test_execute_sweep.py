"""The steps of a pass, and the buffers they are given: simulated, on every kind of program."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import FLOATS, graphs, program_of, slerp_chain, source, ties_chain

from mergeflow.execute.sweep import Sweep, Value, plan_sweep
from mergeflow.graph.memory import BLOCK_BUFFERS
from mergeflow.graph.program import Pass, Program


def simulate(program: Program, sweep: Pass, plan: Sweep) -> None:
    """Run the steps on slots that know what they hold: each operand must still be where it was put."""
    slots: dict[int, Value] = {}
    where: dict[Value, int] = {}
    for step in plan.steps:
        for value in step.inputs:
            assert slots[where[value]] == value, f"{step} finds {slots[where[value]]} in the place of {value}"
        if step.result is None:
            assert step.slot == -1
            continue
        assert 0 <= step.slot < plan.slots
        assert step.slot not in {where[value] for value in step.inputs}, "a kernel may not write over its input"
        assert step.result not in where, "a value is made once"
        slots[step.slot] = step.result
        where[step.result] = step.slot


def expect_all_is_done(program: Program, sweep: Pass, plan: Sweep) -> None:
    """The steps read, compute, store, update and write exactly what the pass says."""
    numbers = {
        kind: [step.number for step in plan.steps if step.kind == kind]
        for kind in ("read", "compute", "back", "store", "update", "sink")
    }
    loaded = [i for i in sweep.evaluate if program.instructions[i].kind in ("load", "cached")]
    assert numbers["read"] == loaded
    assert numbers["compute"] == [i for i in sweep.evaluate if i not in loaded]
    assert numbers["back"] == list(sweep.read_back)
    assert sorted(numbers["store"]) == sorted(sweep.store)
    assert sorted(numbers["update"]) == sorted(sweep.statistics)
    assert sorted(numbers["sink"]) == sorted(sweep.sinks)


def expect_sound(program: Program) -> None:
    for sweep in program.passes:
        plan = plan_sweep(program, sweep)
        simulate(program, sweep, plan)
        expect_all_is_done(program, sweep, plan)


@pytest.mark.parametrize("make", [slerp_chain, ties_chain])
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_chains(make: type[Program], steps: int) -> None:
    """In chains of any length no buffer holds two live values, and few buffers are used."""
    program = make(steps)  # type: ignore[call-arg, arg-type]
    expect_sound(program)
    assert max(plan_sweep(program, sweep).slots for sweep in program.passes) < BLOCK_BUFFERS


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data(), dtypes=st.lists(st.sampled_from(FLOATS), min_size=1, max_size=3))
def test_any_program(data: st.DataObject, dtypes: list[str]) -> None:
    """In the passes of any graph, of inputs of any format, no buffer holds two live values."""
    graph, wanted = data.draw(graphs([source(number, (3, 4), dtype) for number, dtype in enumerate(dtypes)]))
    for node in wanted:
        expect_sound(program_of(graph, [node]))


def test_operands_are_widened_once() -> None:
    """A half-precision input is widened one time for all that read it, and never when it is only copied."""
    program = slerp_chain(1)
    first = plan_sweep(program, program.passes[0])
    assert [step.kind for step in first.steps] == ["read", "read", "widen", "widen", "update"]
    assert [step.kind for step in plan_sweep(program, program.passes[1]).steps][-2:] == ["compute", "sink"]
