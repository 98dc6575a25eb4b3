"""The graph: operations on single tensors, in a networkx DAG, each value there once.

    load ──┐
           ├─ task_vector ─┬─ kth_magnitude ─┐
    load ──┘               └─────────────────┴─ trim ── ...

Nodes are added in topological order, so an id is larger than the ids of everything it depends on. Adding the
same operation on the same inputs again gives the node that is there already; so does loading a tensor whose
digest is known and equal, whatever file it lies in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from mergeflow.dtypes import FLOAT32, DType, by_name, compute_dtype
from mergeflow.graph.keys import canonical, node_key
from mergeflow.methods.ops import OPS
from mergeflow.methods.schema import OpKind
from mergeflow.models.records import TensorSource, TensorView

NodeKind = Literal["load"] | OpKind


if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True, slots=True)
class Node:
    """One value: a tensor on disk, an operation's tensor, or a statistic (a small record, `dtype` None).

    Args:
        shape: of the tensor; for a statistic, of the tensors it is taken over.
        key: None while the digest of a tensor it depends on is not known.
        source: where a ``load`` lies.
    """

    id: int
    op: str
    kind: NodeKind
    inputs: tuple[int, ...]
    parameters: Mapping[str, object]
    dtype: DType | None
    shape: tuple[int, ...]
    key: str | None
    source: TensorSource | None = None


@dataclass
class Graph:
    """A growing DAG of `Node`. `digests` are those known of tensors on disk; the rest have no key yet."""

    digests: Mapping[TensorSource, str] = field(default_factory=dict)
    _nodes: list[Node] = field(default_factory=list)
    _seen: dict[object, int] = field(default_factory=dict)

    def __getitem__(self, node: int) -> Node:
        return self._nodes[node]

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes)

    def dag(self) -> nx.DiGraph[int]:
        """The graph as networkx knows it: node ids, an edge from each value to those computed from it."""
        import networkx as nx  # a quarter of a second, for those who want it

        graph: nx.DiGraph[int] = nx.DiGraph()
        graph.add_nodes_from(range(len(self._nodes)))
        graph.add_edges_from((i, node.id) for node in self._nodes for i in node.inputs)
        return graph

    def load(self, source: TensorSource | TensorView) -> int:
        """The value of a checkpoint's tensor, in its dtype."""
        if isinstance(source, TensorView):
            inputs = [self.load(tensor) for tensor in source.inputs]
            return self.view(source.op, inputs, dict(source.parameters), source.dtype, source.shape)
        digest = self.digests.get(source)
        identity = ("load", digest or source)
        if identity not in self._seen:
            self._insert(identity, "load", "load", (), {}, source.dtype, source.shape, digest, source)
        return self._seen[identity]

    def key(self, source: TensorSource | TensorView) -> str | None:
        """The key that `load` gives a checkpoint's tensor, without adding it; None while a digest is not known."""
        if isinstance(source, TensorSource):
            return self.digests.get(source)
        keys = [self.key(tensor) for tensor in source.inputs]
        return value_key(source.op, dict(source.parameters), source.dtype, source.shape, keys)

    def add(self, op: str, inputs: Sequence[int], parameters: Mapping[str, object]) -> int:
        """The value of operation `op` (a name of the table of operations) on `inputs`.

        A tensor is float64 when one of its tensor inputs is, else float32; ``cast`` gives the dtype it names.
        """
        row = OPS[op]
        text = canonical(parameters)
        identity = (op, tuple(inputs), text)
        if identity not in self._seen:
            tensors = [self._nodes[i] for i in inputs if self._nodes[i].dtype is not None]
            dtype = None if row.kind == "statistic" else _result_dtype(op, tensors, parameters)
            keys = [self._nodes[i].key for i in inputs]
            key = _key_if_known(op, row.version, text, dtype, keys)
            self._insert(identity, op, row.kind, tuple(inputs), parameters, dtype, tensors[0].shape, key, None)
        return self._seen[identity]

    def cast(self, node: int, dtype: DType) -> int:
        """A tensor's value rounded to a dtype; the tensor itself when that is its own."""
        return node if self._nodes[node].dtype == dtype else self.add("cast", [node], {"dtype": dtype.name})

    def view(
        self,
        op: str,
        inputs: Sequence[int],
        parameters: Mapping[str, object],
        dtype: DType,
        shape: tuple[int, ...],
    ) -> int:
        """The value of the view `op` of `inputs`, which may have other shapes and dtypes than it has."""
        row = OPS[op]
        text = _view_text(shape, parameters)
        identity = (op, tuple(inputs), text, dtype)
        if identity not in self._seen:
            key = _key_if_known(op, row.version, text, dtype, [self._nodes[i].key for i in inputs])
            self._insert(identity, op, row.kind, tuple(inputs), parameters, dtype, shape, key, None)
        return self._seen[identity]

    def upstream(self, nodes: Iterable[int]) -> list[int]:
        """`nodes` and all they depend on, in topological order."""
        found: set[int] = set()
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                waiting.extend(self._nodes[node].inputs)
        return sorted(found)

    def _insert(
        self,
        identity: object,
        op: str,
        kind: NodeKind,
        inputs: tuple[int, ...],
        parameters: Mapping[str, object],
        dtype: DType | None,
        shape: tuple[int, ...],
        key: str | None,
        source: TensorSource | None,
    ) -> None:
        node = Node(len(self._nodes), op, kind, inputs, parameters, dtype, shape, key, source)
        self._seen[identity] = node.id
        self._nodes.append(node)


def _result_dtype(op: str, tensors: Sequence[Node], parameters: Mapping[str, object]) -> DType:
    if op == "cast":
        return by_name(str(parameters["dtype"]))
    wide = [compute_dtype(node.dtype) for node in tensors if node.dtype is not None]
    return next((dtype for dtype in wide if dtype != FLOAT32), FLOAT32)


def value_key(
    op: str, parameters: Mapping[str, object], dtype: DType | None, shape: tuple[int, ...], keys: Sequence[str | None]
) -> str | None:
    """The key of the value of an operation, as `Graph` gives it; None while a key of `keys`, its inputs', is."""
    row = OPS[op]
    text = _view_text(shape, parameters) if row.kind == "view" else canonical(parameters)
    return _key_if_known(op, row.version, text, dtype, keys)


def _view_text(shape: tuple[int, ...], parameters: Mapping[str, object]) -> bytes:
    """What a view is known by besides its inputs: its shape does not follow from theirs."""
    return canonical({**parameters, "shape": list(shape)})


def _key_if_known(
    op: str, version: int, parameters: bytes, dtype: DType | None, keys: Sequence[str | None]
) -> str | None:
    known = [key for key in keys if key is not None]
    if len(known) < len(keys):
        return None
    return node_key(op, version, parameters, dtype.name if dtype else None, known)
