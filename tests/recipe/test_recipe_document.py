"""YAML texts: typed and placed as PyYAML does it, and no text can build objects or exhaust the machine."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recipe_texts import DESIGN, MERGEKIT, marked

from mergeflow.errors import Position
from mergeflow.recipe import document
from mergeflow.recipe.document import Document, parse
from mergeflow.recipe.nodes import ListNode, MapNode, Node, ScalarNode

UNTIMED = settings(deadline=None)


def plain(node: Node | None) -> object:
    match node:
        case ScalarNode(value=value):
            return value
        case ListNode(items=items):
            return [plain(item) for item in items]
        case MapNode(entries=entries):
            return {entry.key: plain(entry.node) for entry in entries}
    return None


def refusal(text: str) -> tuple[str, tuple[int, int]]:
    """The message and place of the only problem of `text`."""
    (problem,) = parse(text, "f").problems
    assert problem.position is not None
    return problem.message, (problem.position.line, problem.position.column)


class TestValues:
    @pytest.mark.parametrize(
        "text",
        [
            *("1", "-1", "+1", "0x10", "010", "1_000", "0b11", "1:30", "190:20:30", "0o17"),
            *("0.5", ".5", "1.", "1e-5", "1.0e-5", "1.0e+5", "1e5", ".inf", "-.inf", ".INF", "1:30.5", "1.2.3"),
            *("true", "yes", "No", "off", "on", "y", "n", "~", "null", "Null"),
            *("a", "a-b", "a:b", "'x'", "'1'", '"on"', "''", "'-'"),
        ],
    )
    def test_scalars_are_typed_as_yaml_1_1(self, text: str) -> None:
        """A scalar has the value and type PyYAML's safe loader, and so mergekit, gives it."""
        expected = yaml.safe_load(text)
        value = plain(parse(text, "f").root)
        assert (type(value), value) == (type(expected), expected)

    def test_nan(self) -> None:
        """`.nan` is not a number."""
        value = plain(parse(".nan", "f").root)
        assert isinstance(value, float)
        assert math.isnan(value)

    @pytest.mark.parametrize("text", ["2024-01-01", "2024-01-01 10:00:00", "=", "0x_", "<<"])
    def test_what_has_no_type_here_is_a_text(self, text: str) -> None:
        """A date is the text it was written as; so is what PyYAML fails on."""
        assert plain(parse(text, "f").root) == text

    @pytest.mark.parametrize("text", ["!!str 1", "! 1", "!!int '7'", "!!float 1", "!!bool 'yes'", "!!null ''"])
    def test_plain_tags_are_allowed(self, text: str) -> None:
        """The tags of texts, numbers, booleans and null are YAML's own and safe."""
        assert plain(parse(text, "f").root) == yaml.safe_load(text)

    def test_the_text_as_written_is_kept(self) -> None:
        """A name such as `on` or `0.50` is known as it was written."""
        root = parse("[on, 0.50, 1e3]", "f").root
        assert isinstance(root, ListNode)
        assert [item.text for item in root.items if isinstance(item, ScalarNode)] == ["on", "0.50", "1e3"]

    @pytest.mark.parametrize(
        "text",
        [
            "a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3, r: 4}",
            "a: &x {p: 1}\nb: &y {p: 2, q: 2}\nc: {<<: [*x, *y], r: 3}",
            "a: &x {p: 1}\nb: &y {p: 2, q: 2}\nc: {<<: *x, r: 3, <<: *y}",
            "a: &x 3\nb: *x\nc: [*x, *x]",
            "&k a: 1\nb: *k",
            "a: {'<<': 1}",
        ],
    )
    def test_anchors_and_merge_keys(self, text: str) -> None:
        """Anchors and merge keys mean what PyYAML makes of them."""
        parsed = parse(text, "f")
        assert parsed.problems == ()
        assert plain(parsed.root) == yaml.safe_load(text)

    @pytest.mark.parametrize("text", [DESIGN, MERGEKIT])
    def test_whole_recipes(self, text: str) -> None:
        """A recipe's tree holds what the safe loader reads."""
        assert plain(parse(text, "f").root) == yaml.safe_load(text)


class TestPositions:
    def test_values_and_keys(self) -> None:
        """Keys and values are placed by line and column from 1, columns counted in characters."""
        text, expected = marked("# é\n▶a: ▶{▶b: ▶'ü', ▶ñ: ▶[▶1, ▶2]}\n")
        root = parse(text, "f").root
        assert isinstance(root, MapNode)
        inner = root.entries[0].node
        assert isinstance(inner, MapNode)
        listed = inner.entries[1].node
        assert isinstance(listed, ListNode)
        found = [root.entries[0].key_position, inner.position]
        for entry in inner.entries:
            found += [entry.key_position, entry.node.position]
        found += [item.position for item in listed.items]
        assert [(place.line, place.column) for place in found] == expected

    def test_python_parser_agrees_with_libyaml(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Trees and places are the same with PyYAML's own parser, where libyaml is missing."""
        texts = [
            DESIGN,
            MERGEKIT,
            "# é\r\na:\r\n  - ü: '1'\r\n  - - &x 2\r\n    - *x\r\n",
            "a:\n  b: |\n    x\n  c: >-\n    y\n",
        ]
        fast = [parse(text, "f") for text in texts]
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
        assert [parse(text, "f") for text in texts] == fast

    def test_an_alias_stands_where_its_anchor_does(self) -> None:
        """A value that an alias repeats is placed where it is written."""
        root = parse("a: &x 3\nb: *x", "f").root
        assert isinstance(root, MapNode)
        assert root.entries[1].node.position == Position("f", 1, 4)


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a: b▶: c", "mapping values are not allowed"),
            ("a: [1\n▶", "expected ',' or ']'"),
            ("a:\n▶\t- b", "YAML is indented with spaces, never with tabs"),
            ("{a: $▶{b}}", 'inside { } or [ ], a variable is written in quotes: "${name}"'),
            ("a: ▶\x07", "the character '\\x07' is not allowed"),
            ("é: ▶\ud800", "the character '\\ud800' is not allowed"),
            ("a: 'ü▶\uffff'", "the character '\\uffff' is not allowed"),
            ("a: '▶\x7f'", "the character '\\x7f' is not allowed"),
            ("a: ▶*x", "no value above is marked '&x'"),
            ("a: &x [▶*x]", "no value above is marked '&x'"),
            ("a: 1\n---\n▶b: 2", "there are several documents"),
            ("▶%YAML 3.0\n---\na", "incompatible YAML document"),
        ],
    )
    def test_unreadable(self, text: str, message: str) -> None:
        """What is not YAML is one problem, where it goes wrong, with the usual cause."""
        text, (place,) = marked(text)
        found, where = refusal(text)
        assert message in found
        assert where == place

    @pytest.mark.parametrize(
        "tag",
        [
            "!!python/object/apply:os.system ['true']",
            "!!python/name:os.system ''",
            "!x 1",
            "!!set {a}",
            "!!binary aa==",
        ],
    )
    def test_tags_build_nothing(self, tag: str) -> None:
        """A tag that would build an object is refused by name, and the rest is still read."""
        parsed = parse(f"a: {tag}\nb: 1", "f")
        (problem,) = parsed.problems
        assert "is not allowed: a recipe holds texts, numbers, lists and mappings only" in problem.message
        assert (problem.path, problem.position) == ("a", Position("f", 1, 4))
        assert plain(parsed.root) == {"a": None, "b": 1}

    @pytest.mark.parametrize("text", ["!!int abc", "!!bool maybe", "!!float ''", "!!int ''"])
    def test_tags_that_lie(self, text: str) -> None:
        """A value that is not of its tag's type is a problem, not a crash."""
        assert "is not what its tag" in refusal(text)[0]

    def test_duplicate_keys(self) -> None:
        """A key written twice in one mapping is known, at the second one; the last value counts."""
        text, (place,) = marked("a:\n  b: 1\n  c: 2\n  ▶b: 3\n")
        parsed = parse(text, "f")
        (duplicate,) = parsed.duplicates
        assert (duplicate.path, duplicate.position) == ("a.b", Position("f", *place))
        assert duplicate.message == "'b' is written twice (first in line 2); only the last one counts"
        assert plain(parsed.root) == {"a": {"c": 2, "b": 3}}

    def test_a_merged_key_is_no_duplicate(self) -> None:
        """A key may be written beside a merge that has it."""
        assert parse("a: &x {p: 1}\nb: {<<: *x, p: 2}", "f").duplicates == ()

    @pytest.mark.parametrize("text", ["▶[a]: 1", "▶{a: 1}: 1"])
    def test_keys_are_names(self, text: str) -> None:
        """A list or a mapping is no key."""
        text, (place,) = marked(text)
        assert refusal(text) == ("a key is a name, not a list or a mapping", place)

    def test_merging_what_is_no_mapping(self) -> None:
        """`<<` takes mappings only."""
        assert refusal("a: 1\n<<: 3") == ("'<<' merges a mapping, or a list of mappings, into this one", (2, 5))


class TestLimits:
    @pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "[" * 100_000 + "]" * 100_000])
    def test_nesting(self, text: str) -> None:
        """Text that nests too deep for any stack is refused at the first value that is too deep."""
        message, _ = refusal(text)
        assert message == f"values are nested more than {document.DEEPEST} deep"

    def test_nesting_within_the_limit(self) -> None:
        """What nests as deep as allowed is read."""
        depth = document.DEEPEST + 1
        assert parse("[" * depth + "]" * depth, "f").problems == ()
        assert refusal("[" * (depth + 1) + "]" * (depth + 1))[1] == (1, depth + 1)

    @pytest.mark.parametrize(
        "shape", ["[{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}]", "{{x: {0}, y: {0}, z: {0}}}"]
    )
    def test_aliases_of_aliases(self, shape: str) -> None:
        """A few lines that name a billion values are refused by the size they would have."""
        lines = ["a0: &a0 [x, x]"] + [f"a{i + 1}: &a{i + 1} {shape.format(f'*a{i}')}" for i in range(40)]
        message, _ = refusal("\n".join(lines))
        assert message == f"more than {document.MOST_VALUES} values, aliases written out"

    def test_merges_of_merges(self) -> None:
        """Merge keys cannot multiply values either."""
        lines = ["a0: &a0 {x: 1}"] + [f"a{i + 1}: &a{i + 1} {{<<: [*a{i}, *a{i}]}}" for i in range(60)]
        assert refusal("\n".join(lines))[0].startswith("more than")

    def test_long_numbers_are_texts(self) -> None:
        """A number of a million digits, or in base 60 of many places, is not computed."""
        for text in ("1" * 1_000_000, "1" + ":1" * 500_000, "1." + "1" * 1_000_000):
            assert plain(parse(text, "f").root) == text


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
KEYS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1).filter(
    lambda key: key != "<<"
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=20)


@UNTIMED
@given(VALUES, st.booleans())
@example({"a": {"b": ["1e-5", "2024-01-01", "on", "~", "<<", "="]}}, True)
def test_any_value_survives(value: object, flow: bool) -> None:
    """Whatever PyYAML writes is read as it was."""
    text = yaml.safe_dump(value, allow_unicode=True, default_flow_style=flow)
    parsed = parse(text, "f")
    assert parsed.problems == ()
    expected = yaml.safe_load(text)
    found = plain(parsed.root)
    assert found == expected or repr(found) == repr(expected)


@UNTIMED
@given(st.text(st.sampled_from(" \n\t-:[]{},&*!|>'\"%@`#?~<a1.$\x00é\ufeff"), max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text raises: there is a tree, or a problem with a place, or nothing at all."""
    parsed = parse(text, "f")
    assert isinstance(parsed, Document)
    assert all(problem.position is not None for problem in parsed.problems)
