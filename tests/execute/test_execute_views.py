"""Views in programs: tensors read from tensors of other shapes, of files or of what other tasks compute.

a (2, 3) --+-- c = a - b (2, 3) --+
b (2, 3) --+                      +-- v = [c; a; ...] (n, 3) -- slerp(v, x) -- ...
a (2, 3) -------------------------+
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence, Set
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import write_sources

from mergeflow.cache.store import Cache
from mergeflow.dtypes import BFLOAT16, FLOAT32
from mergeflow.errors import RunError
from mergeflow.execute.records import Settings
from mergeflow.execute.task import compute_tensor, run_task
from mergeflow.graph.memory import Budget
from mergeflow.graph.nodes import Graph
from mergeflow.graph.program import Place
from mergeflow.graph.tasks import Known, Target, form_tasks, tasks_before
from mergeflow.models.records import TensorSource, TensorView
from mergeflow.workflow.parts import room_for_parts

BUDGET = Budget(1, 1 << 20, 65536)


def evaluated(
    graph: Graph, node: int, cache: Path | None, unkept: Set[int] = frozenset(), *, allow: bool = False
) -> tuple[torch.Tensor, int]:
    """The value of a node, and how many waves of tasks came before it."""
    target = Target(node, "value", "out", Place("", 0))
    with tempfile.TemporaryDirectory() as scratch:
        settings = Settings(BUDGET, "cpu", str(cache) if cache else None, scratch, allow)
        waves, known = tasks_before(graph, [target], Known(), unkept)
        with room_for_parts(waves, settings) as with_room:
            for wave in waves:
                for task in wave:
                    run_task(task, with_room)
            (task,) = form_tasks(graph, [target], known)
            value = compute_tensor(task.programs[0], with_room)
        assert list(Path(scratch).iterdir()) == []
    return value, len(waves)


def graph_of(sources: Sequence[TensorSource]) -> Graph:
    return Graph({source: f"{number:064x}" for number, source in enumerate(sources)})


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    shape=st.sampled_from([(1, 1), (7, 9), (3, 65537), (0, 3)]),
    pieces=st.integers(1, 3),
    keep=st.booleans(),
    native=st.booleans(),
)
def test_a_view_of_files_and_of_computed_tensors(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], pieces: int, keep: bool, native: bool
) -> None:
    """A view is what its definition says, whoever computes, wherever its parts lie, and however deep views are nested."""
    monkeypatch.setenv("MERGEFLOW_NATIVE", "1" if native else "0")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        a, b, x = (
            write_sources(_made(folder / name), shape, [dtype], pieces)[0]
            for name, dtype in (("a", "bfloat16"), ("b", "float32"), ("x", "float32"))
        )
        graph = graph_of([a, b, x])
        difference = graph.add("task_vector", [graph.load(a), graph.load(b)], {})
        inner = graph.view("concatenate", [difference, graph.load(a)], {}, FLOAT32, (2 * shape[0], *shape[1:]))
        again = graph.add("scale", [inner], {"factor": 0.5})
        outer = graph.view("concatenate", [graph.load(x), again], {}, FLOAT32, (3 * shape[0], *shape[1:]))
        threshold = graph.add("kth_magnitude", [outer], {"k": max(1, 3 * shape[0] * shape[1] // 2)})
        result = graph.add("trim", [outer, threshold], {})

        value, waves = evaluated(graph, result, folder / "cache" if keep else None)

        assert waves == 2
        one, other, third = (_tensor(source) for source in (a, b, x))
        whole = torch.cat([third.float(), torch.cat([one.float() - other.float(), one.float()]) * 0.5])
        order = whole.abs().flatten().argsort(descending=True, stable=True)[: max(1, whole.numel() // 2)]
        kept = torch.zeros(whole.numel())
        kept[order] = whole.flatten()[order]
        assert torch.equal(value.flatten(), kept)
        if keep and whole.numel():
            assert set(Cache(folder / "cache").lookup([graph[difference].key or ""]))


def test_a_view_of_a_checkpoint_is_a_leaf_with_a_key(tmp_path: Path) -> None:
    """Two views of the same op, parts and parameters are one node; its key is that of its parts, not of its file."""
    a, b = write_sources(tmp_path, (2, 3), ["bfloat16", "bfloat16"])
    stacked = TensorView("w", BFLOAT16, (4, 3), "concatenate", (a, b), (), BFLOAT16)
    graph = graph_of([a, b])
    node = graph.load(stacked)
    assert graph.load(TensorView("other", BFLOAT16, (4, 3), "concatenate", (a, b), (), BFLOAT16)) == node
    assert graph[node].key not in (
        None,
        graph[graph.load(TensorView("v", BFLOAT16, (4, 3), "concatenate", (b, a), (), BFLOAT16))].key,
    )
    assert graph[Graph({}).load(a)].key is not None
    value, waves = evaluated(graph, graph.add("cast", [node], {"dtype": "float32"}), None)
    assert waves == 0
    assert torch.equal(value, torch.cat([_tensor(a), _tensor(b)]).float())


def test_a_part_with_a_new_infinity_stops_the_run(tmp_path: Path) -> None:
    """A value that a view is read from is looked at as an output is: an infinity none of its inputs had is an error."""
    (a,) = write_sources(tmp_path, (2, 3), ["float32"])
    graph = graph_of([a])
    huge = graph.add("scale", [graph.load(a)], {"factor": 3e38})
    view = graph.view("concatenate", [huge, huge], {}, FLOAT32, (4, 3))
    with pytest.raises(RunError, match="a scale of shape"):
        evaluated(graph, view, None)


def test_the_key_of_a_checkpoints_tensor_is_known_without_adding_it(tmp_path: Path) -> None:
    """What only asks for keys (history, lock) leaves the graph as it is."""
    a, b = write_sources(tmp_path, (2, 3), ["bfloat16", "bfloat16"])
    view = TensorView("w", BFLOAT16, (4, 3), "concatenate", (a, b), (), BFLOAT16)
    graph = graph_of([a, b])
    keys = [graph.key(view), graph.key(a), Graph({a: "0" * 64}).key(view)]
    assert len(graph) == 0
    assert keys == [graph[graph.load(view)].key, graph[graph.load(a)].key, None]


def test_a_part_of_a_step_that_is_never_cached_is_not_left_in_the_cache(tmp_path: Path) -> None:
    """A view is read from it all the same."""
    (a,) = write_sources(tmp_path, (2, 3), ["float32"])
    graph = graph_of([a])
    half, double = (graph.add("scale", [graph.load(a)], {"factor": factor}) for factor in (0.5, 2.0))
    view = graph.view("concatenate", [half, double], {}, FLOAT32, (4, 3))

    value, _ = evaluated(graph, view, tmp_path / "cache", unkept={half})

    assert torch.equal(value, torch.cat([_tensor(a) * 0.5, _tensor(a) * 2]))
    keys = [graph[half].key or "", graph[double].key or ""]
    assert list(Cache(tmp_path / "cache").lookup(keys)) == [graph[double].key]


def test_a_part_with_an_infinity_that_was_allowed_is_not_an_input_of_the_next_run(tmp_path: Path) -> None:
    """It does not stay in the cache: read from there, its infinity would count as one that an input had."""
    (a,) = write_sources(tmp_path, (2, 3), ["float32"])
    graph = graph_of([a])
    huge = graph.add("scale", [graph.load(a)], {"factor": 3e38})
    view = graph.view("concatenate", [huge, huge], {}, FLOAT32, (4, 3))
    value, _ = evaluated(graph, view, tmp_path / "cache", allow=True)
    assert value.isinf().any()
    assert not Cache(tmp_path / "cache").lookup([graph[huge].key or ""])


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _tensor(source: TensorSource) -> torch.Tensor:
    content = bytearray()
    for segment in source.segments:
        with open(segment.file.path, "rb") as file:
            file.seek(segment.offset)
            content += file.read(segment.nbytes)
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[source.dtype.name]
    flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
    return flat.reshape(source.shape)
