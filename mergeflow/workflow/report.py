"""What a run did: the record behind the summary on the screen and behind ``--report FILE.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from mergeflow.graph.plan import Fate
from mergeflow.recipe.records import Variable


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
class CandidateReport:
    """What a sweep did for one candidate.

    Args:
        name: ``density=0.3,t=0.2``, which is also the name of its folder.
        values: of the swept variables; a gradient is a tuple.
        outputs: the folders that were written.
        shared_tensors: how many tensors came from earlier candidates of this sweep: out of their folders, or out of
            the cache, where they had put them.
        shared_statistics: how many statistics earlier candidates of this sweep had computed.
        report: what its run did; None when it failed.
        error: why it failed.
    """

    name: str
    values: Mapping[str, Variable]
    outputs: tuple[str, ...]
    shared_tensors: int = 0
    shared_statistics: int = 0
    report: RunReport | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a run did; of a sweep, all its candidates together.

    Args:
        keys: key of each output tensor, by name (by ``step/name`` when there are several outputs, with the name of the
            candidate before it, ``density=0.3/name``, in a sweep).
        fates: what became of each output tensor, by the same names.
        copied: how many of the tensors that are kept were copied from the folder of another candidate of the sweep.
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
    candidates: tuple[CandidateReport, ...] = ()
    copied: int = 0

    def to_json(self) -> dict[str, object]:
        """The report as plain data, ready for `json.dumps`."""
        return asdict(self)
