"""Files that torch.save wrote before 1.6 (or since, when asked to): five pickles in a row, then the storages.

    1  a number by which such files are known       4  the object; storages by key
    2  the version of the format, 1001              5  the keys, in the order of the storages
    3  the machine: its byte order                  then per key: number of elements (8 bytes), the elements

How long a storage is follows from its type and count, so all places are known without looking at the bytes, but for
the eight that must repeat the count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mergeflow.errors import CheckpointError
from mergeflow.models.pickled_instructions import interpret
from mergeflow.models.pickled_objects import Storage, TorchMeaning
from mergeflow.models.pickled_stream import PickleStream
from mergeflow.models.ranges import Ranges

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_COUNT_BYTES = 8


def read_legacy(ranges: Ranges) -> tuple[object, Callable[[Storage], tuple[int, int]]]:
    """What such a file holds, and where each of its storages lies: (offset, number of bytes).

    Raises:
        CheckpointError: it is no such file, or damaged.
    """
    path = ranges.file.path
    if ranges.read(0, 1) != b"\x80":
        raise CheckpointError(f"{path}: neither a zip archive nor a pickle: torch.save did not write it")
    stream = PickleStream(ranges, 0, ranges.file.size, path)
    meaning = TorchMeaning(stream)
    magic = interpret(stream, meaning)
    if type(magic) is not int or magic != _MAGIC:
        raise CheckpointError(f"{path}: a pickle that torch.save did not write; nothing in it is read")
    version, machine = interpret(stream, meaning), interpret(stream, meaning)
    if type(version) is not int or version != _VERSION:
        raise stream.damaged("the version of its format is unknown")
    if isinstance(machine, dict) and machine.get("little_endian") is False:
        raise CheckpointError(f"{path}: saved on a big-endian machine; load and save it on this one first")
    value = interpret(stream, meaning)
    places = _places(ranges, stream, meaning.storages, interpret(stream, meaning))

    def locate(storage: Storage) -> tuple[int, int]:
        if storage.key not in places:
            raise stream.damaged("it lacks the bytes of a storage")
        return places[storage.key]

    return value, locate


def _places(
    ranges: Ranges, stream: PickleStream, storages: Mapping[str, Storage], keys: object
) -> dict[str, tuple[int, int]]:
    """Where each storage lies, by key."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise stream.damaged("the list of its storages is none")
    position = stream.position
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        storage = storages.get(key)
        if storage is None or key in places:
            raise stream.damaged("the list of its storages names one that is unknown, or one twice")
        count = int.from_bytes(ranges.read(position, _COUNT_BYTES), "little") if ranges.is_near else storage.count
        begin = position + _COUNT_BYTES
        if count != storage.count or begin + storage.nbytes > ranges.file.size:
            raise stream.damaged("a storage is not where it should be: the file is cut off or damaged")
        places[key] = (begin, storage.nbytes)
        position = begin + storage.nbytes
    return places
