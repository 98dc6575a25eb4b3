"""The graph holds each value once, in topological order, with a key as soon as its inputs have one."""

from __future__ import annotations

from mergeflow.dtypes import BFLOAT16, FLOAT32, FLOAT64, DType
from mergeflow.graph.nodes import Graph
from mergeflow.models.records import FileIdentity, Segment, TensorSource


def source(name: str, dtype: DType = BFLOAT16, shape: tuple[int, ...] = (2, 3)) -> TensorSource:
    """A tensor on disk, in a file of its own."""
    file = FileIdentity(f"/{name}.safetensors", 100, 1, 1, 1)
    return TensorSource(name, dtype, shape, (Segment(file, 8, 12),))


def test_the_same_operation_on_the_same_inputs_is_one_node() -> None:
    """Asking twice for a value gives one node: common subexpressions are shared."""
    graph = Graph()
    a, b = graph.load(source("a")), graph.load(source("b"))
    first = graph.add("task_vector", [a, b], {})
    assert graph.add("task_vector", [a, b], {}) == first
    assert graph.add("task_vector", [b, a], {}) != first
    assert len(graph) == 4


def test_equal_tensors_of_different_files_are_one_node() -> None:
    """What has the same digest is the same value, wherever it lies."""
    graph = Graph({source("a"): "d" * 64, source("b"): "d" * 64})
    assert graph.load(source("a")) == graph.load(source("b"))


def test_a_node_has_a_key_exactly_when_all_it_depends_on_has() -> None:
    """A tensor that was never read has no digest, and nothing made of it has a key."""
    graph = Graph({source("a"): "d" * 64})
    known, unknown = graph.load(source("a")), graph.load(source("b"))
    assert graph[known].key == "d" * 64
    assert graph[graph.add("scale", [known], {"factor": 2.0})].key is not None
    assert graph[graph.add("task_vector", [known, unknown], {})].key is None


def test_values_are_computed_in_float32_unless_an_input_is_float64() -> None:
    """Half precision and fp8 are widened to float32; float64 stays."""
    graph = Graph()
    half, wide = graph.load(source("a")), graph.load(source("b", FLOAT64))
    assert graph[graph.add("scale", [half], {"factor": 2.0})].dtype == FLOAT32
    assert graph[graph.add("task_vector", [half, wide], {})].dtype == FLOAT64
    assert graph[graph.add("cast", [wide], {"dtype": "bfloat16"})].dtype == BFLOAT16


def test_a_statistic_has_no_dtype_and_the_shape_of_its_tensors() -> None:
    """A statistic is a record, taken over the whole of a tensor."""
    graph = Graph()
    node = graph[graph.add("kth_magnitude", [graph.load(source("a"))], {"k": 2})]
    assert (node.kind, node.dtype, node.shape) == ("statistic", None, (2, 3))


def test_the_networkx_graph_has_the_same_nodes_and_edges() -> None:
    """What is compiled is a networkx DAG, for whoever wants to look at it as one."""
    graph = Graph()
    a, b = graph.load(source("a")), graph.load(source("b"))
    delta = graph.add("task_vector", [a, b], {})
    assert set(graph.dag().edges) == {(a, delta), (b, delta)}
    assert graph.upstream([delta]) == [a, b, delta]
