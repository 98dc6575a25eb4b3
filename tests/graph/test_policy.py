"""Which results are worth keeping: laws of the rule of `cache: auto`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeflow.dtypes import BFLOAT16
from mergeflow.graph.nodes import Graph
from mergeflow.graph.policy import (
    ENTRY_BYTES,
    GUARD,
    NOMINAL,
    UNREAD,
    VALUE_SECONDS,
    Candidate,
    Question,
    Verdict,
    decide,
    entry_bytes,
    seconds_at_stake,
    table_costs,
)
from mergeflow.graph.tasks import Known
from mergeflow.models.records import FileIdentity, Segment, TensorSource

SHAPE = (1000, 1000)
ELEMENTS = 1_000_000


def load(graph: Graph, number: int, shape: tuple[int, ...] = SHAPE) -> int:
    """A bfloat16 tensor of a model that is on no disk."""
    nbytes = 2 * shape[0] * shape[1]
    file = FileIdentity(f"/model-{number}", nbytes, 0, number, 0)
    return graph.load(TensorSource("w", BFLOAT16, shape, (Segment(file, 0, nbytes),)))


def chain(length: int, shape: tuple[int, ...] = SHAPE) -> tuple[Graph, list[int]]:
    """load -- scale -- scale -- ...: each scaling the result of a step."""
    graph = Graph()
    value = load(graph, 0, shape)
    results = []
    for number in range(length):
        value = graph.add("scale", [value], {"factor": float(number + 2)})
        results.append(value)
    return graph, results


def asked(
    graph: Graph, results: Sequence[int], uses: float = 1.0, *, always: Sequence[int] = (), **more: object
) -> Question:
    """May the results be kept? Everything in the graph is needed."""
    candidates = tuple(Candidate(node, uses, node in always) for node in results)
    return Question(graph, Known(), candidates, range(len(graph)), **more)  # type: ignore[arg-type]


def costs(**own: float) -> dict[str, float]:
    return {**table_costs(), **own}


def kept(verdicts: Mapping[int, Verdict]) -> list[int]:
    return [node for node, verdict in verdicts.items() if verdict.is_kept]


def test_what_is_costly_is_kept_and_what_is_cheap_is_not() -> None:
    """A singular value decomposition costs a hundred times what reading its result does; a product costs less."""
    graph = Graph()
    delta = graph.add("scale", [load(graph, 0)], {"factor": 2.0})
    low = graph.add("low_rank", [delta], {"rank": 4})
    assert kept(decide(asked(graph, [delta, low]), NOMINAL, table_costs())) == [low]


def test_a_costly_result_is_kept_though_nothing_but_its_output_needs_it() -> None:
    """The same rule, for a value that is wanted again less often: `low_rank` is worth it, TIES is not."""
    graph = Graph()
    low = graph.add("low_rank", [load(graph, 0)], {"rank": 4})
    merged = graph.add("consensus", [load(graph, 1), load(graph, 2), load(graph, 3)], {})
    assert kept(decide(asked(graph, [low, merged], UNREAD), NOMINAL, table_costs())) == [low]


def test_the_numbers_are_those_of_the_formula() -> None:
    """Time to read the input and to compute; to write; to read back."""
    graph, (result,) = chain(1)
    verdict = decide(asked(graph, [result]), NOMINAL, costs(scale=50.0), threads=2)[result]
    assert verdict.again == pytest.approx(2 * ELEMENTS / 1e9 + 50e-9 * ELEMENTS / 2, rel=0.01)
    assert verdict.write == pytest.approx(4 * ELEMENTS / NOMINAL.write + NOMINAL.entry_write)
    assert verdict.read == pytest.approx(4 * ELEMENTS / NOMINAL.read + NOMINAL.entry_read)
    assert verdict.is_kept == (verdict.again > GUARD * (verdict.write + verdict.read))
    assert verdict.nbytes == 4 * ELEMENTS + ENTRY_BYTES == entry_bytes(graph[result])


def test_an_input_that_many_paths_lead_to_is_read_once() -> None:
    """Both differences have the base: it counts once, though a tree of the formula has it twice."""
    graph = Graph()
    base, a, b = (load(graph, number) for number in range(3))
    deltas = [graph.add("task_vector", [model, base], {}) for model in (a, b)]
    merged = graph.add("weighted_sum", deltas, {"coefficients": [1.0, 1.0]})
    free = dict.fromkeys(table_costs(), 0.0)
    verdict = decide(asked(graph, [merged]), NOMINAL, free)[merged]
    assert verdict.again == pytest.approx(3 * 2 * ELEMENTS / NOMINAL.load, rel=0.05)


def test_of_a_chain_every_so_many_th_is_kept() -> None:
    """Cheap steps add up until a result is worth it; then the count begins again."""
    graph, results = chain(60)
    threshold = GUARD * 4 * ELEMENTS * (1 / NOMINAL.write + 1 / NOMINAL.read) * 1e9 / ELEMENTS
    verdicts = decide(asked(graph, results), NOMINAL, costs(scale=threshold / 6))
    found = kept(verdicts)
    assert 60 / 8 <= len(found) <= 60 / 5
    gaps = [b - a for a, b in pairwise(found)]
    assert max(gaps) - min(gaps) <= 1


def test_a_chain_of_tiny_tensors_takes_no_time_to_decide() -> None:
    """Each value has a least cost, so the way back from a result ends somewhere: 3,000 steps are no 3,000 squared."""
    graph, results = chain(3000, (2, 2))
    verdicts = decide(asked(graph, results), NOMINAL, table_costs())
    assert max(b - a for a, b in pairwise(kept(verdicts))) < 100


def test_tiny_tensors_are_not_kept() -> None:
    """Creating two files costs more than a few thousand products, however slow."""
    graph, results = chain(3, (40, 50))
    assert kept(decide(asked(graph, results), NOMINAL, costs(scale=50.0))) == []


def test_a_statistic_is_there_unless_its_step_is_never_cached() -> None:
    """Its time counts only where it would be computed again."""
    graph = Graph()
    value = load(graph, 0)
    threshold = graph.add("kth_magnitude", [value], {"k": 10})
    trimmed = graph.add("trim", [value, threshold], {})
    slow = costs(kth_magnitude=500.0)
    cheap = decide(asked(graph, [trimmed]), NOMINAL, slow)[trimmed]
    dear = decide(asked(graph, [trimmed], forgotten=frozenset({threshold})), NOMINAL, slow)[trimmed]
    assert dear.again - cheap.again == pytest.approx(500e-9 * ELEMENTS, rel=0.01)
    assert (cheap.is_kept, dear.is_kept) == (False, True)


def test_what_the_cache_has_is_read_and_not_computed() -> None:
    """A result that stands on a cached one costs what is between them."""
    source = chain(1)[0][0].source
    assert source is not None
    graph = Graph(digests={source: "d" * 64})
    first = graph.add("scale", [graph.load(source)], {"factor": 2.0})
    second = graph.add("scale", [first], {"factor": 3.0})
    known = Known(tensors=frozenset({graph[first].key or ""}))
    slow = costs(scale=100.0)
    alone = decide(Question(graph, Known(), (Candidate(second, 1.0),), range(3)), NOMINAL, slow)[second]
    after = decide(Question(graph, known, (Candidate(second, 1.0),), (first, second)), NOMINAL, slow)[second]
    assert alone.again - after.again == pytest.approx(100e-9 * ELEMENTS + (2 - 4) * ELEMENTS / 1e9, rel=0.02)


def test_a_view_of_a_part_of_a_large_tensor_reads_that_part() -> None:
    """One of 64 experts in one tensor: its share of the file counts, not the file."""
    graph = Graph()
    packed = load(graph, 0, (64_000, 1000))
    view = graph.view("strided", [packed], {}, BFLOAT16, SHAPE)
    result = graph.add("scale", [view], {"factor": 2.0})
    free = dict.fromkeys(table_costs(), 0.0)
    assert decide(asked(graph, [result]), NOMINAL, free)[result].again == pytest.approx(
        2 * ELEMENTS / NOMINAL.load, rel=0.05
    )
    assert decide(asked(graph, [result]), NOMINAL, free | {"strided": 80.0})[result].is_kept


def test_without_room_nothing_is_kept_but_what_was_asked_for() -> None:
    """`cache: always` is an order; the rule is a proposal."""
    graph, results = chain(4)
    slow = costs(scale=1000.0)
    assert kept(decide(asked(graph, results), NOMINAL, slow)) == results
    assert kept(decide(asked(graph, results), NOMINAL, slow, room=lambda: 0)) == []
    assert kept(decide(asked(graph, results, always=results[1:2]), NOMINAL, slow, room=lambda: 0)) == results[1:2]


def test_the_best_saving_per_byte_is_kept_first() -> None:
    """Of two results of one size, there is room for one: the costlier."""
    graph = Graph()
    cheap = graph.add("scale", [load(graph, 0)], {"factor": 2.0})
    dear = graph.add("low_rank", [load(graph, 1)], {"rank": 4})
    question = asked(graph, [cheap, dear])
    slow = costs(scale=100.0)
    one = entry_bytes(graph[cheap])
    assert kept(decide(question, NOMINAL, slow)) == [cheap, dear]
    assert kept(decide(question, NOMINAL, slow, room=lambda: 2 * one - 1)) == [dear]
    assert kept(decide(question, NOMINAL, slow, room=lambda: 2 * one)) == [cheap, dear]


def test_what_does_not_fit_by_itself_is_in_nobodys_way() -> None:
    """A result larger than all the room is left out, and the next one is kept."""
    graph = Graph()
    large = graph.add("low_rank", [load(graph, 0, (4000, 1000))], {"rank": 4})
    small = graph.add("scale", [load(graph, 1)], {"factor": 2.0})
    question = asked(graph, [large, small])
    room = entry_bytes(graph[small])
    assert kept(decide(question, NOMINAL, costs(scale=100.0), room=lambda: room)) == [small]


def test_nobody_is_asked_for_the_room_when_nothing_is_worth_keeping() -> None:
    """Looking for it reads the index of the whole cache."""
    graph, results = chain(2)

    def ask() -> int:
        raise AssertionError("asked")

    assert kept(decide(asked(graph, results), NOMINAL, table_costs(), room=ask)) == []


def test_the_wish_of_later_candidates_keeps_what_is_not_kept_else() -> None:
    """A value that nine candidates need is written once, and saved nine times."""
    graph, (result,) = chain(1)
    slow = costs(scale=18.0)
    assert not decide(asked(graph, [result], 1.0), NOMINAL, slow)[result].is_kept
    assert decide(asked(graph, [result], 9.0), NOMINAL, slow)[result].is_kept


def test_a_value_that_many_results_stand_on_does_not_keep_them_all() -> None:
    """Each of 100 results would be dear to make again, but all they share was computed once: so the bound holds."""
    graph = Graph()
    shared = graph.add("low_rank", [load(graph, 0)], {"rank": 4})
    results = [graph.add("scale", [shared], {"factor": float(number + 2)}) for number in range(100)]
    verdicts = decide(asked(graph, results), NOMINAL, table_costs())
    found = kept(verdicts)
    assert 0 < len(found) < 100
    assert sum(verdicts[node].write for node in found) * GUARD <= 1000e-9 * ELEMENTS * 1.2


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Graph, tuple[Candidate, ...]]:
    """A graph of sums of earlier values, some of which are candidates."""
    graph = Graph()
    values = [load(graph, number) for number in range(3)]
    candidates = []
    for number in range(draw(st.integers(1, 12))):
        inputs = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
        op = draw(st.sampled_from(["weighted_sum", "consensus", "karcher"]))
        values.append(graph.add(op, inputs, {"number": number}))
        if draw(st.booleans()):
            uses = draw(st.sampled_from([UNREAD, 1.0, 1.0, 5.0]))
            candidates.append(Candidate(values[-1], uses, draw(st.integers(0, 9)) == 0))
    return graph, tuple(candidates)


OP_COSTS = st.fixed_dictionaries({op: st.floats(0.1, 1000.0) for op in ("weighted_sum", "consensus", "karcher")})
ROOMS = st.one_of(st.none(), st.integers(0, 40_000_000))


@settings(max_examples=60, deadline=None)
@given(graphs(), OP_COSTS, ROOMS)
def test_keeping_costs_a_bounded_share_of_a_first_run(
    made: tuple[Graph, tuple[Candidate, ...]], own: dict[str, float], room: int | None
) -> None:
    """What the rule decides to write takes at most 1/GUARD of what computing everything takes; and it has room."""
    graph, candidates = made
    question = Question(graph, Known(), candidates, range(len(graph)))
    verdicts = decide(question, NOMINAL, costs(**own), room=lambda: room)
    orders = {candidate.node for candidate in candidates if candidate.is_asked}
    chosen = [verdict for verdict in verdicts.values() if verdict.is_kept and verdict.node not in orders]
    reading = 3 * (2 * ELEMENTS / NOMINAL.load + VALUE_SECONDS)
    computing = [VALUE_SECONDS + own[node.op] * len(node.inputs) * ELEMENTS * 1e-9 for node in graph if node.inputs]
    everything = reading + sum(computing)
    most_uses = max([1.0, *(verdict.uses for verdict in chosen)])
    assert sum(verdict.write for verdict in chosen) <= everything / GUARD * most_uses * 1.001
    if room is not None:
        left = room - sum(verdicts[node].nbytes for node in orders)
        assert sum(verdict.nbytes for verdict in chosen) <= max(0, left)
    assert orders <= set(kept(verdicts))


@settings(max_examples=60, deadline=None)
@given(graphs(), OP_COSTS, ROOMS, st.floats(1.0, 100.0), st.data())
def test_what_is_costlier_to_compute_is_not_dropped(
    made: tuple[Graph, tuple[Candidate, ...]],
    own: dict[str, float],
    room: int | None,
    factor: float,
    data: st.DataObject,
) -> None:
    """A kept result whose last operation becomes slower, all else as it was, is kept."""
    graph, candidates = made
    question = Question(graph, Known(), candidates, range(len(graph)))
    found = kept(decide(question, NOMINAL, costs(**own), room=lambda: room))
    if not found:
        return
    node = data.draw(st.sampled_from(found))
    slower = Graph()
    for value in graph:  # the same, but that one operation has a name of its own
        slower._insert(
            value.id,
            "drop" if value.id == node else value.op,
            value.kind,
            value.inputs,
            value.parameters,
            value.dtype,
            value.shape,
            value.key,
            value.source,
        )
    dearer = costs(**own, drop=own[graph[node].op] * factor)
    assert decide(replace(question, graph=slower), NOMINAL, dearer, room=lambda: room)[node].is_kept


@settings(max_examples=30, deadline=None)
@given(graphs(), OP_COSTS)
def test_the_same_question_has_the_same_answer(
    made: tuple[Graph, tuple[Candidate, ...]], own: dict[str, float]
) -> None:
    """Nothing but the arguments decides."""
    graph, candidates = made
    question = Question(graph, Known(), candidates, range(len(graph)))
    assert decide(question, NOMINAL, costs(**own)) == decide(question, NOMINAL, costs(**own))


def test_what_is_at_stake_counts_each_step_once() -> None:
    """A chain of three costs three steps, not one and two and three; what is kept anyway is not at stake."""
    graph, results = chain(3)
    slow = costs(scale=100.0)
    assert seconds_at_stake(asked(graph, results), slow) == pytest.approx(300e-9 * ELEMENTS, rel=0.1)
    assert seconds_at_stake(asked(graph, results, always=results), slow) == 0.0
