"""What a run did: the record behind the summary on the screen and behind ``--report FILE.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from mergeflow.graph.plan import Fate


@dataclass(frozen=True, slots=True)
class TensorCounts:
    """Tensors of the outputs: `computed` now, read from the cache (`cached`), or left as they were (`kept`)."""

    total: int
    computed: int
    cached: int
    kept: int


@dataclass(frozen=True, slots=True)
class ByteCounts:
    """Bytes of tensors: from input files, to output files, from and to the cache. Digests count as reading."""

    read: int
    written: int
    cache_read: int
    cache_written: int


@dataclass(frozen=True, slots=True)
class OutputReport:
    """One model that was written. `files` says of each file beside the weights where it came from."""

    step: str
    path: str
    shards: Mapping[str, str]
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class VocabularyReport:
    """A vocabulary that a step merged: its tokens, the rows of its embeddings, and how it relates to the models'.

    Args:
        shared: tokens that all of the models have.
        added: tokens that the step's base lacks.
        dropped: tokens that a model has and the result lacks.
    """

    step: str
    tokens: int
    rows: int
    shared: int
    added: int
    dropped: int


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run did.

    Args:
        keys: key of each output tensor, by name (by ``step/name`` when there are several outputs).
        fates: what became of each output tensor, by the same names.
        seconds: wall time of the whole run, and of its phases.
        peak_rss_bytes: the most resident memory this process has had.
    """

    tensors: TensorCounts
    bytes: ByteCounts
    seconds: float
    phases: Mapping[str, float]
    peak_rss_bytes: int
    keys: Mapping[str, str]
    fates: Mapping[str, Fate]
    outputs: tuple[OutputReport, ...]
    statistics: Mapping[str, int]
    warnings: tuple[str, ...]
    vocabularies: tuple[VocabularyReport, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The report as plain data, ready for `json.dumps`."""
        return asdict(self)
