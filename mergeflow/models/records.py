"""What is known of a checkpoint from its headers: names, dtypes, shapes and where the bytes lie."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergeflow.dtypes import DType
from mergeflow.models.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A file as it was when its header was read. A file that no longer has this identity was replaced.

    Args:
        path: absolute; ``hub://org/name@commit/file`` for a file that is not on this machine yet.
        ctime_ns: when the inode last changed. It is no part of the identity (a chmod or a hard link moves it), but
            it tells a file that was overwritten and given its old time back.
        content: ``sha256:<hex>`` when the Hugging Face hub names the file's bytes, here or on any other machine.
    """

    path: str
    size: int
    mtime_ns: int
    inode: int
    device: int
    ctime_ns: int = field(default=0, compare=False)
    content: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of bytes in one file. `offset` and `nbytes` are absolute, in bytes."""

    file: FileIdentity
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorSource:
    """One tensor on disk: the concatenation of its segments, row-major, little-endian.

    Nearly every tensor is one segment. A packed mixture-of-experts tensor put together from one tensor per
    expert has one segment for each of them.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    segments: tuple[Segment, ...]

    @property
    def size(self) -> int:
        """Number of elements (1 for a 0-d tensor)."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def stored(self) -> DType:
        """The dtype it is written in when nobody says otherwise: its own."""
        return self.dtype

    def sources(self) -> Iterator[TensorSource]:
        """The tensors in files that it is read from: itself."""
        yield self


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor that no file holds as it is, but that is read, a range at a time, from tensors that files hold.

    Rows in another order, a quantised matrix with its scales, a matrix and the adapter added to it: `op` is the
    operation (of kind ``view``) that makes it from `inputs`.

    Args:
        dtype: of its elements as they are read: what its numbers need (float32 for anything computed).
        stored: the dtype it is written in when nobody says otherwise: that of the model.
        parameters: of the operation, as pairs; values are numbers, texts, or tuples of them.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    op: str
    inputs: tuple[TensorSource | TensorView, ...]
    parameters: tuple[tuple[str, object], ...]
    stored: DType

    @property
    def size(self) -> int:
        """Number of elements (1 for a 0-d tensor)."""
        return math.prod(self.shape)

    def sources(self) -> Iterator[TensorSource]:
        """The tensors in files that it is read from; one may come twice."""
        for tensor in self.inputs:
            yield from tensor.sources()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model opened from headers alone.

    Args:
        label: the model as the user wrote it.
        folder: where its files are on this machine (of a bare file of weights: that file); None while a hub model is
            known only by its remote headers.
        tensors: by name, in natural order of the names (layers 2 before 10).
        config: the parsed config.json (empty when there is none).
        files: paths of the non-weight files, relative to `folder`, sorted.
        revision: the commit a hub model was pinned to.
        tokenizer: as its files state it; None when nobody needs it, or when it has none.
        chat_template: likewise, of a model whose tokenizer itself is not needed.
        adapter_revisions: those of its adapters, in order; None for one of this machine.
        is_delta: whether its files say that they are a delta, which mergeflow exported.
    """

    label: str
    folder: Path | None
    tensors: Mapping[str, TensorSource | TensorView]
    config: Mapping[str, object] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    revision: str | None = None
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None
    adapter_revisions: tuple[str | None, ...] = ()
    is_delta: bool = False
