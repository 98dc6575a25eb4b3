"""A cached tensor as a zarr array, for people who look at the cache with zarr.

zarr-python knows no bfloat16 and no float8. Zarr v3 has registered names for them, which other readers (tensorstore,
zarrs) understand; here zarr-python learns them, with ml_dtypes' number types. Chunks are decoded by the zarrs pipeline.
The merge itself does not come this way (`tensors` says why).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

import ml_dtypes
import numpy as np
import zarr
from zarr.core.dtype.common import HasItemSize
from zarr.dtype import DataTypeValidationError, ZDType, data_type_registry

from mergeflow.cache.store import Cache
from mergeflow.dtypes import FLOAT8_E4M3, FLOAT8_E5M2
from mergeflow.errors import CorruptEntry

if TYPE_CHECKING:
    from zarr.core.common import JSON, ZarrFormat
    from zarr.core.dtype.common import DTypeJSON

Array: TypeAlias = "zarr.Array[Any]"


def open_array(cache: Cache, key: str) -> Array:
    """The tensor `key` as a read-only zarr array; indexing it gives numpy arrays (bf16 and fp8 in ml_dtypes' types).

    Sizes are checked now, chunks when they are read (zarr raises its own errors then). While this function runs,
    zarr's configuration names the zarrs pipeline; the array keeps it, the configuration does not.

    Raises:
        CorruptEntry: it is not there, damaged or incomplete, or a record.
    """
    with cache.open_tensor(key) as reader:
        dtype = reader.dtype
    for data_type in _EXTENSIONS:
        data_type_registry.register(data_type._zarr_v3_name, data_type)
    # zarrs 0.2.3 does not know our fp8 types; zarr's own pipeline does.
    pipeline = {} if dtype in (FLOAT8_E4M3, FLOAT8_E5M2) else {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}
    with zarr.config.set(pipeline):
        try:
            return zarr.open_array(cache.folders.entry(key), mode="r", zarr_format=3)
        except FileNotFoundError as error:
            raise CorruptEntry(key, "it was removed") from error


@dataclass(frozen=True, kw_only=True)
class _ExtensionFloat(ZDType[Any, Any], HasItemSize):
    """A float format of ml_dtypes under its registered zarr v3 name. Zarr v2 has no names for these."""

    @classmethod
    def from_native_dtype(cls, dtype: np.dtype[Any]) -> Self:
        if cls._check_native_dtype(dtype):
            return cls()
        raise DataTypeValidationError(f"{dtype} is not {cls._zarr_v3_name}")

    def to_native_dtype(self) -> np.dtype[Any]:
        found: np.dtype[Any] = np.dtype(getattr(ml_dtypes, self._zarr_v3_name))
        return found

    @classmethod
    def _from_json_v2(cls, data: DTypeJSON) -> Self:
        raise DataTypeValidationError(f"zarr v2 has no {cls._zarr_v3_name}")

    @classmethod
    def _from_json_v3(cls, data: DTypeJSON) -> Self:
        if data == cls._zarr_v3_name:
            return cls()
        raise DataTypeValidationError(f"{data!r} is not {cls._zarr_v3_name}")

    def to_json(self, zarr_format: ZarrFormat) -> Any:
        if zarr_format == 3:
            return self._zarr_v3_name
        raise ValueError(f"zarr v2 has no {self._zarr_v3_name}")

    def _check_scalar(self, data: object) -> bool:
        return isinstance(data, (int, float, np.number, self.to_native_dtype().type))

    def cast_scalar(self, data: object) -> Any:
        if not self._check_scalar(data):
            raise TypeError(f"{data!r} is not a number")
        return self.to_native_dtype().type(data)

    def default_scalar(self) -> Any:
        return self.cast_scalar(0.0)

    def from_json_scalar(self, data: JSON, *, zarr_format: ZarrFormat) -> Any:
        return self.cast_scalar(data)

    def to_json_scalar(self, data: object, *, zarr_format: ZarrFormat) -> float:
        return float(self.cast_scalar(data))

    @property
    def item_size(self) -> int:
        return self.to_native_dtype().itemsize


@dataclass(frozen=True, kw_only=True)
class BFloat16(_ExtensionFloat):
    dtype_cls: ClassVar[type[np.dtype[Any]]] = type(np.dtype(ml_dtypes.bfloat16))
    _zarr_v3_name: ClassVar[Literal["bfloat16"]] = "bfloat16"


@dataclass(frozen=True, kw_only=True)
class Float8E4M3(_ExtensionFloat):
    dtype_cls: ClassVar[type[np.dtype[Any]]] = type(np.dtype(ml_dtypes.float8_e4m3fn))
    _zarr_v3_name: ClassVar[Literal["float8_e4m3fn"]] = "float8_e4m3fn"


@dataclass(frozen=True, kw_only=True)
class Float8E5M2(_ExtensionFloat):
    dtype_cls: ClassVar[type[np.dtype[Any]]] = type(np.dtype(ml_dtypes.float8_e5m2))
    _zarr_v3_name: ClassVar[Literal["float8_e5m2"]] = "float8_e5m2"


_EXTENSIONS = (BFloat16, Float8E4M3, Float8E5M2)
