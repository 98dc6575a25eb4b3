"""Running one task: what a thread here, or a worker of a cluster, is asked to do.

A task and its settings travel as small frozen records and so does what it returns; tensors never do. Everything a
worker needs besides is on disk: the models, the cache, the output's shard files.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from typing import TYPE_CHECKING

from mergeflow.cache.open import open_cache
from mergeflow.cache.place import CachePlace
from mergeflow.cache.store import Cache
from mergeflow.cache.tensors import TensorWriter
from mergeflow.dtypes import DType
from mergeflow.errors import CorruptEntry, RunError
from mergeflow.execute.cache_full import CacheFull, has_room
from mergeflow.execute.compared import ComparedFiles
from mergeflow.execute.engine import Evaluated, evaluate
from mergeflow.execute.files import InputFiles, OutputFiles, Turns, writing
from mergeflow.execute.input_digests import keyed
from mergeflow.execute.records import InputDigests, Settings, TaskResult
from mergeflow.graph.program import Instruction, Program, Sink
from mergeflow.graph.tasks import Task
from mergeflow.methods.ops import OPS

if TYPE_CHECKING:
    import torch

Moved = Callable[[int, int], None]
Outputs = OutputFiles | ComparedFiles


def ignore_bytes(read: int, written: int) -> None:
    """For a task whose progress nobody watches."""


def run_task(task: Task, settings: Settings, moved: Moved = ignore_bytes) -> TaskResult:
    """Bring every value of a task to its place.

    Raises:
        RunError: an input changed, the disk is full, or a result has a NaN no input had.
        CorruptEntry: a cached tensor turned out damaged.
    """
    began = time.perf_counter()
    done = [_run_program(program, settings, moved) for program in task.programs]
    return TaskResult(
        task=task.name,
        tensors=tuple(name for result in done for name in result.tensors),
        read=sum(result.read for result in done),
        written=sum(result.written for result in done),
        cache_read=sum(result.cache_read for result in done),
        cache_written=sum(result.cache_written for result in done),
        seconds=time.perf_counter() - began,
        same_as={name: same for result in done for name, same in result.same_as.items()},
        warnings=tuple(warning for result in done for warning in result.warnings),
        inputs=InputDigests(
            {source: digest for result in done for source, digest in result.inputs.digests.items()},
            frozenset(file for result in done for file in result.inputs.quiet),
            tuple(key for result in done for key in result.inputs.known),
        ),
        different={name: first for result in done for name, first in result.different.items()},
    )


def compute_tensor(program: Program, settings: Settings) -> torch.Tensor:
    """The value of a program's one sink, whole, in memory: its shape and dtype, on the CPU."""
    import torch

    from mergeflow.execute.buffers import memory, torch_dtype

    last = program.instructions[program.sinks[0].instruction]
    assert last.dtype is not None  # a sink is a tensor
    store = _store(settings.cache)
    whole = torch.empty(program.size * last.dtype.itemsize, dtype=torch.uint8)
    with InputFiles() as files:
        destination = _InMemory(memory(whole), _Records(store))
        evaluate(program, settings, files, _opener(program, store, _store(settings.parts)), destination, ignore_bytes)
    return whole.view(torch_dtype(last.dtype.name)).reshape(program.shape)


def _run_program(program: Program, settings: Settings, moved: Moved) -> TaskResult:
    store, parts = _store(settings.cache), _store(settings.parts)
    parts_stay = not settings.allow_non_finite
    program, hashed = keyed(program, store, moved)
    with (
        InputFiles() as files,
        ComparedFiles() if settings.compare else OutputFiles(_turns()) as outputs,
        _Results(program, store, parts, outputs, parts_stay=parts_stay) as results,
    ):
        evaluation = evaluate(program, settings, files, _opener(program, store, parts), results, moved)
        warnings = _check_finite(program, evaluation, settings)
        results.publish(_made_non_finite(program, evaluation))
        warnings += results.warnings
        warnings += store.warnings() if store is not None else ()
    names = tuple((sink.output, sink.name) for sink in program.sinks if sink.place is not None)
    return TaskResult(
        task="",
        tensors=names,
        read=files.bytes_read + hashed.nbytes,
        written=results.written,
        cache_read=evaluation.cache_bytes_read,
        cache_written=results.cache_written,
        same_as={
            (program.sinks[k].output, program.sinks[k].name): tuple(program.instructions[i].key for i in sorted(same))
            for k, same in evaluation.same_as.items()
            if same and program.sinks[k].place is not None
        },
        warnings=warnings,
        inputs=hashed,
        different=_differences(program, outputs) if isinstance(outputs, ComparedFiles) else {},
    )


def _differences(program: Program, compared: ComparedFiles) -> dict[tuple[str, str], int]:
    """For each tensor that is not what its file holds, the first element that differs."""
    found = {}
    for sink in program.sinks:
        dtype = program.instructions[sink.instruction].dtype
        if sink.place is None or dtype is None:
            continue
        first = compared.first_difference(sink.place.path, sink.place.offset, program.size * dtype.itemsize)
        if first is not None:
            found[sink.output, sink.name] = first // dtype.itemsize
    return found


class _Records:
    """Where statistics go: the cache, when there is one."""

    def __init__(self, store: Cache | None) -> None:
        self.written = 0
        self.full = CacheFull()
        self._store = store

    def keep(self, instruction: Instruction, record: Mapping[str, object]) -> None:
        if self._store is not None and instruction.key and instruction.keep:
            with _caching(self.full):
                self.written += self._store.write_record(instruction.key, dict(record), _about(instruction))


class _InMemory:
    """A destination in memory, for one tensor."""

    def __init__(self, whole: memoryview, records: _Records) -> None:
        self._whole = whole
        self._records = records

    def write(self, sink: Sink, start_byte: int, block: memoryview) -> None:
        self._whole[start_byte : start_byte + len(block)] = block

    def record(self, instruction: Instruction, record: Mapping[str, object]) -> None:
        self._records.keep(instruction, record)


class _Results:
    """Where a program's results go: shard files, the cache when there is one, and the folder for parts.

    A full cache fails nothing: what has no room there is not kept (`warnings` says so), and parts of views, which
    others wait for, go to the folder for parts.

    Args:
        parts_stay: whether parts of views may stay in the cache.
    """

    def __init__(
        self, program: Program, store: Cache | None, parts: Cache | None, outputs: Outputs, *, parts_stay: bool
    ) -> None:
        self.written = 0
        self._parts = parts
        self._parts_stay = parts_stay
        self._tensor_bytes = 0
        self._records = _Records(store)
        self._program = program
        self._store = store
        self._outputs = outputs
        self._writers: dict[str, TensorWriter | None] = {}
        self._places: dict[str, Cache | None] = {}

    @property
    def warnings(self) -> tuple[str, ...]:
        return (self._records.full.message,) if self._records.full.happened else ()

    @property
    def cache_written(self) -> int:
        """Bytes of records and tensors put into the cache."""
        return self._records.written + self._tensor_bytes

    def __enter__(self) -> _Results:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            if writer is not None:
                writer.abort()

    def write(self, sink: Sink, start_byte: int, block: memoryview) -> None:
        if sink.place is not None:
            self._outputs.write(sink.place.path, sink.place.offset + start_byte, block)
            self.written += len(block)
            return
        writer = self._writer(sink)
        if writer is None:
            return
        if sink.is_part:
            with writing("the cache"):
                writer.write(block)
        elif not self._records.full.absorbs(lambda: writer.write(block)):
            self._writers[self._program.instructions[sink.instruction].key] = None  # it has dropped its work itself

    def record(self, instruction: Instruction, record: Mapping[str, object]) -> None:
        self._records.keep(instruction, record)

    def publish(self, spoiled: Set[int]) -> None:
        """Make the cached tensors of the program visible; called when all of it has succeeded.

        Args:
            spoiled: instructions with a NaN or infinity that no input had. They are not kept: read back, it would
                count as one the inputs had.
        """
        for sink in self._program.sinks:
            if sink.place is None and (sink.is_part or sink.instruction not in spoiled):
                writer = self._writer(sink)
                with _caching(None if sink.is_part else self._records.full):
                    nbytes = writer.publish() if writer is not None else 0
                    self._tensor_bytes += nbytes if self._place(sink) is self._store else 0
                del self._writers[self._program.instructions[sink.instruction].key]

    def _place(self, sink: Sink) -> Cache | None:
        """Where a value without a place in an output goes."""
        instruction = self._program.instructions[sink.instruction]
        if instruction.key not in self._places:
            stays = not sink.is_part or (self._parts_stay and instruction.keep and self._has_room(instruction))
            self._places[instruction.key] = self._store if self._store is not None and stays else self._parts
        return self._places[instruction.key]

    def _has_room(self, instruction: Instruction) -> bool:
        """Whether the cache's disk has room for a value, and as much again for what others write meanwhile."""
        if self._store is None or instruction.dtype is None:
            return False
        return has_room(self._store, 2 * self._program.size * instruction.dtype.itemsize)

    def _writer(self, sink: Sink) -> TensorWriter | None:
        instruction = self._program.instructions[sink.instruction]
        if instruction.key not in self._writers:
            self._writers[instruction.key] = None
            place = self._place(sink)
            assert place is not None  # tensors for the cache are planned only with one, and parts with room for them
            assert instruction.dtype is not None  # a sink is a tensor
            with _caching(None if sink.is_part else self._records.full):
                self._writers[instruction.key] = place.create_tensor(
                    instruction.key, instruction.dtype, self._program.shape, _about(instruction)
                )
        return self._writers[instruction.key]


@contextmanager
def _caching(full: CacheFull | None) -> Iterator[None]:
    """For writing to the cache: a value whose folder somebody removes meanwhile is not kept, and that is all.

    Args:
        full: notes that the disk is full, where that does not matter either.
    """
    with writing("the cache"), suppress(FileNotFoundError), full or nullcontext():
        yield


def _about(instruction: Instruction) -> dict[str, object]:
    return {"op": instruction.op, "version": OPS[instruction.op].version if instruction.op in OPS else 0}


def _made_non_finite(program: Program, evaluation: Evaluated) -> frozenset[int]:
    return frozenset(program.sinks[k].instruction for k, fault in evaluation.not_finite.items() if not fault.inherited)


def _check_finite(program: Program, evaluation: Evaluated, settings: Settings) -> tuple[str, ...]:
    warnings = []
    for k, fault in evaluation.not_finite.items():
        sink = program.sinks[k]
        if sink.place is None and not sink.is_part:
            continue  # on its way to an output, which tells
        if fault.inherited:
            warnings.append(f"{sink.name} has a NaN or infinity at element {fault.index}, as its inputs have")
            continue
        message = f"{sink.name} has a NaN or infinity at element {fault.index} that none of its inputs had"
        if not settings.allow_non_finite:
            where = f" of step {sink.output}" if sink.output else ""
            raise RunError(f"{message}; look at the parameters and dtype{where}")
        warnings.append(message)
    return tuple(warnings)


def _store(where: CachePlace | str | None) -> Cache | None:
    return open_cache(where) if where is not None else None


def _opener(program: Program, store: Cache | None, parts: Cache | None) -> Callable[[str], _OpenTensor]:
    expected = {it.key: it.dtype for it in program.instructions if it.kind == "cached"}

    def open_tensor(key: str) -> _OpenTensor:
        if parts is not None and parts.lookup([key]):
            return _OpenTensor(parts, key)
        if store is None:
            raise CorruptEntry(key, "there is no cache to read it from")
        opened = _OpenTensor(store, key)
        if key in expected:
            opened.check(expected[key], program.shape)
        return opened

    return open_tensor


class _OpenTensor:
    """A cached tensor, as an evaluation reads it."""

    def __init__(self, store: Cache, key: str) -> None:
        self._store = store
        self._key = key
        self._reader = store.open_tensor(key)

    def check(self, dtype: DType | None, shape: tuple[int, ...]) -> None:
        """CorruptEntry unless it is of this dtype and shape: a shared cache may hold anything under a key."""
        found = (self._reader.dtype, self._reader.shape)
        if found != (dtype, shape):
            self._reader.close()
            self._store.discard(self._key)  # here, too, when the run was asked for elsewhere
            raise CorruptEntry(self._key, f"it is {_described(*found)} where {_described(dtype, shape)} is needed")

    def read_into(self, start: int, out: memoryview) -> None:
        self._reader.read_into(start, out)


def _described(dtype: DType | None, shape: tuple[int, ...]) -> str:
    return f"a tensor of {dtype.name if dtype else '?'}{list(shape)}"


@cache
def _turns() -> Turns:
    return Turns()
