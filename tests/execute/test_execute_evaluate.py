"""Evaluating programs block by block: whatever the graph, the sizes and the memory, the bytes are those of whole tensors."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import FLOATS, graphs, naive, program_of, write_sources

from mergeflow.cache.store import Cache
from mergeflow.errors import RunError
from mergeflow.execute.records import Settings
from mergeflow.execute.task import compute_tensor, run_task
from mergeflow.graph.memory import Budget
from mergeflow.graph.nodes import Graph
from mergeflow.graph.program import Place, Program
from mergeflow.graph.tasks import Known, Target, Task, form_tasks
from mergeflow.models.records import TensorSource

BLOCK = 65536
SHAPES = ((), (1,), (63,), (0, 3), (BLOCK,), (BLOCK + 1,), (2, BLOCK), (5, 65601))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    return tmp_path_factory.mktemp("sources")


def sources(folder: Path, shape: tuple[int, ...], dtypes: Sequence[str], pieces: int) -> list[TensorSource]:
    """The tensors of this description, written the first time they are asked for."""
    place = folder / "-".join([*map(str, shape), *dtypes, str(pieces)])
    place.mkdir(exist_ok=True)
    return write_sources(place, shape, dtypes, pieces)


budgets = st.builds(
    Budget,
    st.just(1),
    st.sampled_from([0, 700_000, 2_000_000, 1 << 30]),
    st.sampled_from([1, 2, 7]).map(lambda n: n * BLOCK),
)
dtypes = st.lists(st.sampled_from(FLOATS), min_size=1, max_size=3)


def whole(program: Program, how: Settings) -> dict[str, bytes]:
    """The bytes of every sink, each evaluated by itself."""
    found = {}
    for sink in program.sinks:
        tensor = compute_tensor(replace(program, sinks=(sink,)), how)
        assert tensor.shape == program.shape
        found[sink.name] = bytes(tensor.view(-1).view(torch.uint8).numpy())
    return found


@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), shape=st.sampled_from(SHAPES), dtypes=dtypes, pieces=st.integers(1, 3), budget=budgets)
def test_any_graph_in_any_memory(
    folder: Path, data: st.DataObject, shape: tuple[int, ...], dtypes: list[str], pieces: int, budget: Budget
) -> None:
    """A random graph over inputs in pieces gives, with any blocks and any memory, what whole tensors give."""
    graph, wanted = data.draw(graphs(sources(folder, shape, dtypes, pieces)))
    with tempfile.TemporaryDirectory() as scratch:
        how = Settings(budget, "cpu", None, scratch, allow_non_finite=True)
        for node in wanted:
            program = program_of(graph, [node])
            assert whole(program, how) == naive(program)
        assert list(Path(scratch).iterdir()) == []


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), shape=st.sampled_from(SHAPES), dtypes=dtypes, budget=budgets)
def test_any_graph_to_files_and_the_cache(
    folder: Path, data: st.DataObject, shape: tuple[int, ...], dtypes: list[str], budget: Budget
) -> None:
    """The same values brought to one file and to the cache in one go are the same bytes, and so are those read back."""
    graph, wanted = data.draw(graphs(sources(folder, shape, dtypes, 1)))
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        how = Settings(budget, "cpu", str(place / "cache"), name, allow_non_finite=True)
        expected = run_to_file(graph, wanted, how, place / "first", Known())
        store = Cache(place / "cache")
        found = store.lookup([node.key for node in graph if node.kind != "load" and node.key is not None])
        records = {key: store.read_record(key) for key, info in found.items() if info.kind == "record"}
        tensors = frozenset(key for key, info in found.items() if info.kind == "tensor")
        assert run_to_file(graph, wanted, how, place / "second", Known(tensors, records=records)) == expected
        assert run_to_file(graph, wanted, how, place / "third", Known(records=records)) == expected


def run_to_file(graph: Graph, wanted: Sequence[int], how: Settings, path: Path, known: Known) -> Mapping[int, bytes]:
    """Every wanted value written one after the other into `path`, and computed ones into the cache."""
    nbytes = {node: _nbytes(graph, node) for node in wanted}
    offsets = {node: 5 + sum(nbytes[other] for other in wanted[:k]) for k, node in enumerate(wanted)}
    path.write_bytes(bytes(5 + sum(nbytes.values())))
    targets = [Target(node, f"value {node}", "out", Place(str(path), offsets[node])) for node in wanted]
    fresh = [node for node in wanted if graph[node].key not in known.tensors]
    cached = [Target(node, f"value {node}", "", None) for node in fresh if not known.records]
    for task in form_tasks(graph, [*targets, *cached], known):
        run_task(task, how)
    content = path.read_bytes()
    return {node: content[offsets[node] : offsets[node] + nbytes[node]] for node in wanted}


def _nbytes(graph: Graph, node: int) -> int:
    dtype = graph[node].dtype
    assert dtype is not None
    return torch.Size(graph[node].shape).numel() * dtype.itemsize


def test_a_task_counts_what_it_moved(folder: Path, tmp_path: Path) -> None:
    """Bytes read, hashed and written, and the names that arrived, come back with the task."""
    first, second = sources(folder, (3, 1000), ["float32", "float32"], 1)
    graph = Graph()
    value = graph.add("weighted_sum", [graph.load(first), graph.load(second)], {"coefficients": [0.5, 0.25]})
    path = tmp_path / "out"
    path.write_bytes(bytes(12_000))
    [task] = form_tasks(graph, [Target(value, "name", "step", Place(str(path), 0))], Known())
    moved: list[tuple[int, int]] = []
    result = run_task(
        task, Settings(Budget(1, 0), "cpu", None, str(tmp_path)), lambda read, written: moved.append((read, written))
    )
    assert result.tensors == (("step", "name"),)
    assert (result.written, sum(written for _, written in moved)) == (12_000, 12_000)
    assert result.inputs.nbytes == 24_000
    merged = result.read - result.inputs.nbytes
    assert 24_000 <= merged <= 24_000 + 2 * 4096 * 4  # a little is read again to see whether anything changed


def test_a_copy_is_recognised(folder: Path, tmp_path: Path) -> None:
    """A value that is one input's, byte for byte, is reported with that input's digest; another one is not."""
    first, second = sources(folder, (3, 1000), ["float32", "float32"], 1)
    graph = Graph({first: "a" * 64, second: "b" * 64})
    halves = graph.add("weighted_sum", [graph.load(first), graph.load(first)], {"coefficients": [0.5, 0.5]})
    other = graph.add("add", [graph.load(first), graph.load(second)], {})
    path = tmp_path / "out"
    path.write_bytes(bytes(24_000))
    places = [Target(node, str(k), "step", Place(str(path), 12_000 * k)) for k, node in enumerate((halves, other))]
    done = [
        run_task(task, Settings(Budget(1, 0), "cpu", None, str(tmp_path)))
        for task in form_tasks(graph, places, Known())
    ]
    found = {name: same for result in done for name, same in result.same_as.items()}
    assert found == {("step", "0"): ("a" * 64,)}


@pytest.mark.parametrize("element", [0, 70_000, 131_071])
@pytest.mark.parametrize("blocks", [1, 2])
def test_a_new_infinity_is_found_in_any_block(tmp_path: Path, element: int, blocks: int) -> None:
    """An overflow is reported with its index, whatever the blocks; inherited, it is a warning wherever the input's lies."""
    values = torch.zeros(2 * BLOCK)
    values[element] = 60_000.0
    [one] = write_sources(tmp_path, (2 * BLOCK,), ["float32"])
    content = bytes(values.view(torch.uint8).numpy())
    Path(one.segments[0].file.path).write_bytes(b"rubbish" + content + b"more")
    one = _identified_again(one)
    graph = Graph()
    large = graph.add("cast", [graph.add("scale", [graph.load(one)], {"factor": 2.0})], {"dtype": "float16"})
    path = tmp_path / "out"
    path.write_bytes(bytes(4 * BLOCK))
    [task] = form_tasks(graph, [Target(large, "big", "step", Place(str(path), 0))], Known())
    how = Settings(Budget(1, 0, blocks * BLOCK), "cpu", None, str(tmp_path))
    with pytest.raises(RunError, match=f"big has a NaN or infinity at element {element} that none of its inputs had"):
        run_task(task, how)
    assert len(run_task(task, replace(how, allow_non_finite=True)).warnings) == 1


def _identified_again(one: TensorSource) -> TensorSource:
    """The same tensor in a file that was rewritten."""
    from mergeflow.models.identity import identify

    [segment] = one.segments
    with open(segment.file.path, "rb") as file:
        return replace(one, segments=(replace(segment, file=identify(file.fileno(), segment.file.path)),))


def test_empty_tasks_need_nothing(tmp_path: Path) -> None:
    """A task of no programs does nothing."""
    assert run_task(Task("none", ()), Settings(Budget(1, 0), "cpu", None, str(tmp_path))).tensors == ()
