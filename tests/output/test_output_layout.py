"""Where tensors are placed: mergekit's rule of shards, the safetensors library's rule of bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from output_builders import content_of, tensor
from safetensors import safe_open
from safetensors.numpy import save_file

from mergeflow.dtypes import BFLOAT16, DTYPES, FLOAT32, by_name
from mergeflow.errors import OutputError
from mergeflow.output import layout
from mergeflow.output.layout import OutputTensor, Shard, index_json, plan_shards, shard_of

shapes = st.sampled_from([(), (1,), (63,), (0,), (3, 0, 2)]) | st.tuples(st.integers(1, 5), st.integers(1, 7))
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(lambda name: name != "__metadata__")


@st.composite
def tensor_lists(draw: st.DrawFn) -> list[OutputTensor]:
    chosen = draw(st.lists(names, min_size=1, max_size=12, unique=True))
    return [OutputTensor(name, draw(st.sampled_from(DTYPES)), draw(shapes), f"key of {name}") for name in chosen]


def write(shard: Shard, folder: Path) -> Path:
    path = folder / shard.file
    path.write_bytes(shard.header + b"".join(content_of(placed.tensor) for placed in shard.tensors))
    return path


@given(tensor_lists(), st.integers(0, 200))
def test_every_tensor_is_placed_once_without_gaps_and_aligned(tensors: list[OutputTensor], limit: int) -> None:
    """Each tensor has its place, in its shard's data, at a multiple of its item size, with nothing in between."""
    shards = plan_shards(tensors, limit)

    placed_names = [placed.tensor.name for shard in shards for placed in shard.tensors]
    assert sorted(placed_names) == sorted(one.name for one in tensors)
    for shard in shards:
        offset = len(shard.header)
        assert offset % 8 == 0
        for placed in shard.tensors:
            assert placed.offset == offset
            assert placed.offset % placed.tensor.dtype.itemsize == 0
            offset += placed.tensor.nbytes
        assert shard.size == offset


@given(tensor_lists(), st.integers(1, 200))
def test_a_shard_is_over_the_limit_only_when_one_tensor_alone_is(tensors: list[OutputTensor], limit: int) -> None:
    """No shard exceeds the limit but by a single tensor (and empty ones before or after cannot make it exceed)."""
    for shard in plan_shards(tensors, limit):
        filled = [placed for placed in shard.tensors if placed.tensor.nbytes]
        assert shard.data_bytes <= limit or len(filled) == 1


@given(tensor_lists(), st.integers(1, 200))
def test_shards_take_tensors_in_order_and_are_filled(tensors: list[OutputTensor], limit: int) -> None:
    """Shards hold consecutive tensors, and the first tensor of a shard would not have fitted the one before."""
    shards = plan_shards(tensors, limit)
    order = {one.name: number for number, one in enumerate(tensors)}
    numbers = [sorted(order[placed.tensor.name] for placed in shard.tensors) for shard in shards]

    assert [number for group in numbers for number in group] == list(range(len(tensors)))
    for earlier, group in zip(shards, numbers[1:], strict=False):
        assert earlier.data_bytes + tensors[group[0]].nbytes > limit


@given(tensor_lists())
def test_the_safetensors_library_reads_back_names_dtypes_shapes_and_bytes(
    tmp_path_factory: pytest.TempPathFactory, tensors: list[OutputTensor]
) -> None:
    """A file written from a planned header opens in the safetensors library with exactly what was planned."""
    folder = tmp_path_factory.mktemp("shard")
    [shard] = plan_shards(tensors, 0)
    path = write(shard, folder)

    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == {one.name for one in tensors}
        for one in tensors:
            found = file.get_slice(one.name)
            assert (found.get_dtype(), tuple(found.get_shape())) == (one.dtype.code, one.shape)


def test_a_header_is_the_one_the_safetensors_library_writes(tmp_path: Path) -> None:
    """For tensors in the library's own order (by width, then name), the whole file is the library's, byte for byte."""
    int16 = by_name("int16")
    planned = [tensor("b", dtype=FLOAT32), tensor("a", dtype=int16), tensor("c é", shape=(3,), dtype=int16)]
    [shard] = plan_shards(planned, 0)
    ours = write(shard, tmp_path).read_bytes()

    arrays = {
        one.name: numpy.frombuffer(content_of(one), numpy.dtype(one.dtype.name)).reshape(one.shape) for one in planned
    }
    save_file(arrays, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert ours == (tmp_path / "theirs.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([60, 60, 60], 128, [[60, 60], [60]]),
        ([64, 64, 64], 128, [[64, 64], [64]]),
        ([64, 66, 2], 128, [[64], [66, 2]]),
        ([10, 500, 10], 128, [[10], [500], [10]]),
        ([500, 0, 10], 128, [[500], [0, 10]]),
        ([500, 500], 0, [[500, 500]]),
        ([0, 0], 128, [[0, 0]]),
    ],
)
def test_the_shard_rule(sizes: list[int], limit: int, expected: list[list[int]]) -> None:
    """A shard ends when it holds something and the next tensor would take it over the limit; 0 is no limit."""
    planned = [tensor(str(number), shape=(size // 2,)) for number, size in enumerate(sizes)]
    shards = plan_shards(planned, limit)
    assert [[placed.tensor.nbytes for placed in shard.tensors] for shard in shards] == expected


def test_file_names() -> None:
    """One shard is model.safetensors, several are numbered from 1 with five digits; no tensors, no shards."""
    planned = [tensor("a"), tensor("b"), tensor("c")]
    assert [shard.file for shard in plan_shards(planned, 0)] == ["model.safetensors"]
    assert [shard.file for shard in plan_shards(planned, 128)] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert plan_shards([], 128) == ()


def test_wider_formats_come_first_and_equal_ones_keep_their_order() -> None:
    """An odd count of 16-bit values does not push 64-bit ones off their alignment, as the format allows no gap."""
    planned = [tensor("z", shape=(3,)), tensor("ids", shape=(2,), dtype=by_name("int64")), tensor("a", shape=(5,))]
    [shard] = plan_shards(planned, 0)
    assert [placed.tensor.name for placed in shard.tensors] == ["ids", "z", "a"]


def test_a_shard_key_follows_its_contents_and_not_its_name() -> None:
    """The key changes with any tensor's key, name, shape, dtype or order, and not with the file's name."""
    planned = [tensor("a"), tensor("b")]
    key = shard_of("x", planned).key

    assert shard_of("y", planned).key == key
    others = [
        [tensor("a"), tensor("b", key="other")],
        [tensor("a"), tensor("c", key="b")],
        [tensor("b"), tensor("a")],
        [tensor("a"), tensor("b", shape=(32,))],
        [tensor("a"), tensor("b", dtype=FLOAT32)],
        [tensor("a")],
    ]
    assert key not in {shard_of("x", other).key for other in others}


def test_a_shard_with_a_tensor_of_unknown_content_has_no_key() -> None:
    """Nothing may be assumed about a tensor without a key, so the shard that holds it has none either."""
    assert shard_of("x", [tensor("a"), OutputTensor("b", BFLOAT16, (2,), None)]).key is None


def test_a_shard_key_is_the_same_on_every_machine() -> None:
    """The key of a given shard is this digest: locks written today are understood tomorrow."""
    golden = "4bd2f9c4caa6915625f23f5eb2be8c622c2ed6639dbeaa711351c7bb412f572d"
    assert shard_of("x", [tensor("a"), tensor("b", shape=())]).key == golden


def test_the_index_names_every_tensor_in_written_order() -> None:
    """model.safetensors.index.json maps each tensor to its file and states the bytes of data."""
    index = json.loads(index_json(plan_shards([tensor("b"), tensor("a"), tensor("é")], 128)))
    assert index == {
        "metadata": {"total_size": 192},
        "weight_map": {
            "b": "model-00001-of-00002.safetensors",
            "a": "model-00001-of-00002.safetensors",
            "é": "model-00002-of-00002.safetensors",
        },
    }
    assert list(index["weight_map"]) == ["b", "a", "é"]


@pytest.mark.parametrize("names", [["a", "a"], ["__metadata__"], ["half \udc80 pair"]])
def test_names_that_cannot_be_written_are_refused(names: list[str]) -> None:
    """Two tensors of one name, the name of the header's own entry, half a surrogate pair: an error before any byte."""
    with pytest.raises(OutputError, match="called"):
        plan_shards([OutputTensor(name, BFLOAT16, (), "k") for name in names], 0)


def test_a_header_that_no_reader_accepts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard whose header the safetensors library would not read is an error that names the setting to change."""
    monkeypatch.setattr(layout, "MAX_HEADER_BYTES", 100)
    with pytest.raises(OutputError, match="max_shard_size"):
        plan_shards([tensor("a"), tensor("b")], 0)
