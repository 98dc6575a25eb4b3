"""What any store of the cache must do, wherever it keeps its entries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cache_values import SMALL_CHUNK, key, put_tensor, raw_bytes, read_whole

from mergeflow.cache.store import Cache
from mergeflow.dtypes import BFLOAT16, DTYPES, FLOAT32, DType
from mergeflow.errors import CorruptEntry

ABOUT = {"op": "kth_magnitude", "version": 1, "step": "skills"}


class StoreContract:
    """Subclass it, and override `open_store`."""

    def open_store(self, folder: Path) -> Cache:
        """A store that keeps its entries in `folder`; two for the same folder share them."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, tmp_path: Path) -> Cache:
        return self.open_store(tmp_path / "store")

    def test_an_unused_store_has_nothing(self, store: Cache) -> None:
        """Before anything is written every key is a miss, and looking makes no folder."""
        assert store.lookup([key(1), key(2)]) == {}
        assert store.sweep() == 0
        assert not store.root.exists()

    def test_a_record_comes_back_equal(self, store: Cache) -> None:
        """A record is read as it was written, by another store object too."""
        record = {"threshold": 0.1, "count": 3, "inf": float("inf"), "list": [1, 2.0, None], "flag": True}
        store.write_record(key(1), record, ABOUT)
        assert store.read_record(key(1)) == record
        assert self.open_store(store.root).read_record(key(1)) == record

    def test_lookup_tells_kind_and_size(self, store: Cache) -> None:
        """Looking keys up gives kind, bytes and what the writer said, and leaves out what is not there."""
        size = store.write_record(key(1), {"x": 1}, ABOUT)
        put_tensor(store, key(2), FLOAT32, (5,))
        found = store.lookup(key(number) for number in range(600))
        assert {name: info.kind for name, info in found.items()} == {key(1): "record", key(2): "tensor"}
        assert found[key(1)].nbytes == size
        assert found[key(1)].about == ABOUT
        assert found[key(2)].nbytes > 20

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_a_tensor_comes_back_equal(self, store: Cache, dtype: DType) -> None:
        """A tensor of any dtype is read byte for byte, with its dtype and shape."""
        values = put_tensor(store, key(1), dtype, (3, 63))
        assert np.array_equal(read_whole(store, key(1)), values)
        with store.open_tensor(key(1)) as reader:
            assert (reader.dtype, reader.shape) == (dtype, (3, 63))

    def test_a_tensor_is_invisible_until_published(self, store: Cache) -> None:
        """A writer that is still writing shows nothing to others."""
        values = raw_bytes(BFLOAT16, (64,))
        with store.create_tensor(key(1), BFLOAT16, (64,), ABOUT) as writer:
            writer.write(values)
            assert store.lookup([key(1)]) == {}
            size = writer.publish()
        assert store.lookup([key(1)])[key(1)].nbytes == size

    def test_the_first_of_two_writers_stays(self, store: Cache) -> None:
        """When two publish the same key the first stays, and the second is told nothing."""
        first = store.create_tensor(key(1), FLOAT32, (2,), {"step": "first"})
        second = store.create_tensor(key(1), FLOAT32, (2,), {"step": "second"})
        first.write(b"12345678")
        second.write(b"12345678")
        first.publish()
        second.publish()
        store.write_record(key(2), {"x": 1}, {"step": "first"})
        store.write_record(key(2), {"x": 1}, {"step": "second"})
        assert {info.about["step"] for info in store.lookup([key(1), key(2)]).values()} == {"first"}
        assert bytes(read_whole(store, key(1))) == b"12345678"

    def test_leaving_without_publishing_leaves_nothing(self, store: Cache) -> None:
        """A writer that is left without `publish` leaves no entry."""
        with store.create_tensor(key(1), FLOAT32, (2,), ABOUT) as writer:
            writer.write(b"12345678")
        assert store.lookup([key(1)]) == {}
        with pytest.raises(ValueError, match="published or aborted"):
            writer.publish()

    def test_too_many_or_too_few_bytes_are_refused(self, store: Cache) -> None:
        """A tensor with a wrong number of bytes is never published."""
        with store.create_tensor(key(1), FLOAT32, (2,), ABOUT) as writer:
            writer.write(b"1234")
            with pytest.raises(ValueError, match="9 bytes written to a tensor of 8"):
                writer.write(b"56789")
        with (
            store.create_tensor(key(1), FLOAT32, (2,), ABOUT) as writer,
            pytest.raises(ValueError, match="0 bytes written to a tensor of 8"),
        ):
            writer.publish()
        assert store.lookup([key(1)]) == {}

    def test_reading_outside_a_tensor_is_refused(self, store: Cache) -> None:
        """A range that is not inside the tensor, or not of whole elements, is an error of the caller."""
        put_tensor(store, key(1), FLOAT32, (10,))
        with store.open_tensor(key(1)) as reader:
            for start, size in ((-1, 4), (10, 4), (9, 8), (0, 44), (0, 3)):
                with pytest.raises(ValueError, match="are not in a tensor of 40 bytes"):
                    reader.read_into(start, bytearray(size))

    def test_a_discarded_entry_is_gone_and_can_be_written_again(self, store: Cache) -> None:
        """`discard` makes a miss of an entry, and of an absent one nothing."""
        store.write_record(key(1), {"x": 1}, ABOUT)
        store.discard(key(1))
        store.discard(key(2))
        assert store.lookup([key(1)]) == {}
        store.write_record(key(1), {"x": 2}, ABOUT)
        assert store.read_record(key(1)) == {"x": 2}

    def test_reading_what_is_not_there_is_a_corrupt_entry(self, store: Cache) -> None:
        """An entry that another process has just removed is damage to its reader, which computes it again."""
        for read in (store.read_record, store.open_tensor):
            with pytest.raises(CorruptEntry, match="not there") as raised:
                read(key(1))
            assert raised.value.key == key(1)

    def test_a_tensor_is_no_record(self, store: Cache) -> None:
        """Asking for the wrong kind is damage, not a crash."""
        put_tensor(store, key(1), FLOAT32, (2,))
        store.write_record(key(2), {}, ABOUT)
        with pytest.raises(CorruptEntry, match="it is a tensor"):
            store.read_record(key(1))
        with pytest.raises(CorruptEntry, match="it is a record"):
            store.open_tensor(key(2))

    @pytest.mark.parametrize("name", ["", "..", "../" * 21 + "x", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n"])
    def test_only_keys_name_entries(self, store: Cache, name: str) -> None:
        """What is not 64 lowercase hexadecimal digits is refused before it names a path."""
        for use in (
            store.read_record,
            store.open_tensor,
            store.discard,
            lambda key: store.lookup([key]),
            lambda key: store.write_record(key, {}, {}),
            lambda key: store.create_tensor(key, FLOAT32, (1,), {}),
        ):
            with pytest.raises(ValueError, match="64 lowercase hexadecimal digits"):
                use(name)
        assert not store.root.exists()

    def test_chunks_of_another_size_are_read(self, store: Cache) -> None:
        """A tensor says itself how it is cut, so a store with another setting reads it."""
        values = put_tensor(Cache(store.root, chunk_bytes=SMALL_CHUNK), key(1), FLOAT32, (7, 9))
        assert np.array_equal(read_whole(store, key(1)), values)
