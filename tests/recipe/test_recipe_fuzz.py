"""Whatever stands in a file, reading it ends, never raises, and says where it is wrong."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe_texts import DESIGN, FILE, MERGEKIT, MODULES, SLICED, TOKENS, TWO

from mergeflow.errors import Position, RecipeError
from mergeflow.recipe.convert import convert
from mergeflow.recipe.describe import describe
from mergeflow.recipe.fields import (
    ADAPTER_FIELDS,
    DOCUMENT_FIELDS,
    INPUT_FIELDS,
    MODULE_FIELDS,
    NATIVE_FIELDS,
    OPERATIONS,
    OUTPUT_FIELDS,
    REFERENCE_FIELDS,
    SLICE_FIELDS,
    SOURCE_FIELDS,
    STEP_FIELDS,
    TOKEN_FIELDS,
    TOKEN_SOURCE_FIELDS,
    VOCABULARY_FIELDS,
)
from mergeflow.recipe.places import all_parameters, named_sources
from mergeflow.recipe.read import read_recipe
from mergeflow.recipe.records import Recipe
from mergeflow.recipe.resolve import lookup, unmatched_filters
from mergeflow.recipe.settings import SettingError

# A busy machine must not fail a test.
UNTIMED = settings(deadline=None)
WORDS = sorted(
    {
        *NATIVE_FIELDS,
        *STEP_FIELDS,
        *INPUT_FIELDS,
        *OUTPUT_FIELDS,
        *(field for form in OPERATIONS.values() for field in form.sources),
        *MODULE_FIELDS,
        *SLICE_FIELDS,
        *SOURCE_FIELDS,
        *VOCABULARY_FIELDS,
        *TOKEN_FIELDS,
        *TOKEN_SOURCE_FIELDS,
        *REFERENCE_FIELDS,
        *ADAPTER_FIELDS,
        "value",
        "filter",
    }
    | {
        "a",
        "b",
        "skills",
        "skils",
        "linear",
        "float32",
        "bf16",
        "never",
        "./x",
        "org/y@z",
        "x+y",
        "gpt2",
        "x+y+z",
        "union",
        "base",
        "zero",
        "model_token",
        "chatml",
        "auto",
    }
    | {"${a}", "${b}", "${", "$${a}", "p${a}q", "5GB", "", "*", "<<"}
)
SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.sampled_from(WORDS)
KEYS = st.sampled_from(WORDS)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=15
)


def check(recipe: Recipe) -> None:
    """What must hold of every recipe, right or wrong."""
    lines = recipe.text.count("\n") + 2
    for problem in recipe.problems:
        assert "\n" not in str(problem)
        assert problem.message
        assert problem.position is None or 1 <= problem.position.line <= lines
    placed = [(p.position.line, p.position.column) for p in recipe.problems if p.position]
    assert placed == sorted(placed)
    if not recipe.steps:
        assert any(problem.severity == "error" for problem in recipe.problems)
    places: list[Position | None] = []
    for step in recipe.steps:
        assert [bool(step.inputs), bool(step.slices), bool(step.modules)].count(True) == 1
        assert step.position() is not None
        assert all(str(source) and path for source, path in named_sources(step))
        assert len({path for _, path in all_parameters(step)}) == len(list(all_parameters(step)))
        assert all(problem.severity == "warning" for problem in unmatched_filters(step, ["a.weight"]))
        for name in step.parameters:
            try:
                lookup(step, 0 if step.inputs else None, name, "float")("a.weight", 0.5)
            except SettingError as error:
                places.append(error.position)
    assert None not in places
    assert describe(recipe)


@UNTIMED
@given(VALUES)
def test_any_value_as_a_recipe(value: object) -> None:
    """Any tree of values is read, in either form."""
    check(read_recipe(FILE, text=yaml.safe_dump(value)))


@UNTIMED
@given(st.dictionaries(st.sampled_from(sorted(NATIVE_FIELDS)), VALUES), st.dictionaries(KEYS, st.sampled_from(WORDS)))
def test_any_native_recipe(parts: dict[str, object], overrides: dict[str, str]) -> None:
    """Any values under a native recipe's fields are read, with any overrides."""
    check(read_recipe(FILE, overrides, text=yaml.safe_dump({"mergeflow": 1, **parts})))


@UNTIMED
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "skills"]), st.dictionaries(st.sampled_from(sorted(STEP_FIELDS)), VALUES)
    )
)
def test_any_steps(steps: dict[str, object]) -> None:
    """Any values under a step's fields are read."""
    check(read_recipe(FILE, text=yaml.safe_dump({"mergeflow": 1, "vars": {"a": 1}, "steps": steps})))


@UNTIMED
@given(st.text(st.sampled_from(" \n\t-:[]{},&*!|>'\"%@`#?~<a1.$x"), max_size=80))
def test_any_text(text: str) -> None:
    """Any text is read."""
    check(read_recipe(FILE, text=text))


@UNTIMED
@given(st.lists(st.dictionaries(st.sampled_from(sorted(DOCUMENT_FIELDS)), VALUES), max_size=3))
def test_any_documents(documents: list[dict[str, object]]) -> None:
    """Any values under the fields of any number of documents are read."""
    check(read_recipe(FILE, text=yaml.safe_dump_all(documents)))


SOURCES = st.fixed_dictionaries(
    {}, optional={"model": SCALARS, "layer_range": st.lists(SCALARS, max_size=3), "parameters": VALUES}
)
SLICES = st.lists(
    st.fixed_dictionaries({}, optional={"sources": st.lists(SOURCES, max_size=3), "base_model": SCALARS}), max_size=3
)
VOCABULARIES = st.fixed_dictionaries(
    {}, optional={"source": VALUES, "tokens": st.dictionaries(KEYS, VALUES), "pad_to_multiple_of": SCALARS}
)


@UNTIMED
@given(SLICES, VOCABULARIES, st.booleans())
def test_any_slices_and_vocabulary(slices: object, vocabulary: object, is_module: bool) -> None:
    """Any values where slices and vocabularies have theirs are read."""
    made_of = {"modules": {"x": {"slices": slices}}} if is_module else {"slices": slices}
    check(read_recipe(FILE, text=yaml.safe_dump({"merge_method": "l", "tokenizer": vocabulary, **made_of})))


GOLDEN = [path.read_text() for path in sorted((Path(__file__).parents[1] / "golden/cases").glob("*/config.yml"))]
SOUND = [DESIGN, MERGEKIT, SLICED, MODULES, TWO, MERGEKIT + TOKENS]


@UNTIMED
@given(st.sampled_from([*SOUND, *GOLDEN]), st.randoms(use_true_random=False))
def test_damaged_recipes(text: str, chance: random.Random) -> None:
    """A recipe with characters or lines removed, doubled, swapped or inserted is read."""
    check(read_recipe(FILE, {"density": "0.1"}, text=damage(text, chance)))


@UNTIMED
@given(st.sampled_from([*SOUND[1:], *GOLDEN]), st.randoms(use_true_random=False))
def test_damaged_files_are_converted_or_refused(text: str, chance: random.Random) -> None:
    """What can be read is converted to what can be read, or refused."""
    recipe = read_recipe(FILE, text=damage(text, chance))
    try:
        converted = convert(recipe, (), Path.cwd())
    except RecipeError:
        return
    check(read_recipe(FILE, text=converted))


def damage(text: str, chance: random.Random) -> str:
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(text) + 1)
        end = min(len(text), start + chance.choice([0, 1, 1, 5, 40]))
        middle: Any = chance.choice(
            ["", text[start:end] * 2, chance.choice(WORDS), chance.choice("{}[]:,\n \t-&*!'\"")]
        )
        text = text[:start] + middle + text[end:]
    return text


@UNTIMED
@given(st.binary(max_size=60))
def test_any_override(content: bytes) -> None:
    """Any text after `--set density=` is read."""
    check(read_recipe(FILE, {"density": content.decode("latin-1")}, text=DESIGN))
