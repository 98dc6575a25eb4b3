"""Variables: `${name}`, and `--set name=value` on the command line."""

from __future__ import annotations

import pytest
from recipe_texts import DESIGN, marked, messages, places, read

from mergeflow.recipe.records import Recipe, Scalar

TEMPLATE = """\
mergeflow: 1
vars: {vars}
steps:
  only:
    merge_method: linear
    models: [{{model: ./a}}]
    parameters: {{p: {value}}}
"""


def with_variables(variables: str, value: str, overrides: dict[str, str] | None = None) -> Recipe:
    return read(TEMPLATE.format(vars=variables, value=value), overrides)


def parameter(recipe: Recipe) -> Scalar | tuple[Scalar, ...]:
    return recipe.step("only").parameters["p"].branches[0].value


class TestUse:
    @pytest.mark.parametrize(
        ("variables", "value", "expected"),
        [
            ("{v: 0.5}", "'${v}'", 0.5),
            ("{v: 3}", "'${v}'", 3),
            ("{v: true}", "'${v}'", True),
            ("{v: text}", "'${v}'", "text"),
            ("{v: '0.5'}", "'${v}'", "0.5"),
            ("{v: [0, 0.5]}", "'${v}'", (0, 0.5)),
            ("{v: []}", "'${v}'", ()),
            ("{v: 0.5}", "['${v}', 1]", (0.5, 1)),
            ("{v: 0.50}", "'x${v}y${v}'", "x0.50y0.50"),
            ("{v: on}", "'x${v}'", "xon"),
            ("{v: 1}", "'${v}${v}'", "11"),
            ("{v: 1}", "'${ v }'", 1),
            ("{v: 1, w: '${v}'}", "'${w}'", 1),
            ("{v: 1, w: 'a${v}'}", "'${w}'", "a1"),
            ("{v: [1], w: '${v}'}", "'${w}'", (1,)),
            ("{v: 1}", "'$${v} ${v}'", "${v} 1"),
            ("{v: 1}", "'${v} $ $$ {v} $v'", "1 $ $$ {v} $v"),
            ("{a.b-c_1: 1}", "'${a.b-c_1}'", 1),
        ],
    )
    def test_value(self, variables: str, value: str, expected: object) -> None:
        """Alone, a variable keeps its type; inside a longer text it is what was written."""
        recipe = with_variables(variables, value)
        assert recipe.problems == ()
        assert (type(parameter(recipe)), parameter(recipe)) == (type(expected), expected)

    def test_everywhere(self) -> None:
        """Models, methods, formats, sizes, seeds and paths may use variables."""
        text = """
            mergeflow: 1
            seed: ${n}
            vars: {n: 7, method: linear, size: 1000, name: x, form: bfloat16}
            models: {m: "./models/${name}"}
            steps:
              a: {merge_method: "${method}", models: [{model: m}], dtype: "${form}"}
            outputs:
              a: {path: "./out/${name}-${n}", max_shard_size: "${size}"}
            """
        recipe = read(text)
        assert recipe.problems == ()
        assert recipe.seed == 7
        assert str(recipe.models["m"]) == "./models/x"
        assert (recipe.steps[0].merge_method, recipe.steps[0].dtype) == ("linear", "bfloat16")
        assert (recipe.outputs[0].path, recipe.outputs[0].max_shard_bytes) == ("./out/x-7", 1000)

    def test_a_name_in_a_variable(self) -> None:
        """A variable may hold the name of a step."""
        recipe = read(
            DESIGN.replace("{model: skills}", '{model: "${which}"}').replace("vars: {", "vars: {which: skills, ")
        )
        assert recipe.problems == ()
        assert str(recipe.step("final").inputs[1].source) == "skills"

    def test_keys_are_never_replaced(self) -> None:
        """Names of steps and parameters are names, whatever they look like."""
        recipe = read(TEMPLATE.format(vars="{p: q}", value="'${p}', '${p}': 1"))
        assert set(recipe.step("only").parameters) == {"${p}", "p"}

    def test_the_recipe_knows_its_variables(self) -> None:
        """`Recipe.variables` holds the values that were used."""
        recipe = with_variables("{v: 0.5, w: [1, 2]}", "'${v}${x}'".replace("${x}", ""), {"v": "0.4"})
        assert recipe.variables == {"v": 0.4, "w": (1, 2)}


class TestOverrides:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [("0.4", 0.4), ("3", 3), ("true", True), ("text", "text"), ("'3'", "3"), ("[0, 1]", (0, 1)), ("a=b", "a=b")],
    )
    def test_override(self, given: str, expected: object) -> None:
        """`--set name=value` takes the place of the value in the file, read as YAML."""
        recipe = with_variables("{v: 0.5}", "'${v}'", {"v": given})
        assert recipe.problems == ()
        assert (type(parameter(recipe)), parameter(recipe)) == (type(expected), expected)

    def test_it_reaches_variables_made_from_it(self) -> None:
        """A variable that uses an overridden one changes with it."""
        assert parameter(with_variables("{v: 1, w: 'x${v}'}", "'${w}'", {"v": "2"})) == "x2"

    def test_unknown_variable(self) -> None:
        """An override of a variable that the recipe lacks is an error with the nearest name."""
        recipe = read(DESIGN, {"densty": "0.4"})
        assert messages(recipe) == ["--set 'densty=0.4': the recipe has no variable 'densty'; did you mean 'density'?"]
        assert places(recipe) == [(6, 7)]

    def test_no_variables_at_all(self) -> None:
        """Without `vars` there is nothing to override."""
        recipe = read(TEMPLATE.format(vars="", value="1"), {"x": "1"})
        assert messages(recipe) == ["--set 'x=1': the recipe has no variable 'x'; there are no variables"]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("", "no value"),
            ("{a: 1}", "expected a value, found a mapping"),
            ("[1, [2]]", "a list in a list"),
            ("[1", "--set 'v=[1': not YAML"),
            ("a: b: c", "--set 'v=a: b: c': not YAML"),
            ("!!python/name:os.system ''", "is not allowed"),
            ("\x00", "is not allowed"),
        ],
    )
    def test_bad_value(self, given: str, message: str) -> None:
        """A value that is none is one error, at the variable, and nothing more is said of its uses."""
        text, (place,) = marked(TEMPLATE.format(vars="{v: ▶1}", value="'${v}'"))
        recipe = read(text, {"v": given})
        assert len(recipe.problems) == 1, recipe.problems
        assert message in recipe.problems[0].message
        assert places(recipe) == [place]


class TestMistakes:
    @pytest.mark.parametrize(
        ("variables", "value", "message"),
        [
            ("{density: 0.5}", "▶'${densty}'", "unknown variable 'densty'; did you mean 'density'?"),
            ("{density: 0.5}", "▶'x${densty}'", "unknown variable 'densty'; did you mean 'density'?"),
            ("{v: 0.5, u: '${v}'}", "[1, ▶'${xyz}', '${u}']", "unknown variable 'xyz'; the variables are v, u"),
            ("", "▶'${v}'", "unknown variable 'v'; there are no variables"),
            ("{v: 1}", "['${v}', ▶'${v']", "'${' has no '}' after its name"),
            ("{v: [1]}", "▶'x${v}'", "the variable 'v' is a list: it can stand alone"),
            ("{w: ▶'${v}', v: 1}", "'${w}${v}'", "unknown variable 'v'; there are no variables"),
            ("{v: ▶{a: 1}}", "'${v}'", "expected a value, found a mapping: a variable is a value or a list of values"),
            ("{v: [1, ▶[2]]}", "'${v}'", "a list in a list"),
            ("{v: [1, ▶null]}", "'${v}'", "nothing in a list"),
            ("{v: ▶null}", "'${v}'", "no value: a variable is a value or a list of values"),
            ("{▶'a b': 1}", "1", "'a b' cannot be a variable's name"),
            ("▶[v]", "1", "expected a mapping from names to values, found a list"),
        ],
    )
    def test_mistake(self, variables: str, value: str, message: str) -> None:
        """A mistake with a variable is one error, at its place, and hides nothing else."""
        text, expected = marked(TEMPLATE.format(vars=variables, value=value))
        recipe = read(text)
        assert len(messages(recipe)) == 1, recipe.problems
        assert message in messages(recipe)[0]
        assert [place for place in places(recipe) if place in expected] == expected

    def test_a_guess_stands_in(self) -> None:
        """After an unknown variable the nearest one is used, so that what follows is checked."""
        assert parameter(with_variables("{density: 0.5}", "'${densty}'")) == 0.5

    def test_unused(self) -> None:
        """A variable that stands nowhere is a warning at its name."""
        text, expected = marked(TEMPLATE.format(vars="{v: 1, ▶w: 2}", value="'${v}'"))
        recipe = read(text)
        assert messages(recipe) == []
        assert messages(recipe, "warning") == ["the variable 'w' is never used"]
        assert places(recipe) == expected

    def test_variables_that_double_each_other(self) -> None:
        """A few lines that would make a text of a terabyte are an error."""
        lines = ["  v0: aaaaaaaaaa"] + [f"  v{i + 1}: '${{v{i}}}${{v{i}}}'" for i in range(40)]
        text = TEMPLATE.format(vars="\n" + "\n".join(lines), value="'${v40}'")
        found = messages(read(text))
        assert len(found) == 1
        assert "longer than 10000 characters" in found[0]
