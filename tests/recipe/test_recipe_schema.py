"""The JSON schema: it takes every right recipe, and refuses what an editor should underline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from recipe_texts import DESIGN, MERGEKIT, read, step_with

from mergeflow.recipe import fields
from mergeflow.recipe.schema import Methods, json_schema

METHODS: Methods = {
    "linear": [("weight", "float"), ("normalize", "bool")],
    "slerp": [("t", "float")],
    "ties": [
        ("weight", "float"),
        ("density", "float"),
        ("lambda", "float"),
        ("normalize", "bool"),
        ("int8_mask", "bool"),
    ],
    "passthrough": [("scale", "float")],
    "karcher": [("max_iter", "int"), ("mode", "string")],
    "sparsify": [("method", "string"), ("density", "float")],
}
ROOTS = Path(__file__).resolve().parents
GOLDEN = next((root / "shared/golden/cases" for root in ROOTS if (root / "shared/golden/cases").is_dir()), None)


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(json_schema(METHODS))


def value(text: str) -> Any:
    return yaml.safe_load(text)


def merge(method: str, parameters: str) -> str:
    return step_with(f"merge_method: {method}\nmodels: [{{model: ./a}}]\nparameters: {parameters}\n")


def test_is_a_schema() -> None:
    """What is printed is itself a valid schema of draft 2020-12, also for no methods at all."""
    for methods in (METHODS, {}):
        schema = json_schema(methods)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        Draft202012Validator.check_schema(schema)


RIGHT = {
    "design": DESIGN,
    "mergekit": MERGEKIT,
    "gradient": merge("slerp", "{t: [0, 1]}"),
    "conditions": merge("slerp", "{t: [{filter: x, value: [0, 1]}, {value: 1e-5}]}"),
    "one condition": merge("slerp", "{t: {value: 1}}"),
    "variable": "vars: {t: 1}\n" + merge("slerp", '{t: "${t}"}'),
    "bool words": merge("linear", "{normalize: 'off', weight: '0.5'}"),
    "int and string": merge("karcher", "{max_iter: '7.0', mode: fast}"),
    "variable method": "vars: {m: slerp}\n" + merge('"${m}"', "{t: 1}"),
    "dtype": step_with("merge_method: linear\nmodels: [{model: {path: ./a}}]\ndtype: torch.bfloat16\ncache: never\n"),
    "empty output": merge("slerp", "{t: 1}") + "outputs: {only: }\n",
    "path output": merge("slerp", "{t: 1}") + "outputs: {only: ./out}\n",
    "operation": step_with(
        "sparsify: {delta: ./a, method: random, density: [{filter: x, value: [0, 1]}]}\ncache: never\n"
    ),
    "list variable": "vars: {x: [1, 2]}\n" + merge("slerp", '{t: "${x}"}'),
    "mergekit unknown fields": MERGEKIT + "whatever: 1\nslices: []\n",
    "slices": step_with(
        "merge_method: slerp\nbase_model: ./a\nparameters: {t: 0.5}\nmodels: []\n"
        "slices: [{sources: [{model: ./a, layer_range: [0, '8']}, {model: ./b, layer_range: [8, 16.0]}], "
        "base_model: ./b, parameters: {t: [0, 1]}}]\n"
    ),
    "modules": step_with(
        "merge_method: linear\nmodules:\n  vision: {models: [{model: ./a, parameters: {weight: 1}}]}\n"
        "  text: {slices: [{sources: [{model: ./a, layer_range: [0, 8]}]}], parameters: {weight: 2}}\n"
    ),
    "vocabulary": step_with(
        "merge_method: linear\nmodels: [{model: ./a}]\nchat_template: chatml\ntokenizer:\n"
        "  source: union\n  pad_to_multiple_of: 64\n  tokens:\n    a: {source: ./a}\n    b: {source: {kind: zero}}\n"
        "    c: {source: {kind: model_token, model: ./a, token_id: 3}, force: true}\n    d:\n"
    ),
    "adapters": step_with(
        "merge_method: linear\nmodels:\n  - {model: ./a+./b}\n  - {model: {model: ./a, lora: {path: ./b}}}\n"
        "  - {model: {path: ./a, adapters: [./b, {path: ./c, revision: x, weight: 0.5}]}}\n"
    ),
    "an adapter alone": step_with("task_vector: {adapter: ./a}\n"),
    "an adapter and its base": step_with("task_vector: {adapter: {path: ./a, weight: 2}, base: ./b}\n"),
    "a name alone": MERGEKIT + "name: x\n",
    "mergekit slices": "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 1], x: 1}], y: 1}]\n",
    "mergekit tokenizer source": MERGEKIT + "tokenizer_source: union\n",
    "mergekit inert parameter": MERGEKIT.replace("  t: 0.5", "  t: 0.5\n  other: 1"),
}


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT)
def test_right_recipes(validator: Draft202012Validator, text: str) -> None:
    """A recipe without errors satisfies the schema."""
    assert not [problem for problem in read(text).problems if problem.severity == "error"]
    assert [error.message for error in validator.iter_errors(value(text))] == []


WRONG = {
    "no steps": "mergeflow: 1\n",
    "version": DESIGN.replace("mergeflow: 1", "mergeflow: 2"),
    "unknown field": DESIGN + "sed: 1\n",
    "unknown step field": step_with("merge_method: linear\nmodels: [{model: ./a}]\ndtyp: float32\n"),
    "no method": step_with("models: [{model: ./a}]\n"),
    "no models": step_with("merge_method: linear\n"),
    "empty models": step_with("merge_method: linear\nmodels: []\n"),
    "model as a text": step_with("merge_method: linear\nmodels: [./a]\n"),
    "model without a model": step_with("merge_method: linear\nmodels: [{parameters: {}}]\n"),
    "unknown dtype": step_with("merge_method: linear\nmodels: [{model: ./a}]\ndtype: int8\n"),
    "cache": step_with("merge_method: linear\nmodels: [{model: ./a}]\ncache: allways\n"),
    "null parameter": merge("slerp", "{t: }"),
    "nested list": merge("slerp", "{t: [[1]]}"),
    "mixture": merge("slerp", "{t: [1, {value: 1}]}"),
    "no value": merge("slerp", "{t: {filter: x}}"),
    "task vector without a base": step_with("task_vector: {model: ./a}\n"),
    "task vector beside a merge": step_with("task_vector: {model: ./a, base: ./b}\nmerge_method: linear\n"),
    "operation without a source": step_with("sparsify: {density: 1}\n"),
    "two operations": step_with("task_vector: {model: ./a, base: ./b}\nsparsify: {delta: ./a}\n"),
    "slices": step_with("merge_method: linear\nmodels: [{model: ./a}]\nslices: [1]\n"),
    "slices without models": step_with("merge_method: linear\nslices: [1]\n"),
    "a slice without a range": step_with("merge_method: linear\nslices: [{sources: [{model: ./a}]}]\n"),
    "a range of three": step_with(
        "merge_method: linear\nslices: [{sources: [{model: ./a, layer_range: [1, 2, 3]}]}]\n"
    ),
    "a negative layer": step_with("merge_method: linear\nslices: [{sources: [{model: ./a, layer_range: [-1, 2]}]}]\n"),
    "half a layer": step_with("merge_method: linear\nslices: [{sources: [{model: ./a, layer_range: [0, 2.5]}]}]\n"),
    "unknown slice field": step_with(
        "merge_method: linear\nslices: [{sources: [{model: ./a, layer_range: [0, 2]}], xyz: 1}]\n"
    ),
    "a module of nothing": step_with("merge_method: linear\nmodules: {text: {parameters: {}}}\n"),
    "a module of both": step_with(
        "merge_method: linear\nmodules:\n  text: {models: [{model: ./a}], slices: [{sources: "
        "[{model: ./a, layer_range: [0, 1]}]}]}\n"
    ),
    "both tokens": step_with(
        "merge_method: linear\nmodels: [{model: ./a}]\n"
        "tokenizer: {tokens: {x: {source: {kind: model_token, model: ./a, token: y, token_id: 1}}}}\n"
    ),
    "unknown kind": step_with(
        "merge_method: linear\nmodels: [{model: ./a}]\ntokenizer: {tokens: {x: {source: {kind: zeros}}}}\n"
    ),
    "a fraction of rows": step_with(
        "merge_method: linear\nmodels: [{model: ./a}]\ntokenizer: {pad_to_multiple_of: 2.5}\n"
    ),
    "an adapter without a path": step_with(
        "merge_method: linear\nmodels: [{model: {path: ./a, adapters: [{weight: 1}]}}]\n"
    ),
    "an adapter beside a model": step_with("task_vector: {adapter: ./a, model: ./b}\n"),
    "bad step name": "mergeflow: 1\nsteps: {a/b: {merge_method: linear, models: [{model: ./a}]}}\n",
    "negative seed": DESIGN + "seed: -1\n",
    "unknown output field": DESIGN.replace("{path: ./out/final,", "{pth: ./out/final,"),
    "reference": DESIGN.replace("base: ./models/base", "base: {revision: x}"),
    "mergekit slices": MERGEKIT + "slices: [1]\n",
    "mergekit without a method": MERGEKIT.replace("merge_method: slerp", ""),
    "mergekit dtype": MERGEKIT.replace("float32", "int8"),
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_wrong_recipes(validator: Draft202012Validator, text: str) -> None:
    """A recipe whose form is wrong violates the schema, as reading it gives an error."""
    assert [problem for problem in read(text).problems if problem.severity == "error"]
    assert not validator.is_valid(value(text))


METHOD_MISTAKES = {
    "unknown method": merge("linea", "{weight: 1}"),
    "unknown parameter": merge("slerp", "{densty: 1}"),
    "another method's parameter": merge("slerp", "{weight: 1}"),
    "a model's unknown parameter": step_with("merge_method: ties\nmodels: [{model: ./a, parameters: {densty: 1}}]\n"),
    "an operation's unknown parameter": step_with("sparsify: {delta: ./a, densty: 1}\n"),
    "an operation's text for a number": step_with("sparsify: {delta: ./a, density: much}\n"),
    "a text for a number": merge("slerp", "{t: much}"),
    "a number for a text": merge("karcher", "{mode: 3}"),
    "a fraction for an integer": merge("karcher", "{max_iter: 2.5}"),
    "a word for a boolean": merge("linear", "{normalize: maybe}"),
    "a wrong element": merge("slerp", "{t: [0, much]}"),
    "a wrong conditional value": merge("slerp", "{t: [{filter: x, value: much}]}"),
}


@pytest.mark.parametrize("text", METHOD_MISTAKES.values(), ids=METHOD_MISTAKES)
def test_methods_and_their_parameters(validator: Draft202012Validator, text: str) -> None:
    """Names of methods, and names and types of their parameters, are checked while they are written."""
    assert not validator.is_valid(value(text))


def test_every_field_is_described() -> None:
    """Each field of the tables is in the schema, with the meaning an editor shows."""
    schema: Any = json_schema(METHODS)
    definitions = schema["$defs"]
    for name, table in (("native", fields.NATIVE_FIELDS), ("step", fields.STEP_FIELDS)):
        properties = definitions[name]["properties"]
        assert {field: properties[field]["description"] for field in properties} == table
        assert definitions[name]["additionalProperties"] is False


@pytest.mark.skipif(GOLDEN is None, reason="the golden cases are not beside this checkout")
def test_golden_configurations(validator: Draft202012Validator) -> None:
    """mergekit's configurations of these methods satisfy the schema."""
    assert GOLDEN is not None
    for path in sorted(GOLDEN.glob("*/config.yml")):
        config = value(path.read_text())
        if config["merge_method"] not in METHODS or path.parent.name.startswith("karcher"):
            continue
        assert validator.is_valid(config), path
