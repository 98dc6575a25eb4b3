"""The JSON Schema (draft 2020-12) of recipes, with which editors complete and check them while they are written.

It is made from the tables of `fields.py` and from the methods it is given, so that it knows what the reader knows.
What a schema cannot say (names that must exist, cycles, shapes) is left to `mergeflow validate`. A native recipe is
checked for unknown fields and parameters; a mergekit file is not, since mergekit allows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergeflow.dtypes import FLOAT_NAMES
from mergeflow.recipe.fields import (
    CONDITION_FIELDS,
    INPUT_FIELDS,
    MERGE_FIELDS,
    MISSING_IN_REFERENCES,
    MISSING_IN_STEPS,
    NATIVE_FIELDS,
    OPERATIONS,
    OUTPUT_FIELDS,
    REFERENCE_FIELDS,
    STEP_FIELDS,
    TOKENIZER_FIELDS,
)
from mergeflow.recipe.native import LARGEST_SEED, VERSION
from mergeflow.recipe.settings import Kind
from mergeflow.recipe.steps import BESIDE_OPERATION, CACHE_POLICIES
from mergeflow.recipe.variables import NAME

Schema = dict[str, object]
Methods = Mapping[str, Sequence[tuple[str, Kind]]]

PARAMETERS: Schema = {"type": "object", "additionalProperties": {"$ref": "#/$defs/any_setting"}}
DIALECT = "https://json-schema.org/draft/2020-12/schema"
VARIABLE: Schema = {"type": "string", "pattern": r"\$\{"}
NUMBER_TEXT = r"^\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$"
INTEGER_TEXT = r"^\s*[+-]?[0-9]+(\.0+)?\s*$"
BOOLEAN_TEXT = "^([tT]([rR][uU][eE])?|[fF]([aA][lL][sS][eE])?|[yY]([eE][sS])?|[nN][oO]?|[oO][nN]|[oO][fF][fF]|0|1)$"

# What may be written for one value of each type: the rules of `settings.convert`.
SCALARS: Mapping[str, Schema] = {
    "float": {"anyOf": [{"type": ["number", "boolean"]}, {"type": "string", "pattern": NUMBER_TEXT}, VARIABLE]},
    "int": {"anyOf": [{"type": ["integer", "boolean"]}, {"type": "string", "pattern": INTEGER_TEXT}, VARIABLE]},
    "bool": {"anyOf": [{"type": "boolean"}, {"enum": [0, 1]}, {"type": "string", "pattern": BOOLEAN_TEXT}, VARIABLE]},
    "string": {"type": "string"},
    "any": {"type": ["number", "boolean", "string"]},
}


def json_schema(methods: Methods) -> Schema:
    """The schema of native recipes and mergekit files, by whether the field `mergeflow` is there.

    Args:
        methods: the merge methods by name, each with its parameters and their types.
    """
    return {
        "$schema": DIALECT,
        "title": "mergeflow recipe",
        "description": "A native recipe (it has 'mergeflow: 1'), or a mergekit configuration.",
        "type": "object",
        "if": {"required": ["mergeflow"]},
        "then": _use("native"),
        "else": _use("mergekit"),
        "$defs": {
            "native": _native(),
            "mergekit": _mergekit(methods),
            "step": _step(methods),
            "reference": _reference(),
            "dtype": _dtype(),
            "output": _output(),
            **{f"{kind}_setting": _setting(scalar) for kind, scalar in SCALARS.items()},
        },
    }


def _use(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _object(meanings: Mapping[str, str], schemas: Mapping[str, Schema], required: Sequence[str] = ()) -> Schema:
    """A mapping with the fields of one table and no others."""
    schema: Schema = {"type": "object", "properties": _described(meanings, schemas), "additionalProperties": False}
    return {**schema, "required": list(required)} if required else schema


def _described(meanings: Mapping[str, str], schemas: Mapping[str, Schema]) -> Schema:
    """The schemas of the fields of one table, each with its meaning, which editors show."""
    return {name: {"description": meaning, **schemas[name]} for name, meaning in meanings.items()}


def _named(values: Schema) -> Schema:
    """A mapping from names to values of one kind."""
    return {"type": "object", "propertyNames": {"pattern": f"^{NAME.pattern}$"}, "additionalProperties": values}


def _absent() -> Schema:
    """A field this version lacks: allowed only with a value that means nothing."""
    return {"description": "Not supported yet by this version of mergeflow.", "enum": [None, False, "", [], {}]}


def _native() -> Schema:
    value = SCALARS["any"]
    schemas: dict[str, Schema] = {
        "mergeflow": {"const": VERSION},
        "seed": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": LARGEST_SEED}, VARIABLE]},
        "models": _named(_use("reference")),
        "vars": _named({"anyOf": [value, {"type": "array", "items": value}]}),
        "steps": {**_named(_use("step")), "minProperties": 1},
        "outputs": _named(_use("output")),
    }
    return _object(NATIVE_FIELDS, schemas, ("mergeflow", "steps"))


def _merge_schemas(methods: Methods) -> dict[str, Schema]:
    """The schemas of a merge's fields, with any parameters: those of its method are checked beside them."""
    entry = _object(INPUT_FIELDS, {"model": _use("reference"), "parameters": PARAMETERS}, ("model",))
    return {
        "merge_method": {"anyOf": [{"enum": list(methods)}, VARIABLE]},
        "models": {"type": "array", "minItems": 1, "items": entry},
        "base_model": _use("reference"),
        "parameters": PARAMETERS,
        "dtype": _use("dtype"),
        "out_dtype": _use("dtype"),
    }


def _step(methods: Methods) -> Schema:
    schemas: dict[str, Schema] = {
        **_merge_schemas(methods),
        **{name: _operation(name, methods) for name in OPERATIONS},
        "cache": {"anyOf": [{"enum": list(CACHE_POLICIES)}, VARIABLE]},
    }
    written: list[Schema] = [{"required": [name]} for name in OPERATIONS]
    beside: Schema = {"propertyNames": {"enum": [*OPERATIONS, *BESIDE_OPERATION]}, "oneOf": written}
    return {
        **_object(STEP_FIELDS, schemas),
        "if": {"anyOf": written},
        "then": beside,
        "else": {"required": ["merge_method", "models"]},
        **_parameters_by_method(methods, closed=True),
    }


def _operation(name: str, methods: Methods) -> Schema:
    """The body of a step that is one method under its own name: its sources and its parameters."""
    sources = OPERATIONS[name].sources
    body = _object(sources, {field: _use("reference") for field in sources}, tuple(sources))
    parameters = {parameter: _use(f"{kind}_setting") for parameter, kind in methods.get(name, ())}
    return {**body, "properties": {**parameters, **_described(sources, dict.fromkeys(sources, _use("reference")))}}


def _mergekit(methods: Methods) -> Schema:
    """mergekit ignores fields it does not know, at every level: so does this schema."""
    schemas = _merge_schemas(methods)
    inputs = {"model": _use("reference"), "parameters": PARAMETERS}
    entry: Schema = {"type": "object", "required": ["model"], "properties": _described(INPUT_FIELDS, inputs)}
    schemas["models"] = {"type": "array", "minItems": 1, "items": entry}
    return {
        "type": "object",
        "required": ["merge_method", "models"],
        "properties": _described(MERGE_FIELDS, schemas) | {name: _absent() for name in MISSING_IN_STEPS},
        **_parameters_by_method(methods, closed=False),
    }


def _parameters_by_method(methods: Methods, *, closed: bool) -> Schema:
    rules = [_parameters_of(name, parameters, closed=closed) for name, parameters in methods.items()]
    return {"allOf": rules} if rules else {}


def _parameters_of(name: str, parameters: Sequence[tuple[str, Kind]], *, closed: bool) -> Schema:
    """When a merge is of the method `name`: the parameters it has. `closed`: and no others."""
    known: Schema = {"properties": {parameter: _use(f"{kind}_setting") for parameter, kind in parameters}}
    if closed:
        known["additionalProperties"] = False
    return {
        "if": {"properties": {"merge_method": {"const": name}}, "required": ["merge_method"]},
        "then": {
            "properties": {
                "parameters": known,
                "models": {"items": {"properties": {"parameters": known}}},
            }
        },
    }


def _setting(scalar: Schema) -> Schema:
    """A parameter's value: a scalar, a gradient, a condition, or a list of conditions."""
    value: Schema = {"anyOf": [scalar, {"type": "array", "items": scalar}]}
    condition = _object(CONDITION_FIELDS, {"value": value, "filter": {"type": "string"}}, ("value",))
    return {"anyOf": [scalar, {"type": "array", "items": scalar}, condition, {"type": "array", "items": condition}]}


def _reference() -> Schema:
    text: Schema = {"type": "string", "minLength": 1}
    schemas: dict[str, Schema] = {"path": text, "revision": text, "model": {"anyOf": [text, {"type": "object"}]}}
    spelled_out: Schema = {
        "type": "object",
        "properties": _described(REFERENCE_FIELDS, schemas) | {name: _absent() for name in MISSING_IN_REFERENCES},
        "additionalProperties": False,
        "anyOf": [{"required": ["path"]}, {"required": ["model"]}],
    }
    return {"anyOf": [text, spelled_out]}


def _dtype() -> Schema:
    prefixed = "^torch\\.(" + "|".join(FLOAT_NAMES) + ")$"
    return {"anyOf": [{"enum": list(FLOAT_NAMES)}, {"type": "string", "pattern": prefixed}, VARIABLE]}


def _output() -> Schema:
    schemas: dict[str, Schema] = {
        "path": {"type": "string"},
        "dtype": _use("dtype"),
        "max_shard_size": {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}]},
        "tokenizer": _object(TOKENIZER_FIELDS, {"source": _use("reference")}),
    }
    return {"anyOf": [{"type": ["string", "null"]}, _object(OUTPUT_FIELDS, schemas)]}
