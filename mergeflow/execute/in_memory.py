"""Evaluating programs over tensors in memory: the same sweeps and kernels as a run's, so the same bytes.

A tensor is read in the place of a file, and a result is written to new memory in the place of a shard. There is no
cache, and no scratch file: what a program keeps between its passes stays in memory, however large.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from blake3 import blake3

from mergeflow.errors import RunError
from mergeflow.execute.buffers import memory, torch_dtype
from mergeflow.execute.engine import evaluate
from mergeflow.execute.inputs import CachedTensor
from mergeflow.execute.records import Settings
from mergeflow.graph.memory import BLOCK_ELEMENTS, LEAST_BLOCK_ELEMENTS, Budget, allocate
from mergeflow.graph.program import Instruction, Program, Sink
from mergeflow.methods.kernels.protocols import Record
from mergeflow.models.hashing import prefix
from mergeflow.models.records import TensorSource

# Whatever a program keeps has room in memory.
BOUNDLESS = 1 << 62


class TensorsInMemory:
    """Tensors in the place of input files. They are read, never written; one that is not contiguous is copied once."""

    def __init__(self, tensors: Mapping[TensorSource, torch.Tensor]) -> None:
        self.bytes_read = 0
        self._flat = {source: _flat_bytes(tensor) for source, tensor in tensors.items()}

    def read(self, source: TensorSource, start: int, out: memoryview) -> None:
        """Fill `out` with bytes of a tensor, from byte `start` of it on."""
        if out:
            torch.frombuffer(out, dtype=torch.uint8).copy_(self._flat[source][start : start + len(out)])

    def will_read(self, source: TensorSource) -> None:
        """Nothing to prepare."""

    def plain(self, source: TensorSource) -> tuple[int, int] | None:
        """None: it lies in no file."""
        return None

    def digest(self, source: TensorSource) -> str:
        """What names a tensor's contents in keys: the digest it has in a file."""
        hasher = blake3(prefix(source))
        hasher.update(memory(self._flat[source].cpu()))
        return hasher.hexdigest()


def _flat_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


class _Results:
    """New tensors for the sinks of one program."""

    def __init__(self, program: Program) -> None:
        self._bytes = {sink.name: torch.empty(_nbytes(program, sink), dtype=torch.uint8) for sink in program.sinks}

    def write(self, sink: Sink, start_byte: int, block: memoryview) -> None:
        memory(self._bytes[sink.name])[start_byte : start_byte + len(block)] = block

    def record(self, instruction: Instruction, record: Record) -> None:
        """Statistics are not kept."""

    def tensors(self, program: Program) -> dict[str, torch.Tensor]:
        """Each sink's value, in its shape, on the host."""
        found = {}
        for sink in program.sinks:
            dtype = program.instructions[sink.instruction].dtype
            assert dtype is not None  # a sink is a tensor
            found[sink.name] = self._bytes[sink.name].view(torch_dtype(dtype.name)).reshape(program.shape)
        return found


def _nbytes(program: Program, sink: Sink) -> int:
    dtype = program.instructions[sink.instruction].dtype
    assert dtype is not None  # a sink is a tensor
    return program.size * dtype.itemsize


def evaluate_programs(
    programs: Sequence[Program],
    tensors: TensorsInMemory,
    device: torch.device,
    threads: int,
    *,
    allow_non_finite: bool,
) -> dict[str, torch.Tensor]:
    """The values of all sinks by name, in new memory on `device`.

    Raises:
        RunError: a user's method failed, or a result has a NaN or infinity that no input had.
    """
    settings = Settings(_budget(programs), str(device), None, "", allow_non_finite)
    stop = threading.Event()

    def compute(program: Program) -> dict[str, torch.Tensor]:
        results = _Results(program)
        evaluated = evaluate(program, settings, tensors, _no_cache, results, lambda *_: _go_on(stop))
        made = [k for k, fault in evaluated.not_finite.items() if not fault.inherited]
        if made and not allow_non_finite:
            sink, index = program.sinks[made[0]], evaluated.not_finite[made[0]].index
            raise RunError(f"{sink.name} would have a NaN or infinity at element {index} that none of its inputs has")
        return {name: tensor.to(device) for name, tensor in results.tensors(program).items()}

    # Threads of our own, for those that compute keep their buffers and have torch use no others beside them.
    before = torch.get_num_threads()
    found: dict[str, torch.Tensor] = {}
    try:
        with ThreadPoolExecutor(max(1, min(threads, len(programs))), thread_name_prefix="merge") as pool:
            try:
                for made in pool.map(compute, programs):
                    found |= made
            finally:
                stop.set()
    finally:
        torch.set_num_threads(before)
    return found


class _Stopped(Exception):
    """Another program failed."""


def _go_on(stop: threading.Event) -> None:
    if stop.is_set():
        raise _Stopped


def _budget(programs: Sequence[Program]) -> Budget:
    """Blocks no longer than the largest tensor needs, and room for all that any program keeps."""
    most = max((program.size for program in programs), default=0)
    block = LEAST_BLOCK_ELEMENTS
    while block < min(most, BLOCK_ELEMENTS):
        block *= 2
    share = max((allocate(it, BOUNDLESS, retain_inputs=False).arena_bytes for it in programs), default=0)
    return Budget(1, share, block)


def _no_cache(key: str) -> CachedTensor:
    raise AssertionError(f"{key}: nothing was planned to come from a cache")
