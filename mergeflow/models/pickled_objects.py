"""What names in torch's pickles mean: a closed table. A name that is not in it stands for nothing.

    torch.FloatStorage, ..., torch.storage.UntypedStorage       a type of storage
    torch.float8_e4m3fn, ...                                    a dtype
    torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)         a tensor
    torch._utils._rebuild_tensor_v3(..., dtype)                                 one whose storage has no type
    torch._utils._rebuild_parameter(tensor, ...)                                that tensor
    torch._tensor._rebuild_from_type_v2(one of these, type, arguments, state)   the same
    torch.Size(sizes), collections.OrderedDict(pairs)

A persistent id is a storage: ("storage", type, key, device, count). Values of other names and calls are `Opaque`; what
another ``_rebuild_...`` of torch makes is a tensor that we cannot read, and says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeGuard

from mergeflow.dtypes import DTYPES, DType, by_name
from mergeflow.models.pickled_machine import Opaque
from mergeflow.models.pickled_stream import PickleStream

MAX_DIMENSIONS = 64
MAX_EXTENT = 2**63 - 1
MAX_COPIES = 1_000_000


@dataclass(frozen=True, slots=True)
class StorageType:
    """What a storage's elements are; None: bytes, whose meaning each tensor says."""

    dtype: DType | None


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of bytes outside the pickle, by its key. `count` elements of `type`."""

    key: str
    type: StorageType
    count: int

    @property
    def nbytes(self) -> int:
        return self.count * (self.type.dtype.itemsize if self.type.dtype else 1)


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor: element (i, j, ...) is element offset + i * strides[0] + j * strides[1] + ... of its storage."""

    storage: Storage
    dtype: DType
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A tensor, or a part of one, of a kind that is not read. `what` completes "is ..."."""

    what: str


@dataclass(frozen=True, slots=True)
class _Name:
    """A name of the table that is no value by itself."""

    module: str
    name: str


_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_OTHER_STORAGES = {
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "QUInt4x2Storage": "quint4x2",
    "QUInt2x4Storage": "quint2x4",
}
_OTHER_DTYPES = frozenset(
    {
        *_OTHER_STORAGES.values(),
        *("complex32", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
        *(f"{kind}{bits}" for kind in ("bits", "int", "uint") for bits in range(1, 8)),
        *("bits1x8", "bits2x4", "bits4x2", "bits8", "bits16"),
    }
)
_SPECIAL = {
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_qtensor": "a quantised tensor of torch's",
    "_rebuild_meta_tensor_no_storage": "a tensor on the device 'meta', which has no values",
}


def _constants() -> Mapping[tuple[str, str], object]:
    """The names that are values by themselves."""
    found: dict[tuple[str, str], object] = {("torch", dtype.name): dtype for dtype in DTYPES}
    found |= {("torch", name): Unreadable(f"of dtype {name}") for name in _OTHER_DTYPES}
    for module in ("torch", "torch.cuda"):
        found |= {(module, name): StorageType(by_name(dtype)) for name, dtype in _STORAGES.items()}
        found |= {(module, name): Unreadable(f"of dtype {dtype}") for name, dtype in _OTHER_STORAGES.items()}
    for module in ("torch.storage", "torch", "torch.cuda"):
        found[module, "UntypedStorage"] = StorageType(None)
    return MappingProxyType(found)


_CONSTANTS = _constants()


class TorchMeaning:
    """The meanings, for a pickle that is read from `stream`; `storages` are those that it spoke of, by key."""

    def __init__(self, stream: PickleStream) -> None:
        self._stream = stream
        self.storages: dict[str, Storage] = {}
        self._copies = 0

    def name(self, module: str, name: str) -> object:
        """As `Meaning.name`."""
        known = _CONSTANTS.get((module, name))
        return known if known is not None else _Name(module, name)

    def call(self, function: object, arguments: object) -> object:
        """As `Meaning.call`."""
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            return Opaque("a result of something that is no function")
        known = _CALLS.get((function.module, function.name))
        if known is not None:
            return known(self, arguments)
        if function.module in ("torch._utils", "torch._tensor") and function.name.startswith("_rebuild"):
            return Unreadable(_SPECIAL.get(function.name, f"a tensor of a special kind ({function.name:.60})"))
        return Opaque(f"an object of {function.module:.80}.{function.name:.80}")

    def persistent(self, identity: object) -> object:
        """As `Meaning.persistent`: a storage. Older files say at the end whether it is a part of another."""
        if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
            if isinstance(identity, tuple) and identity and identity[0] == "module":
                return identity[1] if len(identity) > 1 else Opaque("a module")
            raise self._stream.damaged("it refers to something outside of it that is no storage")
        kind, key, count = identity[1], identity[2], identity[4]
        if isinstance(kind, Unreadable):
            return kind
        if len(identity) == 6 and identity[5] is not None:
            return Unreadable("a part of a storage, as torch saved them before 0.4")
        if not isinstance(kind, StorageType) or not isinstance(key, str) or not _is_extent(count):
            raise self._stream.damaged("a storage in it has no type, no key or no size")
        storage = Storage(key, kind, count)
        if self.storages.setdefault(key, storage) != storage:
            raise self._stream.damaged("a storage in it has two types or sizes")
        return storage

    def tensor(self, arguments: tuple[object, ...], dtype: object = None) -> object:
        """The tensor of (storage, offset, size, strides, ...)."""
        if len(arguments) < 4:
            raise self._stream.damaged("a tensor in it lacks its size or strides")
        storage, offset, shape, strides = arguments[:4]
        unreadable = next((part for part in (dtype, storage) if isinstance(part, Unreadable)), None)
        if unreadable is not None:
            return unreadable
        if not isinstance(storage, Storage):
            raise self._stream.damaged("a tensor in it has no storage")
        kind = dtype if isinstance(dtype, DType) else storage.type.dtype
        if kind is None:
            raise self._stream.damaged("a tensor in it has no dtype")
        if not (_is_extent(offset) and _are_extents(shape) and _are_extents(strides) and len(shape) == len(strides)):
            raise self._stream.damaged("the size or the strides of a tensor in it are none")
        return PickledTensor(storage, kind, offset, shape, strides)

    def copied(self, count: int) -> None:
        """Note that a call copies so many values: a program could ask for it again and again.

        Raises:
            CheckpointError: it did.
        """
        self._copies += count
        if self._copies > MAX_COPIES:
            raise self._stream.damaged("it copies more values than any model's")


def _rebuild_tensor(meaning: TorchMeaning, arguments: tuple[object, ...]) -> object:
    """(storage, offset, size, strides, requires_grad, hooks, what else is true of it)."""
    special = arguments[6] if len(arguments) > 6 else None
    if isinstance(special, dict) and any(value is True for value in special.values()):
        return Unreadable("a tensor whose conjugate or negative was saved")
    return meaning.tensor(arguments)


def _rebuild_typed_tensor(meaning: TorchMeaning, arguments: tuple[object, ...]) -> object:
    """(storage, offset, size, strides, requires_grad, hooks, dtype)."""
    return meaning.tensor(arguments, arguments[6] if len(arguments) > 6 else None)


def _rebuild_parameter(_meaning: TorchMeaning, arguments: tuple[object, ...]) -> object:
    return arguments[0] if arguments else Opaque("a parameter of nothing")


def _rebuild_from_type(meaning: TorchMeaning, arguments: tuple[object, ...]) -> object:
    """A tensor that has attributes of its own, or is of another class: plain ones have the bytes they say."""
    if len(arguments) < 3:
        return Opaque("a tensor of nothing")
    function, kind, inner = arguments[:3]
    if not isinstance(kind, _Name) or (kind.module, kind.name) not in _PLAIN_CLASSES:
        return Unreadable("a tensor of a class of its own")
    # One level: this function is in the table too, and would let a tuple of tuples call it without end.
    if isinstance(function, _Name) and function.name == "_rebuild_from_type_v2":
        return Unreadable("a tensor of a class of its own")
    return meaning.call(function, inner)


def _size(meaning: TorchMeaning, arguments: tuple[object, ...]) -> object:
    sizes = arguments[0] if arguments else ()
    if not isinstance(sizes, list | tuple):
        return Opaque("a size of nothing")
    meaning.copied(len(sizes))
    return tuple(sizes)


def _ordered_dict(meaning: TorchMeaning, arguments: tuple[object, ...]) -> object:
    """Pairs of name and value, or nothing: then the values are set one by one."""
    pairs = arguments[0] if arguments else ()
    if not isinstance(pairs, list | tuple):
        return Opaque("an OrderedDict of something else")
    meaning.copied(len(pairs))
    entries = [pair for pair in pairs if isinstance(pair, list | tuple) and len(pair) == 2]
    return {pair[0]: pair[1] for pair in entries if isinstance(pair[0], str)}


_Call = Callable[[TorchMeaning, tuple[object, ...]], object]
_PLAIN_CLASSES = frozenset({("torch", "Tensor"), ("torch.nn.parameter", "Parameter"), ("torch.nn.parameter", "Buffer")})
_CALLS: Mapping[tuple[str, str], _Call] = MappingProxyType(
    {
        ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v3"): _rebuild_typed_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
        ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
        ("torch", "Size"): _size,
        ("collections", "OrderedDict"): _ordered_dict,
    }
)


def _is_extent(value: object) -> TypeGuard[int]:
    """Whether a value is a size, a stride or an offset. `True` is an int to Python, but none of these."""
    return type(value) is int and 0 <= value <= MAX_EXTENT


def _are_extents(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and len(value) <= MAX_DIMENSIONS and all(map(_is_extent, value))
