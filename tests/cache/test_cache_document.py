"""The text of zarr.json: what older and newer versions of mergeflow, and other zarr readers, rely on."""

from __future__ import annotations

import json

from cache_values import key

from mergeflow.cache.document import RecordDocument, TensorDocument, decode, encode_record, encode_tensor
from mergeflow.cache.layout import Layout
from mergeflow.dtypes import BFLOAT16

KEY = key(1)


def test_the_format_of_records_is_fixed() -> None:
    """A record's text is this; when it changes, FORMAT must change, or old caches would be read wrongly."""
    text = encode_record(KEY, {"x": 0.1, "nan": float("nan"), "raw": b"ab", "$y": [True, None]}, {"op": "gram"})
    assert text.decode() == (
        '{"zarr_format":3,"node_type":"group","attributes":{"mergeflow":{"format":1,"kind":"record",'
        f'"key":"{KEY}","about":{{"op":"gram"}},"record":{{"x":0.1,"nan":{{"$float":"7ff8000000000000"}},'
        '"raw":{"$bytes":"YWI="},"$$y":[true,null]},"seal":"f94e82bad35a2e36d3b5587d7ae50445"}}}'
    )


def test_the_format_of_tensors_is_fixed() -> None:
    """A tensor's metadata is this; when it changes, FORMAT must change."""
    layout = Layout(shape=(5, 4), chunk=(3, 4), itemsize=2)
    node = json.loads(encode_tensor(KEY, BFLOAT16, layout, {"op": "trim"}))
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    seal = node["attributes"]["mergeflow"].pop("seal")
    assert len(seal) == 32
    assert node == {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [5, 4],
        "data_type": "bfloat16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [6, 4]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0.0,
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [3, 4],
                    "codecs": [little, {"name": "crc32c"}],
                    "index_codecs": [little, {"name": "crc32c"}],
                    "index_location": "end",
                },
            }
        ],
        "attributes": {
            "mergeflow": {"format": 1, "kind": "tensor", "key": KEY, "about": {"op": "trim"}, "chunk": [3, 4]}
        },
    }


def test_documents_say_what_was_encoded() -> None:
    """Decoding gives back the record, or the dtype and layout, and what was told about it."""
    record = decode(KEY, encode_record(KEY, {"x": 1}, {"op": "gram"}))
    assert isinstance(record, RecordDocument)
    assert (record.record, record.about) == ({"x": 1}, {"op": "gram"})
    layout = Layout(shape=(5, 4), chunk=(3, 4), itemsize=2)
    assert decode(KEY, encode_tensor(KEY, BFLOAT16, layout, {})) == TensorDocument(BFLOAT16, layout, {})
