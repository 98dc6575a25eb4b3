"""Which results are worth keeping: the rule of ``cache: auto``.

A tensor is kept when computing it again takes clearly longer than writing it once and reading it back:

    uses * again  >  GUARD * (write + uses * read)

*Again* is the time to compute it from what would still be there: model files, all statistics (but those of steps with
``cache: never``), tensors that are in the cache, and those that this very plan keeps. Each value and each input on the
way counts once, even where many paths lead to it. *Uses* is how often it will be wanted: once, when another step or a
second output reads it (somebody will change that step's parameter); as often as later candidates of a sweep need it;
and `UNREAD` times when nothing but its one output does, because there it lies already, if rounded. That steps of this
very run share a value is no reason: one program computes it once for all of them.

Results are judged in topological order. What is kept cuts the way of what comes after it: of a chain of cheap steps
every so many-th is kept, when enough work has come together, and of `n` tensors `n` short ways are walked.

**What it can cost.** Each kept tensor's writing is less than 1/GUARD of its `uses * again`, and all writing together is
held below 1/GUARD of the time that computing everything takes (times the most uses of one, where a sweep wants a value
several times): with GUARD = 2 a first run takes at most half as long again, by these rates, when not one of the values
is ever read. Where that bound, or the room, does not allow all, those that save the most per byte come first.

The rule is a pure function of the graph, of what is known and of the rates; it reads no clock and no disk. What it says
changes no key and no byte of a result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from mergeflow.graph.nodes import Graph, Node
from mergeflow.graph.tasks import Known, is_known
from mergeflow.methods.ops import OPS

# "Clearly longer": costs are estimates that may be off by a factor of two, and not every value is wanted again.
GUARD = 2.0

# How often a value is wanted again that nothing but one output needs: when the output is deleted, or gets another dtype
# or other shards. A guess. What it means: TIES in the last step is not kept, `low_rank`, a hundred times as costly, is.
UNREAD = 1 / 8

# Of a tensor however small: what one more value of a program costs, and the bytes of an entry besides its numbers (a
# folder and a document, a block of the file system each).
VALUE_SECONDS = 2e-5
ENTRY_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Rates:
    """What a machine does in a second.

    Args:
        write: bytes written to the cache's disk.
        read: bytes read from it.
        load: bytes read from model files.
        arithmetic: what an operation takes, as a multiple of its cost in the table of operations.
        entry_write: seconds that an entry takes besides its bytes when it is written.
        entry_read: the same when it is read.
        measured: the day they were measured (``2026-11-24``); empty for nominal ones.
    """

    write: float
    read: float
    load: float
    arithmetic: float
    entry_write: float
    entry_read: float
    measured: str = ""


# The machine of docs/performance.md (two virtual cores, ext4 on a virtual disk): writes of 64 MiB with fdatasync, reads
# past the page cache, medians of runs between 0.22 and 0.67 GB/s, and between 0.98 and 1.09.
NOMINAL = Rates(write=5e8, read=1e9, load=1e9, arithmetic=1.0, entry_write=2e-4, entry_read=1e-4)


def table_costs() -> dict[str, float]:
    """Nanoseconds per element and tensor input of every operation."""
    return {name: op.cost for name, op in OPS.items()}


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the rule is told of the machine and of the time after this run.

    Args:
        rates: the rates to judge by. It may ask how many seconds of computing (at nominal rates) hang on the answer, so
            that a machine is measured only when that is worth it.
        costs: nanoseconds per element and tensor input, by operation, on one core.
        room: bytes that may be kept; None for any number. Asked only when something is worth keeping.
        wanted_again: by key, how many later candidates of a sweep need a value.
        is_last_use: nothing else will ever be wanted, because the cache ends with the sweep.
    """

    rates: Callable[[Callable[[], float]], Rates] = lambda _: NOMINAL
    costs: Mapping[str, float] = field(default_factory=table_costs)
    room: Callable[[], int | None] = lambda: None
    wanted_again: Mapping[str, int] = field(default_factory=dict)
    is_last_use: bool = False


# Nothing is known of the machine but that it is like others.
NOMINALLY = Circumstances()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A result that could be kept. `uses` is how often it is wanted again; it is kept anyway when that `is_asked`."""

    node: int
    uses: float
    is_asked: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be decided, and what the answer may count on.

    Args:
        candidates: in topological order.
        needed: all that the run evaluates or reads.
        given: values that are in the cache after the run, whatever is decided.
        forgotten: nodes of steps with ``cache: never``, of which nothing is kept.
    """

    graph: Graph
    known: Known
    candidates: tuple[Candidate, ...]
    needed: Sequence[int]
    given: Set[int] = frozenset()
    forgotten: Set[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a candidate is kept, and the numbers behind it: bytes, and seconds.

    Args:
        again: to compute it again from what is still there.
        write: to write it once.
        read: to read it back once.
    """

    node: int
    uses: float
    is_kept: bool
    nbytes: int
    again: float
    write: float
    read: float

    @property
    def saves(self) -> float:
        """Seconds that keeping it saves in all."""
        return self.uses * (self.again - self.read) - self.write


def decide(
    question: Question,
    rates: Rates,
    costs: Mapping[str, float],
    threads: int = 1,
    room: Callable[[], int | None] = lambda: None,
) -> dict[int, Verdict]:
    """The verdict on every candidate, by node.

    Args:
        threads: how many compute at a time; they share the disks.
        room: bytes that may be kept. What is asked for is kept in any case, and takes of it.
    """
    seconds = _Seconds(question, rates, costs, threads)
    verdicts: dict[int, Verdict] = {}
    for candidate in question.candidates:
        i = candidate.node
        again, write, read = seconds.again(i), seconds.write(i), seconds.read(i)
        pays = candidate.uses * again > GUARD * (write + candidate.uses * read)
        is_kept = candidate.is_asked or pays
        verdicts[i] = Verdict(i, candidate.uses, is_kept, entry_bytes(question.graph[i]), again, write, read)
        if is_kept:
            seconds.put(i)
    for i in _too_many(question, verdicts, seconds, room):
        verdicts[i] = replace(verdicts[i], is_kept=False)
    return verdicts


def seconds_at_stake(question: Question, costs: Mapping[str, float], threads: int = 1) -> float:
    """About how long, at nominal rates, computing again takes what is to be decided about, each as often as wanted."""
    seconds = _Seconds(question, NOMINAL, costs, threads)
    total = 0.0
    for candidate in question.candidates:
        if not candidate.is_asked:
            total += candidate.uses * seconds.again(candidate.node)
        seconds.put(candidate.node)  # what it takes is counted once
    return total


def entry_bytes(node: Node) -> int:
    """What a tensor takes in the cache."""
    return _nbytes(node) + ENTRY_BYTES


def _nbytes(node: Node) -> int:
    return math.prod(node.shape) * node.dtype.itemsize if node.dtype else 0


def _too_many(
    question: Question, verdicts: Mapping[int, Verdict], seconds: _Seconds, room: Callable[[], int | None]
) -> Iterable[int]:
    """What pays, but not before the room is full, or the bound on what keeping may cost is reached."""
    asked = {candidate.node for candidate in question.candidates if candidate.is_asked}
    paying = [verdict for i, verdict in verdicts.items() if verdict.is_kept and i not in asked]
    if not paying:
        return []
    most = room()
    left = math.inf if most is None else most - sum(verdicts[i].nbytes for i in asked)
    time_left = seconds.everything / GUARD * max(1.0, *(verdict.uses for verdict in paying))
    if sum(it.nbytes for it in paying) <= left and sum(it.write for it in paying) <= time_left:
        return []
    dropped = [verdict.node for verdict in paying if verdict.nbytes > left]
    fitting = sorted(
        (verdict for verdict in paying if verdict.nbytes <= left), key=lambda it: (-it.saves / it.nbytes, it.node)
    )
    for number, verdict in enumerate(fitting):
        left -= verdict.nbytes
        time_left -= verdict.write
        if left < 0 or time_left < 0:  # the end: what came after it and is smaller saves less
            return dropped + [rest.node for rest in fitting[number:]]
    return dropped


class _Seconds:
    """How long things take at certain rates.

    `_own` is the time to read a value from where it is, or to compute it when its inputs are there: `_inputs`, none of
    what is read.
    """

    def __init__(self, question: Question, rates: Rates, costs: Mapping[str, float], threads: int) -> None:
        self._graph = question.graph
        self._rates = rates
        self._costs = costs
        self._per_nanosecond = 1e-9 * rates.arithmetic / max(1, threads)
        self._own: dict[int, float] = {}
        self._inputs: dict[int, Sequence[int]] = {}
        self._everything = 0.0
        for i in question.needed:
            node = self._graph[i]
            is_there = is_known(node, question.known)
            own = self._reading(node) if is_there else self._computing(node)
            self._everything += own
            if node.kind == "statistic" and i not in question.forgotten:  # will be there
                own, is_there = VALUE_SECONDS, True
            self._own[i] = own
            self._inputs[i] = () if is_there else self._computed_inputs(node)
        # What is a candidate besides is judged by what it is made of, and is there afterwards.
        for i in question.given - {candidate.node for candidate in question.candidates}:
            self.put(i)

    @property
    def everything(self) -> float:
        """To compute all that the run needs, statistics among it."""
        return self._everything

    def again(self, node: int) -> float:
        """To compute a value from what is there, statistics and model files; each of it once."""
        own, inputs = self._own, self._inputs
        total = 0.0
        seen = {node}
        waiting = [node]
        while waiting:
            i = waiting.pop()
            total += own[i]
            for j in inputs[i]:
                if j not in seen:
                    seen.add(j)
                    waiting.append(j)
        return total

    def put(self, i: int) -> None:
        """From now on, a value is there."""
        self._own[i], self._inputs[i] = self.read(i), ()

    def write(self, i: int) -> float:
        return self._rates.entry_write + _nbytes(self._graph[i]) / self._rates.write

    def read(self, i: int) -> float:
        return self._rates.entry_read + _nbytes(self._graph[i]) / self._rates.read

    def _reading(self, node: Node) -> float:
        if node.kind == "load":
            return VALUE_SECONDS + _nbytes(node) / self._rates.load
        return VALUE_SECONDS if node.kind == "statistic" else VALUE_SECONDS + self.read(node.id)

    def _computing(self, node: Node) -> float:
        size = math.prod(node.shape)
        if node.kind == "view":
            return VALUE_SECONDS + self._costs[node.op] * size * self._per_nanosecond + self._files(node, size)
        tensors = sum(1 for j in node.inputs if self._graph[j].dtype is not None)
        return VALUE_SECONDS + self._costs[node.op] * max(1, tensors) * size * self._per_nanosecond

    def _files(self, view: Node, size: int) -> float:
        """To read the ranges of files that a view is made of: of a tensor that holds more (all experts of a layer), as
        many elements as the view has."""
        files = [self._graph[j] for j in view.inputs if self._graph[j].kind == "load"]
        return sum(min(_nbytes(it), size * it.dtype.itemsize) for it in files if it.dtype) / self._rates.load

    def _computed_inputs(self, node: Node) -> Sequence[int]:
        """What is still to be added to the time of computing a value: a view's has its files in it."""
        if node.kind == "view":
            return [j for j in node.inputs if self._graph[j].kind != "load"]
        return node.inputs
