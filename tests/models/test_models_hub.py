from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf_files import METADATA, TENSORS, gguf_bytes
from hub_server import FakeHub, Repository, running_hub
from model_files import Entries, data_bytes, file_of, header_of, pattern
from pickled_files import saved

from mergeflow.errors import CheckpointError, RunError
from mergeflow.models import gguf_header, hub_transfer
from mergeflow.models.checkpoint import open_checkpoint
from mergeflow.models.digests import DigestMemory
from mergeflow.models.hub import describe, download, fetch
from mergeflow.models.hub_cache import Hub, keep_commit
from mergeflow.models.open import open_model
from mergeflow.models.records import Checkpoint, Segment, TensorSource, TensorView
from mergeflow.output.lock import LockedAdapter, read_lock
from mergeflow.recipe.records import AdapterReference, ModelReference

FIRST, SECOND = "a1" * 20, "b2" * 20
CONFIG = b'{"model_type": "llama"}'


def weights(entries: Entries, seed: int = 0) -> bytes:
    """The bytes of a sound safetensors file."""
    header = header_of(entries)
    return file_of(header, pattern(data_bytes(header), seed))


SINGLE = {
    "model.safetensors": weights({"embed": ("BF16", (4, 2)), "layers.0.w": ("F32", (300, 300))}),
    "config.json": CONFIG,
    "tokenizer.json": b"{}",
    "1_Pooling/config.json": b'{"pooling": 1}',
    "README.md": b"# a model",
    ".gitattributes": b"*.bin",
    "pytorch_model.bin": b"PK pickled",
    "onnx/model.onnx": b"onnx",
    "onnx/config.json": b"{}",
}
CARRIED = ("1_Pooling/config.json", "README.md", "config.json", "tokenizer.json")
SHARDED = {
    "model-1.safetensors": weights({"a": ("F32", (2,)), "b": ("F32", (3,))}),
    "model-2.safetensors": weights({"c": ("F16", (5,))}, seed=1),
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}}
    ).encode(),
    "consolidated.safetensors": weights({"same": ("F32", (9,))}),
    "config.json": CONFIG,
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub.utils import close_session  # type: ignore[attr-defined]

    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    close_session()
    with running_hub() as fake:
        fake.repositories["org/single"] = Repository({FIRST: SINGLE}, {"main": FIRST, "v1": FIRST})
        fake.repositories["org/sharded"] = Repository({SECOND: SHARDED}, {"main": SECOND})
        yield fake
        close_session()


@pytest.fixture
def hub(server: FakeHub, tmp_path: Path) -> Hub:
    return Hub(server.address, tmp_path / "cache")


def downloaded(hub: Hub, repo_id: str, revision: str | None = None) -> Checkpoint:
    return download(describe(repo_id, revision, hub=hub), repo_id, revision, lambda _count: None, hub=hub)


def local(files: dict[str, bytes], folder: Path) -> Checkpoint:
    """The same files, opened from a plain folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return open_checkpoint(folder, "local")


def test_a_model_is_described_without_its_weights(server: FakeHub, hub: Hub, tmp_path: Path) -> None:
    """Names, shapes, offsets, config and files are those of the model; only the first bytes of the weights are sent."""
    found = describe("org/single", hub=hub, label="chat")
    same = local(SINGLE, tmp_path / "local")
    assert (found.label, found.folder, found.revision) == ("chat", None, FIRST)
    assert found.config == {"model_type": "llama"}
    assert found.files == same.files == CARRIED
    assert list(found.tensors) == list(same.tensors)
    for name, source in found.tensors.items():
        there, here = source.segments[0], same.tensors[name].segments[0]
        assert (source.dtype, source.shape) == (same.tensors[name].dtype, same.tensors[name].shape)
        assert (there.offset, there.nbytes, there.file.size) == (here.offset, here.nbytes, here.file.size)
        assert there.file.path == f"hub://org/single@{FIRST}/model.safetensors"
    assert 0 < server.sent("/cdn/") <= 100_000 < len(SINGLE["model.safetensors"])


def test_shards_are_described_from_the_index(server: FakeHub, hub: Hub, tmp_path: Path) -> None:
    """Each tensor is found in its shard; files the index does not name are not touched."""
    found = describe("org/sharded", hub=hub)
    assert {name: source.segments[0].file.path.rpartition("/")[2] for name, source in found.tensors.items()} == {
        "a": "model-1.safetensors",
        "b": "model-1.safetensors",
        "c": "model-2.safetensors",
    }
    assert server.sent("consolidated") == 0


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_pickled_weights_are_described_without_their_bytes(
    server: FakeHub, hub: Hub, tmp_path: Path, old: bool
) -> None:
    """Of pickled shards, too, only what describes the tensors is sent; the tensors are those of the files."""
    shards = {
        "one.bin": saved({"a": torch.arange(200_000.0), "t": torch.arange(6.0).reshape(2, 3).t()}, old=old),
        "two.bin": saved({"b": torch.arange(300_000)}, old=old),
    }
    index = {"weight_map": {"a": "one.bin", "t": "one.bin", "b": "two.bin"}}
    files = {**shards, "pytorch_model.bin.index.json": json.dumps(index).encode(), "config.json": CONFIG}
    server.repositories["org/pickled"] = Repository({FIRST: files}, {"main": FIRST})
    found = describe("org/pickled", hub=hub)
    same = local(files, tmp_path / "local")
    assert list(found.tensors) == list(same.tensors) == ["a", "b", "t"]
    for name, tensor in found.tensors.items():
        for there, here in zip(tensor.sources(), same.tensors[name].sources(), strict=True):
            assert (there.dtype, there.shape) == (here.dtype, here.shape)
            assert there.segments[0].offset == here.segments[0].offset
    assert 0 < server.sent("/cdn/") <= 500_000 < sum(map(len, shards.values()))
    assert list(downloaded(hub, "org/pickled").tensors) == ["a", "b", "t"]


@pytest.mark.parametrize("own_config", [False, True])
def test_the_only_gguf_file_is_described_without_its_tensors(
    server: FakeHub, hub: Hub, tmp_path: Path, own_config: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its header is read by ranges; tensors and configuration are those of the file on this machine."""
    monkeypatch.setattr(hub_transfer, "FIRST_REQUEST_BYTES", 100)
    monkeypatch.setattr(gguf_header, "READ_AHEAD_BYTES", 1000)
    embedding = {**TENSORS, "token_embd.weight": (0, (40_000, 32))}
    metadata = {**METADATA, "tokenizer.ggml.tokens": ["word" * 9] * 200}
    files = {"model.gguf": gguf_bytes(metadata, embedding), **({"config.json": CONFIG} if own_config else {})}
    server.repositories["org/gguf"] = Repository({FIRST: files}, {"main": FIRST})
    found, same = describe("org/gguf", hub=hub), local(files, tmp_path / "local")
    assert found.config == same.config
    assert (found.config == {"model_type": "llama"}) is own_config
    assert list(found.tensors) == list(same.tensors)
    for name, tensor in found.tensors.items():
        for there, here in zip(tensor.sources(), same.tensors[name].sources(), strict=True):
            assert (there.dtype, there.shape) == (here.dtype, here.shape)
            assert there.segments[0].offset == here.segments[0].offset
    assert 7_000 < server.sent("model.gguf") < 20_000
    assert downloaded(hub, "org/gguf").folder == hub.snapshot("org/gguf", FIRST)


def test_a_server_that_ignores_ranges_cannot_show_pickles(server: FakeHub, hub: Hub) -> None:
    """The directory at the end of a large archive is not fetched by sending all of it."""
    files = {"pytorch_model.bin": saved({"a": torch.arange(1_000_000.0)})}
    server.repositories["org/pickled"] = Repository({FIRST: files}, {"main": FIRST})
    server.ignore_ranges = True
    with pytest.raises(CheckpointError, match="sends whole files only; download it"):
        describe("org/pickled", hub=hub)


def test_a_long_header_takes_a_second_request(server: FakeHub, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header longer than the first request is read whole."""
    monkeypatch.setattr(hub_transfer, "FIRST_REQUEST_BYTES", 20)
    assert list(describe("org/single", hub=hub).tensors) == ["embed", "layers.0.w"]


def test_a_server_that_ignores_ranges_is_cut_short(server: FakeHub, hub: Hub) -> None:
    """The whole file is never taken into memory, whatever the server sends."""
    size = 24 << 20
    big = file_of(header_of({"w": ("U8", (size,))}), bytes(size))
    server.repositories["org/big"] = Repository({FIRST: {"model.safetensors": big}}, {"main": FIRST})
    server.ignore_ranges = True
    assert list(describe("org/big", hub=hub).tensors) == ["w"]
    assert server.sent("/cdn/") < len(big) // 2


def test_a_remote_header_is_validated_like_a_local_one(server: FakeHub, hub: Hub) -> None:
    """A damaged file is refused before anything is downloaded, under its name on the hub."""
    lying = header_of({"w": ("F32", (2,))})
    lying["w"]["shape"] = [3]  # type: ignore[index]
    server.repositories["org/bad"] = Repository(
        {FIRST: {"model.safetensors": file_of(lying, pattern(8))}}, {"main": FIRST}
    )
    with pytest.raises(CheckpointError, match=rf"hub://org/bad@{FIRST}/model\.safetensors: tensor 'w' takes 12 bytes"):
        describe("org/bad", hub=hub)


def test_an_answer_cut_off_is_refused(server: FakeHub, hub: Hub) -> None:
    """A header that arrives in part is not parsed."""
    server.cut_off = 30
    with pytest.raises(CheckpointError, match="the hub sent 30 bytes of its header's"):
        describe("org/single", hub=hub)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"pytorch_model.bin": b"PK"}, "neither a zip archive nor a pickle"),
        ({"README.md": b""}, "no weights in the repository"),
        ({"model.gguf": b"GGUF"}, "in the middle of what it describes"),
        ({"a.gguf": b"GGUF", "b.gguf": b"GGUF"}, "holds 2 GGUF files .*; download one of them and name the local copy"),
        (
            {"pytorch_model.bin.index.json": b'{"weight_map": {"a": "/etc/x.bin"}}'},
            "points outside the folder",
        ),
        ({"adapter_model.safetensors": b"", "adapter_config.json": b"{}"}, "LoRA adapter"),
        ({"model.safetensors": b""}, "too few"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'}, "points outside the folder"),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "x.safetensors"}}'},
            "names 'x.safetensors', which is not",
        ),
        ({"model.safetensors": weights({})}, "holds no tensors"),
        ({"model.safetensors": weights({"a": ("F32", ())}), "config.json": b"["}, r"config\.json: not valid JSON"),
    ],
)
def test_a_repository_that_is_no_model_is_refused(
    server: FakeHub, hub: Hub, files: dict[str, bytes], message: str
) -> None:
    """The same refusals as for a folder, from the listing and the headers alone."""
    server.repositories["org/odd"] = Repository({FIRST: files}, {"main": FIRST})
    with pytest.raises(CheckpointError, match=message) as caught:
        describe("org/odd", hub=hub)
    assert "\n" not in str(caught.value)


def test_a_download_brings_only_what_is_needed(server: FakeHub, hub: Hub) -> None:
    """Weights, config, tokenizer and the like; never a second format of the weights. Progress counts every byte."""
    counts: list[int] = []
    described = describe("org/single", hub=hub)
    assert described.revision is not None
    found = download(described, "org/single", None, counts.append, hub=hub)
    folder = hub.snapshot("org/single", FIRST)
    assert found.folder == folder
    assert found.revision == FIRST
    assert found.files == CARRIED
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        *CARRIED,
        "model.safetensors",
    }
    # config.json came with the description already.
    assert sum(counts) == sum(len(SINGLE[name]) for name in (*CARRIED, "model.safetensors")) - len(CONFIG)
    assert {name: (s.dtype, s.shape) for name, s in found.tensors.items()} == {
        name: (s.dtype, s.shape) for name, s in described.tensors.items()
    }


def test_the_token_stays_with_the_hub(server: FakeHub, hub: Hub) -> None:
    """The user's token goes to the hub, and never to the host that large files are redirected to."""
    downloaded(hub, "org/single")
    assert {request.authorized for request in server.requests if request.host == "127.0.0.1"} == {True}
    assert {request.authorized for request in server.requests if request.path.startswith("/cdn/")} == {False}


def test_what_was_downloaded_is_opened_on_this_machine(server: FakeHub, hub: Hub) -> None:
    """The second time, one question is asked (which commit is it now?) and nothing is sent again."""
    downloaded(hub, "org/sharded")
    server.requests.clear()
    found = describe("org/sharded", hub=hub)
    assert found.folder == hub.snapshot("org/sharded", SECOND)
    assert [request.path for request in server.requests] == ["/api/models/org/sharded"]


def test_a_snapshot_without_all_files_is_completed(server: FakeHub, hub: Hub) -> None:
    """Another tool may have downloaded part of a commit: what is missing is fetched, the rest kept."""
    fetch("org/single", FIRST, ["model.safetensors"], lambda _count: None, hub=hub)
    assert describe("org/single", hub=hub).folder is None
    counts: list[int] = []
    found = download(describe("org/single", hub=hub), "org/single", None, counts.append, hub=hub)
    assert found.files == CARRIED
    assert sum(counts) < 1000


def test_a_revision_is_pinned_to_its_commit(server: FakeHub, hub: Hub) -> None:
    """What was described is what is downloaded, also when the branch moves in between."""
    described = describe("org/single", "v1", hub=hub)
    moved = {**SINGLE, "config.json": b'{"model_type": "other"}'}
    server.repositories["org/single"] = Repository({FIRST: SINGLE, SECOND: moved}, {"main": SECOND, "v1": SECOND})
    assert download(described, "org/single", "v1", lambda _count: None, hub=hub).config == {"model_type": "llama"}
    again = describe("org/single", "v1", hub=hub)
    assert (again.revision, again.config) == (SECOND, {"model_type": "other"})
    assert describe("org/single", FIRST, hub=hub).revision == FIRST


def test_digests_of_a_downloaded_blob_are_known_before_another_download(
    server: FakeHub, hub: Hub, tmp_path: Path
) -> None:
    """The hub's sha256 names the bytes: a plan over a model hashed elsewhere needs no download."""
    memory = DigestMemory(tmp_path / "digests.sqlite", now_ns=lambda: 4 * 10**18)
    digests = memory.compute(downloaded(hub, "org/single").tensors.values(), 2)
    elsewhere = describe("org/single", hub=replace(hub, cache=tmp_path / "empty"))
    assert elsewhere.folder is None
    assert list(memory.known(elsewhere.tensors.values()).values()) == list(digests.values())


def refusal(hub: Hub, repo_id: str, revision: str | None = None) -> str:
    """The one line with which a hub model is refused."""
    with pytest.raises(CheckpointError) as caught:
        describe(repo_id, revision, hub=hub)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_unknown_model_is_said_to_be_unknown(server: FakeHub, hub: Hub) -> None:
    """The hub does not tell missing from private, so the message names both ways out."""
    assert refusal(hub, "org/nothing") == (
        f"org/nothing: no such model on {server.address} (if it is private, run `hf auth login`)"
    )


def test_an_unknown_revision_is_said_to_be_unknown(server: FakeHub, hub: Hub) -> None:
    """The model is there, the revision is not."""
    assert refusal(hub, "org/single", "v9").startswith("org/single@v9: the model has no such revision")


def test_a_gated_model_says_where_to_ask(server: FakeHub, hub: Hub) -> None:
    """Its page can be seen, its files cannot."""
    server.repositories["org/single"].gated = True
    assert f"accept its terms at {server.address}/org/single" in refusal(hub, "org/single")


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (500, "", "answered 500"),
        (429, "", "answered 429"),
        (404, "", "answered 404"),
        (403, "", "denies access"),
        (401, "Invalid credentials in Authorization header", "refuses your token"),
    ],
)
def test_what_the_hub_answers_is_said_with_the_way_out(
    server: FakeHub, hub: Hub, status: int, reason: str, message: str
) -> None:
    """A busy hub, a token that expired and a missing permission are three things."""
    server.status, server.reason = status, reason
    assert message in refusal(hub, "org/single")


def test_a_full_disk_is_an_error_of_the_run(server: FakeHub, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that does not fit is not the model's fault."""

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", "blob")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(RunError, match="cannot be downloaded: No space left on device"):
        fetch("org/single", FIRST, ["config.json"], lambda _count: None, hub=hub)


def test_no_network_is_one_line(tmp_path: Path) -> None:
    """Nobody listens at the address: the way out is a local folder."""
    message = refusal(Hub("http://127.0.0.1:9", tmp_path), "org/single")
    assert message.startswith("org/single: cannot reach http://127.0.0.1:9 (")
    assert "name a local folder" in message


def test_without_a_network_the_cache_stands_in(server: FakeHub, hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    """What was downloaded as `main` is used as `main`, with a warning; so is a commit, long or short."""
    downloaded(hub, "org/single")
    away = replace(hub, endpoint="http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING):
        assert describe("org/single", hub=away).folder == hub.snapshot("org/single", FIRST)
    assert f"the cached commit {FIRST} is used" in caplog.text
    assert describe("org/single", FIRST, hub=away).revision == FIRST
    assert describe("org/single", FIRST[:7], hub=away).revision == FIRST
    assert "cannot reach" in refusal(away, "org/single", "v1")
    assert "cannot reach" in refusal(away, "org/single", "../../refs/main")


def test_a_part_of_a_model_does_not_stand_in(server: FakeHub, hub: Hub) -> None:
    """A cache with one of two shards is said to hold only part of it."""
    names = ["model-1.safetensors", "model.safetensors.index.json"]
    fetch("org/sharded", SECOND, names, lambda _count: None, hub=hub)
    keep_commit(hub, "org/sharded", None, SECOND)
    assert "holds only part of it" in refusal(replace(hub, endpoint="http://127.0.0.1:9"), "org/sharded")


def test_an_interrupted_download_ends(server: FakeHub, hub: Hub) -> None:
    """An exception in the progress callback (ctrl-C) ends all downloads, and no half file is taken for a whole one."""

    def interrupt(_count: int) -> None:
        raise KeyboardInterrupt

    described = describe("org/single", hub=hub)
    with pytest.raises(KeyboardInterrupt):
        download(described, "org/single", None, interrupt, hub=hub)
    assert describe("org/single", hub=hub).folder is None
    assert downloaded(hub, "org/single").folder is not None


OFFLINE = """
import logging, sys
from pathlib import Path
from mergeflow.errors import CheckpointError, RunError
from mergeflow.models.open import open_model
from mergeflow.recipe.records import AdapterReference, ModelReference
for name in sys.argv[1:]:
    try:
        found = open_model(ModelReference(name), [], download=True)
        print(found.folder, found.revision, len(found.tensors))
    except CheckpointError as error:
        print(error)
"""


def test_offline_mode_uses_the_cache_and_says_what_is_missing(server: FakeHub, hub: Hub, tmp_path: Path) -> None:
    """HF_HUB_OFFLINE=1, HF_ENDPOINT and HF_HUB_CACHE are the user's: no request is made, and nothing is warned of."""
    downloaded(hub, "org/single")
    server.requests.clear()
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_ENDPOINT": server.address,
        "HF_HUB_CACHE": str(hub.cache),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-c", OFFLINE, "org/single", "org/sharded"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True)
    assert done.stdout.splitlines() == [
        f"{hub.snapshot('org/single', FIRST)} {FIRST} 2",
        "org/sharded: not in the local cache, and HF_HUB_OFFLINE is set; unset it to download; "
        "there is no folder 'org/sharded' either",
    ]
    assert done.stderr == ""
    assert server.requests == []


def test_open_model_takes_folders_and_hub_models_alike(server: FakeHub, hub: Hub, tmp_path: Path) -> None:
    """One entry point: a path, a hub id from headers, or a hub id downloaded; experts come packed."""
    moe = {
        f"l.0.mlp.experts.{e}.{part}.weight": ("F32", (2, 2))
        for e in range(2)
        for part in ("gate_proj", "up_proj", "down_proj")
    }
    files = {"model.safetensors": weights(moe)}
    server.repositories["org/moe"] = Repository({FIRST: files}, {"main": FIRST})
    local(files, tmp_path / "here" / "moe")
    counts: list[int] = []
    opened = [
        open_model(ModelReference("moe"), [tmp_path / "here"], download=False),
        open_model(ModelReference("org/moe"), [tmp_path], download=False, hub=hub),
        open_model(ModelReference("org/moe"), [tmp_path], download=True, on_bytes=counts.append, hub=hub),
    ]
    assert [list(found.tensors) for found in opened] == [
        ["l.0.mlp.experts.down_proj", "l.0.mlp.experts.gate_up_proj"]
    ] * 3
    assert [found.folder for found in opened] == [tmp_path / "here" / "moe", None, hub.snapshot("org/moe", FIRST)]
    assert sum(counts) == len(files["model.safetensors"])
    assert len(DigestMemory(None).compute(opened[2].tensors.values(), 1)) == 2


def test_an_unknown_model_that_may_be_a_misspelt_folder_says_so(server: FakeHub, hub: Hub, tmp_path: Path) -> None:
    """The message names the folder that may have been meant."""
    (tmp_path / "models" / "base").mkdir(parents=True)
    with pytest.raises(
        CheckpointError, match=r"no such model .*; there is no folder 'models/bsae' either; did you mean"
    ):
        open_model(ModelReference("models/bsae"), [tmp_path], download=False, hub=hub)


def test_what_was_planned_is_opened_later_under_the_name_it_was_written_with(server: FakeHub, hub: Hub) -> None:
    """A branch that moves after planning does not matter: that commit is downloaded, and noted as the branch."""
    planned = open_model(ModelReference("org/single"), [], download=False, hub=hub)
    server.repositories["org/single"].commits[SECOND] = SHARDED
    server.repositories["org/single"].refs["main"] = SECOND
    opened = open_model(ModelReference("org/single"), [], download=True, commit=planned.revision, hub=hub)
    assert (opened.label, opened.revision) == ("org/single", FIRST)
    away = replace(hub, endpoint="http://127.0.0.1:9")
    assert open_model(ModelReference("org/single"), [], download=False, hub=away).revision == FIRST


def test_two_names_of_one_commit_are_both_known_offline(server: FakeHub, hub: Hub) -> None:
    """The second name's files are there already; that it means this commit is noted all the same."""
    downloaded(hub, "org/single")
    downloaded(hub, "org/single", "v1")
    assert describe("org/single", "v1", hub=replace(hub, endpoint="http://127.0.0.1:9")).revision == FIRST


def test_a_recipe_that_ran_online_runs_offline(server: FakeHub, hub: Hub, tmp_path: Path) -> None:
    """`mergeflow run` downloads the models a recipe names; with HF_HUB_OFFLINE=1 it runs again without a request."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("models: [{model: org/single}]\nmerge_method: passthrough\n")
    program = "from mergeflow.cli.main import main; main()"
    environment = os.environ | {
        "HF_ENDPOINT": server.address,
        "HF_HUB_CACHE": str(hub.cache),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }

    def run(out: str, **more: str) -> None:
        command = [sys.executable, "-c", program, "run", str(recipe), str(tmp_path / out), "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment | more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "identical to org/single:" in done.stderr  # the name as it is written, without a commit

    run("online")
    server.requests.clear()
    run("offline", HF_HUB_OFFLINE="1")
    assert server.requests == []
    online, offline = (tmp_path / out / "model.safetensors" for out in ("online", "offline"))
    assert offline.read_bytes() == online.read_bytes()


def test_an_adapter_of_the_hub_is_described_then_downloaded(server: FakeHub, hub: Hub, tmp_path: Path) -> None:
    """It is pinned to its commit, and what was planned is what is opened, though the branch has moved."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_bytes(weights({"layers.0.w.weight": ("F32", (4, 6))}))
    pair: Entries = {
        "base_model.model.layers.0.w.lora_A.weight": ("F32", (2, 6)),
        "base_model.model.layers.0.w.lora_B.weight": ("F32", (4, 2)),
    }
    config = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}).encode()
    lora = {"adapter_model.safetensors": weights(pair), "adapter_config.json": config}
    server.repositories["org/lora"] = Repository({FIRST: lora}, {"main": FIRST})
    reference = ModelReference(str(tmp_path / "base"), adapters=(AdapterReference("org/lora"),))

    planned = open_model(reference, [], download=False, hub=hub)
    assert planned.adapter_revisions == (FIRST,)
    assert any(segment.file.path.startswith("hub://") for it in planned.tensors.values() for segment in segments(it))

    server.repositories["org/lora"] = Repository({FIRST: lora, SECOND: {}}, {"main": SECOND})
    opened = open_model(reference, [], download=True, adapter_commits=planned.adapter_revisions, hub=hub)
    assert opened.adapter_revisions == (FIRST,)
    assert not any(segment.file.path.startswith("hub://") for it in opened.tensors.values() for segment in segments(it))
    with pytest.raises(CheckpointError, match="holds no adapter"):
        open_model(replace(reference, adapters=(AdapterReference("org/single"),)), [], download=False, hub=hub)


def test_lock_and_card_name_an_adapter_of_the_hub_by_its_commit(server: FakeHub, hub: Hub, tmp_path: Path) -> None:
    """Each adapter has its path, its own commit and its factor in the lock, and its hub id in the card."""
    base, local_lora = tmp_path / "base", tmp_path / "style"
    base.mkdir()
    (base / "model.safetensors").write_bytes(weights({"layers.0.w.weight": ("F32", (4, 6))}))
    pair: Entries = {
        "base_model.model.layers.0.w.lora_A.weight": ("F32", (2, 6)),
        "base_model.model.layers.0.w.lora_B.weight": ("F32", (4, 2)),
    }
    config = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}).encode()
    lora = {"adapter_model.safetensors": weights(pair), "adapter_config.json": config}
    local_lora.mkdir()
    for name, content in lora.items():
        (local_lora / name).write_bytes(content)
    server.repositories["org/lora"] = Repository({FIRST: lora}, {"main": FIRST, "v1": FIRST})
    (tmp_path / "recipe.yaml").write_text(
        "mergeflow: 1\nmodels:\n  a: {path: ./base, adapters: [org/lora@v1, {path: ./style, weight: -0.5}]}\n"
        "steps:\n  final: {merge_method: linear, models: [{model: a, parameters: {weight: 1}}]}\n"
    )
    run_recipe(server, hub, tmp_path, "out")
    lock = read_lock(tmp_path / "out")
    assert lock is not None
    (model,) = lock.models.values()
    assert (model.path, model.revision) == ("./base", None)
    assert model.adapters == (LockedAdapter("org/lora", FIRST), LockedAdapter("./style", None, -0.5))
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nbase_model:\n- org/lora\nbase_model_relation: merge\n")
    assert f"[org/lora](https://huggingface.co/org/lora) | `{FIRST}` |" in card
    assert "| style | `./style` |" in card


def run_recipe(server: FakeHub, hub: Hub, folder: Path, out: str) -> None:
    """Run recipe.yaml of a folder in a process that knows this hub."""
    environment = os.environ | {
        "HF_ENDPOINT": server.address,
        "HF_HUB_CACHE": str(hub.cache),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "MERGEFLOW_STATE": str(folder / "state"),
    }
    command = [sys.executable, "-m", "mergeflow", "run", "recipe.yaml", out, "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr


def segments(tensor: TensorSource | TensorView) -> Iterator[Segment]:
    for source in tensor.sources():
        yield from source.segments
