"""Every way in which models can be wrong: not there, damaged, lying, or not fit to be merged with one another."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from command_line import everything, mergeflow, write
from hub_server import FakeHub, Repository, running_hub
from recipes import LINEAR
from refusals import refused, says
from safetensors.torch import save_file
from tiny_checkpoints import llama, llama_tensors, write_model

from mergeflow.models.hub_cache import Hub
from mergeflow.models.open import open_model

pytestmark = pytest.mark.usefixtures("workplace", "out")


class TestModelsThatDoNotFit:
    """Models that cannot be merged with one another. `x` is what each test makes of it."""

    TEXT = LINEAR.replace("./b", "./x").replace("model: b", "model: ▶b")

    def test_another_number_of_layers(self) -> None:
        """Both counts, and the rule."""
        refused(
            LINEAR.replace("./b", "./deep").replace("model: b", "model: ▶b"),
            "steps.soup.models[1].model: ./a has 2 layers in model.layers, ./deep has 3: models merge only when "
            "they have the same layers",
        )

    def test_another_shape(self) -> None:
        """The first tensor with both shapes, and the others that differ."""
        write_model(Path("x"), llama_tensors(5, vocab=25))
        refused(
            self.TEXT,
            "steps.soup.models[1].model: the shapes of lm_head.weight differ: [24, 16] in ./a, [25, 16] in ./x; "
            "so do the shapes of model.embed_tokens.weight; their vocabularies differ: …",
        )

    def test_a_tensor_missing(self) -> None:
        """Which one, and in which model."""
        tensors = llama_tensors(5)
        del tensors["model.norm.weight"]
        write_model(Path("x"), tensors)
        message = "steps.soup.models[1].model: ./x lacks model.norm.weight: carried over unchanged from ./a"
        refused(self.TEXT, message, options=["--strict"])

    def test_a_tensor_too_many(self) -> None:
        """A head that only one model has is not dropped without a word."""
        write_model(Path("x"), llama_tensors(5) | {"score.weight": torch.zeros(2, 16)})
        message = "steps.soup.models[0].model: ./a lacks score.weight: carried over unchanged from ./x"
        text = LINEAR.replace("./b", "./x").replace("model: a", "model: ▶a")
        refused(text, message, options=["--strict"])

    def test_nothing_in_common(self) -> None:
        """Another architecture: what each lacks, cut short."""
        write_model(Path("x"), {"embedder.bias": torch.zeros(4)})
        refused(
            self.TEXT,
            "steps.soup.models[1].model: ./x lacks lm_head.weight, model.embed_tokens.weight, "
            "model.layers.0.input_layernorm.weight (and 6 more), which ./a has: they are of different architectures",
        )

    def test_integers_that_differ(self) -> None:
        """Positions and counters are carried along, never averaged: they must be equal."""
        write_model(Path("x"), llama_tensors(5) | {"model.norm.weight": torch.zeros(16, dtype=torch.int64)})
        refused(
            LINEAR.replace("./b", "./x").replace("    models:\n      -", "    models:\n      ▶-"),
            "steps.soup.models: an integer tensor is carried along, not merged: it is float32 in ./a, int64 in ./x "
            "(tensor model.norm.weight)",
        )

    def test_integers_of_other_contents(self, workplace: Path) -> None:
        """What shows only in the bytes is found by the run, before it writes."""
        for name, first in (("x", 0), ("y", 1)):
            ids = torch.arange(first, first + 8)
            write_model(Path(name), llama_tensors(5) | {"model.position_ids": ids})
        path = write(LINEAR.replace("./a", "./x").replace("./b", "./y"))
        before = everything(workplace)
        says(
            mergeflow("run", path, "out"),
            1,
            "recipe.yaml:7:7: error: steps.soup.models: an integer tensor is carried along, not merged: its contents "
            "in ./x and ./y differ (tensor model.position_ids)",
        )
        assert everything(workplace) == before


class TestFoldersOfModels:
    """Models that are not there, or not models."""

    TEXT = LINEAR.replace("./b", "▶./x")

    def test_a_missing_folder(self) -> None:
        """At the place where the path is written, with the nearest folder beside it."""
        refused(
            LINEAR.replace("./b", "▶./deeep"), f"models.b: ./deeep: no such folder: {Path.cwd()}/deeep; did you mean "
            f"'{Path.cwd()}/deep'?",
        )  # fmt: skip

    def test_a_missing_folder_named_in_a_step(self) -> None:
        """A path that has no name under `models` is shown where it is used."""
        refused(
            LINEAR.replace("model: b", "model: ▶./nowhere").replace(", b: ./b", ""),
            f"steps.soup.models[1].model: ./nowhere: no such folder: {Path.cwd()}/nowhere",
        )

    def test_a_missing_folder_of_a_tokenizer(self) -> None:
        """A donor that only an output names is looked for too."""
        refused(
            LINEAR + "outputs:\n  ▶soup: {tokenizer: {source: ./nowhere}}\n",
            f"outputs.soup.tokenizer: ./nowhere: no such folder: {Path.cwd()}/nowhere",
        )

    def test_a_step_with_a_dot_in_its_name(self) -> None:
        """`v1.5` is a name like any other."""
        refused(
            LINEAR.replace("soup", "v1.5").replace("model: b", "model: ▶./nowhere").replace(", b: ./b", ""),
            f"steps.v1.5.models[1].model: ./nowhere: no such folder: {Path.cwd()}/nowhere",
        )

    def test_a_file(self) -> None:
        """A model is a folder, or a file that ends like weights."""
        Path("x").write_text("weights")
        refused(self.TEXT, f"models.b: ./x: {Path.cwd()}/x is a file, but not one of weights (.safetensors, …)…")

    def test_an_empty_folder(self) -> None:
        """No weights in it."""
        Path("x").mkdir()
        refused(self.TEXT, f"models.b: ./x: no weights in {Path.cwd()}/x (files that end in …)")

    def test_damaged_pickled_weights(self) -> None:
        """A pickle that torch did not write is not looked into."""
        Path("x").mkdir()
        Path("x/pytorch_model.bin").write_bytes(b"pickle")
        refused(self.TEXT, "models.b: …/x/pytorch_model.bin: neither a zip archive nor a pickle: torch.save did not…")

    def test_a_name_too_long_for_the_system(self) -> None:
        """What the system refuses is a message like any other."""
        name = "x" * 300
        refused(LINEAR.replace("./b", f"▶./{name}"), f"models.b: ./{name}: File name too long")

    def test_a_user_who_is_not_there(self) -> None:
        """~somebody."""
        refused(LINEAR.replace("./b", "▶~nobodyhere/model"), "models.b: ~nobodyhere/model: …")

    def test_a_config_that_is_no_json(self) -> None:
        """The file that is wrong is named."""
        llama(Path("x"), 1)
        Path("x/config.json").write_text("{")
        refused(self.TEXT, f"models.b: {Path.cwd()}/x/config.json: not valid JSON: …")

    def test_no_tensors(self) -> None:
        """A model of nothing."""
        Path("x").mkdir()
        save_file({}, "x/model.safetensors")
        refused(self.TEXT, f"models.b: ./x: {Path.cwd()}/x/model.safetensors holds no tensors")


def header(entries: object, data: int = 8) -> bytes:
    """A safetensors file with this header and so many bytes of data."""
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data)


def entry(shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


class TestHeaders:
    """Safetensors files that are damaged or lie: nothing in them is believed."""

    def refuse(self, content: bytes, message: str) -> None:
        Path("x").mkdir()
        Path("x/model.safetensors").write_bytes(content)
        refused(LINEAR.replace("./b", "▶./x"), f"models.b: {Path.cwd()}/x/model.safetensors: {message}")

    @pytest.mark.parametrize("length", [0, 4, 8, 20, 500, -10])
    def test_truncated(self, length: int) -> None:
        """Cut off in the length, in the header, in the last tensor: an interrupted download."""
        content = Path("b/model.safetensors").read_bytes()
        reasons = {
            0: "0 bytes are too few…",
            4: "4 bytes are too few…",
            -10: "…ends 10 bytes beyond the end of the file…",
        }
        self.refuse(
            content[:length] if length else b"", reasons.get(length, "claims a header of … it is cut off or damaged")
        )

    @pytest.mark.parametrize("length", [2**63, 2**40, 100_000_001])
    def test_huge(self, length: int) -> None:
        """A length that no header has is not tried."""
        self.refuse(
            struct.pack("<Q", length) + bytes(100), f"claims a header of {length} bytes; no safetensors header …"
        )

    @pytest.mark.parametrize(
        ("entries", "message"),
        [
            ({"w": entry([3], 0, 8)}, "tensor 'w' takes 12 bytes as float32 of shape (3,), but has 8"),
            ({"w": entry([2], 8, 0)}, "tensor 'w' has data_offsets [8, 0], which run backwards"),
            ({"w": entry([2], -4, 4)}, "tensor 'w' has data_offsets [-4, 4], which run backwards"),
            ({"w": entry([4], 0, 16)}, "tensor 'w' ends 8 bytes beyond the end of the file…"),
            ({"w": entry([1], 4, 8)}, "tensor 'w' leaves a hole of 4 bytes…"),
            ({"w": entry([1], 0, 4)}, "4 bytes after 'w' belong to no tensor"),
            ({"v": entry([2], 0, 8), "w": entry([1], 4, 8)}, "tensor 'w' overlaps 'v' by 4 bytes"),
            ({"w": entry([2**40, 2**40], 0, 8)}, "tensor 'w' takes … bytes as float32 of shape …, but has 8"),
            ({"w": entry([-2], 0, 8)}, "tensor 'w' has shape [-2]; …"),
            ({"w": {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}}, "tensor 'w' has dtype 'F33', …"),
            ({"w": {"dtype": "F32", "shape": [2]}}, "tensor 'w' needs a dtype, a shape and data_offsets"),
            (["w"], "the header does not start with '{'; not a safetensors file"),
        ],
    )
    def test_lies(self, entries: object, message: str) -> None:
        """About offsets, sizes, shapes and formats."""
        self.refuse(header(entries), message)

    def test_not_json(self) -> None:
        """Bytes that look like a header at first."""
        self.refuse(struct.pack("<Q", 8) + b'{"w": [}' + bytes(8), "header: not valid JSON: …")

    def test_a_pointer_of_git_lfs(self) -> None:
        """The commonest small file that is no model."""
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 100\n"
        self.refuse(pointer, "a Git LFS pointer, not the weights; run `git lfs pull` in its folder")


class TestIndexes:
    """An index comes from a stranger: it may name only what is in its folder."""

    NAME = "model.safetensors.index.json"

    def refuse(self, change: Callable[[dict[str, str]], object], message: str) -> None:
        write_model(Path("x"), llama_tensors(1), shards=3)
        path = Path("x") / self.NAME
        index = json.loads(path.read_text())
        change(index["weight_map"])
        path.write_text(json.dumps(index))
        refused(LINEAR.replace("./b", "▶./x"), f"models.b: {Path.cwd()}/x/{message}")

    @pytest.mark.parametrize(
        "place", ["../b/model.safetensors", "/etc/model.safetensors", "c/../../b/model.safetensors"]
    )
    def test_outside_of_its_folder(self, place: str) -> None:
        """Upwards, absolute, or upwards in the middle, even to a file that is there."""
        self.refuse(lambda names: names.update(extra=place), f"{self.NAME}: '{place}' points outside the folder")

    def test_a_missing_shard(self) -> None:
        """Named before anything is read."""
        missing = "model-00004-of-00003.safetensors"
        self.refuse(lambda names: names.update(extra=missing), f"{self.NAME}: names '{missing}', which is not there")

    def test_a_tensor_that_its_shard_lacks(self) -> None:
        """The index is held against the headers."""
        shard = "model-00001-of-00003.safetensors"
        self.refuse(
            lambda names: names.update(extra=shard), f"{shard}: lacks tensor 'extra', which the index says is in it"
        )

    def test_something_else_than_weights(self) -> None:
        """An index of pickles."""
        self.refuse(lambda names: names.update(extra="x.bin"), f"{self.NAME}: 'x.bin' is not a safetensors file")

    def test_no_names(self) -> None:
        """An index without a map."""
        self.refuse(lambda names: names.clear(), f"{self.NAME}: has no weight_map")


def use_hub(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model is looked for on this hub; what is downloaded goes to `cache`."""
    at_hand = partial(open_model, hub=Hub(address, cache))
    monkeypatch.setattr("mergeflow.workflow.models.open_model", at_hand)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def no_old_connections() -> Iterator[None]:
    """None that another test has opened, none that the next one finds."""
    from huggingface_hub.utils import close_session  # type: ignore[attr-defined]

    close_session()
    yield
    close_session()


@pytest.fixture
def hub(no_old_connections: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub on this machine, with one model of one tensor."""
    with running_hub() as fake:
        files = {"model.safetensors": header({"w": entry([2], 0, 8)}), "config.json": b"{}"}
        fake.repositories["org/model"] = Repository({"a1" * 20: files}, {"main": "a1" * 20})
        use_hub(fake.address, tmp_path / "cache" / "hub", monkeypatch)
        yield fake


@pytest.fixture
def no_network(no_old_connections: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a hub that does not answer: a port that is ours, on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        use_hub(address, tmp_path / "cache" / "hub", monkeypatch)
        yield address


class TestTheHub:
    """Models of the hub that cannot be had."""

    def test_no_such_model(self, hub: FakeHub) -> None:
        """The hub says no; so does this machine."""
        refused(
            LINEAR.replace("./b", "▶org/modle"),
            f"models.b: org/modle: no such model on {hub.address} (if it is private, run `hf auth login`); "
            "there is no folder 'org/modle' either",
        )

    def test_no_such_revision(self, hub: FakeHub) -> None:
        """The model is there, the branch is not."""
        refused(
            LINEAR.replace("./b", "▶org/model@develop"),
            "models.b: org/model@develop: the model has no such revision; see … for those it has; …",
        )

    def test_restricted(self, hub: FakeHub) -> None:
        """Terms that were not accepted: where to do that."""
        hub.repositories["org/model"].gated = True
        refused(LINEAR.replace("./b", "▶org/model"), f"models.b: org/model: … {hub.address}… `hf auth login`; …")

    def test_a_model_that_does_not_fit_is_not_downloaded(self, hub: FakeHub) -> None:
        """Headers are enough to see it: no more than the first bytes of the weights are sent."""
        hub.repositories["org/model"].commits["a1" * 20]["model.safetensors"] = header(
            {"w": entry([1 << 20], 0, 1 << 22)}, 1 << 22
        )
        refused(
            LINEAR.replace("./b", "org/model").replace("model: b", "model: ▶b"),
            "steps.soup.models[1].model: org/model lacks lm_head.weight, …",
        )
        assert hub.sent("/cdn/") < 1 << 20

    def test_no_network(self, no_network: str) -> None:
        """Which address does not answer, and what to do."""
        refused(
            LINEAR.replace("./b", "▶org/model"),
            f"models.b: org/model: cannot reach {no_network} (…); check the network, or name a local folder; "
            "there is no folder 'org/model' either",
        )

    def test_a_word_that_is_no_name(self, no_network: str) -> None:
        """It may have been meant for a step: what the recipe has is listed."""
        refused(
            LINEAR.replace("model: b", "model: ▶gpt5").replace(", b: ./b", ""),
            f"steps.soup.models[1].model: gpt5: cannot reach {no_network} … and it is no step or name under 'models' "
            "of this recipe (soup, a)",
        )

    def test_offline(self, no_network: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """HF_HUB_OFFLINE is obeyed, and named."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        refused(LINEAR.replace("./b", "▶org/model"), "models.b: org/model: … HF_HUB_OFFLINE …")
