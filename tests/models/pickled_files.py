"""Files of torch.save for a test, and reading what they hold without torch.load."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mergeflow.methods.ops import OPS
from mergeflow.methods.views.protocols import numpy_dtype, view_kernel
from mergeflow.models.pickled import read_pickled
from mergeflow.models.records import TensorSource, TensorView

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def saved(value: object, *, old: bool = False, protocol: int = 2) -> bytes:
    """The bytes of the file that torch.save makes."""
    stream = io.BytesIO()
    torch.save(value, stream, pickle_protocol=protocol, _use_new_zipfile_serialization=not old)
    return stream.getvalue()


def written(path: Path, value: object, *, old: bool = False, protocol: int = 2) -> Path:
    """`saved`, in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(saved(value, old=old, protocol=protocol))
    return path


@dataclass(frozen=True)
class FilePart:
    """A tensor in a file as a view's kernel reads it."""

    source: TensorSource

    @property
    def dtype(self) -> str:
        return self.source.dtype.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def read(self, start: int, out: memoryview) -> None:
        begin = start * self.source.dtype.itemsize
        assert begin >= 0
        found = b""
        for segment in self.source.segments:
            with Path(segment.file.path).open("rb") as stream:
                stream.seek(segment.offset)
                found += stream.read(segment.nbytes)
        assert begin + len(out) <= len(found) == self.source.nbytes
        out[:] = found[begin : begin + len(out)]


def content(tensor: TensorSource | TensorView, cut: int = 1 << 20) -> bytes:
    """The bytes of a tensor, read in ranges of `cut` elements."""
    if isinstance(tensor, TensorSource):
        view: object = FilePart(tensor)
    else:
        parts = [FilePart(part) for part in tensor.inputs if isinstance(part, TensorSource)]
        view = view_kernel(OPS[tensor.op])(parts, dict(tensor.parameters), tensor.dtype.name, tensor.shape)
    found = np.empty(tensor.size, numpy_dtype(tensor.dtype.name))
    for start in range(0, tensor.size, cut):
        view.read(start, memoryview(found[start : start + cut].view(np.uint8)))  # type: ignore[attr-defined]
    return found.tobytes()


def bytes_of(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor in memory, row by row."""
    plain = torch.empty(tensor.numel(), dtype=tensor.dtype)
    plain.view(tensor.shape).copy_(tensor.detach())
    return plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def same(path: Path, expected: Mapping[str, torch.Tensor], cut: int = 1 << 20) -> None:
    """Assert that a file holds exactly these tensors."""
    found = read_pickled(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].name == name
        assert f"torch.{found[name].dtype}" == str(tensor.dtype)
        assert found[name].shape == tuple(tensor.shape)
        assert content(found[name], cut) == bytes_of(tensor), name
