"""The tokenizer of a hub model that is not on this machine: its files alone are fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Repository, running_hub

from mergeflow.models.hub_cache import Hub
from mergeflow.models.records import Checkpoint
from mergeflow.models.tokenizer_files import with_tokenizer
from mergeflow.recipe.records import ModelReference

COMMIT = "a" * 40
WORDS = {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "added_tokens": []}
FILES = {"tokenizer.json": json.dumps(WORDS).encode(), "tokenizer_config.json": b'{"chat_template": "{{ messages }}"}'}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub.utils import close_session  # type: ignore[attr-defined]

    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    close_session()
    with running_hub() as fake:
        fake.repositories["org/words"] = Repository({COMMIT: FILES}, {"main": COMMIT})
        yield Hub(fake.address, tmp_path / "cache")
        close_session()


def test_tokens_and_template_come_from_the_small_files(hub: Hub) -> None:
    """Nothing but the tokenizer's files is downloaded, and they are read like those of a folder."""
    described = Checkpoint("org/words", None, {}, files=tuple(FILES), revision=COMMIT)
    reference = ModelReference("org/words")
    found = with_tokenizer(described, reference, [], "tokenizer", hub=hub)
    assert found.tokenizer is not None
    assert (found.tokenizer.ids, found.tokenizer.chat_template) == ({"a": 0}, "{{ messages }}")
    assert with_tokenizer(described, reference, [], "chat template", hub=hub).chat_template == "{{ messages }}"
