"""Whether an output can be patched in place, and what is then to be done for each of its shards.

Only where the layout is the same: the same shard files with the same headers, each as it was written and without a
second name. Otherwise nothing is patched, and the output is made in the usual way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from blake3 import blake3

from mergeflow.output.compare import Extent, Place, ShardWork, partial_path
from mergeflow.output.journal import JOURNAL_FILE, read_journal
from mergeflow.output.layout import Shard
from mergeflow.output.patch_record import PATCH_SUFFIX
from mergeflow.output.target import NEXT_FOLDER, Target


def why_not_in_place(target: Target, works: Sequence[ShardWork]) -> str | None:
    """Why what is to be done for the shards of `target` cannot be done in place, in a few words; None when it can."""
    if target.lock is None:
        return "there is no earlier output"
    earlier = {shard.file: shard for shard in target.lock.shards}
    intact = {shard.file for shard in target.intact}
    if earlier.keys() != {work.shard.file for work in works}:
        return "its shards are other files than before"
    for work in works:
        file = work.shard.file
        if work.state == "resumed":
            return "an interrupted run has begun to write it anew"
        if file not in intact:
            return f"{file} was changed or removed since it was written"
        if earlier[file].header != work.shard.header:
            return f"{file} is laid out in another way than before"
        if work.state == "rebuilt" and (target.path / file).stat().st_nlink > 1:
            return f"{file} has a second name (a hard link), which would change with it"
    return None


def in_place(target: Target, works: Sequence[ShardWork], token: str) -> tuple[ShardWork, ...]:
    """The same, where rebuilt shards are patched. `target` and `works` must allow it."""
    finished = target.staging / NEXT_FOLDER
    complete = {key: finished / file for key, file in read_journal(target.staging / JOURNAL_FILE, finished).items()}
    earlier = {shard.file: shard for shard in target.intact}
    return tuple(
        _patched(work, earlier[work.shard.file], target, token, complete) if work.state == "rebuilt" else work
        for work in works
    )


def _patched(work: ShardWork, earlier: Shard, target: Target, token: str, complete: Mapping[str, Path]) -> ShardWork:
    """A shard that is patched: its places are those of the tensors that change, one after the other in the patch."""
    partial = partial_path(target.staging, work.shard.file + PATCH_SUFFIX, token)
    before = {placed.tensor.name: placed.tensor.key for placed in earlier.tensors}
    places: list[Place] = []
    start = 0
    for place in work.places:
        key = place.tensor.key
        if key is not None and key == before[place.tensor.name]:
            continue
        places.append(replace(place, extent=Extent(partial, start, place.extent.nbytes)))
        start += place.extent.nbytes
    key = _patch_key(earlier, work.shard)
    found = complete.get(key) if key is not None else None
    source = found if found is not None and found.name == work.shard.file + PATCH_SUFFIX else None
    return ShardWork(work.shard, "patched", source, tuple(places), key)


def _patch_key(earlier: Shard, shard: Shard) -> str | None:
    """A patch is known by what it turns into what."""
    if earlier.key is None or shard.key is None:
        return None
    return blake3(f"patch/1 {earlier.key} {shard.key}".encode()).hexdigest()
