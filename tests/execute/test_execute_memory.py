"""Where kept values lie: no two in one place at one time, all of it in the share, and no more for more steps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import FLOATS, graphs, program_of, slerp_chain, source, ties_chain

from mergeflow.graph.memory import (
    BLOCK_BUFFERS,
    DEFAULT_SHARE_BYTES,
    PROCESS_BYTES,
    Budget,
    Keep,
    MiB,
    Storage,
    allocate,
    block_length,
    make_budget,
    peak_bytes,
)
from mergeflow.graph.nodes import Graph
from mergeflow.graph.program import Pass, Program, to_gather
from mergeflow.methods.schema import WHOLE_COPIES


def lifetime(program: Program, instruction: int) -> tuple[int, int]:
    """The first and the last pass in which a kept value is put or looked at."""
    passes = program.passes
    stored = [number for number, sweep in enumerate(passes) if instruction in (*sweep.store, *sweep.whole)]
    read = [number for number, sweep in enumerate(passes) if instruction in (*sweep.read_back, *sweep.evaluate)]
    read += [number for number, sweep in enumerate(passes) if instruction in gathered(program, sweep)]
    return min(stored + read), max(stored + read)


def gathered(program: Program, sweep: Pass) -> set[int]:
    """The kept values that the operations on whole tensors of a pass are made of; inputs lie whole in files."""
    return {j for i in sweep.whole for j in to_gather(program.instructions, i)}


def overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two closed ranges have something in common."""
    return one[0] <= other[1] and other[0] <= one[1]


def extent(keep: Keep) -> tuple[int, int]:
    return keep.offset, keep.offset + keep.nbytes - 1


def expect_sound(program: Program, share: int) -> Storage:
    storage = allocate(program, share)
    for keep in storage.keeps:
        dtype = program.instructions[keep.instruction].dtype
        assert dtype is not None
        assert keep.nbytes >= program.size * dtype.itemsize
        assert extent(keep)[1] < (storage.arena_bytes if keep.home == "memory" else storage.file_bytes)
    for one, other in combinations(storage.keeps, 2):
        together = overlap(lifetime(program, one.instruction), lifetime(program, other.instruction))
        assert not (together and one.home == other.home and overlap(extent(one), extent(other)))
    assert storage.arena_bytes <= share
    kept = {keep.instruction for keep in storage.keeps}
    assert {i for sweep in program.passes for i in sweep.read_back} <= kept, "what is stored is always somewhere"
    assert {i for sweep in program.passes for i in gathered(program, sweep)} <= kept, "and so is what is made whole"
    return storage


shares = st.sampled_from([0, 4096, 50_000, 200_000, 1 << 30])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data(), dtypes=st.lists(st.sampled_from(FLOATS), min_size=1, max_size=3), share=shares)
def test_any_program(data: st.DataObject, dtypes: list[str], share: int) -> None:
    """In any graph, no two values that live at once share a byte, and the arena stays in the thread's share."""
    graph, wanted = data.draw(graphs([source(number, (100, 100), dtype) for number, dtype in enumerate(dtypes)]))
    for node in wanted:
        expect_sound(program_of(graph, [node]), share)


@pytest.mark.parametrize("make", [slerp_chain, ties_chain])
@pytest.mark.parametrize("share", [0, 100_000, 200_000, 1 << 30])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_chains(make: Callable[[int], Program], share: int, steps: int) -> None:
    """The same of chains of any length, whatever part of them goes to a scratch file."""
    expect_sound(make(steps), share)


@pytest.mark.parametrize("make", [slerp_chain, ties_chain])
@pytest.mark.parametrize("share", [0, 100_000, 200_000, 1 << 30])
def test_more_steps_take_no_more_room(make: Callable[[int], Program], share: int) -> None:
    """The arena and the scratch file of forty chained steps are those of ten: places are used again."""
    storages = [allocate(make(steps), share) for steps in (10, 20, 40)]
    assert len({(storage.arena_bytes, storage.file_bytes) for storage in storages}) == 1


@pytest.mark.parametrize("make", [slerp_chain, ties_chain])
@pytest.mark.parametrize("shape", [(8192, 4096), (32000, 2048)])
def test_the_peak_of_two_steps_is_that_of_twenty(make: Callable[..., Program], shape: tuple[int, int]) -> None:
    """For tensors that fill the default share, the stated peak is the same for 2 and for 20 chained steps."""
    budget = make_budget(None, 2, 16 << 30)
    peaks = {peak_bytes([make(steps, shape)], budget) for steps in (2, 20)}
    assert len(peaks) == 1
    assert peaks.pop() <= PROCESS_BYTES + 2 * (8 * MiB + DEFAULT_SHARE_BYTES + budget.block_bytes)


def row_program(shape: tuple[int, ...]) -> Program:
    graph = Graph()
    pair = [graph.load(source(number, shape)) for number in range(2)]
    return program_of(graph, [graph.add("nuslerp_rows", pair, {"t": 0.5})])


@pytest.mark.parametrize(
    ("shape", "length"),
    [((9, 11008), 5 * 11008), ((9, 65536), 65536), ((2, 100_000), 100_000), ((300_000,), 300_000), ((), 65536)],
)
def test_blocks_are_whole_rows_where_an_operation_needs_them(shape: tuple[int, ...], length: int) -> None:
    """As many rows as fit, at least one, however long: and the stated peak knows how long."""
    program = row_program(shape)
    assert block_length(program, 65536) == length
    assert block_length(slerp_chain(1, shape), 65536) == 65536
    longer = peak_bytes([program], Budget(2, 0, 65536)) - peak_bytes([slerp_chain(1)], Budget(2, 0, 65536))
    assert longer == 2 * BLOCK_BUFFERS * 4 * max(0, length - 65536)


def test_whole_tensors_are_part_of_the_peak() -> None:
    """An operation on whole tensors adds its inputs and what its kernel makes, once for each thread."""
    graph = Graph()
    delta = graph.add("task_vector", [graph.load(source(number, (512, 512))) for number in range(2)], {})
    program = program_of(graph, [graph.add("low_rank", [delta], {"rank": 4})])
    arena = 2 * 512 * 512 * 4  # the delta, kept for it, and the result, kept for the next pass
    budget = Budget(2, 1 << 30)
    expected = (1 + WHOLE_COPIES) * 512 * 512 * 4 + arena
    without = program_of(graph, [graph.add("scale", [delta], {"factor": 2.0})])
    assert peak_bytes([program], budget) - peak_bytes([without], budget) == 2 * expected


@pytest.mark.parametrize("make", [slerp_chain, ties_chain])
def test_a_native_evaluation_takes_less_and_no_more_for_more_steps(make: Callable[..., Program]) -> None:
    """Without torch, what is kept of large tensors is in a file: a chain's peak is its longest pass's buffers."""
    budget = make_budget(None, 2, 16 << 30)
    peaks = [peak_bytes([make(steps, (2048, 5632))], budget, lambda _: True) for steps in (6, 20)]
    assert peaks[0] == peaks[1] < PROCESS_BYTES


def test_inputs_that_do_not_fit_are_not_kept() -> None:
    """An input is worth memory, and never a scratch file: it is in a file already."""
    program = slerp_chain(1)
    assert allocate(program, 0).keeps == ()
    [one] = allocate(program, 30_000).keeps
    assert (one.home, len(allocate(program, 1 << 30).keeps)) == ("memory", 2)


@given(memory=st.none() | st.integers(0, 1 << 36), threads=st.integers(1, 64), free=st.integers(0, 1 << 38))
def test_any_budget(memory: int | None, threads: int, free: int) -> None:
    """Blocks are powers of two of at least 65536 elements; buffers and shares keep to the wish where they can."""
    budget = make_budget(memory, threads, free)
    assert budget.block_elements % 65536 == 0
    assert budget.block_elements & (budget.block_elements - 1) == 0
    assert budget.share_bytes >= 0
    least = BLOCK_BUFFERS * 65536 * 4
    wish = memory if memory is not None else free // 4
    assert threads * (budget.share_bytes + budget.block_bytes) <= max(wish, threads * least)


def test_a_small_wish_shortens_blocks() -> None:
    """The less memory, the shorter the blocks, down to the piece in which sums are taken."""
    lengths = [make_budget(memory * MiB, 2, 1 << 40).block_elements for memory in (1024, 40, 1)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] == 65536
    assert isinstance(make_budget(1, 2, 1 << 40), Budget)
