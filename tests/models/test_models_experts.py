from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import GOLDEN, Entries, write_weights

from mergeflow.models.checkpoint import open_checkpoint
from mergeflow.models.experts import pack_experts
from mergeflow.models.header import read_header
from mergeflow.models.records import TensorSource

Layer = dict[str, tuple[str, tuple[int, ...]]]
QWEN = ("gate_proj", "up_proj", "down_proj")
MIXTRAL = ("w1", "w3", "w2")


def experts(block: str, count: int, names: tuple[str, str, str], inner: int = 2, hidden: int = 3) -> Layer:
    """The tensors of one mixture-of-experts layer, saved one by one."""
    gate, up, down = names
    entries: Layer = {f"{block}.gate.weight": ("F32", (count, hidden))}
    for number in range(count):
        entries[f"{block}.experts.{number}.{gate}.weight"] = ("F32", (inner, hidden))
        entries[f"{block}.experts.{number}.{down}.weight"] = ("F32", (hidden, inner))
        entries[f"{block}.experts.{number}.{up}.weight"] = ("F32", (inner, hidden))
    return entries


def opened(folder: Path, entries: Entries) -> Mapping[str, TensorSource]:
    write_weights(folder / "model.safetensors", entries)
    return open_checkpoint(folder, "moe").tensors


def content(source: TensorSource) -> bytes:
    """The bytes of a tensor, its segments joined."""
    return b"".join(
        Path(segment.file.path).read_bytes()[segment.offset : segment.offset + segment.nbytes]
        for segment in source.segments
    )


@pytest.mark.parametrize("names", [QWEN, MIXTRAL])
def test_experts_become_two_tensors_a_layer(tmp_path: Path, names: tuple[str, str, str]) -> None:
    """gate_up_proj is (E, 2I, H): for each expert gate, then up; down_proj is (E, H, I): the experts' in order."""
    tensors = opened(tmp_path, experts("model.layers.0.mlp", 12, names))
    packed = pack_experts(tensors)
    block = "model.layers.0.mlp"
    assert list(packed) == [f"{block}.experts.down_proj", f"{block}.experts.gate_up_proj", f"{block}.gate.weight"]
    gate_up, down = packed[f"{block}.experts.gate_up_proj"], packed[f"{block}.experts.down_proj"]
    assert (gate_up.shape, down.shape) == ((12, 4, 3), (12, 3, 2))
    gate, up, down_name = names
    single = [
        content(tensors[f"{block}.experts.{number}.{part}.weight"]) for number in range(12) for part in (gate, up)
    ]
    assert content(gate_up) == b"".join(single)
    assert content(down) == b"".join(content(tensors[f"{block}.experts.{n}.{down_name}.weight"]) for n in range(12))
    assert len(content(gate_up)) == gate_up.nbytes


def test_mixtrals_block_is_called_mlp(tmp_path: Path) -> None:
    """block_sparse_moe becomes mlp, its router and whatever else it holds too; other layers' names stay."""
    block = "model.layers.0.block_sparse_moe"
    entries = experts(block, 2, MIXTRAL) | {f"{block}.bias": ("F32", (2,)), "model.layers.0.norm": ("F32", (3,))}
    tensors = opened(tmp_path, entries)
    packed = pack_experts(tensors)
    assert list(packed) == [
        "model.layers.0.mlp.bias",
        "model.layers.0.mlp.experts.down_proj",
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.norm",
    ]
    assert packed["model.layers.0.mlp.gate.weight"].name == "model.layers.0.mlp.gate.weight"
    assert content(packed["model.layers.0.mlp.bias"]) == content(tensors[f"{block}.bias"])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"b.experts.0.up_proj.weight": None}, id="a matrix missing"),
        pytest.param({"b.experts.2.gate_proj.weight": ("F32", (2, 3))}, id="an expert incomplete"),
        pytest.param({"b.experts.1.up_proj.weight": ("F32", (3, 2))}, id="a shape of its own"),
        pytest.param({"b.experts.1.down_proj.weight": ("F32", (2, 3))}, id="down not transposed"),
        pytest.param({"b.experts.1.down_proj.weight": ("I8", (3, 2))}, id="integers among floats"),
        pytest.param({"b.experts.0.gate_proj.bias": ("F32", (2,))}, id="a bias"),
        pytest.param({"b.experts.1.up_proj.weight_scale_inv": ("F32", (1,))}, id="scales"),
        pytest.param({"b.experts.gate_up_proj": ("F32", (1,))}, id="the packed name taken"),
    ],
)
def test_a_layer_that_does_not_fit_is_left_as_it_is(
    tmp_path: Path, change: dict[str, tuple[str, tuple[int, ...]] | None]
) -> None:
    """Anything but the three equal matrices of every expert keeps the layer unpacked; other layers are packed."""
    entries: dict[str, tuple[str, tuple[int, ...]] | None] = {
        **experts("b", 2, QWEN),
        **experts("good", 2, QWEN),
        **change,
    }
    tensors = opened(tmp_path, {name: entry for name, entry in entries.items() if entry is not None})
    packed = pack_experts(tensors)
    kept = {name for name in tensors if name.startswith("b.")}
    assert kept <= packed.keys()
    assert packed.keys() - kept == {"good.experts.gate_up_proj", "good.experts.down_proj", "good.gate.weight"}


def test_a_gap_in_the_experts_is_no_layer(tmp_path: Path) -> None:
    """Experts 0 and 2 without 1 are left alone."""
    entries = {name.replace(".1.", ".2."): entry for name, entry in experts("b", 2, QWEN).items()}
    tensors = opened(tmp_path, entries)
    assert pack_experts(tensors) is tensors


def test_a_renamed_router_may_not_replace_another(tmp_path: Path) -> None:
    """When the new name of the router is taken, the layer stays."""
    entries = experts("l.block_sparse_moe", 2, MIXTRAL) | {"l.mlp.gate.weight": ("F32", (1,))}
    tensors = opened(tmp_path, entries)
    assert pack_experts(tensors) is tensors


def test_experts_may_lie_in_several_shards(tmp_path: Path) -> None:
    """A layer divided over two files is packed from both."""
    entries = experts("b", 2, QWEN)
    half = list(entries)[:4]
    first = read_header(write_weights(tmp_path / "1.safetensors", {name: entries[name] for name in half}))
    rest = {name: entry for name, entry in entries.items() if name not in half}
    second = read_header(write_weights(tmp_path / "2.safetensors", rest, seed=1))
    packed = pack_experts({**first.tensors, **second.tensors})["b.experts.gate_up_proj"]
    assert {Path(segment.file.path).name for segment in packed.segments} == {"1.safetensors", "2.safetensors"}
    assert len(content(packed)) == packed.nbytes


@settings(deadline=None)
@given(st.lists(st.text(alphabet="a.01experts", max_size=20), unique=True, max_size=8))
def test_a_model_without_experts_is_untouched(names: list[str]) -> None:
    """Whatever the names, tensors that are no complete layer come back as they are."""
    from mergeflow.dtypes import FLOAT32
    from mergeflow.models.records import FileIdentity, Segment

    file = FileIdentity("x", 4, 0, 0, 0)
    tensors = {name: TensorSource(name, FLOAT32, (1,), (Segment(file, 0, 4),)) for name in names}
    assert pack_experts(tensors) is tensors


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints are not on this machine")
def test_the_golden_mixtral_has_the_names_and_shapes_mergekit_writes() -> None:
    """The packed view of models/mixtral/a lists exactly the tensors of mergekit's output, same shapes and dtypes."""
    ours = pack_experts(open_checkpoint(GOLDEN / "models" / "mixtral" / "a", "a").tensors)
    theirs = read_header(GOLDEN / "cases" / "arch_mixtral" / "expected.safetensors").tensors
    assert {name: (source.dtype, source.shape) for name, source in ours.items()} == {
        name: (source.dtype, source.shape) for name, source in theirs.items()
    }


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints are not on this machine")
def test_the_golden_mixtral_merge_has_the_bytes_of_the_packed_view() -> None:
    """Averaging the packed views of a and b gives mergekit's linear merge: gate before up, expert by expert."""
    import numpy
    import yaml

    case = GOLDEN / "cases" / "arch_mixtral"
    config = yaml.safe_load((case / "config.yml").read_text())
    if config["merge_method"] != "linear":
        pytest.skip("the case is no plain sum of its inputs")
    weights = [entry["parameters"]["weight"] for entry in config["models"]]
    inputs = [pack_experts(open_checkpoint(GOLDEN / entry["model"], "m").tensors) for entry in config["models"]]
    expected = read_header(case / "expected.safetensors").tensors
    for name in (name for name in expected if ".experts." in name):
        values = [numpy.frombuffer(content(tensors[name]), "<f4") for tensors in inputs]
        merged = sum(w * v.astype("f8") for w, v in zip(weights, values, strict=True)) / sum(weights)
        numpy.testing.assert_allclose(numpy.frombuffer(content(expected[name]), "<f4"), merged, rtol=3e-5, atol=1e-7)
