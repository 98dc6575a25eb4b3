"""The model card: valid for the hub, complete, and safe for whatever stands in a recipe."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mergeflow.output.card import Card, CardModel, CardStep, License, agreed_license, license_of, model_card

CARD = Card(
    title="final",
    models=(
        CardModel("base", "./models/base"),
        CardModel("chat", "org/chat-7b@5a1c2e9", "org/chat-7b", "5a1c2e9"),
        CardModel("again", "org/chat-7b", "org/chat-7b"),
    ),
    steps=(
        CardStep("skills", "TIES", ("math", "base"), "base", "https://arxiv.org/abs/2306.01708"),
        CardStep("final", "SLERP", ("chat", "skills"), "chat"),
    ),
    recipe="steps: {}\n",
    version="0.1.0",
    settings={"density": 0.5, "fast": True, "name": "a b"},
    tensors=3,
    parameters=1234,
    bytes=2468,
)


def front_matter(text: str) -> dict[str, object]:
    _, matter, _ = text.split("---\n", 2)
    return yaml.safe_load(matter)


def test_the_front_matter_is_what_the_hub_reads() -> None:
    """Hub ids once each and no local path, the library, our tags; read back by the hub's own client."""
    from huggingface_hub import ModelCardData

    matter = front_matter(model_card(CARD))
    assert matter == {
        "base_model": ["org/chat-7b"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["mergeflow", "merge"],
    }
    assert ModelCardData(**matter).to_dict()["base_model"] == ["org/chat-7b"]


def test_a_card_without_hub_models_names_no_base() -> None:
    """Local folders are nobody's base model on the hub."""
    matter = front_matter(model_card(replace(CARD, models=CARD.models[:1], license="apache-2.0")))
    assert matter == {"license": "apache-2.0", "library_name": "transformers", "tags": ["mergeflow", "merge"]}


def test_the_page_says_what_was_merged_and_how_to_do_it_again() -> None:
    """Every model, every step with its paper, the recipe, the command with the settings that were given, the counts."""
    text = model_card(CARD)
    assert "\n# final\n" in text
    assert "| base | `./models/base` |  |" in text
    assert "| chat | [org/chat-7b](https://huggingface.co/org/chat-7b) | `5a1c2e9` |" in text
    assert "| skills | [TIES](https://arxiv.org/abs/2306.01708) | math, base | base |" in text
    assert "| final | SLERP | chat, skills | chat |" in text
    assert "```yaml\nsteps: {}\n```" in text
    assert "mergeflow run recipe.yaml ./merged --set density=0.5 --set fast=true --set 'name=a b'" in text
    assert "3 tensors, 1,234 parameters, 2,468 bytes" in text


def test_a_paper_that_is_no_address_is_not_made_a_link() -> None:
    """A method without a paper on the web is named, not linked."""
    text = model_card(replace(CARD, steps=(CardStep("s", "M", (), None, "javascript:alert(1)"),)))
    assert "javascript" not in text


@pytest.mark.parametrize("recipe", ["```\nevil\n```", "# ````` five\n", "a: '~~~'"])
def test_a_recipe_cannot_break_out_of_its_block(recipe: str) -> None:
    """Backticks in the recipe get a longer fence, and the recipe stands in it verbatim."""
    lines = model_card(replace(CARD, recipe=recipe)).splitlines()
    start = next(number for number, line in enumerate(lines) if line.endswith("`yaml"))
    fence = lines[start].removesuffix("yaml")
    end = lines.index(fence, start)
    assert "\n".join(lines[start + 1 : end]) == recipe.rstrip()


@given(label=st.text(), path=st.text(), title=st.text())
def test_strange_names_cannot_break_the_tables(label: str, path: str, title: str) -> None:
    """Whatever a label or path holds, its row stays one line of three cells, and the front matter stays valid."""
    text = model_card(replace(CARD, title=title, models=(CardModel(label, path),)))
    assert front_matter(text)["tags"] == ["mergeflow", "merge"]
    after = text.split("| --- | --- | --- |\n", 1)[1].splitlines()
    assert after[1] == ""
    assert after[0].replace("\\\\", "").replace("\\|", "").count("|") == 4


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("---\nlicense: mit\ntags: [a]\n---\n# x", License("mit")),
        ("---\nlicense: mit\n---", License("mit")),
        ("---\r\nlicense: mit\r\n---\r\n", License("mit")),
        ("---\nlicense: other\n---\n", None),
        ("---\nlicense: other\nlicense_name: x\n---\n", License("other", "x")),
        ("---\nlicense: other\nlicense_name: x\nlicense_link: LICENSE\n---\n", License("other", "x", "LICENSE")),
        ("---\ndate: 2026-99-99\n---\n", None),
        ("---\nlicense: [mit, x]\n---\n", None),
        ("---\n: : :\n---\n", None),
        ("---\n- a\n---\n", None),
        ("# no front matter\nlicense: mit", None),
        ("", None),
    ],
)
def test_the_licence_of_a_card(readme: str, expected: License | None) -> None:
    """What the front matter states as one known licence, and nothing else."""
    assert license_of(readme) == expected


@pytest.mark.parametrize(
    ("readmes", "expected"),
    [
        (["---\nlicense: mit\n---\n", "---\nlicense: mit\n---\n# other"], License("mit")),
        (["---\nlicense: mit\n---\n", "---\nlicense: apache-2.0\n---\n"], None),
        (["---\nlicense: mit\n---\n", None], None),
        ([], None),
    ],
)
def test_a_licence_is_stated_only_when_every_input_states_it(
    readmes: list[str | None], expected: License | None
) -> None:
    """One input without a licence, or with another, and the output states none."""
    assert agreed_license([license_of(readme) for readme in readmes]) == expected


def test_a_licence_may_stand_in_the_configuration() -> None:
    """Where the card states none; what the card states counts first."""
    assert license_of(None, {"license": "mit"}) == License("mit")
    assert license_of("---\nlicense: apache-2.0\n---\n", {"license": "mit"}) == License("apache-2.0")
    assert license_of("", {"license": 3}) is None


def test_a_licence_of_the_authors_own_comes_with_its_name_and_link() -> None:
    """The hub refuses `other` alone; and a folder that no library loads names none."""
    from huggingface_hub import ModelCard

    card = replace(CARD, license="other", license_name="x", license_link="LICENSE", library=None)
    data = ModelCard(model_card(card)).data
    assert (data.license, data.license_name, data.license_link) == ("other", "x", "LICENSE")
    assert data.library_name is None
    assert data.tags == ["mergeflow", "merge"]
