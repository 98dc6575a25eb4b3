"""Checkpoints written by hand, sound and broken: the bytes of the format, not a library's idea of them."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

from mergeflow.dtypes import DTYPES

ITEMSIZE = {dtype.code: dtype.itemsize for dtype in DTYPES}
GOLDEN = Path(os.environ.get("MERGEFLOW_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))

Entries = Mapping[str, tuple[str, tuple[int, ...]]]


def header_of(entries: Entries) -> dict[str, object]:
    """A sound header for tensors given as name -> (dtype code, shape), laid out one after the other."""
    header: dict[str, object] = {}
    position = 0
    for name, (code, shape) in entries.items():
        nbytes = ITEMSIZE[code]
        for extent in shape:
            nbytes *= extent
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [position, position + nbytes]}
        position += nbytes
    return header


def data_bytes(header: Mapping[str, object]) -> int:
    """How many bytes of tensors a sound header speaks of."""
    ends = [entry["data_offsets"][1] for entry in header.values() if isinstance(entry, dict) and "dtype" in entry]
    return max(ends, default=0)


def file_of(header: Mapping[str, object], data: bytes) -> bytes:
    """A safetensors file of a header and the tensors' bytes."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def pattern(count: int, seed: int = 0) -> bytes:
    """`count` bytes that differ from place to place and from seed to seed."""
    return bytes((index * 7 + index // 251 + seed * 13) % 256 for index in range(count))


def write_weights(path: Path, entries: Entries, seed: int = 0) -> Path:
    """A sound safetensors file with pattern bytes."""
    header = header_of(entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file_of(header, pattern(data_bytes(header), seed)))
    return path


def write_index(folder: Path, weight_map: Mapping[str, object]) -> Path:
    """An index file."""
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path


def age(path: Path) -> None:
    """Make a file's modification time a day old, so that it counts as settled."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 86_400 * 10**9))
