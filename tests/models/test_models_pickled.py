"""Weights that torch.save wrote, held against torch.load(weights_only=True)."""

from __future__ import annotations

import io
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pickled_files import bytes_of, content, same, saved, written

from mergeflow.errors import CheckpointError
from mergeflow.models import pickled
from mergeflow.models.pickled import read_pickled
from mergeflow.models.records import TensorSource, TensorView

FORMATS = pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    torch.bool,
]
# Those that torch saves without a type of storage; in the old format it cannot load them itself.
UNTYPED = [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64]


def refused(path: Path) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(CheckpointError) as caught:
        read_pickled(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message.removeprefix(f"{path}: ")


def numbers(count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The first whole numbers, as any dtype."""
    return (torch.arange(count) % 120).to(dtype)


class TestTensors:
    """Each kind of tensor, in both formats."""

    @FORMATS
    def test_every_dtype(self, tmp_path: Path, old: bool) -> None:
        """Every number format that a checkpoint can hold is read, also those that torch saves without a type."""
        tensors = {str(dtype): numbers(6, dtype).reshape(2, 3) for dtype in DTYPES}
        path = written(tmp_path / "x.bin", tensors, old=old)
        same(path, tensors)
        if not old:  # see UNTYPED
            same(path, torch.load(path, weights_only=True))

    @FORMATS
    @pytest.mark.parametrize("runs", [0, 1, 1000])
    def test_shared_sliced_and_reshaped_tensors(
        self, tmp_path: Path, old: bool, runs: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Tensors of one storage are read from it, wherever in it they lie: as ranges, or as views of too many."""
        monkeypatch.setattr(pickled, "MOST_RUNS", runs)
        x = numbers(24).reshape(4, 6)
        tensors = {
            "all": x,
            "again": x,
            "rows": x[1:3],
            "transposed": x.t(),
            "every other": x[::2],
            "every other column": x[:, ::2],
            "a column": x[:, 4],
            "three axes": x.reshape(2, 2, 6).permute(2, 0, 1),
            "one element": x[2, 3],
            "expanded": x[:1].expand(5, 6),
            "expanded number": torch.tensor(3.0).expand(2, 3),
            "one row, odd strides": x.t()[2:3].t()[:1],
        }
        path = written(tmp_path / "x.bin", tensors, old=old)
        for cut in (1, 4, 7, 1000):
            same(path, tensors, cut)
        kinds = {name for name, tensor in read_pickled(path).items() if isinstance(tensor, TensorSource)}
        contiguous = {"all", "again", "rows", "one element", "one row, odd strides"}
        assert kinds == {0: set(), 1: contiguous, 1000: tensors.keys()}[runs]

    @FORMATS
    def test_empty_and_0d_tensors(self, tmp_path: Path, old: bool) -> None:
        """Tensors without elements keep their shape; one without axes has one element."""
        tensors = {"none": torch.zeros(0), "no rows": torch.zeros(0, 4).t(), "step": torch.tensor(7)}
        same(written(tmp_path / "x.bin", tensors, old=old), tensors)

    @FORMATS
    def test_parameters_and_tensors_with_attributes(self, tmp_path: Path, old: bool) -> None:
        """A Parameter, a Buffer and a tensor that somebody hung an attribute on are tensors like others."""
        marked = numbers(3)
        marked._is_initialized = True  # type: ignore[attr-defined]
        parameter = torch.nn.Parameter(numbers(4))
        parameter.note = "mine"  # type: ignore[attr-defined]
        tensors = {
            "parameter": torch.nn.Parameter(numbers(2)),
            "noted": parameter,
            "buffer": torch.nn.Buffer(numbers(5)),
            "marked": marked,
        }
        same(written(tmp_path / "x.bin", tensors, old=old), tensors)

    @pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
    def test_every_protocol(self, tmp_path: Path, protocol: int) -> None:
        """Pickles of every protocol that torch can load again are read."""
        tensors = OrderedDict({"a": numbers(70000), "ü": numbers(6).reshape(2, 3).t()})
        same(written(tmp_path / "x.bin", tensors, protocol=protocol), tensors)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_any_shape_and_strides(self, tmp_path: Path, data: st.DataObject) -> None:
        """A tensor of any dtype, shape, strides and offset reads as torch.load reads it, however it is cut."""
        dtype = data.draw(st.sampled_from(DTYPES))
        shape = data.draw(st.lists(st.integers(0, 5), max_size=4))
        strides = data.draw(st.lists(st.integers(0, 40), min_size=len(shape), max_size=len(shape)))
        offset = data.draw(st.integers(0, 9))
        storage = numbers(offset + 1 + sum(max(0, n - 1) * s for n, s in zip(shape, strides, strict=True)), dtype)
        tensor = torch.as_strided(storage, shape, strides, offset)
        old = dtype not in UNTYPED and data.draw(st.booleans())
        path = written(tmp_path / "x.pt", {"x": tensor}, old=old)
        with patch.object(pickled, "MOST_RUNS", data.draw(st.sampled_from([0, 1, 8, 1000]))):
            same(path, torch.load(path, weights_only=True), data.draw(st.integers(1, 9)))


class TestWhatTheFileHolds:
    """Dicts around the tensors, and what lies beside them."""

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda tensors: {"state_dict": tensors, "epoch": 3, "callbacks": {"x": [1.5, None]}},
            lambda tensors: {"model": tensors, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
            lambda tensors: {"model": {"state_dict": tensors}},
            lambda tensors: {"module": tensors, "global_step": 2**70},
            lambda tensors: OrderedDict(tensors),
            lambda tensors: tensors | {"epoch": 3, "name": "x", "sizes": torch.Size([2]), "kind": torch.float16},
        ],
    )
    @FORMATS
    def test_the_weights_are_found(self, tmp_path: Path, wrap, old: bool) -> None:  # type: ignore[no-untyped-def]
        """A trainer's dict around the weights is unwrapped, and what is no tensor is passed over."""
        tensors = {"a": numbers(4), "b.weight": numbers(6).reshape(3, 2).t()}
        same(written(tmp_path / "x.ckpt", wrap(tensors), old=old), tensors)

    def test_a_module_saves_its_state(self, tmp_path: Path) -> None:
        """The state_dict of a module, which carries metadata of its own, is read like a dict."""
        module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        same(written(tmp_path / "x.pt", module.state_dict()), module.state_dict())

    def test_a_name_of_the_wrappers_may_be_a_tensor(self, tmp_path: Path) -> None:
        """A tensor that is called `model` is a tensor."""
        same(written(tmp_path / "x.pt", {"model": numbers(3)}), {"model": numbers(3)})

    def test_a_renamed_file_is_read(self, tmp_path: Path) -> None:
        """The archive's own prefix counts, not the name of the file."""
        torch.save({"a": numbers(3)}, tmp_path / "first.name.pt")
        same((tmp_path / "first.name.pt").rename(tmp_path / "other.bin"), {"a": numbers(3)})

    def test_a_whole_module_is_refused(self, tmp_path: Path) -> None:
        """An object is not made from a stranger's class."""
        message = refused(written(tmp_path / "x.pt", torch.nn.Linear(2, 2)))
        assert message.startswith("holds an object of torch.nn.modules.linear.Linear, not a dict of tensors")

    @pytest.mark.parametrize("value", [numbers(3), [numbers(3)], 3, "x", None])
    def test_what_is_no_dict_is_refused(self, tmp_path: Path, value: object) -> None:
        """Tensors without names are no weights."""
        assert "not a dict of tensors" in refused(written(tmp_path / "x.pt", value))

    def test_a_number_for_a_name_is_refused(self, tmp_path: Path) -> None:
        """Names are texts."""
        assert "has the number 3 for a name" in refused(written(tmp_path / "x.pt", {3: numbers(3)}))

    @pytest.mark.filterwarnings("ignore:.*(quantized|sparse|nested).*", "ignore::DeprecationWarning")
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: torch.zeros(2, dtype=torch.complex64), "is of dtype complex64, which this version cannot read"),
            (lambda: torch.eye(2).to_sparse(), "is a sparse tensor"),
            (lambda: torch.zeros(2, device="meta"), "is a tensor on the device 'meta', which has no values"),
            (lambda: torch.zeros(2, dtype=torch.complex64).conj(), "is a tensor whose conjugate"),
            (lambda: torch.zeros(2, dtype=torch.complex64).conj().imag, "negative was saved"),
            (lambda: torch.zeros(2).to(torch.float8_e4m3fnuz), "is of dtype float8_e4m3fnuz"),
        ],
    )
    def test_a_tensor_of_another_kind_is_refused(self, tmp_path: Path, make, message: str) -> None:  # type: ignore[no-untyped-def]
        """What cannot be read is named with its kind, never left out."""
        assert message in refused(written(tmp_path / "x.pt", {"a": numbers(2), "x": make()}))

    def test_a_text_that_runs_over_pieces(self, tmp_path: Path) -> None:
        """Many names, more than are read at once."""
        tensors = {f"model.layers.{number}.{'w' * 40}": torch.tensor(float(number)) for number in range(1500)}
        path = written(tmp_path / "x.bin", tensors)
        found = read_pickled(path)
        assert list(found) == list(tensors)
        assert content(found["model.layers.1234." + "w" * 40]) == bytes_of(torch.tensor(1234.0))


class TestArchive:
    """The zip archive around the pickle."""

    @staticmethod
    def archive(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
        """An archive by Python's library."""
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", method) as file:
            for name, text in entries.items():
                file.writestr(name, text)
        return stream.getvalue()

    @staticmethod
    def parts(value: object) -> dict[str, bytes]:
        """The entries of an archive that torch made."""
        with zipfile.ZipFile(io.BytesIO(saved(value))) as file:
            return {name: file.read(name) for name in file.namelist()}

    def test_another_writer(self, tmp_path: Path) -> None:
        """The same entries in an archive of another library, without padding, are read too."""
        tensors = {"a": numbers(5), "b": numbers(7, torch.bfloat16)}
        (tmp_path / "x.bin").write_bytes(self.archive(self.parts(tensors)))
        same(tmp_path / "x.bin", tensors)

    def test_large_archives(self, tmp_path: Path) -> None:
        """Sizes and places in the form for more than 4 GB are read."""
        tensors = {"a": numbers(5), "b": numbers(7)}
        (tmp_path / "x.bin").write_bytes(in_large_form(self.archive(self.parts(tensors))))
        same(tmp_path / "x.bin", tensors)

    def test_compressed_entries(self, tmp_path: Path) -> None:
        """A bomb is not unpacked."""
        parts = self.parts({"a": numbers(5)}) | {"archive/data.pkl": b"\0" * 1_000_000}
        (tmp_path / "x.bin").write_bytes(self.archive(parts, zipfile.ZIP_DEFLATED))
        assert "is compressed or encrypted, which torch never does" in refused(tmp_path / "x.bin")

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_an_entry_twice(self, tmp_path: Path) -> None:
        """Two entries of one name cannot both be meant."""
        stream = io.BytesIO(saved({"a": numbers(5)}))
        with zipfile.ZipFile(stream, "a") as file:
            file.writestr("archive/data.pkl", b"other")
        (tmp_path / "x.bin").write_bytes(stream.getvalue())
        assert "it holds 'archive/data.pkl' twice" in refused(tmp_path / "x.bin")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"archive/byteorder": b"big"}, "saved on a big-endian machine"),
            ({"archive/data/0": b"\0" * 19}, "tensor 'a' needs more bytes than its storage has"),
            ({"archive/data/0": None}, "lacks the bytes of storage '0'"),
            ({"archive/data.pkl": None}, "a zip archive that torch.save did not write"),
            ({"other/data.pkl": b"."}, "a zip archive that torch.save did not write"),
            ({"archive/constants.pkl": b"."}, "a TorchScript program, not weights"),
            ({"archive/data.pkl": b""}, "it ends in the middle of a value of 1 bytes"),
        ],
    )
    def test_entries_that_do_not_fit(self, tmp_path: Path, change: dict[str, bytes | None], message: str) -> None:
        """Each entry is held against what the others say."""
        parts = {**self.parts({"a": numbers(5)}), **change}
        (tmp_path / "x.bin").write_bytes(self.archive({name: text for name, text in parts.items() if text is not None}))
        assert message in refused(tmp_path / "x.bin")

    @pytest.mark.parametrize("old", [False, True])
    def test_every_cut_is_noticed(self, tmp_path: Path, old: bool) -> None:
        """A file of which the end is missing is refused, wherever it was cut."""
        whole = saved({"a": numbers(300), "b": numbers(3)}, old=old)
        for length in range(0, len(whole), 7):
            (tmp_path / "x.bin").write_bytes(whole[:length])
            refused(tmp_path / "x.bin")

    def test_a_pointer_of_git_lfs(self, tmp_path: Path) -> None:
        """Is named as what it is."""
        (tmp_path / "x.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n")
        assert "git lfs pull" in refused(tmp_path / "x.bin")

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        """Folders and missing files are one error."""
        (tmp_path / "x.bin").mkdir()
        assert refused(tmp_path / "x.bin") == "not a file"
        assert "cannot be read: No such file" in refused(tmp_path / "y.bin")

    def test_an_old_file_that_says_too_much(self, tmp_path: Path) -> None:
        """A storage's length in an old file must be the one in the pickle."""
        text = bytearray(saved({"a": numbers(300)}, old=True))
        place = len(text) - 1200 - 8
        assert struct.unpack_from("<Q", text, place) == (300,)
        struct.pack_into("<Q", text, place, 299)
        (tmp_path / "x.bin").write_bytes(text)
        assert "a storage is not where it should be" in refused(tmp_path / "x.bin")


def in_large_form(archive: bytes) -> bytes:
    """The same archive with its directory and end record in the form for large files."""
    end = archive.rindex(b"PK\x05\x06")
    count, _, offset = struct.unpack_from("<HII", archive, end + 10)
    directory = b""
    at = offset
    for _ in range(count):
        fields = list(struct.unpack_from("<4sHHHHHHIIIHHHHHII", archive, at))
        name = archive[at + 46 : at + 46 + fields[10]]
        large = struct.pack("<HHQQQ", 1, 24, fields[9], fields[8], fields[16])
        at += 46 + fields[10] + fields[11] + fields[12]
        fields[8] = fields[9] = fields[16] = 0xFFFFFFFF
        fields[11] = len(large)
        directory += struct.pack("<4sHHHHHHIIIHHHHHII", *fields) + name + large
    at = offset + len(directory)
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(directory), offset)
    place = struct.pack("<4sIQI", b"PK\x06\x07", 0, at, 1)
    last = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return archive[:offset] + directory + record + place + last


def test_a_view_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor with strides is a view of the range it needs, in its own dtype."""
    monkeypatch.setattr(pickled, "MOST_RUNS", 9)
    x = numbers(20, torch.bfloat16).reshape(4, 5)
    view = read_pickled(written(tmp_path / "x.bin", {"x": x[1:3].t()}))["x"]
    assert isinstance(view, TensorView)
    assert (view.op, view.shape, view.parameters) == ("strided", (5, 2), (("strides", (1, 5)),))
    assert view.dtype == view.stored
    (part,) = view.inputs
    assert part.shape == (10,)
