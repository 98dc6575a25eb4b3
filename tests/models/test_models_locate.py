from __future__ import annotations

from pathlib import Path

import pytest

from mergeflow.errors import CheckpointError
from mergeflow.models.locate import locate
from mergeflow.recipe.records import ModelReference


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "recipe" / "models" / "base").mkdir(parents=True)
    (tmp_path / "recipe" / "gpt2").mkdir()
    (tmp_path / "other" / "models" / "base").mkdir(parents=True)
    (tmp_path / "other" / "models" / "extra").mkdir()
    return tmp_path


def folder(here: Path, text: str) -> Path | None:
    return locate(ModelReference(text), [here / "recipe", here / "other"]).folder


@pytest.mark.parametrize("text", ["models/base", "./models/base", "../recipe/models/base", "models/base/"])
def test_an_existing_folder_is_a_folder(here: Path, text: str) -> None:
    """A relative path starts in the first of the given folders that has it."""
    found = folder(here, text)
    assert found is not None
    assert found.resolve() == here / "recipe" / "models" / "base"


def test_the_folders_are_tried_in_order(here: Path) -> None:
    """What the first folder lacks is looked for in the second."""
    assert folder(here, "models/extra") == here / "other" / "models" / "extra"
    assert folder(here, "./models/extra") == here / "other" / "models" / "extra"


def test_a_folder_wins_over_a_hub_id(here: Path) -> None:
    """A folder called like a model of the hub is the folder."""
    assert folder(here, "gpt2") == here / "recipe" / "gpt2"


@pytest.mark.parametrize("text", ["merged.safetensors", "models/a.pt", "./models/a.pt"])
def test_a_file_of_weights_is_a_model(here: Path, text: str) -> None:
    """A file whose name ends like weights is found like a folder, and wins over a hub id."""
    (here / "recipe" / "merged.safetensors").write_bytes(b"")
    (here / "recipe" / "models" / "a.pt").write_bytes(b"")
    assert folder(here, text) == here / "recipe" / text


def test_another_file_is_no_model(here: Path) -> None:
    """A file of something else is not taken for a model; the hub is asked, and the message says why."""
    (here / "recipe" / "notes").write_text("x")
    located = locate(ModelReference("notes"), [here / "recipe"])
    assert located.repo_id == "notes"
    assert located.hint.endswith("notes is a file, but not one of weights")


def test_the_home_folder_is_expanded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """~ is the user's home."""
    monkeypatch.setenv("HOME", str(here / "other"))
    assert folder(here, "~/models/base") == here / "other" / "models" / "base"


def test_an_absolute_path_stays(here: Path) -> None:
    """An absolute path does not depend on the folders."""
    path = here / "other" / "models" / "extra"
    assert locate(ModelReference(str(path)), []).folder == path


@pytest.mark.parametrize("text", ["org/chat-7b", "gpt2-large", "a.b/c_d-1.5"])
def test_what_is_no_folder_but_shaped_like_a_hub_id_is_one(here: Path, text: str) -> None:
    """org/name and name go to the hub, with their revision."""
    located = locate(ModelReference(text, revision="v2"), [here])
    assert (located.folder, located.repo_id, located.revision) == (None, text, "v2")


@pytest.mark.parametrize(
    "text",
    ["./models/bsae", "../x", "/nowhere/x", "~/x/y", "a/b/c", "models/", "-x", "a--b", "x..y", "with space", "ü/x", ""],
)
def test_what_can_only_be_a_path_is_a_missing_folder(here: Path, text: str) -> None:
    """Nothing that is no hub id is ever asked of the network."""
    with pytest.raises(CheckpointError, match="no such folder"):
        locate(ModelReference(text), [here / "nothing" / "here"])


def test_a_missing_folder_offers_the_nearest(here: Path) -> None:
    """A misspelt path is answered with the folder beside it."""
    with pytest.raises(CheckpointError, match=r"did you mean '.*recipe/models/base'"):
        folder(here, "./models/bsae")


def test_a_hub_id_that_may_be_a_misspelt_folder_says_so(here: Path) -> None:
    """The hint goes into the message when the hub does not know the model either."""
    located = locate(ModelReference("models/bsae"), [here / "recipe"])
    assert located.repo_id == "models/bsae"
    assert located.hint.startswith("there is no folder 'models/bsae' either; did you mean")


def test_a_revision_means_the_hub(here: Path) -> None:
    """A folder cannot say which commit it holds, so a revision is never looked for in one."""
    located = locate(ModelReference("models/base", revision="main"), [here / "recipe"])
    assert located.repo_id == "models/base"
    assert "is used when the revision is left out" in located.hint
    with pytest.raises(CheckpointError, match="a folder has no revisions; leave out '@v1'"):
        locate(ModelReference("./models/base", revision="v1"), [here / "recipe"])


def test_a_home_of_nobody_is_one_error() -> None:
    """~name of an unknown user is a CheckpointError."""
    with pytest.raises(CheckpointError, match="~nobody-of-that-name"):
        locate(ModelReference("~nobody-of-that-name/x"), [])
