"""Weights that torch.save wrote (``.bin``, ``.pt``, ``.pth``, ``.ckpt``): read lazily, and without unpickling.

    zip archive (torch 1.6 and later)           older files
        NAME/data.pkl      names, shapes            a number, a version, the machine
        NAME/byteorder                              names, shapes
        NAME/data/0, 1     bytes                    keys; then per storage its length and its bytes

The pickle is read by a machine of our own that can make plain values and nothing else (`pickled_machine`), so what a
stranger's file would run does not run. It says of each tensor which elements of which storage it is; storages lie in
the file as they are. A contiguous tensor is therefore a range of the file, like one of a safetensors file, and one
made of a few runs of bytes is a few ranges: it has the digest that its values have anywhere. With other strides (a
large transposed matrix, an expanded one) it is a view of the range that it needs.

What counts as the weights is the dict of tensors, or the one that lies in it under one of the names of `_WRAPPERS`.
Entries that are no tensors (an epoch, a configuration) are passed over; a tensor of a kind that we do not read is an
error, never left out.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mergeflow.errors import CheckpointError
from mergeflow.models.pickled_instructions import interpret
from mergeflow.models.pickled_legacy import read_legacy
from mergeflow.models.pickled_machine import Opaque
from mergeflow.models.pickled_objects import MAX_EXTENT, PickledTensor, Storage, TorchMeaning, Unreadable
from mergeflow.models.pickled_stream import PickleStream
from mergeflow.models.pickled_zip import Entry, expected_range, is_zip, read_directory, stored_range
from mergeflow.models.ranges import Ranges, open_ranges
from mergeflow.models.records import Segment, TensorSource, TensorView

_LOG = logging.getLogger(__name__)
# In this order; what trainers call the weights among other things.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_MAX_WRAPPERS = 4
# Up to so many runs of bytes are ranges of their own. Each takes some 200 bytes of memory, and a read.
MOST_RUNS = 1024
_LFS_POINTER = b"version https://git-lfs"

# A storage -> where its bytes lie in the file: (offset, number of bytes).
_Locate = Callable[[Storage], tuple[int, int]]


def read_pickled(path: Path) -> Mapping[str, TensorSource | TensorView]:
    """The tensors of a file that torch.save wrote; no byte of a tensor is read.

    Raises:
        CheckpointError: it is no such file, damaged, or holds something else than a dict of tensors.
    """
    with open_ranges(path) as ranges:
        return pickled_tensors(ranges)


def pickled_tensors(ranges: Ranges) -> Mapping[str, TensorSource | TensorView]:
    """As `read_pickled`, from a file wherever it is."""
    start = ranges.read(0, len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise CheckpointError(
            f"{ranges.file.path}: a Git LFS pointer, not the weights; run `git lfs pull` in its folder"
        )
    value, locate = _read_archive(ranges) if is_zip(start) else read_legacy(ranges)
    weights = _state_dict(value, ranges)
    tensors: dict[str, TensorSource | TensorView] = {}
    for name, entry in weights.items():
        if isinstance(entry, Unreadable):
            raise _wrong(ranges, name, f"is {entry.what}, which this version cannot read")
        if isinstance(entry, PickledTensor):
            tensors[_checked_name(name, ranges)] = _tensor(str(name), entry, locate, ranges)
    _report_hidden(weights, ranges)
    return tensors


def _read_archive(ranges: Ranges) -> tuple[object, _Locate]:
    """What the pickle of an archive holds, and how to find its storages."""
    entries = read_directory(ranges)
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise CheckpointError(f"{ranges.file.path}: a zip archive that torch.save did not write (no data.pkl in it)")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}constants.pkl" in entries:
        raise CheckpointError(f"{ranges.file.path}: a TorchScript program, not weights; save its state_dict() instead")
    _check_byte_order(ranges, entries.get(f"{prefix}byteorder"))
    start, nbytes = stored_range(ranges, entries[pickles[0]])
    stream = PickleStream(ranges, start, start + nbytes, ranges.file.path)

    def locate(storage: Storage) -> tuple[int, int]:
        entry = entries.get(f"{prefix}data/{storage.key}")
        if entry is None:
            raise CheckpointError(f"{ranges.file.path}: lacks the bytes of storage {storage.key!r:.60}; it is damaged")
        return stored_range(ranges, entry) if ranges.is_near else expected_range(ranges, entry)

    return interpret(stream, TorchMeaning(stream)), locate


def _check_byte_order(ranges: Ranges, entry: Entry | None) -> None:
    if entry is None:  # before torch 2.1: those machines are all little-endian
        return
    offset, nbytes = stored_range(ranges, entry)
    if ranges.read(offset, min(nbytes, 16)) != b"little":
        raise CheckpointError(f"{ranges.file.path}: saved on a big-endian machine; load and save it on this one first")


def _state_dict(value: object, ranges: Ranges) -> dict[object, object]:
    """The dict that holds the tensors."""
    for _ in range(_MAX_WRAPPERS):
        if not isinstance(value, dict):
            break
        inner = (value[name] for name in _WRAPPERS if isinstance(value.get(name), dict))
        wrapped = next((entry for entry in inner if _has_tensors(entry) or _wraps(entry)), None)
        if wrapped is None:
            return value
        value = wrapped
    if isinstance(value, dict):
        return value
    what = value.what if isinstance(value, Opaque) else f"a {type(value).__name__}"
    raise CheckpointError(
        f"{ranges.file.path}: holds {what}, not a dict of tensors; save model.state_dict() where you trust the file"
    )


def _wraps(value: dict[object, object]) -> bool:
    return any(isinstance(value.get(name), dict) for name in _WRAPPERS)


def _has_tensors(value: dict[object, object]) -> bool:
    return any(isinstance(entry, PickledTensor | Unreadable) for entry in value.values())


def _report_hidden(weights: dict[object, object], ranges: Ranges) -> None:
    """Tensors that lie deeper have no name of their own, so they are no weights; but nobody shall miss them."""
    deeper = [str(name) for name, entry in weights.items() if isinstance(entry, dict) and _has_tensors(entry)]
    if deeper and _has_tensors(weights):
        _LOG.warning("%s: tensors inside %s are not read as weights", ranges.file.path, ", ".join(deeper[:10]))


def _checked_name(name: object, ranges: Ranges) -> str:
    if not isinstance(name, str):
        raise CheckpointError(
            f"{ranges.file.path}: a tensor has the number {name} for a name, where a text is expected"
        )
    return name


def _tensor(name: str, tensor: PickledTensor, locate: _Locate, ranges: Ranges) -> TensorSource | TensorView:
    """A tensor of the pickle as a range of the file, or as a view of one."""
    size = math.prod(tensor.shape)
    if size * tensor.dtype.itemsize > MAX_EXTENT:
        raise _wrong(ranges, name, f"has an impossible shape ({', '.join(map(str, tensor.shape))})")
    if size == 0:
        return TensorSource(name, tensor.dtype, tensor.shape, (Segment(ranges.file, 0, 0),))
    extents = [(length, stride) for length, stride in zip(tensor.shape, tensor.strides, strict=True) if length > 1]
    span = 1 + sum((length - 1) * stride for length, stride in extents)
    begin, nbytes = tensor.offset * tensor.dtype.itemsize, span * tensor.dtype.itemsize
    offset, held = locate(tensor.storage)
    if begin + nbytes > min(held, tensor.storage.nbytes):
        raise _wrong(ranges, name, "needs more bytes than its storage has: the file is damaged")
    starts, run = _runs(extents)
    if starts is not None:
        itemsize = tensor.dtype.itemsize
        places = (offset + begin + start * itemsize for start in starts)
        segments = tuple(Segment(ranges.file, place, run * itemsize) for place in places)
        return TensorSource(name, tensor.dtype, tensor.shape, segments)
    # A stride along an axis of length one is never used: torch saves anything there.
    strides = tuple(stride if length > 1 else 0 for length, stride in zip(tensor.shape, tensor.strides, strict=True))
    needed = TensorSource(name, tensor.dtype, (span,), (Segment(ranges.file, offset + begin, nbytes),))
    return TensorView(
        name, tensor.dtype, tensor.shape, "strided", (needed,), (("strides", strides),), stored=tensor.dtype
    )


def _runs(extents: Sequence[tuple[int, int]]) -> tuple[list[int] | None, int]:
    """Where each run of elements that lie one after the other begins, in order, and their length.

    Args:
        extents: (length, stride) of each axis longer than one.

    Returns:
        None for the places, when there are too many.
    """
    run, outer = 1, list(extents)
    while outer and outer[-1][1] == run:
        run *= outer.pop()[0]
    if math.prod(length for length, _ in outer) > MOST_RUNS:
        return None, run
    starts = [0]
    for length, stride in outer:
        starts = [start + index * stride for start in starts for index in range(length)]
    return starts, run


def _wrong(ranges: Ranges, name: object, what: str) -> CheckpointError:
    return CheckpointError(f"{ranges.file.path}: tensor {str(name)!r:.120} {what}")
