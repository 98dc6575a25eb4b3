"""Programs for the tests of execution: chains of a known length, random graphs over files, and their naive evaluation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from hypothesis import strategies as st

from mergeflow.dtypes import DType, by_name
from mergeflow.execute.buffers import torch_dtype
from mergeflow.execute.sweep import operand_dtype
from mergeflow.graph.nodes import Graph
from mergeflow.graph.program import Instruction, Place, Program
from mergeflow.graph.tasks import Known, Target, form_tasks
from mergeflow.methods.kernels.protocols import (
    Record,
    pointwise_kernel,
    rowwise_kernel,
    statistic_kernel,
    whole_kernel,
)
from mergeflow.methods.ops import OPS
from mergeflow.models.identity import identify
from mergeflow.models.records import FileIdentity, Segment, TensorSource

NOWHERE = FileIdentity("/nowhere", 0, 0, 0, 0)


def source(number: int, shape: tuple[int, ...], dtype: str = "bfloat16") -> TensorSource:
    """A tensor that nobody reads; `number` tells it from the others."""
    nbytes = math.prod(shape) * by_name(dtype).itemsize
    return TensorSource(f"tensor {number}", by_name(dtype), shape, (Segment(NOWHERE, number * nbytes, nbytes),))


def program_of(graph: Graph, values: Sequence[int], known: Known | None = None) -> Program:
    """The one program that brings these values to places of their own."""
    targets = [Target(node, f"value {k}", "out", Place("", 0)) for k, node in enumerate(values)]
    programs = [program for task in form_tasks(graph, targets, known or Known()) for program in task.programs]
    assert len(programs) == 1
    return programs[0]


def slerp_chain(steps: int, shape: tuple[int, ...] = (100, 100)) -> Program:
    """v = slerp(v, x_n) over and over, x_n one of three bf16 inputs, stored as bf16."""
    graph = Graph()
    value = graph.load(source(0, shape))
    for step in range(steps):
        other = graph.load(source(1 + step % 3, shape))
        angle = graph.add("gram", [value, other], {})
        value = graph.add("slerp", [value, other, angle], {"t": (step + 1) / 100})
    return program_of(graph, [graph.add("cast", [value], {"dtype": "bfloat16"})])


def ties_chain(steps: int, shape: tuple[int, ...] = (100, 100)) -> Program:
    """v = v + consensus of the trimmed differences of two inputs and v, over and over."""
    graph = Graph()
    value = graph.load(source(0, shape))
    for step in range(steps):
        trimmed = []
        for number in (1 + step % 3, 4):
            delta = graph.add("task_vector", [graph.load(source(number, shape)), value], {})
            threshold = graph.add("kth_magnitude", [delta], {"k": 50 + step})
            trimmed.append(graph.add("trim", [delta, threshold], {}))
        merged = graph.add("consensus", trimmed, {"weights": [0.5, 0.25], "normalize": True, "lambda": 1.0})
        value = graph.add("add", [value, merged], {})
    return program_of(graph, [graph.add("cast", [value], {"dtype": "bfloat16"})])


def sum_chain(steps: int) -> Program:
    """A chain without statistics, stored at its end."""
    graph = Graph()
    value = graph.load(source(0, (10,)))
    for step in range(steps):
        value = graph.add("add", [value, graph.load(source(1 + step % 3, (10,)))], {})
    return program_of(graph, [value])


FLOATS = ("bfloat16", "float32", "float16", "float64", "float8_e4m3fn")


@st.composite
def graphs(draw: st.DrawFn, sources: Sequence[TensorSource]) -> tuple[Graph, list[int]]:
    """A graph of the operations there are over some tensors of one shape, and the values of it that are wanted."""
    size = math.prod(sources[0].shape)
    graph = Graph({one: f"{number:064x}" for number, one in enumerate(sources)})
    values = [graph.load(one) for one in sources]
    computed: list[int] = []
    for _ in range(draw(st.integers(1, 9))):
        made = _operation(draw, graph, draw(st.sampled_from(values)), draw(st.sampled_from(values)), size)
        values.append(made)
        computed.append(made)
    wanted = [computed[-1], *draw(st.lists(st.sampled_from(computed), max_size=3, unique=True))]
    return graph, [_stored(draw, graph, node) for node in dict.fromkeys(wanted)]


def _operation(draw: st.DrawFn, graph: Graph, a: int, b: int, size: int) -> int:
    kinds = ["slerp", "trim", "rescale", "consensus", "task_vector", "sum", "scale", "rows", "whole"]
    kind = draw(st.sampled_from(kinds))
    if kind == "rows":
        return graph.add("nuslerp_rows", [a, b], {"t": draw(st.sampled_from([0.25, 1.5]))})
    if kind == "whole":
        return graph.add("low_rank", [a], {"rank": 1})
    if kind == "slerp":
        return graph.add("slerp", [a, b, graph.add("gram", [a, b], {})], {"t": draw(st.sampled_from([0.25, 0.5, 1.5]))})
    if kind == "trim":
        k = draw(st.integers(1, max(1, size)))
        return graph.add("trim", [a, graph.add("kth_magnitude", [a], {"k": k})], {})
    if kind == "rescale":
        return graph.add("rescale", [a, graph.add("magnitude_sum", [a], {}), graph.add("magnitude_sum", [b], {})], {})
    if kind == "consensus":
        return graph.add("consensus", [a, b], {"weights": [0.5, 0.3], "normalize": draw(st.booleans()), "lambda": 0.9})
    if kind == "sum":
        return graph.add("weighted_sum", [a, b], {"coefficients": [0.75, 0.3]})
    if kind == "scale":
        return graph.add("scale", [a], {"factor": draw(st.sampled_from([0.3, -1.0]))})
    return graph.add("task_vector", [a, b], {})


def _stored(draw: st.DrawFn, graph: Graph, node: int) -> int:
    dtype = draw(st.sampled_from([None, *FLOATS]))
    own = graph[node].dtype
    return (
        node
        if dtype is None or (own is not None and own.name == dtype)
        else graph.add("cast", [node], {"dtype": dtype})
    )


def write_sources(folder: Path, shape: tuple[int, ...], dtypes: Sequence[str], pieces: int = 1) -> list[TensorSource]:
    """Tensors of numbers on a coarse grid, each in `pieces` runs of bytes in files of their own, with rubbish between."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for number, name in enumerate(dtypes):
        values = ((torch.randn(shape, generator=generator) * 16).round() / 8).to(torch_dtype(name))
        content = bytes(values.contiguous().view(-1).view(torch.uint8).numpy())
        cuts = [len(content) * k // pieces for k in range(pieces + 1)]
        segments = []
        for piece, (start, stop) in enumerate(itertools.pairwise(cuts)):
            path = folder / f"{number}-{piece}"
            path.write_bytes(b"rubbish" + content[start:stop] + b"more")
            with path.open("rb") as file:
                segments.append(Segment(identify(file.fileno(), str(path)), 7, stop - start))
        found.append(TensorSource(f"tensor {number}", by_name(name), shape, tuple(segments)))
    return found


def naive(program: Program) -> dict[str, bytes]:
    """Every sink's bytes, by name: each instruction once, on whole tensors, in order."""
    tensors: dict[int, torch.Tensor] = {}
    records: dict[int, Record] = {}
    for i, instruction in enumerate(program.instructions):
        if instruction.source is not None:
            tensors[i] = _read(instruction.source)
        elif instruction.kind == "statistic":
            records[i] = _statistic(program, instruction, tensors)
        else:
            tensors[i] = _compute(program, instruction, tensors, records)
    return {sink.name: bytes(tensors[sink.instruction].view(torch.uint8).numpy()) for sink in program.sinks}


def _read(one: TensorSource) -> torch.Tensor:
    content = bytearray()
    for segment in one.segments:
        with open(segment.file.path, "rb") as file:
            file.seek(segment.offset)
            content += file.read(segment.nbytes)
    return (
        torch.frombuffer(content, dtype=torch_dtype(one.dtype.name))
        if content
        else torch.empty(0, dtype=torch_dtype(one.dtype.name))
    )


def _operands(
    program: Program, instruction: Instruction, tensors: Mapping[int, torch.Tensor]
) -> tuple[list[torch.Tensor], DType]:
    mine = [i for i in instruction.inputs if i in tensors]
    dtype = operand_dtype(instruction, [program.instructions[i] for i in mine])
    return [tensors[i].to(torch_dtype(dtype.name)) for i in mine], dtype


def _compute(
    program: Program, instruction: Instruction, tensors: Mapping[int, torch.Tensor], records: Mapping[int, Record]
) -> torch.Tensor:
    blocks, dtype = _operands(program, instruction, tensors)
    assert instruction.dtype is not None
    out = torch.empty(program.size, dtype=torch_dtype(instruction.dtype.name))
    known = [records[i] for i in instruction.inputs if i in records]
    op = OPS[instruction.op]
    if not program.size:  # kernels are never called for nothing
        return out
    if op.kind == "whole":
        shaped = [block.reshape(program.shape) for block in blocks]
        return whole_kernel(op)(shaped, known, instruction.parameters).reshape(-1)
    if op.kind == "rowwise":
        row = program.shape[-1] if program.shape else 1
        rows = [block.view(-1, row) for block in (*blocks, out)]
        scratch = _Scratch(program.size, dtype)
        rowwise_kernel(op)(
            rows[:-1], known, instruction.parameters, rows[-1], lambda place: scratch(place).view(-1, row), 0
        )
        return out
    pointwise_kernel(op)(blocks, known, instruction.parameters, out, _Scratch(program.size, dtype), 0)
    return out


def _statistic(program: Program, instruction: Instruction, tensors: Mapping[int, torch.Tensor]) -> Record:
    blocks, dtype = _operands(program, instruction, tensors)
    statistic = statistic_kernel(OPS[instruction.op])(program.size, instruction.parameters)
    record = None
    while record is None:
        if program.size:
            statistic.update(0, blocks, _Scratch(program.size, dtype))
        record = statistic.finish()
    return record


class _Scratch:
    """Buffers by number."""

    def __init__(self, size: int, dtype: DType) -> None:
        self._size, self._dtype = size, dtype
        self._buffers: dict[int, torch.Tensor] = {}

    def __call__(self, place: int) -> torch.Tensor:
        return self._buffers.setdefault(place, torch.empty(self._size, dtype=torch_dtype(self._dtype.name)))
