from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import GOLDEN, Entries, age, pattern, write_weights

from mergeflow.dtypes import BFLOAT16, DTYPES, FLOAT16
from mergeflow.errors import CheckpointError, RunError
from mergeflow.models import hashing
from mergeflow.models.digests import DigestMemory, is_settled
from mergeflow.models.header import read_header
from mergeflow.models.records import FileIdentity, Segment, TensorSource

DAY = 86_400 * 10**9


def tomorrow() -> int:
    """A clock a day ahead: files written just now count as settled."""
    return time.time_ns() + DAY


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    entries = {f"layers.{i}.w": ("F32", (63, i)) for i in range(12)} | {"scalar": ("BF16", ()), "odd": ("U8", (5,))}
    path = write_weights(tmp_path / "model.safetensors", entries)
    age(path)  # so that a write in the same tick of the clock shows
    return path


@pytest.fixture
def memory(tmp_path: Path) -> DigestMemory:
    return DigestMemory(tmp_path / "state" / "digests.sqlite", now_ns=tomorrow)


def sources(path: Path) -> list[TensorSource]:
    return list(read_header(path).tensors.values())


def test_a_digest_is_of_dtype_shape_and_bytes_and_stays_what_it_is(tmp_path: Path) -> None:
    """Golden digests: when one of these changes, every key of every cache changes, and the prefix's number must too."""
    path = write_weights(tmp_path / "w.safetensors", {"a": ("F32", (2, 3)), "s": ("BF16", ()), "e": ("I64", (0, 4))})
    found = {source.name: digest for source, digest in DigestMemory(None).compute(sources(path), 1).items()}
    assert found == {
        "a": "5493ca3ab705641f6f4b108a0d2857cfc7b62cd7d8e8423597195a5706f9af33",
        "s": "fab07e11ea9b56913c8f0550f5a8c193b19914b6a0c51308adc2ecdd6203282a",
        "e": "84bb3c22b11ce549e074720012ff1ab798e67f1cb6874bb4f6e0bc2b9a34b8ff",
    }
    assert found["a"] == blake3(b"mergeflow/tensor/1\0float32\x002,3\0" + pattern(24)).hexdigest()


def test_values_have_one_digest_wherever_they_lie(tmp_path: Path) -> None:
    """Name, file, offset and segments do not enter a digest; dtype and shape do."""
    one = sources(write_weights(tmp_path / "1.safetensors", {"a": ("F16", (8,))}))[0]
    # The same bytes again, behind another tensor of another file: pattern() repeats itself from byte 0 on only.
    (tmp_path / "2").write_bytes(b"xxx" + pattern(16))
    status = (tmp_path / "2").stat()
    file = FileIdentity(str(tmp_path / "2"), 19, status.st_mtime_ns, status.st_ino, status.st_dev)
    halves = (Segment(file, 3, 6), Segment(file, 9, 10))
    moved = TensorSource("other", FLOAT16, (8,), halves)
    others = [replace(moved, shape=(2, 4)), replace(moved, shape=(8, 1)), replace(moved, dtype=BFLOAT16)]
    found = DigestMemory(None).compute([one, moved, *others], 2)
    assert found[one] == found[moved]
    assert len({found[source] for source in (one, *others)}) == 4


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(DTYPES),
    st.lists(st.sampled_from([0, 1, 2, 63]), max_size=2).map(tuple),
    st.sampled_from([61, 1000, 1 << 16]),
    st.integers(0, 50),
)
def test_a_digest_does_not_depend_on_how_the_bytes_are_read(
    tmp_path_factory: pytest.TempPathFactory, dtype: object, shape: tuple[int, ...], block: int, cut: int
) -> None:
    """Any block size and any division into segments gives the hash of prefix and bytes."""
    source = TensorSource("x", dtype, shape, ())  # type: ignore[arg-type]
    path = tmp_path_factory.mktemp("w") / "bytes"
    path.write_bytes(b"head" + pattern(source.nbytes))
    status = path.stat()
    file = FileIdentity(str(path), status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)
    cut = min(cut, source.nbytes)
    source = replace(source, segments=(Segment(file, 4, cut), Segment(file, 4 + cut, source.nbytes - cut)))
    digests, _ = hashing.hash_batch([source], memoryview(bytearray(block)), threading.Event())
    assert digests[source] == blake3(hashing.prefix(source) + pattern(source.nbytes)).hexdigest()


def test_nothing_is_known_at_first(weights: Path, memory: DigestMemory) -> None:
    """Without a memory there are no digests, and asking creates no file."""
    assert memory.known(sources(weights)) == {}
    assert memory.path is not None
    assert not memory.path.exists()


def test_what_was_computed_is_known(weights: Path, memory: DigestMemory) -> None:
    """A later process finds every digest without opening the weights."""
    computed = memory.compute(sources(weights), 2)
    again = sources(weights)
    weights.rename(weights.with_name("moved"))  # were the file opened now, it would not be found
    assert memory.known(again) == computed
    assert memory.compute(again, 2) == computed


def test_only_what_is_missing_is_hashed(weights: Path, memory: DigestMemory) -> None:
    """Each byte is hashed once; progress counts exactly the bytes that are."""
    everything = sources(weights)
    counts: list[int] = []
    memory.compute(everything[:5], 2, counts.append)
    assert sum(counts) == sum(source.nbytes for source in everything[:5])
    counts.clear()
    memory.compute(everything, 2, counts.append)
    assert sum(counts) == sum(source.nbytes for source in everything[5:])
    counts.clear()
    memory.compute(everything, 2, counts.append)
    assert counts == []


def test_the_result_does_not_depend_on_threads_or_order(weights: Path) -> None:
    """One thread or five, forwards or backwards: the same digests."""
    everything = sources(weights)
    one = DigestMemory(None).compute(everything, 1)
    assert DigestMemory(None).compute(reversed(everything), 5) == one


def test_progress_comes_in_the_callers_thread(weights: Path, memory: DigestMemory) -> None:
    """A progress bar need not be safe against threads."""
    threads = set()
    memory.compute(sources(weights), 3, lambda _count: threads.add(threading.current_thread()))
    assert threads == {threading.current_thread()}


def test_a_rewritten_file_is_unknown(weights: Path, memory: DigestMemory) -> None:
    """Other bytes of the same size in the same file have other digests, and the old ones are not found."""
    before = memory.compute(sources(weights), 2)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert memory.known(sources(weights)) == {}
    assert set(memory.compute(sources(weights), 2).values()) != set(before.values())


def test_a_rewritten_file_with_its_old_time_is_unknown(weights: Path, memory: DigestMemory) -> None:
    """`cp -p` between models unpacked from one archive keeps inode, size and mtime; ctime gives it away."""
    memory.compute(sources(weights), 2)
    status = weights.stat()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    while weights.stat().st_ctime_ns == status.st_ctime_ns:  # until the clock's next tick
        os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert weights.stat().st_mtime_ns == status.st_mtime_ns
    assert memory.known(sources(weights)) == {}


def test_a_file_younger_than_the_clocks_tick_is_hashed_but_not_remembered(weights: Path, tmp_path: Path) -> None:
    """A second write within the tick could leave the same time: such a digest is not kept."""
    changed = weights.stat().st_ctime_ns
    young = DigestMemory(tmp_path / "young.sqlite", now_ns=lambda: changed + 10_000_000)
    assert len(young.compute(sources(weights), 2)) == len(sources(weights))
    assert young.known(sources(weights)) == {}
    old = DigestMemory(tmp_path / "old.sqlite", now_ns=lambda: changed + 5 * 10**9)
    assert old.compute(sources(weights), 2) == old.known(sources(weights))


@pytest.mark.parametrize(
    ("mtime", "ctime", "age_ns", "settled"),
    [
        (5, 5, 50_000_000, False),
        (5, 5, 50_000_001, True),
        (0, 5, 50_000_000, False),
        (5, 0, 2 * 10**9, False),
        (0, 0, 2 * 10**9, False),
        (0, 0, 2 * 10**9 + 1, True),
    ],
)
def test_when_a_file_is_settled(mtime: int, ctime: int, age_ns: int, settled: bool) -> None:
    """50 ms after the later of mtime and ctime, or 2 s where times are whole seconds."""
    base = 1_700_000_000 * 10**9
    file = FileIdentity("x", 1, base + mtime, 1, 1, ctime_ns=base + ctime)
    assert is_settled(file, base + max(mtime, ctime) + age_ns) is settled


def test_a_packed_tensor_is_remembered(tmp_path: Path, memory: DigestMemory) -> None:
    """A tensor of many segments in two files is known again, by all its places."""
    first = sources(write_weights(tmp_path / "1.safetensors", {f"a{i}": ("F32", (3,)) for i in range(40)}))
    other = write_weights(tmp_path / "2.safetensors", {"b": ("F32", (3,))}, seed=4)
    age(other)
    second = sources(other)
    segments = tuple(segment for source in (*first, *second) for segment in source.segments)
    packed = TensorSource("packed", first[0].dtype, (41, 3), segments)
    found = memory.compute([packed], 2)
    assert memory.known([packed]) == found
    assert memory.known([replace(packed, segments=segments[::-1])]) == {}
    fresh = sources(write_weights(other, {"b": ("F32", (3,))}, seed=5))[0].segments
    assert memory.known([replace(packed, segments=segments[:-1] + fresh)]) == {}


def blob(cache: Path, name: str, entries: Entries) -> Path:
    """A file as the hub's cache keeps it; `name` stands for the sha256 of its bytes. The link is what is returned."""
    write_weights(cache / "blobs" / name, entries)
    link = cache / "snapshots" / "c0ffee" / "model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(f"../../blobs/{name}")
    return link


def test_a_hub_blob_is_known_anywhere_by_its_name(tmp_path: Path, memory: DigestMemory) -> None:
    """The same blob in another cache, and the file on the hub before it is downloaded, need no hashing."""
    entries = {"a": ("F32", (4,)), "b": ("F32", (2,))}
    here = sources(blob(tmp_path / "one" / "models--o--n", "ab" * 32, entries))
    digests = memory.compute(here, 2)
    there = sources(blob(tmp_path / "two" / "models--o--n", "ab" * 32, entries))
    assert list(memory.known(there).values()) == list(digests.values())
    remote = FileIdentity("hub://o/n@c0ffee/m", here[0].segments[0].file.size, 0, 0, 0, content="sha256:" + "ab" * 32)
    on_hub = [replace(s, segments=(replace(s.segments[0], file=remote),)) for s in here]
    assert list(memory.known(on_hub).values()) == list(digests.values())


def test_a_blob_that_was_written_through_its_link_is_not_known_by_its_name(
    tmp_path: Path, memory: DigestMemory
) -> None:
    """A trainer that saved into the folder it loaded from has changed what the name stands for."""
    link = blob(tmp_path / "models--o--n", "cd" * 32, {"a": ("F32", (4,))})
    before = memory.compute(sources(link), 1)
    written = write_weights(link, {"a": ("F32", (4,))}, seed=9)
    os.utime(written, ns=(0, os.lstat(link).st_mtime_ns + 1))
    assert sources(link)[0].segments[0].file.content is None
    assert memory.known(sources(link)) == {}
    assert list(memory.compute(sources(link), 1).values()) != list(before.values())


def test_other_links_have_no_name_for_their_bytes(tmp_path: Path) -> None:
    """64 hexadecimal digits mean something only inside the hub's cache."""
    target = write_weights(tmp_path / "store" / ("ef" * 32), {"a": ("F32", (1,))})
    for folder in ("snapshots/x", "plain"):
        link = tmp_path / folder / "model.safetensors"
        link.parent.mkdir(parents=True)
        link.symlink_to(target)
        assert read_header(link).file.content is None


def test_what_is_not_downloaded_cannot_be_hashed(memory: DigestMemory) -> None:
    """A tensor known only by its remote header is refused by name, not looked for on disk."""
    file = FileIdentity("hub://org/name@abc/model.safetensors", 10, 0, 0, 0)
    source = TensorSource("a", FLOAT16, (1,), (Segment(file, 8, 2),))
    with pytest.raises(CheckpointError, match=r"hub://org/name@abc/model\.safetensors: has not been downloaded"):
        memory.compute([source], 1)


def test_a_file_replaced_before_it_is_read_is_an_error(weights: Path, memory: DigestMemory) -> None:
    """The header that was read and the bytes that would be hashed must be of one file."""
    old = sources(weights)
    weights.unlink()
    write_weights(weights, {"layers.0.w": ("F32", (63, 11))})
    with pytest.raises(RunError, match="was replaced while reading"):
        memory.compute(old, 2)
    assert memory.known(old) == {}


def test_a_file_written_while_it_is_read_is_an_error(
    weights: Path, memory: DigestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write between two blocks is noticed after the last one, and nothing is remembered."""
    files = sources(weights)
    preadv = os.preadv

    def meddling(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        with weights.open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            stream.write(b"!")
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", meddling)
    with pytest.raises(RunError, match="was replaced while reading"):
        memory.compute(files, 1)
    monkeypatch.undo()
    assert memory.known(files) == {}


def test_a_file_that_shrinks_is_an_error(weights: Path, memory: DigestMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that gives nothing ends the call instead of looping for ever."""
    monkeypatch.setattr(os, "preadv", lambda *_: 0)
    with pytest.raises(RunError, match="became shorter while reading"):
        memory.compute(sources(weights), 2)


def test_a_failing_disk_is_an_error(weights: Path, memory: DigestMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read error names the file and the system's reason."""

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(RunError, match=r"model\.safetensors: cannot be read: Input/output error"):
        memory.compute(sources(weights), 2)


def test_an_interrupted_call_keeps_what_it_had_finished(
    weights: Path, memory: DigestMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ctrl-C ends the call with what was hashed so far remembered."""
    monkeypatch.setattr(hashing, "BATCH_BYTES", 1)
    everything = sources(weights)
    calls: list[int] = []

    def interrupt(count: int) -> None:
        calls.append(count)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memory.compute(everything, 1, interrupt)
    assert len(memory.known(everything)) >= 4


def test_an_error_keeps_what_other_files_gave(weights: Path, tmp_path: Path, memory: DigestMemory) -> None:
    """The digests of sound files are kept when a later file turns out to be replaced."""
    other = write_weights(tmp_path / "z" / "model.safetensors", {"z": ("F32", (2,))})
    good, bad = sources(weights), sources(other)
    write_weights(other, {"z": ("F32", (3,))})
    with pytest.raises(RunError):
        memory.compute([*good, *bad], 1)
    assert len(memory.known(good)) == len(good)


def damage_nothing(path: Path) -> None:
    path.write_bytes(b"")


def damage_header(path: Path) -> None:
    path.write_bytes(b"not a database, whatever its name says" * 50)


def damage_pages(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100:] = bytes(len(content) - 100)
    path.write_bytes(content)


def damage_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_table(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE digests_1 (something TEXT)")
    database.close()


def damage_into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage", [damage_nothing, damage_header, damage_pages, damage_half, damage_table, damage_into_folder]
)
def test_a_damaged_memory_costs_time_and_nothing_else(
    weights: Path, memory: DigestMemory, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever became of the sqlite file, digests are right, and unless it is as good as new a warning says so."""
    right = memory.compute(sources(weights), 2)
    assert memory.path is not None
    damage(memory.path)
    assert memory.compute(sources(weights), 2) == right
    if damage is damage_nothing:
        assert memory.known(sources(weights)) == right
    else:
        assert str(memory.path) in caplog.text


def test_a_damaged_row_is_a_row_not_found(weights: Path, memory: DigestMemory) -> None:
    """A digest that changed on disk would be a wrong key: its proof does not fit, and it is computed again."""
    right = memory.compute(sources(weights), 2)
    assert memory.path is not None
    with sqlite3.connect(memory.path) as database:
        database.execute("UPDATE digests_1 SET digest = '0' || substr(digest, 2) WHERE tensor LIKE 'float32%'")
        database.execute("UPDATE digests_1 SET digest = NULL, proof = 5 WHERE tensor LIKE 'uint8%'")
    database.close()
    known = memory.known(sources(weights))
    assert 0 < len(known) < len(right)
    assert all(right[source] == digest for source, digest in known.items())
    assert memory.compute(sources(weights), 2) == right


def test_a_locked_memory_is_gone_without(
    weights: Path, memory: DigestMemory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that holds the file cannot stop a run, and the trouble is said once."""
    monkeypatch.setattr("mergeflow.models.memory._WAIT_SECONDS", 0.01)
    assert memory.path is not None
    memory.path.parent.mkdir()
    holder = sqlite3.connect(memory.path)
    holder.execute("BEGIN EXCLUSIVE")
    assert len(memory.compute(sources(weights), 2)) == len(sources(weights))
    holder.close()
    assert "locked" in caplog.text


def test_a_place_that_cannot_be_written_is_gone_without(
    weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A memory whose folder cannot be made does not fail a run."""
    (tmp_path / "file").write_text("")
    memory = DigestMemory(tmp_path / "file" / "digests.sqlite", now_ns=tomorrow)
    assert len(memory.compute(sources(weights), 2)) == len(sources(weights))
    assert len(caplog.records) == 1


def test_no_memory_is_a_choice(weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a path everything is hashed and nothing is said."""
    memory = DigestMemory(None, now_ns=tomorrow)
    assert len(memory.compute(sources(weights), 2)) == len(sources(weights))
    assert memory.known(sources(weights)) == {}
    assert not caplog.records


WORKER = """
import sys
from pathlib import Path
from mergeflow.models.digests import DigestMemory
from mergeflow.models.header import read_header
print("ready", flush=True)
sys.stdin.readline()
memory = DigestMemory(Path(sys.argv[1]), now_ns=lambda: 4 * 10**18)
for path in sys.argv[2:]:
    for source in read_header(Path(path)).tensors.values():
        for found, digest in memory.compute([source], 2).items():
            print(found.name, digest)
"""


def run_workers(count: int, arguments: Iterable[str]) -> list[str]:
    """What `count` processes print that start computing at the same moment."""
    command = [sys.executable, "-W", "error", "-c", WORKER, *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    workers = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        for _ in range(count)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    return [worker.communicate()[0] for worker in workers]


def test_several_processes_share_one_memory(tmp_path: Path) -> None:
    """Four processes that hash the same files at once, row by row, agree, warn of nothing and lose nothing."""
    paths = [
        write_weights(tmp_path / f"{i}.safetensors", {f"{i}.{j}": ("F32", (9,)) for j in range(15)}) for i in (1, 2)
    ]
    place = tmp_path / "digests.sqlite"
    printed = run_workers(4, [str(place), *map(str, paths)])
    everything = [source for path in paths for source in sources(path)]
    known = DigestMemory(place).known(everything)
    assert known == DigestMemory(None).compute(everything, 1)
    assert set(printed) == {"".join(f"{source.name} {known[source]}\n" for source in everything)}


def test_several_threads_share_one_memory(weights: Path, memory: DigestMemory) -> None:
    """A memory object may be used by threads at once."""
    found: list[dict[TensorSource, str]] = []
    threads = [threading.Thread(target=lambda: found.append(memory.compute(sources(weights), 2))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [memory.known(sources(weights))] * 4


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints are not on this machine")
def test_equal_tensors_of_golden_models_have_equal_digests() -> None:
    """llama/base and qwen2/base share no weights; a model's digests are the same read twice."""
    base, other = (sources(GOLDEN / "models" / name / "base" / "model.safetensors") for name in ("llama", "qwen2"))
    first, second = DigestMemory(None).compute(base, 2), DigestMemory(None).compute(base, 1)
    assert first == second
    matrices = {digest for source, digest in first.items() if len(source.shape) == 2}
    assert not matrices & set(DigestMemory(None).compute(other, 2).values())
