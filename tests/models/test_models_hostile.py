"""Files are hostile until proven otherwise: whatever the bytes, a checkpoint opens or is one CheckpointError.

`MERGEFLOW_FUZZ=2000` tries that many examples of each instead of some dozens.
"""

from __future__ import annotations

import json
import os
import pickle
import pickletools
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import file_of, header_of, pattern
from pickled_files import content, saved

from mergeflow.errors import CheckpointError
from mergeflow.models.checkpoint import open_checkpoint
from mergeflow.models.pickled import read_pickled
from mergeflow.models.records import Checkpoint

EXAMPLES = int(os.environ.get("MERGEFLOW_FUZZ", "60"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

_X = torch.arange(24, dtype=torch.float32).reshape(4, 6)
_STATE = {"a": _X, "t": _X.t(), "z": torch.tensor(2), "p": torch.nn.Parameter(_X[:2]), "n": {"epoch": 3}}
PICKLES = [saved(_STATE), saved({"state_dict": _STATE}, protocol=4), saved(_STATE, old=True)]
SAFETENSORS = file_of(header_of({"a": ("F32", (4, 6)), "b": ("BF16", (3,)), "z": ("I64", ())}), pattern(110))
INDEX = {"metadata": {"total_size": 1}, "weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}


def opened(path: Path) -> Checkpoint | None:
    """A model whose tensors lie within its files, or None when it is refused in one line."""
    try:
        checkpoint = open_checkpoint(path, "x")
    except CheckpointError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert len(str(error)) < 2000  # noqa: PT017
        return None
    for tensor in checkpoint.tensors.values():
        for source in tensor.sources():
            assert all(0 <= part.offset <= part.offset + part.nbytes <= part.file.size for part in source.segments)
            assert sum(part.nbytes for part in source.segments) == source.nbytes
    return checkpoint


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """A sound file after some changes: bytes set, runs cut out, put in or moved."""
    text = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(text) - 1)))
        match draw(st.integers(0, 4)):
            case 0:
                text[place : place + 1] = bytes([draw(st.integers(0, 255))])
            case 1:
                del text[place : place + draw(st.integers(1, 40))]
            case 2:
                text[place:place] = draw(st.binary(min_size=1, max_size=20))
            case 3:
                other = draw(st.integers(0, max(0, len(text) - 1)))
                text[place : place + 8] = text[other : other + 8]
            case _:
                number = draw(st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]))
                text[place : place + 8] = struct.pack("<Q", number)
    return bytes(text)


class TestDamage:
    """Sound files with a few bytes changed."""

    @pytest.mark.parametrize("sound", PICKLES, ids=["zip", "zip4", "legacy"])
    @fuzz
    @given(data=st.data())
    def test_a_damaged_pickled_file(self, tmp_path: Path, sound: bytes, data: st.DataObject) -> None:
        """It opens with tensors inside of the file, which can be read, or it is refused."""
        path = tmp_path / "x.bin"
        path.write_bytes(data.draw(damaged(sound)))
        checkpoint = opened(path)
        for tensor in checkpoint.tensors.values() if checkpoint else ():
            if tensor.size < 10_000:
                assert len(content(tensor)) == tensor.size * tensor.dtype.itemsize

    @fuzz
    @given(data=st.data())
    def test_a_damaged_safetensors_file(self, tmp_path: Path, data: st.DataObject) -> None:
        """The same of safetensors."""
        path = tmp_path / "x.safetensors"
        path.write_bytes(data.draw(damaged(SAFETENSORS)))
        opened(path)

    @fuzz
    @given(data=st.data())
    def test_any_header(self, tmp_path: Path, data: st.DataObject) -> None:
        """A header of any JSON, with fields as a header has them, opens or is refused."""
        values = st.recursive(
            st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
            max_leaves=6,
        )
        extents = st.lists(st.integers(0, 3) | values, max_size=3) | values
        entry = st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BF16", "I64", "X"]) | values,
                "shape": extents,
                "data_offsets": st.tuples(st.integers(0, 9), st.integers(0, 200)).map(list) | values,
            }
        )
        header = data.draw(st.dictionaries(st.text(max_size=4), entry | values, max_size=3) | values)
        text = json.dumps(header).encode()
        path = tmp_path / "x.safetensors"
        path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data.draw(st.integers(0, 60))))
        opened(path)


class TestIndex:
    """Indexes, of both kinds."""

    @staticmethod
    def folder(tmp_path: Path, kind: str) -> Path:
        """A folder with two shards, and what lies outside of it."""
        folder = tmp_path / "outer" / "model"
        (folder / "sub").mkdir(parents=True, exist_ok=True)
        for place in (folder, folder / "sub", folder.parent, tmp_path):
            (place / "one.safetensors").write_bytes(SAFETENSORS)
            (place / "one.bin").write_bytes(PICKLES[0])
        return folder

    @pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
    @fuzz
    @given(data=st.data())
    def test_any_index(self, tmp_path: Path, kind: str, data: st.DataObject) -> None:
        """No index leads out of its folder, or to anything but a model or one error."""
        folder = self.folder(tmp_path, kind)
        suffix = Path(kind).suffix
        piece = st.sampled_from(["..", ".", "/", "\\", "\0", "~", "sub", "one", "one" + suffix, "//", "C:", "\ud800"])
        shard = st.lists(piece, max_size=5).map("/".join) | st.lists(piece, max_size=3).map("".join) | st.integers()
        entries = st.dictionaries(st.sampled_from(["a", "b", "t", "q", ""]), shard | st.just("one" + suffix))
        index = data.draw(st.fixed_dictionaries({"weight_map": entries | st.none() | st.lists(shard, max_size=2)}))
        text = json.dumps(index).encode()
        for name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
            (folder / name).unlink(missing_ok=True)
        (folder / f"{kind}.index.json").write_bytes(data.draw(st.just(text) | damaged(text)))
        checkpoint = opened(folder)
        for tensor in checkpoint.tensors.values() if checkpoint else ():
            for source in tensor.sources():
                assert all(folder in Path(part.file.path).resolve().parents for part in source.segments)

    def test_many_names_of_missing_shards(self, tmp_path: Path) -> None:
        """An index of a hundred thousand shards that are not there is refused at the first."""
        names = {f"{number}": f"{number}.bin" for number in range(100_000)}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
        assert opened(tmp_path) is None


class Evil:
    """An object that, unpickled by Python, runs a command."""

    def __init__(self, function: object, *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self._call


def archive(program: bytes) -> bytes:
    """An archive of torch's with another pickle in it."""
    import io
    import zipfile

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("x/data.pkl", program)
        file.writestr("x/data/0", bytes(64))
    return stream.getvalue()


def run(tmp_path: Path, program: bytes) -> object:
    """What a program gives as the pickle of an archive: tensors, or the refusal's text."""
    path = tmp_path / "x.bin"
    path.write_bytes(archive(program))
    try:
        return read_pickled(path)
    except CheckpointError as error:
        assert len(str(error)) < 1000  # noqa: PT017
        return str(error).removeprefix(f"{path}: ")


class TestMaliciousPickles:
    """Programs that would do something."""

    @pytest.mark.parametrize("old", [False, True])
    @pytest.mark.parametrize("protocol", [2, 4])
    def test_nothing_is_run(self, tmp_path: Path, old: bool, protocol: int) -> None:
        """Calls of any function, anywhere in the file, are not made; the tensors beside them are read."""
        touched = tmp_path / "touched"
        evil = Evil(os.system, f"touch {touched}")
        state = {"a": _X, "evil": evil, "more": [Evil(eval, f"open({str(touched)!r}, 'w')"), Evil(open, touched, "w")]}
        path = tmp_path / "x.bin"
        path.write_bytes(saved(state, old=old, protocol=protocol))
        assert list(read_pickled(path)) == ["a"]
        assert not touched.exists()
        path.write_bytes(saved(evil, old=old, protocol=protocol))
        with pytest.raises(CheckpointError, match=r"holds an object of posix\.system, not a dict of tensors"):
            read_pickled(path)
        assert not touched.exists()

    def test_a_bare_pickle_is_not_read(self, tmp_path: Path) -> None:
        """A pickle that is not torch's is refused before anything else of it is looked at."""
        touched = tmp_path / "touched"
        (tmp_path / "x.bin").write_bytes(pickle.dumps(Evil(os.system, f"touch {touched}")))
        with pytest.raises(CheckpointError, match=r"a pickle that torch\.save did not write"):
            read_pickled(tmp_path / "x.bin")
        assert not touched.exists()

    def test_names_that_are_no_functions(self, tmp_path: Path) -> None:
        """Calling a storage type, a dtype or a number calls nothing."""
        for function in (b"ctorch\nFloatStorage\n", b"ctorch\nfloat16\n", b"K\x03", b"N", b"ctorch._utils\nx\n"):
            assert "not a dict of tensors" in str(run(tmp_path, function + b")R."))

    @pytest.mark.parametrize(
        ("program", "message"),
        [
            (b"(" * 20_000 + b".", "nested too deeply"),
            (b"]" + b"2" * 100 + b"a" * 200 + b".", "where there is none"),
            (b"\x8b\xff\xff\xff\x7f", "a whole number in it has 2147483647 bytes"),
            (b"\x8a\xff" + b"\x7f" * 255 + b".", "not a dict of tensors"),
            (b"I" + b"9" * 4000 + b"\n.", "not a dict of tensors"),
            (b"I" + b"9" * 5000 + b"\n.", "a line of text never ends"),
            (b"F1e9999\n.", "not a dict of tensors"),
            (b"X\xff\xff\xff\xff", "it ends in the middle of a value of 4294967295 bytes"),
            (b"\x8e" + b"\xff" * 8, "it ends in the middle"),
            (b"X\x01\0\0\0\xff.", "a text in it is not UTF-8"),
            (b"j\xff\xff\xff\xff.", "recalls a value that it never kept"),
            (b"p1\n.", "where there is none"),
            (b"Np-1\n.", "at an impossible place"),
            (b"Np99999999999999999999\n.", "at an impossible place"),
            (b"\x80\x09N.", "protocol 9 of pickles is unknown"),
            (b"~", "is no instruction of a pickle"),
            (b".", "takes a value where there is none"),
            (b"t.", "down to a mark that was never set"),
            (b"(Nd.", "a key in it has no value"),
            (b"NQ.", "something outside of it that is no storage"),
            (b"(X\x07\0\0\0storageNNNNtQ.", "no type, no key or no size"),
            (b"N" * 1_000_000, "it ends in the middle of a value"),
            (b"N0" * 3_100_000, "more instructions than any model's"),
        ],
    )
    def test_programs_that_ask_for_too_much(self, tmp_path: Path, program: bytes, message: str) -> None:
        """Deep, long, huge and senseless programs end in one sentence."""
        assert message in str(run(tmp_path, program))

    def test_values_are_never_hashed_or_compared(self, tmp_path: Path) -> None:
        """A tuple of two of a tuple of two ... with 2^200 leaves is no trouble, also as a key."""
        tower = b"N" + b"2\x86" * 200
        assert run(tmp_path, b"}" + tower + b"Ns.") == {}
        assert "not a dict" in str(run(tmp_path, tower + b"."))
        assert "not a dict" in str(run(tmp_path, b"ctorch\nSize\n" + tower + b"\x85R."))

    def test_copies_are_counted(self, tmp_path: Path) -> None:
        """A list of a thousand values copied thousands of times is refused."""
        many = b"(" + b"N" * 1000 + b"lq\x00" + (b"ctorch\nSize\nh\x00\x85R" * 1100) + b"."
        assert "copies more values than any model's" in str(run(tmp_path, many))

    def test_numbers_as_keys_cannot_collide(self, tmp_path: Path) -> None:
        """Keys that Python would hash alike are no keys here: no dict becomes slow."""
        prime = 2**61 - 1
        keys = b"".join(pickle_number(number * prime) + b"N" for number in range(60_000))
        assert run(tmp_path, b"}(" + keys + b"u.") == {}

    @fuzz
    @given(data=st.data())
    def test_any_program(self, tmp_path: Path, data: st.DataObject) -> None:
        """Instructions in any order, with arguments as they come, give tensors or one error."""
        codes = [code.code.encode("latin-1") for code in pickletools.opcodes]
        names = [
            b"torch._utils\n_rebuild_tensor_v2\n",
            b"torch\nFloatStorage\n",
            b"torch\nSize\n",
            b"collections\nOrderedDict\n",
        ]
        pieces = [
            *codes,
            *(b"c" + name for name in names),
            *(
                b"X\x07\0\0\0storage",
                b"X\x01\0\0\x000",
                b"K\x01",
                b"K\x02",
                b"N2",
                b")",
                b"\x00",
                b"\x01",
                b"1\n",
                b"(",
                b"t",
            ),
        ]
        program = b"".join(data.draw(st.lists(st.sampled_from(pieces), max_size=60)))
        run(tmp_path, b"\x80\x02" + program + b".")

    @fuzz
    @given(data=st.data())
    def test_any_tensor(self, tmp_path: Path, data: st.DataObject) -> None:
        """A tensor's record with any numbers in it gives a tensor inside of its storage, or one error."""
        number = st.sampled_from([0, 1, 2, 3, 4, 5, 16, -1, 2**31, 2**62, 2**63, 2**64, 2**200]).map(pickle_number)
        other = st.sampled_from([b"N", b"]", b"}", b"\x88", b"X\x01\0\0\x000", b")"])
        value = number | number | other
        extents = st.lists(value, max_size=4).map(lambda items: b"(" + b"".join(items) + b"t") | other
        storage = (
            b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000N" + data.draw(value | st.just(b"K\x10")) + b"tQ"
        )
        fields = data.draw(st.tuples(value, extents, extents).map(b"".join))
        program = b"}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n(" + storage + fields + b"\x89}tRs."
        found = run(tmp_path, program)
        if isinstance(found, dict):
            for tensor in found.values():
                for source in tensor.sources():
                    assert source.nbytes <= 64
                if tensor.size < 10_000:
                    content(tensor)


def pickle_number(number: int) -> bytes:
    """A whole number as an instruction."""
    text = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(text)]) + text
