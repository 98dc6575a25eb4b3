"""How much memory a run takes, stated before it starts, and what each program may keep in it.

    peak = process + threads x (block buffers + kept values + whole tensors)

*Process* is Python with the libraries loaded, measured: with torch, or without it where the native library evaluates
every program. *Block buffers* are a fixed number of blocks.
*Kept values* (inputs retained and values stored between the passes of a program) live in one arena per thread, of at
most the thread's share of the budget; what does not fit is read again (inputs) or goes through a scratch file (stored
values). So the peak does not grow with the model, the tensor or the number of steps. The native evaluation keeps only
small values in memory: a scratch file costs it no more time.

Two kinds of operation ask for more than the budget, because they cannot do with less. A row-wise one has whole rows in
a block, at least one, however long. One on *whole tensors* has those in memory, and what its kernel makes beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mergeflow.dtypes import compute_dtype
from mergeflow.graph.program import READ, Pass, Program, Reading, to_gather
from mergeflow.methods.ops import OPS
from mergeflow.methods.schema import WHOLE_COPIES

MiB = 1 << 20

# Resident size of Python with torch, zarr, dask and distributed imported (CPU build of torch 2.13), and of one
# worker thread's stacks and allocator pools: measured with the benchmark, rounded up.
PROCESS_BYTES = 330 * MiB
THREAD_BYTES = 8 * MiB

# The same without torch, and what a thread of the native evaluation keeps in memory: values of small tensors. What is
# larger goes through the page cache, a block at a time: a chain of 20 slerps takes 100 MB so, instead of 269.
NATIVE_PROCESS_BYTES = 64 * MiB
NATIVE_SHARE_BYTES = 8 * MiB
# The longest buffers of a value that the native evaluation writes to a file, and of one that it reads or keeps.
NATIVE_SINK_BYTES = 4 * MiB
NATIVE_VALUE_BYTES = 2 * MiB
# What reading a view takes: a block in the formats of its parts and in float64, an adapter or a row map. Measured with
# adapters of rank 16, and with vocabularies of 32,000 tokens: 8 and 10 MiB.
VIEW_BYTES = 16 * MiB

# Twice what fits best into the processor's cache: between two calls into torch the threads of a process take turns, and
# with fewer, longer calls they wait less for each other (slerp of 1.1B parameters: 8.9 s instead of 11.1 s).
BLOCK_ELEMENTS = 1 << 19
LEAST_BLOCK_ELEMENTS = 1 << 16
BLOCK_BUFFERS = 16  # values alive at once plus a kernel's scratch, at most, in the methods there are
FULL_BLOCK_BYTES = BLOCK_BUFFERS * BLOCK_ELEMENTS * 4
# Holds what DELLA of three models stores of a 2048 x 5632 tensor: three values in float32.
DEFAULT_SHARE_BYTES = 144 * MiB
ALIGNMENT = 4096

Home = Literal["memory", "file"]


@dataclass(frozen=True, slots=True)
class Budget:
    """What one thread may use. `share_bytes` bounds its arena; `block_elements` is the length of a block."""

    threads: int
    share_bytes: int
    block_elements: int = BLOCK_ELEMENTS

    @property
    def block_bytes(self) -> int:
        """Bytes of one thread's block buffers."""
        return BLOCK_BUFFERS * self.block_elements * 4


@dataclass(frozen=True, slots=True)
class Keep:
    """A value kept between passes: where, and at which offset of the arena or of the scratch file."""

    instruction: int
    home: Home
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Storage:
    """What one program keeps, and how long an arena and a scratch file it needs for that."""

    keeps: tuple[Keep, ...]
    arena_bytes: int
    file_bytes: int


def least_bytes(threads: int) -> int:
    """The least that ``--memory`` can ask for: every thread's blocks, as small as they get."""
    return threads * BLOCK_BUFFERS * LEAST_BLOCK_ELEMENTS * 4


def make_budget(memory: int | None, threads: int, free_bytes: int) -> Budget:
    """The budget of a run from ``--memory`` (bytes for buffers; None: the least that keeps full speed).

    Without a wish, buffers take no more than a quarter of what is free. A wish too small for the block buffers
    makes the blocks smaller, down to 65536 elements.
    """
    wish = memory if memory is not None else min(threads * (DEFAULT_SHARE_BYTES + FULL_BLOCK_BYTES), free_bytes // 4)
    block = BLOCK_ELEMENTS
    while block > LEAST_BLOCK_ELEMENTS and BLOCK_BUFFERS * block * 4 > wish // threads // 2:
        block //= 2
    share = max(0, wish // threads - BLOCK_BUFFERS * block * 4)
    return Budget(threads, share, block)


def block_length(program: Program, most: int) -> int:
    """Elements of a program's blocks: `most` (the budget's), or as many whole rows as fit into it, at least one."""
    return most if program.row is None else max(1, most // program.row) * program.row


def allocate(program: Program, share_bytes: int, *, retain_inputs: bool = True) -> Storage:
    """Where the kept values of a program lie: stored values first, then the inputs read most often.

    Values whose passes do not overlap share the same bytes, of the arena and of the scratch file alike. Inputs that do
    not fit are not kept at all, and none are unless `retain_inputs`.
    """
    placed: list[tuple[Keep, int, int]] = []
    wishes = [wish for wish in _wishes(program) if retain_inputs or not wish[3]]
    for i, first, last, is_input in wishes:
        dtype = program.instructions[i].dtype
        assert dtype is not None  # only tensors are kept
        nbytes = -(-program.size * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        alive = [keep for keep, start, end in placed if start <= last and first <= end]
        offset = _first_gap([keep for keep in alive if keep.home == "memory"], nbytes)
        if offset + nbytes <= share_bytes:
            placed.append((Keep(i, "memory", offset, nbytes), first, last))
        elif not is_input:
            offset = _first_gap([keep for keep in alive if keep.home == "file"], nbytes)
            placed.append((Keep(i, "file", offset, nbytes), first, last))
    keeps = tuple(keep for keep, _, _ in placed)
    return Storage(keeps, arena_bytes=_end_of(keeps, "memory"), file_bytes=_end_of(keeps, "file"))


def native_share(budget: Budget) -> int:
    """What a thread of the native evaluation may keep in memory, in bytes."""
    return min(budget.share_bytes, NATIVE_SHARE_BYTES)


def peak_bytes(
    programs: Iterable[Program], budget: Budget, is_native: Callable[[Program], bool] = lambda _: False
) -> int:
    """The most resident memory a run of these programs takes, in bytes.

    Args:
        is_native: whether the native library evaluates a program.
    """
    natively: list[Program] = []
    others: list[Program] = []
    for program in programs:
        (natively if is_native(program) else others).append(program)
    native = max((_native_bytes(program, budget) for program in natively), default=0)
    if not others:
        return NATIVE_PROCESS_BYTES + budget.threads * (THREAD_BYTES + native)
    return PROCESS_BYTES + budget.threads * (THREAD_BYTES + native + _torch_bytes(others, budget))


def _native_bytes(program: Program, budget: Budget) -> int:
    """What one thread takes to evaluate a program natively: buffers of its longest pass, and what is kept."""
    buffers = [
        NATIVE_SINK_BYTES * len(sweep.sinks)
        + NATIVE_VALUE_BYTES
        * (len(sweep.read_back) + len(sweep.store) + len(sweep.statistics) + _reads(program, sweep))
        for sweep in program.passes
    ]
    kept = allocate(program, native_share(budget), retain_inputs=False).arena_bytes
    return max(buffers, default=0) + kept + _view_bytes(program)


def _view_bytes(program: Program) -> int:
    views = [it.reading for it in program.instructions if it.reading is not None]
    return VIEW_BYTES + sum(map(_held, views)) if views else 0


def _held(reading: Reading) -> int:
    """What the views that a value is read through hold for themselves, besides a block."""
    own = OPS[reading.op].holds if reading.op else 0
    return own + sum(map(_held, reading.parts))


def _reads(program: Program, sweep: Pass) -> int:
    return sum(1 for i in sweep.evaluate if program.instructions[i].kind in READ)


def _torch_bytes(programs: Sequence[Program], budget: Budget) -> int:
    """What one thread takes to evaluate these programs with torch."""
    arena = max((allocate(program, budget.share_bytes).arena_bytes for program in programs), default=0)
    block = max((block_length(program, budget.block_elements) for program in programs), default=0)
    blocks = max(budget.block_bytes, BLOCK_BUFFERS * block * 4)
    whole = max((_whole_bytes(program) + _view_bytes(program) for program in programs), default=0)
    return blocks + arena + whole


def _whole_bytes(program: Program) -> int:
    """The most bytes that an operation on whole tensors has in memory: its inputs, and what its kernel makes."""
    most = 0
    for instruction in program.instructions:
        if instruction.kind == "whole":
            inputs = sum(1 for i in instruction.inputs if program.instructions[i].dtype is not None)
            itemsize = compute_dtype(instruction.dtype).itemsize if instruction.dtype else 0
            most = max(most, (inputs + WHOLE_COPIES) * program.size * itemsize)
    return most


def _wishes(program: Program) -> list[tuple[int, int, int, bool]]:
    """(instruction, first pass, last pass, is an input) of everything worth keeping, the most useful first."""
    stored: list[tuple[int, int, int, bool]] = []
    used = [{*sweep.read_back, *_gathered(program, sweep)} for sweep in program.passes]
    for number, sweep in enumerate(program.passes):
        for i in (*sweep.store, *sweep.whole):
            uses = [later for later, values in enumerate(used) if i in values]
            stored.append((i, number, max(uses, default=number), False))
    inputs = [(i, uses[0], uses[-1], True) for i, uses in program.reads().items() if len(uses) > 1]
    return stored + sorted(inputs, key=lambda wish: (wish[2] - wish[1], wish[0]))


def _gathered(program: Program, sweep: Pass) -> set[int]:
    """The kept values that the operations on whole tensors of a pass are made of."""
    return {j for i in sweep.whole for j in to_gather(program.instructions, i)}


def _end_of(keeps: Sequence[Keep], home: Home) -> int:
    return max((keep.offset + keep.nbytes for keep in keeps if keep.home == home), default=0)


def _first_gap(busy: Sequence[Keep], nbytes: int) -> int:
    offset = 0
    for keep in sorted(busy, key=lambda keep: keep.offset):
        if keep.offset - offset >= nbytes:
            break
        offset = max(offset, keep.offset + keep.nbytes)
    return offset
