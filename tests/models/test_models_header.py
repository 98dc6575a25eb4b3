from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import GOLDEN, data_bytes, file_of, header_of, pattern, write_weights

from mergeflow.dtypes import DTYPES
from mergeflow.errors import CheckpointError
from mergeflow.models.header import MAX_HEADER_BYTES, header_bytes, parse_header, read_header
from mergeflow.models.records import FileIdentity

TWO = header_of({"a": ("F32", (2, 3)), "b": ("BF16", (4,))})


def damaged(path: Path, content: bytes) -> str:
    """The message for a file with this content; it must be one line that begins with the file's name."""
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def changed(name: str, **fields: object) -> bytes:
    """The file of `TWO`, with fields of one tensor changed."""
    header = json.loads(json.dumps(TWO))
    header[name].update(fields)
    return file_of(header, pattern(data_bytes(TWO)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def identity(size: int) -> FileIdentity:
    return FileIdentity("memory", size, 0, 0, 0)


def test_a_sound_file_gives_its_tensors_and_their_places(path: Path) -> None:
    """Names, dtypes, shapes and absolute offsets are those of the file, in the order of the bytes."""
    content = file_of(TWO, pattern(data_bytes(TWO)))
    path.write_bytes(content)
    header = read_header(path)
    a, b = header.tensors["a"], header.tensors["b"]
    start = len(content) - data_bytes(TWO)
    assert list(header.tensors) == ["a", "b"]
    assert (a.dtype.name, a.shape, a.segments[0].offset, a.nbytes) == ("float32", (2, 3), start, 24)
    assert (b.dtype.name, b.shape, b.segments[0].offset, b.segments[0].nbytes) == ("bfloat16", (4,), start + 24, 8)
    status = path.stat()
    assert header.file == FileIdentity(str(path), len(content), status.st_mtime_ns, status.st_ino, status.st_dev)


@pytest.mark.parametrize("content", [b"", b"\x00" * 7])
def test_a_file_too_short_for_a_length_is_refused(path: Path, content: bytes) -> None:
    """Fewer than eight bytes are no safetensors file."""
    assert "too few" in damaged(path, content)


def test_a_header_longer_than_the_file_is_refused(path: Path) -> None:
    """A length that points behind the end of the file is not believed."""
    assert "cut off or damaged" in damaged(path, struct.pack("<Q", 100) + b"{}")


def test_a_huge_header_is_refused_before_it_is_read(path: Path) -> None:
    """A length above 100 MB is refused from its eight bytes alone."""
    with pytest.raises(CheckpointError, match="no safetensors header is that long"):
        header_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1), identity(10**12))
    assert "no safetensors header" in damaged(path, b"\xff" * 16)


def test_a_git_lfs_pointer_is_recognised(path: Path) -> None:
    """The text file that git leaves where weights should be gets its own message."""
    assert "git lfs pull" in damaged(path, b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b" {}", "does not start with"),
        (b"[]", "does not start with"),
        (b"", "does not start with"),
        (b"{\xff}", "not UTF-8"),
        (b"{'a': 1}", "not valid JSON"),
        (b'{"a": 1', "not valid JSON"),
        (b'{"a": ' + b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": 1, "a": 2}', "'a' is given twice"),
        (b'{"a": {"dtype": "F32", "dtype": "F16"}}', "'dtype' is given twice"),
        (b'{"a": 5}', "needs a dtype"),
        (b'{"a": {"dtype": "F32", "shape": []}}', "needs a dtype, a shape and data_offsets"),
        (b'{"__metadata__": {"x": 1}}', "__metadata__"),
        (b'{"__metadata__": []}', "__metadata__"),
        (b'{"\\ud800": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}', "not valid Unicode"),
    ],
)
def test_a_header_that_is_no_sound_object_is_refused(path: Path, text: bytes, message: str) -> None:
    """Whatever stands where the JSON object should be, the message says what is wrong."""
    assert message in damaged(path, struct.pack("<Q", len(text)) + text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "F4"}, "tensor 'a' has dtype 'F4'"),
        ({"dtype": 3}, "tensor 'a' has dtype 3"),
        ({"dtype": ["F32"]}, "tensor 'a' has dtype"),
        ({"shape": [2, -3]}, "has shape"),
        ({"shape": [2, 3.0]}, "has shape"),
        ({"shape": [6, True]}, "has shape"),
        ({"shape": "23"}, "has shape"),
        ({"shape": [2**63]}, "has shape"),
        ({"shape": [1] * 65}, "has shape"),
        ({"shape": [2**62, 2**62]}, "takes"),
        ({"shape": [2, 4]}, "takes 32 bytes as float32 of shape (2, 4), but has 24"),
        ({"dtype": "F64"}, "takes 48 bytes"),
        ({"data_offsets": [0]}, "data_offsets"),
        ({"data_offsets": [0, 24.0]}, "data_offsets"),
        ({"data_offsets": [False, 24]}, "data_offsets"),
        ({"data_offsets": {"0": 24}}, "data_offsets"),
        ({"data_offsets": [24, 0]}, "run backwards"),
        ({"data_offsets": [-24, 0]}, "run backwards"),
        ({"data_offsets": [1000, 1024]}, "beyond the end"),
        ({"data_offsets": [8, 32]}, "leaves a hole of 8 bytes after the header"),
    ],
)
def test_a_lie_about_a_tensor_is_refused_by_name(path: Path, fields: dict[str, object], message: str) -> None:
    """Each wrong dtype, shape or offset names the tensor and the rule."""
    text = damaged(path, changed("a", **fields))
    assert "tensor 'a'" in text
    assert message in text


def test_overlapping_tensors_are_refused(path: Path) -> None:
    """Two tensors may not share a byte."""
    assert "tensor 'b' overlaps 'a' by 2 bytes" in damaged(path, changed("b", data_offsets=[22, 30]))


def test_a_hole_between_tensors_is_refused(path: Path) -> None:
    """Bytes that no tensor owns could hide anything."""
    header = json.loads(json.dumps(TWO))
    header["b"]["data_offsets"] = [26, 34]
    assert "tensor 'b' leaves a hole of 2 bytes after 'a'" in damaged(path, file_of(header, pattern(34)))


def test_a_file_cut_off_by_one_byte_is_refused(path: Path) -> None:
    """An interrupted download fails at the header, not in the middle of a merge."""
    whole = file_of(TWO, pattern(data_bytes(TWO)))
    assert "tensor 'b' ends 1 bytes beyond the end" in damaged(path, whole[:-1])


def test_bytes_after_the_last_tensor_are_refused(path: Path) -> None:
    """A file longer than its tensors is not what it claims to be."""
    assert "1 bytes after 'b' belong to no tensor" in damaged(path, file_of(TWO, pattern(data_bytes(TWO) + 1)))


def test_what_is_not_a_readable_file_is_refused(tmp_path: Path) -> None:
    """A folder, a pipe and a missing file are each refused without waiting for them."""
    os.mkfifo(tmp_path / "pipe")
    for place, message in (
        (tmp_path, "not a file"),
        (tmp_path / "pipe", "not a file"),
        (tmp_path / "x", "cannot be read"),
    ):
        with pytest.raises(CheckpointError, match=message):
            read_header(place)


shapes = st.lists(st.sampled_from([0, 1, 2, 3, 63]), max_size=3).map(tuple)
tensors = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from([dtype.code for dtype in DTYPES]), shapes),
    max_size=8,
)


@settings(deadline=None)
@given(tensors, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2))
def test_any_sound_header_is_read_back(
    entries: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]
) -> None:
    """Every dtype and shape, 0-d and empty tensors and odd names included, comes back as it was written."""
    header = header_of(entries)
    text = json.dumps({"__metadata__": metadata, **header}).encode()
    found = parse_header(text, identity(8 + len(text) + data_bytes(header)))
    assert {name: (source.dtype.code, source.shape) for name, source in found.tensors.items()} == entries
    assert found.metadata == metadata
    assert sum(source.nbytes for source in found.tensors.values()) == data_bytes(header)


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 200))
def test_no_bytes_at_all_raise_anything_but_the_one_error(noise: bytes, size: int) -> None:
    """Garbage is refused with CheckpointError, whatever it is."""
    for text in (noise, b"{" + noise, b'{"a":' + noise + b"}"):
        try:
            parse_header(text, identity(size))
        except CheckpointError:
            continue
        assert not parse_header(text, identity(size)).tensors


def test_the_safetensors_library_reads_the_same(tmp_path: Path) -> None:
    """Our reading of a file the library wrote agrees with the library's."""
    import numpy
    from safetensors import safe_open
    from safetensors.numpy import save_file

    place = tmp_path / "model.safetensors"
    arrays = {"x": numpy.zeros((2, 5), "float16"), "s": numpy.array(3, "float32"), "e": numpy.zeros((0, 4), "int64")}
    save_file(arrays, place, metadata={"format": "pt"})
    header = read_header(place)
    assert header.metadata == {"format": "pt"}
    with safe_open(place, "numpy") as library:
        assert set(library.keys()) == set(header.tensors)
        for name, source in header.tensors.items():
            segment = source.segments[0]
            content = place.read_bytes()[segment.offset : segment.offset + segment.nbytes]
            assert content == library.get_tensor(name).tobytes()


def test_a_permission_problem_is_one_line(path: Path) -> None:
    """A file that may not be read is refused with the system's reason."""
    write_weights(path, {"a": ("F32", (1,))})
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root reads everything")
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        read_header(path)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints are not on this machine")
def test_every_golden_checkpoint_has_a_sound_header() -> None:
    """What transformers and mergekit write is read, all of it."""
    files = sorted(GOLDEN.rglob("*.safetensors"))
    assert files
    for file in files:
        assert read_header(file).tensors
