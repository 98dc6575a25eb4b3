"""The sample of a shard: the start and the middle of every tensor, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergeflow.dtypes import BFLOAT16
from mergeflow.output.layout import OutputTensor, Shard, plan_shards
from mergeflow.output.sample import sample_digest


def written(path: Path, lengths: list[int]) -> Shard:
    """A shard at `path` of tensors of so many 16-bit values, each with other bytes."""
    planned = [OutputTensor(f"t{number}", BFLOAT16, (length,), None) for number, length in enumerate(lengths)]
    [shard] = plan_shards(planned, 0)
    path.write_bytes(shard.header + blake3(b"bytes").digest(length=shard.data_bytes))
    return shard


def change_byte(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(lengths=st.lists(st.sampled_from([0, 1, 63, 2048, 2049, 4097, 9000]), min_size=1, max_size=4))
def test_a_sample_is_a_digest_of_starts_and_middles(tmp_path: Path, lengths: list[int]) -> None:
    """For tensors of any size: blake3 over 4096 bytes from the start and from the middle of each, cut at its end."""
    path = tmp_path / "shard"
    shard = written(path, lengths)
    content, expected = path.read_bytes(), blake3()
    for placed in shard.tensors:
        tensor = content[placed.offset : placed.offset + placed.tensor.nbytes]
        expected.update(tensor[:4096] + tensor[len(tensor) // 2 :][:4096])
    assert sample_digest(path, shard) == expected.hexdigest()


@pytest.mark.parametrize(
    ("offset", "seen"),
    [(0, True), (4095, True), (4096, False), (9999, False), (10000, True), (14095, True), (14096, False)],
)
def test_which_bytes_of_a_large_tensor_are_seen(tmp_path: Path, offset: int, seen: bool) -> None:
    """A changed byte shows exactly when it is among the first 4096 or the 4096 from the middle of 20000 on."""
    shard = written(tmp_path / "shard", [63, 10_000])
    before = sample_digest(tmp_path / "shard", shard)
    change_byte(tmp_path / "shard", shard.tensors[1].offset + offset)
    assert (sample_digest(tmp_path / "shard", shard) != before) is seen


def test_every_byte_of_a_tensor_of_eight_kibibytes_is_seen(tmp_path: Path) -> None:
    """Start and middle together are the whole of a small tensor, its last byte included."""
    shard = written(tmp_path / "shard", [4096])
    before = sample_digest(tmp_path / "shard", shard)
    for offset in (4095, 4096, 8191):
        change_byte(tmp_path / "shard", shard.tensors[0].offset + offset)
        assert sample_digest(tmp_path / "shard", shard) != before
        change_byte(tmp_path / "shard", shard.tensors[0].offset + offset)


def test_a_file_that_ends_early_has_no_sample(tmp_path: Path) -> None:
    """A cut file is an error, never the sample of what is left."""
    shard = written(tmp_path / "shard", [63])
    (tmp_path / "shard").write_bytes((tmp_path / "shard").read_bytes()[:-1])
    with pytest.raises(OSError, match="ends before byte"):
        sample_digest(tmp_path / "shard", shard)
