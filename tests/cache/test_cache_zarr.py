"""What lies in the cache is zarr v3: tensorstore, zarr-python and zarrs read our tensors."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore
import zarr
from cache_values import SMALL_CHUNK, files, key, put_tensor
from numpy.typing import NDArray

from mergeflow.cache.arrays import open_array
from mergeflow.cache.store import Cache
from mergeflow.dtypes import BFLOAT16, DTYPES, FLOAT8_E4M3, FLOAT32, DType
from mergeflow.errors import CorruptEntry

# One chunk, several, padded ones, leading dimensions of one, 0-d and empty.
SHAPES = [(), (0,), (5,), (63,), (7, 9), (2, 100), (3, 5, 7), (2, 3, 1, 17), (0, 4)]


def number_type(dtype: DType) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, dtype.name, dtype.name))


def same_bytes(array: object, raw: NDArray[np.uint8], dtype: DType, shape: tuple[int, ...]) -> bool:
    """Whether what a reader gave is the tensor: its dtype, shape and every bit (nan included)."""
    found = np.asarray(array)
    return (found.dtype, found.shape, found.tobytes()) == (number_type(dtype), shape, raw.tobytes())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensorstore_reads_ours(tmp_path: Path, dtype: DType, shape: tuple[int, ...]) -> None:
    """tensorstore opens an entry of any dtype, bf16 and fp8 among them, and finds every bit."""
    cache = Cache(tmp_path, chunk_bytes=SMALL_CHUNK)
    raw = put_tensor(cache, key(1), dtype, shape)
    opened = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": cache.folders.entry(key(1))}})
    assert same_bytes(opened.result().read().result(), raw, dtype, shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zarr_reads_ours_with_our_number_types(tmp_path: Path, dtype: DType, shape: tuple[int, ...]) -> None:
    """`open_array` gives a zarr array of any dtype, through the zarrs pipeline, with every bit."""
    cache = Cache(tmp_path, chunk_bytes=SMALL_CHUNK)
    raw = put_tensor(cache, key(1), dtype, shape)
    assert same_bytes(open_array(cache, key(1))[...], raw, dtype, shape)


def test_plain_zarr_reads_float32(tmp_path: Path) -> None:
    """zarr-python as it is opens a float32 tensor, a slice of it, and a record's attributes."""
    cache = Cache(tmp_path)
    raw = put_tensor(cache, key(1), FLOAT32, (3000, 200))  # several chunks of the real size
    cache.write_record(key(2), {"threshold": 0.25}, {"op": "kth_magnitude"})
    array = zarr.open_array(cache.folders.entry(key(1)), mode="r")
    values = raw.view(np.float32).reshape(3000, 200)
    assert len(files(cache, key(1))) == 2
    np.testing.assert_array_equal(array[1300:1400, 7], values[1300:1400, 7])
    np.testing.assert_array_equal(array[...], values)
    group = zarr.open_group(cache.folders.entry(key(2)), mode="r")
    assert group.attrs["mergeflow"]["record"] == {"threshold": 0.25}


def test_the_pipeline_is_zarrs_and_the_configuration_is_untouched(tmp_path: Path) -> None:
    """The array decodes with zarrs, and what the user set for zarr is what it was."""
    cache = Cache(tmp_path)
    put_tensor(cache, key(1), BFLOAT16, (5,))
    before = zarr.config.get("codec_pipeline.path")
    array = open_array(cache, key(1))
    assert type(array.async_array.codec_pipeline).__module__.startswith("zarrs")
    assert zarr.config.get("codec_pipeline.path") == before


@pytest.mark.parametrize("dtype", [BFLOAT16, FLOAT8_E4M3], ids=str)
def test_extension_types_carry_their_registered_names(tmp_path: Path, dtype: DType) -> None:
    """bf16 and fp8 stand in the metadata under the names that zarr has registered, and round-trip through zarr."""
    cache = Cache(tmp_path)
    put_tensor(cache, key(1), dtype, (5,))
    assert json.loads(files(cache, key(1))[1].read_text())["data_type"] == dtype.name
    metadata = open_array(cache, key(1)).metadata.to_dict()
    assert metadata["data_type"] == dtype.name
    assert metadata["fill_value"] == 0.0


def test_what_is_not_a_whole_tensor_is_not_opened(tmp_path: Path) -> None:
    """A record, an absent key or a tensor without its chunks is a CorruptEntry, never an array of zeros."""
    cache = Cache(tmp_path)
    cache.write_record(key(1), {}, {})
    put_tensor(cache, key(2), FLOAT32, (5,))
    files(cache, key(2))[0].unlink()
    for number in (1, 2, 3):
        with pytest.raises(CorruptEntry):
            open_array(cache, key(number))
