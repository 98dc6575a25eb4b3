"""Unchanged tensors are copied in runs: as few as there can be, and with the bytes that one by one would give."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from output_builders import UnsyncedDisk, content_of, expected_tensors, read_tensors, tensors, write_model

from mergeflow.output.copies import copy_run, copy_runs
from mergeflow.output.layout import plan_shards
from mergeflow.output.staging import open_staging

NAMES = "abcdefgh"


def test_neighbours_are_one_run(tmp_path: Path) -> None:
    """One changed tensor of eight: what stands before it is one run, and what stands behind it another."""
    write_model(tmp_path / "model", tensors(NAMES), limit=0)
    planned = tensors({name: "new" if name == "d" else name for name in NAMES})
    with open_staging(tmp_path / "model", plan_shards(planned, 0), UnsyncedDisk()) as staging:
        runs = copy_runs(staging.works[0].places)
        assert [run.tensors for run in runs] == [("a", "b", "c"), ("e", "f", "g", "h")]
        assert [run.to.nbytes for run in runs] == [3 * 64, 4 * 64]


def test_equal_tensors_are_copied_from_their_own_place(tmp_path: Path) -> None:
    """Two names for one value, as tied tensors are: each is copied from where it lies, in one run with the others."""
    keys = dict(zip(NAMES, "1231456x", strict=True))
    write_model(tmp_path / "model", tensors(keys), limit=0)
    with open_staging(tmp_path / "model", plan_shards(tensors({**keys, "h": "y"}), 0), UnsyncedDisk()) as staging:
        [run] = copy_runs(staging.works[0].places)
        assert run.tensors == tuple("abcdefg")


def test_a_copy_says_how_far_it_is(tmp_path: Path) -> None:
    """Whoever watches a copy is told of every byte, and can end it."""
    write_model(tmp_path / "model", tensors(NAMES), limit=0)
    planned = tensors({name: "new" if name == "a" else name for name in NAMES})
    with open_staging(tmp_path / "model", plan_shards(planned, 0), UnsyncedDisk()) as staging:
        [run] = copy_runs(staging.works[0].places)
        counts: list[int] = []
        copy_run(run, counts.append)
        assert sum(counts) == run.to.nbytes
        assert run.to.file.read_bytes()[run.to.offset :] == b"".join(content_of(it) for it in planned[1:])


@settings(max_examples=25, deadline=None)
@given(
    order=st.permutations(NAMES),
    changed=st.sets(st.sampled_from(NAMES)),
    limits=st.tuples(st.sampled_from([0, 64, 128, 200]), st.sampled_from([0, 64, 128, 200])),
)
def test_whatever_moves_the_bytes_are_right(
    tmp_path_factory: object, order: list[str], changed: set[str], limits: tuple[int, int]
) -> None:
    """Tensors that change shard, order or value: the output is what it is from nothing, and runs never overlap."""
    folder = tmp_path_factory.mktemp("copies") / "model"  # type: ignore[attr-defined]
    write_model(folder, tensors(NAMES), limits[0])
    planned = tensors({name: name + "!" if name in changed else name for name in order})
    with open_staging(folder, plan_shards(planned, limits[1]), UnsyncedDisk()) as staging:
        for work in staging.works:
            runs = copy_runs(work.places)
            assert sum(run.to.nbytes for run in runs) == sum(
                place.extent.nbytes for place in work.places if place.copy_from
            )
            assert all(one.to.offset + one.to.nbytes <= two.to.offset for one, two in pairwise(runs))
    write_model(folder, planned, limits[1])
    assert read_tensors(folder) == expected_tensors(planned)
